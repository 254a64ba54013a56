package azure

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/runtime"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"

	"github.com/oidclab/oidclab/lab/sts/internal/ststest"
	"github.com/oidclab/oidclab/lab/trace"
)

// The modes of the application: withOption has the one option for which there is
// no environment variable, production none at all, and behindProxy turns to the
// token proxy of its cluster.
const (
	withOption  = "with an option"
	production  = "production"
	behindProxy = "behind a token proxy"
)

// report is what the application saw, one JSON line for each line it was sent.
type report struct {
	Status  int
	Content string
	Expires time.Time
	Type    string // of the error, if there is one
	Error   string
}

// application is a credential and a pipeline with bearer tokens, as the SDK's
// storage client has it. It reads the blob that each line names.
func application(mode string) (func(string) any, error) {
	options := &azidentity.WorkloadIdentityCredentialOptions{DisableInstanceDiscovery: true}
	switch mode {
	case production:
		options = nil
	case behindProxy:
		options = &azidentity.WorkloadIdentityCredentialOptions{EnableAzureProxy: true}
	}
	credential, err := azidentity.NewWorkloadIdentityCredential(options)
	if err != nil {
		return nil, err
	}
	scopes := []string{storageResource + "/.default"}
	pipeline := runtime.NewPipeline("oidclab", "test",
		runtime.PipelineOptions{PerRetry: []policy.Policy{runtime.NewBearerTokenPolicy(credential, scopes, nil)}}, nil)
	return func(blob string) any { return readBlob(credential, scopes, pipeline, blob) }, nil
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

// run starts the application with nothing in its environment but what the
// webhook injects into a pod, and the authority's certificate.
func (d *directory) run(t *testing.T, token string) *ststest.Application {
	t.Helper()
	return d.start(t, withOption, token, "AZURE_AUTHORITY_HOST="+d.url)
}

func (d *directory) start(t *testing.T, mode, token string, more ...string) *ststest.Application {
	t.Helper()
	return d.Start(t, mode, token, func(files ststest.Files) []string {
		return append([]string{
			"AZURE_CLIENT_ID=" + testClient,
			"AZURE_FEDERATED_TOKEN_FILE=" + files.Token,
			"AZURE_TENANT_ID=" + testTenant,
			"SSL_CERT_FILE=" + files.CA,
		}, more...)
	})
}

// readAs has an application read the blob.
func (d *directory) readAs(t *testing.T, app *ststest.Application) report {
	t.Helper()
	var r report
	app.Ask(t, d.url+"/demo/a/hello.txt", &r)
	return r
}

func TestSDK(t *testing.T) {
	d := newDirectory(t)
	app := d.run(t, d.token(t, nil))
	got := d.readAs(t, app)
	if got.Status != http.StatusOK || got.Content != testContent {
		t.Fatalf("got %+v", got)
	}
	// The SDK counts expires_in from its own clock, where the lab's stands still.
	if early := got.Expires.Sub(d.Clock.Now().Add(3599 * time.Second)); early < 0 || early > time.Minute {
		t.Errorf("the SDK keeps the token until %s", got.Expires)
	}
	d.Clock.Advance(time.Hour)
	if got := d.readAs(t, app); got.Status != http.StatusUnauthorized || !strings.Contains(got.Content, "The token is expired.") {
		t.Errorf("after it expired: %+v", got)
	}
}

// grants returns how many access tokens were granted for a token.
func (d *directory) grants(token string) int {
	n := 0
	for _, e := range d.Trace.Journey(trace.JourneyOf(token)) {
		if e.Step == "grant" {
			n++
		}
	}
	return n
}

// TestSDKAsksForShortTokensEachTime documents that the SDK takes a token that
// lives for five minutes or less for one that is over: each use asks for another.
func TestSDKAsksForShortTokensEachTime(t *testing.T) {
	d := newDirectory(t)
	const uses = 3
	for _, test := range []struct {
		lifetime time.Duration
		many     bool
	}{{time.Hour, false}, {200 * time.Second, true}} {
		d.serve(t, func(c *Config) { c.Lifetime = test.lifetime })
		token := d.token(t, map[string]any{"jti": test.lifetime.String()})
		app := d.run(t, token)
		for range uses {
			if got := d.readAs(t, app); got.Content != testContent {
				t.Fatalf("got %+v", got)
			}
		}
		// Once for the application and once for the pipeline, which asks with CAE.
		if n := d.grants(token); n > 2 != test.many || test.many && n < uses {
			t.Errorf("%d tokens of %s for %d uses", n, test.lifetime, uses)
		}
	}
}

// TestSDKKeepsAssertion documents that the SDK reads the token file once in ten
// minutes, although Kubernetes may have it replaced after eight: it goes on to
// send an assertion that has expired.
func TestSDKKeepsAssertion(t *testing.T) {
	d := newDirectory(t)
	d.serve(t, func(c *Config) { c.Lifetime = 200 * time.Second }) // so that each use needs another one
	first := d.token(t, nil)
	app := d.run(t, first)
	if got := d.readAs(t, app); got.Content != testContent {
		t.Fatalf("control: %+v", got)
	}
	d.Clock.Advance(20 * time.Minute) // the service's clock; for the SDK it is a moment
	second := d.token(t, map[string]any{"jti": "second"})
	if err := os.WriteFile(app.Token, []byte(second), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := d.readAs(t, app); got.Status != http.StatusUnauthorized || !strings.Contains(got.Error, "AADSTS700024") {
		t.Errorf("with a fresh token in the file: %+v", got)
	}
	if n := d.grants(second); n != 0 {
		t.Errorf("%d tokens for the fresh one", n)
	}
	if got := d.readAs(t, d.run(t, second)); got.Content != testContent {
		t.Errorf("control: another process with that file: %+v", got)
	}
}

// TestSDKInProduction runs an application with production settings, instance
// discovery included, behind a proxy that leads to the service whatever host is
// asked for.
func TestSDKInProduction(t *testing.T) {
	d := newDirectory(t)
	public := d.Listen(t, publicHost)
	var mu sync.Mutex
	var seen []string
	public.Serve(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		seen = append(seen, r.Method+" "+r.Host+r.URL.Path)
		mu.Unlock()
		d.handler.ServeHTTP(w, r)
	}))
	proxy := httptest.NewServer(connectTo(strings.TrimPrefix(public.URL(), "https://")))
	t.Cleanup(proxy.Close)

	app := d.start(t, production, d.token(t, nil), "AZURE_AUTHORITY_HOST=https://"+publicHost+"/", "HTTPS_PROXY="+proxy.URL)
	if got := d.readAs(t, app); got.Status != http.StatusOK || got.Content != testContent {
		t.Fatalf("got %+v", got)
	}
	mu.Lock()
	defer mu.Unlock()
	want := []string{
		"GET " + publicHost + "/" + testTenant + "/v2.0/.well-known/openid-configuration",
		"GET " + publicHost + "/common/discovery/instance",
		"POST " + publicHost + "/" + testTenant + "/oauth2/v2.0/token",
	}
	slices.Sort(seen)
	if !slices.Equal(slices.Compact(seen), want) {
		t.Errorf("the service saw %q, want %q", seen, want)
	}
}

