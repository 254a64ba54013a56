package workload_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/oidclab/oidclab/lab"
	"github.com/oidclab/oidclab/lab/problem"
	"github.com/oidclab/oidclab/lab/workload"
)

// secret is what the files hold that no environment and no manifest may show.
const secret = "eyJhbGciOiJSUzI1NiJ9.c2VjcmV0.c2VjcmV0"

// world is a lab of two clusters, of which the second one is asked for.
func world(t *testing.T) (lab.Info, lab.ClusterInfo) {
	t.Helper()
	clientSecret := filepath.Join(t.TempDir(), "client-secret")
	if err := os.WriteFile(clientSecret, []byte(secret), 0o600); err != nil {
		t.Fatal(err)
	}
	cluster := lab.ClusterInfo{ID: "c2", Issuer: "https://10.0.0.1:8443/c/c2", Kubeconfig: "/lab/c2.kubeconfig"}
	return lab.Info{
		Name: "demo", Front: "https://10.0.0.1:8443", CAFile: "/lab/ca.crt", Proxy: "http://127.0.0.1:3128",
		Clusters: []lab.ClusterInfo{{ID: "c1"}, cluster},
		AWS: lab.AWSInfo{
			Endpoint: "https://aws.lab", S3: "https://s3.lab", Region: "us-east-1", Audience: "sts.amazonaws.com", Bucket: "demo", Object: "greeting",
			Roles: map[string]string{"c1": "arn:one", "c2": "arn:two"},
		},
		GCP: lab.GCPInfo{
			URL: "https://gcp.lab", Project: "shop-project", ServiceAccount: "app@lab.example", Bucket: "demo", Object: "greeting",
			Audiences: map[string]string{"c1": "//iam/one", "c2": "//iam/two"},
		},
		Azure: lab.AzureInfo{
			Authority: "https://azure.lab", TokenProxy: "https://proxy.lab", Tenant: "tenant", Audience: "api://exchange", Container: "demo", Blob: "greeting",
			ClientIDs: map[string]string{"c1": "client-one", "c2": "client-two"},
		},
		STACKIT: lab.STACKITInfo{
			URL: "https://stackit.lab", TokenURL: "https://stackit.lab/token", Audience: "stackit", Project: "project",
			Accounts: map[string]string{"c1": "one@sa", "c2": "two@sa"},
		},
		OCI: lab.OCIInfo{
			URL: "https://oci.lab", Region: "us-ashburn-1", Audience: "oci", Namespace: "axlab", Bucket: "demo", Object: "greeting", PodHost: "127.0.0.7",
			Clients:      map[string]lab.OCIClient{"c1": {ID: "oci-one"}, "c2": {ID: "oci-two", SecretFile: clientSecret}},
			PodAudiences: map[string]string{"c1": "api-one", "c2": "api-two"},
		},
		Generic: lab.GenericInfo{
			Audience: "oidclab", Target: "urn:greeter", Resource: "https://resource.lab/resource", Parties: []lab.GenericParty{{TokenURL: "https://generic.lab/token"}},
		},
		Vault: &lab.VaultInfo{
			Address: "https://vault.lab", Audience: "vault", Role: "app", Secret: "secret/data/app",
			Mounts: map[string]lab.AuthMounts{"c1": {JWT: "jwt-one"}, "c2": {JWT: "jwt-two"}},
		},
	}, cluster
}

// files keeps tokens in a directory of the test, each for its audience.
type files struct {
	t       *testing.T
	dir     string
	configs map[string]string // what Config was given, by name
}

func newFiles(t *testing.T) *files { return &files{t, t.TempDir(), map[string]string{}} }

func (f *files) CA() string { return "/ca.crt" }

// Token returns a path with the audience in it, made short by shown.
func (f *files) Token(_ context.Context, audience string) (string, error) {
	path := filepath.Join(f.dir, strings.Trim(strings.NewReplacer("/", "-", ":", "-").Replace(audience), "-"))
	return path, os.WriteFile(path, []byte(secret), 0o600)
}

