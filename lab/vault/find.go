package vault

import "github.com/oidclab/oidclab/lab/problem"

// DefaultImage is HashiCorp's image of the version that the lab's texts and limits
// were taken from.
const DefaultImage = "hashicorp/vault:1.21.4"

// Find returns the path of the Vault program. lookPath is [exec.LookPath], or
// one like it. Without the program the error is a [problem.EnvironmentMissing].
func Find(lookPath func(string) (string, error)) (program string, err error) {
	program, err = lookPath("vault")
	if err != nil {
		return "", problem.New(problem.EnvironmentMissing,
			"install Vault (https://developer.hashicorp.com/vault/install), make sure that `vault version` works, and run: oidclab up",
			"there is no Vault: oidclab runs the real server as a child process and brings none of its own: %w", err)
	}
	return program, nil
}
