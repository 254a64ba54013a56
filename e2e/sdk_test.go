package e2e

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"

	"github.com/oidclab/oidclab/fixtures"
	"github.com/oidclab/oidclab/lab"
	"github.com/oidclab/oidclab/lab/proxy"
)

// applicationVariable makes the test binary an application that uses a vendor's
// SDK in a way that `oidclab probe` does not, and knows nothing of the lab. Its
// value names the SDK; the argument is a URL to fetch.
const applicationVariable = "OIDCLAB_E2E_APPLICATION"

// application prints what it got with the credentials that its SDK found.
func application() int {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	use := map[string]func(context.Context, string) (string, error){
		"azure, production": fetchAsAzureByDefault, "azure, token proxy": fetchAsAzureByProxy,
		"oci":    readAsServiceUser,
		"nobody": func(ctx context.Context, url string) (string, error) { return fetch(ctx, http.DefaultClient, url, "") },
	}[os.Getenv(applicationVariable)]
	got, err := use(ctx, os.Args[1])
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	fmt.Println(got)
	return 0
}

// fetchAsAzureByProxy uses workload identity by the token proxy of a cluster.
func fetchAsAzureByProxy(ctx context.Context, url string) (string, error) {
	credential, err := azidentity.NewWorkloadIdentityCredential(&azidentity.WorkloadIdentityCredentialOptions{EnableAzureProxy: true})
	if err != nil {
		return "", err
	}
	return fetchWith(ctx, credential, url)
}

// fetchAsAzureByDefault has no options at all.
func fetchAsAzureByDefault(ctx context.Context, url string) (string, error) {
	credential, err := azidentity.NewDefaultAzureCredential(nil)
	if err != nil {
		return "", err
	}
	return fetchWith(ctx, credential, url)
}

func fetchWith(ctx context.Context, credential azcore.TokenCredential, url string) (string, error) {
	token, err := credential.GetToken(ctx, policy.TokenRequestOptions{Scopes: []string{"https://storage.azure.com/.default"}})
	if err != nil {
		return "", err
	}
	return fetch(ctx, http.DefaultClient, url, token.Token)
}

func fetch(ctx context.Context, client *http.Client, url, bearer string) (string, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	request.Header.Set("X-Ms-Version", "2021-08-06") // Azure Storage wants one
	if bearer != "" {
		request.Header.Set("Authorization", "Bearer "+bearer)
	}
	response, err := client.Do(request)
	if err != nil {
		return "", err
	}
	defer func() { _ = response.Body.Close() }()
	body, err := io.ReadAll(response.Body)
	if err == nil && response.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", response.Status, body)
	}
	return string(body), err
}

// environmentOf returns what `env --for` prints.
func environmentOf(t *testing.T, u *user, party string) []string {
	t.Helper()
	variables := map[string]string{}
	decode(t, u.run(t, "env", "--name", labName, "--for", party, "-o", "json").want(t, 0), &variables)
	var environment []string
	for _, name := range slices.Sorted(maps.Keys(variables)) {
		environment = append(environment, name+"="+variables[name])
	}
	return environment
}

