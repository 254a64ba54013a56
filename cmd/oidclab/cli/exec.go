package cli

import (
	"context"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/oidclab/oidclab/fixtures"
	"github.com/oidclab/oidclab/lab"
	"github.com/oidclab/oidclab/lab/control"
	"github.com/oidclab/oidclab/lab/problem"
	"github.com/oidclab/oidclab/lab/workload"
)

func (a *app) runCommand() *cobra.Command {
	var party string
	var files hostFiles
	cmd := &cobra.Command{
		Use:   "run [flags] -- COMMAND [ARGUMENTS]",
		Short: "Run a command as a service account, with its token file and environment",
		Long: `Run a command on this machine as if it were the container of a pod: with the
environment that a pod identity webhook would set, and a token file of the service
account that the lab renews at 80 % of its life. It is a process of this machine,
not a pod: it shares files, network and user with it, and its token is bound to
the service account alone. What is bound to a pod, a pod has, on either engine:
see oidclab manifests.`,
		Example: `  oidclab run --for aws -- aws sts get-caller-identity
  oidclab run --serviceaccount other --for aws -- ./my-program    whom nobody trusts`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return problem.New(problem.Usage, cmd.CommandPath()+" --help", "there is no command to run")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			program, err := exec.LookPath(args[0])
			if err != nil {
				return problem.New(problem.EnvironmentMissing, "", "%w", err)
			}
			return a.withLab(cmd.Context(), func(ctx context.Context, client *control.Client, status lab.Status) error {
				cluster, err := findCluster(status.Info, files.cluster)
				if err != nil {
					return err
				}
				files.client, files.info = client, status.Info
				variables, err := workload.Workload{Info: status.Info, Cluster: cluster, Files: files}.Environment(ctx, party)
				if err != nil {
					return err
				}
				// The command takes the place of this process, with its streams, signals and exit code.
				return syscall.Exec(program, args, overridden(os.Environ(), variables))
			})
		},
	}
	forFlag(cmd, &party)
	cmd.Flags().StringVarP(&files.namespace, "namespace", "n", fixtures.Namespace, "namespace of the service account")
	cmd.Flags().StringVar(&files.serviceAccount, "serviceaccount", fixtures.ServiceAccount, "name of the service account")
	clusterFlag(cmd, &files.cluster)
	cmd.Flags().SetInterspersed(false)
	return cmd
}

// overridden returns environ with the variables set, or taken out where they
// have no value.
func overridden(environ []string, variables []workload.Variable) []string {
	result := slices.DeleteFunc(slices.Clone(environ), func(entry string) bool {
		name, _, _ := strings.Cut(entry, "=")
		return slices.ContainsFunc(variables, func(v workload.Variable) bool { return v.Name == name })
	})
	for _, v := range variables {
		if v.Value != "" {
			result = append(result, v.Name+"="+v.Value)
		}
	}
	return result
}
