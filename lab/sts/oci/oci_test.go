package oci

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/oracle/oci-go-sdk/v65/common"

	"github.com/oidclab/oidclab/lab/sts"
	"github.com/oidclab/oidclab/lab/sts/internal/ststest"
	"github.com/oidclab/oidclab/lab/trace"
)

func TestMain(m *testing.M) { ststest.Main(m, application) }

const (
	testTenancy   = "ocid1.tenancy.oc1..demo"
	testNamespace = "axdemo"
	testCluster   = "ocid1.cluster.oc1..demo"
	testUser      = "ocid1.user.oc1..app"   // may read the bucket
	otherUser     = "ocid1.user.oc1..other" // may not
	testContent   = "hello, world"

	testClient   = "deployer"
	testSecret   = "correct horse"
	otherClient  = "stranger" // may exchange tokens of the second issuer only
	testAudience = "oci"
	apiAudience  = "https://kubernetes.default.svc" // of the cluster

	testSubject   = "system:serviceaccount:demo:app"
	otherSubject  = "system:serviceaccount:demo:other-1"
	strayWorkload = "system:serviceaccount:prod:app"
)

// tenancy is a served Handler and its issuers.
type tenancy struct {
	*ststest.Lab
	issuer   *ststest.Issuer
	second   *ststest.Issuer // is trusted for otherClient only
	basic    *ststest.Issuer // of a basic cluster
	handler  *Handler
	url      string
	proxymux string
	key      *rsa.PrivateKey // of the caller
}

func newTenancy(t testing.TB) *tenancy {
	t.Helper()
	l := ststest.New(t)
	key, err := rsa.GenerateKey(rand.Reader, minKeyBits)
	if err != nil {
		t.Fatal(err)
	}
	n := &tenancy{Lab: l, issuer: l.NewIssuer(t), second: l.NewIssuer(t), basic: l.NewIssuer(t), key: key}
	server, proxymux := l.Listen(t), l.Listen(t)
	server.WithoutHTTP2()
	n.url, n.proxymux = server.URL(), proxymux.URL()+"/resourcePrincipalSessionTokens"
	if n.handler, err = New(n.config()); err != nil {
		t.Fatal(err)
	}
	server.Serve(n.handler)
	proxymux.Serve(n.handler.Proxymux())
	return n
}

func (n *tenancy) config() Config {
	return Config{
		URL: n.url, Tenancy: testTenancy, Namespace: testNamespace,
		Clients: []OAuthClient{{testClient, testSecret}, {otherClient, testSecret}, {"idle", testSecret}},
		Trusts: []Trust{
			{Name: "demo", Issuer: n.issuer.URL, Audiences: []string{testAudience}, Clients: []string{testClient}, ServiceUsers: []ServiceUser{
				{testUser, "sub eq " + testSubject}, {otherUser, "sub sw system:serviceaccount:demo:other"}, {otherUser, "sub co :backup-"},
			}},
			{Name: "second", Issuer: n.second.URL, Audiences: []string{testAudience}, Clients: []string{otherClient}, ServiceUsers: []ServiceUser{
				{otherUser, "sub eq " + testSubject},
			}},
		},
		Clusters: []Cluster{
			{OCID: testCluster, Compartment: testTenancy, Issuer: n.issuer.URL, Audiences: []string{apiAudience}},
			{OCID: testCluster + "2", Compartment: testTenancy, Issuer: n.basic.URL, Audiences: []string{apiAudience}, Basic: true},
		},
		Buckets: []Bucket{{
			Name: "demo", Objects: map[string][]byte{"a/hello.txt": []byte(testContent)},
			Readers: []string{testUser, WorkloadOCID(testCluster, "demo", "app")},
		}},
		Client: n.Client, Clock: n.Clock, Trace: n.Trace,
	}
}

// token returns a good token, with changes to its claims.
func (n *tenancy) token(t testing.TB, changes map[string]any) string {
	t.Helper()
	return n.issuer.Sign(t, n.issuer.Claims(testSubject, testAudience, changes))
}

// podToken is what the cluster puts into a pod by itself.
func (n *tenancy) podToken(t testing.TB, changes map[string]any) string {
	t.Helper()
	return n.issuer.Sign(t, n.issuer.Claims(testSubject, apiAudience, changes))
}