// testSDK runs unmodified applications with nothing in their environment but
// what `env` prints: that of `oidclab probe`, and others. Those under the proxy
// have production settings.
func testSDK(t *testing.T, u *user, info lab.Info) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	role := info.AWS.Roles["c1"]
	assumed := strings.Replace(strings.Replace(role, ":iam:", ":sts:", 1), ":role/", ":assumed-role/", 1) + "/"
	const object, project = "/storage/v1/b/demo/o/greeting?alt=media", "/v2/projects/" + fixtures.STACKITProject
	for _, test := range []struct{ party, sdk, url, want, refusal string }{
		{"aws", "probe aws", "s3://demo/greeting", assumed, "AccessDenied"},
		{"gcp", "probe gcp", info.GCP.URL + object, fixtures.ObjectContent, "IAM_PERMISSION_DENIED"},
		{"azure", "probe azure --disable-instance-discovery", info.Azure.Authority + "/demo/greeting", fixtures.ObjectContent, "AADSTS700213"},
		{"azure-proxy", "azure, token proxy", info.Azure.Authority + "/demo/greeting", fixtures.ObjectContent, "AADSTS700213"},
		{"stackit", "probe stackit", info.STACKIT.URL + project, fixtures.STACKITProject, "does not satisfy the assertions"},
		{"oci", "probe oci", info.OCI.URL + "/n/" + info.OCI.Namespace + "/b/demo/o/greeting", fixtures.ObjectContent, "BucketNotFound"},
		{"generic", "probe generic", info.Generic.Resource, fixtures.Subject, "invalid_target"},
		{"proxy", "probe aws", "s3://demo/greeting", assumed, "AccessDenied"},
		{"proxy", "probe gcp", "https://storage.googleapis.com" + object, fixtures.ObjectContent, "IAM_PERMISSION_DENIED"},
		{"proxy", "azure, production", "https://demo.blob.core.windows.net/demo/greeting", fixtures.ObjectContent, "AADSTS700213"},
		{"proxy", "probe stackit", "https://resource-manager.api.stackit.cloud" + project, fixtures.STACKITProject, "does not satisfy the assertions"},
	} {
		t.Run(test.sdk+" for "+test.party, func(t *testing.T) {
			if test.party == "oci" && info.OCI.PodHost == "" {
				t.Skip("needs port 12250: " + info.Absent[lab.OKEPods])
			}
			program := []string{self, test.url}
			if arguments := strings.Fields(test.sdk); arguments[0] == "probe" {
				program = slices.Concat([]string{binary}, arguments, []string{"--resource", test.url})
			}
			command := exec.Command(program[0], program[1:]...)
			command.Env = append([]string{applicationVariable + "=" + test.sdk}, environmentOf(t, u, test.party)...)
			if got, err := ask(command); err != nil || !strings.Contains(got, test.want) {
				t.Errorf("got %q, want %s: %v", got, test.want, err)
			}
			// The same application as a service account that nobody trusts.
			refused := exec.Command(binary, "run", "--name", labName, "--serviceaccount", fixtures.OtherServiceAccount, "--for", test.party, "--")
			refused.Args = append(refused.Args, program...)
			refused.Env = append(u.env(), applicationVariable+"="+test.sdk)
			if got, err := ask(refused); err == nil || !strings.Contains(err.Error(), test.refusal) {
				t.Errorf("an account that nobody trusts got %q, %v; want %s", got, err, test.refusal)
			}
		})
	}
	t.Run("nobody leaves by the proxy", func(t *testing.T) {
		command := exec.Command(self, "https://sts.example.com/")
		command.Env = append([]string{applicationVariable + "=nobody"}, environmentOf(t, u, "proxy")...)
		if got, err := ask(command); err == nil {
			t.Errorf("got %q", got)
		}
		status, _ := u.status(t, "--name", labName)
		if !slices.ContainsFunc(status.Egress, func(r proxy.Refusal) bool { return strings.HasPrefix(r.Target, "sts.example.com") }) {
			t.Errorf("status does not show it: %+v", status.Egress)
		}
	})
	t.Run("command line", func(t *testing.T) {
		aws, err := exec.LookPath("aws")
		if err != nil {
			t.Skip("needs the aws command on PATH")
		}
		home := t.TempDir() // it caches credentials there
		environment := append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + home}, environmentOf(t, u, "aws")...)
		if root := os.Getenv("PYENV_ROOT"); root != "" { // how a shim of pyenv finds the program
			environment = append(environment, "PYENV_ROOT="+root)
		} else if root := filepath.Join(os.Getenv("HOME"), ".pyenv"); strings.HasPrefix(aws, root) {
			environment = append(environment, "PYENV_ROOT="+root)
		}
		for want, arguments := range map[string][]string{
			assumed:                {"sts", "get-caller-identity", "--output", "json"},
			fixtures.ObjectContent: {"s3", "cp", "s3://demo/greeting", "-"},
			"greeting":             {"s3", "ls", "s3://demo"},
		} {
			command := exec.Command(aws, arguments...)
			command.Env = environment
			if got, err := ask(command); err != nil || !strings.Contains(got, want) {
				t.Errorf("%q: got %q, want %s: %v", arguments, got, want, err)
			}
		}
	})
}

// ask returns what the application prints.
func ask(command *exec.Cmd) (string, error) {
	var stdout, stderr bytes.Buffer
	command.Stdout, command.Stderr = &stdout, &stderr
	if err := command.Run(); err != nil {
		return "", fmt.Errorf("%w: %s%s", err, stdout.String(), stderr.String())
	}
	return stdout.String(), nil
}
