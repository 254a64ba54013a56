// Package embedded provides clusters without a container engine: etcd,
// kube-apiserver and kube-controller-manager as child processes of this one, and
// a node agent that runs pods as processes of this machine (see package
// nodeagent).
//
// The package does not link Kubernetes' servers: it executes a command that
// does (see package controlplane).
package embedded

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/oidclab/oidclab/lab/cluster"
	"github.com/oidclab/oidclab/lab/proc"
)

const (
	closeTimeout   = 10 * time.Second // bounds the undo of a failed start
	restoreTimeout = 30 * time.Second // bounds the return to the former identity
)

// Config is what a cluster needs.
type Config struct {
	Identity cluster.Identity        // its signer, if it has one, must be serving, or about to
	Dir      string                  // state and logs of this cluster alone; made with mode 0700 if it does not exist
	Trusts   []cluster.TrustedIssuer // may come up later; the API server asks for their keys every 10 s
	Command  []string                // runs a component given as further arguments, see controlplane.Main; [0] is an absolute path
}

// Cluster is a running embedded cluster.
type Cluster struct {
	config     Config
	files      files
	api        *cluster.API
	kubeconfig []byte
	listener   *os.File // of the API server: kept open while it restarts, so its port stays its own
	port       int      // of the listener

	etcd, apiServer, controllerManager, nodeAgent component

	reconfiguring sync.Mutex // held while the API server changes its identity
	mu            sync.Mutex
	identity      cluster.Identity // guarded by mu

	closing   context.Context // ends when Close is called
	close     context.CancelFunc
	closeOnce sync.Once
}

// component is one child process; nil until it has been started.
type component struct {
	mu      sync.Mutex
	process *proc.Process
}

var _ cluster.Cluster = (*Cluster)(nil)

// Start starts a cluster and waits until its API server is ready and its
// controllers have set up the default namespace. The context bounds the start
// only. After an error nothing is left running.
func Start(ctx context.Context, config Config) (_ *Cluster, err error) {
	c := &Cluster{config: config, identity: config.Identity}
	c.closing, c.close = context.WithCancel(context.Background())
	defer func() {
		if err != nil {
			undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
			defer cancel()
			err = errors.Join(fmt.Errorf("cluster %s: %w", config.Identity.ID, err), c.Close(undo))
		}
	}()
	if err := c.listen(); err != nil {
		return nil, err
	}
	if c.files, err = newFiles(config.Dir); err != nil {
		return nil, err
	}
	credentials, err := c.files.write(config, c.port)
	if err != nil {
		return nil, err
	}
	c.kubeconfig = credentials.kubeconfig
	if c.api, err = cluster.NewAPI(credentials.admin); err != nil {
		return nil, err
	}
	if err := c.run(ctx, config.Identity); err != nil {
		return nil, err
	}
	return c, nil
}

// run starts all components and waits until they are ready. None must be running.
func (c *Cluster) run(ctx context.Context, identity cluster.Identity) error {
	// The API server waits for etcd by itself.
	start, startCtx := errgroup.WithContext(ctx)
	start.Go(func() error { return c.etcd.start(startCtx, c.etcdSpec()) })
	start.Go(func() error { return c.serveAs(startCtx, identity) })
	if err := start.Wait(); err != nil {
		return err
	}
	// Not earlier: it looks for a healthy API server once a second only.
	if err := c.controllerManager.start(ctx, c.controllerManagerSpec()); err != nil {
		return err
	}
	return c.nodeAgent.start(ctx, c.nodeAgentSpec())
}

func (c *Cluster) listen() (err error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, listener.Close()) }()
	tcp := listener.(*net.TCPListener)
	c.port = tcp.Addr().(*net.TCPAddr).Port
	c.listener, err = tcp.File()
	return err
}

// serveAs starts the API server with an identity, and waits until it serves it.
// The API server must not be running.
func (c *Cluster) serveAs(ctx context.Context, identity cluster.Identity) error {
	if err := c.files.writeKeys(identity.KeyFiles); err != nil {
		return err
	}
	if err := c.apiServer.start(ctx, c.apiServerSpec(identity)); err != nil {
		return err
	}
	return c.api.CheckIdentity(ctx, identity)
}