func publicDER(t testing.TB, key any) []byte {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func (n *tenancy) form(t testing.TB, token string) url.Values {
	t.Helper()
	return url.Values{
		"grant_type": {grantType}, "requested_token_type": {tokenTypeUPST}, "subject_token_type": {subjectTokenType},
		"subject_token": {token}, "public_key": {base64.StdEncoding.EncodeToString(publicDER(t, n.key.Public()))},
	}
}

// answer is what a test looks at of any answer.
type answer struct {
	status int
	header http.Header
	body   string

	Token       string `json:"token"`
	Error       string `json:"error"`
	Description string `json:"error_description"`
	ECID        string `json:"ecid"`
	Code        string `json:"code"`
	Message     string `json:"message"`
}

func (n *tenancy) do(t testing.TB, request *http.Request) answer {
	t.Helper()
	status, header, body := n.Do(t, request)
	got := answer{status: status, header: header, body: string(body)}
	if bytes.HasPrefix(body, []byte("{")) {
		if err := json.Unmarshal(body, &got); err != nil {
			t.Fatalf("%v in %s", err, body)
		}
	}
	return got
}

func (n *tenancy) post(t testing.TB, client string, form url.Values) answer {
	t.Helper()
	request := ststest.Request(t, http.MethodPost, n.url+"/oauth2/v1/token", form.Encode())
	request.SetBasicAuth(client, testSecret)
	return n.do(t, request)
}

func (n *tenancy) pod(t testing.TB, token string) answer {
	t.Helper()
	podKey := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: publicDER(t, n.key.Public())})
	body, err := json.Marshal(podKeyRequest{string(podKey)})
	if err != nil {
		t.Fatal(err)
	}
	request := ststest.Request(t, http.MethodPost, n.proxymux, string(body))
	request.Header.Set("Content-Type", "application/json")
	request.Header.Set("Authorization", "Bearer "+token)
	got := n.do(t, request)
	if got.status != http.StatusOK {
		return got
	}
	document, err := base64.StdEncoding.DecodeString(strings.Trim(got.body, `"`))
	if err != nil {
		t.Fatalf("%v in %s", err, got.body)
	}
	if err := json.Unmarshal(document, &got); err != nil {
		t.Fatal(err)
	}
	got.Token = strings.TrimPrefix(got.Token, securityTokenPrefix)
	return got
}

// caller signs requests as the vendor's SDK does.
type caller struct {
	token string
	key   *rsa.PrivateKey
}

func (c caller) PrivateRSAKey() (*rsa.PrivateKey, error) { return c.key, nil }
func (c caller) KeyID() (string, error)                  { return securityTokenPrefix + c.token, nil }

// call sends a signed request, after a change to it.
func (n *tenancy) call(t testing.TB, c caller, method, path, body string, change func(*http.Request)) answer {
	t.Helper()
	request := ststest.Request(t, method, n.url+path, body)
	request.Header.Set("Date", n.Clock.Now().UTC().Format(http.TimeFormat))
	request.Header.Set("Content-Type", "application/json")
	if err := common.DefaultRequestSigner(c).Sign(request); err != nil {
		t.Fatal(err)
	}
	if change != nil {
		change(request)
	}
	return n.do(t, request)
}

func (n *tenancy) read(t testing.TB, token, path string) answer {
	t.Helper()
	return n.call(t, caller{token, n.key}, http.MethodGet, path, "", nil)
}

const object = "/n/" + testNamespace + "/b/demo/o/a/hello.txt"

func TestToken(t *testing.T) {
	n := newTenancy(t)
	token := n.token(t, nil)
	got := n.post(t, testClient, n.form(t, token))
	if got.status != http.StatusOK || got.header.Get("Cache-Control") != "no-store" {
		t.Fatalf("got %d %s", got.status, got.body)
	}
	verdict := n.handler.storage.Verify(t.Context(), got.Token)
	if verdict.Refusal != nil {
		t.Fatal(verdict.Refusal)
	}
	now := n.Clock.Now()
	if c := verdict.Claims; c.Subject != testUser || !c.IssuedAt.Equal(now) || !c.Expiry.Equal(now.Add(time.Hour)) ||
		c.Raw["tenant"] != testTenancy || c.Raw["ptype"] != "user" || c.Raw["oidclab_journey"] != trace.JourneyOf(token) {
		t.Errorf("claims %+v", c)
	}
	if key, err := sessionKey(verdict.Claims); err != nil || !key.Equal(n.key.Public()) {
		t.Errorf("bound to %v, %v", key, err)
	}
	if read := n.read(t, got.Token, object); read.status != http.StatusOK || read.body != testContent {
		t.Errorf("object: %d %s", read.status, read.body)
	}
	if read := n.read(t, got.Token, "/n"); strings.TrimSpace(read.body) != `"`+testNamespace+`"` {
		t.Errorf("namespace: %d %s", read.status, read.body)
	}
	for _, rule := range []string{otherSubject, "system:serviceaccount:jobs:backup-7"} {
		other := n.post(t, testClient, n.form(t, n.token(t, map[string]any{"sub": rule})))
		if denied := n.read(t, other.Token, object); denied.status != http.StatusNotFound || denied.Code != "BucketNotFound" {
			t.Errorf("%s: %d %s", rule, denied.status, denied.body)
		}
	}
	n.Secrets(t, token, token[strings.LastIndex(token, ".")+1:], got.Token, got.Token[strings.LastIndex(got.Token, ".")+1:], testSecret)
}

