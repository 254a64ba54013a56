package cli

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/oidclab/oidclab/lab"
	"github.com/oidclab/oidclab/lab/control"
	"github.com/oidclab/oidclab/lab/problem"
	"github.com/oidclab/oidclab/lab/sts/gcp"
)

// variable is one environment variable. Without a value it is one that must not
// be set, because SDKs would heed it instead of the others.
type variable struct{ name, value string }

// workload is whom an environment is for.
type workload struct {
	client         *control.Client
	info           lab.Info
	cluster        lab.ClusterInfo
	namespace      string
	serviceAccount string
}

// tokenFile returns the path of a file with the workload's token.
func (w workload) tokenFile(ctx context.Context, audience string) (string, error) {
	return w.client.TokenFile(ctx, lab.TokenFileRequest{
		Cluster: w.cluster.ID, Namespace: w.namespace, ServiceAccount: w.serviceAccount, Audience: audience,
	})
}

// environments are what `env --for` knows, in the order of `all`.
var environments = []struct {
	name string
	get  func(context.Context, workload) ([]variable, error)
}{
	{"kubernetes", kubernetesEnv},
	{"aws", awsEnv},
	{"gcp", gcpEnv},
	{"azure", azureEnv},
	{"stackit", stackitEnv},
	{"generic", genericEnv},
	{"vault", vaultEnv},
	{proxyName, proxyEnv},
}

// proxyName is the environment of the zero-override mode. It is not in `all`,
// which it would contradict.
const proxyName = "proxy"

func environmentNames() []string {
	var names []string
	for _, e := range environments {
		names = append(names, e.name)
	}
	return append(names, "all")
}

// variables returns the environment for one relying party, or for all that the
// lab has.
func (w workload) variables(ctx context.Context, party string) ([]variable, error) {
	var variables []variable
	for _, e := range environments {
		switch {
		case party == "all" && e.name != proxyName && w.info.Absent[e.name] == "":
		case party == e.name:
		default:
			continue
		}
		more, err := e.get(ctx, w)
		if err != nil {
			return nil, err
		}
		variables = append(variables, more...)
	}
	return unique(variables), nil
}

// unique leaves out repetitions.
func unique(variables []variable) []variable {
	var list []variable
	for _, v := range variables {
		if !slices.Contains(list, v) {
			list = append(list, v)
		}
	}
	return list
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
refused, so that no token leaves the machine; ` + "`oidclab status`" + ` shows which.`,
		Example: `  eval "$(oidclab env --for aws)" && aws sts get-caller-identity
  oidclab env --for vault -o dotenv > .env
  oidclab env -o github >> "$GITHUB_ENV"`,
		Args: exactly(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.withLab(cmd.Context(), func(ctx context.Context, client *control.Client, status lab.Status) error {
				cluster, err := findCluster(status.Info, clusterID)
				if err != nil {
					return err
				}
				variables, err := workload{client: client, info: status.Info, cluster: cluster}.variables(ctx, party)
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
	*party = "all"
	names := environmentNames()
	cmd.Flags().Var(&choice{value: party, values: names}, "for", "the relying `party`: "+strings.Join(names, ", "))
}

func (a *app) showVariables(variables []variable) error {
	if a.output == "json" {
		object := map[string]string{}
		for _, v := range variables {
			if v.value != "" {
				object[v.name] = v.value
			}
		}
		return a.printJSON(object)
	}
	for _, v := range variables {
		switch {
		case v.value == "" && a.output == "shell":
			a.printf("unset %s\n", v.name)
			continue
		case v.value == "":
			continue
		}
		switch a.output {
		case "shell":
			a.printf("export %s=%s\n", v.name, shellQuoted(v.value))
		case "dotenv":
			a.printf("%s=\"%s\"\n", v.name, strings.NewReplacer(`\`, `\\`, `"`, `\"`, "$", `\$`).Replace(v.value))
		case "github":
			a.printf("%s=%s\n", v.name, v.value)
		}
	}
	return nil
}

