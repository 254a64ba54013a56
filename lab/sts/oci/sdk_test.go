package oci

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"strings"
	"testing"

	"github.com/oracle/oci-go-sdk/v65/common"
	"github.com/oracle/oci-go-sdk/v65/common/auth"
	"github.com/oracle/oci-go-sdk/v65/objectstorage"

	"github.com/oidclab/oidclab/lab/serve"
	"github.com/oidclab/oidclab/lab/sts/internal/ststest"
)

// The modes of the application: where its identity comes from.
const (
	byTokenExchange = "token exchange"
	byProxymux      = "proxymux"
)

// report is what the application saw.
type report struct {
	Content   string
	Namespace string
	Status    int // of a service error
	Code      string
	Error     string
}

// application is the vendor's client of object storage with its own identity
// providers. What the SDK takes from code only, it finds in variables of its own.
func application(mode string) (func(string) any, error) {
	identity, err := identityBy(mode)
	if err != nil {
		return nil, err
	}
	client, err := objectstorage.NewObjectStorageClientWithConfigurationProvider(identity)
	if err != nil {
		return func(string) any { return report{Error: err.Error()} }, nil
	}
	client.Host = os.Getenv("APP_STORAGE")
	return func(object string) any { return getObject(client, object) }, nil
}

func identityBy(mode string) (common.ConfigurationProvider, error) {
	if mode == byProxymux {
		return auth.OkeWorkloadIdentityConfigurationProviderWithServiceAccountTokenProvider(
			auth.NewDefaultServiceAccountTokenProvider().WithSaTokenPath(os.Getenv("APP_TOKEN_FILE")))
	}
	return auth.TokenExchangeConfigurationProviderFromIssuer(tokenFile(os.Getenv("APP_TOKEN_FILE")), auth.TokenExchangeBuilder{
		DomainUrl: os.Getenv("APP_DOMAIN"), ClientId: testClient, ClientSecret: testSecret, Region: "us-ashburn-1",
		RequestedTokenType: tokenTypeUPST, SubjectTokenType: subjectTokenType,
	})
}

// tokenFile is where the SDK gets the workload's token.
type tokenFile string

func (f tokenFile) GetToken() (string, error) {
	content, err := os.ReadFile(string(f))
	return string(content), err
}

func getObject(client objectstorage.ObjectStorageClient, object string) report {
	failed := func(err error) report {
		r := report{Error: err.Error()}
		var refused common.ServiceError
		if errors.As(err, &refused) {
			r.Status, r.Code = refused.GetHTTPStatusCode(), refused.GetCode()
		}
		return r
	}
	namespace, err := client.GetNamespace(context.Background(), objectstorage.GetNamespaceRequest{})
	if err != nil {
		return failed(err)
	}
	got, err := client.GetObject(context.Background(), objectstorage.GetObjectRequest{
		NamespaceName: namespace.Value, BucketName: common.String("demo"), ObjectName: &object,
	})
	if err != nil {
		return failed(err)
	}
	defer func() { _ = got.Content.Close() }()
	content, err := io.ReadAll(got.Content)
	if err != nil {
		return failed(err)
	}
	return report{Content: string(content), Namespace: *namespace.Value}
}

// run starts the application in a clean environment.
func (n *tenancy) run(t *testing.T, mode, token string, more ...string) *ststest.Application {
	t.Helper()
	return n.Start(t, mode, token, func(files ststest.Files) []string {
		return append([]string{
			"APP_DOMAIN=" + n.url, "APP_STORAGE=" + n.url, "APP_TOKEN_FILE=" + files.Token, "SSL_CERT_FILE=" + files.CA,
			"OCI_KUBERNETES_SERVICE_ACCOUNT_CERT_PATH=" + files.CA, "HOME=" + t.TempDir(),
		}, more...)
	})
}

func (n *tenancy) getAs(t *testing.T, app *ststest.Application) report {
	t.Helper()
	var r report
	app.Ask(t, "a/hello.txt", &r)
	return r
}

func TestSDK(t *testing.T) {
	n := newTenancy(t)
	app := n.run(t, byTokenExchange, n.token(t, nil))
	for range 2 {
		if got := n.getAs(t, app); got.Content != testContent || got.Namespace != testNamespace {
			t.Fatalf("got %+v", got)
		}
	}
	// The SDK dates requests by its own clock.
	n.Clock.Advance(clockSkew * 2)
	if got := n.getAs(t, app); got.Status != http.StatusUnauthorized || !strings.Contains(got.Error, "is not within allowed clock skew") {
		t.Errorf("ten minutes later: %+v", got)
	}
}

