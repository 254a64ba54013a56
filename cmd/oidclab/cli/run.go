// Package cli is the command line of oidclab: one verb per file.
//
// stdout carries data and nothing else; progress and problems go to stderr.
// Only this package reads the environment and knows about terminals.
package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/adrg/xdg"
	"github.com/spf13/cobra"

	"github.com/oidclab/oidclab/lab/problem"
)

// ComponentCommand is the first argument that makes the binary a component of
// a control plane instead of the command line.
const ComponentCommand = "controlplane-component"

// superviseCommand is the hidden verb that `up` starts in the background.
const superviseCommand = "supervise"

// Streams are where a run reads and writes.
type Streams struct {
	In       io.Reader
	Out, Err io.Writer
}

// app is what every verb needs.
type app struct {
	Streams
	name   string // of the lab
	output string // "text" or "json"
}

// Run runs the command line and returns the exit code (see `oidclab --help`).
func Run(ctx context.Context, args []string, streams Streams) int {
	a := &app{Streams: streams}
	root := a.root()
	root.SetArgs(args)
	root.SetIn(streams.In)
	root.SetOut(streams.Out)
	root.SetErr(streams.Err)
	return a.report(root.ExecuteContext(ctx))
}

// reported is returned by a verb that has said everything itself.
type reported struct{ kind problem.Kind }

func (r reported) Error() string { return fmt.Sprintf("exit %d", r.kind) }

func (a *app) report(err error) int {
	if err == nil {
		return 0
	}
	var r reported
	if errors.As(err, &r) {
		return int(r.kind)
	}
	p := problem.Of(err)
	fmt.Fprintf(a.Err, "oidclab: %s\n", strings.TrimSuffix(p.What, "\n"))
	if p.Next != "" {
		fmt.Fprintf(a.Err, "oidclab: next: %s\n", p.Next)
	}
	return int(p.Kind)
}

const longHelp = `oidclab is a lab for OIDC federation from Kubernetes on one machine: a cluster
that is an OIDC issuer, the HTTPS front that publishes its keys, relying parties
that behave like the real ones, and a real Vault.

  oidclab up                                   bring up a lab
  oidclab exchange aws                         a token's whole journey to AWS credentials
  oidclab trace                                that journey, step by step
  eval "$(oidclab env --for aws)"              point any AWS SDK or the aws command at the lab
  oidclab run --for aws -- aws sts get-caller-identity
  oidclab token mint --audience vault | oidclab token inspect -
  oidclab token forge --audience oidclab --expired | oidclab token verify -
  oidclab keys rotate                          a safe rotation of the signing key
  oidclab scenarios run                        prove the flow, and break it on purpose
  oidclab down                                 leave nothing behind

Exit codes: 0 ok, 1 internal, 2 usage, 3 not running, 4 not ready, 5 scenarios
failed, 6 token refused, 7 bad configuration, 8 environment missing, 9 conflict,
10 timeout, 130 interrupted.`

func (a *app) root() *cobra.Command {
	var showVersion bool
	root := &cobra.Command{
		Use:           "oidclab",
		Short:         "A lab for OIDC federation from Kubernetes",
		Long:          longHelp,
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return problem.New(problem.Usage, "oidclab --help", "there is no verb %q%s", args[0], suggestion(cmd, args[0]))
			}
			if showVersion {
				a.printVersion(readVersion())
				return nil
			}
			return cmd.Help()
		},
		CompletionOptions: cobra.CompletionOptions{HiddenDefaultCmd: false},
	}
	name := os.Getenv("OIDCLAB_NAME")
	if name == "" {
		name = "oidclab"
	}
	root.PersistentFlags().StringVar(&a.name, "name", name, "name of the lab (or OIDCLAB_NAME)")
	root.Flags().BoolVar(&showVersion, "version", false, "the same as the verb version")
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return problem.New(problem.Usage, cmd.CommandPath()+" --help", "%w", err)
	})
	root.AddCommand(
		a.upCommand(), a.superviseCommand(), a.downCommand(), a.statusCommand(), a.listCommand(), a.envCommand(),
		a.tokenCommand(), a.exchangeCommand(), a.runCommand(), a.probeCommand(), a.manifestsCommand(), a.keysCommand(), a.clusterCommand(), a.clockCommand(), a.scenariosCommand(),
		a.traceCommand(), a.logsCommand(), a.imagesCommand(), a.doctorCommand(), a.versionCommand(),
	)
	root.InitDefaultCompletionCmd()
	if completion, _, err := root.Find([]string{"completion"}); err == nil {
		completion.Args, completion.RunE = cobra.ArbitraryArgs, helpOrUnknown
	}
	return root
}

func suggestion(cmd *cobra.Command, arg string) string {
	cmd.SuggestionsMinimumDistance = 2
	if names := cmd.SuggestionsFor(arg); len(names) > 0 {
		return "; did you mean " + strings.Join(names, ", ") + "?"
	}
	return ""
}

// group makes a command that only holds others.
func group(use, short string, commands ...*cobra.Command) *cobra.Command {
	g := &cobra.Command{Use: use, Short: short, Args: cobra.ArbitraryArgs, RunE: helpOrUnknown}
	g.AddCommand(commands...)
	return g
}

// helpOrUnknown is what a command does that only holds others.
func helpOrUnknown(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return problem.New(problem.Usage, cmd.CommandPath()+" --help", "there is no %q in %q%s", args[0], cmd.CommandPath(), suggestion(cmd, args[0]))
	}
	return cmd.Help()
}

// exactly refuses any other number of arguments as a usage problem.
func exactly(n int) cobra.PositionalArgs { return between(n, n) }

func between(low, high int) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) < low || len(args) > high {
			return problem.New(problem.Usage, cmd.CommandPath()+" --help", "%s takes %s, not %d", cmd.CommandPath(), count(low, high), len(args))
		}
		return nil
	}
}

func count(low, high int) string {
	switch {
	case high == 0:
		return "no arguments"
	case low == high && low == 1:
		return "one argument"
	case low == 0 && high == 1:
		return "at most one argument"
	}
	return fmt.Sprintf("%d to %d arguments", low, high)
}

// outputFlag adds -o with the given values, the first of which is the default.
func (a *app) outputFlag(cmd *cobra.Command, values ...string) {
	cmd.Flags().VarP(&choice{value: &a.output, values: values}, "output", "o", "output format: "+strings.Join(values, ", "))
	// Commands share a.output, so the default is set when one of them runs.
	previous := cmd.PreRunE
	cmd.PreRunE = func(cmd *cobra.Command, args []string) error {
		if !cmd.Flags().Changed("output") {
			a.output = values[0]
		}
		if previous != nil {
			return previous(cmd, args)
		}
		return nil
	}
}

// choice is a flag that takes one of a few values.
type choice struct {
	value  *string
	values []string
}

func (c *choice) String() string { return "" }
func (c *choice) Type() string   { return "format" }
func (c *choice) Set(s string) error {
	for _, v := range c.values {
		if s == v {
			*c.value = s
			return nil
		}
	}
	return fmt.Errorf("%q is not one of %s", s, strings.Join(c.values, ", "))
}

func (a *app) printJSON(value any) error {
	encoder := json.NewEncoder(a.Out)
	encoder.SetIndent("", "  ")
	encoder.SetEscapeHTML(false)
	return encoder.Encode(value)
}

func (a *app) printf(format string, args ...any) {
	fmt.Fprintf(a.Out, format, args...)
}

// state returns the state directory of the lab that --name names.
func (a *app) state() (stateDir, error) { return newStateDir(xdg.StateHome, a.name) }