func TestTokensRefused(t *testing.T) {
	n := newTenancy(t)
	now := n.Clock.Now().Unix()
	stranger := n.NewIssuer(t)
	const (
		noRule  = "the token meets no impersonation rule of the trust"
		noTrust = "no identity propagation trust has the token's issuer"
	)
	for _, test := range []struct {
		name        string
		token       string
		client      string // default testClient
		status      int
		code        string
		description string
	}{
		{name: "control"},
		{name: "control by prefix", token: n.token(t, map[string]any{"sub": otherSubject})},
		{name: "control of the second issuer", token: n.second.Sign(t, n.second.Claims(testSubject, testAudience, nil)), client: otherClient},
		{name: "control with two audiences", token: n.token(t, map[string]any{"aud": []string{"vault", testAudience}})},

		{"audience", n.token(t, map[string]any{"aud": "vault"}), "", 400, "invalid_grant", "the token's audience is not among the client claim values of the trust"},
		{"subject", n.token(t, map[string]any{"sub": strayWorkload}), "", 400, "invalid_grant", noRule},
		{"case of the subject", n.token(t, map[string]any{"sub": strings.ToUpper(testSubject)}), "", 400, "invalid_grant", noRule},
		{"prefix of the subject", n.token(t, map[string]any{"sub": testSubject + "2"}), "", 400, "invalid_grant", noRule},
		{"issuer", stranger.Sign(t, stranger.Claims(testSubject, testAudience, nil)), "", 400, "invalid_grant", noTrust},
		{"trailing slash", n.token(t, map[string]any{"iss": n.issuer.URL + "/"}), "", 400, "invalid_grant", noTrust},
		{"client of another trust", n.token(t, nil), otherClient, 400, "unauthorized_client", "no identity propagation trust lets the client exchange tokens of the issuer"},
		{"client of no trust", n.token(t, nil), "idle", 400, "unauthorized_client", "no identity propagation trust lets the client exchange tokens of the issuer"},
		{"expired", n.token(t, map[string]any{"exp": now}), "", 400, "invalid_grant", "the token is expired"},
		{name: "in its last second", token: n.token(t, map[string]any{"exp": now + 1})},
		{"not yet valid", n.token(t, map[string]any{"nbf": now + 1}), "", 400, "invalid_grant", "the token is not yet valid"},
		{"issued in the future", n.token(t, map[string]any{"iat": now + 1}), "", 400, "invalid_grant", "the token was issued in the future"},
		{"forged", n.issuer.Forge(t, n.issuer.Claims(testSubject, testAudience, nil)), "", 400, "invalid_grant", "the token's signature is invalid"},
		{"missing claim", n.token(t, map[string]any{"sub": nil}), "", 400, "invalid_grant", "the token lacks a claim"},
		{"newline", n.token(t, nil) + "\n", "", 400, "invalid_grant", "the token is not a signed JWT"},
		{"too large", strings.Repeat("x", 16<<10+1), "", 400, "invalid_grant", "the token is too large"},
	} {
		t.Run(test.name, func(t *testing.T) {
			if test.token == "" {
				test.token = n.token(t, nil)
			}
			if test.client == "" {
				test.client = testClient
			}
			if test.status == 0 {
				test.status = http.StatusOK
			}
			got := n.post(t, test.client, n.form(t, test.token))
			if got.status != test.status || got.Error != test.code || got.Description != test.description || (got.ECID == "") != (test.status == 200) {
				t.Errorf("got %d %s %q\nwant %d %s %q", got.status, got.Error, got.Description, test.status, test.code, test.description)
			}
			if strings.Contains(got.body, test.token) {
				t.Error("the answer holds the token")
			}
		})
	}
}

func TestUnreachableIssuer(t *testing.T) {
	n := newTenancy(t)
	gone := n.Listen(t)
	if err := gone.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	cfg := n.config()
	cfg.Trusts[0].Issuer = gone.URL()
	handler, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	server := n.Listen(t)
	server.Serve(handler)
	n.url = server.URL()
	got := n.post(t, testClient, n.form(t, n.token(t, map[string]any{"iss": gone.URL()})))
	if got.status != http.StatusServiceUnavailable || got.Error != "temporarily_unavailable" {
		t.Errorf("got %d %s", got.status, got.body)
	}
}

