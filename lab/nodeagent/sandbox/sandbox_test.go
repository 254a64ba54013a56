package sandbox_test

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/oidclab/oidclab/lab/nodeagent/sandbox"
)

const deadline = 20 * time.Second

// TestMain makes the test binary a sandbox, or somebody who starts one and dies.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case "container":
			fmt.Fprintln(os.Stderr, sandbox.Main())
			os.Exit(1)
		case "parent":
			os.Exit(parent(os.Args[2], os.Args[3]))
		}
	}
	os.Exit(m.Run())
}

func command() []string { return []string{"/proc/self/exe", "container"} }

// modes are with and without a user namespace. Root can have both.
func modes(t *testing.T, test func(t *testing.T, userNamespace bool)) {
	if err := sandbox.Supported(); err != nil {
		t.Skip("needs namespaces:", err)
	}
	t.Run("user namespace", func(t *testing.T) { test(t, true) })
	t.Run("root", func(t *testing.T) {
		if sandbox.NeedsUserNamespace() {
			t.Skip("needs root")
		}
		test(t, false)
	})
}

// spec returns one of a shell script.
func spec(t *testing.T, userNamespace bool, script string) sandbox.Spec {
	t.Helper()
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return sandbox.Spec{
		Dir: dir, Hostname: "box", WorkingDir: "/", UserNamespace: userNamespace, Args: []string{"sh", "-c", script}, Env: []string{"PATH=" + os.Getenv("PATH")},
	}
}

// run runs a sandbox to its end and returns what it printed.
func run(t *testing.T, s sandbox.Spec) (string, *sandbox.Process) {
	t.Helper()
	log := filepath.Join(t.TempDir(), "log")
	p, err := sandbox.Start(command(), s, log)
	if err != nil {
		t.Fatal(err)
	}
	awaitExit(t, p)
	content, err := os.ReadFile(log)
	if err != nil {
		t.Fatal(err)
	}
	return string(content), p
}

func awaitExit(t *testing.T, p *sandbox.Process) {
	t.Helper()
	select {
	case <-p.Exited():
	case <-time.After(deadline):
		p.Signal(syscall.SIGKILL)
		t.Fatal("it has not ended")
	}
}

func TestProgramSeesWhatItsSpecSays(t *testing.T) {
	modes(t, func(t *testing.T, userNamespace bool) {
		s := spec(t, userNamespace, `hostname; id -u; id -g; echo "$A"; pwd; echo $$; env | wc -l; grep -c NoNewPrivs:.1 /proc/self/status; grep CapEff /proc/self/status`)
		s.UID, s.GID, s.WorkingDir, s.NoNewPrivileges = 4711, 4712, "/etc", true
		s.Env = append(s.Env, "A=b c")
		got, p := run(t, s)
		want := "box\n4711\n4712\nb c\n/etc\n1\n3\n1\nCapEff:\t0000000000000000\n" // PATH, A, and PWD by the shell
		if got != want {
			t.Errorf("got %q, want %q", got, want)
		}
		if code, signal := p.Exit(); code != 0 || signal != 0 {
			t.Errorf("exit %d, signal %d", code, signal)
		}
	})
}

func TestGroups(t *testing.T) {
	modes(t, func(t *testing.T, userNamespace bool) {
		if userNamespace {
			t.Skip("needs groups, which a user namespace of one user does not have")
		}
		s := spec(t, userNamespace, "id -G")
		s.UID, s.GID, s.Groups = 4711, 4712, []int{4713}
		if got, _ := run(t, s); got != "4712 4713\n" {
			t.Errorf("got %q", got)
		}
	})
}

func TestCapabilities(t *testing.T) {
	modes(t, func(t *testing.T, userNamespace bool) {
		s := spec(t, userNamespace, "grep CapBnd /proc/self/status")
		s.Capabilities = []uintptr{unix.CAP_CHOWN, unix.CAP_FOWNER}
		if got, want := first(run(t, s)), fmt.Sprintf("CapBnd:\t%016x\n", 1<<unix.CAP_CHOWN|1<<unix.CAP_FOWNER); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	})
}

