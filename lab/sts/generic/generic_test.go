package generic

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"go.uber.org/goleak"
	"golang.org/x/oauth2"
	"golang.org/x/oauth2/clientcredentials"

	"github.com/oidclab/oidclab/lab/sts"
	"github.com/oidclab/oidclab/lab/sts/internal/ststest"
	"github.com/oidclab/oidclab/lab/trace"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	testSubject  = "system:serviceaccount:demo:app"
	testAudience = "token-service" // of subject tokens
	testTarget   = "inventory"
	uriTarget    = "https://inventory.example/api"
)

// service is a served Handler with an issuer, and a resource.
type service struct {
	*ststest.Lab
	issuer   *ststest.Issuer
	handler  *Handler
	url      string
	resource string
}

func newService(t testing.TB) *service {
	t.Helper()
	l := ststest.New(t)
	s := &service{Lab: l, issuer: l.NewIssuer(t)}
	server := l.Listen(t)
	s.url = server.URL()
	handler, err := New(s.config())
	if err != nil {
		t.Fatal(err)
	}
	s.handler = handler
	server.Serve(handler)

	resource, err := Resource(ResourceConfig{Audience: testTarget, Issuer: s.url, Client: l.Client, Clock: l.Clock, Trace: l.Trace})
	if err != nil {
		t.Fatal(err)
	}
	server = l.Listen(t)
	s.resource = server.URL() + "/resource"
	server.Serve(resource)
	return s
}

func (s *service) config() Config {
	party := func(name string, profile sts.Profile) Party {
		var roles []sts.Role
		for _, target := range []string{testTarget, uriTarget} {
			roles = append(roles, sts.Role{Name: target, Trust: []sts.Statement{{
				Issuer:     s.issuer.URL,
				Conditions: []sts.Condition{{Operator: sts.StringLike, Claim: "sub", Values: []string{"system:serviceaccount:demo:*"}}},
			}}})
		}
		return Party{Name: name, Profile: profile, Roles: roles,
			Issuers: []sts.Issuer{{URL: s.issuer.URL, Audiences: []string{testAudience}}}}
	}
	lenient := party("pure-ttl", sts.STACKIT())
	lenient.InvalidGrant = true
	return Config{URL: s.url, Parties: []Party{party("generic", sts.Strict()), lenient}, Client: s.Client, Clock: s.Clock, Trace: s.Trace}
}

func (s *service) token(t testing.TB, changes map[string]any) string {
	t.Helper()
	return s.issuer.Sign(t, s.issuer.Claims(testSubject, testAudience, changes))
}

func exchangeForm(token string) url.Values {
	return url.Values{
		"grant_type": {grantType}, "subject_token": {token}, "subject_token_type": {tokenTypeJWT}, "audience": {testTarget},
	}
}

type answer struct {
	status int
	header http.Header
	body   string

	AccessToken     string `json:"access_token"`
	IssuedTokenType string `json:"issued_token_type"`
	TokenType       string `json:"token_type"`
	ExpiresIn       int64  `json:"expires_in"`

	Error       string `json:"error"`
	Description string `json:"error_description"`
}

func (s *service) do(t testing.TB, request *http.Request) answer {
	t.Helper()
	response, err := s.Client.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	got := answer{status: response.StatusCode, header: response.Header, body: string(body)}
	if want := s.Clock.Now().UTC().Format(http.TimeFormat); got.header.Get("Date") != want {
		t.Errorf("Date %q, want %q", got.header.Get("Date"), want)
	}
	if strings.HasPrefix(response.Header.Get("Content-Type"), "application/json") {
		if err := json.Unmarshal(body, &got); err != nil {
			t.Fatalf("%v in %s", err, body)
		}
	}
	return got
}

func (s *service) request(t testing.TB, method, target, body string) *http.Request {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), method, target, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	return request
}

func (s *service) exchange(t testing.TB, path string, form url.Values) answer {
	t.Helper()
	return s.do(t, s.request(t, http.MethodPost, s.url+path, form.Encode()))
}

// use calls the resource with an Authorization header.
func (s *service) use(t testing.TB, authorization string) answer {
	t.Helper()
	request := s.request(t, http.MethodGet, s.resource, "")
	if authorization != "" {
		request.Header.Set("Authorization", authorization)
	}
	return s.do(t, request)
}

