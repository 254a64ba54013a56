package exchange_test

import (
	"crypto/tls"
	"errors"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/oidclab/oidclab/lab/exchange"
	"github.com/oidclab/oidclab/lab/pki"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// subjectToken stands for a service-account token. No error may show it.
const subjectToken = "header.payload.signature"

// party is an HTTPS server of the lab, and counts what it is asked.
type party struct {
	url      string
	client   *http.Client
	requests atomic.Int32
}

func startParty(t *testing.T, handler http.HandlerFunc) *party {
	t.Helper()
	ca, err := pki.New("oidclab test")
	if err != nil {
		t.Fatal(err)
	}
	p := new(party)
	p.url = serveUnder(t, ca, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p.requests.Add(1)
		handler(w, r)
	}))
	p.client = newClient(t, ca)
	return p
}

func serveUnder(t *testing.T, ca *pki.CA, handler http.Handler) (url string) {
	t.Helper()
	leaf, err := ca.Server("127.0.0.1")
	if err != nil {
		t.Fatal(err)
	}
	cert, err := leaf.TLS()
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewUnstartedServer(handler)
	server.TLS = &tls.Config{Certificates: []tls.Certificate{cert}}
	server.EnableHTTP2 = true
	server.Config.ErrorLog = log.New(io.Discard, "", 0) // says nothing but that clients refused its certificate
	server.StartTLS()
	t.Cleanup(server.Close)
	return server.URL
}

func newClient(t *testing.T, ca *pki.CA) *http.Client {
	t.Helper()
	client, err := exchange.NewClient(ca.CertPEM())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.CloseIdleConnections)
	return client
}

// wantRefused wants exactly this refusal, after exactly one request.
func (p *party) wantRefused(t *testing.T, err error, want exchange.RefusedError) {
	t.Helper()
	var got *exchange.RefusedError
	if !errors.As(err, &got) {
		t.Fatalf("got %v, want a refusal", err)
	}
	if diff := cmp.Diff(want, *got); diff != "" {
		t.Error(diff)
	}
	if n := p.requests.Load(); n != 1 {
		t.Errorf("the refusal took %d requests", n)
	}
}

func answer(w http.ResponseWriter, status int, contentType, body string) {
	w.Header().Set("Content-Type", contentType)
	w.WriteHeader(status)
	_, _ = io.WriteString(w, body)
}

// exchanges are all that send the token, at a party's origin.
func exchanges(t *testing.T) map[string]func(url string, client *http.Client) error {
	return map[string]func(string, *http.Client) error{
		"aws": func(url string, client *http.Client) error {
			_, err := exchange.AWS(t.Context(), exchange.AWSTarget{Endpoint: url, Region: "eu-central-1", RoleARN: "arn", SessionName: "test", Client: client}, subjectToken)
			return err
		},
		"aws, use": func(url string, client *http.Client) error {
			_, err := exchange.WhoAmI(t.Context(), exchange.AWSTarget{Endpoint: url, Region: "eu-central-1", Client: client},
				exchange.AWSCredentials{AccessKeyID: "ASIAEXAMPLE", SecretAccessKey: "secret", SessionToken: subjectToken})
			return err
		},
		"aws, object": func(url string, client *http.Client) error {
			_, err := exchange.GetObject(t.Context(), exchange.AWSTarget{S3: url, Region: "eu-central-1", Client: client},
				exchange.AWSCredentials{AccessKeyID: "ASIAEXAMPLE", SecretAccessKey: "secret", SessionToken: subjectToken}, "demo", "greeting")
			return err
		},
		"oci": func(url string, client *http.Client) error {
			_, err := exchange.OCI(t.Context(), exchange.OCITarget{URL: url, ClientID: "demo", ClientSecret: "secret", Client: client}, subjectToken)
			return err
		},
		"oci, pod": func(url string, client *http.Client) error {
			_, err := exchange.OCIPod(t.Context(), exchange.OCITarget{PodURL: url, Client: client}, subjectToken)
			return err
		},
		"generic": func(url string, client *http.Client) error {
			_, err := exchange.Generic(t.Context(), exchange.GenericTarget{TokenURL: url + "/token", Client: client}, subjectToken)
			return err
		},
		"resource": func(url string, client *http.Client) error {
			_, err := exchange.UseResource(t.Context(), client, url+"/resource", subjectToken)
			return err
		},
		"vault, jwt": func(url string, client *http.Client) error {
			_, err := exchange.VaultJWT(t.Context(), exchange.VaultTarget{Address: url, Mount: "jwt-c1", Role: "demo", Client: client}, subjectToken)
			return err
		},
		"vault, kubernetes": func(url string, client *http.Client) error {
			_, err := exchange.VaultKubernetes(t.Context(), exchange.VaultTarget{Address: url, Mount: "kubernetes-c1", Role: "demo", Client: client}, subjectToken)
			return err
		},
		"vault, secret": func(url string, client *http.Client) error {
			_, err := exchange.ReadSecret(t.Context(), exchange.VaultTarget{Address: url, Client: client}, subjectToken, "secret/data/demo/greeting")
			return err
		},
	}
}