func TestRequestsRefused(t *testing.T) {
	n := newTenancy(t)
	good := n.form(t, n.token(t, nil))
	ecKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	encoded := base64.StdEncoding.EncodeToString
	for _, test := range []struct {
		name, method, user, secret string
		change                     url.Values // an empty list removes the parameter
		status                     int
		code                       string
	}{
		{name: "control", status: 200},
		{name: "control with a parameter that is unknown", change: url.Values{"x": {"y"}}, status: 200},
		{name: "GET", method: "GET", status: 405, code: "invalid_request"},
		{name: "no client", user: "-", status: 401, code: "invalid_client"},
		{name: "unknown client", user: "nobody", status: 401, code: "invalid_client"},
		{name: "unknown client without a secret", user: "nobody", secret: "-", status: 401, code: "invalid_client"},
		{name: "wrong secret", secret: testSecret + "x", status: 401, code: "invalid_client"},
		{name: "no secret", secret: "-", status: 401, code: "invalid_client"},
		{name: "no grant type", change: url.Values{"grant_type": nil}, status: 400, code: "invalid_request"},
		{name: "another grant type", change: url.Values{"grant_type": {"password"}}, status: 400, code: "unsupported_grant_type"},
		{name: "a resource principal", change: url.Values{"requested_token_type": {"urn:oci:token-type:oci-rpst"}}, status: 400, code: "invalid_request"},
		{name: "the token type of the RFC", change: url.Values{"subject_token_type": {"urn:ietf:params:oauth:token-type:jwt"}}, status: 400, code: "invalid_request"},
		{name: "no key", change: url.Values{"public_key": nil}, status: 400, code: "invalid_request"},
		{name: "key in PEM", change: url.Values{"public_key": {"-----BEGIN PUBLIC KEY-----"}}, status: 400, code: "invalid_request"},
		{name: "garbage as key", change: url.Values{"public_key": {encoded([]byte("key"))}}, status: 400, code: "invalid_request"},
		{name: "EC key", change: url.Values{"public_key": {encoded(publicDER(t, ecKey.Public()))}}, status: 400, code: "invalid_request"},
		{name: "short key", change: url.Values{"public_key": {shortKey}}, status: 400, code: "invalid_request"},
		{name: "no token", change: url.Values{"subject_token": nil}, status: 400, code: "invalid_request"},
		{name: "duplicate", change: url.Values{"subject_token_type": {"jwt", "jwt"}}, status: 400, code: "invalid_request"},
		{name: "huge", change: url.Values{"x": {strings.Repeat("x", 256<<10)}}, status: 413, code: "invalid_request"},
	} {
		t.Run(test.name, func(t *testing.T) {
			form := url.Values{}
			for _, values := range []url.Values{good, test.change} {
				for name := range values {
					form[name] = values[name]
				}
			}
			method, user, secret := http.MethodPost, testClient, testSecret
			if test.method != "" {
				method = test.method
			}
			if test.user != "" {
				user = test.user
			}
			if test.secret != "" {
				secret = strings.TrimPrefix(test.secret, "-")
			}
			request := ststest.Request(t, method, n.url+"/oauth2/v1/token", form.Encode())
			if user != "-" {
				request.SetBasicAuth(user, secret)
			}
			got := n.do(t, request)
			if got.status != test.status || got.Error != test.code || (got.Description == "") != (test.status == 200) {
				t.Errorf("got %d %s %q, want %d %s", got.status, got.Error, got.Description, test.status, test.code)
			}
			if challenge := got.header.Get("WWW-Authenticate"); (challenge != "") != (test.status == 401) {
				t.Errorf("WWW-Authenticate %q", challenge)
			}
		})
	}
}

// shortKey is an RSA key of 1024 bits.
const shortKey = "MIGfMA0GCSqGSIb3DQEBAQUAA4GNADCBiQKBgQC7vbqajDw4o6gJy8UtmIbkcpnkO3Kwc4qsEnSZp/TR+fQi62F79RHWmwKOtFmwteURgLbj7D/WGuNLGOfa/2vse3G2eHnHl5CB8ruRX9fBl/KgwCVr2JaEuUm66bBQeP5XeBotdR4cvX38uPYivCDdPjJ1QWPdspTBKcxeFbccDwIDAQAB"

