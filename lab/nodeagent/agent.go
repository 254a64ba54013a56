package nodeagent

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/kubernetes/pkg/kubelet/token"
)

// nodeAddress is that of the node and all of its pods: the machine's own.
const nodeAddress = "127.0.0.1"

const (
	syncInterval = time.Minute            // between two looks at a pod's volumes; kubelet's --sync-frequency
	retryDelay   = 500 * time.Millisecond // after the API refused something; doubles
	maxRetry     = 30 * time.Second
	stopTimeout  = 5 * time.Second // for all containers to be gone after SIGKILL
)

// options are the agent's flags. Paths are relative to the working directory.
type options struct {
	node                string
	kubeconfig          string
	schedulerKubeconfig string
	certFile, keyFile   string
	clientCAFile        string
	dir                 string
	sandboxCommand      []string
}

// agent is a node.
type agent struct {
	node      string
	dir       string
	command   []string // has this program call sandbox.Main
	client    kubernetes.Interface
	scheduler kubernetes.Interface
	volumes   volumes
	maker     maker
	log       *slog.Logger

	mu      sync.Mutex
	workers map[types.UID]*worker
	group   sync.WaitGroup // of workers
}

// Run runs the node agent with the flags args until ctx ends. Then all containers
// are killed. It logs to stderr.
func Run(ctx context.Context, args []string) error {
	var o options
	flags := pflag.NewFlagSet("node-agent", pflag.ContinueOnError)
	flags.StringVar(&o.node, "node", "", "name of the node")
	flags.StringVar(&o.kubeconfig, "kubeconfig", "", "credentials of the node")
	flags.StringVar(&o.schedulerKubeconfig, "scheduler-kubeconfig", "", "credentials of the scheduler")
	flags.StringVar(&o.certFile, "tls-cert-file", "", "certificate of the server of logs")
	flags.StringVar(&o.keyFile, "tls-private-key-file", "", "its key")
	flags.StringVar(&o.clientCAFile, "client-ca-file", "", "who signs the API server's client certificate")
	flags.StringArrayVar(&o.sandboxCommand, "sandbox-command", nil, "program, and each of its arguments, that calls sandbox.Main")
	flags.StringVar(&o.dir, "dir", "pods", "directory for volumes and logs")
	if err := flags.Parse(args); err != nil {
		return fmt.Errorf("node-agent: %w", err)
	}
	a, config, err := newAgent(o)
	if err != nil {
		return fmt.Errorf("node-agent: %w", err)
	}
	if err := a.run(ctx, o, config); err != nil {
		return fmt.Errorf("node-agent: %w", err)
	}
	return nil
}

func newAgent(o options) (*agent, *rest.Config, error) {
	if len(o.sandboxCommand) == 0 {
		return nil, nil, errors.New("--sandbox-command is missing")
	}
	unix.Umask(0o022) // the modes of volumes are what pods ask for
	config, client, err := connect(o.kubeconfig)
	if err != nil {
		return nil, nil, err
	}
	_, scheduler, err := connect(o.schedulerKubeconfig)
	if err != nil {
		return nil, nil, err
	}
	host, port, err := net.SplitHostPort(strings.TrimPrefix(config.Host, "https://"))
	if err != nil {
		return nil, nil, err
	}
	if err := os.MkdirAll(o.dir, 0o700); err != nil {
		return nil, nil, err
	}
	dir, err := filepath.Abs(o.dir)
	if err == nil {
		dir, err = filepath.EvalSymlinks(dir)
	}
	if err != nil {
		return nil, nil, err
	}
	return &agent{
		node: o.node, dir: dir, command: o.sandboxCommand, client: client, scheduler: scheduler,
		volumes: volumes{client: client, tokens: token.NewManager(client)},
		maker:   maker{client: client, program: o.sandboxCommand[0], server: [2]string{host, port}},
		log:     slog.New(slog.NewTextHandler(os.Stderr, nil)),
		workers: map[types.UID]*worker{},
	}, config, nil
}

func connect(kubeconfig string) (*rest.Config, kubernetes.Interface, error) {
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return nil, nil, err
	}
	config.QPS = -1 // all of it is one machine
	client, err := kubernetes.NewForConfig(config)
	return config, client, err
}

func (a *agent) run(ctx context.Context, o options, config *rest.Config) (err error) {
	server, err := a.serveLogs(o)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, server.close()) }()
	if err := a.register(ctx, server.port()); err != nil {
		return err
	}
	a.log.Info("registered", "node", a.node, "server", config.Host)

	ending := context.WithoutCancel(ctx)
	working, kill := context.WithCancel(ending)
	defer func() {
		kill()
		a.awaitWorkers()
	}()
	mine, err := a.watch(ctx, a.client, "spec.nodeName="+a.node, cache.ResourceEventHandlerFuncs{
		AddFunc:    func(object any) { a.update(working, object.(*corev1.Pod)) },
		UpdateFunc: func(_, object any) { a.update(working, object.(*corev1.Pod)) },
		DeleteFunc: func(object any) { a.forget(object) },
	})
	if err != nil {
		return err
	}
	if err := a.removeStale(mine.GetStore()); err != nil {
		return err
	}
	bind := func(object any) { a.bind(ctx, object.(*corev1.Pod)) }
	if _, err := a.watch(ctx, a.scheduler, "spec.nodeName=", cache.ResourceEventHandlerFuncs{
		AddFunc: bind, UpdateFunc: func(_, object any) { bind(object) },
	}); err != nil {
		return err
	}
	<-ctx.Done()
	return nil
}

