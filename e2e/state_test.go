package e2e

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/oidclab/oidclab/lab"
)

func TestTakenPort(t *testing.T) {
	t.Parallel()
	u := newUser(t)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	_, port, _ := net.SplitHostPort(listener.Addr().String())
	u.run(t, "up", "--name", labName, "--vault", "none", "--port", port).want(t, 9, port, "another --port")
	if err := u.nothingLeft(); err != nil {
		t.Errorf("left behind: %v", err)
	}

	listener.Close()
	info := u.up(t, "--name", labName, "--vault", "none", "--port", port)
	if !strings.HasSuffix(info.Front, ":"+port) {
		t.Errorf("the front is %s, want port %s", info.Front, port)
	}
}

// TestStateDirectory: where no state can be written, `up` says so and leaves
// nothing.
func TestStateDirectory(t *testing.T) {
	t.Parallel()
	for name, spoil := range map[string]func(*testing.T, string){
		"below a file": func(t *testing.T, dir string) {
			if err := os.WriteFile(dir, nil, 0o600); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = os.Remove(dir) })
		},
		"without permission": func(t *testing.T, dir string) {
			if os.Geteuid() == 0 {
				t.Skip("needs a user other than root, whom permissions do not bind; the read-only case stands for it")
			}
			if err := os.Mkdir(dir, 0o500); err != nil {
				t.Fatal(err)
			}
		},
		"read-only": func(t *testing.T, dir string) { mount(t, dir, syscall.MS_RDONLY, "") },
		"full":      func(t *testing.T, dir string) { mount(t, dir, 0, "size=16k"); fill(t, dir) },
		"too small": func(t *testing.T, dir string) { mount(t, dir, 0, "size=16m") },
		"no inodes": func(t *testing.T, dir string) { mount(t, dir, 0, "nr_inodes=4") },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			u := newUser(t)
			spoil(t, filepath.Dir(u.dir(labName)))
			u.run(t, "up", "--name", labName, "--vault", "none").want(t, 8, "XDG_STATE_HOME")
			if err := u.noProcess(); err != nil {
				t.Errorf("left behind: %v", err)
			}
			if _, err := os.Stat(u.dir(labName)); err == nil {
				t.Errorf("%s is left behind", u.dir(labName))
			}
		})
	}
}

