package azure

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/runtime"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"
)

// childVariable tells the test binary to be an application that uses the SDK.
const childVariable = "OIDCLAB_TEST_CHILD"

// report is what the application saw, one JSON line for each line it was sent.
type report struct {
	Status  int
	Content string
	Expires time.Time
	Type    string // of the error, if there is one
	Error   string
}

// child is the application: a credential and a pipeline with bearer tokens, as
// the SDK's storage client has it. The only option is the one for which there
// is no environment variable. It reads a blob for each line it is sent.
func child() int {
	credential, err := azidentity.NewWorkloadIdentityCredential(&azidentity.WorkloadIdentityCredentialOptions{DisableInstanceDiscovery: true})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	scopes := []string{storageResource + "/.default"}
	pipeline := runtime.NewPipeline("oidclab", "test",
		runtime.PipelineOptions{PerRetry: []policy.Policy{runtime.NewBearerTokenPolicy(credential, scopes, nil)}}, nil)
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		if err := json.NewEncoder(os.Stdout).Encode(readBlob(credential, scopes, pipeline, lines.Text())); err != nil {
			return 1
		}
	}
	return 0
}

func readBlob(credential azcore.TokenCredential, scopes []string, pipeline runtime.Pipeline, blob string) report {
	failed := func(err error) report {
		r := report{Type: fmt.Sprintf("%T", err), Error: err.Error()}
		if failed := new(azidentity.AuthenticationFailedError); errors.As(err, &failed) && failed.RawResponse != nil {
			r.Status = failed.RawResponse.StatusCode
		}
		return r
	}
	token, err := credential.GetToken(context.Background(), policy.TokenRequestOptions{Scopes: scopes})
	if err != nil {
		return failed(err)
	}
	request, err := runtime.NewRequest(context.Background(), http.MethodGet, blob)
	if err != nil {
		return failed(err)
	}
	request.Raw().Header.Set("X-Ms-Version", storageTime)
	response, err := pipeline.Do(request)
	if err != nil {
		return failed(err)
	}
	defer response.Body.Close()
	content, err := io.ReadAll(response.Body)
	if err != nil {
		return failed(err)
	}
	return report{Status: response.StatusCode, Content: string(content), Expires: token.ExpiresOn}
}

// application is a running child.
type application struct {
	blob   string
	stdin  io.Writer
	stdout *json.Decoder
}

// run starts the application with nothing in its environment but what the
// webhook injects into a pod, and the authority's certificate.
func (d *directory) run(t *testing.T, token string) *application {
	t.Helper()
	dir := t.TempDir()
	tokenFile, bundle := filepath.Join(dir, "token"), filepath.Join(dir, "ca.pem")
	for file, content := range map[string][]byte{tokenFile: []byte(token), bundle: d.CA.CertPEM()} {
		if err := os.WriteFile(file, content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self) // ends when its input does
	cmd.Env = []string{
		childVariable + "=1",
		"AZURE_AUTHORITY_HOST=" + d.url,
		"AZURE_CLIENT_ID=" + testClient,
		"AZURE_FEDERATED_TOKEN_FILE=" + tokenFile,
		"AZURE_TENANT_ID=" + testTenant,
		"SSL_CERT_FILE=" + bundle,
	}
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		stdin.Close()
		if err := cmd.Wait(); err != nil {
			t.Errorf("application: %v", err)
		}
	})
	return &application{d.url + "/demo/a/hello.txt", stdin, json.NewDecoder(stdout)}
}

func (a *application) read(t *testing.T) report {
	t.Helper()
	if _, err := fmt.Fprintln(a.stdin, a.blob); err != nil {
		t.Fatal(err)
	}
	var r report
	if err := a.stdout.Decode(&r); err != nil {
		t.Fatal(err)
	}
	return r
}

func TestSDK(t *testing.T) {
	d := newDirectory(t)
	app := d.run(t, d.token(t, nil))
	got := app.read(t)
	if got.Status != http.StatusOK || got.Content != testContent {
		t.Fatalf("got %+v", got)
	}
	// The SDK counts expires_in from its own clock, where the lab's stands still.
	if early := got.Expires.Sub(d.Clock.Now().Add(3599 * time.Second)); early < 0 || early > time.Minute {
		t.Errorf("the SDK keeps the token until %s", got.Expires)
	}
	d.Clock.Advance(time.Hour)
	if got := app.read(t); got.Status != http.StatusUnauthorized || !strings.Contains(got.Content, "The token is expired.") {
		t.Errorf("after it expired: %+v", got)
	}
}

func TestSDKRefused(t *testing.T) {
	d := newDirectory(t)
	for _, test := range []struct {
		name, token string
		status      int
		code        string
	}{
		{"audience", d.token(t, map[string]any{"aud": "vault"}), 401, "AADSTS700212"},
		{"case of the subject", d.token(t, map[string]any{"sub": "system:serviceaccount:Demo:app"}), 401, "AADSTS7002138"},
		{"newline", d.token(t, nil) + "\n", 400, "AADSTS50027"}, // the SDK does not trim the file
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			got := d.run(t, test.token).read(t)
			if got.Status != test.status || got.Type != "*azidentity.AuthenticationFailedError" || !strings.Contains(got.Error, test.code+":") {
				t.Errorf("got %+v; want %d with %s", got, test.status, test.code)
			}
		})
	}
}
