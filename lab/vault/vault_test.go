package vault

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/hcl"

	"github.com/oidclab/oidclab/lab/pki"
	"github.com/oidclab/oidclab/lab/problem"
	"github.com/oidclab/oidclab/lab/proc"
)

func TestFind(t *testing.T) {
	program, err := Find(func(name string) (string, error) { return "/opt/" + name, nil })
	if err != nil || program != "/opt/vault" {
		t.Errorf("got %q, %v", program, err)
	}
	_, err = Find(func(name string) (string, error) { return "", &exec.Error{Name: name, Err: exec.ErrNotFound} })
	p := problem.Of(err)
	if p.Kind != problem.EnvironmentMissing || !errors.Is(err, exec.ErrNotFound) {
		t.Errorf("got %+v", p)
	}
	for _, want := range []string{"there is no Vault", "executable file not found"} {
		if !strings.Contains(p.What, want) {
			t.Errorf("%q does not say %q", p.What, want)
		}
	}
	if !strings.Contains(p.Next, "oidclab up") {
		t.Errorf("next step: %q", p.Next)
	}
}

func TestStartAndStop(t *testing.T) {
	for _, name := range []string{"VAULT_ADDR", "VAULT_TOKEN", "VAULT_NAMESPACE"} {
		t.Setenv(name, "https://not.used.invalid")
	}
	dir := filepath.Join(t.TempDir(), "new")
	server, err := Start(t.Context(), Config{Program: program(t, "vault"), Dir: dir, CA: newCA(t)})
	if err != nil {
		t.Fatal(err)
	}
	if err := server.Healthy(t.Context()); err != nil {
		t.Error(err)
	}
	if state := server.Status().State; state != proc.Running {
		t.Errorf("state %s", state)
	}
	client, err := NewClient(server.URL(), secure(newCA(t)))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := client.Sys().HealthWithContext(t.Context()); err == nil || !strings.Contains(err.Error(), "x509") {
		t.Errorf("under another root: %v", err)
	}
	checkFiles(t, dir)
	for range 2 {
		if err := server.Stop(t.Context()); err != nil {
			t.Error(err)
		}
	}
	if connection, err := net.Dial("tcp", strings.TrimPrefix(server.URL(), "https://")); err == nil {
		_ = connection.Close()
		t.Error("somebody listens after Stop")
	}
	if err := server.Healthy(t.Context()); err == nil {
		t.Error("healthy after Stop")
	}
}

// checkFiles wants files of the owner alone, and no root token in any.
func checkFiles(t *testing.T, dir string) {
	t.Helper()
	if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("directory: %v, %v", info.Mode(), err)
	}
	files := 0
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		files++
		info, err := entry.Info()
		if err != nil {
			return err
		}
		if info.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %s", path, info.Mode())
		}
		content, err := os.ReadFile(path)
		if strings.Contains(string(content), standInRoot) {
			t.Errorf("%s has the root token", path)
		}
		return err
	})
	if err != nil || files != 4 {
		t.Errorf("%d files, want configuration, certificate, key and log: %v", files, err)
	}
}

// Vault reads its configuration with this decoder.
func TestConfigurationAsVaultReadsIt(t *testing.T) {
	dir := t.TempDir() + `/with "quotes" and ${dollars}`
	if err := writeCertificate(dir, loopback, newCA(t)); err != nil {
		t.Fatal(err)
	}
	path, err := newConfig(dir, "127.0.0.1:4711", "https://127.0.0.1:4711").write(dir)
	if err != nil {
		t.Fatal(err)
	}
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var config struct {
		Storage  map[string]map[string]any `hcl:"storage"`
		Listener map[string]struct {
			Address     string `hcl:"address"`
			TLSCertFile string `hcl:"tls_cert_file"`
			TLSKeyFile  string `hcl:"tls_key_file"`
		} `hcl:"listener"`
		APIAddr           string `hcl:"api_addr"`
		DisableClustering bool   `hcl:"disable_clustering"`
		DisableMlock      bool   `hcl:"disable_mlock"`
		UI                bool   `hcl:"ui"`
		LogLevel          string `hcl:"log_level"`
	}
	if err := hcl.Decode(&config, string(content)); err != nil {
		t.Fatal(err)
	}
	if _, ok := config.Storage["inmem"]; !ok || len(config.Storage) != 1 {
		t.Errorf("storage %v", config.Storage)
	}
	tcp := config.Listener["tcp"]
	if len(config.Listener) != 1 || tcp.Address != "127.0.0.1:4711" || tcp.TLSCertFile != filepath.Join(dir, "vault.crt") || tcp.TLSKeyFile != filepath.Join(dir, "vault.key") {
		t.Errorf("listener %+v", config.Listener)
	}
	if config.APIAddr != "https://127.0.0.1:4711" || !config.DisableClustering || !config.DisableMlock || config.UI || config.LogLevel != "info" {
		t.Errorf("got %+v", config)
	}
}