// Reconfigure implements cluster.Cluster. Connections that are made while
// the API server restarts wait for it; those that are open end.
func (c *Cluster) Reconfigure(ctx context.Context, identity cluster.Identity) (err error) {
	c.reconfiguring.Lock()
	defer c.reconfiguring.Unlock()
	former := c.Identity()
	defer func() {
		if err != nil {
			err = fmt.Errorf("cluster %s: %w", former.ID, err)
		}
	}()
	if err := c.mayBecome(identity); err != nil {
		return err
	}
	if err = c.restartAs(ctx, identity); err == nil {
		c.setIdentity(identity)
		return nil
	}
	restore, cancel := context.WithTimeout(context.WithoutCancel(ctx), restoreTimeout)
	defer cancel()
	if restoreErr := c.restartAs(restore, former); restoreErr != nil {
		return errors.Join(err, fmt.Errorf("its former identity cannot be restored: %w", restoreErr))
	}
	return err
}

func (c *Cluster) restartAs(ctx context.Context, identity cluster.Identity) error {
	ctx, cancel := c.untilClose(ctx)
	defer cancel()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err := c.apiServer.stop(ctx); err != nil {
		return err
	}
	return c.serveAs(ctx, identity)
}

// untilClose returns a context that ends with ctx, and when Close is called.
func (c *Cluster) untilClose(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(c.closing, func() { cancel(errors.New("the cluster is being closed")) })
	if c.closing.Err() != nil {
		cancel(errors.New("the cluster is closed"))
	}
	return ctx, func() { stop(); cancel(nil) }
}

// Recreate implements cluster.Cluster.
func (c *Cluster) Recreate(ctx context.Context, identity cluster.Identity) (err error) {
	c.reconfiguring.Lock()
	defer c.reconfiguring.Unlock()
	ctx, cancel := c.untilClose(ctx)
	defer cancel()
	defer func() {
		if err != nil {
			err = fmt.Errorf("cluster %s: %w", c.Identity().ID, err)
		}
	}()
	if err := c.mayBecome(identity); err != nil {
		return err
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err := c.stop(ctx); err != nil {
		return err
	}
	if err := c.files.removeData(); err != nil {
		return err
	}
	if err := c.run(ctx, identity); err != nil {
		return err
	}
	c.setIdentity(identity)
	return nil
}

func (c *Cluster) mayBecome(identity cluster.Identity) error {
	if identity.ID != c.config.Identity.ID {
		return fmt.Errorf("it cannot become cluster %s; start another", identity.ID)
	}
	return nil
}

func (c *Cluster) setIdentity(identity cluster.Identity) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.identity = identity
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

// Components returns the state of each child process.
func (c *Cluster) Components() []proc.Status {
	var statuses []proc.Status
	for _, component := range []*component{&c.etcd, &c.apiServer, &c.controllerManager, &c.nodeAgent} {
		if process := component.get(); process != nil {
			statuses = append(statuses, process.Status())
		}
	}
	return statuses
}

// Healthy implements cluster.Cluster: all components run, and the API server
// says that it is ready.
func (c *Cluster) Healthy(ctx context.Context) error {
	for _, status := range c.Components() {
		if status.State != proc.Running {
			return fmt.Errorf("cluster %s: %s is %s: %s", c.config.Identity.ID, status.Name, status.State, status.Reason)
		}
	}
	return c.api.Ready(ctx)
}

// Close implements cluster.Cluster. It leaves the files.
func (c *Cluster) Close(ctx context.Context) error {
	c.close()
	c.reconfiguring.Lock() // waits for a restart, which ends now
	defer c.reconfiguring.Unlock()
	err := c.stop(ctx)
	c.closeOnce.Do(func() {
		if c.listener != nil {
			_ = c.listener.Close() // nothing is written to a listener
		}
	})
	return err
}

// stop ends all components: etcd last, which the others need to the end.
func (c *Cluster) stop(ctx context.Context) error {
	var clients sync.WaitGroup
	var errs [4]error
	clients.Go(func() { errs[0] = c.nodeAgent.stop(ctx) })
	clients.Go(func() { errs[1] = c.controllerManager.stop(ctx) })
	clients.Go(func() { errs[2] = c.apiServer.stop(ctx) })
	clients.Wait()
	errs[3] = c.etcd.stop(ctx)
	return errors.Join(errs[:]...)
}

// start starts the child process; one that fails to start is gone again.
func (c *component) start(ctx context.Context, spec proc.Spec) error {
	process, err := proc.Start(ctx, spec)
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.process = process
	return nil
}

func (c *component) get() *proc.Process {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.process
}

func (c *component) stop(ctx context.Context) error {
	process := c.get()
	if process == nil {
		return nil
	}
	return process.Stop(ctx)
}
