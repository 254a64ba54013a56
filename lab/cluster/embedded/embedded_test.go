package embedded_test

import (
	"context"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/oidclab/oidclab/lab/clock"
	"github.com/oidclab/oidclab/lab/cluster"
	"github.com/oidclab/oidclab/lab/cluster/embedded"
	"github.com/oidclab/oidclab/lab/cluster/embedded/controlplane"
	"github.com/oidclab/oidclab/lab/cluster/signer"
	"github.com/oidclab/oidclab/lab/keys"
)

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "controlplane" {
		os.Exit(controlplane.Main(os.Args[2:]))
	}
	os.Exit(m.Run())
}

func TestSmoke(t *testing.T) {
	dir := t.TempDir()
	os.Chmod(dir, 0o700)
	set, err := keys.New(clock.System{}, keys.RS256)
	if err != nil {
		t.Fatal(err)
	}
	s, err := signer.Start(signer.Config{Socket: filepath.Join(dir, "s.sock"), Keys: set})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Stop()
	began := time.Now()
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	c, err := embedded.Start(ctx, embedded.Config{
		Identity: cluster.Identity{ID: "a", Issuer: "https://127.0.0.1:1/c/a", JWKSURI: "https://127.0.0.1:1/c/a/openid/v1/jwks", SignerSocket: filepath.Join(dir, "s.sock")},
		Dir:      filepath.Join(dir, "a"),
		Command:  []string{os.Args[0], "controlplane"},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Log("ready", time.Since(began))
	if err := c.API().EnsureServiceAccount(ctx, "demo", "app"); err != nil {
		t.Error(err)
	}
	token, err := c.API().Token(ctx, cluster.TokenRequest{Namespace: "demo", ServiceAccount: "app", Audiences: []string{"x"}})
	t.Log("token", time.Since(began), len(token), err)
	d, err := c.API().JWKS(ctx)
	t.Log(string(d.Body), d.Header, err)
	for _, s := range c.Components() {
		b, _ := os.ReadFile("/proc/" + itoa(s.PID) + "/status")
		t.Log(s, string(b[:0]))
		for _, l := range splitLines(string(b)) {
			if len(l) > 5 && (l[:5] == "VmRSS" || l[:5] == "VmHWM") {
				t.Log(s.Name, l)
			}
		}
	}
	stop := time.Now()
	if err := c.Close(ctx); err != nil {
		t.Error(err)
	}
	t.Log("closed", time.Since(stop))
	if os.Getenv("KEEP") != "" {
		os.CopyFS(os.Getenv("KEEP"), os.DirFS(filepath.Join(dir, "a")))
	}
}

func itoa(i int) string { return strconv.Itoa(i) }

func splitLines(s string) []string { return strings.Split(s, "\n") }
