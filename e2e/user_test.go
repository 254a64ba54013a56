package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/oidclab/oidclab/lab"
)

// How long things may take before their test gives up, and how often it looks.
const (
	patience   = time.Minute
	cleanLimit = 5 * time.Second // for what a test started to be gone
	pollGap    = 20 * time.Millisecond
)

// user is somebody who runs the binary, with a state directory and a directory
// for temporary files of their own.
type user struct {
	home    string          // XDG_STATE_HOME; short, because of the limit on socket paths, and awkward
	sockets map[string]bool // inodes of all listening sockets ever seen, see observe
}

// newUser returns a user of whom nothing may be left when the test ends.
func newUser(t testing.TB) *user {
	t.Helper()
	home, err := os.MkdirTemp("", "läb ")
	if err != nil {
		t.Fatal(err)
	}
	u := &user{home: home, sockets: map[string]bool{}}
	if err := os.MkdirAll(u.tmp(), 0o700); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if !t.Failed() {
			if left := await(cleanLimit, u.nothingLeft); left != nil {
				t.Errorf("left behind: %v", left)
			}
		}
		for pid := range u.processes() {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
		if err := os.RemoveAll(home); err != nil {
			t.Error(err)
		}
	})
	return u
}

func (u *user) tmp() string { return filepath.Join(u.home, "tmp") }

// dir returns the state directory of a lab.
func (u *user) dir(name string) string { return filepath.Join(u.home, "oidclab", name) }

// env returns the whole environment of the user's processes. The state
// directory in it is what they are told apart by.
func (u *user) env() []string {
	return []string{"PATH=" + os.Getenv("PATH"), "HOME=" + u.home, "XDG_STATE_HOME=" + u.home, "TMPDIR=" + u.tmp(), "OIDCLAB_ENGINE=embedded", "OIDCLAB_IMAGE=" + os.Getenv("OIDCLAB_IMAGE")}
}

// result is what came of a run of the binary.
type result struct {
	args           []string
	code           int // 128 and its number, if a signal ended it
	stdout, stderr string
	took           time.Duration
}

func (r result) String() string {
	return fmt.Sprintf("oidclab %s: exit %d after %s\nstdout: %s\nstderr: %s", strings.Join(r.args, " "), r.code, r.took.Round(time.Millisecond), r.stdout, r.stderr)
}

// want fails the test unless the run exited with code and said all of texts on
// stderr.
func (r result) want(t testing.TB, code int, texts ...string) result {
	t.Helper()
	if r.code != code {
		t.Fatalf("want exit %d: %s", code, r)
	}
	for _, text := range texts {
		if !strings.Contains(r.stderr, text) {
			t.Fatalf("want %q on stderr: %s", text, r)
		}
	}
	return r
}

// job is a run of the binary that is under way.
type job struct {
	command *exec.Cmd
	stdout  output
	stderr  output
	began   time.Time
	done    chan struct{} // closed when the process has ended
	result  result        // once done is closed
}

// start runs the binary. It is killed if it has not ended with the test.
func (u *user) start(t testing.TB, stdin string, args ...string) *job {
	t.Helper()
	j := &job{command: exec.Command(binary, args...), done: make(chan struct{}), began: time.Now()}
	j.command.Env = u.env()
	j.command.Dir = u.tmp()
	j.command.Stdin = strings.NewReader(stdin)
	j.command.Stdout, j.command.Stderr = &j.stdout, &j.stderr
	if err := j.command.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(j.done)
		_ = j.command.Wait() // its state says it all
		code := j.command.ProcessState.ExitCode()
		if status := j.command.ProcessState.Sys().(syscall.WaitStatus); status.Signaled() {
			code = 128 + int(status.Signal())
		}
		j.result = result{
			args: args, code: code, took: time.Since(j.began),
			stdout: j.stdout.String(), stderr: j.stderr.String(),
		}
	}()
	t.Cleanup(func() {
		_ = j.command.Process.Kill() // fails if it has ended
		<-j.done
	})
	return j
}

// wait returns what came of the job.
func (j *job) wait(t testing.TB, within time.Duration) result {
	t.Helper()
	select {
	case <-j.done:
		return j.result
	case <-time.After(within):
		t.Fatalf("%v has not ended within %s\nstdout: %s\nstderr: %s", j.command.Args, within, j.stdout.String(), j.stderr.String())
		return result{}
	}
}

func (j *job) ended() bool {
	select {
	case <-j.done:
		return true
	default:
		return false
	}
}

// run runs the binary to its end.
func (u *user) run(t testing.TB, args ...string) result {
	t.Helper()
	return u.start(t, "", args...).wait(t, patience)
}

// feed runs the binary to its end with the given stdin.
func (u *user) feed(t testing.TB, stdin string, args ...string) result {
	t.Helper()
	return u.start(t, stdin, args...).wait(t, patience)
}

// up brings up a lab, takes it down when the test ends, and returns where
// everything is.
func (u *user) up(t testing.TB, args ...string) lab.Info {
	t.Helper()
	t.Cleanup(func() { u.run(t, "down", "--all").want(t, 0) })
	var info lab.Info
	decode(t, u.run(t, append([]string{"up", "-o", "json"}, args...)...).want(t, 0), &info)
	u.observe(t)
	return info
}

// status returns the state of a lab that is up, ready or not.
func (u *user) status(t testing.TB, args ...string) (lab.Status, result) {
	t.Helper()
	r := u.run(t, append([]string{"status", "-o", "json"}, args...)...)
	var status lab.Status
	if r.code == 0 || r.code == 4 && r.stdout != "" {
		decode(t, r, &status)
	}
	return status, r
}

func decode(t testing.TB, r result, into any) {
	t.Helper()
	if err := json.Unmarshal([]byte(r.stdout), into); err != nil {
		t.Fatalf("stdout is not JSON: %v: %s", err, r)
	}
}

// output is what a process has written so far.
type output struct {
	mu     sync.Mutex
	buffer bytes.Buffer
}

var _ io.Writer = (*output)(nil)

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buffer.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buffer.String()
}

// await polls until check returns nil, and otherwise returns its last error.
func await(within time.Duration, check func() error) error {
	ctx, cancel := context.WithTimeout(context.Background(), within)
	defer cancel()
	ticker := time.NewTicker(pollGap)
	defer ticker.Stop()
	for {
		err := check()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("after %s: %w", within, err)
		case <-ticker.C:
		}
	}
}

// mustAwait fails the test if check does not return nil in time.
func mustAwait(t testing.TB, within time.Duration, what string, check func() error) {
	t.Helper()
	if err := await(within, check); err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}

// nothingLeft returns what is left of the user's labs: processes, files or
// listening sockets.
func (u *user) nothingLeft() error {
	return errors.Join(u.noProcess(), u.noFile(), u.noSocket())
}

func (u *user) noProcess() error {
	if left := u.processes(); len(left) > 0 {
		return fmt.Errorf("processes %v", left)
	}
	return nil
}

func (u *user) noFile() error {
	var left []string
	for _, dir := range []string{u.tmp(), filepath.Join(u.home, "oidclab")} {
		entries, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		for _, entry := range entries {
			left = append(left, filepath.Join(dir, entry.Name()))
		}
	}
	if len(left) > 0 {
		return fmt.Errorf("files %v", left)
	}
	return nil
}