// watch calls the handler for all pods that a field selector selects, and returns
// once it knows all that there are now.
func (a *agent) watch(ctx context.Context, client kubernetes.Interface, selector string, handler cache.ResourceEventHandlerFuncs) (cache.SharedIndexInformer, error) {
	parsed, err := fields.ParseSelector(selector)
	if err != nil {
		return nil, err
	}
	source := cache.NewListWatchFromClient(client.CoreV1().RESTClient(), "pods", metav1.NamespaceAll, parsed)
	informer := cache.NewSharedIndexInformer(source, &corev1.Pod{}, 0, nil)
	if _, err := informer.AddEventHandler(handler); err != nil {
		return nil, err
	}
	go informer.RunWithContext(ctx)
	if !cache.WaitForCacheSync(ctx.Done(), informer.HasSynced) {
		return nil, context.Cause(ctx)
	}
	return informer, nil
}

// register makes the node known, and says that it is ready.
func (a *agent) register(ctx context.Context, port int32) error {
	node := a.describe(port)
	nodes := a.client.CoreV1().Nodes()
	return a.persist(ctx, "registering node "+a.node, func(ctx context.Context) error {
		_, err := nodes.Create(ctx, node, metav1.CreateOptions{})
		if err != nil && !apierrors.IsAlreadyExists(err) {
			return err
		}
		current, err := nodes.Get(ctx, a.node, metav1.GetOptions{})
		if err != nil {
			return err
		}
		current.Status = node.Status
		_, err = nodes.UpdateStatus(ctx, current, metav1.UpdateOptions{})
		return err
	})
}

// persist repeats what the API refuses, or ctx ends.
func (a *agent) persist(ctx context.Context, what string, do func(context.Context) error) error {
	for delay := retryDelay; ; delay = min(2*delay, maxRetry) {
		err := do(ctx)
		if err == nil {
			return nil
		}
		if ctx.Err() == nil {
			a.log.Warn(what, "error", err)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s: %w", what, err)
		case <-time.After(delay):
		}
	}
}

// bind is the scheduler: there is one node.
func (a *agent) bind(ctx context.Context, pod *corev1.Pod) {
	if pod.Spec.NodeName != "" || len(pod.Spec.SchedulingGates) > 0 || pod.Spec.SchedulerName != corev1.DefaultSchedulerName || pod.DeletionTimestamp != nil {
		return
	}
	binding := &corev1.Binding{
		ObjectMeta: metav1.ObjectMeta{Namespace: pod.Namespace, Name: pod.Name, UID: pod.UID},
		Target:     corev1.ObjectReference{Kind: "Node", Name: a.node},
	}
	err := a.scheduler.CoreV1().Pods(pod.Namespace).Bind(ctx, binding, metav1.CreateOptions{})
	if err != nil && !apierrors.IsConflict(err) && !apierrors.IsNotFound(err) {
		a.log.Error("binding a pod", "pod", describe(pod), "error", err)
	}
}

// update gives a pod to its worker.
func (a *agent) update(ctx context.Context, pod *corev1.Pod) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if known, ok := a.workers[pod.UID]; ok {
		known.update(pod)
		return
	}
	w := a.newWorker(ctx, pod)
	a.workers[pod.UID] = w
	a.group.Go(w.run)
}

// forget ends the worker of a pod that is gone.
func (a *agent) forget(object any) {
	if unknown, ok := object.(cache.DeletedFinalStateUnknown); ok {
		object = unknown.Obj
	}
	pod := object.(*corev1.Pod)
	a.mu.Lock()
	defer a.mu.Unlock()
	if w, ok := a.workers[pod.UID]; ok {
		delete(a.workers, pod.UID)
		w.cancel()
	}
	a.volumes.tokens.DeleteServiceAccountToken(pod.UID)
}

func (a *agent) awaitWorkers() {
	gone := make(chan struct{})
	go func() {
		a.group.Wait()
		close(gone)
	}()
	select {
	case <-gone:
	case <-time.After(stopTimeout): // they die with this process
	}
}

// removeStale removes what pods left that were deleted while no agent ran.
func (a *agent) removeStale(store cache.Store) error {
	known := map[string]bool{}
	for _, object := range store.List() {
		known[dirName(object.(*corev1.Pod))] = true
	}
	entries, err := os.ReadDir(a.dir)
	if err != nil {
		return err
	}
	for _, entry := range entries {
		if !known[entry.Name()] {
			err = errors.Join(err, os.RemoveAll(filepath.Join(a.dir, entry.Name())))
		}
	}
	return err
}

// dirName names a pod's directory as kubelet names that of its logs.
func dirName(pod *corev1.Pod) string {
	return pod.Namespace + "_" + pod.Name + "_" + string(pod.UID)
}

// tls has the server show its certificate, and demand one of its clients.
func (o options) tls() (*tls.Config, error) {
	certificate, err := tls.LoadX509KeyPair(o.certFile, o.keyFile)
	if err != nil {
		return nil, err
	}
	clients, err := certPool(o.clientCAFile)
	if err != nil {
		return nil, err
	}
	return &tls.Config{
		Certificates: []tls.Certificate{certificate}, MinVersion: tls.VersionTLS12,
		ClientCAs: clients, ClientAuth: tls.RequireAndVerifyClientCert,
	}, nil
}