// mount makes dir a file system of its own, until the test ends.
func mount(t *testing.T, dir string, flags uintptr, options string) {
	t.Helper()
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	err := syscall.Mount("oidclab-e2e", dir, "tmpfs", flags, options)
	if errors.Is(err, syscall.EPERM) {
		t.Skip("needs CAP_SYS_ADMIN, to mount a file system")
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
}

func fill(t *testing.T, dir string) {
	t.Helper()
	file, err := os.Create(filepath.Join(dir, "filler"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	for err == nil {
		_, err = file.Write(make([]byte, 4096))
	}
	if !errors.Is(err, syscall.ENOSPC) {
		t.Fatal(err)
	}
}

// TestGarbage: nothing that is found in the state directory is believed, and
// nothing foreign is deleted.
func TestGarbage(t *testing.T) {
	t.Parallel()
	u := newUser(t)
	foreign := map[string]string{"notes.txt": "mine", "more/notes.txt": "mine, too", "clusters.bak/c1/kubeconfig": "mine"}
	garbage := map[string]string{
		"lab.json": `{"name": "x", "fro`, "lab.json.new": "", "control.sock": "not a socket", "lock": "1\x00\xff not a number",
		"ca.crt": "not a certificate", "clusters/c1/etcd/member/wal/0.wal": "not a log", "clusters/c1/kubeconfig": "{", "tokens/c1-oidclab": "old",
		"logs/supervisor.log": "old",
	}
	for path, content := range garbage {
		u.write(t, path, content)
	}
	for path, content := range foreign {
		u.write(t, path, content)
	}
	u.run(t, "status", "--name", labName).want(t, 3, "oidclab up")
	u.run(t, "token", "mint", "--name", labName).want(t, 3)
	u.works(t)

	for _, lock := range []string{"", "0", "-1", fmt.Sprint(os.Getpid()), strings.Repeat("9", 4096)} {
		u.write(t, "lock", lock)
		u.run(t, "status", "--name", labName).want(t, 3)
		u.run(t, "down", "--name", labName).want(t, 0)
	}
	for path := range garbage {
		if _, err := os.Stat(filepath.Join(u.dir(labName), path)); err == nil {
			t.Errorf("%s is left", path)
		}
	}
	for path, content := range foreign {
		if got, err := os.ReadFile(filepath.Join(u.dir(labName), path)); err != nil || string(got) != content {
			t.Errorf("%s: %q, %v; want %q", path, got, err, content)
		}
	}
	if err := os.RemoveAll(u.dir(labName)); err != nil {
		t.Fatal(err)
	}
}

// write makes a file in the state directory of the lab.
func (u *user) write(t *testing.T, path, content string) {
	t.Helper()
	path = filepath.Join(u.dir(labName), path)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestTwoLabs: they run side by side and share nothing.
func TestTwoLabs(t *testing.T) {
	t.Parallel()
	u := newUser(t)
	t.Cleanup(func() { u.run(t, "down", "--all").want(t, 0) })
	jobs := []*job{
		u.start(t, "", "up", "-o", "json", "--name", "one", "--vault", "none"),
		u.start(t, "", "up", "-o", "json", "--name", "two", "--vault", "none", "--clusters", "2"),
	}
	var one, two lab.Info
	decode(t, jobs[0].wait(t, patience).want(t, 0), &one)
	decode(t, jobs[1].wait(t, patience).want(t, 0), &two)
	u.observe(t)

	urls := map[string]bool{}
	all := []string{one.Front, one.AWS.Endpoint, one.Generic.Issuer, one.Generic.Resource, two.Front, two.AWS.Endpoint, two.Generic.Issuer, two.Generic.Resource}
	for _, info := range []lab.Info{one, two} {
		for _, c := range info.Clusters {
			all = append(all, c.Issuer, c.Server)
		}
	}
	for _, url := range all {
		if urls[url] {
			t.Errorf("%s is there twice", url)
		}
		urls[url] = true
	}
	if len(two.Clusters) != 2 {
		t.Fatalf("want 2 clusters: %+v", two.Clusters)
	}

	for _, from := range []struct {
		name, other string
		clusters    []lab.ClusterInfo
	}{{"one", "two", one.Clusters}, {"two", "one", two.Clusters}} {
		for _, c := range from.clusters {
			token := u.run(t, "token", "mint", "--name", from.name, "--cluster", c.ID, "--audience", "oidclab").want(t, 0).stdout
			u.feed(t, token, "exchange", "generic", "--name", from.name, "--token", "-").want(t, 0)
			u.feed(t, token, "exchange", "generic", "--name", from.other, "--token", "-").want(t, 6, "oidclab trace")
			verdict := u.feed(t, token, "token", "verify", "--name", from.other).want(t, 6)
			if !strings.Contains(verdict.stdout, "issuer_unknown") {
				t.Errorf("a token of %s/%s: %s", from.name, c.ID, verdict)
			}
		}
	}
	// Each trusts its own certificate authority only.
	if _, err := httpsClient(t, one).Get(two.Front + "/livez"); err == nil || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("lab one's authority vouches for lab two: %v", err)
	}

	u.run(t, "down", "--name", "one").want(t, 0)
	u.run(t, "status", "--name", "one").want(t, 3)
	u.run(t, "status", "--name", "two").want(t, 0)
	u.run(t, "down", "--all").want(t, 0, "lab two is down")
	u.run(t, "down", "--all").want(t, 0, "nothing to remove")
}