// TestSDKBehindTokenProxy runs an application with EnableAzureProxy, whose
// authority is Entra's own.
func TestSDKBehindTokenProxy(t *testing.T) {
	d := newDirectory(t)
	const name = "proxy.aks.example"
	proxy := d.Listen(t, name)
	var mu sync.Mutex
	var seen []string
	proxy.Serve(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		seen = append(seen, r.Method+" "+r.Host+r.URL.Path+" "+r.TLS.ServerName)
		mu.Unlock()
		d.handler.TokenProxy().ServeHTTP(w, r)
	}))
	start := func(token string) *ststest.Application {
		return d.Start(t, behindProxy, token, func(files ststest.Files) []string {
			return []string{
				"AZURE_AUTHORITY_HOST=https://" + publicHost + "/",
				"AZURE_CLIENT_ID=" + testClient,
				"AZURE_FEDERATED_TOKEN_FILE=" + files.Token,
				"AZURE_KUBERNETES_CA_FILE=" + files.CA,
				"AZURE_KUBERNETES_SNI_NAME=" + name,
				"AZURE_KUBERNETES_TOKEN_PROXY=" + proxy.URL(),
				"AZURE_TENANT_ID=" + testTenant,
				"SSL_CERT_FILE=" + files.CA, // for the storage account
				"HTTPS_PROXY=http://127.0.0.1:1",
			}
		})
	}
	if got := d.readAs(t, start(d.token(t, nil))); got.Status != http.StatusOK || got.Content != testContent {
		t.Fatalf("got %+v", got)
	}
	if got := d.readAs(t, start(d.token(t, map[string]any{"sub": otherSubject}))); got.Status != http.StatusUnauthorized || !strings.Contains(got.Error, "AADSTS700213") {
		t.Errorf("another subject: %+v", got)
	}
	mu.Lock()
	defer mu.Unlock()
	want := []string{
		"GET " + publicHost + "/" + testTenant + "/v2.0/.well-known/openid-configuration " + name,
		"GET " + publicHost + "/common/discovery/instance " + name,
		"POST " + publicHost + "/" + testTenant + "/oauth2/v2.0/token " + name,
	}
	slices.Sort(seen)
	if !slices.Equal(slices.Compact(seen), want) {
		t.Errorf("the proxy saw %q, want %q", seen, want)
	}
}

// TestTokenProxy is what the proxy is not for.
func TestTokenProxy(t *testing.T) {
	d := newDirectory(t)
	proxy := d.Listen(t)
	proxy.Serve(d.handler.TokenProxy())
	configuration := "/" + testTenant + "/v2.0/.well-known/openid-configuration"
	for _, test := range []struct {
		name, host, path string
		status           int
	}{
		{"control", publicHost, configuration, http.StatusOK},
		{"the lab's own authority", strings.TrimPrefix(d.url, "https://"), configuration, http.StatusOK},
		{"another host", "login.example.com", configuration, http.StatusMisdirectedRequest},
		{"no host but its own", "", configuration, http.StatusMisdirectedRequest},
		{"a blob", publicHost, "/demo/a/hello.txt", http.StatusNotFound},
	} {
		request := ststest.Request(t, http.MethodGet, proxy.URL()+test.path, "")
		request.Host = test.host
		if status, _, body := d.Do(t, request); status != test.status {
			t.Errorf("%s: %d %s, want %d", test.name, status, body, test.status)
		}
	}
}

// connectTo returns a proxy that connects all tunnels to one address.
func connectTo(address string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodConnect {
			http.Error(w, "CONNECT only", http.StatusMethodNotAllowed)
			return
		}
		server, err := new(net.Dialer).DialContext(r.Context(), "tcp", address)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
			return
		}
		defer server.Close()
		client, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		defer client.Close()
		go func() {
			_, _ = io.WriteString(client, "HTTP/1.1 200 OK\r\n\r\n")
			_, _ = io.Copy(server, client)
			server.Close() // ends the other direction
		}()
		_, _ = io.Copy(client, server)
	})
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
			got := d.readAs(t, d.run(t, test.token))
			if got.Status != test.status || got.Type != "*azidentity.AuthenticationFailedError" || !strings.Contains(got.Error, test.code+":") {
				t.Errorf("got %+v; want %d with %s", got, test.status, test.code)
			}
		})
	}
}
