package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os/exec"
	"path/filepath"
	"syscall"
	"text/tabwriter"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/oidclab/oidclab/lab"
	"github.com/oidclab/oidclab/lab/cluster/kind"
	"github.com/oidclab/oidclab/lab/problem"
	"github.com/oidclab/oidclab/lab/vault"
)

// finding is what doctor found of something that a lab needs.
type finding struct {
	Needs string `json:"neededBy"` // lab, the kind engine, or vault, without which a lab is of use too
	kind.Requirement
}

func (a *app) doctorCommand() *cobra.Command {
	var engine, image string
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Show what labs need of this machine, and what is missing",
		Long: `Show what labs need of this machine, what is there, and what to do about what is
missing. Exits 8 if the engine that was asked for can't work; auto can if any can.`,
		Example: `  oidclab doctor
  oidclab doctor --engine kind -o json`,
		Args: exactly(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := checkEngine(cmd, engine); err != nil {
				return err
			}
			dir, err := a.state()
			if err != nil {
				return err
			}
			findings := examine(cmd.Context(), dir, nodeImages(image))
			if err := cmd.Context().Err(); err != nil {
				return err
			}
			if a.output == "json" {
				err = a.printJSON(findings)
			} else {
				err = a.showFindings(findings)
			}
			for _, f := range findings {
				if !f.OK && (f.Needs == "lab" || f.Needs == engine) {
					return errors.Join(err, reported{problem.EnvironmentMissing})
				}
			}
			return err
		},
	}
	a.engineFlags(cmd, &engine, &image)
	a.outputFlag(cmd, "text", "json")
	return cmd
}

// examine looks at what a lab of one cluster needs.
func examine(ctx context.Context, dir stateDir, images []string) []finding {
	findings := []finding{
		{"lab", checked("state directory", string(dir), dir.usable())},
		{"lab", checked("ports", "free ones on 127.0.0.1", canListen())},
	}
	program, err := vault.Find(exec.LookPath)
	findings = append(findings, finding{"vault", checked("vault program", program, err)})
	machine := kind.Look(ctx, 1, images...)
	machine.Probe(ctx)
	for _, r := range machine.Requirements {
		findings = append(findings, finding{lab.Kind, r})
	}
	return findings
}

// checked makes a requirement of the outcome of a check.
func checked(name, found string, err error) kind.Requirement {
	if err == nil {
		return kind.Requirement{Name: name, OK: true, Found: found}
	}
	return kind.Requirement{Name: name, Found: err.Error(), Next: problem.Of(err).Next}
}

// usable returns nil if a lab could keep its state in the directory, which need
// not exist.
func (d stateDir) usable() error {
	if err := lab.CheckDir(string(d)); err != nil {
		return err
	}
	existing := string(d)
	for {
		err := unix.Access(existing, unix.W_OK|unix.X_OK)
		if err == nil {
			return stateDir(existing).checkRoom(1)
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return environment(&fs.PathError{Op: "write to", Path: existing, Err: err.(syscall.Errno)})
		}
		existing = filepath.Dir(existing)
	}
}

func canListen() error {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	return listener.Close()
}

func (a *app) showFindings(findings []finding) error {
	w := tabwriter.NewWriter(a.Out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "STATE\tNEEDED BY\tWHAT\tFOUND")
	for _, f := range findings {
		state := "ok"
		if !f.OK {
			state = "missing"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", state, f.Needs, f.Name, firstLine(f.Found))
		if f.Next != "" {
			fmt.Fprintf(w, "\t\t\tnext: %s\n", f.Next)
		}
	}
	return w.Flush()
}
