package generic

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"flag"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"golang.org/x/oauth2"
	oauth2jwt "golang.org/x/oauth2/jwt"

	"github.com/oidclab/oidclab/lab/sts"
	"github.com/oidclab/oidclab/lab/sts/internal/ststest"
)

var update = flag.Bool("update", false, "rewrite the responses in testdata")

const (
	customType   = "urn:example:kubernetes-token"
	customClient = "orders"
	customSecret = "correct horse"
)

// custom is a party that speaks Auth0's dialect.
func (s *service) custom() Party {
	p := s.config().Parties[0]
	p.Name, p.Custom = "auth0", &CustomExchange{TokenType: customType, Clients: []Client{{customClient, customSecret}}}
	return p
}

// newCustom is a service with a custom party, changed.
func newCustom(t *testing.T, change func(*CustomExchange)) *service {
	t.Helper()
	s := newService(t)
	cfg := s.config()
	p := s.custom()
	if change != nil {
		change(p.Custom)
	}
	cfg.Parties = append(cfg.Parties, p)
	server := s.Listen(t)
	cfg.URL = server.URL()
	handler, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	s.url, s.handler = cfg.URL, handler
	server.Serve(handler)
	return s
}

func customForm(token string) url.Values {
	return url.Values{
		"grant_type": {grantType}, "subject_token": {token}, "subject_token_type": {customType}, "audience": {testTarget},
		"client_id": {customClient}, "client_secret": {customSecret},
	}
}

func assertionForm(token string) url.Values {
	return url.Values{"grant_type": {grantAssertion}, "assertion": {token}, "audience": {testTarget}}
}

func clientForm(token string) url.Values {
	return url.Values{
		"grant_type": {grantCredentials}, "client_assertion": {token}, "client_assertion_type": {clientAssertion}, "audience": {testTarget},
	}
}

// TestDialects sends one token in every dialect: what comes out is the same.
func TestDialects(t *testing.T) {
	s := newCustom(t, nil)
	for name, form := range map[string]url.Values{
		"/token": exchangeForm(s.token(t, nil)), "/token ": assertionForm(s.token(t, nil)), "/token  ": clientForm(s.token(t, nil)),
		"/auth0/token": customForm(s.token(t, nil)), "/oauth/token": customForm(s.token(t, nil)),
	} {
		got := s.exchange(t, strings.TrimSpace(name), form)
		if got.status != http.StatusOK || got.TokenType != "Bearer" || got.ExpiresIn != 600 || got.header.Get("Cache-Control") != "no-store" {
			t.Errorf("%s %s: %d %s", name, form.Get("grant_type"), got.status, got.body)
		}
		if exchanged := form.Get("subject_token") != ""; exchanged != (got.IssuedTokenType == tokenTypeAccessToken) {
			t.Errorf("%s: issued_token_type %q", form.Get("grant_type"), got.IssuedTokenType)
		}
		core, err := Resource(ResourceConfig{Audience: testTarget, Issuer: s.url, Client: s.Client, Clock: s.Clock})
		if err != nil {
			t.Fatal(err)
		}
		server := s.Listen(t)
		server.Serve(core)
		s.resource = server.URL() + "/resource"
		if used := s.use(t, "Bearer "+got.AccessToken); used.status != http.StatusOK || !strings.Contains(used.body, testSubject) {
			t.Errorf("%s: used: %d %s", form.Get("grant_type"), used.status, used.body)
		}
	}
}