// TestEveryReasonHasAnAnswer walks the closed set of reasons.
func TestEveryReasonHasAnAnswer(t *testing.T) {
	type answers struct {
		domain   string
		proxymux int
		storage  int
	}
	want := map[sts.Reason]answers{
		sts.TokenMissing:      {"400 invalid_request", 401, 401},
		sts.IssuerUnreachable: {"503 temporarily_unavailable", 503, 503},
		sts.RoleUnknown:       {"400 unauthorized_client", 500, 500},
		sts.IssuerNotTrusted:  {"400 unauthorized_client", 500, 500},
		sts.SubjectMismatch:   {"400 invalid_grant", 500, 500},
		sts.ConditionMismatch: {"400 invalid_grant", 500, 500},
		"unheard of":          {"500 server_error", 500, 401},
	}
	for _, reason := range append(sts.Reasons(), "unheard of") {
		expected, ok := want[reason]
		if !ok {
			expected = answers{"400 invalid_grant", 401, 401}
		}
		refusal := &sts.Refusal{Reason: reason}
		e := refused(refusal)
		if got := fmt.Sprintf("%d %s", e.status, e.code); got != expected.domain || e.description == "" {
			t.Errorf("%s: the token endpoint answers with %s %q, want %q", reason, got, e.description, expected.domain)
		}
		if e := refusedByProxymux(refusal); e.status != expected.proxymux || e.message == "" {
			t.Errorf("%s: proxymux answers with %d %q, want %d", reason, e.status, e.message, expected.proxymux)
		}
		if e := refusedByStorage(refusal); e.status != expected.storage || e.message == "" {
			t.Errorf("%s: storage answers with %d %q, want %d", reason, e.status, e.message, expected.storage)
		}
	}
}

func TestProxymux(t *testing.T) {
	n := newTenancy(t)
	now := n.Clock.Now().Unix()
	stranger := n.NewIssuer(t)
	for _, test := range []struct {
		name, token string
		status      int
		message     string
	}{
		{"control", n.podToken(t, nil), 200, ""},
		{"control, an account that may read nothing", n.podToken(t, map[string]any{"sub": strayWorkload}), 200, ""},
		{"no token", "", 401, "The required information to complete authentication was not provided or was incorrect."},
		{"audience", n.token(t, nil), 401, "The token is for another audience than the cluster's API server."},
		{"issuer", stranger.Sign(t, stranger.Claims(testSubject, apiAudience, nil)), 401, "The token is of another issuer than the cluster."},
		{"basic cluster", n.basic.Sign(t, n.basic.Claims(testSubject, apiAudience, nil)), 403, "Workload identity needs an enhanced cluster."},
		{"expired", n.podToken(t, map[string]any{"exp": now}), 401, "The token is expired."},
		{"forged", n.issuer.Forge(t, n.issuer.Claims(testSubject, apiAudience, nil)), 401, "The token's signature is invalid."},
		{"no service account", n.podToken(t, map[string]any{"sub": "system:node:one"}), 401, "The token is not that of a service account."},
		{"no name", n.podToken(t, map[string]any{"sub": "system:serviceaccount:demo:"}), 401, "The token is not that of a service account."},
	} {
		t.Run(test.name, func(t *testing.T) {
			got := n.pod(t, test.token)
			if got.status != test.status || got.Message != test.message {
				t.Errorf("got %d %q, want %d %q", got.status, got.Message, test.status, test.message)
			}
			if got.header.Get("Opc-Request-Id") == "" {
				t.Error("the answer has no request id")
			}
			if strings.HasSuffix(got.body, "\n") && got.status == 200 {
				t.Error("the SDK cannot read an answer with a newline")
			}
		})
	}
	if got := n.read(t, n.pod(t, n.podToken(t, nil)).Token, object); got.body != testContent {
		t.Errorf("object: %d %s", got.status, got.body)
	}
	if got := n.read(t, n.pod(t, n.podToken(t, map[string]any{"sub": strayWorkload})).Token, object); got.Code != "BucketNotFound" {
		t.Errorf("object, without a policy: %d %s", got.status, got.body)
	}
	for name, body := range map[string]string{"no JSON": "x", "no PEM": `{"podKey":"x"}`, "no key": `{"podKey":"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----"}`,
		"short key": `{"podKey":"-----BEGIN PUBLIC KEY-----\n` + shortKey + `\n-----END PUBLIC KEY-----"}`} {
		request := ststest.Request(t, http.MethodPost, n.proxymux, body)
		request.Header.Set("Authorization", "Bearer "+n.podToken(t, nil))
		if got := n.do(t, request); got.status != 400 || got.Code != "InvalidParameter" {
			t.Errorf("%s: %d %s", name, got.status, got.body)
		}
	}
}