func TestSDKRefused(t *testing.T) {
	n := newTenancy(t)
	for name, test := range map[string]struct{ token, want string }{
		"audience": {n.token(t, map[string]any{"aud": "vault"}), "invalid token endpoint response 400 Bad Request"},
		"subject":  {n.token(t, map[string]any{"sub": strayWorkload}), "invalid token endpoint response 400 Bad Request"},
		"newline":  {n.token(t, nil) + "\n", "invalid token endpoint response 400 Bad Request"}, // the SDK does not trim the file
		"policy":   {n.token(t, map[string]any{"sub": otherSubject}), "Either the bucket named 'demo' does not exist"},
	} {
		t.Run(name, func(t *testing.T) {
			if got := n.getAs(t, n.run(t, byTokenExchange, test.token)); !strings.Contains(got.Error, test.want) {
				t.Errorf("got %+v, want %q", got, test.want)
			}
		})
	}
}

// TestSDKReadsTooLate documents that the SDK cancels the token request before it
// reads the answer: a token that does not arrive together with the header is
// lost. This server sends the token when the request has been canceled.
func TestSDKReadsTooLate(t *testing.T) {
	n := newTenancy(t)
	server := n.Listen(t)
	server.WithoutHTTP2()
	server.Serve(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body) // or the server would not notice
		w.WriteHeader(http.StatusOK)
		if err := http.NewResponseController(w).Flush(); err != nil {
			t.Error(err)
		}
		<-r.Context().Done()
	}))
	n.url = server.URL()
	got := n.getAs(t, n.run(t, byTokenExchange, n.token(t, nil)))
	// On a busy machine, the end of the answer comes before the client sees its own cancellation.
	if !strings.Contains(got.Error, "context canceled") && !strings.Contains(got.Error, "unexpected end of JSON input") {
		t.Errorf("the SDK waits for the token now: %+v", got)
	}
}

// listenAtProxymuxPort serves pods at the port that the SDK insists on, on a
// loopback address that nobody has taken, which it returns.
func (n *tenancy) listenAtProxymuxPort(t *testing.T) string {
	t.Helper()
	for i := 1; i < 255; i++ {
		host := fmt.Sprintf("127.12.250.%d", i)
		leaf, err := n.CA.Server(host)
		if err != nil {
			t.Fatal(err)
		}
		cert, err := leaf.TLS()
		if err != nil {
			t.Fatal(err)
		}
		server, err := serve.Listen(fmt.Sprintf("%s:%d", host, ProxymuxPort), cert, slog.New(slog.DiscardHandler))
		if errors.As(err, new(*serve.InUseError)) {
			continue
		}
		if err != nil {
			t.Skipf("needs the loopback address %s: %v", host, err)
		}
		t.Cleanup(func() {
			if err := server.Close(context.WithoutCancel(t.Context())); err != nil {
				t.Error(err)
			}
		})
		server.Serve(n.handler.Proxymux())
		return host
	}
	t.Fatal("every address is in use")
	return ""
}

func TestSDKInPod(t *testing.T) {
	n := newTenancy(t)
	host := n.listenAtProxymuxPort(t)
	variables := []string{"OCI_RESOURCE_PRINCIPAL_VERSION=2.2", "OCI_RESOURCE_PRINCIPAL_REGION=us-ashburn-1", "KUBERNETES_SERVICE_HOST=" + host}
	if got := n.getAs(t, n.run(t, byProxymux, n.podToken(t, nil), variables...)); got.Content != testContent {
		t.Fatalf("got %+v", got)
	}
	for name, test := range map[string]struct{ token, want string }{
		"policy":        {n.podToken(t, map[string]any{"sub": strayWorkload}), "Either the bucket named 'demo' does not exist"},
		"audience":      {n.token(t, nil), "The token is for another audience than the cluster's API server."},
		"basic cluster": {n.basic.Sign(t, n.basic.Claims(testSubject, apiAudience, nil)), "please ensure the cluster type is enhanced"},
		"nearly over":   {n.podToken(t, map[string]any{"exp": n.Clock.Now().Unix() + 200}), "service token expired"}, // the SDK wants five minutes
	} {
		t.Run(name, func(t *testing.T) {
			if got := n.getAs(t, n.run(t, byProxymux, test.token, variables...)); !strings.Contains(got.Error, test.want) {
				t.Errorf("got %+v, want %q", got, test.want)
			}
		})
	}
}
