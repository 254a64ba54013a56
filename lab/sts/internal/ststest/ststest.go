// Package ststest is what the tests of personas have in common: an HTTPS
// issuer that signs any claims, and servers that trust the same authority.
package ststest

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/oidclab/oidclab/lab/clock"
	"github.com/oidclab/oidclab/lab/pki"
	"github.com/oidclab/oidclab/lab/serve"
	"github.com/oidclab/oidclab/lab/trace"
)

// Lab is a certificate authority, a clock and a trace log.
type Lab struct {
	CA     *pki.CA
	Client *http.Client // trusts CA
	Clock  *clock.Lab
	Trace  *trace.Log
}

// New returns a lab whose clock stands at a whole second of now.
func New(t testing.TB) *Lab {
	t.Helper()
	ca, err := pki.New("ststest")
	if err != nil {
		t.Fatal(err)
	}
	l := &Lab{CA: ca, Client: clientOf(ca.Pool()), Clock: clock.New(nil), Trace: trace.New()}
	l.Clock.Freeze(time.Now().Truncate(time.Second))
	return l
}

func clientOf(pool *x509.CertPool) *http.Client {
	return &http.Client{Transport: &http.Transport{
		TLSClientConfig:   &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12},
		ForceAttemptHTTP2: true,
	}}
}

// Listen opens a server on 127.0.0.1 until the test ends, whose certificate is
// also for the given names. Its handler is set by Serve.
func (l *Lab) Listen(t testing.TB, names ...string) *serve.Server {
	t.Helper()
	leaf, err := l.CA.Server(append([]string{"127.0.0.1"}, names...)...)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := leaf.TLS()
	if err != nil {
		t.Fatal(err)
	}
	server, err := serve.Listen("127.0.0.1:0", cert, slog.New(slog.NewTextHandler(io.Discard, nil)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		l.Client.CloseIdleConnections() // or Close waits for them
		if err := server.Close(context.WithoutCancel(t.Context())); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return server
}

// Issuer is an OIDC issuer with one key at a time.
type Issuer struct {
	URL string

	lab *Lab

	mu  sync.Mutex // guards the key, which Rotate replaces
	key crypto.Signer
	kid string
}

// NewIssuer starts an issuer that signs with ES256.
func (l *Lab) NewIssuer(t testing.TB) *Issuer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return l.newIssuer(t, key)
}

// NewRSAIssuer starts an issuer that signs with RS256.
func (l *Lab) NewRSAIssuer(t testing.TB) *Issuer {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	return l.newIssuer(t, key)
}

func (l *Lab) newIssuer(t testing.TB, key crypto.Signer) *Issuer {
	t.Helper()
	server := l.Listen(t)
	i := &Issuer{URL: server.URL(), lab: l, key: key, kid: "one"}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /.well-known/openid-configuration", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, map[string]any{"issuer": i.URL, "jwks_uri": i.URL + "/jwks"})
	})
	mux.HandleFunc("GET /jwks", func(w http.ResponseWriter, _ *http.Request) { answer(w, i.keySet()) })
	server.Serve(mux)
	return i
}

func (i *Issuer) keySet() jose.JSONWebKeySet {
	i.mu.Lock()
	defer i.mu.Unlock()
	return jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: i.key.Public(), KeyID: i.kid, Algorithm: string(algorithmOf(i.key)), Use: "sig"}}}
}

// Rotate replaces the key by a new ES256 key with another kid. The old one is
// published no longer.
func (i *Issuer) Rotate(t testing.TB, kid string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	i.key, i.kid = key, kid
}

func algorithmOf(key crypto.Signer) jose.SignatureAlgorithm {
	if _, ok := key.(*rsa.PrivateKey); ok {
		return jose.RS256
	}
	return jose.ES256
}

func answer(w http.ResponseWriter, value any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(value) // the client may be gone
}

// Claims returns the claims of a good token of ten minutes, with changes.
func (i *Issuer) Claims(subject, audience string, changes map[string]any) map[string]any {
	now := i.lab.Clock.Now()
	claims := map[string]any{
		"iss": i.URL, "sub": subject, "aud": []string{audience},
		"iat": now.Unix(), "nbf": now.Unix(), "exp": now.Add(10 * time.Minute).Unix(),
	}
	maps.Copy(claims, changes)
	for name, value := range claims {
		if value == nil {
			delete(claims, name)
		}
	}
	return claims
}

// Sign returns a token with the claims, signed by the issuer's key.
func (i *Issuer) Sign(t testing.TB, claims map[string]any) string {
	t.Helper()
	i.mu.Lock()
	defer i.mu.Unlock()
	return Sign(t, i.key, i.kid, claims)
}

// Forge returns a token with the claims and the issuer's kid, signed by
// another key of the same kind.
func (i *Issuer) Forge(t testing.TB, claims map[string]any) string {
	t.Helper()
	i.mu.Lock()
	defer i.mu.Unlock()
	var key crypto.Signer
	var err error
	if algorithmOf(i.key) == jose.RS256 {
		key, err = rsa.GenerateKey(rand.Reader, 2048)
	} else {
		key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	}
	if err != nil {
		t.Fatal(err)
	}
	return Sign(t, key, i.kid, claims)
}

// Sign returns a token with the claims, signed by key.
func Sign(t testing.TB, key crypto.Signer, kid string, claims map[string]any) string {
	t.Helper()
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: algorithmOf(key), Key: key}, (&jose.SignerOptions{}).WithHeader("kid", kid))
	if err != nil {
		t.Fatal(err)
	}
	payload, err := json.Marshal(claims)
	if err != nil {
		t.Fatal(err)
	}
	signed, err := signer.Sign(payload)
	if err != nil {
		t.Fatal(err)
	}
	token, err := signed.CompactSerialize()
	if err != nil {
		t.Fatal(err)
	}
	return token
}

// Secrets fails the test if an event of the log holds one of the secrets.
func (l *Lab) Secrets(t testing.TB, secrets ...string) {
	t.Helper()
	events, _ := l.Trace.Since(0)
	if len(events) == 0 {
		t.Error("no events were written: nothing was looked at")
	}
	for _, e := range events {
		text, err := json.Marshal(e)
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range secrets {
			if s == "" {
				t.Fatal("an empty secret is in every event")
			}
			if strings.Contains(string(text), s) {
				t.Errorf("event %s/%s holds a secret", e.Step, e.Name)
			}
		}
	}
}
