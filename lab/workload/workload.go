// Package workload says what an application finds that runs as a service
// account of a lab: the environment and files that pod identity webhooks, the
// vendors' documents and the lab set, by which unmodified SDKs reach it.
//
// It is the same for a process of this machine and for a pod; they differ in
// where their files are, see [Files].
package workload

import (
	"context"
	"net/url"
	"slices"
	"strings"

	"github.com/oidclab/oidclab/lab"
	"github.com/oidclab/oidclab/lab/problem"
	"github.com/oidclab/oidclab/lab/sts/gcp"
)

// Variable is one environment variable. Without a value it is one that must not
// be set, because SDKs would heed it instead of the others.
type Variable struct{ Name, Value string }

// Files is where a workload finds its files. Paths are those that the workload
// sees.
type Files interface {
	// CA returns the path of the lab's root certificate (PEM).
	CA() string
	// Token returns the path of a file that always holds a fresh token.
	Token(ctx context.Context, audience string) (string, error)
	// Config returns the path of a file, named after what it is for, with the
	// given content. It is no secret.
	Config(ctx context.Context, audience, name string, content []byte) (string, error)
	// Scratch returns the path of a directory, named after what it is for, that no
	// other workload has. Empty means that the home directory is one.
	Scratch(ctx context.Context, audience, name string) (string, error)
}

// Workload is whom an environment is for.
type Workload struct {
	Info    lab.Info
	Cluster lab.ClusterInfo // whose service account it is
	Files   Files
}

// Two environments are not in All, which they would contradict.
const (
	Proxy      = "proxy"       // the zero-override mode
	AzureProxy = "azure-proxy" // of applications that set EnableAzureProxy (azidentity)
)

// All is every environment but Proxy and AzureProxy.
const All = "all"

// environments are all that there are, in the order of All.
var environments = []struct {
	name string
	get  func(Workload, context.Context) ([]Variable, error)
}{
	{"kubernetes", Workload.kubernetes},
	{"aws", Workload.aws},
	{"gcp", Workload.gcp},
	{"azure", Workload.azure},
	{"stackit", Workload.stackit},
	{"oci", Workload.oci},
	{"generic", Workload.generic},
	{"vault", Workload.vault},
	{AzureProxy, Workload.azureProxy},
	{Proxy, Workload.proxy},
}

// Names returns the names of all environments.
func Names() []string {
	var names []string
	for _, e := range environments {
		names = append(names, e.name)
	}
	return append(names, All)
}

// Environment returns the environment for one relying party, or for all that
// the lab has. A party that is not among [Names] is a [problem.Usage].
func (w Workload) Environment(ctx context.Context, party string) ([]Variable, error) {
	if !slices.Contains(Names(), party) {
		return nil, problem.New(problem.Usage, "oidclab env --help", "there is no environment for %q, but for %s", party, strings.Join(Names(), ", "))
	}
	var variables []Variable
	for _, e := range environments {
		switch {
		case party == All && e.name != Proxy && e.name != AzureProxy && w.Info.Absent[e.name] == "":
		case party == e.name:
		default:
			continue
		}
		more, err := e.get(w, ctx)
		if err != nil {
			return nil, err
		}
		variables = append(variables, more...)
	}
	return unique(variables), nil
}

// unique leaves out repetitions.
func unique(variables []Variable) []Variable {
	var list []Variable
	for _, v := range variables {
		if !slices.Contains(list, v) {
			list = append(list, v)
		}
	}
	return list
}

func (w Workload) kubernetes(context.Context) ([]Variable, error) {
	return []Variable{{"KUBECONFIG", w.Cluster.Kubeconfig}}, nil
}

func (w Workload) aws(ctx context.Context) ([]Variable, error) {
	variables, err := w.awsIdentity(ctx)
	// Not AWS_ENDPOINT_URL: the Go SDK's credential chain does not heed it, and
	// the token would go to the real AWS.
	return append(variables,
		Variable{"AWS_ENDPOINT_URL_STS", w.Info.AWS.Endpoint},
		Variable{"AWS_ENDPOINT_URL_S3", w.Info.AWS.S3},
		Variable{"NODE_EXTRA_CA_CERTS", w.Files.CA()}, // the SDK for Node.js does not heed AWS_CA_BUNDLE
	), err
}

