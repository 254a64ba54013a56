package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"github.com/adrg/xdg"
	"github.com/spf13/cobra"

	"github.com/oidclab/oidclab/lab/problem"
)

// termGrace is how long a supervisor that does not answer gets after SIGTERM.
const termGrace = 10 * time.Second

func (a *app) downCommand() *cobra.Command {
	var all bool
	cmd := &cobra.Command{
		Use:   "down",
		Short: "Take a lab down, and leave nothing behind",
		Example: `  oidclab down
  oidclab down --name ci
  oidclab down --all`,
		Args: exactly(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if !all {
				return a.down(cmd.Context(), a.name)
			}
			names, err := labNames(xdg.StateHome)
			if err != nil {
				return err
			}
			var errs []error
			for _, name := range names {
				errs = append(errs, a.down(cmd.Context(), name))
			}
			if len(names) == 0 {
				fmt.Fprintln(a.Err, "oidclab: no lab is there; nothing to remove")
			}
			return errors.Join(errs...)
		},
	}
	cmd.Flags().BoolVar(&all, "all", false, "every lab of this user")
	return cmd
}

func (a *app) down(ctx context.Context, name string) error {
	dir, err := newStateDir(xdg.StateHome, name)
	if err != nil {
		return err
	}
	if !dir.leftovers() {
		fmt.Fprintf(a.Err, "oidclab: lab %s is not running; nothing to remove\n", name)
		return nil
	}
	if dir.held() {
		if err := stopSupervisor(ctx, dir); err != nil {
			return err
		}
	}
	if !dir.leftovers() {
		fmt.Fprintf(a.Err, "oidclab: lab %s is down\n", name)
		return nil
	}
	lock, err := dir.acquire()
	if err != nil {
		return err
	}
	if err = dir.reap(ctx); err == nil {
		err = dir.remove()
	}
	_ = lock.Close()
	if err != nil {
		return environment(err)
	}
	fmt.Fprintf(a.Err, "oidclab: lab %s was not running; what it left is removed\n", name)
	return nil
}

// stopSupervisor asks the supervisor to end, then tells it, then makes it.
func stopSupervisor(ctx context.Context, dir stateDir) error {
	pid := dir.owner()
	asked := false
	if client, err := dir.client(); err == nil {
		ask, cancel := context.WithTimeout(ctx, 2*time.Second)
		asked = client.Down(ask) == nil
		cancel()
		client.Close()
	}
	wait := func(patience time.Duration) error {
		ctx, cancel := context.WithTimeout(ctx, patience)
		defer cancel()
		return dir.awaitRelease(ctx)
	}
	if asked && wait(downTimeout) == nil {
		return nil
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if pid == 0 {
		return problem.New(problem.NotReady, "oidclab down, once more", "lab %s is held by a process that does not say who it is", dir.name())
	}
	// The lock is held, so its owner is alive and the number is its own.
	for _, signal := range []os.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		process, err := os.FindProcess(pid)
		if err != nil {
			return err
		}
		if err := process.Signal(signal); err != nil && !errors.Is(err, os.ErrProcessDone) {
			return fmt.Errorf("supervisor %d: %w", pid, err)
		}
		if wait(termGrace) == nil {
			return nil
		}
	}
	return problem.New(problem.Timeout, fmt.Sprintf("look at process %d", pid), "the supervisor of lab %s does not end", dir.name())
}
