package e2e

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// The limits of clean-ups.
const (
	interruptLimit = 15 * time.Second // from Ctrl-C to the end of `up`
	orphanLimit    = 2 * time.Second  // from the death of the supervisor to that of its children
)

// moment is a point of a start that can be seen from outside.
type moment struct {
	name    string
	reached func(*user, *job) error // nil once it is reached
}

// moments are in the order of a start, from the first instruction to the last
// step. Of the late ones, some may be over before a signal arrives.
var moments = []moment{
	{"at once", func(*user, *job) error { return nil }},
	file("lock"),
	file("logs/supervisor.log"),
	file("ca.crt"),
	line("✓ certificates and issuer front"),
	line("✓ token service"),
	line("✓ signing keys c1"),
	file("clusters/c1/signer.sock"),
	file("clusters/c1/authentication.yaml"),
	running("etcd"),
	running("kube-apiserver"),
	running("kube-controller-manager"),
	file("clusters/c1/etcd/member/wal"),
	file("clusters/c1/etcd.sock"),
	contains("clusters/c1/kube-apiserver.log", "Serving securely"),
	file("clusters/c1/kubeconfig"),
	line("✓ cluster c1"),
	line("✓ ready"),
	file("control.sock"),
	file("lab.json"),
}

// early returns the moments at which nothing is ready yet.
func early(names ...string) []moment {
	var some []moment
	for _, m := range moments {
		for _, name := range names {
			if strings.Contains(m.name, name) {
				some = append(some, m)
			}
		}
	}
	return some
}

const labName = "x"

func file(path string) moment {
	return moment{"file " + path, func(u *user, j *job) error {
		info, err := os.Stat(filepath.Join(u.dir(labName), path))
		if err == nil && info.ModTime().Before(j.began) {
			err = fmt.Errorf("%s is of an earlier start", path)
		}
		return err
	}}
}

func contains(path, text string) moment {
	return moment{path + " says " + text, func(u *user, j *job) error {
		if err := file(path).reached(u, j); err != nil {
			return err
		}
		data, err := os.ReadFile(filepath.Join(u.dir(labName), path))
		if err == nil && !strings.Contains(string(data), text) {
			err = fmt.Errorf("%s does not say %q yet", path, text)
		}
		return err
	}}
}

func line(text string) moment {
	return moment{"line " + text, func(_ *user, j *job) error {
		if !strings.Contains(j.stderr.String(), text) {
			return fmt.Errorf("stderr does not say %q yet: %s", text, j.stderr.String())
		}
		return nil
	}}
}

func running(component string) moment {
	return moment{"process " + component, func(u *user, _ *job) error {
		_, err := u.process(component)
		return err
	}}
}

// startUntil begins a start and returns at the given moment of it.
func (u *user) startUntil(t testing.TB, m moment) *job {
	t.Helper()
	j := u.start(t, "", "up", "--name", labName, "--vault", "none")
	mustAwait(t, patience, "waiting for "+m.name, func() error {
		err := m.reached(u, j)
		if err != nil && j.ended() {
			t.Fatalf("over before %s: %s", m.name, j.result)
		}
		return err
	})
	u.observe(t)
	return j
}

// works shows that a start succeeds, without help, after all that has happened.
func (u *user) works(t *testing.T) {
	t.Helper()
	u.run(t, "up", "--name", labName, "--vault", "none").want(t, 0)
	u.observe(t)
	u.run(t, "status", "--name", labName).want(t, 0)
	u.run(t, "exchange", "aws", "--name", labName).want(t, 0)
	u.run(t, "down", "--name", labName).want(t, 0)
}

func TestInterrupt(t *testing.T) {
	t.Parallel()
	u := newUser(t)
	for _, m := range moments {
		t.Run(m.name, func(t *testing.T) {
			j := u.startUntil(t, m)
			if err := j.command.Process.Signal(os.Interrupt); err != nil && !errors.Is(err, os.ErrProcessDone) {
				t.Fatal(err)
			}
			switch r := j.wait(t, interruptLimit); r.code {
			case 130:
				if err := u.nothingLeft(); err != nil {
					t.Errorf("left behind: %v: %s", err, r)
				}
			case 0: // too late: then it is up, and stays up
				u.run(t, "status", "--name", labName).want(t, 0)
				u.run(t, "down", "--name", labName).want(t, 0)
			default:
				t.Errorf("want exit 130: %s", r)
			}
		})
	}
	u.works(t)
}

// TestStarterKilled: without `up`, nobody wants the lab any more.
func TestStarterKilled(t *testing.T) {
	t.Parallel()
	u := newUser(t)
	for _, m := range early("lock", "logs/supervisor.log", "token service", "etcd.sock", "process kube-apiserver") {
		t.Run(m.name, func(t *testing.T) {
			j := u.startUntil(t, m)
			if err := j.command.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			j.wait(t, interruptLimit)
			if m.name == "file lock" {
				// There was no supervisor yet that could clean up, but no process either.
				mustAwait(t, interruptLimit, "left behind", u.noProcess)
				u.run(t, "down", "--name", labName).want(t, 0)
			}
			mustAwait(t, interruptLimit, "left behind", u.nothingLeft)
		})
	}
	u.works(t)
}

func TestSupervisorKilledDuringStart(t *testing.T) {
	t.Parallel()
	u := newUser(t)
	for _, m := range early("ca.crt", "process etcd", "process kube-controller-manager", "etcd.sock", "Serving securely") {
		t.Run(m.name, func(t *testing.T) {
			j := u.startUntil(t, m)
			u.killSupervisor(t)
			j.wait(t, patience).want(t, 1, "the supervisor ended before the lab was ready", "signal: killed")
			u.run(t, "status", "--name", labName).want(t, 3, "its supervisor died", "oidclab up")
		})
	}
	u.works(t)
}