func first(output string, _ *sandbox.Process) string { return output }

// Mount points need not exist, and nobody else ever sees them.
func TestMounts(t *testing.T) {
	modes(t, func(t *testing.T, userNamespace bool) {
		source := t.TempDir()
		if err := os.WriteFile(filepath.Join(source, "file"), []byte("content"), 0o644); err != nil {
			t.Fatal(err)
		}
		targets := []string{"/oidclab-test/deep/dir", "/etc/oidclab-test/dir", "/run/oidclab-test/dir", "/var/run/oidclab-test/other"}
		s := spec(t, userNamespace, `cat `+strings.Join(targets, "/file ")+`/file /oidclab-test-file; touch /oidclab-test/deep/dir/no && echo written; touch /etc/oidclab-test/dir/yes && echo written; ls /etc/passwd`)
		for _, target := range targets {
			s.Mounts = append(s.Mounts, sandbox.Bind{Source: source, Target: target, ReadOnly: target != targets[1]})
		}
		s.Mounts = append(s.Mounts, sandbox.Bind{Source: filepath.Join(source, "file"), Target: "/oidclab-test-file", ReadOnly: true})
		got, _ := run(t, s)
		if !strings.HasPrefix(got, strings.Repeat("content", 5)) {
			t.Errorf("got %q, want all mounts", got)
		}
		if strings.Count(got, "written") != 1 || !strings.Contains(got, "Read-only file system") {
			t.Errorf("got %q, want one mount of two to be writable", got)
		}
		if !strings.HasSuffix(got, "/etc/passwd\n") {
			t.Errorf("got %q, want the rest of /etc to be there", got)
		}
		if _, err := os.Stat(filepath.Join(source, "yes")); err != nil {
			t.Error("what was written to a mount is not in its source:", err)
		}
		for _, path := range []string{"/oidclab-test", "/etc/oidclab-test", "/run/oidclab-test", "/oidclab-test-file"} {
			if _, err := os.Lstat(path); err == nil {
				t.Errorf("%s is on the machine", path)
			}
		}
	})
}

func TestRootIsItsOwn(t *testing.T) {
	modes(t, func(t *testing.T, userNamespace bool) {
		s := spec(t, userNamespace, "echo x > /oidclab-test-file && cat /oidclab-test-file")
		if got, _ := run(t, s); got != "x\n" {
			t.Errorf("got %q, want to write to /", got)
		}
		if _, err := os.Lstat("/oidclab-test-file"); err == nil {
			t.Error("what it wrote is on the machine")
		}
		s = spec(t, userNamespace, "echo x > /oidclab-test-file || echo refused")
		s.ReadOnlyRoot = true
		if got, _ := run(t, s); !strings.Contains(got, "Read-only file system") || !strings.HasSuffix(got, "refused\n") {
			t.Errorf("got %q, want a read-only root", got)
		}
	})
}

func TestExit(t *testing.T) {
	modes(t, func(t *testing.T, userNamespace bool) {
		_, p := run(t, spec(t, userNamespace, "exit 3"))
		if code, signal := p.Exit(); code != 3 || signal != 0 {
			t.Errorf("exit %d, signal %d", code, signal)
		}
		marker := filepath.Join(t.TempDir(), "log")
		p, err := sandbox.Start(command(), spec(t, userNamespace, "trap 'exit 7' TERM; echo ready; while :; do sleep 0.1; done"), marker)
		if err != nil {
			t.Fatal(err)
		}
		eventually(t, func() error { return contains(marker, "ready") })
		p.Signal(syscall.SIGTERM)
		awaitExit(t, p)
		if code, _ := p.Exit(); code != 7 {
			t.Errorf("exit %d after SIGTERM, want that of its handler", code)
		}
	})
}