func (f *files) Config(_ context.Context, audience, name string, content []byte) (string, error) {
	f.configs[name] = string(content)
	return filepath.Join(f.dir, name), nil
}

func (f *files) Scratch(_ context.Context, _, name string) (string, error) {
	return filepath.Join(f.dir, name), nil
}

// shown returns variables as lines, with the directory of the test as "~".
func (f *files) shown(variables []workload.Variable) []string {
	var lines []string
	for _, v := range variables {
		lines = append(lines, v.Name+"="+strings.ReplaceAll(v.Value, f.dir, "~"))
	}
	return lines
}

var (
	awsIdentity = []string{
		"AWS_ROLE_ARN=arn:two", "AWS_WEB_IDENTITY_TOKEN_FILE=~/sts.amazonaws.com", "AWS_CA_BUNDLE=/ca.crt",
		"AWS_REGION=us-east-1", "AWS_DEFAULT_REGION=us-east-1", "AWS_EC2_METADATA_DISABLED=true",
		"AWS_ACCESS_KEY_ID=", "AWS_SECRET_ACCESS_KEY=", "AWS_SESSION_TOKEN=", "AWS_PROFILE=",
	}
	azureIdentity = []string{
		"AZURE_CLIENT_ID=client-two", "AZURE_TENANT_ID=tenant", "AZURE_FEDERATED_TOKEN_FILE=~/api---exchange",
		"AZURE_CLIENT_SECRET=", "AZURE_CLIENT_CERTIFICATE_PATH=", "AZURE_REGIONAL_AUTHORITY_NAME=",
	}
	stackitIdentity = []string{"STACKIT_SERVICE_ACCOUNT_EMAIL=two@sa", "STACKIT_FEDERATED_TOKEN_FILE=~/stackit"}
	ociIdentity     = []string{"OIDCLAB_OCI_TOKEN_FILE=~/oci", "OIDCLAB_OCI_CLIENT_ID=oci-two", "OIDCLAB_OCI_CLIENT_SECRET_FILE=CLIENT-SECRET"}
	okePod          = []string{
		"OCI_RESOURCE_PRINCIPAL_VERSION=2.2", "OCI_RESOURCE_PRINCIPAL_REGION=us-ashburn-1", "OCI_KUBERNETES_SERVICE_ACCOUNT_CERT_PATH=/ca.crt",
		"OIDCLAB_OCI_POD_TOKEN_FILE=~/api-two", "KUBERNETES_SERVICE_HOST=127.0.0.7",
	}
	roots = []string{
		"SSL_CERT_FILE=/ca.crt", "REQUESTS_CA_BUNDLE=/ca.crt", "CURL_CA_BUNDLE=/ca.crt", "NODE_EXTRA_CA_CERTS=/ca.crt", "CLOUDSDK_CORE_CUSTOM_CA_CERTS_FILE=/ca.crt",
	}
)

func gcpIdentity(mode string) []string {
	return []string{
		"GOOGLE_APPLICATION_CREDENTIALS=~/" + mode + ".json", "GOOGLE_CLOUD_PROJECT=shop-project",
		"CLOUDSDK_AUTH_CREDENTIAL_FILE_OVERRIDE=~/" + mode + ".json", "CLOUDSDK_CONFIG=~/" + mode + ".gcloud",
		"CLOUDSDK_AUTH_ACCESS_TOKEN=", "CLOUDSDK_AUTH_ACCESS_TOKEN_FILE=", "CLOUDSDK_AUTH_IMPERSONATE_SERVICE_ACCOUNT=",
	}
}

