package kind_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/oidclab/oidclab/lab/cluster/kind"
	"github.com/oidclab/oidclab/lab/problem"
)

// needEngine ends a test where there is no container engine.
func needEngine(t *testing.T) {
	t.Helper()
	first := kind.Look(t.Context(), 1, "none").Requirements[0]
	if first.OK {
		return
	}
	if os.Getenv(require) == "1" {
		t.Fatalf("%s=1: %s", require, first.Found)
	}
	t.Skip("there is no container engine: ", first.Found)
}

func run(t *testing.T, stdin []byte, args ...string) string {
	t.Helper()
	command := exec.Command("docker", args...)
	command.Stdin = bytes.NewReader(stdin)
	out, err := command.CombinedOutput()
	if err != nil {
		t.Fatalf("docker %q: %v: %s", args, err, out)
	}
	return strings.TrimSpace(string(out))
}

// emptyImage returns an image that can be made into containers, but not run.
func emptyImage(t *testing.T) string {
	t.Helper()
	var archive bytes.Buffer
	if err := tar.NewWriter(&archive).Close(); err != nil {
		t.Fatal(err)
	}
	id := run(t, archive.Bytes(), "import", "-")
	t.Cleanup(func() { run(t, nil, "image", "rm", "--force", id) })
	return id
}

func TestNetwork(t *testing.T) {
	needEngine(t)
	n := newNetwork(t)
	if !n.gateway.Is4() || n.gateway.IsLoopback() || n.gateway == netip.IPv4Unspecified() {
		t.Errorf("got gateway %s", n.gateway)
	}
	if _, err := kind.CreateNetwork(t.Context(), n.name); err == nil {
		t.Error("a network was created twice")
	}
}

// What is left of a lab goes, whoever made it, and nothing of another.
func TestReap(t *testing.T) {
	needEngine(t)
	n, image := newNetwork(t), emptyImage(t)
	make := func(suffix string, labels ...string) string {
		args := []string{"create", "--name", n.name + suffix, "--volume", "/data"}
		for _, label := range labels {
			args = append(args, "--label", label)
		}
		run(t, nil, append(args, image, "none")...)
		return n.name + suffix
	}
	own := []string{make("-vault", kind.Label+"="+n.name), make("-c1-control-plane", "io.x-k8s.kind.cluster="+n.name+"-c1")}
	others := []string{
		make("-x-c1-control-plane", "io.x-k8s.kind.cluster="+n.name+"-x-c1"), // of a lab named like this one, and more
		make("-plain"),
		make("-other", kind.Label+"=other"),
	}
	slices.Sort(others)
	t.Cleanup(func() {
		for _, name := range others {
			run(t, nil, "rm", "--force", "--volumes", name)
		}
	})
	run(t, nil, "volume", "create", "--label", kind.Label+"="+n.name, n.name)
	gone := append(volumesOf(t, own), n.name)

	for range 2 {
		if err := kind.Reap(t.Context(), n.name); err != nil {
			t.Error(err)
		}
	}
	left, err := n.containers()
	if slices.Sort(left); err != nil || !slices.Equal(left, others) {
		t.Errorf("left: %q (%v), want %q", left, err, others)
	}
	there := strings.Fields(run(t, nil, "volume", "ls", "--quiet"))
	for _, volume := range gone {
		if slices.Contains(there, volume) {
			t.Errorf("volume %s is still there", volume)
		}
	}
	for _, volume := range volumesOf(t, others) {
		if !slices.Contains(there, volume) {
			t.Errorf("volume %s of another is gone", volume)
		}
	}
	if networks, err := lines("docker", "network", "ls", "--filter", "name="+n.name, "--quiet"); err != nil || len(networks) != 0 {
		t.Errorf("the network is still there: %q (%v)", networks, err)
	}
}

// volumesOf returns the anonymous volumes of containers.
func volumesOf(t *testing.T, containers []string) []string {
	t.Helper()
	args := []string{"inspect", "--format", "{{range .Mounts}}{{.Name}}{{end}}"}
	return strings.Fields(run(t, nil, append(args, containers...)...))
}

// What kind had under way when its process was killed ends, and nothing else.
func TestReapEndsPrograms(t *testing.T) {
	needEngine(t)
	n := newNetwork(t)
	sleep, err := exec.LookPath("sleep")
	if err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(t.TempDir(), "docker")
	if err := os.Symlink(sleep, program); err != nil {
		t.Fatal(err)
	}
	start := func(program, network string) *exec.Cmd {
		command := exec.Command(program, "60")
		command.Env = []string{kind.NetworkVariable + "=" + network}
		if err := command.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			_ = command.Process.Kill()
			_ = command.Wait()
		})
		return command
	}
	own, other, notDocker := start(program, n.name), start(program, n.name+"-x"), start(sleep, n.name)
	if err := kind.Reap(t.Context(), n.name); err != nil {
		t.Fatal(err)
	}
	if err := own.Wait(); err == nil || !strings.Contains(err.Error(), "killed") {
		t.Errorf("the program of the lab ended with %v", err)
	}
	for name, command := range map[string]*exec.Cmd{"of another lab": other, "another program": notDocker} {
		if err := command.Process.Signal(syscall.Signal(0)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if state, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", command.Process.Pid)); err != nil || strings.Contains(string(state), ") Z ") {
			t.Errorf("%s has ended", name)
		}
	}
}