// TestSignature sends requests of one session that differ in what is signed, and
// how. What the caller is not told is in the trace.
func TestSignature(t *testing.T) {
	n := newTenancy(t)
	granted := n.post(t, testClient, n.form(t, n.token(t, nil))).Token
	foreign, err := New(n.config()) // the same configuration with another key
	if err != nil {
		t.Fatal(err)
	}
	otherKey, err := rsa.GenerateKey(rand.Reader, minKeyBits)
	if err != nil {
		t.Fatal(err)
	}
	verdict := n.handler.core.Verify(t.Context(), n.token(t, nil))
	sign := func(h *Handler, key *rsa.PublicKey) string {
		token, err := h.grant(verdict, key, testUser, "user", workloadClaims{})
		if err != nil {
			t.Fatal(err)
		}
		return token
	}
	good := caller{granted, n.key}
	header := func(name, value string) func(*http.Request) {
		return func(r *http.Request) { r.Header.Set(name, value) }
	}
	authorization := func(old, replacement string) func(*http.Request) {
		return func(r *http.Request) {
			r.Header.Set("Authorization", strings.Replace(r.Header.Get("Authorization"), old, replacement, 1))
		}
	}
	const notAuthenticated = "The required information to complete authentication was not provided or was incorrect."
	for _, test := range []struct {
		name         string
		caller       caller
		method, path string // default GET the object
		change       func(*http.Request)
		status       int
		code, why    string // why: part of the message, or of what the trace says
	}{
		{name: "control", caller: good, status: 200},
		{name: "control signed here", caller: caller{sign(n.handler, &n.key.PublicKey), n.key}, status: 200},
		{name: "control HEAD", caller: good, method: http.MethodHead, status: 200},
		{name: "control with an escaped slash", caller: good, path: "/n/axdemo/b/demo/o/a%2Fhello.txt", status: 200},

		{"anonymous", good, "", "", func(r *http.Request) { r.Header.Del("Authorization") }, 401, "NotAuthenticated", ""},
		{"bearer", good, "", "", header("Authorization", "Bearer "+granted), 401, "NotAuthenticated", ""},
		{"API key", good, "", "", authorization("ST$", "ocid1.tenancy/ocid1.user/"), 401, "NotAuthenticated", ""},
		{"another key than the session's", caller{granted, otherKey}, "", "", nil, 401, "NotAuthenticated", "not by the session's key"},
		{"a session signed by another service", caller{sign(foreign, &n.key.PublicKey), n.key}, "", "", nil, 401, "NotAuthenticated", "key_unknown"},
		{"the cluster's token as session", caller{n.token(t, nil), n.key}, "", "", nil, 401, "NotAuthenticated", "header_refused"},
		{"another host", good, "", "", func(r *http.Request) { r.Host = "objectstorage.example" }, 401, "NotAuthenticated", "not over this request"},
		{"another object", good, "", "", func(r *http.Request) { r.URL.Path = "/n/axdemo/b/demo/o/other" }, 401, "NotAuthenticated", "not over this request"},
		{"a query more", good, "", "", func(r *http.Request) { r.URL.RawQuery = "x=y" }, 401, "NotAuthenticated", "not over this request"},
		{"another method", good, "", "", func(r *http.Request) { r.Method = http.MethodDelete }, 401, "NotAuthenticated", "not over this request"},
		{"another date", good, "", "", header("Date", n.Clock.Now().Add(time.Second).UTC().Format(http.TimeFormat)), 401, "NotAuthenticated", "not over this request"},
		{"date not signed", good, "", "", authorization("date ", ""), 401, "NotAuthenticated", "neither date nor x-date is signed"},
		{"host not signed", good, "", "", authorization(" host", ""), 401, "NotAuthenticated", "host is not signed"},
		{"target not signed", good, "", "", authorization(" (request-target)", ""), 401, "NotAuthenticated", "(request-target) is not signed"},
		{"header signed twice", good, "", "", authorization("date ", "date date "), 401, "NotAuthenticated", ""},
		{"a header that is not there", good, "", "", authorization("date ", "date opc-x "), 401, "NotAuthenticated", "opc-x is not there"},
		{"algorithm", good, "", "", authorization("rsa-sha256", "hmac-sha256"), 401, "NotAuthenticated", ""},
		{"version", good, "", "", authorization(`version="1"`, `version="2"`), 401, "NotAuthenticated", ""},
		{"no signature", good, "", "", authorization(`signature="`, `x="`), 401, "NotAuthenticated", ""},
		{"parameter twice", good, "", "", authorization(`version="1"`, `version="1",version="1"`), 401, "NotAuthenticated", ""},

		{"control of contents: authenticated, and not allowed", good, http.MethodPost, "/n/axdemo/b", nil, 404, "NotAuthorizedOrNotFound", ""},
		{"another body", good, http.MethodPost, "/n/axdemo/b", func(r *http.Request) { r.Body = io.NopCloser(strings.NewReader("BODY")) }, 401, "NotAuthenticated", "not the one that was signed"},
		{"another hash of the body", good, http.MethodPost, "/n/axdemo/b", header("X-Content-Sha256", "AAAA"), 401, "NotAuthenticated", "not over this request"},
		{"body not signed", good, http.MethodPost, "/n/axdemo/b", authorization(" x-content-sha256", ""), 401, "NotAuthenticated", "x-content-sha256 is not signed"},

		{"another bucket", good, "", "/n/axdemo/b/other/o/a", nil, 404, "BucketNotFound", "Either the bucket named 'other' does not exist in the namespace 'axdemo'"},
		{"another namespace", good, "", "/n/other/b/demo/o/a", nil, 404, "NamespaceNotFound", ""},
		{"no such object", good, "", "/n/axdemo/b/demo/o/a", nil, 404, "ObjectNotFound", "The object 'a' was not found in the bucket 'demo'"},
		{"what nobody may", good, http.MethodDelete, "", nil, 404, "NotAuthorizedOrNotFound", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			method, path, body := http.MethodGet, object, ""
			if test.method != "" {
				method = test.method
			}
			if test.path != "" {
				path = test.path
			}
			if method == http.MethodPost {
				body = "body"
			}
			before, _ := n.Trace.Since(0)
			got := n.call(t, test.caller, method, path, body, test.change)
			if got.status != test.status || got.Code != test.code || method == http.MethodGet && (got.status == 200) != (got.body == testContent) {
				t.Fatalf("got %d %s, want %d %s", got.status, got.body, test.status, test.code)
			}
			if got.status == 401 && got.Message != notAuthenticated {
				t.Errorf("message %q", got.Message)
			}
			events, _ := n.Trace.Since(before[len(before)-1].Seq)
			if test.why != "" && !strings.Contains(got.Message, test.why) && (len(events) == 0 || !strings.Contains(events[len(events)-1].Detail, test.why)) {
				t.Errorf("%q is neither in the answer %s nor in the trace %+v", test.why, got.body, events)
			}
		})
	}
}

