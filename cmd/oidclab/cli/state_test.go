package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/spf13/cobra"

	"github.com/oidclab/oidclab/lab/problem"
)

func newDir(t *testing.T) stateDir {
	t.Helper()
	dir, err := newStateDir(t.TempDir(), "test")
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

func acquire(t *testing.T, dir stateDir) *os.File {
	t.Helper()
	lock, err := dir.acquire()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = lock.Close() })
	return lock
}

func kindOf(err error) problem.Kind {
	if err == nil {
		return 0
	}
	return problem.Of(err).Kind
}

func TestNames(t *testing.T) {
	for _, name := range []string{"a", "0", "oidclab", "ci-2", strings.Repeat("a", 32)} {
		dir, err := newStateDir("/state", name)
		if err != nil || string(dir) != "/state/oidclab/"+name || dir.name() != name {
			t.Errorf("%q: %s, %v", name, dir, err)
		}
	}
	for _, name := range []string{"", ".", "..", "a/b", "/a", "A", "a_b", "-a", "a-", "a b", "ä", "a\n", strings.Repeat("a", 33)} {
		if dir, err := newStateDir("/state", name); kindOf(err) != problem.Usage {
			t.Errorf("%q: %s, %v; want a usage problem", name, dir, err)
		}
	}
}

func TestLabNames(t *testing.T) {
	home := t.TempDir()
	if names, err := labNames(home); err != nil || len(names) != 0 {
		t.Errorf("before there was a lab: %v, %v", names, err)
	}
	for _, name := range []string{"two", "one", "Not-a-lab", ".hidden"} {
		if err := os.MkdirAll(filepath.Join(stateBase(home), name), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(stateBase(home), "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if names, err := labNames(home); err != nil || !slices.Equal(names, []string{"one", "two"}) {
		t.Errorf("got %v, %v", names, err)
	}
}

func TestLock(t *testing.T) {
	dir := newDir(t)
	if dir.held() || dir.leftovers() || dir.owner() != 0 {
		t.Error("held before it was there")
	}
	lock := acquire(t, dir)
	if !dir.held() || dir.owner() != os.Getpid() {
		t.Errorf("held %t by %d, want by %d", dir.held(), dir.owner(), os.Getpid())
	}
	if _, err := dir.acquire(); kindOf(err) != problem.Conflict || !strings.Contains(err.Error(), fmt.Sprintf("by process %d", os.Getpid())) {
		t.Errorf("a second time: %v; want a conflict that names the process", err)
	}
	for path, want := range map[string]fs.FileMode{string(dir): 0o700, dir.lockFile(): 0o600} {
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != want {
			t.Errorf("%s: %v, %v; want %s", path, info.Mode(), err, want)
		}
	}
	lock.Close()
	if dir.held() {
		t.Error("held after its release")
	}
	acquire(t, dir)
}

// A lab that is being removed takes its lock file with it; a lock on the
// removed file would exclude nobody.
func TestLockOfRemovedFile(t *testing.T) {
	dir := newDir(t)
	first := acquire(t, dir)
	if err := dir.remove(); err != nil {
		t.Fatal(err)
	}
	acquire(t, dir) // although the first is still held
	if _, err := dir.acquire(); kindOf(err) != problem.Conflict {
		t.Errorf("got %v, want a conflict", err)
	}
	first.Close()
	if !dir.held() {
		t.Error("the end of the first lock released the second")
	}
}

// What a dead lab, or anything else, left in the lock file names nobody whom
// `down` could signal.
func TestOwner(t *testing.T) {
	dir := newDir(t)
	if err := os.MkdirAll(string(dir), 0o755); err != nil {
		t.Fatal(err)
	}
	for content, want := range map[string]int{"": 0, "garbage": 0, "12x": 0, "99999999999999999999": 0, "12": 12, "12        \n": 12} {
		if err := os.WriteFile(dir.lockFile(), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := dir.owner(); got != want {
			t.Errorf("%q: owner %d, want %d", content, got, want)
		}
		acquire(t, dir).Close()
		if got := dir.owner(); got != os.Getpid() {
			t.Errorf("%q, then taken: owner %d, want %d", content, got, os.Getpid())
		}
	}
	if info, err := os.Stat(string(dir)); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("the mode of a directory that was there: %v, %v; want 0700", info.Mode(), err)
	}
}

// A supervisor inherits the lock; any other file is not it.
func TestLockedBy(t *testing.T) {
	dir := newDir(t)
	lock := acquire(t, dir)
	if !dir.lockedBy(lock) {
		t.Error("the lock is not recognized")
	}
	for name, path := range map[string]string{"opened anew": dir.lockFile(), "another file": os.DevNull} {
		file, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		if dir.lockedBy(file) {
			t.Errorf("%s: taken for the lock", name)
		}
		file.Close()
	}
	lock.Close()
	if dir.lockedBy(lock) {
		t.Error("a closed file is taken for the lock")
	}
}

func TestAwaitRelease(t *testing.T) {
	dir := newDir(t)
	lock := acquire(t, dir)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
	defer cancel()
	if err := dir.awaitRelease(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v, want the end of the patience", err)
	}
	released := make(chan error)
	go func() { released <- dir.awaitRelease(t.Context()) }()
	lock.Close()
	if err := <-released; err != nil {
		t.Error(err)
	}
}

func write(t *testing.T, path string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestRemoveKeepsWhatIsForeign(t *testing.T) {
	dir := newDir(t)
	acquire(t, dir)
	for _, name := range contents {
		write(t, filepath.Join(string(dir), name))
	}
	write(t, filepath.Join(string(dir), "notes.txt"))
	outside := filepath.Join(t.TempDir(), "outside")
	write(t, outside)
	if err := os.Remove(filepath.Join(string(dir), "tokens")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(filepath.Dir(outside), filepath.Join(string(dir), "tokens")); err != nil {
		t.Fatal(err)
	}

	if err := dir.clear(); err != nil {
		t.Fatal(err)
	}
	if got := entries(t, dir); !slices.Equal(got, []string{"lock", "notes.txt"}) {
		t.Errorf("cleared, it holds %v", got)
	}
	if err := dir.remove(); err != nil {
		t.Fatal(err)
	}
	if got := entries(t, dir); !slices.Equal(got, []string{"notes.txt"}) {
		t.Errorf("removed, it holds %v", got)
	}
	if _, err := os.Stat(outside); err != nil {
		t.Errorf("what a symbolic link pointed to: %v", err)
	}

	if err := os.Remove(filepath.Join(string(dir), "notes.txt")); err != nil {
		t.Fatal(err)
	}
	acquire(t, dir)
	if err := dir.remove(); err != nil || dir.leftovers() {
		t.Errorf("without anything foreign it is left: %v", err)
	}
}

func entries(t *testing.T, dir stateDir) (names []string) {
	t.Helper()
	list, err := os.ReadDir(string(dir))
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range list {
		names = append(names, entry.Name())
	}
	return names
}

func TestWriteInfo(t *testing.T) {
	dir := newDir(t)
	acquire(t, dir)
	for _, want := range []string{"a long first value", "short"} {
		if err := dir.writeInfo(want); err != nil {
			t.Fatal(err)
		}
		var got string
		data, err := os.ReadFile(dir.infoFile())
		if err != nil || json.Unmarshal(data, &got) != nil || got != want {
			t.Errorf("got %q, %v; want %q", data, err, want)
		}
	}
	if info, err := os.Stat(dir.infoFile()); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v; want mode 0600", info.Mode(), err)
	}
}

func TestClientOfNoLab(t *testing.T) {
	dir := newDir(t)
	if _, err := dir.client(); kindOf(err) != problem.NotRunning || !strings.Contains(err.Error(), "is not running") {
		t.Errorf("nothing there: %v", err)
	}
	lock := acquire(t, dir)
	if _, err := dir.client(); kindOf(err) != problem.NotReady || !strings.Contains(err.Error(), "is being started or stopped") {
		t.Errorf("locked, without a socket: %v", err)
	}
	lock.Close()
	if _, err := dir.client(); kindOf(err) != problem.NotRunning || !strings.Contains(err.Error(), "its supervisor died") {
		t.Errorf("left behind: %v", err)
	}
}

func TestCheckRoom(t *testing.T) {
	dir := stateDir(t.TempDir())
	const more = 1 << 30 // clusters: no disk has room for their 48 PiB
	if err := dir.checkRoom(more); kindOf(err) != problem.EnvironmentMissing || !strings.Contains(err.Error(), "MiB left") {
		t.Errorf("got %v, want a problem of the environment", err)
	}
	if err := dir.checkRoom(0); err != nil {
		t.Error(err)
	}
}

func TestEnvironment(t *testing.T) {
	for _, cause := range []error{fs.ErrPermission, syscall.EACCES, syscall.EROFS, syscall.ENOSPC, syscall.ENOTDIR, syscall.EDQUOT, syscall.EMFILE} {
		err := environment(fmt.Errorf("a file: %w", cause))
		if p := problem.Of(err); p.Kind != problem.EnvironmentMissing || p.Next == "" || !errors.Is(err, cause) {
			t.Errorf("%v: %+v", cause, p)
		}
	}
	other := errors.New("other")
	if err := environment(other); err != other {
		t.Errorf("got %v, want it unchanged", err)
	}
	if err := environment(nil); err != nil {
		t.Errorf("got %v for no error", err)
	}
}

func TestLogs(t *testing.T) {
	dir := newDir(t)
	if logs, err := dir.logs(); err != nil || len(logs) != 0 {
		t.Errorf("without a lab: %v, %v", logs, err)
	}
	for _, path := range []string{"logs/supervisor.log", "clusters/c1/etcd.log", "clusters/c2/etcd.log", "vault/vault.log", "clusters/c1/etcd/member/wal/0.wal"} {
		write(t, filepath.Join(string(dir), path))
	}
	logs, err := dir.logs()
	if err != nil {
		t.Fatal(err)
	}
	if got, want := sortedKeys(logs), []string{"c1/etcd", "c2/etcd", "supervisor", "vault"}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if want := filepath.Join(string(dir), "clusters/c2/etcd.log"); logs["c2/etcd"] != want {
		t.Errorf("got %s, want %s", logs["c2/etcd"], want)
	}
}

// Docker and Kubernetes take the name as part of host names.
func TestNetworkName(t *testing.T) {
	longest := strings.Repeat("a", 32)
	first, err := newStateDir("/home/one", longest)
	if err != nil {
		t.Fatal(err)
	}
	second, err := newStateDir("/home/two", longest)
	if err != nil {
		t.Fatal(err)
	}
	if first.network() == second.network() {
		t.Errorf("labs of two users share the network %s", first.network())
	}
	if !strings.Contains(first.network(), longest) {
		t.Errorf("got %s", first.network())
	}
	if host := first.network() + "-c9-control-plane"; len(host) > 63 {
		t.Errorf("%s has %d bytes, and a host name 63", host, len(host))
	}
}

// Only labs that may have containers need a container engine to go down, and
// they are not forgotten while there is none.
func TestReap(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	dir, err := newStateDir(t.TempDir(), "reap")
	if err != nil {
		t.Fatal(err)
	}
	lock, err := dir.acquire()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = lock.Close() }()
	if err := dir.reap(t.Context()); err != nil {
		t.Errorf("control: a lab without containers: %v", err)
	}
	if err := dir.markContainers(); err != nil {
		t.Fatal(err)
	}
	if err := dir.reap(t.Context()); kindOf(err) != problem.EnvironmentMissing || !strings.Contains(err.Error(), "lab reap") {
		t.Errorf("got %v", err)
	}
	if _, err := os.Stat(dir.containersFile()); err != nil {
		t.Errorf("the lab's containers are forgotten: %v", err)
	}
}

func TestCheckEngine(t *testing.T) {
	t.Setenv(imageVariable, "node:v1") // of use to the kind engine, and no harm to the other
	for _, c := range []struct {
		args string
		want problem.Kind // 0 means none
	}{
		{"", 0}, {"--engine embedded", 0}, {"--engine kind", 0}, {"--engine kind --image node:v2", 0}, {"--image node:v2", 0},
		{"--engine embedded --image node:v2", problem.Usage}, {"--engine docker", problem.Usage}, {"--engine=", problem.Usage},
	} {
		var engine, image string
		cmd := &cobra.Command{}
		new(app).engineFlags(cmd, &engine, &image)
		if err := cmd.ParseFlags(strings.Fields(c.args)); err != nil {
			t.Fatal(err)
		}
		err := checkEngine(cmd, engine)
		if (err != nil) != (c.want != 0) || err != nil && kindOf(err) != c.want {
			t.Errorf("%q: got %v", c.args, err)
		}
	}
}