func TestAssertionsRefused(t *testing.T) {
	s := newService(t)
	now := s.Clock.Now().Unix()
	stranger := s.NewIssuer(t)
	foreign := s.token(t, map[string]any{"sub": "system:serviceaccount:foreign:app"})
	for _, test := range []struct {
		name, token string
		change      url.Values // of both forms; an empty list removes the parameter
		grant       string     // code of the jwt-bearer grant
		client      string     // code of the client assertion
	}{
		{"control", "", nil, "", ""},
		{"control with the client's own id", "", url.Values{"client_id": {testSubject}}, "", ""},
		{"audience", s.token(t, map[string]any{"aud": "vault"}), nil, "invalid_grant", "invalid_client"},
		{"issuer", stranger.Sign(t, stranger.Claims(testSubject, testAudience, nil)), nil, "invalid_grant", "invalid_client"},
		{"expired", s.token(t, map[string]any{"exp": now}), nil, "invalid_grant", "invalid_client"},
		{"no expiry", s.token(t, map[string]any{"exp": nil}), nil, "invalid_grant", "invalid_client"},
		{"no subject", s.token(t, map[string]any{"sub": nil}), nil, "invalid_grant", "invalid_client"},
		{"forged", s.issuer.Forge(t, s.issuer.Claims(testSubject, testAudience, nil)), nil, "invalid_grant", "invalid_client"},
		{"garbage", "garbage", nil, "invalid_grant", "invalid_client"},
		{"subject", foreign, nil, "invalid_target", "invalid_target"},
		{"no token", "", url.Values{"assertion": nil, "client_assertion": nil}, "invalid_request", "invalid_request"},
		{"another client id", "", url.Values{"client_id": {"system:serviceaccount:demo:other"}}, "", "invalid_client"},
		{"another kind of client assertion", "", url.Values{"client_assertion_type": {"urn:ietf:params:oauth:client-assertion-type:saml2-bearer"}}, "", "invalid_request"},
		{"no kind of client assertion", "", url.Values{"client_assertion_type": nil}, "", "invalid_request"},
		{"secret", "", url.Values{"client_secret": {"x"}}, "invalid_client", "invalid_client"},
		{"scope", "", url.Values{"scope": {"all"}}, "invalid_scope", "invalid_scope"},
		{"no target", "", url.Values{"audience": nil}, "invalid_target", "invalid_target"},
		{"token twice", "", url.Values{"assertion": {"x", "x"}, "client_assertion": {"x", "x"}}, "invalid_request", "invalid_request"},
	} {
		t.Run(test.name, func(t *testing.T) {
			if test.token == "" {
				test.token = s.token(t, nil)
			}
			for want, form := range map[*string]url.Values{&test.grant: assertionForm(test.token), &test.client: clientForm(test.token)} {
				for name, values := range test.change {
					if form.Has(name) || name == "client_id" || name == "client_secret" || name == "scope" {
						form[name] = values
					}
				}
				got := s.exchange(t, "/token", form)
				if got.Error != *want || (got.status == http.StatusOK) != (*want == "") || got.status != http.StatusOK && got.status != http.StatusBadRequest {
					t.Errorf("%s: got %d %s %q, want %q", form.Get("grant_type"), got.status, got.Error, got.Description, *want)
				}
			}
		})
	}
	mixed := exchangeForm(s.token(t, nil))
	mixed.Set("client_assertion", s.token(t, nil))
	if got := s.exchange(t, "/token", mixed); got.Error != "invalid_client" {
		t.Errorf("a client assertion beside a token exchange: %d %s", got.status, got.Error)
	}
}

func TestCustomRefused(t *testing.T) {
	s := newCustom(t, nil)
	for _, test := range []struct {
		name   string
		change url.Values // an empty list removes the parameter
		status int
		code   string
	}{
		{"control", nil, 200, ""},
		{"no client", url.Values{"client_id": nil}, 401, "access_denied"},
		{"unknown client", url.Values{"client_id": {"nobody"}}, 401, "access_denied"},
		{"wrong secret", url.Values{"client_secret": {"x"}}, 401, "access_denied"},
		{"no secret", url.Values{"client_secret": nil}, 401, "access_denied"},
		{"no grant type", url.Values{"grant_type": nil}, 400, "invalid_request"},
		{"another grant type", url.Values{"grant_type": {grantAssertion}}, 403, "unauthorized_client"},
		{"no token type", url.Values{"subject_token_type": nil}, 400, "invalid_request"},
		{"the IETF's token type", url.Values{"subject_token_type": {tokenTypeJWT}}, 400, "invalid_request"},
		{"the vendor's token type", url.Values{"subject_token_type": {"urn:auth0:x"}}, 400, "invalid_request"},
		{"a token type without a profile", url.Values{"subject_token_type": {"urn:example:other"}}, 400, "invalid_request"},
		{"no audience", url.Values{"audience": nil}, 400, "invalid_request"},
		{"unknown audience", url.Values{"audience": {"unknown"}}, 403, "access_denied"},
		{"scope", url.Values{"scope": {"all"}}, 400, "invalid_scope"},
		{"no token", url.Values{"subject_token": nil}, 400, "invalid_request"},
		{"expired", url.Values{"subject_token": {s.token(t, map[string]any{"exp": s.Clock.Now().Unix()})}}, 400, "invalid_request"},
		{"another audience of the token", url.Values{"subject_token": {s.token(t, map[string]any{"aud": "vault"})}}, 400, "invalid_request"},
		{"forged", url.Values{"subject_token": {s.issuer.Forge(t, s.issuer.Claims(testSubject, testAudience, nil))}}, 400, "invalid_request"},
		{"subject", url.Values{"subject_token": {s.token(t, map[string]any{"sub": "system:serviceaccount:foreign:app"})}}, 400, "access_denied"},
		{"duplicate", url.Values{"audience": {testTarget, testTarget}}, 400, "invalid_request"},
	} {
		t.Run(test.name, func(t *testing.T) {
			form := customForm(s.token(t, nil))
			for name, values := range test.change {
				form[name] = values
			}
			got := s.exchange(t, "/oauth/token", form)
			if got.status != test.status || got.Error != test.code || (got.Description == "") != (test.status == 200) {
				t.Errorf("got %d %s %q, want %d %s", got.status, got.Error, got.Description, test.status, test.code)
			}
		})
	}
	form := customForm(s.token(t, nil))
	form.Del("client_id")
	form.Del("client_secret")
	request := s.request(t, http.MethodPost, s.url+"/oauth/token", form.Encode())
	request.SetBasicAuth(customClient, customSecret)
	if got := s.do(t, request); got.status != http.StatusOK {
		t.Errorf("with HTTP Basic: %d %s", got.status, got.body)
	}
}

