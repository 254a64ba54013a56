package cli

import (
	"context"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/oidclab/oidclab/lab"
	"github.com/oidclab/oidclab/lab/control"
	"github.com/oidclab/oidclab/lab/problem"
	"github.com/oidclab/oidclab/lab/workload"
)

// hostFiles are the files of a workload that is a process of this machine. The
// lab keeps its token files fresh.
type hostFiles struct {
	client         *control.Client
	info           lab.Info
	cluster        string
	namespace      string
	serviceAccount string
}

func (f hostFiles) CA() string { return f.info.CAFile }

func (f hostFiles) Token(ctx context.Context, audience string) (string, error) {
	return f.client.TokenFile(ctx, lab.TokenFileRequest{
		Cluster: f.cluster, Namespace: f.namespace, ServiceAccount: f.serviceAccount, Audience: audience,
	})
}

// Config writes a file beside the token file.
func (f hostFiles) Config(ctx context.Context, audience, name string, content []byte) (string, error) {
	token, err := f.Token(ctx, audience)
	if err != nil {
		return "", err
	}
	path := token + "." + name
	if err := os.WriteFile(path+".new", content, 0o600); err != nil {
		return "", environment(err)
	}
	return path, environment(os.Rename(path+".new", path))
}

// Scratch makes a directory beside the token file.
func (f hostFiles) Scratch(ctx context.Context, audience, name string) (string, error) {
	token, err := f.Token(ctx, audience)
	if err != nil {
		return "", err
	}
	path := token + "." + name
	return path, environment(os.MkdirAll(path, 0o700))
}

func (a *app) envCommand() *cobra.Command {
	var party, clusterID string
	cmd := &cobra.Command{
		Use:   "env",
		Short: "Print the environment that points an application at the lab",
		Long: `Print the environment that points an unmodified application at the lab, as a pod
identity webhook would set it. Token files hold a token of the service account
demo/app and are renewed for as long as the lab is up.

--for proxy is for applications that cannot be pointed elsewhere: with it, and with
production settings, the vendors' host names lead to the lab. Every other host is
refused, so that no token leaves the machine; ` + "`oidclab status`" + ` shows which.

--for azure-proxy is for applications that set EnableAzureProxy of azidentity, as on
clusters with a token proxy.`,
		Example: `  eval "$(oidclab env --for aws)" && aws sts get-caller-identity
  eval "$(oidclab env --for aws)" && aws s3 cp s3://demo/greeting -
  eval "$(oidclab env --for gcp)" && gcloud storage cat gs://demo/greeting
  oidclab env --for vault -o dotenv > .env
  oidclab env -o github >> "$GITHUB_ENV"`,
		Args: exactly(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.withLab(cmd.Context(), func(ctx context.Context, client *control.Client, status lab.Status) error {
				cluster, err := findCluster(status.Info, clusterID)
				if err != nil {
					return err
				}
				files := hostFiles{client: client, info: status.Info, cluster: cluster.ID}
				variables, err := workload.Workload{Info: status.Info, Cluster: cluster, Files: files}.Environment(ctx, party)
				if err != nil {
					return err
				}
				return a.showVariables(variables)
			})
		},
	}
	forFlag(cmd, &party)
	clusterFlag(cmd, &clusterID)
	a.outputFlag(cmd, "shell", "dotenv", "github", "json")
	return cmd
}

func forFlag(cmd *cobra.Command, party *string) {
	*party = workload.All
	names := workload.Names()
	cmd.Flags().Var(&choice{value: party, values: names}, "for", "the relying `party`: "+strings.Join(names, ", "))
}

func (a *app) showVariables(variables []workload.Variable) error {
	if a.output == "json" {
		object := map[string]string{}
		for _, v := range variables {
			if v.Value != "" {
				object[v.Name] = v.Value
			}
		}
		return a.printJSON(object)
	}
	for _, v := range variables {
		switch {
		case v.Value == "" && a.output == "shell":
			a.printf("unset %s\n", v.Name)
			continue
		case v.Value == "":
			continue
		}
		switch a.output {
		case "shell":
			a.printf("export %s=%s\n", v.Name, shellQuoted(v.Value))
		case "dotenv":
			a.printf("%s=\"%s\"\n", v.Name, strings.NewReplacer(`\`, `\\`, `"`, `\"`, "$", `\$`).Replace(v.Value))
		case "github":
			a.printf("%s=%s\n", v.Name, v.Value)
		}
	}
	return nil
}

func shellQuoted(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

// withLab calls use with a client of the lab, which must be running, and its status.
func (a *app) withLab(ctx context.Context, use func(context.Context, *control.Client, lab.Status) error) error {
	dir, err := a.state()
	if err != nil {
		return err
	}
	client, err := dir.client()
	if err != nil {
		return err
	}
	defer client.Close()
	status, err := client.Status(ctx)
	if err != nil {
		return err
	}
	return use(ctx, client, status)
}

func clusterFlag(cmd *cobra.Command, id *string) {
	cmd.Flags().StringVar(id, "cluster", "c1", "id of the cluster")
}

func findCluster(info lab.Info, id string) (lab.ClusterInfo, error) {
	for _, c := range info.Clusters {
		if c.ID == id {
			return c, nil
		}
	}
	return lab.ClusterInfo{}, problem.New(problem.Usage, "oidclab status", "lab %s has no cluster %q", info.Name, id)
}

// plural returns "1 key", "2 keys".
func plural(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}
