package embedded_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/oidclab/oidclab/lab/clock"
	"github.com/oidclab/oidclab/lab/cluster"
	"github.com/oidclab/oidclab/lab/cluster/clustertest"
	"github.com/oidclab/oidclab/lab/cluster/embedded"
	"github.com/oidclab/oidclab/lab/cluster/embedded/controlplane"
	"github.com/oidclab/oidclab/lab/cluster/signer"
	"github.com/oidclab/oidclab/lab/keys"
)

// TestMain runs the test binary as a component of a cluster, if so asked.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "controlplane" {
		os.Exit(controlplane.Main(os.Args[2:]))
	}
	os.Exit(m.Run())
}

func config(t *testing.T, identity cluster.Identity, dir string) embedded.Config {
	t.Helper()
	executable, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return embedded.Config{Identity: identity, Dir: dir, Command: []string{executable, "controlplane"}}
}

func TestConformance(t *testing.T) {
	clustertest.Run(t, clustertest.Engine{
		Start: func(ctx context.Context, identity cluster.Identity, dir string) (cluster.Cluster, error) {
			c, err := embedded.Start(ctx, config(t, identity, dir))
			if err != nil {
				return nil, err // not a nil *Cluster in a non-nil interface
			}
			return c, nil
		},
		Kill: func(c cluster.Cluster, component string) error {
			for _, status := range c.(*embedded.Cluster).Components() {
				if status.Name == component {
					return syscall.Kill(status.PID, syscall.SIGKILL)
				}
			}
			return fmt.Errorf("no component %s", component)
		},
		Leftovers: children,
	})
}

// children returns the command lines of this process's children.
func children() ([]string, error) {
	files, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return nil, err
	}
	var found []string
	for _, file := range files {
		stat, err := os.ReadFile(file)
		if err != nil {
			continue // it has just ended
		}
		_, after, _ := strings.Cut(string(stat), ") ")
		var state string
		var parent int
		if _, err := fmt.Sscan(after, &state, &parent); err != nil {
			return nil, err
		}
		if parent == os.Getpid() {
			command, err := os.ReadFile(filepath.Join(filepath.Dir(file), "cmdline"))
			if err != nil {
				continue
			}
			found = append(found, strings.ReplaceAll(string(command), "\x00", " "))
		}
	}
	return found, nil
}

// identity returns one whose signer does not exist: the API server waits for it.
func identity(dir string) cluster.Identity {
	return cluster.Identity{
		ID: "broken", Issuer: "https://issuer.example", JWKSURI: "https://issuer.example/keys",
		SignerSocket: filepath.Join(dir, "signer.sock"),
	}
}

func TestStartCancelled(t *testing.T) {
	before := goleak.IgnoreCurrent()
	dir := t.TempDir()
	ctx, cancel := context.WithTimeoutCause(t.Context(), 2*time.Second, errors.New("enough"))
	defer cancel()
	c, err := embedded.Start(ctx, config(t, identity(dir), dir))
	if err == nil {
		t.Fatal("started without a signer:", c.Close(t.Context()))
	}
	if !strings.Contains(err.Error(), "enough") || !strings.Contains(err.Error(), "cluster broken") {
		t.Errorf("got %v, want the cluster and the cause", err)
	}
	if left, err := children(); err != nil || len(left) != 0 {
		t.Errorf("left behind: %v (%v)", left, err)
	}
	goleak.VerifyNone(t, before)
}

// TestIssuerIsReadBack starts with an issuer that the API server accepts but
// does not serve.
func TestIssuerIsReadBack(t *testing.T) {
	dir := t.TempDir()
	set, err := keys.New(clock.System{}, keys.ES256)
	if err != nil {
		t.Fatal(err)
	}
	plain := identity(dir)
	plain.Issuer = "http://issuer.example"
	if err := os.Chmod(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	s, err := signer.Start(signer.Config{Socket: plain.SignerSocket, Keys: set})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Stop()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	c, err := embedded.Start(ctx, config(t, plain, filepath.Join(dir, "c")))
	if err == nil {
		t.Fatal("started (close:", c.Close(ctx), ")")
	}
	if !strings.Contains(err.Error(), "use an https URL") {
		t.Errorf("got %v, want the cause and the next step", err)
	}
	if left, err := children(); err != nil || len(left) != 0 {
		t.Errorf("left behind: %v (%v)", left, err)
	}
}

func TestStartFails(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	inFile := config(t, identity(dir), filepath.Join(file, "state"))
	noCommand := config(t, identity(dir), filepath.Join(dir, "a"))
	noCommand.Command[0] = "/does/not/exist"
	badIssuer := config(t, identity(dir), filepath.Join(dir, "b"))
	badIssuer.Identity.Issuer = ""
	longPath := config(t, identity(dir), filepath.Join(dir, strings.Repeat("d", 100)))
	for name, c := range map[string]struct {
		config embedded.Config
		want   string
	}{
		"directory is in a file": {inFile, "not a directory"},
		"directory is too long":  {longPath, "shorter"},
		"command is missing":     {noCommand, "no such file"},
		"issuer is empty":        {badIssuer, "service-account-issuer"},
	} {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		cluster, err := embedded.Start(ctx, c.config)
		cancel()
		if err == nil {
			t.Errorf("%s: started (close: %v)", name, cluster.Close(t.Context()))
		} else if !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got error %v, want one that says %q", name, err, c.want)
		}
		if left, err := children(); err != nil || len(left) != 0 {
			t.Errorf("%s: left behind: %v (%v)", name, left, err)
		}
	}
}