// docker puts a program of that name first on the PATH.
func docker(t *testing.T, script string) {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "docker"), []byte("#!/bin/sh\n"+script), 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
}

// Whatever is wrong with the engine is said, with the next step, and at once.
func TestLookWithoutEngine(t *testing.T) {
	for name, c := range map[string]struct {
		prepare    func(*testing.T)
		says, next string
	}{
		"no program": {func(t *testing.T) { t.Setenv("PATH", t.TempDir()) }, "no docker program on PATH", "install Docker"},
		"no daemon":  {func(t *testing.T) { t.Setenv("DOCKER_HOST", "unix:///does/not/exist.sock") }, "exist.sock", "start Docker"},
		"permission": {func(t *testing.T) { docker(t, "echo permission denied >&2; exit 1") }, "permission denied", "let this user use it"},
		"old client": {func(t *testing.T) { docker(t, `echo '{"ServerErrors": ["Cannot connect"]}'`) }, "Cannot connect", "start Docker"},
		"hangs":      {func(t *testing.T) { docker(t, "exec sleep 60") }, "enough", "start Docker"},
	} {
		t.Run(name, func(t *testing.T) {
			if name != "no program" {
				needProgram(t)
			}
			c.prepare(t)
			ctx, cancel := context.WithTimeoutCause(t.Context(), time.Second, errors.New("enough"))
			defer cancel()
			began := time.Now()
			err := kind.Look(ctx, 1, "none").Unmet()
			p := problem.Of(err)
			if p == nil || p.Kind != problem.EnvironmentMissing || !strings.Contains(p.What, c.says) || !strings.Contains(p.Next, c.next) {
				t.Errorf("got %+v", p)
			}
			if took := time.Since(began); took > 5*time.Second {
				t.Errorf("took %s", took)
			}
		})
	}
}

func needProgram(t *testing.T) {
	t.Helper()
	if _, err := exec.LookPath("docker"); err != nil {
		t.Skip("there is no docker program: ", err)
	}
}

// What a machine lacks is found before any container runs.
func TestLook(t *testing.T) {
	for name, c := range map[string]struct {
		info string // of docker info, beside what is fine
		says string // empty if all is well
	}{
		"all is well":        {`"OSType": "linux", "CgroupVersion": "2", "MemTotal": 8589934592, "ServerVersion": "28.0.0", "DefaultRuntime": "crun"`, ""},
		"cgroup v1":          {`"OSType": "linux", "CgroupVersion": "1", "MemTotal": 8589934592, "ServerVersion": "28.0.0", "DefaultRuntime": "crun"`, ""},
		"Windows":            {`"OSType": "windows", "CgroupVersion": "2", "MemTotal": 8589934592, "ServerVersion": "28.0.0"`, "windows containers"},
		"no cgroups":         {`"OSType": "linux", "MemTotal": 8589934592, "ServerVersion": "28.0.0"`, "cgroups"},
		"little memory":      {`"OSType": "linux", "CgroupVersion": "2", "MemTotal": 536870912, "ServerVersion": "28.0.0"`, "memory: 512 MiB"},
		"on another machine": {`"OSType": "linux", "CgroupVersion": "2", "MemTotal": 8589934592, "ServerVersion": "28.0.0", "Gateway": "192.0.2.1"`, "192.0.2.1 is not one of this machine"},
	} {
		t.Run(name, func(t *testing.T) {
			gateway := "127.0.0.1"
			if strings.Contains(c.info, "192.0.2.1") {
				gateway = "192.0.2.1"
			}
			docker(t, `case "$1" in info) echo '{`+c.info+`}';; network) echo '[{"Gateway": "`+gateway+`"}]';; image) [ "$3" = second ];; esac`)
			machine := kind.Look(t.Context(), 1, "first", "second")
			if machine.Image != "second" {
				t.Errorf("got image %q", machine.Image)
			}
			err := machine.Unmet()
			if c.says == "" && err != nil {
				t.Error(err)
			}
			if c.says != "" && (err == nil || !strings.Contains(err.Error(), c.says)) {
				t.Errorf("got %v, want %q", err, c.says)
			}
			if without := kind.Look(t.Context(), 1, "first"); without.LacksOnlyImage() != (c.says == "") {
				t.Errorf("without an image: lacks only that: %t: %v", without.LacksOnlyImage(), without.Unmet())
			}
		})
	}
}