func TestExchange(t *testing.T) {
	s := newService(t)
	token := s.token(t, nil)
	got := s.exchange(t, "/token", exchangeForm(token))
	if got.status != http.StatusOK || got.TokenType != "Bearer" || got.IssuedTokenType != tokenTypeAccessToken || got.ExpiresIn != 600 {
		t.Fatalf("got %d %s %s for %d s: %s %s", got.status, got.TokenType, got.IssuedTokenType, got.ExpiresIn, got.Error, got.Description)
	}
	if got.header.Get("Cache-Control") != "no-store" {
		t.Errorf("Cache-Control %q", got.header.Get("Cache-Control"))
	}

	parsed, err := jwt.ParseSigned(got.AccessToken, []jose.SignatureAlgorithm{jose.ES256})
	if err != nil {
		t.Fatal(err)
	}
	if typ := parsed.Headers[0].ExtraHeaders["typ"]; typ != "at+jwt" {
		t.Errorf("typ %v", typ)
	}
	var set jose.JSONWebKeySet
	keys := s.do(t, s.request(t, http.MethodGet, s.url+"/jwks", ""))
	if err := json.Unmarshal([]byte(keys.body), &set); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(keys.body, `"d"`) || len(set.Keys) != 1 || !set.Keys[0].IsPublic() {
		t.Fatalf("key set %s", keys.body)
	}
	var claims map[string]any
	if err := parsed.Claims(set.Keys[0], &claims); err != nil {
		t.Fatal(err)
	}
	now := float64(s.Clock.Now().Unix())
	for name, want := range map[string]any{
		"iss": s.url, "sub": testSubject, "aud": testTarget, "client_id": testSubject, "subject_issuer": s.issuer.URL,
		"oidclab_journey": trace.JourneyOf(token), "iat": now, "exp": now + 600,
	} {
		if claims[name] != want {
			t.Errorf("claim %s: %v, want %v", name, claims[name], want)
		}
	}
	again, err := jwt.ParseSigned(s.exchange(t, "/token", exchangeForm(token)).AccessToken, []jose.SignatureAlgorithm{jose.ES256})
	if err != nil {
		t.Fatal(err)
	}
	var second map[string]any
	if err := again.UnsafeClaimsWithoutVerification(&second); err != nil || second["jti"] == claims["jti"] || claims["jti"] == "" {
		t.Errorf("jti %v, then %v: %v", claims["jti"], second["jti"], err)
	}
	s.Secrets(t, token, got.AccessToken, signatureOf(token), signatureOf(got.AccessToken))
}

func signatureOf(token string) string { return token[strings.LastIndex(token, ".")+1:] }

// TestJourney follows a token to the resource.
func TestJourney(t *testing.T) {
	s := newService(t)
	token := s.token(t, nil)
	got := s.exchange(t, "/pure-ttl/token", exchangeForm(token))
	used := s.use(t, "Bearer "+got.AccessToken)
	var identity resourceResponse
	if err := json.Unmarshal([]byte(used.body), &identity); err != nil {
		t.Fatalf("%d: %v", used.status, err)
	}
	want := resourceResponse{testSubject, testTarget, s.url, s.Clock.Now().Add(10 * time.Minute).UTC()}
	if identity != want {
		t.Errorf("got %+v, want %+v", identity, want)
	}
	var steps []string
	for _, e := range s.Trace.Journey(trace.JourneyOf(token)) {
		if e.Step == "grant" || e.Step == "use" {
			steps = append(steps, fmt.Sprintf("%s %s %s %s", e.Station, e.Step, e.Name, e.Outcome))
		}
	}
	if want := []string{"pure-ttl grant inventory ok", "resource use inventory ok"}; !slices.Equal(steps, want) {
		t.Errorf("steps %q, want %q", steps, want)
	}

	form := exchangeForm(token)
	form.Set("scope", "all")
	s.exchange(t, "/token", form)
	events := s.Trace.Journey(trace.JourneyOf(token))
	if last := events[len(events)-1]; last.Name != "request" || last.Reason != "invalid_scope" {
		t.Errorf("a request that was refused before the core left %+v", last)
	}
}

