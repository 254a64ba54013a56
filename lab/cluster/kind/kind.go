// Package kind provides clusters of one node in a Docker container, by
// sigs.k8s.io/kind as a library: with a kubelet, real pods and DNS.
//
// Like kind it runs the docker program. It does not link Kubernetes' servers.
package kind

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/kind/pkg/apis/config/v1alpha4"
	kindcluster "sigs.k8s.io/kind/pkg/cluster"
	kindexec "sigs.k8s.io/kind/pkg/exec"

	"github.com/oidclab/oidclab/lab/cluster"
)

const (
	// closeTimeout bounds the undo of a failed start.
	closeTimeout = 30 * time.Second
	// reconfigureTimeout bounds the way back to a former identity.
	reconfigureTimeout = time.Minute
	// pollInterval is between two looks at a cluster that starts.
	pollInterval = 100 * time.Millisecond
)

// Config is what a cluster needs.
type Config struct {
	Identity cluster.Identity        // its signer must be serving, or about to; the directory of its socket is mounted into the node
	Dir      string                  // state of this cluster alone; made with mode 0700 if it does not exist
	Image    string                  // of the node; the container engine must have it
	Network  string                  // of CreateNetwork; begins the container's name; see NetworkVariable
	Address  netip.Addr              // gateway of Network, where the Kubernetes API listens
	Reach    []string                // host:port of servers that pods must reach; they must be listening
	Trusts   []cluster.TrustedIssuer // may come up later; the API server asks for their keys every 10 s
	// Plain is for images without kind's own plugins for networks, which also
	// enforces network policies, and storage: a file of CNI configuration gives
	// pods their addresses, and nothing provisions volumes.
	Plain   bool
	Images  func(io.Writer) error // writes an archive of images for pods, which the node gets while it starts; nil means none
	Log     *slog.Logger          // nil means none
	Observe func(phase string)    // is told what kind is at; nil means nobody wants to know
}

// Cluster is a running cluster. Make one with Start.
type Cluster struct {
	config     Config
	machine    node
	api        *cluster.API
	kubeconfig []byte

	mu         sync.Mutex
	identity   cluster.Identity // guarded by mu
	generation int              // of key files; changed under reconfiguring only

	reconfiguring sync.Mutex
	kept          *kept         // guarded by reconfiguring; nil before the first Recreate
	closed        chan struct{} // closed by Close
	closeOnce     sync.Once
}

var _ cluster.Cluster = (*Cluster)(nil)

// Start creates a cluster and waits until its node is ready, its API server has
// the wanted identity, and its controllers have set up the default namespace.
// The context bounds the start only. After an error nothing is left running.
func Start(ctx context.Context, config Config) (_ *Cluster, err error) {
	if config.Log == nil {
		config.Log = slog.New(slog.DiscardHandler)
	}
	config.Log = config.Log.With("cluster", config.Identity.ID)
	c := &Cluster{config: config, identity: config.Identity, closed: make(chan struct{})}
	if c.config.Dir, err = filepath.Abs(config.Dir); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
			defer cancel()
			err = errors.Join(fmt.Errorf("cluster %s: %w", config.Identity.ID, err), c.Close(undo))
		}
	}()
	c.machine, err = probe(ctx, config.Image, config.Reach, "--name", c.probeName(), "--network", config.Network, "--label", Label+"="+config.Network)
	if err != nil {
		return nil, err
	}
	if c.machine.cgroup, err = docker(ctx, "info", "--format", "{{.CgroupVersion}}"); err != nil {
		return nil, err
	}
	if err := c.start(ctx, config.Identity); err != nil {
		return nil, err
	}
	return c, nil
}

// start creates a cluster with an identity, and waits for it.
func (c *Cluster) start(ctx context.Context, identity cluster.Identity) error {
	if err := c.writeMount(identity); err != nil {
		return err
	}
	config, err := c.kindConfig(identity)
	if err != nil {
		return err
	}
	start, startCtx := errgroup.WithContext(ctx)
	created := make(chan struct{})
	start.Go(func() error {
		defer close(created)
		return c.create(startCtx, config)
	})
	start.Go(func() error { return c.importImages(startCtx, c.config.Images, created) })
	if err := start.Wait(); err != nil {
		return err
	}
	if c.api == nil {
		if err := c.connect(); err != nil {
			return err
		}
	}
	if err := errors.Join(c.checkCommand(ctx, identity), c.api.CheckIdentity(ctx, identity)); err != nil {
		return err
	}
	return await(ctx, c.ready)
}

// connect makes the client of the API.
func (c *Cluster) connect() (err error) {
	if c.kubeconfig, err = os.ReadFile(c.kubeconfigFile()); err != nil {
		return err
	}
	admin, err := clientcmd.RESTConfigFromKubeConfig(c.kubeconfig)
	if err != nil {
		return err
	}
	c.api, err = cluster.NewAPI(admin)
	return err
}

func (c *Cluster) kubeconfigFile() string { return filepath.Join(c.config.Dir, "kubeconfig") }

// name is kind's name of the cluster.
func (c *Cluster) name() string { return c.config.Network + "-" + c.config.Identity.ID }

// node is the name of the only node and its container.
func (c *Cluster) node() string { return c.name() + "-control-plane" }

// probeName is the name of the container that runs before the node.
func (c *Cluster) probeName() string { return c.name() + "-probe" }

