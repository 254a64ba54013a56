package kind

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"strings"
	"time"

	"github.com/oidclab/oidclab/lab/problem"
)

// docker runs the docker program, as kind does, and returns what it printed.
func docker(ctx context.Context, args ...string) (string, error) {
	return dockerWith(ctx, nil, args...)
}

// dockerWith is docker with something on its standard input.
func dockerWith(ctx context.Context, stdin io.Reader, args ...string) (string, error) {
	command := exec.CommandContext(ctx, "docker", args...)
	command.WaitDelay = time.Second // for its own children to let go of the streams
	var stdout, stderr bytes.Buffer
	command.Stdin, command.Stdout, command.Stderr = stdin, &stdout, &stderr
	err := command.Run()
	switch {
	case errors.Is(err, exec.ErrNotFound):
		return "", problem.New(problem.EnvironmentMissing, "install Docker, then: oidclab doctor", "there is no docker program on PATH")
	case ctx.Err() != nil:
		return "", fmt.Errorf("docker %s: %w", args[0], context.Cause(ctx))
	case err != nil:
		return "", fmt.Errorf("docker %s: %w: %s", args[0], err, strings.TrimSpace(stderr.String()))
	}
	return strings.TrimSpace(stdout.String()), nil
}
