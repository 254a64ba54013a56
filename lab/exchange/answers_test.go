package exchange_test

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"github.com/google/go-cmp/cmp"

	"github.com/oidclab/oidclab/lab/exchange"
)

const (
	testTenant  = "72f988bf-0000-4000-8000-2d7cd011db47"
	testClient  = "11111111-0000-4000-8000-000000000001"
	testProject = "5d0d0d4e-0000-4000-8000-000000000001"
	testEmail   = "demo-a1b2c3d4@sa.stackit.cloud"
	testGCPUser = "app@oidclab.iam.gserviceaccount.com"
)

// sign returns a token of the lab's issuer for 10 minutes from now, in lab time.
func (l *lab) sign(t *testing.T, subject, audience string) string {
	t.Helper()
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.SignatureAlgorithm(l.key.Algorithm), Key: l.key}, nil)
	if err != nil {
		t.Fatal(err)
	}
	now := l.clock.Now()
	token, err := jwt.Signed(signer).Claims(jwt.Claims{
		Issuer: l.issuer, Subject: subject, Audience: jwt.Audience{audience},
		IssuedAt: jwt.NewNumericDate(now), NotBefore: jwt.NewNumericDate(now), Expiry: jwt.NewNumericDate(now.Add(10 * time.Minute)),
	}).Serialize()
	if err != nil {
		t.Fatal(err)
	}
	return token
}

// useRSA gives the lab's issuer a key of the only kind that Azure takes.
func (l *lab) useRSA(t *testing.T) {
	t.Helper()
	private, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	l.key = jose.JSONWebKey{Key: private, KeyID: "k1", Algorithm: "RS256", Use: "sig"}
}

// asRefused returns the refusal that err is, or nil.
func asRefused(err error) *exchange.RefusedError {
	var refused *exchange.RefusedError
	errors.As(err, &refused)
	return refused
}

// wantRefusal wants exactly this refusal, without the secrets.
func wantRefusal(t *testing.T, what string, err error, want exchange.RefusedError, secrets ...string) {
	t.Helper()
	got := asRefused(err)
	if got == nil {
		t.Errorf("%s: got %v, want a refusal", what, err)
		return
	}
	if diff := cmp.Diff(want, *got); diff != "" {
		t.Errorf("%s: %s", what, diff)
	}
	for _, secret := range secrets {
		if strings.Contains(err.Error(), secret) {
			t.Errorf("%s: the error shows a secret", what)
		}
	}
}

// sdkExchanges are all of the clouds that send the token, at a party's origin.
func sdkExchanges() map[string]func(ctx context.Context, url string, client *http.Client) error {
	return map[string]func(context.Context, string, *http.Client) error{
		"gcp": func(ctx context.Context, url string, client *http.Client) error {
			_, err := exchange.GCP(ctx, exchange.GCPTarget{URL: url, Audience: "a", Client: client}, subjectToken)
			return err
		},
		"gcp, use": func(ctx context.Context, url string, client *http.Client) error {
			_, err := exchange.ReadObject(ctx, exchange.GCPTarget{URL: url, Client: client}, subjectToken, "demo", "greeting")
			return err
		},
		"azure": func(ctx context.Context, url string, client *http.Client) error {
			_, err := exchange.Azure(ctx, exchange.AzureTarget{Authority: url, Tenant: testTenant, ClientID: testClient, Scope: "s/.default", Client: client}, subjectToken)
			return err
		},
		"azure, use": func(ctx context.Context, url string, client *http.Client) error {
			_, err := exchange.ReadBlob(ctx, client, url, subjectToken, "demo", "greeting")
			return err
		},
		"stackit": func(ctx context.Context, url string, client *http.Client) error {
			_, err := exchange.STACKIT(ctx, exchange.STACKITTarget{TokenURL: url + "/token", Email: testEmail, Client: client}, subjectToken)
			return err
		},
		"stackit, use": func(ctx context.Context, url string, client *http.Client) error {
			_, err := exchange.ReadProject(ctx, client, url, subjectToken, testProject)
			return err
		},
	}
}

// startSDKParty serves Azure's configuration, which has no secret, and counts
// what else it is asked.
func startSDKParty(t *testing.T, handler http.HandlerFunc) *party {
	t.Helper()
	var p *party
	p = startParty(t, func(w http.ResponseWriter, r *http.Request) {
		if !strings.HasSuffix(r.URL.Path, "/.well-known/openid-configuration") {
			handler(w, r)
			return
		}
		p.requests.Add(-1)
		base := p.url + "/" + testTenant
		answer(w, 200, "application/json", `{"issuer":"`+base+`/v2.0","authorization_endpoint":"`+base+`/authorize","token_endpoint":"`+base+`/token"}`)
	})
	return p
}

