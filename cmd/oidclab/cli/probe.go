package cli

import (
	"context"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/oidclab/oidclab/lab/probe"
	"github.com/oidclab/oidclab/lab/problem"
)

// sdkTimeout bounds one probe: longer than the SDKs' own retries.
const sdkTimeout = 30 * time.Second

func (a *app) probeCommand() *cobra.Command {
	var config probe.Config
	var watch bool
	var interval time.Duration
	names := strings.Join(probe.Parties(), "|")
	cmd := &cobra.Command{
		Use:   "probe " + names,
		Short: "Be the workload: exchange a token with the vendor's SDK and use the credentials",
		Long: `Do what an application in a pod does: find settings and token where the vendor's
webhook or documents put them, exchange the token with the vendor's unmodified SDK
in its default configuration, use the credentials, and print one line of JSON: who
the workload is to the relying party, what it read, and what its token says. Never
the token, never the credentials. It needs no lab on this machine.

Where the token is: AWS_WEB_IDENTITY_TOKEN_FILE; the credential_source of
GOOGLE_APPLICATION_CREDENTIALS; AZURE_FEDERATED_TOKEN_FILE; STACKIT_FEDERATED_TOKEN_FILE;
OIDCLAB_VAULT_TOKEN_FILE, with VAULT_ADDR and VAULT_CACERT; OIDCLAB_TOKEN_FILE.
oci, which is OKE's workload identity at port 12250 of KUBERNETES_SERVICE_HOST, and
kubernetes, which is the cluster of the pod, use the token that every pod has unless
automountServiceAccountToken is false; oci another one if OIDCLAB_OCI_POD_TOKEN_FILE
names it.

Exit codes: 0 accepted; 6 not accepted, with the SDK's error in the line.`,
		Example: `  oidclab run --for aws -- oidclab probe aws
  oidclab run --for stackit -- sh -c 'oidclab probe stackit --watch --interval 1m'
  oidclab manifests job --for vault | kubectl apply -f -        the same in a pod
  oidclab run --for proxy -- oidclab probe gcp --resource 'https://storage.googleapis.com/storage/v1/b/demo/o/greeting?alt=media'`,
		Args: func(cmd *cobra.Command, args []string) error {
			if err := exactly(1)(cmd, args); err != nil {
				return err
			}
			if !slices.Contains(probe.Parties(), args[0]) {
				return problem.New(problem.Usage, cmd.CommandPath()+" --help", "there is no relying party %q to probe, but %s", args[0], names)
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if interval <= 0 {
				return problem.New(problem.Usage, cmd.CommandPath()+" --help", "--interval %s is not a positive duration", interval)
			}
			config.Getenv = os.Getenv
			if config.Resource == "" && args[0] == "generic" {
				config.Resource = os.Getenv("OIDCLAB_RESOURCE")
			}
			if watch {
				return a.watchProbe(cmd.Context(), args[0], config, interval)
			}
			result, err := a.probeOnce(cmd.Context(), args[0], config)
			if err == nil && result.Error != "" {
				return reported{problem.Refused}
			}
			return err
		},
	}
	cmd.Flags().StringVar(&config.Resource, "resource", "", "what to read: an https URL (an object's for oci), s3://BUCKET/KEY for aws, an API path for vault; generic's default is OIDCLAB_RESOURCE")
	cmd.Flags().BoolVar(&config.DisableInstanceDiscovery, "disable-instance-discovery", false, "azure: do not ask Microsoft about another authority than its own")
	cmd.Flags().BoolVar(&watch, "watch", false, "go on until stopped, and read the token file anew each time")
	cmd.Flags().DurationVar(&interval, "interval", 30*time.Second, "how long --watch waits")
	return cmd
}

func (a *app) probeOnce(ctx context.Context, party string, config probe.Config) (probe.Result, error) {
	ctx, cancel := context.WithTimeout(ctx, sdkTimeout)
	defer cancel()
	result := probe.Run(ctx, party, config)
	line, err := result.Line()
	if err == nil {
		_, err = a.Out.Write(line)
	}
	return result, err
}

// watchProbe probes until ctx ends, which is how it is stopped.
func (a *app) watchProbe(ctx context.Context, party string, config probe.Config, interval time.Duration) error {
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	for {
		if _, err := a.probeOnce(ctx, party, config); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
	}
}