func (w Workload) awsIdentity(ctx context.Context) ([]Variable, error) {
	file, err := w.Files.Token(ctx, w.Info.AWS.Audience)
	return []Variable{
		{"AWS_ROLE_ARN", w.Info.AWS.Roles[w.Cluster.ID]},
		{"AWS_WEB_IDENTITY_TOKEN_FILE", file},
		{"AWS_CA_BUNDLE", w.Files.CA()},
		{"AWS_REGION", w.Info.AWS.Region},
		{"AWS_DEFAULT_REGION", w.Info.AWS.Region},
		{"AWS_EC2_METADATA_DISABLED", "true"},
		// Static keys and profiles win over web identity.
		{"AWS_ACCESS_KEY_ID", ""}, {"AWS_SECRET_ACCESS_KEY", ""}, {"AWS_SESSION_TOKEN", ""}, {"AWS_PROFILE", ""},
	}, err
}

// roots make libraries trust the lab's CA, and nobody else's. AWS's have a
// variable of their own.
func (w Workload) roots() []Variable {
	ca := w.Files.CA()
	return []Variable{
		{"SSL_CERT_FILE", ca},                      // Go, OpenSSL
		{"REQUESTS_CA_BUNDLE", ca},                 // Python
		{"CURL_CA_BUNDLE", ca},                     // curl
		{"NODE_EXTRA_CA_CERTS", ca},                // Node.js
		{"CLOUDSDK_CORE_CUSTOM_CA_CERTS_FILE", ca}, // gcloud
	}
}

func (w Workload) gcp(ctx context.Context) ([]Variable, error) {
	variables, err := w.gcpIdentity(ctx, "gcp", w.Info.GCP.URL)
	return slices.Concat(variables, []Variable{{"CLOUDSDK_API_ENDPOINT_OVERRIDES_STORAGE", w.Info.GCP.URL + "/storage/v1/"}}, w.roots()), err
}

// gcpIdentity is for Google's libraries, and for gcloud, whose properties are
// named CLOUDSDK_SECTION_NAME here. An empty url means Google's own.
func (w Workload) gcpIdentity(ctx context.Context, name, url string) ([]Variable, error) {
	file, err := w.gcpCredentials(ctx, name, url)
	if err != nil {
		return nil, err
	}
	config, err := w.Files.Scratch(ctx, w.Info.GCP.Audiences[w.Cluster.ID], name+".gcloud")
	return []Variable{
		{"GOOGLE_APPLICATION_CREDENTIALS", file},
		// Keeps libraries from asking cloudresourcemanager.googleapis.com which
		// project they are in, with the access token.
		{"GOOGLE_CLOUD_PROJECT", w.Info.GCP.Project},
		{"CLOUDSDK_AUTH_CREDENTIAL_FILE_OVERRIDE", file},
		{"CLOUDSDK_CONFIG", config}, // it keeps access tokens there, by service account, whoever impersonates it
		// These win over the file.
		{"CLOUDSDK_AUTH_ACCESS_TOKEN", ""}, {"CLOUDSDK_AUTH_ACCESS_TOKEN_FILE", ""}, {"CLOUDSDK_AUTH_IMPERSONATE_SERVICE_ACCOUNT", ""},
	}, err
}

// gcpCredentials returns the credential file of the workload.
func (w Workload) gcpCredentials(ctx context.Context, name, url string) (string, error) {
	audience := w.Info.GCP.Audiences[w.Cluster.ID]
	token, err := w.Files.Token(ctx, audience)
	if err != nil {
		return "", err
	}
	content, err := gcp.CredentialsJSON(gcp.CredentialFile{URL: url, Audience: audience, TokenFile: token, ServiceAccount: w.Info.GCP.ServiceAccount})
	if err != nil {
		return "", err
	}
	return w.Files.Config(ctx, audience, name+".json", content)
}

func (w Workload) azure(ctx context.Context) ([]Variable, error) {
	variables, err := w.azureIdentity(ctx)
	return append(append(variables, Variable{"AZURE_AUTHORITY_HOST", w.Info.Azure.Authority + "/"}), w.roots()...), err
}

// azureProxy is for an application with Entra's own authority, whose requests
// go to the token proxy of its cluster.
func (w Workload) azureProxy(ctx context.Context) ([]Variable, error) {
	variables, err := w.azureIdentity(ctx)
	return slices.Concat(variables, []Variable{
		{"AZURE_AUTHORITY_HOST", "https://login.microsoftonline.com/"},
		{"AZURE_KUBERNETES_TOKEN_PROXY", w.Info.Azure.TokenProxy},
		{"AZURE_KUBERNETES_CA_FILE", w.Files.CA()},
		{"AZURE_KUBERNETES_CA_DATA", ""}, {"AZURE_KUBERNETES_SNI_NAME", ""},
	}, w.roots()), err // the roots are for the storage account
}