func TestClockSkew(t *testing.T) {
	n := newTenancy(t)
	session := caller{n.post(t, testClient, n.form(t, n.token(t, nil))).Token, n.key}
	for _, test := range []struct {
		moved  time.Duration
		header string
		want   int
	}{
		{0, "Date", 200},
		{clockSkew, "Date", 200}, {clockSkew, "X-Date", 200}, {-clockSkew, "Date", 200},
		{clockSkew + time.Second, "Date", 401}, {clockSkew + time.Second, "X-Date", 401}, {-clockSkew - time.Second, "Date", 401},
	} {
		at := n.Clock.Now().Add(test.moved)
		request := ststest.Request(t, http.MethodGet, n.url+object, "")
		request.Header.Set(test.header, at.UTC().Format(http.TimeFormat))
		signer := common.RequestSigner(session, []string{strings.ToLower(test.header), "(request-target)", "host"}, nil)
		if err := signer.Sign(request); err != nil {
			t.Fatal(err)
		}
		got := n.do(t, request)
		want := fmt.Sprintf("Date '%s' is not within allowed clock skew. Current '%s'", at.UTC().Format(dateLayout), n.Clock.Now().UTC().Format(dateLayout))
		if got.status != test.want || (got.status == 401) != strings.HasPrefix(got.Message, want) {
			t.Errorf("%s %s: %d %s", test.header, test.moved, got.status, got.body)
		}
	}
	n.Clock.Advance(time.Hour - time.Second)
	if got := n.read(t, session.token, object); got.status != http.StatusOK {
		t.Errorf("in the session's last second: %d %s", got.status, got.body)
	}
	n.Clock.Advance(time.Second)
	if got := n.read(t, session.token, object); got.status != 401 {
		t.Errorf("after its life: %d %s", got.status, got.body)
	}
}

// TestJourney looks at what a token leaves in the trace, from check to use.
func TestJourney(t *testing.T) {
	n := newTenancy(t)
	token := n.token(t, nil)
	session := n.post(t, testClient, n.form(t, token)).Token
	n.read(t, session, object)
	n.read(t, session, "/n/axdemo/b/other/o/a")
	n.call(t, caller{session, n.key}, http.MethodGet, object, "", func(r *http.Request) { r.Host = "other.example" })
	n.post(t, "nobody", n.form(t, token))

	var steps []string
	for _, e := range n.Trace.Journey(trace.JourneyOf(token)) {
		if e.Step == "grant" || e.Step == "use" || e.Name == "request" {
			steps = append(steps, strings.TrimSpace(fmt.Sprintf("%s %s %s %s %s", e.Station, e.Step, e.Name, e.Outcome, e.Reason)))
		}
	}
	want := []string{
		"oci grant " + testUser + " ok",
		"oci-storage use object demo/a/hello.txt ok",
		"oci-storage use storage refused BucketNotFound",
		"oci-storage use request refused NotAuthenticated",
		"oci check request refused invalid_client",
	}
	if got := strings.Join(steps, "\n"); got != strings.Join(want, "\n") {
		t.Errorf("steps:\n%s\nwant:\n%s", got, strings.Join(want, "\n"))
	}
	n.Secrets(t, token, session, session[strings.LastIndex(session, ".")+1:], testSecret)
}