func shellQuoted(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

func kubernetesEnv(_ context.Context, w workload) ([]variable, error) {
	return []variable{{"KUBECONFIG", w.cluster.Kubeconfig}}, nil
}

func awsEnv(ctx context.Context, w workload) ([]variable, error) {
	variables, err := w.awsIdentity(ctx)
	// Not AWS_ENDPOINT_URL: the Go SDK's credential chain does not heed it, and
	// the token would go to the real AWS.
	return append(variables, variable{"AWS_ENDPOINT_URL_STS", w.info.AWS.Endpoint}), err
}

func (w workload) awsIdentity(ctx context.Context) ([]variable, error) {
	file, err := w.tokenFile(ctx, w.info.AWS.Audience)
	return []variable{
		{"AWS_ROLE_ARN", w.info.AWS.Roles[w.cluster.ID]},
		{"AWS_WEB_IDENTITY_TOKEN_FILE", file},
		{"AWS_CA_BUNDLE", w.info.CAFile},
		{"AWS_REGION", w.info.AWS.Region},
		{"AWS_DEFAULT_REGION", w.info.AWS.Region},
		{"AWS_EC2_METADATA_DISABLED", "true"},
		// Static keys and profiles win over web identity.
		{"AWS_ACCESS_KEY_ID", ""}, {"AWS_SECRET_ACCESS_KEY", ""}, {"AWS_SESSION_TOKEN", ""}, {"AWS_PROFILE", ""},
	}, err
}

// roots make libraries trust the lab's CA, and nobody else's. AWS's have a
// variable of their own.
func (w workload) roots() []variable {
	return []variable{
		{"SSL_CERT_FILE", w.info.CAFile},                      // Go, OpenSSL
		{"REQUESTS_CA_BUNDLE", w.info.CAFile},                 // Python
		{"CURL_CA_BUNDLE", w.info.CAFile},                     // curl
		{"NODE_EXTRA_CA_CERTS", w.info.CAFile},                // Node.js
		{"CLOUDSDK_CORE_CUSTOM_CA_CERTS_FILE", w.info.CAFile}, // gcloud
	}
}

func gcpEnv(ctx context.Context, w workload) ([]variable, error) {
	file, err := w.gcpCredentials(ctx, "gcp", w.info.GCP.URL)
	return append([]variable{{"GOOGLE_APPLICATION_CREDENTIALS", file}}, w.roots()...), err
}

// gcpCredentials writes the credential file of the workload, beside its token
// file. It holds no secret. An empty url means Google's own.
func (w workload) gcpCredentials(ctx context.Context, name, url string) (string, error) {
	audience := w.info.GCP.Audiences[w.cluster.ID]
	token, err := w.tokenFile(ctx, audience)
	if err != nil {
		return "", err
	}
	content, err := gcp.CredentialsJSON(gcp.CredentialFile{URL: url, Audience: audience, TokenFile: token, ServiceAccount: w.info.GCP.ServiceAccount})
	if err != nil {
		return "", err
	}
	path := token + "." + name + ".json"
	if err := os.WriteFile(path+".new", content, 0o600); err != nil {
		return "", environment(err)
	}
	return path, environment(os.Rename(path+".new", path))
}

func azureEnv(ctx context.Context, w workload) ([]variable, error) {
	variables, err := w.azureIdentity(ctx)
	return append(append(variables, variable{"AZURE_AUTHORITY_HOST", w.info.Azure.Authority + "/"}), w.roots()...), err
}

func (w workload) azureIdentity(ctx context.Context) ([]variable, error) {
	file, err := w.tokenFile(ctx, w.info.Azure.Audience)
	return []variable{
		{"AZURE_CLIENT_ID", w.info.Azure.ClientIDs[w.cluster.ID]},
		{"AZURE_TENANT_ID", w.info.Azure.Tenant},
		{"AZURE_FEDERATED_TOKEN_FILE", file},
		// Secrets and certificates win over workload identity.
		{"AZURE_CLIENT_SECRET", ""}, {"AZURE_CLIENT_CERTIFICATE_PATH", ""},
		{"AZURE_REGIONAL_AUTHORITY_NAME", ""}, // it would become a part of the host name
	}, err
}

func stackitEnv(ctx context.Context, w workload) ([]variable, error) {
	variables, err := w.stackitIdentity(ctx)
	return append(append(variables, variable{"STACKIT_IDP_TOKEN_ENDPOINT", w.info.STACKIT.TokenURL}), w.roots()...), err
}

func (w workload) stackitIdentity(ctx context.Context) ([]variable, error) {
	file, err := w.tokenFile(ctx, w.info.STACKIT.Audience)
	return []variable{
		{"STACKIT_SERVICE_ACCOUNT_EMAIL", w.info.STACKIT.Accounts[w.cluster.ID]},
		{"STACKIT_FEDERATED_TOKEN_FILE", file},
	}, err
}

// proxyEnv is what the webhooks of the vendors inject, with production
// settings, and a proxy.
func proxyEnv(ctx context.Context, w workload) ([]variable, error) {
	amazon, err := w.awsIdentity(ctx)
	if err != nil {
		return nil, err
	}
	google, err := w.gcpCredentials(ctx, "proxy", "")
	if err != nil {
		return nil, err
	}
	microsoft, err := w.azureIdentity(ctx)
	if err != nil {
		return nil, err
	}
	schwarz, err := w.stackitIdentity(ctx)
	if err != nil {
		return nil, err
	}
	return slices.Concat([]variable{
		{"HTTPS_PROXY", w.info.Proxy},
		{"https_proxy", w.info.Proxy},
		{"HTTP_PROXY", w.info.Proxy}, // refuses, and records
		{"http_proxy", w.info.Proxy},
		{"NO_PROXY", "127.0.0.1,localhost,::1"}, // the Kubernetes API, for one
		{"no_proxy", "127.0.0.1,localhost,::1"},
		{"AWS_ENDPOINT_URL_STS", ""}, {"STACKIT_IDP_TOKEN_ENDPOINT", ""},
		{"AZURE_AUTHORITY_HOST", "https://login.microsoftonline.com/"},
		{"GOOGLE_APPLICATION_CREDENTIALS", google},
	}, amazon, microsoft, schwarz, w.roots()), nil
}

func genericEnv(ctx context.Context, w workload) ([]variable, error) {
	file, err := w.tokenFile(ctx, w.info.Generic.Audience)
	if err != nil {
		return nil, err
	}
	return []variable{
		{"OIDCLAB_TOKEN_URL", w.info.Generic.Parties[0].TokenURL},
		{"OIDCLAB_TOKEN_FILE", file},
		{"OIDCLAB_TARGET", w.info.Generic.Target},
		{"OIDCLAB_RESOURCE", w.info.Generic.Resource},
		{"OIDCLAB_CA_FILE", w.info.CAFile},
	}, nil
}

func vaultEnv(ctx context.Context, w workload) ([]variable, error) {
	if w.info.Vault == nil {
		return nil, withoutVault(w.info)
	}
	file, err := w.tokenFile(ctx, w.info.Vault.Audience)
	if err != nil {
		return nil, err
	}
	return []variable{
		{"VAULT_ADDR", w.info.Vault.Address},
		{"VAULT_CACERT", w.info.CAFile},
		{"OIDCLAB_VAULT_MOUNT", w.info.Vault.Mounts[w.cluster.ID].JWT},
		{"OIDCLAB_VAULT_ROLE", w.info.Vault.Role},
		{"OIDCLAB_VAULT_TOKEN_FILE", file},
	}, nil
}

func withoutVault(info lab.Info) error {
	return problem.New(problem.EnvironmentMissing, "oidclab down, then oidclab up with a vault program on PATH", "lab %s has no Vault: %s", info.Name, info.Absent["vault"])
}

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