// TestEveryReasonHasACustomAnswer walks the closed set of reasons.
func TestEveryReasonHasACustomAnswer(t *testing.T) {
	c := &CustomExchange{Denied: "not_yours"}
	want := map[sts.Reason]string{
		sts.IssuerUnreachable: "server_error", sts.RoleUnknown: "access_denied", sts.IssuerNotTrusted: "not_yours",
		sts.SubjectMismatch: "not_yours", sts.ConditionMismatch: "not_yours", "unheard of": "server_error",
	}
	for _, reason := range append(sts.Reasons(), "unheard of") {
		expected := want[reason]
		if expected == "" {
			expected = "invalid_request"
		}
		if e := c.refused(&sts.Refusal{Reason: reason}); e.code != expected || e.description == "" {
			t.Errorf("%s: %s, want %s", reason, e.code, expected)
		}
	}
}

func TestTooManyAttempts(t *testing.T) {
	const limit = 3
	s := newCustom(t, func(c *CustomExchange) { c.MaxAttempts = limit })
	bad := customForm(s.token(t, map[string]any{"aud": "vault"}))
	denied := customForm(s.token(t, map[string]any{"sub": "system:serviceaccount:foreign:app"}))
	good := func() url.Values { return customForm(s.token(t, nil)) }
	expect := func(when string, form url.Values, status int) {
		t.Helper()
		if got := s.exchange(t, "/oauth/token", form); got.status != status || status == 429 && got.Error != "too_many_attempts" {
			t.Errorf("%s: %d %s, want %d", when, got.status, got.body, status)
		}
	}
	for range limit + 1 {
		expect("good tokens do not count", good(), 200)
		expect("a subject that is not trusted does not count", denied, 400)
	}
	for range limit {
		expect("bad token", bad, 400)
	}
	expect("bad token too many", bad, 429)
	expect("good token of the same address", good(), 429)
	s.Clock.Advance(attemptInterval - time.Second)
	expect("before another attempt is earned", good(), 429)
	s.Clock.Advance(time.Second)
	expect("an attempt was earned", customForm(s.token(t, map[string]any{"aud": "vault"})), 400)
	expect("and spent", good(), 429)
	s.Clock.Advance(24 * time.Hour)
	expect("a day later", good(), 200)
}