// What is not a refusal must not pass for one: the command line tells them
// apart by their exit codes.
func TestFailuresAreNotRefusals(t *testing.T) {
	stranger := startParty(t, func(http.ResponseWriter, *http.Request) {})
	for name, handler := range map[string]http.HandlerFunc{
		"status 500": func(w http.ResponseWriter, _ *http.Request) { answer(w, 500, "text/plain", "broken") },
		"status 503": func(w http.ResponseWriter, _ *http.Request) {
			answer(w, 503, "application/json", `{"errors":["Vault is sealed"]}`)
		},
		"something else":  func(w http.ResponseWriter, _ *http.Request) { answer(w, 200, "text/html", "<html>hello</html>") },
		"an empty object": func(w http.ResponseWriter, _ *http.Request) { answer(w, 200, "application/json", "{}") },
		"a long answer": func(w http.ResponseWriter, _ *http.Request) {
			answer(w, 200, "application/json", strings.Repeat(" ", 1<<20+1))
		},
	} {
		for what, do := range exchanges(t) {
			if (what == "resource" || what == "aws, object") && (name == "something else" || name == "an empty object") {
				continue // they may hold anything
			}
			p := startParty(t, handler)
			err := do(p.url, p.client)
			var refused *exchange.RefusedError
			if err == nil || errors.As(err, &refused) {
				t.Errorf("%s, %s: got %v", what, name, err)
			}
			if n := p.requests.Load(); n != 1 {
				t.Errorf("%s, %s: %d requests", what, name, n)
			}
		}
	}
	for what, do := range exchanges(t) {
		p := startParty(t, func(http.ResponseWriter, *http.Request) {})
		err := do(p.url, stranger.client)
		var refused *exchange.RefusedError
		if err == nil || errors.As(err, &refused) || !strings.Contains(err.Error(), "x509") || p.requests.Load() != 0 {
			t.Errorf("%s under another root: got %v", what, err)
		}
	}
}

// A redirect is an easy way to somebody else's token.
func TestRedirectsAreNotFollowed(t *testing.T) {
	for what, do := range exchanges(t) {
		for _, status := range []int{http.StatusFound, http.StatusTemporaryRedirect} {
			p := startParty(t, func(w http.ResponseWriter, r *http.Request) {
				http.Redirect(w, r, "/elsewhere", status)
			})
			if err := do(p.url, p.client); err == nil {
				t.Errorf("%s: a redirect with status %d is a success", what, status)
			}
			if n := p.requests.Load(); n != 1 {
				t.Errorf("%s: status %d was followed, %d requests", what, status, n)
			}
		}
	}
}

func TestNothingIsSentInTheClear(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("a request was sent") }))
	defer server.Close()
	for what, do := range exchanges(t) {
		if err := do(server.URL, server.Client()); err == nil || !strings.Contains(err.Error(), "HTTPS only") {
			t.Errorf("%s: got %v", what, err)
		}
	}
}

// A party may quote what it was sent.
func TestErrorsDoNotShowTheToken(t *testing.T) {
	quoted := "bad token " + subjectToken + "\x1b[31m\n" + strings.Repeat("x", 5000)
	for what, do := range exchanges(t) {
		for _, status := range []int{400, 500} {
			p := startParty(t, func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("WWW-Authenticate", `Bearer error="invalid_token", error_description="bad token `+subjectToken+`"`)
				switch said := "<Error><Code>Bad</Code><Message>bad token " + subjectToken + "</Message></Error>"; what {
				case "aws", "aws, use":
					answer(w, status, "text/xml", "<ErrorResponse>"+said+"</ErrorResponse>")
					return
				case "aws, object":
					answer(w, status, "application/xml", said)
					return
				}
				answer(w, status, "text/plain", quoted)
			})
			err := do(p.url, p.client)
			if err == nil || strings.Contains(err.Error(), subjectToken) || !strings.Contains(err.Error(), "bad token [token]") {
				t.Errorf("%s, %d: got %v", what, status, err)
				continue
			}
			if strings.ContainsAny(err.Error(), "\x1b\n") || len(err.Error()) > 1200 {
				t.Errorf("%s, %d: not fit for a terminal: %q", what, status, err)
			}
		}
	}
}

func TestNewClientWithoutARoot(t *testing.T) {
	if _, err := exchange.NewClient([]byte("nonsense")); err == nil {
		t.Error("accepted")
	}
}

func TestRefusedError(t *testing.T) {
	for want, err := range map[string]*exchange.RefusedError{
		"aws refused (403 AccessDenied): Not authorized": {Party: "aws", Status: 403, Code: "AccessDenied", Message: "Not authorized"},
		"vault refused (400): missing role":              {Party: "vault", Status: 400, Message: "missing role"},
	} {
		if err.Error() != want {
			t.Errorf("got %q, want %q", err, want)
		}
	}
}