func TestStartError(t *testing.T) {
	modes(t, func(t *testing.T, userNamespace bool) {
		missing := spec(t, userNamespace, "")
		missing.Args = []string{"no-such-program"}
		nowhere := spec(t, userNamespace, "")
		nowhere.WorkingDir = "/no/such/dir"
		noSource := spec(t, userNamespace, "")
		noSource.Mounts = []sandbox.Bind{{Source: "/no/such/source", Target: "/x"}}
		for want, s := range map[string]sandbox.Spec{
			`exec: "no-such-program": executable file not found in $PATH`: missing,
			"working directory": nowhere,
			"/no/such/source":   noSource,
		} {
			_, err := sandbox.Start(command(), s, filepath.Join(t.TempDir(), "log"))
			var failed sandbox.StartError
			if !errors.As(err, &failed) || !strings.Contains(err.Error(), want) {
				t.Errorf("got %v, want a start error with %s", err, want)
			}
		}
	})
}

// parent starts a sandbox that starts a daemon, and waits to be killed.
func parent(dir, log string) int {
	s := sandbox.Spec{
		Dir: dir, Hostname: "box", WorkingDir: "/", UID: 4711, GID: 4711, UserNamespace: sandbox.NeedsUserNamespace(), Env: []string{"PATH=" + os.Getenv("PATH")},
		Args: []string{"sh", "-c", "setsid sleep 98765 & echo started; sleep 98765"},
	}
	p, err := sandbox.Start(command(), s, log)
	if err != nil {
		fmt.Println(err)
		return 1
	}
	fmt.Println("started")
	<-p.Exited()
	return 0
}

// Nothing of a program lives on: not when it ends, and not when its parent is
// killed.
func TestNothingIsLeft(t *testing.T) {
	modes(t, func(t *testing.T, userNamespace bool) {
		run(t, spec(t, userNamespace, "setsid sleep 98764 & exit 0"))
		if left := sleepers(t, "98764"); len(left) != 0 {
			t.Errorf("left when the program has ended: %v", left)
		}
	})
	t.Run("parent killed", func(t *testing.T) {
		if err := sandbox.Supported(); err != nil {
			t.Skip("needs namespaces:", err)
		}
		dir, err := filepath.EvalSymlinks(t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command("/proc/self/exe", "parent", dir, filepath.Join(t.TempDir(), "log"))
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		line, _ := bufio.NewReader(out).ReadString('\n')
		eventually(t, func() error {
			if n := len(sleepers(t, "98765")); n != 2 {
				return fmt.Errorf("%d of 2 processes run: %s", n, line)
			}
			return nil
		})
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		killed := time.Now()
		_ = cmd.Wait()
		eventually(t, func() error {
			if left := sleepers(t, "98765"); len(left) != 0 {
				return fmt.Errorf("left: %v", left)
			}
			return nil
		})
		if took := time.Since(killed); took > 2*time.Second {
			t.Errorf("they lived on for %s", took)
		}
	})
}

// sleepers returns the processes that sleep for so long.
func sleepers(t *testing.T, seconds string) []int {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	var pids []int
	for _, file := range files {
		content, err := os.ReadFile(file)
		if err == nil && string(content) == "sleep\x00"+seconds+"\x00" {
			pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(file)))
			pids = append(pids, pid)
		}
	}
	return pids
}

func eventually(t *testing.T, check func() error) {
	t.Helper()
	end := time.After(deadline)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		err := check()
		if err == nil {
			return
		}
		select {
		case <-tick.C:
		case <-end:
			t.Fatalf("after %s: %v", deadline, err)
		}
	}
}

func contains(file, text string) error {
	content, err := os.ReadFile(file)
	if err == nil && !strings.Contains(string(content), text) {
		err = fmt.Errorf("%s is not in %q", text, content)
	}
	return err
}
