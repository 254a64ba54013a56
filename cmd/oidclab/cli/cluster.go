package cli

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/oidclab/oidclab/lab"
	"github.com/oidclab/oidclab/lab/control"
	"github.com/oidclab/oidclab/lab/problem"
)

func (a *app) clusterCommand() *cobra.Command {
	return group("cluster", "Change a running cluster, as its owner would", a.clusterIssuerCommand(), a.clusterRecreateCommand())
}

func (a *app) clusterIssuerCommand() *cobra.Command {
	var clusterID string
	cmd := &cobra.Command{
		Use: "issuer public|internal", Short: "Turn a cluster's public issuer on or off",
		Long: `Turn a cluster's public issuer on or off, by a restart of its API server.

With the internal issuer the cluster is as before its owner turned OIDC discovery
on: tokens name an issuer that nobody can reach, and the front publishes nothing
of it. The API server takes tokens of both issuers from then on, so that workloads
with a token of the former one are not locked out. Relying parties trust the
public one only.`,
		Example: `  oidclab cluster issuer internal
  oidclab cluster issuer public`,
		Args: exactly(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if args[0] != "public" && args[0] != "internal" {
				return problem.New(problem.Usage, "oidclab cluster issuer --help", "an issuer is public or internal, not %q", args[0])
			}
			return a.withLab(cmd.Context(), func(ctx context.Context, client *control.Client, _ lab.Status) error {
				issuer, err := client.SetPublicIssuer(ctx, clusterID, args[0] == "public")
				if err != nil {
					return err
				}
				a.printf("%s\n", issuer)
				return nil
			})
		},
	}
	clusterFlag(cmd, &clusterID)
	return cmd
}

func (a *app) clusterRecreateCommand() *cobra.Command {
	var clusterID string
	cmd := &cobra.Command{
		Use: "recreate", Short: "Make a cluster anew under the same issuer URL, with other keys",
		Long: `Make a cluster anew under the same issuer URL: its objects are gone, and one new
key signs. Trust is bound to the URL, so relying parties follow, but each only when
its key cache lets it.`,
		Example: `  oidclab cluster recreate
  oidclab exchange aws; oidclab clock advance 5m; oidclab exchange aws`,
		Args: exactly(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.withLab(cmd.Context(), func(ctx context.Context, client *control.Client, _ lab.Status) error {
				key, err := client.RecreateCluster(ctx, clusterID)
				if err != nil {
					return err
				}
				a.printf("%s is %s\n", key.ID, key.State)
				fmt.Fprintln(a.Err, "oidclab: relying parties that have just fetched the former key refuse the new one; most ask again after: oidclab clock advance 5m")
				return nil
			})
		},
	}
	clusterFlag(cmd, &clusterID)
	return cmd
}