func TestLifetime(t *testing.T) {
	s := newService(t)
	now := s.Clock.Now()
	for _, test := range []struct {
		life time.Duration // of the subject token
		want int64
	}{{time.Hour, 900}, {900 * time.Second, 900}, {899 * time.Second, 899}, {time.Second, 1}} {
		got := s.exchange(t, "/token", exchangeForm(s.token(t, map[string]any{"exp": now.Add(test.life).Unix()})))
		if got.ExpiresIn != test.want {
			t.Errorf("subject token of %s: %d s, want %d (%s)", test.life, got.ExpiresIn, test.want, got.Description)
		}
	}
}

func TestSubjectTokensRefused(t *testing.T) {
	s := newService(t)
	now := s.Clock.Now().Unix()
	stranger := s.NewIssuer(t)
	for _, test := range []struct {
		name, token, code, description string
	}{
		{"control", s.token(t, nil), "", ""},
		{"audience", s.token(t, map[string]any{"aud": "vault"}), "invalid_request", "the subject_token is for another audience"},
		{"subject", s.token(t, map[string]any{"sub": "system:serviceaccount:foreign:app"}), "invalid_target", "the target service does not trust the subject of the token"},
		{"issuer", stranger.Sign(t, stranger.Claims(testSubject, testAudience, nil)), "invalid_request", "the subject_token is of an unknown issuer"},
		{"forged", s.issuer.Forge(t, s.issuer.Claims(testSubject, testAudience, nil)), "invalid_request", "the subject_token has an invalid signature"},
		{"expired", s.token(t, map[string]any{"exp": now}), "invalid_request", "the subject_token is expired"},
		{"one second left", s.token(t, map[string]any{"exp": now + 1}), "", ""},
		{"not yet valid", s.token(t, map[string]any{"nbf": now + 1}), "invalid_request", "the subject_token is not yet valid"},
		{"garbage", "garbage", "invalid_request", "the subject_token is not a signed JWT in compact serialization"},
		{"too large", strings.Repeat("x", 100_000), "invalid_request", "the subject_token is too large"},
		{"none", "", "invalid_request", "the subject_token is missing"},
	} {
		t.Run(test.name, func(t *testing.T) {
			got := s.exchange(t, "/token", exchangeForm(test.token))
			if got.Error != test.code || got.Description != test.description || (got.status == http.StatusOK) != (test.code == "") {
				t.Errorf("got %d %s %q, want %s %q", got.status, got.Error, got.Description, test.code, test.description)
			}
			if got.header.Get("Cache-Control") != "no-store" {
				t.Errorf("Cache-Control %q", got.header.Get("Cache-Control"))
			}
			if test.code != "invalid_request" || test.token == "" {
				return
			}
			if got := s.exchange(t, "/pure-ttl/token", exchangeForm(test.token)); got.status != 400 || got.Error != "invalid_grant" {
				t.Errorf("with InvalidGrant: %d %s", got.status, got.Error)
			}
		})
	}
}