func TestStartFails(t *testing.T) {
	for _, test := range []struct {
		program string
		timeout time.Duration
		want    []string
	}{
		{"vault-exits", 10 * time.Second, []string{"vault", "exited before it was ready", "exit status 1", "the stand-in gives up"}},
		{"vault-mute", 200 * time.Millisecond, []string{"vault", "not ready", "connection refused", "deadline exceeded"}},
		{"vault-impostor", 500 * time.Millisecond, []string{"vault", "not ready", "x509"}},
		{"vault-sealed", 10 * time.Second, []string{"still sealed", "vault.log"}},
		{"absent", 10 * time.Second, []string{"vault", "no such file"}},
	} {
		t.Run(test.program, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "absent")
			if standIns[test.program] != nil {
				path = program(t, test.program)
			}
			ctx, cancel := context.WithTimeout(t.Context(), test.timeout)
			defer cancel()
			var chosen []int
			server, err := start(ctx, Config{Program: path, Dir: t.TempDir(), CA: newCA(t)}, func(address string) (int, error) {
				port, err := freePort(address)
				chosen = append(chosen, port)
				return port, err
			})
			if err == nil {
				_ = server.Stop(t.Context())
				t.Fatal("it started")
			}
			for _, want := range test.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%q does not say %q", err, want)
				}
			}
			if len(chosen) != 1 {
				t.Errorf("%d attempts for a failure that has nothing to do with the port", len(chosen))
			}
			if taken(loopback, chosen[0]) {
				t.Error("something is left running")
			}
		})
	}
}

func TestStartIsInterrupted(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Start(ctx, Config{Program: program(t, "vault-mute"), Dir: t.TempDir(), CA: newCA(t)}); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

func TestPortIsTakenOnce(t *testing.T) {
	squatter, port := squat(t)
	defer func() { _ = squatter.Close() }()
	attempts := 0
	server, err := start(t.Context(), Config{Program: program(t, "vault"), Dir: t.TempDir(), CA: newCA(t)}, func(address string) (int, error) {
		if attempts++; attempts == 1 {
			return port, nil
		}
		return freePort(address)
	})
	if err != nil {
		t.Fatal(err)
	}
	if attempts != 2 {
		t.Errorf("%d attempts", attempts)
	}
	if err := server.Stop(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestPortIsAlwaysTaken(t *testing.T) {
	squatter, port := squat(t)
	defer func() { _ = squatter.Close() }()
	attempts := 0
	_, err := start(t.Context(), Config{Program: program(t, "vault"), Dir: t.TempDir(), CA: newCA(t)}, func(address string) (int, error) {
		attempts++
		return port, nil
	})
	if err == nil || attempts != 3 {
		t.Fatalf("after %d attempts: %v", attempts, err)
	}
	for _, want := range []string{"3 ports", fmt.Sprint(port), "address already in use"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q does not say %q", err, want)
		}
	}
}

func TestADeadVaultIsReported(t *testing.T) {
	server, err := Start(t.Context(), Config{Program: program(t, "vault"), Dir: t.TempDir(), CA: newCA(t)})
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(server.Status().PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	deadline := time.After(10 * time.Second)
	for server.Status().State != proc.Stopped {
		select {
		case <-time.After(5 * time.Millisecond):
		case <-deadline:
			t.Fatalf("10 s after the kill: %+v", server.Status())
		}
	}
	err = server.Healthy(t.Context())
	for _, want := range []string{"signal: killed", "in memory is gone", "oidclab up"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v does not say %q", err, want)
		}
	}
	if err := server.Stop(t.Context()); err != nil {
		t.Error(err)
	}
}

func squat(t *testing.T) (net.Listener, int) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return listener, listener.Addr().(*net.TCPAddr).Port
}

func newCA(t *testing.T) *pki.CA {
	t.Helper()
	ca, err := pki.New("oidclab test")
	if err != nil {
		t.Fatal(err)
	}
	return ca
}
