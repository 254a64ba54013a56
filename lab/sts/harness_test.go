package sts

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"io"
	"log"
	"maps"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/oidclab/oidclab/lab/clock"
	"github.com/oidclab/oidclab/lab/trace"
)

// start is what the clock of every test shows at first.
var start = time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)

const (
	audience = "lab"
	subject  = "system:serviceaccount:shop:cart"
	roleName = "reader"
)

// signingKey is a key of an issuer under test.
type signingKey struct {
	kid, alg string
	private  crypto.Signer
}

var (
	rsaKey   = sync.OnceValue(func() signingKey { return newRSA("rsa-1") })
	otherRSA = sync.OnceValue(func() signingKey { return newRSA("rsa-2") })
	ecKey    = sync.OnceValue(func() signingKey { return newEC("ec-1", "ES256", elliptic.P256()) })
)

func newRSA(kid string) signingKey {
	private, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		panic(err)
	}
	return signingKey{kid, "RS256", private}
}

func newEC(kid, alg string, curve elliptic.Curve) signingKey {
	private, err := ecdsa.GenerateKey(curve, rand.Reader)
	if err != nil {
		panic(err)
	}
	return signingKey{kid, alg, private}
}

func (k signingKey) withKid(kid string) signingKey { k.kid = kid; return k }

// jwk returns the public JWK as a JSON object that a test can change.
func (k signingKey) jwk() map[string]any {
	data, err := json.Marshal(jose.JSONWebKey{Key: k.private.Public(), KeyID: k.kid, Algorithm: k.alg, Use: "sig"})
	if err != nil {
		panic(err)
	}
	var jwk map[string]any
	if err := json.Unmarshal(data, &jwk); err != nil {
		panic(err)
	}
	return jwk
}

// sign makes a compact token of a header and payload that are taken as they are.
func (k signingKey) sign(header, payload string) string {
	input := encode(header) + "." + encode(payload)
	a, ok := algorithmNamed(k.alg)
	if !ok {
		panic("algorithm " + k.alg)
	}
	h := a.hash.New()
	h.Write([]byte(input))
	digest := h.Sum(nil)
	var signature []byte
	var err error
	switch private := k.private.(type) {
	case *rsa.PrivateKey:
		var options crypto.SignerOpts = a.hash
		if a.pss {
			options = &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: a.hash}
		}
		signature, err = private.Sign(rand.Reader, digest, options)
	case *ecdsa.PrivateKey:
		r, s, signErr := ecdsa.Sign(rand.Reader, private, digest)
		err = signErr
		size := (private.Curve.Params().BitSize + 7) / 8
		signature = append(r.FillBytes(make([]byte, size)), s.FillBytes(make([]byte, size))...)
	}
	if err != nil {
		panic(err)
	}
	return input + "." + base64.RawURLEncoding.EncodeToString(signature)
}

func encode(s string) string { return base64.RawURLEncoding.EncodeToString([]byte(s)) }

func toJSON(value any) string {
	data, err := json.Marshal(value)
	if err != nil {
		panic(err)
	}
	return string(data)
}

func keySetOf(jwks ...map[string]any) string { return toJSON(map[string]any{"keys": jwks}) }

// testIssuer is a real HTTPS issuer that counts what it serves.
type testIssuer struct {
	URL    string
	server *httptest.Server

	mu          sync.Mutex
	discovery   http.HandlerFunc
	keys        http.HandlerFunc
	discoveries int
	fetches     int
}

func newIssuer(tb testing.TB, keys ...signingKey) *testIssuer {
	tb.Helper()
	i := &testIssuer{}
	i.server = httptest.NewUnstartedServer(i)
	i.server.Config.ErrorLog = log.New(io.Discard, "", 0) // handshakes that clients refuse on purpose
	i.server.StartTLS()
	tb.Cleanup(i.server.Close)
	i.URL = i.server.URL + "/c/1"
	i.serveDiscovery(toJSON(map[string]any{"issuer": i.URL, "jwks_uri": i.URL + "/openid/v1/jwks"}))
	i.publish(keys...)
	return i
}

func (i *testIssuer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	i.mu.Lock()
	var handler http.HandlerFunc
	switch r.URL.Path {
	case "/c/1/.well-known/openid-configuration":
		i.discoveries++
		handler = i.discovery
	case "/c/1/openid/v1/jwks":
		i.fetches++
		handler = i.keys
	default:
		handler = http.NotFound
	}
	i.mu.Unlock()
	handler(w, r)
}

func text(body string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(body)) }
}

func (i *testIssuer) serveDiscovery(body string) { i.handleDiscovery(text(body)) }

func (i *testIssuer) serveKeys(body string) { i.handleKeys(text(body)) }