func TestSDKFailuresAreNotRefusals(t *testing.T) {
	for name, handler := range map[string]http.HandlerFunc{
		"status 500":      func(w http.ResponseWriter, _ *http.Request) { answer(w, 500, "text/plain", "broken") },
		"status 503":      func(w http.ResponseWriter, _ *http.Request) { answer(w, 503, "application/json", `{"error":"x"}`) },
		"something else":  func(w http.ResponseWriter, _ *http.Request) { answer(w, 200, "text/html", "<html>hello</html>") },
		"an empty object": func(w http.ResponseWriter, _ *http.Request) { answer(w, 200, "application/json", "{}") },
		"a long answer": func(w http.ResponseWriter, _ *http.Request) {
			answer(w, 200, "application/json", strings.Repeat(" ", 1<<20+1))
		},
		"a redirect": func(w http.ResponseWriter, r *http.Request) {
			// azcore rewinds the body for the next request, be it still on its way in this one.
			_, _ = io.Copy(io.Discard, r.Body)
			http.Redirect(w, r, "/elsewhere", http.StatusTemporaryRedirect)
		},
	} {
		for what, do := range sdkExchanges() {
			if (what == "gcp, use" || what == "azure, use") && (name == "something else" || name == "an empty object") {
				continue // an object may be anything
			}
			p := startSDKParty(t, handler)
			err := do(t.Context(), p.url, p.client)
			if err == nil || asRefused(err) != nil {
				t.Errorf("%s, %s: got %v", what, name, err)
				continue
			}
			if name == "a long answer" && !strings.Contains(err.Error(), "longer than 1048576 bytes") {
				t.Errorf("%s, %s: got %v", what, name, err)
			}
			if n := p.requests.Load(); n != 1 {
				t.Errorf("%s, %s: %d requests", what, name, n)
			}
		}
	}
	stranger := startSDKParty(t, nil)
	for what, do := range sdkExchanges() {
		p := startSDKParty(t, func(http.ResponseWriter, *http.Request) {})
		err := do(t.Context(), p.url, stranger.client)
		if err == nil || asRefused(err) != nil || !strings.Contains(err.Error(), "x509") || p.requests.Load() != 0 {
			t.Errorf("%s under another root: got %v", what, err)
		}
	}
}

func TestSDKsSendNothingInTheClear(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("a request was sent") }))
	defer server.Close()
	for what, do := range sdkExchanges() {
		if err := do(t.Context(), server.URL, server.Client()); err == nil || !strings.Contains(err.Error(), "HTTPS only") {
			t.Errorf("%s: got %v", what, err)
		}
	}
}

func TestSDKErrorsDoNotShowTheToken(t *testing.T) {
	quoted := "bad token " + subjectToken + "\x1b[31m\n" + strings.Repeat("x", 5000)
	for what, do := range sdkExchanges() {
		for _, status := range []int{400, 500} {
			p := startSDKParty(t, func(w http.ResponseWriter, _ *http.Request) { answer(w, status, "text/plain", quoted) })
			err := do(t.Context(), p.url, p.client)
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

// An answer that an SDK cannot read may hold an access token all the same.
func TestSDKErrorsDoNotShowAnswers(t *testing.T) {
	for what, do := range sdkExchanges() {
		if what == "gcp, use" || what == "azure, use" {
			continue // an object may be anything
		}
		for _, body := range []string{`{"access_token":"granted"`, `{"access_token":["granted"]}`, `{"access_token":"granted","expires_in":"soon"}`} {
			p := startSDKParty(t, func(w http.ResponseWriter, _ *http.Request) { answer(w, 200, "application/json", body) })
			if err := do(t.Context(), p.url, p.client); err == nil || strings.Contains(err.Error(), "granted") {
				t.Errorf("%s, %s: got %v", what, body, err)
			}
		}
	}
}

// The SDKs do not all heed the context.
func TestSDKsEndWithTheContext(t *testing.T) {
	for what, do := range sdkExchanges() {
		ctx, cancel := context.WithCancel(t.Context())
		p := startSDKParty(t, func(_ http.ResponseWriter, r *http.Request) {
			cancel()
			<-r.Context().Done()
		})
		start := time.Now()
		err := do(ctx, p.url, p.client)
		if took := time.Since(start); !errors.Is(err, context.Canceled) || took > 10*time.Second {
			t.Errorf("%s: after %s: %v", what, took, err)
		}
		cancel()
	}
}

func unsignedJWT(claims string) string {
	part := base64.RawURLEncoding.EncodeToString
	return part([]byte(`{"alg":"none"}`)) + "." + part([]byte(claims)) + "."
}