// environments are the variables of each party, in their order.
var environments = map[string][]string{
	"kubernetes": {"KUBECONFIG=/lab/c2.kubeconfig"},
	"aws":        slices.Concat(awsIdentity, []string{"AWS_ENDPOINT_URL_STS=https://aws.lab", "AWS_ENDPOINT_URL_S3=https://s3.lab", "NODE_EXTRA_CA_CERTS=/ca.crt"}),
	"gcp":        slices.Concat(gcpIdentity("gcp"), []string{"CLOUDSDK_API_ENDPOINT_OVERRIDES_STORAGE=https://gcp.lab/storage/v1/"}, roots),
	"azure":      slices.Concat(azureIdentity, []string{"AZURE_AUTHORITY_HOST=https://azure.lab/"}, roots),
	"stackit":    slices.Concat(stackitIdentity, []string{"STACKIT_IDP_TOKEN_ENDPOINT=https://stackit.lab/token"}, roots),
	"oci":        slices.Concat(ociIdentity, []string{"OIDCLAB_OCI_URL=https://oci.lab"}, okePod, roots),
	"generic": {
		"OIDCLAB_TOKEN_URL=https://generic.lab/token", "OIDCLAB_TOKEN_FILE=~/oidclab", "OIDCLAB_TARGET=urn:greeter",
		"OIDCLAB_RESOURCE=https://resource.lab/resource", "OIDCLAB_CA_FILE=/ca.crt",
	},
	"vault": {
		"VAULT_ADDR=https://vault.lab", "VAULT_CACERT=/ca.crt", "OIDCLAB_VAULT_MOUNT=jwt-two", "OIDCLAB_VAULT_ROLE=app", "OIDCLAB_VAULT_TOKEN_FILE=~/vault",
	},
	workload.AzureProxy: slices.Concat(azureIdentity, []string{
		"AZURE_AUTHORITY_HOST=https://login.microsoftonline.com/", "AZURE_KUBERNETES_TOKEN_PROXY=https://proxy.lab", "AZURE_KUBERNETES_CA_FILE=/ca.crt",
		"AZURE_KUBERNETES_CA_DATA=", "AZURE_KUBERNETES_SNI_NAME=",
	}, roots),
	workload.Proxy: slices.Concat([]string{
		"HTTPS_PROXY=http://127.0.0.1:3128", "https_proxy=http://127.0.0.1:3128", "HTTP_PROXY=http://127.0.0.1:3128", "http_proxy=http://127.0.0.1:3128", "NODE_USE_ENV_PROXY=1",
		"NO_PROXY=127.0.0.1,localhost,::1,10.0.0.1", "no_proxy=127.0.0.1,localhost,::1,10.0.0.1",
		"AWS_ENDPOINT_URL_STS=", "AWS_ENDPOINT_URL_S3=", "STACKIT_IDP_TOKEN_ENDPOINT=", "CLOUDSDK_API_ENDPOINT_OVERRIDES_STORAGE=", "AZURE_AUTHORITY_HOST=https://login.microsoftonline.com/",
	}, awsIdentity, gcpIdentity("proxy"), azureIdentity, stackitIdentity, ociIdentity, roots),
}

func TestEnvironment(t *testing.T) {
	info, cluster := world(t)
	for _, party := range workload.Names() {
		if party == workload.All {
			continue
		}
		t.Run(party, func(t *testing.T) {
			f := newFiles(t)
			variables, err := workload.Workload{Info: info, Cluster: cluster, Files: f}.Environment(t.Context(), party)
			if err != nil {
				t.Fatal(err)
			}
			got := strings.ReplaceAll(strings.Join(f.shown(variables), "\n"), info.OCI.Clients["c2"].SecretFile, "CLIENT-SECRET")
			if want := strings.Join(environments[party], "\n"); got != want {
				t.Errorf("got\n%s\nwant\n%s", got, want)
			}
			for name, content := range f.configs {
				if strings.Contains(content, secret) {
					t.Errorf("%s has a token in it", name)
				}
			}
			if strings.Contains(got, secret) {
				t.Error("a token or a secret is in the environment")
			}
		})
	}
	if got, want := len(environments), len(workload.Names())-1; got != want {
		t.Errorf("%d environments are wanted, and there are %d", got, want)
	}
}