func TestRequestsRefused(t *testing.T) {
	s := newService(t)
	good := exchangeForm(s.token(t, nil))
	for _, test := range []struct {
		name   string
		change url.Values // an empty list removes the parameter
		status int
		code   string
	}{
		{"control", nil, 200, ""},
		{"no grant type", url.Values{"grant_type": nil}, 400, "invalid_request"},
		{"another grant type", url.Values{"grant_type": {"password"}}, 400, "unsupported_grant_type"},
		{"no subject token type", url.Values{"subject_token_type": nil}, 400, "invalid_request"},
		{"ID token", url.Values{"subject_token_type": {tokenTypeIDToken}}, 200, ""},
		{"SAML", url.Values{"subject_token_type": {"urn:ietf:params:oauth:token-type:saml2"}}, 400, "invalid_request"},
		{"requested access token", url.Values{"requested_token_type": {tokenTypeAccessToken}}, 200, ""},
		{"requested refresh token", url.Values{"requested_token_type": {"urn:ietf:params:oauth:token-type:refresh_token"}}, 400, "invalid_request"},
		{"actor token", url.Values{"actor_token": {"x"}, "actor_token_type": {tokenTypeJWT}}, 400, "invalid_request"},
		{"actor token type alone", url.Values{"actor_token_type": {tokenTypeJWT}}, 400, "invalid_request"},
		{"scope", url.Values{"scope": {"all"}}, 400, "invalid_scope"},
		{"empty scope", url.Values{"scope": {""}}, 200, ""},
		{"two scopes", url.Values{"scope": {"a", "b"}}, 400, "invalid_request"},
		{"client secret", url.Values{"client_secret": {"x"}}, 400, "invalid_client"},
		{"client id", url.Values{"client_id": {"x"}}, 200, ""},
		{"unknown parameter", url.Values{"x": {"y"}}, 200, ""},
		{"token twice", url.Values{"subject_token": {good.Get("subject_token"), "x"}}, 400, "invalid_request"},
		{"unknown parameter twice", url.Values{"x": {"y", "y"}}, 400, "invalid_request"},
		{"invalid UTF-8", url.Values{"x": {"\xff"}}, 400, "invalid_request"},
		{"no target", url.Values{"audience": nil}, 400, "invalid_target"},
		{"empty target", url.Values{"audience": {""}}, 400, "invalid_target"},
		{"same target twice", url.Values{"audience": {testTarget, testTarget}}, 200, ""},
		{"two targets", url.Values{"audience": {testTarget, uriTarget}}, 400, "invalid_target"},
		{"unknown target", url.Values{"audience": {"unknown"}}, 400, "invalid_target"},
		{"resource", url.Values{"audience": nil, "resource": {uriTarget}}, 200, ""},
		{"resource and audience", url.Values{"audience": {uriTarget}, "resource": {uriTarget}}, 200, ""},
		{"another resource and audience", url.Values{"resource": {uriTarget}}, 400, "invalid_target"},
		{"relative resource", url.Values{"audience": nil, "resource": {testTarget}}, 400, "invalid_target"},
		{"resource with a fragment", url.Values{"audience": nil, "resource": {uriTarget + "#x"}}, 400, "invalid_target"},
	} {
		t.Run(test.name, func(t *testing.T) {
			form := maps.Clone(good)
			maps.Copy(form, test.change)
			got := s.exchange(t, "/token", form)
			if got.status != test.status || got.Error != test.code {
				t.Errorf("got %d %s %q, want %d %s", got.status, got.Error, got.Description, test.status, test.code)
			}
			if got.header.Get("Cache-Control") != "no-store" || (got.status == 200) == (got.AccessToken == "") {
				t.Errorf("Cache-Control %q, access token of %d", got.header.Get("Cache-Control"), len(got.AccessToken))
			}
		})
	}
}

func TestTransportRefused(t *testing.T) {
	s := newService(t)
	good := exchangeForm(s.token(t, nil)).Encode()
	for _, test := range []struct {
		name, method, target, body string
		header                     http.Header
		status                     int
		code                       string
	}{
		{"control", "POST", "/token", good, nil, 200, ""},
		{"charset", "POST", "/token", good, http.Header{"Content-Type": {"application/x-www-form-urlencoded; charset=UTF-8"}}, 200, ""},
		{"GET", "GET", "/token?" + good, "", nil, 405, "invalid_request"},
		{"JSON", "POST", "/token", good, http.Header{"Content-Type": {"application/json"}}, 400, "invalid_request"},
		{"query", "POST", "/token?x=y", good, nil, 400, "invalid_request"},
		{"bad escape", "POST", "/token", good + "&x=%zz", nil, 400, "invalid_request"},
		{"huge", "POST", "/token", good + "&x=" + strings.Repeat("x", maxBodyBytes), nil, 413, "invalid_request"},
		{"client authentication", "POST", "/token", good, http.Header{"Authorization": {"Basic eDp5"}}, 401, "invalid_client"},
		{"another path", "POST", "/unknown/token", good, nil, 404, ""},
		{"POST to the keys", "POST", "/jwks", "", nil, 405, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			request := s.request(t, test.method, s.url+test.target, test.body)
			maps.Copy(request.Header, test.header)
			got := s.do(t, request)
			if got.status != test.status || got.Error != test.code {
				t.Errorf("got %d %s, want %d %s", got.status, got.Error, test.status, test.code)
			}
			if got.status == 401 && got.header.Get("WWW-Authenticate") == "" {
				t.Error("401 without WWW-Authenticate")
			}
			if got.status == 405 && got.header.Get("Allow") == "" {
				t.Error("405 without Allow")
			}
		})
	}
}

func TestMetadata(t *testing.T) {
	s := newService(t)
	for _, path := range []string{"/.well-known/oauth-authorization-server", "/.well-known/openid-configuration"} {
		var metadata struct {
			Issuer        string
			TokenEndpoint string `json:"token_endpoint"`
			JWKSURI       string `json:"jwks_uri"`
		}
		got := s.do(t, s.request(t, http.MethodGet, s.url+path, ""))
		if err := json.Unmarshal([]byte(got.body), &metadata); err != nil {
			t.Fatal(err)
		}
		if metadata.Issuer != s.url || metadata.TokenEndpoint != s.url+"/token" || metadata.JWKSURI != s.url+"/jwks" {
			t.Errorf("%s: %s", path, got.body)
		}
	}
}

