package controlplane

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/pflag"
	utilerrors "k8s.io/apimachinery/pkg/util/errors"
	utilfeature "k8s.io/apiserver/pkg/util/feature"
	"k8s.io/client-go/rest"
	logsapi "k8s.io/component-base/logs/api/v1"
	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
	apiserveroptions "k8s.io/kubernetes/cmd/kube-apiserver/app/options"
	controllermanager "k8s.io/kubernetes/cmd/kube-controller-manager/app"

	"github.com/oidclab/oidclab/lab/nodeagent"
	"github.com/oidclab/oidclab/lab/nodeagent/sandbox"
	"github.com/oidclab/oidclab/lab/proc"
)

// The components, as Main's first argument.
const (
	Etcd              = "etcd"
	APIServer         = "kube-apiserver"
	ControllerManager = "kube-controller-manager"
	NodeAgent         = "node-agent"
	Container         = "container" // a child of the node agent
)

// ListenerFD is the descriptor on which kube-apiserver inherits its open
// listener: the first of the extra files.
const ListenerFD = proc.FirstExtraFD

// Main runs the component args[0] with the flags args[1:], which are the
// component's own, until SIGTERM, and returns the exit status. It logs to
// stderr. It has to be started by package proc: it dies with its supervisor.
func Main(args []string) int {
	if err := run(args); err != nil {
		fmt.Fprintln(os.Stderr, "oidclab controlplane:", err)
		return 1
	}
	return 0
}

func run(args []string) error {
	if len(args) == 0 {
		return fmt.Errorf("no component; name one of %s, %s, %s, %s", Etcd, APIServer, ControllerManager, NodeAgent)
	}
	if args[0] == Container {
		return sandbox.Main()
	}
	if err := proc.WatchLifeline(proc.LifelineFD); err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	switch component, flags := args[0], args[1:]; component {
	case Etcd:
		return runEtcd(ctx, flags)
	case APIServer:
		return runAPIServer(ctx, flags)
	case ControllerManager:
		return runControllerManager(ctx, flags)
	case NodeAgent:
		return nodeagent.Run(ctx, flags)
	default:
		return fmt.Errorf("unknown component %q; use one of %s, %s, %s, %s", component, Etcd, APIServer, ControllerManager, NodeAgent)
	}
}

// runAPIServer does what kube-apiserver's command does, but serves on the
// inherited listener.
func runAPIServer(ctx context.Context, args []string) error {
	file := os.NewFile(ListenerFD, "listener")
	listener, err := net.FileListener(file)
	if err := errors.Join(err, file.Close()); err != nil {
		return fmt.Errorf("%s: inherited listener: %w", APIServer, err)
	}
	options := apiserveroptions.NewServerRunOptions()
	options.SecureServing.Listener = listener
	flags := pflag.NewFlagSet(APIServer, pflag.ContinueOnError)
	for _, set := range options.Flags().FlagSets {
		flags.AddFlagSet(set)
	}
	if err := flags.Parse(args); err != nil {
		return fmt.Errorf("%s: %w", APIServer, err)
	}
	if err := options.GenericServerRunOptions.ComponentGlobalsRegistry.Set(); err != nil {
		return fmt.Errorf("%s: %w", APIServer, err)
	}
	rest.SetDefaultWarningHandler(rest.NoWarnings{}) // for its own loopback clients
	if err := logsapi.ValidateAndApply(options.Logs, utilfeature.DefaultFeatureGate); err != nil {
		return fmt.Errorf("%s: %w", APIServer, err)
	}
	completed, err := options.Complete(ctx)
	if err != nil {
		return fmt.Errorf("%s: %w", APIServer, err)
	}
	if errs := completed.Validate(); len(errs) != 0 {
		return fmt.Errorf("%s: %w", APIServer, utilerrors.NewAggregate(errs))
	}
	return apiserver.Run(ctx, completed)
}

func runControllerManager(ctx context.Context, args []string) error {
	command := controllermanager.NewControllerManagerCommand()
	command.SetArgs(args)
	command.SilenceErrors = true
	ended := make(chan error, 1)
	go func() { ended <- command.ExecuteContext(ctx) }()
	select {
	case err := <-ended:
		return err
	case <-ctx.Done(): // the command ignores its context; all its state is in the API server
		return nil
	}
}