func (w Workload) azureIdentity(ctx context.Context) ([]Variable, error) {
	file, err := w.Files.Token(ctx, w.Info.Azure.Audience)
	return []Variable{
		{"AZURE_CLIENT_ID", w.Info.Azure.ClientIDs[w.Cluster.ID]},
		{"AZURE_TENANT_ID", w.Info.Azure.Tenant},
		{"AZURE_FEDERATED_TOKEN_FILE", file},
		// Secrets and certificates win over workload identity.
		{"AZURE_CLIENT_SECRET", ""}, {"AZURE_CLIENT_CERTIFICATE_PATH", ""},
		{"AZURE_REGIONAL_AUTHORITY_NAME", ""}, // it would become a part of the host name
	}, err
}

func (w Workload) stackit(ctx context.Context) ([]Variable, error) {
	variables, err := w.stackitIdentity(ctx)
	return append(append(variables, Variable{"STACKIT_IDP_TOKEN_ENDPOINT", w.Info.STACKIT.TokenURL}), w.roots()...), err
}

func (w Workload) stackitIdentity(ctx context.Context) ([]Variable, error) {
	file, err := w.Files.Token(ctx, w.Info.STACKIT.Audience)
	return []Variable{
		{"STACKIT_SERVICE_ACCOUNT_EMAIL", w.Info.STACKIT.Accounts[w.Cluster.ID]},
		{"STACKIT_FEDERATED_TOKEN_FILE", file},
	}, err
}

// proxy is what the webhooks of the vendors inject, with production settings,
// and a proxy.
func (w Workload) proxy(ctx context.Context) ([]Variable, error) {
	amazon, err := w.awsIdentity(ctx)
	if err != nil {
		return nil, err
	}
	google, err := w.gcpIdentity(ctx, Proxy, "")
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
	oracle, err := w.ociIdentity(ctx)
	if err != nil {
		return nil, err
	}
	return slices.Concat([]Variable{
		{"HTTPS_PROXY", w.Info.Proxy},
		{"https_proxy", w.Info.Proxy},
		{"HTTP_PROXY", w.Info.Proxy}, // refuses, and records
		{"http_proxy", w.Info.Proxy},
		{"NODE_USE_ENV_PROXY", "1"}, // Node.js 24; before, its fetch heeds no proxy
		{"NO_PROXY", w.direct()},    // the Kubernetes API, for one
		{"no_proxy", w.direct()},
		{"AWS_ENDPOINT_URL_STS", ""}, {"AWS_ENDPOINT_URL_S3", ""}, {"STACKIT_IDP_TOKEN_ENDPOINT", ""}, {"CLOUDSDK_API_ENDPOINT_OVERRIDES_STORAGE", ""},
		{"AZURE_AUTHORITY_HOST", "https://login.microsoftonline.com/"},
	}, amazon, google, microsoft, schwarz, oracle, w.roots()), nil
}

// direct are the hosts that are reached without the proxy: this machine's, and
// where the lab's own servers are.
func (w Workload) direct() string {
	hosts := []string{"127.0.0.1", "localhost", "::1"}
	if front, err := url.Parse(w.Info.Front); err == nil && front.Hostname() != "" && !slices.Contains(hosts, front.Hostname()) {
		hosts = append(hosts, front.Hostname())
	}
	return strings.Join(hosts, ",")
}

func (w Workload) generic(ctx context.Context) ([]Variable, error) {
	file, err := w.Files.Token(ctx, w.Info.Generic.Audience)
	if err != nil {
		return nil, err
	}
	return []Variable{
		{"OIDCLAB_TOKEN_URL", w.Info.Generic.Parties[0].TokenURL},
		{"OIDCLAB_TOKEN_FILE", file},
		{"OIDCLAB_TARGET", w.Info.Generic.Target},
		{"OIDCLAB_RESOURCE", w.Info.Generic.Resource},
		{"OIDCLAB_CA_FILE", w.Files.CA()},
	}, nil
}

func (w Workload) vault(ctx context.Context) ([]Variable, error) {
	if w.Info.Vault == nil {
		return nil, WithoutVault(w.Info)
	}
	file, err := w.Files.Token(ctx, w.Info.Vault.Audience)
	if err != nil {
		return nil, err
	}
	return []Variable{
		{"VAULT_ADDR", w.Info.Vault.Address},
		{"VAULT_CACERT", w.Files.CA()},
		{"OIDCLAB_VAULT_MOUNT", w.Info.Vault.Mounts[w.Cluster.ID].JWT},
		{"OIDCLAB_VAULT_ROLE", w.Info.Vault.Role},
		{"OIDCLAB_VAULT_TOKEN_FILE", file},
	}, nil
}

// WithoutVault returns the problem of a lab that has none.
func WithoutVault(info lab.Info) error {
	return problem.New(problem.EnvironmentMissing, "oidclab down, then oidclab up with a vault program on PATH", "lab %s has no Vault: %s", info.Name, info.Absent["vault"])
}