// killSupervisor kills the supervisor and shows that its children are gone in
// time.
func (u *user) killSupervisor(t *testing.T) {
	t.Helper()
	var supervisor int
	mustAwait(t, patience, "a supervisor", func() (err error) {
		supervisor, err = u.process("supervise")
		return err
	})
	if err := syscall.Kill(supervisor, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	mustAwait(t, orphanLimit, "orphans", func() error { return errors.Join(u.noProcess(), u.noSocket()) })
}

func TestSupervisorKilled(t *testing.T) {
	t.Parallel()
	u := newUser(t)
	u.up(t, "--name", labName, "--vault", "none")
	u.killSupervisor(t)
	u.run(t, "status", "--name", labName).want(t, 3, "its supervisor died", "oidclab up")
	u.run(t, "token", "mint", "--name", labName).want(t, 3)
	if r := u.run(t, "list").want(t, 0); !strings.Contains(r.stdout, "dead") {
		t.Errorf("want a dead lab in: %s", r)
	}
	u.works(t)
}

func TestTerminatedSupervisorCleansUp(t *testing.T) {
	t.Parallel()
	u := newUser(t)
	u.up(t, "--name", labName, "--vault", "none")
	supervisor, err := u.process("supervise")
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(supervisor, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	mustAwait(t, interruptLimit, "left behind", u.nothingLeft)
}

// TestTimeout: a lab that does not become ready in time is an error that says
// what it waited for.
func TestTimeout(t *testing.T) {
	t.Parallel()
	u := newUser(t)
	mute := filepath.Join(t.TempDir(), "vault") // a Vault that never answers
	if err := os.WriteFile(mute, []byte("#!/bin/sh\nexec sleep 600\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	u.run(t, "up", "--name", labName, "--vault", mute, "--timeout", "1s").want(t, 10, "not ready within 1s", "--timeout")
	if err := u.nothingLeft(); err != nil {
		t.Errorf("left behind: %v", err)
	}

	u.run(t, "up", "--name", labName, "--vault", mute, "--timeout", "5s", "--keep").want(t, 10, "not ready within 5s: ", "vault: not ready: ", "connection refused")
	if err := u.noProcess(); err != nil {
		t.Errorf("left behind: %v", err)
	}
	logs := u.run(t, "logs", "--name", labName).want(t, 0)
	for _, component := range []string{"c1/kube-apiserver: ", "c1/etcd: "} {
		if !strings.Contains(logs.stdout, component) {
			t.Errorf("no log of %s: %s", component, logs)
		}
	}
	u.run(t, "down", "--name", labName).want(t, 0, "what it left is removed")
}

func TestForeground(t *testing.T) {
	t.Parallel()
	u := newUser(t)
	j := u.start(t, "", "up", "--name", labName, "--vault", "none", "--foreground")
	mustAwait(t, patience, "ready", func() error { return line("Ctrl-C is down").reached(u, j) })
	u.observe(t)
	u.run(t, "status", "--name", labName).want(t, 0)
	u.run(t, "exchange", "generic", "--name", labName).want(t, 0)
	u.run(t, "up", "--name", labName, "--vault", "none").want(t, 0, "is up already")
	if err := j.command.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	j.wait(t, interruptLimit).want(t, 0)
	if err := u.nothingLeft(); err != nil {
		t.Errorf("left behind: %v", err)
	}

	j = u.start(t, "", "up", "--name", labName, "--vault", "none", "--foreground")
	mustAwait(t, patience, "the cluster", func() error { return running("kube-apiserver").reached(u, j) })
	u.observe(t)
	if err := j.command.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	j.wait(t, interruptLimit).want(t, 130)
	if err := u.nothingLeft(); err != nil {
		t.Errorf("left behind: %v", err)
	}
}

func TestDownWhileStarting(t *testing.T) {
	t.Parallel()
	u := newUser(t)
	for _, m := range early("lock", "token service", "etcd.sock") {
		t.Run(m.name, func(t *testing.T) {
			j := u.startUntil(t, m)
			u.run(t, "down", "--name", labName).want(t, 0)
			if r := j.wait(t, interruptLimit); r.code != 130 {
				t.Errorf("want exit 130: %s", r)
			}
			if err := u.nothingLeft(); err != nil {
				t.Errorf("left behind: %v", err)
			}
		})
	}
}

// TestTwoStartsAtOnce: one of them makes the lab, the other says so or shows it.
func TestTwoStartsAtOnce(t *testing.T) {
	t.Parallel()
	u := newUser(t)
	t.Cleanup(func() { u.run(t, "down", "--all").want(t, 0) })
	var jobs [4]*job
	for i := range jobs {
		jobs[i] = u.start(t, "", "up", "--name", labName, "--vault", "none")
	}
	succeeded := 0
	for _, j := range jobs {
		switch r := j.wait(t, patience); r.code {
		case 0:
			succeeded++
		default:
			r.want(t, 9, "is being started or stopped by process ", "next:")
		}
	}
	if succeeded == 0 {
		t.Error("none of them succeeded")
	}
	u.observe(t)
	if _, err := u.process("supervise"); err != nil {
		t.Error(err)
	}
	if _, err := u.process("kube-apiserver"); err != nil {
		t.Error(err)
	}
	u.run(t, "status", "--name", labName).want(t, 0)
}
