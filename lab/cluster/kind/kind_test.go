package kind_test

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/oidclab/oidclab/lab/cluster"
	"github.com/oidclab/oidclab/lab/cluster/clustertest"
	"github.com/oidclab/oidclab/lab/cluster/kind"
	"github.com/oidclab/oidclab/lab/images"
)

// require, set to 1, makes a machine where the engine can't work a failure
// instead of skips.
const require = "OIDCLAB_REQUIRE_KIND"

// imageVariable is the node image of the tests, if not one of the usual.
const imageVariable = "OIDCLAB_IMAGE"

// image returns a node image, or ends the test where there can be no nodes.
func image(t *testing.T) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	made, _ := images.NodeRef()
	candidates := []string{kind.DefaultImage, made}
	if wanted := os.Getenv(imageVariable); wanted != "" {
		candidates = []string{wanted}
	}
	machine := kind.Look(ctx, 2, candidates...)
	machine.Probe(ctx)
	if err := machine.Unmet(); err != nil {
		if os.Getenv(require) == "1" {
			t.Fatalf("%s=1: %v", require, err)
		}
		t.Skip(err)
	}
	return machine.Image
}

// network is a Docker network of the test alone.
type network struct {
	name    string
	gateway netip.Addr
}

func newNetwork(t *testing.T) network {
	t.Helper()
	n := network{name: fmt.Sprintf("oidclab-test-%d", os.Getpid())}
	t.Setenv(kind.NetworkVariable, n.name)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := kind.Reap(ctx, n.name); err != nil {
			t.Error(err)
		}
		if left, err := n.leftovers(); err != nil || len(left) != 0 {
			t.Errorf("left behind: %v (%v)", left, err)
		}
	})
	var err error
	if n.gateway, err = kind.CreateNetwork(t.Context(), n.name); err != nil {
		t.Fatal(err)
	}
	return n
}

// containers returns the names of all containers of the network.
func (n network) containers() ([]string, error) {
	return lines("docker", "ps", "--all", "--filter", "name="+n.name, "--format", "{{.Names}}")
}

// leftovers returns what there is of the network, itself included.
func (n network) leftovers() ([]string, error) {
	containers, err := n.containers()
	if err != nil {
		return nil, err
	}
	networks, err := lines("docker", "network", "ls", "--filter", "name="+n.name, "--format", "{{.Name}}")
	return append(containers, networks...), err
}

func lines(program string, args ...string) ([]string, error) {
	out, err := exec.Command(program, args...).Output()
	return strings.Fields(string(out)), err
}

func (n network) config(image, dir string, identity cluster.Identity) kind.Config {
	return kind.Config{
		Identity: identity, Dir: dir, Image: image, Network: n.name, Address: n.gateway, Plain: strings.HasPrefix(image, "oidclab/"),
	}
}

func TestConformance(t *testing.T) {
	image, n := image(t), newNetwork(t)
	clustertest.Run(t, clustertest.Engine{
		Start: func(ctx context.Context, identity cluster.Identity, dir string) (cluster.Cluster, error) {
			c, err := kind.Start(ctx, n.config(image, dir, identity))
			if err != nil {
				return nil, err // not a nil *Cluster in a non-nil interface
			}
			return c, nil
		},
		Kill: func(c cluster.Cluster, component string) error {
			node := n.name + "-" + c.Identity().ID + "-control-plane"
			return until(time.Minute, func() error {
				// kubelet brings back what ended once within a second, and what ended twice after ten.
				if err := exec.Command("docker", "exec", node, "pkill", "-KILL", "-x", component).Run(); err != nil {
					return fmt.Errorf("%s is not there: %w", component, err)
				}
				if c.Healthy(t.Context()) == nil {
					return fmt.Errorf("the cluster does without %s", component)
				}
				return nil
			})
		},
		Leftovers: n.containers,
	})
}

// until waits until a condition returns nil.
func until(end time.Duration, condition func() error) error {
	deadline, tick := time.After(end), time.NewTicker(100*time.Millisecond)
	defer tick.Stop()
	for {
		err := condition()
		if err == nil {
			return nil
		}
		select {
		case <-tick.C:
		case <-deadline:
			return fmt.Errorf("after %s: %w", end, err)
		}
	}
}
