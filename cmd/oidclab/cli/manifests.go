package cli

import (
	"context"
	"strings"

	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/yaml"

	"github.com/oidclab/oidclab/fixtures"
	"github.com/oidclab/oidclab/lab"
	"github.com/oidclab/oidclab/lab/control"
	"github.com/oidclab/oidclab/lab/workload"
)

func (a *app) manifestsCommand() *cobra.Command {
	g := group("manifests", "Print a workload for kubectl whose pod exchanges its token")
	for kind, short := range map[string]string{
		"deployment": "A pod that exchanges its token every 30 seconds",
		"job":        "A pod that exchanges its token once",
		"cronjob":    "A pod each minute that exchanges its token once",
	} {
		g.AddCommand(a.manifestCommand(kind, short))
	}
	g.Long = `Print a workload as YAML for kubectl: the ConfigMaps with the lab's root certificate
and the environment of a relying party's SDK, and a Deployment, Job or CronJob whose pod
mounts a projected token and runs ` + "`oidclab probe`" + `. The same files, with nothing
filled in, are in fixtures/manifests of the source.

The pod for oci is one of OKE: its token is for the API server, and its
KUBERNETES_SERVICE_HOST is the lab's, which gives it its identity at port 12250.`
	g.Example = `  export KUBECONFIG=$(oidclab env --for kubernetes -o json | jq -r .KUBECONFIG)
  oidclab manifests job --for aws | kubectl apply -f -
  kubectl logs -n demo job/probe-aws
  oidclab manifests deployment --for vault | kubectl apply -f -
  oidclab manifests job --for azure --serviceaccount other | kubectl apply -f -     whom nobody trusts`
	return g
}

func (a *app) manifestCommand(kind, short string) *cobra.Command {
	manifest := workload.Manifest{Kind: kind, Party: "generic"}
	var clusterID string
	cmd := &cobra.Command{
		Use: kind, Short: short, Args: exactly(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.withLab(cmd.Context(), func(ctx context.Context, _ *control.Client, status lab.Status) error {
				cluster, err := findCluster(status.Info, clusterID)
				if err != nil {
					return err
				}
				objects, err := manifest.Objects(ctx, status.Info, cluster)
				if err != nil {
					return err
				}
				return a.printYAML(objects)
			})
		},
	}
	names := workload.Parties()
	cmd.Flags().Var(&choice{value: &manifest.Party, values: names}, "for", "the relying `party`: "+strings.Join(names, ", "))
	cmd.Flags().StringVarP(&manifest.Namespace, "namespace", "n", fixtures.Namespace, "namespace of the workload, which must exist")
	cmd.Flags().StringVar(&manifest.ServiceAccount, "serviceaccount", fixtures.ServiceAccount, "name of the service account")
	clusterFlag(cmd, &clusterID)
	return cmd
}

// printYAML prints objects as kubectl reads them.
func (a *app) printYAML(objects []runtime.Object) error {
	for _, object := range objects {
		fields, err := runtime.DefaultUnstructuredConverter.ToUnstructured(object)
		if err != nil {
			return err
		}
		delete(fields, "status") // empty
		document, err := yaml.Marshal(fields)
		if err != nil {
			return err
		}
		a.printf("---\n%s", document)
	}
	return nil
}
