package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/oidclab/oidclab/lab"
	"github.com/oidclab/oidclab/lab/control"
	"github.com/oidclab/oidclab/lab/problem"
	"github.com/oidclab/oidclab/scenarios"
)

func (a *app) scenariosCommand() *cobra.Command {
	return group("scenarios", "List and run scenarios: prove the flow, and break it on purpose", a.scenariosListCommand(), a.scenariosRunCommand())
}

func (a *app) scenariosListCommand() *cobra.Command {
	var matrix bool
	cmd := &cobra.Command{
		Use: "list", Short: "List the scenarios with their labels and needs", Args: exactly(0),
		Example: `  oidclab scenarios list
  oidclab scenarios list --matrix                   what every relying party says to every bad token
  oidclab scenarios list --matrix | grep azure`,
		RunE: func(*cobra.Command, []string) error {
			if matrix {
				return a.showMatrix(scenarios.Matrix())
			}
			type row struct {
				Name   string   `json:"name"`
				Labels []string `json:"labels"`
				Needs  []string `json:"needs,omitempty"`
			}
			var rows []row
			for _, s := range scenarios.All() {
				r := row{Name: s.Name, Labels: s.Labels}
				for _, need := range s.Needs {
					r.Needs = append(r.Needs, need.Name)
				}
				rows = append(rows, r)
			}
			if a.output == "json" {
				return a.printJSON(rows)
			}
			w := tabwriter.NewWriter(a.Out, 0, 0, 2, ' ', 0)
			fmt.Fprintln(w, "NAME\tLABELS\tNEEDS")
			for _, r := range rows {
				fmt.Fprintf(w, "%s\t%s\t%s\n", r.Name, strings.Join(r.Labels, ","), strings.Join(r.Needs, ","))
			}
			return w.Flush()
		},
	}
	cmd.Flags().BoolVar(&matrix, "matrix", false, "print the matrix of mutations of a token and relying parties, with the reason and the answer of each")
	a.outputFlag(cmd, "text", "json")
	return cmd
}

// showMatrix prints one cell a line.
func (a *app) showMatrix(cells []scenarios.Cell) error {
	if a.output == "json" {
		return a.printJSON(cells)
	}
	w := tabwriter.NewWriter(a.Out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "MUTATION\tPARTY\tREASON\tANSWER")
	for _, c := range cells {
		reason, answer := c.Reason, strings.TrimSpace(fmt.Sprintf("%d %s", c.Status, c.Code))
		switch {
		case c.Accepted:
			reason, answer = "-", "accepted"
		case reason == "":
			reason = "-" // not the lab's own, which does not say
		}
		if c.Text != "" {
			answer += fmt.Sprintf(" %q", c.Text)
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", c.Mutation, c.Party, reason, answer)
	}
	return w.Flush()
}

func (a *app) scenariosRunCommand() *cobra.Command {
	var options scenarios.Options
	cmd := &cobra.Command{
		Use:   "run",
		Short: "Run scenarios against a lab that is up",
		Long: `Run scenarios, one after the other, against a lab that is up. They move the lab
clock and rotate keys, and put the clock right when they end. A failed scenario
prints the journeys of its tokens. Exits 5 if one failed.`,
		Example: `  oidclab scenarios run
  oidclab scenarios run --label-filter 'aws && !rotation'
  oidclab scenarios run --focus 'alg none' --junit report.xml
  oidclab scenarios run --slow --label-filter slow     those that take minutes`,
		Args: exactly(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.withLab(cmd.Context(), func(ctx context.Context, client *control.Client, _ lab.Status) error {
				if a.output == "text" {
					options.Each = a.showResult
				}
				summary, err := scenarios.Run(ctx, client, options)
				if err != nil && !errors.Is(err, context.Canceled) {
					return err
				}
				if a.output == "json" {
					if err := a.printJSON(summary); err != nil {
						return err
					}
				} else {
					a.printf("\n%d passed, %d failed, %d skipped\n", summary.Passed, summary.Failed, summary.Skipped)
					fmt.Fprintf(a.Err, "oidclab: %s in %.1f s\n", plural(len(summary.Results), "scenario"), summary.Seconds)
				}
				if err == nil && summary.Failed > 0 {
					return problem.New(problem.ScenariosFailed, "oidclab trace JOURNEY, of those above", "%s failed", plural(summary.Failed, "scenario"))
				}
				return err
			})
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&options.LabelFilter, "label-filter", "", "which scenarios, by label, such as 'aws && !rotation'")
	flags.StringVar(&options.Focus, "focus", "", "which scenarios, by a regular expression on their names")
	cmd.Flags().BoolVar(&options.Slow, "slow", false, "run those that take minutes too (label slow)")
	flags.StringVar(&options.JUnit, "junit", "", "write a JUnit report to this file")
	flags.StringVar(&options.JSON, "json", "", "write Ginkgo's JSON report to this file")
	a.outputFlag(cmd, "text", "json")
	return cmd
}

func (a *app) showResult(r scenarios.Result) {
	switch {
	case r.State == "passed":
		a.printf(" ✓ %-75s %6.2fs\n", r.Name, r.Seconds)
	case !r.Failed():
		a.printf(" - %s: skipped, %s\n", r.Name, firstLine(r.Reason))
	default:
		a.printf(" ✗ %-75s %6.2fs  %s\n", r.Name, r.Seconds, strings.ToUpper(r.State))
		a.printf("     %s\n     at %s\n", strings.ReplaceAll(r.Reason, "\n", "\n     "), r.Location)
		for _, journey := range r.Journeys {
			show := newJourneyPrinter(a.Out, false)
			for _, e := range journey {
				_ = show.event(e)
			}
		}
	}
}
