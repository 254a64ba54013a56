package ststest

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"go.uber.org/goleak"
)

// modeVariable makes the test binary an application.
const modeVariable = "OIDCLAB_TEST_APPLICATION"

// Main runs the tests of a package, or in a process that Start made the
// application: start is given its mode and returns what it answers to a line
// that it is sent, as a value that encodes as JSON.
func Main(m *testing.M, start func(mode string) (func(line string) any, error)) {
	mode := os.Getenv(modeVariable)
	if mode == "" {
		goleak.VerifyTestMain(m)
		return
	}
	if err := serveLines(start, mode); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func serveLines(start func(mode string) (func(line string) any, error), mode string) error {
	answer, err := start(mode)
	if err != nil {
		return err
	}
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		if err := json.NewEncoder(os.Stdout).Encode(answer(lines.Text())); err != nil {
			return err
		}
	}
	return lines.Err()
}

// Files are what an application finds on its disk.
type Files struct {
	Token string // the workload's token
	CA    string // the lab's certificate, PEM
}

// Application is a process of its own with an SDK in it.
type Application struct {
	Files

	stdin  io.Writer
	stdout *json.Decoder
}

// Start starts an application that has a token, and nothing in its environment
// but what the given function returns. It ends with the test.
func (l *Lab) Start(t testing.TB, mode, token string, environment func(Files) []string) *Application {
	t.Helper()
	dir := t.TempDir()
	files := Files{Token: filepath.Join(dir, "token"), CA: filepath.Join(dir, "ca.pem")}
	for file, content := range map[string][]byte{files.Token: []byte(token), files.CA: l.CA.CertPEM()} {
		if err := os.WriteFile(file, content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self) // ends when its input does
	cmd.Env = append([]string{modeVariable + "=" + mode}, environment(files)...)
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		stdin.Close()
		if err := cmd.Wait(); err != nil {
			t.Errorf("application: %v", err)
		}
	})
	return &Application{files, stdin, json.NewDecoder(stdout)}
}

// Ask sends the application a line, and decodes what it answers.
func (a *Application) Ask(t testing.TB, line string, into any) {
	t.Helper()
	if _, err := fmt.Fprintln(a.stdin, line); err != nil {
		t.Fatal(err)
	}
	if err := a.stdout.Decode(into); err != nil {
		t.Fatal(err)
	}
}
