package proxy

const childVariable = "OIDCLAB_TEST_CHILD"

func child(string) int { return 1 }