func (i *testIssuer) handleDiscovery(h http.HandlerFunc) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.discovery = h
}

func (i *testIssuer) handleKeys(h http.HandlerFunc) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.keys = h
}

func (i *testIssuer) publish(keys ...signingKey) {
	jwks := make([]map[string]any, len(keys))
	for n, k := range keys {
		jwks[n] = k.jwk()
	}
	i.serveKeys(keySetOf(jwks...))
}

// breakKeys makes the key set answer 503.
func (i *testIssuer) breakKeys() {
	i.handleKeys(func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "down", http.StatusServiceUnavailable) })
}

func (i *testIssuer) counts() (discoveries, fetches int) {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.discoveries, i.fetches
}

// party is a relying party under test, with its issuer and clock.
type party struct {
	tb     testing.TB
	issuer *testIssuer
	clock  *clock.Lab
	trace  *trace.Log
	core   *Core
}

// newParty returns a relying party with one issuer, which publishes the RSA
// and the EC key, and one role.
func newParty(tb testing.TB, profile Profile, change ...func(*Config)) *party {
	tb.Helper()
	b := &party{tb: tb, issuer: newIssuer(tb, rsaKey(), ecKey()), clock: clock.New(nil), trace: trace.New()}
	b.clock.Freeze(start)
	cfg := Config{
		Party:   "test",
		Profile: profile,
		Issuers: []Issuer{{URL: b.issuer.URL, Audiences: []string{audience, "lab-2"}}},
		Roles: []Role{{Name: roleName, Trust: []Statement{{
			Issuer:     b.issuer.URL,
			Conditions: []Condition{{StringEquals, "sub", []string{subject}}},
		}}}},
		Client: b.issuer.server.Client(),
		Clock:  b.clock,
		Trace:  b.trace,
	}
	for _, c := range change {
		c(&cfg)
	}
	core, err := New(cfg)
	if err != nil {
		tb.Fatal(err)
	}
	b.core = core
	return b
}

// forged is a good token that a test changes before it is signed.
type forged struct {
	key     signingKey
	header  map[string]any
	claims  map[string]any
	rawHead string // instead of header
	rawBody string // instead of claims
	finish  func(token string) string
	role    string
}

// with returns a claim or header change.
func with(members map[string]any, name string, value any) { members[name] = value }

func (b *party) forge(change func(*forged)) *forged {
	now := start.Unix()
	f := &forged{
		key:    rsaKey(),
		header: map[string]any{"alg": "RS256", "kid": "rsa-1"},
		claims: map[string]any{
			"iss": b.issuer.URL, "sub": subject, "aud": []string{audience},
			"iat": now, "nbf": now, "exp": now + 600, "jti": "b7c5",
			"kubernetes.io": map[string]any{"namespace": "shop", "serviceaccount": map[string]any{"name": "cart", "uid": "1"}},
		},
		role: roleName,
	}
	if change != nil {
		change(f)
	}
	return f
}

func (f *forged) token() string {
	header, body := f.rawHead, f.rawBody
	if header == "" {
		header = toJSON(f.header)
	}
	if body == "" {
		body = toJSON(f.claims)
	}
	token := f.key.sign(header, body)
	if f.finish != nil {
		token = f.finish(token)
	}
	return token
}

func (b *party) exchange(change func(*forged)) Verdict {
	f := b.forge(change)
	return b.core.Exchange(context.Background(), Request{Token: f.token(), Role: f.role})
}

func (b *party) accepts(name string, change func(*forged)) {
	b.tb.Helper()
	if v := b.exchange(change); v.Refusal != nil {
		b.tb.Errorf("%s: refused: %v", name, v.Refusal)
	}
}

func (b *party) refuses(name string, check Check, reason Reason, change func(*forged)) *Refusal {
	b.tb.Helper()
	v := b.exchange(change)
	switch {
	case v.Refusal == nil:
		b.tb.Errorf("%s: accepted as %s, want %s", name, v.Claims.Subject, reason)
		return &Refusal{}
	case v.Refusal.Check != check || v.Refusal.Reason != reason:
		b.tb.Errorf("%s: %v, want %s (%s)", name, v.Refusal, check, reason)
	case v.Claims != nil:
		b.tb.Errorf("%s: a refused token has claims", name)
	}
	return v.Refusal
}

// like returns a JSON object text with extra members put before its end, so
// that names can occur twice.
func like(object map[string]any, extra string) string {
	return strings.TrimSuffix(toJSON(object), "}") + "," + extra + "}"
}

func without(members map[string]any, name string) map[string]any {
	rest := maps.Clone(members)
	delete(rest, name)
	return rest
}