// TestPartiesHaveTheirOwnKeys exchanges at one party and looks at the other's cache.
func TestPartiesHaveTheirOwnKeys(t *testing.T) {
	s := newService(t)
	s.exchange(t, "/generic/token", exchangeForm(s.token(t, nil)))
	if got := s.handler.Core("generic").Cached(s.issuer.URL).Fetches; got != 1 {
		t.Errorf("control: generic fetched keys %d times", got)
	}
	if got := s.handler.Core("pure-ttl").Cached(s.issuer.URL).Fetches; got != 0 {
		t.Errorf("pure-ttl fetched keys %d times without being asked", got)
	}
}

// TestEveryReasonHasAnAnswer walks the closed set of reasons.
func TestEveryReasonHasAnAnswer(t *testing.T) {
	type answers struct{ exchange, lenient, resource string }
	badToken := answers{"400 invalid_request", "400 invalid_grant", "401 invalid_token"}
	distrusted := answers{"400 invalid_target", "400 invalid_target", "403 insufficient_scope"}
	want := map[sts.Reason]answers{
		sts.TokenMissing:      {"400 invalid_request", "400 invalid_request", "400 invalid_request"},
		sts.IssuerUnreachable: {"503 temporarily_unavailable", "503 temporarily_unavailable", "503 "},
		sts.RoleUnknown:       distrusted, sts.IssuerNotTrusted: distrusted, sts.SubjectMismatch: distrusted, sts.ConditionMismatch: distrusted,
	}
	ask := func(reason sts.Reason) answers {
		refusal := &sts.Refusal{Reason: reason}
		strict, lenient := &party{}, &party{Party: Party{InvalidGrant: true}}
		status, code, _ := refusedByResource(refusal)
		a, b := strict.refused(tokenExchange, refusal), lenient.refused(tokenExchange, refusal)
		return answers{fmt.Sprint(a.status, " ", a.code), fmt.Sprint(b.status, " ", b.code), fmt.Sprint(status, " ", code)}
	}
	for _, reason := range sts.Reasons() {
		expected, ok := want[reason]
		if !ok {
			expected = badToken
		}
		if got := ask(reason); got != expected {
			t.Errorf("%s: answered with %q, want %q", reason, got, expected)
		}
	}
	if got := ask("unheard of"); got.exchange != "500 server_error" || got.resource != "500 " {
		t.Errorf("control: an unmapped reason is answered with %q", got)
	}
}

func TestResource(t *testing.T) {
	s := newService(t)
	good := s.exchange(t, "/token", exchangeForm(s.token(t, nil))).AccessToken
	form := exchangeForm(s.token(t, nil))
	form.Set("audience", uriTarget)
	elsewhere := s.exchange(t, "/token", form).AccessToken
	for _, test := range []struct {
		name, authorization string
		status              int
		challenge           string
	}{
		{"control", "Bearer " + good, 200, ""},
		{"scheme in lower case", "bearer " + good, 200, ""},
		{"nothing", "", 401, `Bearer realm="oidclab"`},
		{"another scheme", "Basic eDp5", 401, `Bearer realm="oidclab"`},
		{"empty", "Bearer ", 400, `Bearer realm="oidclab", error="invalid_request", error_description="the access token is missing"`},
		{"for another target", "Bearer " + elsewhere, 401, `Bearer realm="oidclab", error="invalid_token", error_description="the access token is for another audience"`},
		{"subject token", "Bearer " + s.token(t, nil), 401, `Bearer realm="oidclab", error="invalid_token", error_description="the access token has a header that is not accepted"`},
		{"altered", "Bearer " + altered(good), 401, `Bearer realm="oidclab", error="invalid_token", error_description="the access token has an invalid signature"`},
	} {
		t.Run(test.name, func(t *testing.T) {
			got := s.use(t, test.authorization)
			if got.status != test.status || got.header.Get("WWW-Authenticate") != test.challenge {
				t.Errorf("got %d %s, want %d %s", got.status, got.header.Get("WWW-Authenticate"), test.status, test.challenge)
			}
			if got.header.Get("Cache-Control") != "no-store" {
				t.Errorf("Cache-Control %q", got.header.Get("Cache-Control"))
			}
		})
	}
	if got := s.do(t, s.request(t, http.MethodPost, s.resource, "")); got.status != http.StatusMethodNotAllowed {
		t.Errorf("POST: %d", got.status)
	}
	s.Clock.Advance(10*time.Minute - time.Second)
	if got := s.use(t, "Bearer "+good); got.status != http.StatusOK {
		t.Errorf("one second before it expires: %d", got.status)
	}
	s.Clock.Advance(time.Second)
	if got := s.use(t, "Bearer "+good); got.status != http.StatusUnauthorized || !strings.Contains(got.header.Get("WWW-Authenticate"), "is expired") {
		t.Errorf("when it expires: %d %s", got.status, got.header.Get("WWW-Authenticate"))
	}
}

