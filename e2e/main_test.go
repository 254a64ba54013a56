// Package e2e drives the built binary: what a person, a script or an
// application sees of it, on good days and on bad ones.
//
// The binary is that of the variable OIDCLAB_BINARY; without it, the tests
// build it first.
package e2e

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
)

const binaryVariable = "OIDCLAB_BINARY"

// binary is the program under test. TestMain sets it, once.
var binary string

func TestMain(m *testing.M) {
	if os.Getenv(applicationVariable) != "" {
		os.Exit(application())
	}
	os.Exit(run(m))
}

func run(m *testing.M) int {
	// A lab that starts keeps two cores busy. -parallel on the command line wins.
	if err := flag.Set("test.parallel", "2"); err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		return 1
	}
	dir, err := os.MkdirTemp("", "oidclab-e2e-")
	if err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		return 1
	}
	defer func() { _ = os.RemoveAll(dir) }()
	if binary, err = build(dir); err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		return 1
	}
	syscall.Umask(0) // a careless one must not open what is to be closed
	return m.Run()
}

func build(dir string) (string, error) {
	if given := os.Getenv(binaryVariable); given != "" {
		return filepath.Abs(given)
	}
	path := filepath.Join(dir, "oidclab")
	command := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", path, "github.com/oidclab/oidclab/cmd/oidclab")
	command.Stdout, command.Stderr = os.Stderr, os.Stderr
	if err := command.Run(); err != nil {
		return "", fmt.Errorf("building the binary: %w", err)
	}
	return path, nil
}
