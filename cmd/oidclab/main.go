// Command oidclab is a lab for OIDC federation from Kubernetes: a cluster that
// is an issuer, the relying parties that trust it, and the scenarios that prove
// the flow and break it. See README.md, or run oidclab --help.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/pflag"

	"github.com/oidclab/oidclab/cmd/oidclab/cli"
	"github.com/oidclab/oidclab/lab/cluster/embedded/controlplane"
)

func main() {
	// A control plane's components are this binary too. They are told apart
	// before anything else, so that no other verb pays for their flags.
	if len(os.Args) > 1 && os.Args[1] == cli.ComponentCommand {
		os.Exit(controlplane.Main(os.Args[2:]))
	}
	// Kubernetes' packages register flags of their own for every command.
	pflag.CommandLine = pflag.NewFlagSet("oidclab", pflag.ContinueOnError)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second Ctrl-C ends the process at once
	code := cli.Run(ctx, os.Args[1:], cli.Streams{In: os.Stdin, Out: os.Stdout, Err: os.Stderr})
	stop()
	os.Exit(code)
}