func TestNewRefuses(t *testing.T) {
	n := newTenancy(t)
	if _, err := New(n.config()); err != nil {
		t.Fatalf("control: %v", err)
	}
	rule := func(text string) func(*Config) { return func(c *Config) { c.Trusts[0].ServiceUsers[0].Rule = text } }
	for name, test := range map[string]struct {
		change func(*Config)
		want   string
	}{
		"URL with a path":       {func(c *Config) { c.URL += "/" }, "https origin"},
		"no tenancy":            {func(c *Config) { c.Tenancy = "" }, "tenancy"},
		"client twice":          {func(c *Config) { c.Clients[1].ID = testClient }, "twice"},
		"client without secret": {func(c *Config) { c.Clients[0].Secret = "" }, "no secret"},
		"two trusts in one":     {func(c *Config) { c.Trusts[1].Issuer = n.issuer.URL }, "has one already"},
		"no users":              {func(c *Config) { c.Trusts[0].ServiceUsers = nil }, "nobody could use it"},
		"no clients":            {func(c *Config) { c.Trusts[0].Clients = nil }, "nobody could use it"},
		"unknown client":        {func(c *Config) { c.Trusts[0].Clients = []string{"nobody"} }, "there is no client"},
		"no audience":           {func(c *Config) { c.Trusts[0].Audiences = nil }, "at least one audience"},
		"issuer over http":      {func(c *Config) { c.Trusts[0].Issuer = "http://issuer.example" }, "https"},
		"rule on another claim": {rule("groups co demo"), "not about sub"},
		"operator":              {rule("sub pr x"), "there is no operator"},
		"wildcard":              {rule("sub eq *"), "without wildcards"},
		"rule without a value":  {rule("sub sw "), "want a value"},
		"cluster without OCID":  {func(c *Config) { c.Clusters[0].OCID = "" }, "no OCID"},
		"cluster twice":         {func(c *Config) { c.Clusters[1].Issuer = n.issuer.URL }, "has its issuer"},
		"cluster, no audience":  {func(c *Config) { c.Clusters[0].Audiences = nil }, "at least one audience"},
		"bucket name":           {func(c *Config) { c.Buckets[0].Name = "a/b" }, "no bucket can have"},
		"bucket twice":          {func(c *Config) { c.Buckets = append(c.Buckets, c.Buckets[0]) }, "there twice"},
		"no readers":            {func(c *Config) { c.Buckets[0].Readers = nil }, "no readers"},
		"short life":            {func(c *Config) { c.Lifetime = time.Millisecond }, "less than a second"},
		"no client for issuer":  {func(c *Config) { c.Client = nil }, "client"},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := n.config()
			test.change(&cfg)
			if _, err := New(cfg); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("error %v; want one with %q", err, test.want)
			}
		})
	}
}

func FuzzSignature(f *testing.F) {
	f.Add(`Signature version="1",headers="date (request-target) host",keyId="ST$a.b.c",algorithm="rsa-sha256",signature="AAAA"`)
	f.Add(`Signature version="1",version="1"`)
	f.Fuzz(func(t *testing.T, header string) {
		s, err := parseSignature(header)
		if err == nil && (len(s.value) == 0 || !strings.HasPrefix(header, "Signature ")) {
			t.Fatalf("accepted %+v", s)
		}
		if err != nil && header != "" && len(header) > 20 && strings.Contains(err.Error(), header) {
			t.Fatal("the error quotes the header")
		}
	})
}

func FuzzParameters(f *testing.F) {
	f.Add("grant_type=" + grantType + "&requested_token_type=" + tokenTypeUPST + "&subject_token_type=jwt&public_key=" + url.QueryEscape(shortKey))
	f.Fuzz(func(t *testing.T, body string) {
		form, err := url.ParseQuery(body)
		if err != nil {
			return
		}
		request, e := parseRequest(form)
		if e != nil && (e.status != 400 || e.code == "" || e.description == "") {
			t.Fatalf("refused with %+v", e)
		}
		if e == nil && (request.key == nil || form.Get("grant_type") != grantType) {
			t.Fatalf("accepted %+v", request)
		}
	})
}