func TestNewRefusesCustom(t *testing.T) {
	s := newService(t)
	for name, test := range map[string]struct {
		change func(*Config)
		want   string
	}{
		"control":             {func(*Config) {}, ""},
		"token type of IETF":  {func(c *Config) { c.Parties[2].Custom.TokenType = tokenTypeJWT }, "are reserved"},
		"token type of Auth0": {func(c *Config) { c.Parties[2].Custom.TokenType = "https://auth0.com/x" }, "are reserved"},
		"no URI":              {func(c *Config) { c.Parties[2].Custom.TokenType = "kubernetes" }, "not a URI of your own"},
		"no clients":          {func(c *Config) { c.Parties[2].Custom.Clients = nil }, "no clients"},
		"client, no secret":   {func(c *Config) { c.Parties[2].Custom.Clients[0].Secret = "" }, "no secret"},
		"two of them":         {func(c *Config) { c.Parties[0].Custom = s.custom().Custom }, "only one can have"},
		"no roles":            {func(c *Config) { c.Parties[2].Roles = nil }, "no roles"},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := s.config()
			cfg.Parties = append(cfg.Parties, s.custom())
			test.change(&cfg)
			if _, err := New(cfg); (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
				t.Errorf("error %v; want one with %q", err, test.want)
			}
		})
	}
}

// TestOAuth2JWT is an unmodified client of the jwt-bearer grant, which signs its
// assertions itself: here as the issuer. It cannot name a target, so that the
// party has one only.
func TestOAuth2JWT(t *testing.T) {
	s := newService(t)
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	issuer := s.Listen(t)
	mux := http.NewServeMux()
	mux.HandleFunc("GET /.well-known/openid-configuration", func(w http.ResponseWriter, _ *http.Request) {
		writeJSON(w, http.StatusOK, map[string]string{"issuer": issuer.URL(), "jwks_uri": issuer.URL() + "/keys"})
	})
	mux.HandleFunc("GET /keys", func(w http.ResponseWriter, _ *http.Request) {
		writeJSON(w, http.StatusOK, jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: key.Public(), KeyID: "one", Algorithm: "RS256", Use: "sig"}}})
	})
	issuer.Serve(mux)
	server := s.Listen(t)
	cfg := s.config()
	cfg.URL = server.URL()
	p := &cfg.Parties[0]
	p.Issuers = []sts.Issuer{{URL: issuer.URL(), Audiences: []string{testAudience}}}
	p.Roles = []sts.Role{{Name: testTarget, Trust: []sts.Statement{{
		Issuer: issuer.URL(), Conditions: []sts.Condition{{Operator: sts.StringEquals, Claim: "sub", Values: []string{testSubject}}},
	}}}}
	handler, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	server.Serve(handler)

	ctx := context.WithValue(t.Context(), oauth2.HTTPClient, s.Client)
	client := oauth2jwt.Config{
		Email: issuer.URL(), Subject: testSubject, Audience: testAudience, TokenURL: server.URL() + "/token", PrivateKeyID: "one",
		PrivateKey: pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)}), Expires: 5 * time.Minute,
	}
	token, err := client.TokenSource(ctx).Token()
	if err != nil || token.AccessToken == "" || token.TokenType != "Bearer" {
		t.Fatalf("got %+v, %v", token, err)
	}
	client.Subject = "system:serviceaccount:demo:other"
	_, err = client.TokenSource(ctx).Token()
	if refused := new(oauth2.RetrieveError); !errors.As(err, &refused) || !strings.Contains(string(refused.Body), `"invalid_target"`) {
		t.Errorf("another subject: %v", err)
	}
	client.Subject, client.Audience = testSubject, "vault"
	_, err = client.TokenSource(ctx).Token()
	if refused := new(oauth2.RetrieveError); !errors.As(err, &refused) || !strings.Contains(string(refused.Body), `"invalid_grant"`) {
		t.Errorf("another audience: %v", err)
	}
}

func TestGolden(t *testing.T) {
	s := newCustom(t, nil)
	s.Clock.Freeze(time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC))
	s.Golden(t, s.url, *update, map[string]string{
		"token":                      s.token(t, nil),
		"token for another audience": s.token(t, map[string]any{"aud": "vault"}),
		"token of another subject":   s.token(t, map[string]any{"sub": "system:serviceaccount:foreign:app"}),
		"expired token":              s.token(t, map[string]any{"exp": s.Clock.Now().Add(-time.Hour).Unix()}),
		"custom token type":          url.QueryEscape(customType),
		"secret":                     url.QueryEscape(customSecret),
	},
		ststest.Replacement{Pattern: `"access_token":"[\w.-]+"`, Name: `"access_token":"{{access token}}"`},
		ststest.Replacement{Pattern: regexp.QuoteMeta(s.url), Name: "{{generic}}"},
	)
}
