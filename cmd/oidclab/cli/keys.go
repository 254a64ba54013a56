package cli

import (
	"context"
	"fmt"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/oidclab/oidclab/lab"
	"github.com/oidclab/oidclab/lab/control"
	"github.com/oidclab/oidclab/lab/problem"
)

func (a *app) keysCommand() *cobra.Command {
	return group("keys", "List and rotate the service-account signing keys", a.keysListCommand(), a.keysRotateCommand())
}

func (a *app) keysListCommand() *cobra.Command {
	var clusterID string
	cmd := &cobra.Command{
		Use: "list", Short: "List a cluster's keys: kid, state, and since when", Args: exactly(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.withLab(cmd.Context(), func(ctx context.Context, client *control.Client, status lab.Status) error {
				infos, err := client.Keys(ctx, clusterID)
				if err != nil {
					return err
				}
				if a.output == "json" {
					return a.printJSON(infos)
				}
				w := tabwriter.NewWriter(a.Out, 0, 0, 2, ' ', 0)
				fmt.Fprintln(w, "KID\tSTATE\tSINCE\tALG\tSIGNER\tLAST TOKEN EXPIRES")
				for _, k := range infos {
					fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", k.ID, k.State, k.Since.UTC().Format(time.RFC3339), k.Algorithm, k.Signer, lastExpiry(k))
				}
				if err := w.Flush(); err != nil {
					return err
				}
				if r, ok := status.Rotations[clusterID]; ok {
					a.printf("\n")
					a.showRotation(r)
				}
				return nil
			})
		},
	}
	clusterFlag(cmd, &clusterID)
	a.outputFlag(cmd, "text", "json")
	return cmd
}

func lastExpiry(k lab.KeyInfo) string {
	switch at := k.LastExpiry.UTC().Format(time.RFC3339); {
	case k.LastExpiry.IsZero():
		return "-"
	case k.Signer == lab.Static:
		return "at the latest " + at
	default:
		return at
	}
}

func (a *app) keysRotateCommand() *cobra.Command {
	var clusterID, phase, kid, signer string
	var advance, abandon bool
	cmd := &cobra.Command{
		Use:   "rotate",
		Short: "Rotate a cluster's signing key, safely or phase by phase",
		Long: `Rotate a cluster's signing key: without a restart if the lab signs (up --signer
external, the default), and with a restart of the API server at each change of
keys if that signs with key files (up --signer static).

With --phase all, the default, this is the safe plan: publish a new key now; let
it sign once every relying party's cache must know it; remove the old key once
the last token that it signed has expired. The lab carries out the later phases
when their time has come, on the lab clock; ` + "`keys list`" + ` shows the plan.
Nobody sees what an API server signs with a key file: such a key is removed only
when the longest token that there can be has expired, after 24 h.
--advance-clock moves the lab clock to where the new key may sign.

The phases can be taken one by one, at the wrong time too, to see what breaks:
  publish   a new key appears in the key set
  sign      it signs; the key that signed until now is retired, and stays published
  retire    the same as sign: one key always signs
  remove    the retired key leaves the key set`,
		Example: `  oidclab keys rotate
  oidclab keys rotate --advance-clock
  oidclab keys rotate --phase publish && oidclab keys rotate --phase sign`,
		Args: exactly(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if (advance || abandon) && phase != "all" {
				return problem.New(problem.Usage, "oidclab keys rotate --help", "--advance-clock and --abandon go with --phase all")
			}
			return a.withLab(cmd.Context(), func(ctx context.Context, client *control.Client, status lab.Status) error {
				if signer != "" && signer != status.Signer {
					return problem.New(problem.Conflict, "oidclab down && oidclab up --signer "+signer, "the signer of this lab is %s, which its API servers were started with", status.Signer)
				}
				if phase == "all" {
					begin := client.StartRotation
					if abandon {
						begin = func(ctx context.Context, id string, _ bool) (lab.Rotation, error) {
							return client.AbandonRotation(ctx, id)
						}
					}
					rotation, err := begin(ctx, clusterID, advance)
					if err != nil {
						return err
					}
					if a.output == "json" {
						return a.printJSON(rotation)
					}
					a.showRotation(rotation)
					return nil
				}
				key, err := takePhase(ctx, client, phase, clusterID, kid)
				if err != nil {
					return err
				}
				if a.output == "json" {
					return a.printJSON(key)
				}
				a.printf("%s is %s\n", key.ID, key.State)
				return nil
			})
		},
	}
	clusterFlag(cmd, &clusterID)
	cmd.Flags().StringVar(&phase, "phase", "all", "publish, sign, retire, remove, or all")
	cmd.Flags().StringVar(&kid, "kid", "", "the key; empty means the newest that the phase applies to")
	cmd.Flags().Var(&choice{value: &signer, values: []string{lab.External, lab.Static}}, "signer", "external or static: rotate only if the lab was brought up with this `signer`")
	cmd.Flags().BoolVar(&advance, "advance-clock", false, "move the lab clock to where the new key may sign")
	cmd.Flags().BoolVar(&abandon, "abandon", false, "end the safe plan where it stands; the keys stay as they are")
	a.outputFlag(cmd, "text", "json")
	return cmd
}

func takePhase(ctx context.Context, client *control.Client, phase, clusterID, kid string) (lab.KeyInfo, error) {
	switch phase {
	case "publish":
		return client.PublishKey(ctx, clusterID)
	case "sign", "retire":
		return client.SignWithKey(ctx, clusterID, kid)
	case "remove":
		return client.RemoveKey(ctx, clusterID, kid)
	}
	return lab.KeyInfo{}, problem.New(problem.Usage, "oidclab keys rotate --help", "there is no phase %q", phase)
}

func (a *app) showRotation(r lab.Rotation) {
	mark := func(done bool) string {
		if done {
			return "✓"
		}
		return "·"
	}
	signs := r.Phase == "signing" || r.Phase == "done"
	a.printf("rotation from %s to %s: %s\n", r.OldKey, r.NewKey, r.Phase)
	a.printf(" ✓ publish  the new key is in the key set\n")
	a.printf(" %s sign     at %s lab time: %s\n", mark(signs), r.SignAt.UTC().Format(time.RFC3339), r.SignWhy)
	switch {
	case !signs:
		a.printf(" · remove   the old key, when no token that it signed can be alive\n")
	case r.RemoveAt.IsZero():
		a.printf(" %s remove   the old key: %s\n", mark(r.Phase == "done"), r.RemoveWhy)
	default:
		a.printf(" %s remove   the old key, at %s, lab and system time: %s\n", mark(r.Phase == "done"), r.RemoveAt.UTC().Format(time.RFC3339), r.RemoveWhy)
	}
	if r.Error != "" {
		a.printf(" ✗ %s\n", r.Error)
	}
}