// altered changes the first character of the signature, all bits of which count.
func altered(token string) string {
	i := strings.LastIndex(token, ".") + 1
	replacement := "A"
	if token[i] == 'A' {
		replacement = "B"
	}
	return token[:i] + replacement + token[i+1:]
}

// TestOAuth2Client exchanges with a client library that knows nothing of us.
func TestOAuth2Client(t *testing.T) {
	s := newService(t)
	client := clientcredentials.Config{
		TokenURL:  s.url + "/token",
		AuthStyle: oauth2.AuthStyleInParams,
		EndpointParams: url.Values{
			"grant_type": {grantType}, "audience": {testTarget},
			"subject_token": {s.token(t, nil)}, "subject_token_type": {tokenTypeJWT},
		},
	}
	ctx := context.WithValue(t.Context(), oauth2.HTTPClient, s.Client)
	token, err := client.Token(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if got := s.use(t, token.Type()+" "+token.AccessToken); got.status != http.StatusOK {
		t.Errorf("resource: %d", got.status)
	}
	client.EndpointParams.Set("audience", "unknown")
	var refused *oauth2.RetrieveError
	if _, err := client.Token(ctx); !errors.As(err, &refused) || refused.ErrorCode != "invalid_target" {
		t.Errorf("unknown target: %v", err)
	}
}

func TestNewRefuses(t *testing.T) {
	s := newService(t)
	if _, err := New(s.config()); err != nil {
		t.Fatalf("control: %v", err)
	}
	for name, test := range map[string]struct {
		change func(*Config)
		want   string
	}{
		"URL with a slash":     {func(c *Config) { c.URL += "/" }, "without a trailing slash"},
		"URL over http":        {func(c *Config) { c.URL = "http://x" }, "not an https origin"},
		"no parties":           {func(c *Config) { c.Parties = nil }, "no parties"},
		"party without a name": {func(c *Config) { c.Parties[0].Name = "" }, "the name must be"},
		"party with a path":    {func(c *Config) { c.Parties[0].Name = "a/b" }, "the name must be"},
		"party twice":          {func(c *Config) { c.Parties[1].Name = "generic" }, "is there twice"},
		"short lifetime":       {func(c *Config) { c.Parties[0].Lifetime = time.Millisecond }, "less than a second"},
		"core":                 {func(c *Config) { c.Parties[0].Roles[0].Trust = nil }, "role"},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := s.config()
			test.change(&cfg)
			if _, err := New(cfg); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("error %v; want one with %q", err, test.want)
			}
		})
	}
	if _, err := Resource(ResourceConfig{Audience: testTarget, Issuer: "http://x", Client: s.Client, Clock: s.Clock}); err == nil {
		t.Error("a resource with an issuer over http was made")
	}
}

func FuzzRequest(f *testing.F) {
	f.Add(exchangeForm("a.b.c").Encode())
	f.Add("grant_type=" + grantType + "&resource=https://x&audience=&subject_token_type=" + tokenTypeJWT)
	f.Add("subject_token=x&subject_token=y&%zz")
	f.Fuzz(func(t *testing.T, body string) {
		request, e := parseRequest(body)
		switch {
		case e == nil && request.parameter == "":
			t.Fatal("accepted without a grant")
		case e != nil && (e.status < 400 || e.status > 499 || e.code == "" || strings.ContainsAny(e.description, "\"\\\n")):
			t.Fatalf("refused with %+v", e)
		}
	})
}
