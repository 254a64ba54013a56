package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/oidclab/oidclab/lab"
	"github.com/oidclab/oidclab/lab/control"
	"github.com/oidclab/oidclab/lab/problem"
	"github.com/oidclab/oidclab/lab/trace"
)

func (a *app) traceCommand() *cobra.Command {
	var follow, all bool
	cmd := &cobra.Command{
		Use:   "trace [JOURNEY]",
		Short: "Show tokens' journeys through the lab, step by step",
		Long: `Show a token's journey: who signed it, which keys were fetched or cached, each
check with what was wanted and found, what was granted and how it was used.
A journey is named by a hash of the token, which ` + "`token inspect`" + ` and every error
show. Without one, the last journey is shown. Tokens and secrets are never
recorded.`,
		Example: `  oidclab exchange aws && oidclab trace
  oidclab trace 3f5a1c0be2d4
  oidclab trace --follow -o json`,
		Args: between(0, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withLab(cmd.Context(), func(ctx context.Context, client *control.Client, _ lab.Status) error {
				journey := ""
				if len(args) == 1 {
					journey = args[0]
				} else if !all && !follow {
					last, err := lastJourney(ctx, client)
					if err != nil {
						return err
					}
					journey = last
				}
				seen := 0
				show := newJourneyPrinter(a.Out, a.output == "json")
				err := client.Trace(ctx, journey, follow, func(e trace.Event) error {
					seen++
					return show.event(e)
				})
				if err == nil && seen == 0 && !follow {
					return problem.New(problem.Usage, "oidclab trace --all", "no event of journey %q is kept", journey)
				}
				return err
			})
		},
	}
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on until interrupted")
	cmd.Flags().BoolVar(&all, "all", false, "every journey that is kept")
	a.outputFlag(cmd, "text", "json")
	return cmd
}

// lastJourney returns the journey of the newest event.
func lastJourney(ctx context.Context, client *control.Client) (string, error) {
	last := ""
	err := client.Trace(ctx, "", false, func(e trace.Event) error {
		if e.Journey != "" {
			last = e.Journey
		}
		return nil
	})
	if err == nil && last == "" {
		return "", problem.New(problem.Usage, "oidclab exchange generic", "no token has made a journey yet")
	}
	return last, err
}

// journeyPrinter prints events as text, with a heading for each journey, or as JSON lines.
type journeyPrinter struct {
	out     io.Writer
	json    bool
	journey string
}

func newJourneyPrinter(out io.Writer, json bool) *journeyPrinter {
	return &journeyPrinter{out: out, json: json}
}

func (p *journeyPrinter) event(e trace.Event) error {
	if p.json {
		return json.NewEncoder(p.out).Encode(e)
	}
	if e.Journey != p.journey {
		p.journey = e.Journey
		heading := "journey " + e.Journey
		if e.Journey == "" {
			heading = "of no token"
		}
		fmt.Fprintln(p.out, heading)
	}
	mark := map[trace.Outcome]string{trace.OK: "✓", trace.Refused: "✗", trace.Failed: "!"}[e.Outcome]
	line := fmt.Sprintf("  %s %s %-9s %-9s %-11s", e.Time.Local().Format("15:04:05.000"), mark, e.Station, e.Step, e.Name)
	if e.Reason != "" {
		line += " " + e.Reason + ":"
	}
	switch {
	case e.Outcome == trace.OK && e.Got != "":
		line += " " + e.Got
	case e.Want != "" && e.Got != "":
		line += " wanted " + e.Want + ", found " + e.Got
	default:
		line += " " + e.Want + e.Got
	}
	if e.Detail != "" {
		line += " (" + e.Detail + ")"
	}
	_, err := fmt.Fprintln(p.out, strings.TrimRight(line, " "))
	return err
}