// create has kind create the cluster. kind can't be told to stop, but its next
// command in a node that is gone fails.
func (c *Cluster) create(ctx context.Context, config *v1alpha4.Cluster) error {
	created := make(chan error, 1)
	go func() {
		created <- kindcluster.NewProvider(kindcluster.ProviderWithDocker(), kindcluster.ProviderWithLogger(kindLog{c.config.Log, c.config.Observe})).
			Create(c.name(), kindcluster.CreateWithV1Alpha4Config(config), kindcluster.CreateWithKubeconfigPath(c.kubeconfigFile()),
				kindcluster.CreateWithRetain(true), // for withReason
				kindcluster.CreateWithDisplayUsage(false), kindcluster.CreateWithDisplaySalutation(false))
	}()
	select {
	case err := <-created:
		if failed := kindexec.RunErrorForError(err); failed != nil {
			c.config.Log.Error("kind failed", "command", strings.Join(failed.Command, " "), "output", string(failed.Output))
		}
		if err != nil {
			return c.withReason(ctx, err)
		}
		return c.checkNetwork(ctx)
	case <-ctx.Done():
	}
	removing, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
	defer cancel()
	for {
		err := c.remove(removing)
		select {
		case <-created:
			return context.Cause(ctx)
		case <-removing.Done():
			return errors.Join(context.Cause(ctx), err, errors.New("kind does not end"))
		case <-time.After(pollInterval):
		}
	}
}

// checkNetwork reads back which network kind chose.
func (c *Cluster) checkNetwork(ctx context.Context) error {
	networks, err := docker(ctx, "inspect", "--format", "{{range $name, $_ := .NetworkSettings.Networks}}{{$name}} {{end}}", c.node())
	if err != nil {
		return err
	}
	if networks = strings.TrimSpace(networks); networks != c.config.Network {
		return fmt.Errorf("kind: the node is in network %s, not %s: %s was not set", networks, c.config.Network, NetworkVariable)
	}
	return nil
}

// checkCommand reads back what the API server was started with.
func (c *Cluster) checkCommand(ctx context.Context, identity cluster.Identity) error {
	out, err := c.exec(ctx, nil, `tr '\0' '\n' < /proc/$(pgrep -o -x kube-apiserver)/cmdline`)
	if err != nil {
		return fmt.Errorf("the API server does not run: %w", err)
	}
	return checkArguments(strings.Split(out, "\n"), arguments(identity, c.generation))
}

// exec runs a shell script in the node.
func (c *Cluster) exec(ctx context.Context, stdin []byte, script string, args ...string) (string, error) {
	return dockerWith(ctx, bytes.NewReader(stdin), append([]string{"exec", "--interactive", c.node(), "sh", "-c", script, "sh"}, args...)...)
}

// withReason adds the last line that an API server wrote to an error, if there
// is one.
func (c *Cluster) withReason(ctx context.Context, err error) error {
	line, logErr := c.exec(ctx, nil, `tail -q -n 1 /var/log/pods/kube-system_kube-apiserver-*/kube-apiserver/*.log | tail -n 1`)
	if logErr != nil || line == "" {
		return err
	}
	return fmt.Errorf("%w; the API server said: %s", err, line)
}

// ready returns nil once the cluster runs pods: the node is ready, and the
// default namespace has what every pod needs.
func (c *Cluster) ready(ctx context.Context) error {
	if err := c.nodeReady(ctx); err != nil {
		return err
	}
	core := c.api.Kubernetes().CoreV1()
	if _, err := core.ServiceAccounts(metav1.NamespaceDefault).Get(ctx, "default", metav1.GetOptions{}); err != nil {
		return err
	}
	_, err := core.ConfigMaps(metav1.NamespaceDefault).Get(ctx, "kube-root-ca.crt", metav1.GetOptions{})
	return err
}

func (c *Cluster) nodeReady(ctx context.Context) error {
	n, err := c.api.Kubernetes().CoreV1().Nodes().Get(ctx, c.node(), metav1.GetOptions{})
	if err != nil {
		return err
	}
	for _, condition := range n.Status.Conditions {
		if condition.Type == corev1.NodeReady && condition.Status != corev1.ConditionTrue {
			return fmt.Errorf("node %s is not ready: %s", n.Name, condition.Message)
		}
		if condition.Type == corev1.NodeReady {
			return nil
		}
	}
	return fmt.Errorf("node %s does not say whether it is ready", n.Name)
}

// await waits until a condition returns nil. If ctx ends first, the error has
// the last reason.
func await(ctx context.Context, condition func(context.Context) error) error {
	for {
		err := condition(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", context.Cause(ctx), err)
		case <-time.After(pollInterval):
		}
	}
}

// Identity implements cluster.Cluster.
func (c *Cluster) Identity() cluster.Identity {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.identity
}

// API implements cluster.Cluster.
func (c *Cluster) API() *cluster.API { return c.api }

// Kubeconfig implements cluster.Cluster.
func (c *Cluster) Kubeconfig() []byte { return append([]byte(nil), c.kubeconfig...) }

// Healthy implements cluster.Cluster: the API server says that it is ready, and
// the node too.
func (c *Cluster) Healthy(ctx context.Context) error {
	if err := c.api.Ready(ctx); err != nil {
		return err
	}
	return c.nodeReady(ctx)
}

// Close implements cluster.Cluster. It leaves the files and the network.
func (c *Cluster) Close(ctx context.Context) error {
	c.closeOnce.Do(func() { close(c.closed) })
	c.reconfiguring.Lock() // waits for a restart, which ends now
	defer c.reconfiguring.Unlock()
	return c.remove(ctx)
}

// remove removes the containers.
func (c *Cluster) remove(ctx context.Context) error {
	return removeContainers(ctx, func(found container) bool {
		return found.cluster == c.name() || found.name == c.probeName()
	})
}
