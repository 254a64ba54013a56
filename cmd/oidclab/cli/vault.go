package cli

import (
	"context"
	"fmt"
	"os/exec"
	"strings"

	"github.com/oidclab/oidclab/lab"
	"github.com/oidclab/oidclab/lab/images"
	"github.com/oidclab/oidclab/lab/problem"
	"github.com/oidclab/oidclab/lab/vault"
)

// inContainer is how --vault names an image.
const inContainer = "container:"

// chooseVault sets what runs Vault, by the value of --vault and the engine.
func (a *app) chooseVault(ctx context.Context, spec *lab.Spec, choice string) (err error) {
	if image, ok := strings.CutPrefix(choice, inContainer); ok {
		if spec.Engine != lab.Kind {
			return problem.New(problem.Usage, "oidclab up --engine kind --vault "+choice,
				"with the %s engine Vault can't be in a container, from which the lab's loopback addresses are out of reach", spec.Engine)
		}
		spec.VaultImage = image
		return nil
	}
	switch choice {
	case "none":
		spec.NoVault = "--vault none"
	case "auto":
		program, missing := vault.Find(exec.LookPath)
		if spec.Engine == lab.Kind {
			if spec.VaultImage, err = vaultImage(ctx, program); err != nil || spec.VaultImage != "" {
				return err
			}
		}
		if spec.Vault = program; missing != nil {
			spec.NoVault = missing.Error()
			fmt.Fprintf(a.Err, "oidclab: without Vault: %v\n", missing)
		}
	default:
		if spec.Vault, err = exec.LookPath(choice); err != nil {
			return problem.New(problem.EnvironmentMissing, "oidclab up --vault none, or install Vault", "the vault program: %w", err)
		}
	}
	return nil
}

// vaultImage returns the image to run Vault from: HashiCorp's, or the one made
// of the program, whichever is there. It is empty if none is.
func vaultImage(ctx context.Context, program string) (string, error) {
	candidates := []string{vault.DefaultImage}
	if program != "" {
		if made, err := images.VaultRef(program); err == nil { // else it is no program for an image
			candidates = append(candidates, made)
		}
	}
	for _, image := range candidates {
		if size, err := images.Size(ctx, image); err != nil || size > 0 {
			return image, err
		}
	}
	return "", nil
}
