package e2e

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

// TestScripts runs the scripts of testdata. Each has a user of its own, and
// leaves nothing of them.
func TestScripts(t *testing.T) {
	t.Parallel()
	for _, file := range scripts(t, "testdata") {
		t.Run(name(file), func(t *testing.T) {
			t.Parallel()
			runScript(t, newUser(t), file)
		})
	}
}

// TestLab runs what one lab, which stays as it is, is enough for: the scripts
// of testdata/lab, in which it is up already, and applications.
func TestLab(t *testing.T) {
	t.Parallel()
	u := newUser(t)
	info := u.up(t, "--name", labName)
	for _, file := range scripts(t, filepath.Join("testdata", "lab")) {
		t.Run(name(file), func(t *testing.T) { runScript(t, u, file) })
	}
	t.Run("aws sdk", func(t *testing.T) { testSDK(t, u, info) })
	t.Run("oci sdk", func(t *testing.T) { testOCI(t, u, info) })
	t.Run("secrets", func(t *testing.T) { testSecrets(t, u, info) })
}

func scripts(t *testing.T, dir string) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*.txtar"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no scripts in %s: %v", dir, err)
	}
	return files
}

func name(file string) string { return strings.TrimSuffix(filepath.Base(file), ".txtar") }

func runScript(t *testing.T, u *user, file string) {
	t.Helper()
	testscript.Run(t, testscript.Params{
		Files:               []string{file},
		RequireExplicitExec: true,
		Setup: func(env *testscript.Env) error {
			for _, variable := range append(u.env(), "OIDCLAB_NAME="+labName, "STATE="+u.dir(labName), "BINARY="+binary) {
				name, value, _ := strings.Cut(variable, "=")
				env.Setenv(name, value)
			}
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){"oidclab": oidclab, "exits": exits, "mode": mode},
	})
}

// oidclab ARGS runs the binary, which must exit with 0.
func oidclab(ts *testscript.TestScript, neg bool, args []string) {
	if neg {
		ts.Fatalf("usage: oidclab args... (for other exit codes: exits CODE args...)")
	}
	exits(ts, false, append([]string{"0"}, args...))
}

// exits CODE ARGS runs the binary, which must exit with CODE.
func exits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) == 0 {
		ts.Fatalf("usage: exits code args...")
	}
	err := ts.Exec(binary, args[1:]...)
	code := 0
	if exit := new(exec.ExitError); errors.As(err, &exit) {
		code = exit.ExitCode()
	} else if err != nil {
		ts.Fatalf("%v", err)
	}
	if want := args[0]; strconv.Itoa(code) != want {
		ts.Fatalf("oidclab %s: exit %d, want %s", strings.Join(args[1:], " "), code, want)
	}
}

// mode PERMISSIONS FILE checks the permissions of a file, in octal.
func mode(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: mode permissions file")
	}
	info, err := os.Stat(ts.MkAbs(args[1]))
	ts.Check(err)
	if got := strconv.FormatUint(uint64(info.Mode().Perm()), 8); got != args[0] {
		ts.Fatalf("%s has mode %s, want %s", args[1], got, args[0])
	}
}
