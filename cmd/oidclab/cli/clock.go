package cli

import (
	"context"
	"time"

	"github.com/spf13/cobra"

	"github.com/oidclab/oidclab/lab"
	"github.com/oidclab/oidclab/lab/clock"
	"github.com/oidclab/oidclab/lab/control"
	"github.com/oidclab/oidclab/lab/problem"
)

// moveClock is an operation on the lab clock.
type moveClock func(context.Context, *control.Client) (clock.State, error)

func (a *app) clockCommand() *cobra.Command {
	operation := func(use, short string, args cobra.PositionalArgs, parse func(args []string) (moveClock, error)) *cobra.Command {
		cmd := &cobra.Command{
			Use: use, Short: short, Args: args,
			RunE: func(cmd *cobra.Command, args []string) error {
				do, err := parse(args)
				if err != nil {
					return err
				}
				return a.withLab(cmd.Context(), func(ctx context.Context, client *control.Client, _ lab.Status) error {
					state, err := do(ctx, client)
					if err != nil {
						return err
					}
					return a.showClock(state)
				})
			},
		}
		a.outputFlag(cmd, "text", "json")
		return cmd
	}
	g := group("clock", "Show or move the time of the token service",
		operation("show", "Show the lab clock", exactly(0), func([]string) (moveClock, error) {
			return func(ctx context.Context, client *control.Client) (clock.State, error) { return client.Clock(ctx) }, nil
		}),
		operation("advance DURATION", "Move the lab clock, for instance by 1h; back with: -- -5m", exactly(1), func(args []string) (moveClock, error) {
			by, err := time.ParseDuration(args[0])
			if err != nil {
				return nil, problem.New(problem.Usage, "oidclab clock advance 90m", "%w", err)
			}
			return func(ctx context.Context, client *control.Client) (clock.State, error) {
				return client.AdvanceClock(ctx, by)
			}, nil
		}),
		operation("freeze [TIME]", "Stop the lab clock, now or at an RFC 3339 time", between(0, 1), func(args []string) (moveClock, error) {
			var at time.Time
			if len(args) == 1 {
				var err error
				if at, err = time.Parse(time.RFC3339, args[0]); err != nil {
					return nil, problem.New(problem.Usage, "oidclab clock freeze 2030-01-02T03:04:05Z", "%w", err)
				}
			}
			return func(ctx context.Context, client *control.Client) (clock.State, error) {
				return client.FreezeClock(ctx, at)
			}, nil
		}),
		operation("reset", "Make the lab clock show the system time", exactly(0), func([]string) (moveClock, error) {
			return func(ctx context.Context, client *control.Client) (clock.State, error) { return client.ResetClock(ctx) }, nil
		}))
	g.Long = `Show or move the lab clock: the time of the token service, its key caches, the
credentials it issues and the Date headers of its answers. Kubernetes and Vault
keep the system's time.`
	return g
}

func (a *app) showClock(state clock.State) error {
	if a.output == "json" {
		return a.printJSON(state)
	}
	running := "running"
	if state.Frozen {
		running = "frozen"
	}
	a.printf("%s  %s, %s from the system's %s\n", state.Now.UTC().Format(time.RFC3339), running, signed(state.Offset), state.System.UTC().Format(time.RFC3339))
	return nil
}
