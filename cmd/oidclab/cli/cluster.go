package cli

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/oidclab/oidclab/lab"
	"github.com/oidclab/oidclab/lab/control"
	"github.com/oidclab/oidclab/lab/problem"
)

func (a *app) clusterCommand() *cobra.Command {
	return group("cluster", "Change a running cluster, as its owner would", a.clusterIssuerCommand())
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
