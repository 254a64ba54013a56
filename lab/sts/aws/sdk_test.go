package aws

const childVariable = "OIDCLAB_TEST_CHILD"

func child() int { return 0 }