// TestAllEnvironments wants those of all parties that the lab has, each variable
// once, but not the two that contradict them.
func TestAllEnvironments(t *testing.T) {
	info, cluster := world(t)
	for _, absent := range []string{"", "vault"} {
		info.Absent = map[string]string{absent: "left out"}
		f := newFiles(t)
		variables, err := workload.Workload{Info: info, Cluster: cluster, Files: f}.Environment(t.Context(), workload.All)
		if err != nil {
			t.Fatal(err)
		}
		var want []string
		for _, party := range workload.Names() {
			if party == workload.All || party == workload.AzureProxy || party == workload.Proxy || party == absent {
				continue
			}
			for _, line := range environments[party] {
				if line = strings.ReplaceAll(line, "CLIENT-SECRET", info.OCI.Clients["c2"].SecretFile); !slices.Contains(want, line) {
					want = append(want, line)
				}
			}
		}
		if got := f.shown(variables); !slices.Equal(got, want) {
			t.Errorf("without %q: got\n%q\nwant\n%q", absent, got, want)
		}
	}
}

// TestCredentialFiles wants Google's credential file to name the token's file,
// and hosts of the lab or, for the proxy, Google's own.
func TestCredentialFiles(t *testing.T) {
	info, cluster := world(t)
	for party, host := range map[string]string{"gcp": "https://gcp.lab/", workload.Proxy: "https://sts.googleapis.com/"} {
		f := newFiles(t)
		if _, err := (workload.Workload{Info: info, Cluster: cluster, Files: f}).Environment(t.Context(), party); err != nil {
			t.Fatal(err)
		}
		for _, part := range []string{host, `"audience": "//iam/two"`, `"file": "` + f.dir + `/iam-two"`, "/serviceAccounts/app@lab.example:generateAccessToken"} {
			if !strings.Contains(f.configs[party+".json"], part) {
				t.Errorf("%s: no %s in %s", party, part, f.configs[party+".json"])
			}
		}
	}
}

func TestWithoutOptionalParts(t *testing.T) {
	info, cluster := world(t)
	info.Vault, info.OCI.PodHost = nil, ""
	info.Absent = map[string]string{"vault": "--vault none"}
	w := workload.Workload{Info: info, Cluster: cluster, Files: newFiles(t)}
	if _, err := w.Environment(t.Context(), "vault"); problemKind(err) != problem.EnvironmentMissing || !strings.Contains(err.Error(), "--vault none") {
		t.Errorf("without a Vault: %v", err)
	}
	variables, err := w.Environment(t.Context(), "oci")
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range variables {
		if v.Name == "KUBERNETES_SERVICE_HOST" || strings.HasPrefix(v.Name, "OCI_") {
			t.Errorf("without pods of OKE there is %s=%s", v.Name, v.Value)
		}
	}
}

func TestUnknownEnvironment(t *testing.T) {
	info, cluster := world(t)
	w := workload.Workload{Info: info, Cluster: cluster, Files: newFiles(t)}
	if _, err := w.Environment(t.Context(), "generic"); err != nil {
		t.Errorf("control: %v", err)
	}
	for _, party := range []string{"", "Generic", "ibm"} {
		if variables, err := w.Environment(t.Context(), party); problemKind(err) != problem.Usage || variables != nil {
			t.Errorf("%q: %v, %v", party, variables, err)
		}
	}
}

// TestTokenFileFails wants the reason why a token cannot be had, from each party
// that needs one.
func TestTokenFileFails(t *testing.T) {
	info, cluster := world(t)
	for _, party := range workload.Names() {
		if party == "kubernetes" {
			continue
		}
		w := workload.Workload{Info: info, Cluster: cluster, Files: noTokens{newFiles(t)}}
		if _, err := w.Environment(t.Context(), party); !errors.Is(err, errNoToken) {
			t.Errorf("%s: %v", party, err)
		}
	}
}

var errNoToken = errors.New("the service account was not found")

type noTokens struct{ *files }

func (noTokens) Token(context.Context, string) (string, error) { return "", errNoToken }

func problemKind(err error) problem.Kind {
	var p *problem.Problem
	if !errors.As(err, &p) {
		return 0
	}
	return p.Kind
}
