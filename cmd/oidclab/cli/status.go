package cli

import (
	"context"
	"fmt"
	"os"
	"text/tabwriter"
	"time"

	"github.com/adrg/xdg"
	"github.com/spf13/cobra"

	"github.com/oidclab/oidclab/lab"
	"github.com/oidclab/oidclab/lab/problem"
)

// probeTimeout bounds a look at a lab.
const probeTimeout = 10 * time.Second

func (a *app) statusCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show whether a lab is ready, and where everything is",
		Long:  "Show whether a lab is ready, and where everything is.\nExits 0 if it is ready, 3 if it is not running, 4 if it is degraded.",
		Args:  exactly(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			dir, err := a.state()
			if err != nil {
				return err
			}
			status, err := runningStatus(cmd.Context(), dir)
			if err != nil {
				return err
			}
			if a.output == "json" {
				err = a.printJSON(status)
			} else {
				err = a.showStatus(status)
			}
			if err == nil && !status.Ready {
				return reported{problem.NotReady}
			}
			return err
		},
	}
	a.outputFlag(cmd, "text", "json")
	return cmd
}

func (a *app) showStatus(status lab.Status) error {
	state := "ready"
	if !status.Ready {
		state = "degraded"
	}
	a.printf("lab %s is %s; up for %s, supervisor %d\n", status.Name, state, rounded(time.Since(status.Since)), status.PID)
	for _, p := range status.Problems {
		a.printf("  problem: %s\n", p)
	}
	if status.Clock.Offset.Abs() > time.Second || status.Clock.Frozen {
		a.printf("  clock: %s (%s of the system's; frozen: %t)\n", status.Clock.Now.Format(time.RFC3339), signed(status.Clock.Offset), status.Clock.Frozen)
	}
	a.printf("\n")
	if err := a.showInfo(status.Info); err != nil {
		return err
	}
	a.printf("\n")
	w := tabwriter.NewWriter(a.Out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "COMPONENT\tSTATE\tPID\tRESTARTS\tLAST EXIT")
	for _, c := range status.Components {
		fmt.Fprintf(w, "%s\t%s\t%d\t%d\t%s\n", c.Name, c.State, c.PID, c.Restarts, c.LastExit)
	}
	fmt.Fprintln(w, "\nKEY CACHE\tPOLICY\tISSUER\tKEYS\tAGE\tFETCHES")
	for _, c := range status.Caches {
		age := "empty"
		if !c.State.FetchedAt.IsZero() {
			age = rounded(status.Clock.Now.Sub(c.State.FetchedAt))
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%d\t%s\t%d\n", c.Party, c.Policy, c.State.Issuer, len(c.State.Kids), age, c.State.Fetches)
	}
	if len(status.Egress) > 0 {
		fmt.Fprintln(w, "\nREFUSED BY THE PROXY\tWHY\tTIMES\tLAST")
		for _, r := range status.Egress {
			fmt.Fprintf(w, "%s\t%s\t%d\t%s\n", r.Target, r.Reason, r.Count, r.Last.UTC().Format(time.RFC3339))
		}
	}
	return w.Flush()
}

func signed(d time.Duration) string {
	if d >= 0 {
		return "+" + rounded(d)
	}
	return rounded(d)
}

func (a *app) listCommand() *cobra.Command {
	type row struct {
		Name   string `json:"name"`
		State  string `json:"state"` // ready, degraded, busy (being started or stopped), dead
		PID    int    `json:"pid,omitempty"`
		Engine string `json:"engine,omitempty"`
		Front  string `json:"front,omitempty"`
	}
	look := func(ctx context.Context, dir stateDir) row {
		r := row{Name: dir.name(), State: "dead"}
		if !dir.held() {
			return r
		}
		r.PID, r.State = dir.owner(), "busy"
		status, err := runningStatus(ctx, dir)
		if err != nil {
			return r
		}
		r.Engine, r.Front, r.State = status.Engine, status.Front, "degraded"
		if status.Ready {
			r.State = "ready"
		}
		return r
	}
	cmd := &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List the labs of this user", Args: exactly(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			names, err := labNames(xdg.StateHome)
			if err != nil {
				return err
			}
			rows := []row{}
			for _, name := range names {
				dir, err := newStateDir(xdg.StateHome, name)
				if err != nil {
					return err
				}
				rows = append(rows, look(cmd.Context(), dir))
			}
			if a.output == "json" {
				return a.printJSON(rows)
			}
			if len(rows) == 0 {
				fmt.Fprintln(a.Err, "oidclab: no lab is there; next: oidclab up")
				return nil
			}
			w := tabwriter.NewWriter(a.Out, 0, 0, 2, ' ', 0)
			fmt.Fprintln(w, "NAME\tSTATE\tPID\tENGINE\tFRONT")
			for _, r := range rows {
				fmt.Fprintf(w, "%s\t%s\t%d\t%s\t%s\n", r.Name, r.State, r.PID, r.Engine, r.Front)
			}
			return w.Flush()
		},
	}
	a.outputFlag(cmd, "text", "json")
	return cmd
}

// labNames returns the names of all labs that have a state directory, sorted.
func labNames(home string) ([]string, error) {
	entries, err := os.ReadDir(stateBase(home))
	if os.IsNotExist(err) {
		return nil, nil
	}
	if err != nil {
		return nil, environment(err)
	}
	var names []string
	for _, e := range entries {
		if e.IsDir() && namePattern.MatchString(e.Name()) {
			names = append(names, e.Name())
		}
	}
	return names, nil
}
