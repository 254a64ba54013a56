package proxy

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"

	"github.com/oidclab/oidclab/lab/clock"
	"github.com/oidclab/oidclab/lab/pki"
	"github.com/oidclab/oidclab/lab/serve"
)

// childVariable tells the test binary to be an application, and which.
const childVariable = "OIDCLAB_TEST_CHILD"

// report is what an application saw.
type report struct {
	Got   string
	Error string
}

// applications use the vendors' libraries as production code does.
var applications = map[string]func(context.Context) (string, error){
	"http":       getTarget,
	"aws":        askAWS,
	"s3":         readS3,
	"azure":      readBlob,
	"gcp":        readObject,
	"gcp-oauth2": readObjectOAuth2,
	"stackit":    readProject,
}

func child(name string) int {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	var r report
	got, err := applications[name](ctx)
	if r.Got = got; err != nil {
		r.Error = err.Error()
	}
	if err := json.NewEncoder(os.Stdout).Encode(r); err != nil {
		return 1
	}
	return 0
}

// run starts the application in a process with nothing in its environment but
// the proxy, the root certificate, and what is given.
func (l *lab) run(t *testing.T, application string, environment ...string) report {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), self)
	cmd.Env = append([]string{
		childVariable + "=" + application,
		"HTTPS_PROXY=" + l.URL(),
		"SSL_CERT_FILE=" + file(t, l.ca.CertPEM()),
	}, environment...)
	cmd.Stderr = os.Stderr
	output, err := cmd.Output()
	if err != nil {
		t.Fatalf("application %s: %v", application, err)
	}
	var r report
	if err := json.Unmarshal(output, &r); err != nil {
		t.Fatalf("application %s printed %q: %v", application, output, err)
	}
	return r
}

func file(t testing.TB, content []byte) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(name, content, 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

const targetVariable = "OIDCLAB_TEST_TARGET"

func getTarget(ctx context.Context) (string, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, os.Getenv(targetVariable), nil)
	if err != nil {
		return "", err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	return string(body), err
}

func TestUnmodifiedHTTPClient(t *testing.T) {
	l := start(t, nil)
	if got := l.run(t, "http", targetVariable+"=https://sts.eu-central-1.amazonaws.com/path"); got.Got != "HTTP/2.0 sts.eu-central-1.amazonaws.com /path" {
		t.Errorf("got %+v", got)
	}
	const refused = `Get "https://example.com": Forbidden`
	if got := l.run(t, "http", targetVariable+"=https://example.com"); got.Error != refused {
		t.Errorf("got %+v, want the error %s", got, refused)
	}
}

// cluster is an issuer and what the lab's personas need around it.
type cluster struct {
	ca     *pki.CA
	client *http.Client // trusts ca
	clock  clock.Clock
	issuer string
	key    jose.JSONWebKey
}

const subject = "system:serviceaccount:demo:app"

func newCluster(t *testing.T) *cluster {
	t.Helper()
	ca := newAuthority(t)
	private, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: ca.Pool()}}
	c := &cluster{
		ca: ca, client: &http.Client{Transport: transport}, clock: clock.System{},
		key: jose.JSONWebKey{Key: private, KeyID: "k1", Algorithm: "RS256", Use: "sig"},
	}
	server := c.listen(t)
	c.issuer = server.URL()
	documents := http.NewServeMux()
	documents.HandleFunc("GET /.well-known/openid-configuration", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, map[string]any{"issuer": c.issuer, "jwks_uri": c.issuer + "/jwks"})
	})
	documents.HandleFunc("GET /jwks", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, jose.JSONWebKeySet{Keys: []jose.JSONWebKey{c.key.Public()}})
	})
	server.Serve(documents)
	return c
}

// listen opens a server whose handler is set by Serve.
func (c *cluster) listen(t *testing.T) *serve.Server {
	t.Helper()
	leaf, err := c.ca.Server("127.0.0.1")
	if err != nil {
		t.Fatal(err)
	}
	cert, err := leaf.TLS()
	if err != nil {
		t.Fatal(err)
	}
	server, err := serve.Listen("127.0.0.1:0", cert, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		c.client.CloseIdleConnections() // or Close waits for them
		if err := server.Close(context.WithoutCancel(t.Context())); err != nil {
			t.Error(err)
		}
	})
	return server
}

func answer(w http.ResponseWriter, value any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(value)
}

// token returns a token of the workload.
func (c *cluster) token(t *testing.T, audience string) string {
	t.Helper()
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.RS256, Key: c.key}, nil)
	if err != nil {
		t.Fatal(err)
	}
	now := c.clock.Now()
	token, err := jwt.Signed(signer).Claims(jwt.Claims{
		Issuer: c.issuer, Subject: subject, Audience: jwt.Audience{audience},
		IssuedAt: jwt.NewNumericDate(now), NotBefore: jwt.NewNumericDate(now), Expiry: jwt.NewNumericDate(now.Add(10 * time.Minute)),
	}).Serialize()
	if err != nil {
		t.Fatal(err)
	}
	return token
}

// clean fails the test if something was refused, or the token is in the trace.
func (l *lab) clean(t *testing.T, token string) {
	t.Helper()
	if refused := l.Refused(); len(refused) != 0 {
		t.Errorf("refused %+v", refused)
	}
	events, _ := l.trace.Since(0)
	if text := fmt.Sprintf("%+v", events); len(events) == 0 || len(token) == 0 || strings.Contains(text, token) {
		t.Errorf("%d events; none, or one holds the token", len(events))
	}
}
