package kind

import (
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	kindcluster "sigs.k8s.io/kind/pkg/cluster"

	"github.com/oidclab/oidclab/lab/clock"
	"github.com/oidclab/oidclab/lab/cluster"
	"github.com/oidclab/oidclab/lab/images"
	"github.com/oidclab/oidclab/lab/keys"
)

// BenchmarkUp shows how long `oidclab up --engine kind` takes beside `kind create
// cluster --wait` with the same node image and configuration, in turns. The
// limit that the project has set itself is 1.2 times. OIDCLAB_BINARY is the
// binary, OIDCLAB_IMAGE the node image; without it the one made here.
func BenchmarkUp(b *testing.B) {
	binary := os.Getenv("OIDCLAB_BINARY")
	if binary == "" {
		b.Skip("OIDCLAB_BINARY does not say which binary to measure")
	}
	image := os.Getenv("OIDCLAB_IMAGE")
	if image == "" {
		image, _ = images.NodeRef()
	}
	machine := Look(b.Context(), 1, image)
	machine.Probe(b.Context())
	if err := machine.Unmet(); err != nil {
		b.Skip(err)
	}
	const rounds = 3
	var plain, up []time.Duration
	for b.Loop() {
		for range rounds {
			plain = append(plain, createPlain(b, image))
			up = append(up, bringUp(b, binary, image))
		}
		slices.Sort(plain)
		slices.Sort(up)
		b.ReportMetric(up[len(up)/2].Seconds()/plain[len(plain)/2].Seconds(), "up/plain")
		b.ReportMetric(plain[len(plain)/2].Seconds(), "plain-s")
		b.ReportMetric(up[len(up)/2].Seconds(), "up-s")
	}
}

// createPlain creates a cluster as kind's users do, and removes it.
func createPlain(b *testing.B, image string) time.Duration {
	b.Helper()
	network := fmt.Sprintf("oidclab-bench-%d", os.Getpid())
	b.Setenv(NetworkVariable, network)
	defer func() {
		if err := Reap(b.Context(), network); err != nil {
			b.Error(err)
		}
	}()
	gateway, err := CreateNetwork(b.Context(), network)
	if err != nil {
		b.Fatal(err)
	}
	set, err := keys.New(clock.System{}, keys.RS256)
	if err != nil {
		b.Fatal(err)
	}
	files, err := set.Files()
	if err != nil {
		b.Fatal(err)
	}
	identity := cluster.Identity{ID: "c1", Issuer: "https://issuer.example", JWKSURI: "https://issuer.example/keys", KeyFiles: &files}
	c := &Cluster{config: Config{
		Identity: identity, Dir: b.TempDir(), Image: image, Network: network, Address: gateway, Plain: true, Log: slog.New(slog.DiscardHandler),
	}}
	if c.machine, err = probe(b.Context(), image, nil); err != nil {
		b.Fatal(err)
	}
	if c.machine.cgroup, err = docker(b.Context(), "info", "--format", "{{.CgroupVersion}}"); err != nil {
		b.Fatal(err)
	}
	if err := c.writeMount(identity); err != nil {
		b.Fatal(err)
	}
	config, err := c.kindConfig(identity)
	if err != nil {
		b.Fatal(err)
	}
	began := time.Now()
	err = kindcluster.NewProvider(kindcluster.ProviderWithDocker()).Create(c.name(),
		kindcluster.CreateWithV1Alpha4Config(config), kindcluster.CreateWithKubeconfigPath(filepath.Join(c.config.Dir, "kubeconfig")),
		kindcluster.CreateWithWaitForReady(5*time.Minute))
	if err != nil {
		b.Fatal(err)
	}
	return time.Since(began)
}

// bringUp brings up a lab, and takes it down.
func bringUp(b *testing.B, binary, image string) time.Duration {
	b.Helper()
	home, err := os.MkdirTemp("", "lab") // short, for the sockets' sake
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = os.RemoveAll(home) }()
	oidclab := func(args ...string) time.Duration {
		command := exec.Command(binary, args...)
		command.Env = append(os.Environ(), "XDG_STATE_HOME="+home)
		began := time.Now()
		if out, err := command.CombinedOutput(); err != nil {
			b.Fatalf("oidclab %q: %v: %s", args, err, out)
		}
		return time.Since(began)
	}
	took := oidclab("up", "--engine", "kind", "--image", image, "--vault", "none")
	oidclab("down")
	return took
}
