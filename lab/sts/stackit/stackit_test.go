package stackit

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"

	"github.com/oidclab/oidclab/lab/sts"
	"github.com/oidclab/oidclab/lab/sts/internal/ststest"
	"github.com/oidclab/oidclab/lab/trace"
)

func TestMain(m *testing.M) { ststest.Main(m, application) }

const (
	testEmail  = "demo-a1b2c3d4@sa.stackit.cloud"  // may read the project
	otherEmail = "other-a1b2c3d4@sa.stackit.cloud" // may not

	testSubject  = "system:serviceaccount:demo:app"
	otherSubject = "system:serviceaccount:demo:other"

	testProject = "5d0d0d4e-0000-4000-8000-000000000001"
)

// provider is a served Handler and an issuer.
type provider struct {
	*ststest.Lab
	issuer  *ststest.Issuer
	second  *ststest.Issuer // is trusted by otherEmail only
	handler *Handler
	url     string
}

func newProvider(t testing.TB) *provider {
	t.Helper()
	l := ststest.New(t)
	p := &provider{Lab: l, issuer: l.NewIssuer(t), second: l.NewIssuer(t)}
	p.serve(t, nil)
	return p
}

// serve starts a handler, with changes to its configuration.
func (p *provider) serve(t testing.TB, change func(*Config)) {
	t.Helper()
	server := p.Listen(t)
	p.url = server.URL()
	cfg := p.config()
	if change != nil {
		change(&cfg)
	}
	handler, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	p.handler = handler
	server.Serve(handler)
}

func trusting(name, issuer, subject string, more ...Assertion) Provider {
	return Provider{Name: name, Issuer: issuer, Assertions: append([]Assertion{
		{Item: "aud", Operator: "equals", Value: Audience}, {Item: "sub", Operator: "equals", Value: subject},
	}, more...)}
}

func (p *provider) config() Config {
	return Config{
		URL: p.url,
		Accounts: []ServiceAccount{
			{Email: testEmail, Providers: []Provider{trusting("demo", p.issuer.URL, testSubject)}},
			{Email: otherEmail, Providers: []Provider{
				trusting("demo", p.issuer.URL, otherSubject, Assertion{Item: "azp", Operator: "equals", Value: "deploy"}),
				trusting("second", p.second.URL, testSubject),
			}},
		},
		Projects: []Project{{ID: testProject, Name: "demo", Readers: []string{testEmail}}},
		Client:   p.Client, Clock: p.Clock, Trace: p.Trace,
	}
}

// token returns a good token, with changes to its claims.
func (p *provider) token(t testing.TB, changes map[string]any) string {
	t.Helper()
	return p.issuer.Sign(t, p.issuer.Claims(testSubject, Audience, changes))
}

func tokenForm(token string) url.Values {
	return url.Values{
		"client_assertion": {token}, "client_assertion_type": {assertionType}, "client_id": {testEmail}, "grant_type": {grantType},
	}
}

// answer is what a test looks at of any answer.
type answer struct {
	status int
	header http.Header
	body   string

	tokenResponse
	project
	apiError
	Code        string `json:"-"` // error, of either API
	Description string `json:"error_description"`
}

func (p *provider) do(t testing.TB, request *http.Request) answer {
	t.Helper()
	var got answer
	status, header, body := p.Do(t, request)
	got.status, got.header, got.body = status, header, string(body)
	if strings.HasPrefix(got.header.Get("Content-Type"), "application/json") {
		if err := json.Unmarshal(body, &got); err != nil {
			t.Fatalf("%v in %s", err, body)
		}
	}
	got.Code = got.apiError.Error
	return got
}

func (p *provider) post(t testing.TB, form url.Values) answer {
	t.Helper()
	return p.do(t, ststest.Request(t, http.MethodPost, p.url+"/oauth/v2/token", form.Encode()))
}

// read gets a project with an Authorization header.
func (p *provider) read(t testing.TB, id, authorization string) answer {
	t.Helper()
	request := ststest.Request(t, http.MethodGet, p.url+"/v2/projects/"+id, "")
	if authorization != "" {
		request.Header.Set("Authorization", authorization)
	}
	return p.do(t, request)
}

func TestToken(t *testing.T) {
	p := newProvider(t)
	token := p.token(t, nil)
	got := p.post(t, tokenForm(token))
	if got.status != http.StatusOK || got.TokenType != "Bearer" || got.ExpiresIn != 3600 || got.header.Get("Cache-Control") != "no-store" {
		t.Fatalf("got %d %s", got.status, got.body)
	}
	var configuration struct {
		Issuer string `json:"issuer"`
		Keys   string `json:"jwks_uri"`
	}
	if err := json.Unmarshal([]byte(p.do(t, ststest.Request(t, http.MethodGet, p.url+"/.well-known/openid-configuration", "")).body), &configuration); err != nil {
		t.Fatal(err)
	}
	keys := p.do(t, ststest.Request(t, http.MethodGet, configuration.Keys, ""))
	var set jose.JSONWebKeySet
	if err := json.Unmarshal([]byte(keys.body), &set); err != nil || len(set.Keys) != 1 || !set.Keys[0].IsPublic() {
		t.Fatalf("%v in %s", err, keys.body)
	}
	parsed, err := jwt.ParseSigned(got.AccessToken, []jose.SignatureAlgorithm{jose.ES256})
	if err != nil {
		t.Fatal(err)
	}
	var claims map[string]any
	if err := parsed.Claims(set.Keys[0], &claims); err != nil {
		t.Fatal(err)
	}
	now := float64(p.Clock.Now().Unix())
	for name, want := range map[string]any{
		"iss": configuration.Issuer, "aud": "stackit", "sub": testEmail, "email": testEmail,
		"oidclab_journey": trace.JourneyOf(token), "iat": now, "exp": now + 3600,
	} {
		if claims[name] != want {
			t.Errorf("claim %s: %v, want %v", name, claims[name], want)
		}
	}
	if again := p.post(t, tokenForm(token)); again.AccessToken == got.AccessToken || again.status != http.StatusOK {
		t.Error("a second answer has the token of the first")
	}
	if project := p.read(t, testProject, "Bearer "+got.AccessToken); project.ProjectID != testProject || project.Name != "demo" {
		t.Errorf("project: %d %s", project.status, project.body)
	}
	p.Secrets(t, token, token[strings.LastIndex(token, ".")+1:], got.AccessToken, got.AccessToken[strings.LastIndex(got.AccessToken, ".")+1:])
}

func TestTokensRefused(t *testing.T) {
	p := newProvider(t)
	now := p.Clock.Now().Unix()
	stranger := p.NewIssuer(t)
	const (
		noProvider  = "the service account has no federated identity provider for the token's issuer"
		unsatisfied = "the token does not satisfy the assertions of the federated identity provider"
	)
	for _, test := range []struct {
		name        string
		token       string
		email       string // default testEmail
		status      int
		code        string
		description string
	}{
		{name: "control"},
		{name: "control with all assertions", token: p.token(t, map[string]any{"sub": otherSubject, "azp": "deploy"}), email: otherEmail},
		{name: "control of the second issuer", token: p.second.Sign(t, p.second.Claims(testSubject, Audience, nil)), email: otherEmail},
		{name: "control with two audiences", token: p.token(t, map[string]any{"aud": []string{"vault", Audience}})},

		{"audience", p.token(t, map[string]any{"aud": "vault"}), "", 401, "invalid_client", unsatisfied},
		{"case of the audience", p.token(t, map[string]any{"aud": strings.ToUpper(Audience)}), "", 401, "invalid_client", unsatisfied},
		{"subject", p.token(t, map[string]any{"sub": otherSubject}), "", 401, "invalid_client", unsatisfied},
		{"case of the subject", p.token(t, map[string]any{"sub": "system:serviceaccount:Demo:app"}), "", 401, "invalid_client", unsatisfied},
		{"one assertion of three", p.token(t, map[string]any{"sub": otherSubject}), otherEmail, 401, "invalid_client", unsatisfied},
		{"issuer", stranger.Sign(t, stranger.Claims(testSubject, Audience, nil)), "", 401, "invalid_client", noProvider},
		{"issuer of another account", p.second.Sign(t, p.second.Claims(testSubject, Audience, nil)), "", 401, "invalid_client", noProvider},
		{"trailing slash", p.token(t, map[string]any{"iss": p.issuer.URL + "/"}), "", 401, "invalid_client", noProvider},
		{"unknown account", p.token(t, nil), "nobody@sa.stackit.cloud", 401, "invalid_client", "there is no such service account"},
		{"case of the account", p.token(t, nil), strings.ToUpper(testEmail), 401, "invalid_client", "there is no such service account"},
		{"expired", p.token(t, map[string]any{"exp": now}), "", 401, "invalid_client", "the token is expired"},
		{name: "in its last second", token: p.token(t, map[string]any{"exp": now + 1})},
		{"not yet valid", p.token(t, map[string]any{"nbf": now + 1}), "", 401, "invalid_client", "the token is not yet valid"},
		{"issued in the future", p.token(t, map[string]any{"iat": now + 1}), "", 401, "invalid_client", "the token was issued in the future"},
		{"forged", p.issuer.Forge(t, p.issuer.Claims(testSubject, Audience, nil)), "", 401, "invalid_client", "the token's signature is invalid"},
		{"missing claim", p.token(t, map[string]any{"sub": nil}), "", 401, "invalid_client", "the token lacks a claim"},
		{"newline", p.token(t, nil) + "\n", "", 401, "invalid_client", "the token is not a signed JWT"},
		{"too large", strings.Repeat("x", 16<<10+1), "", 401, "invalid_client", "the token is too large"},
	} {
		t.Run(test.name, func(t *testing.T) {
			if test.token == "" {
				test.token = p.token(t, nil)
			}
			form := tokenForm(test.token)
			if test.email != "" {
				form.Set("client_id", test.email)
			}
			got := p.post(t, form)
			if test.status == 0 {
				test.status = http.StatusOK
			}
			if got.status != test.status || got.Code != test.code || got.Description != test.description {
				t.Errorf("got %d %s %q\nwant %d %s %q", got.status, got.Code, got.Description, test.status, test.code, test.description)
			}
			if strings.Contains(got.body, test.token) {
				t.Error("the answer holds the token")
			}
		})
	}
}

// TestExpiresByTheClock lets time pass instead of forging claims.
func TestExpiresByTheClock(t *testing.T) {
	p := newProvider(t)
	form := tokenForm(p.token(t, nil))
	p.Clock.Advance(10*time.Minute - time.Second)
	if got := p.post(t, form); got.status != http.StatusOK {
		t.Fatalf("in the last second: %d %s", got.status, got.body)
	}
	p.Clock.Advance(time.Second)
	if got := p.post(t, form); got.status != 401 || got.Description != "the token is expired" {
		t.Errorf("got %d %s", got.status, got.body)
	}
}

// TestCache rotates an issuer's key: for an hour the old one is accepted
// although it is published no longer, and the new one is not.
func TestCache(t *testing.T) {
	p := newProvider(t)
	p.Clock.Advance(time.Minute)
	old := tokenForm(p.token(t, map[string]any{"exp": p.Clock.Now().Add(3 * time.Hour).Unix()}))
	if got := p.post(t, old); got.status != http.StatusOK {
		t.Fatalf("control: %d %s", got.status, got.body)
	}
	p.issuer.Rotate(t, "two")
	fresh := func() url.Values { return tokenForm(p.token(t, nil)) }
	check := func(when string, form url.Values, want int) {
		t.Helper()
		got := p.post(t, form)
		if got.status != want || want == 401 && got.Description != "the token's key is not among the issuer's cached keys" {
			t.Errorf("%s: %d %s, want %d", when, got.status, got.body, want)
		}
	}
	check("new key at once", fresh(), 401)
	p.Clock.Advance(time.Hour - time.Second)
	check("new key within the hour", fresh(), 401)
	check("old key within the hour", old, 200)
	if state := p.handler.Core().Cached(p.issuer.URL); state.Fetches != 1 {
		t.Errorf("%d fetches within the hour", state.Fetches)
	}
	p.Clock.Advance(time.Second)
	check("new key after the hour", fresh(), 200)
	check("old key after the hour", old, 401)
	if state := p.handler.Core().Cached(p.issuer.URL); state.Fetches != 2 || !slices.Equal(state.Kids, []string{"two"}) {
		t.Errorf("cache %+v", state)
	}
}

func TestUnreachableIssuer(t *testing.T) {
	p := newProvider(t)
	gone := p.Listen(t)
	if err := gone.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	p.serve(t, func(c *Config) { c.Accounts[0].Providers[0].Issuer = gone.URL() })
	if got := p.post(t, tokenForm(p.token(t, map[string]any{"iss": gone.URL()}))); got.status != 503 || got.Code != "temporarily_unavailable" {
		t.Errorf("got %d %s", got.status, got.body)
	}
}

// TestEveryReasonHasAnAnswer walks the closed set of reasons.
func TestEveryReasonHasAnAnswer(t *testing.T) {
	type answers struct {
		token   string // status and code
		project int
	}
	want := map[sts.Reason]answers{
		sts.TokenMissing:      {"400 invalid_request", 401},
		sts.IssuerUnreachable: {"503 temporarily_unavailable", 503},
		sts.RoleUnknown:       {"401 invalid_client", 404},
		sts.IssuerNotTrusted:  {"401 invalid_client", 403},
		sts.SubjectMismatch:   {"401 invalid_client", 403},
		sts.ConditionMismatch: {"401 invalid_client", 403},
		"unheard of":          {"500 server_error", 500},
	}
	for _, reason := range append(sts.Reasons(), "unheard of") {
		expected, ok := want[reason]
		if !ok {
			expected = answers{"401 invalid_client", 401}
		}
		e := refused(&sts.Refusal{Reason: reason})
		if got := fmt.Sprintf("%d %s", e.status, e.code); got != expected.token || e.description == "" {
			t.Errorf("%s: the token endpoint answers with %s %q, want %q", reason, got, e.description, expected.token)
		}
		if status, message := refusedByProject(&sts.Refusal{Reason: reason}); status != expected.project || message == "" {
			t.Errorf("%s: the API answers with %d %q, want %d", reason, status, message, expected.project)
		}
	}
}

func TestRequestsRefused(t *testing.T) {
	p := newProvider(t)
	good := tokenForm(p.token(t, nil))
	for _, test := range []struct {
		name, method string
		change       url.Values // an empty list removes the parameter
		status       int
		code         string
	}{
		{name: "control", status: 200},
		{name: "control with a parameter that is unknown", change: url.Values{"x": {"y"}}, status: 200},
		{"GET", "GET", nil, 405, "invalid_request"},
		{"no grant type", "", url.Values{"grant_type": nil}, 400, "invalid_request"},
		{"another grant type", "", url.Values{"grant_type": {"password"}}, 400, "unsupported_grant_type"},
		{"no assertion type", "", url.Values{"client_assertion_type": nil}, 400, "invalid_request"},
		{"the assertion type of the RFC", "", url.Values{"client_assertion_type": {"urn:ietf:params:oauth:client-assertion-type:jwt-bearer"}}, 400, "invalid_request"},
		{"no account", "", url.Values{"client_id": nil}, 400, "invalid_request"},
		{"no token", "", url.Values{"client_assertion": nil}, 400, "invalid_request"},
		{"duplicate", "", url.Values{"client_id": {testEmail, testEmail}}, 400, "invalid_request"},
		{"huge", "", url.Values{"x": {strings.Repeat("x", 256<<10)}}, 413, "invalid_request"},
	} {
		t.Run(test.name, func(t *testing.T) {
			form := url.Values{}
			for _, values := range []url.Values{good, test.change} {
				for name := range values {
					form[name] = values[name]
				}
			}
			method := "POST"
			if test.method != "" {
				method = test.method
			}
			got := p.do(t, ststest.Request(t, method, p.url+"/oauth/v2/token", form.Encode()))
			if got.status != test.status || got.Code != test.code || (got.Description == "") != (test.status == 200) {
				t.Errorf("got %d %s %q, want %d %s", got.status, got.Code, got.Description, test.status, test.code)
			}
		})
	}
}

func TestProject(t *testing.T) {
	p := newProvider(t)
	granted := p.post(t, tokenForm(p.token(t, nil))).AccessToken
	form := tokenForm(p.token(t, map[string]any{"sub": otherSubject, "azp": "deploy"}))
	form.Set("client_id", otherEmail)
	ungranted := p.post(t, form).AccessToken
	foreign, err := New(p.config()) // the same configuration with another key
	if err != nil {
		t.Fatal(err)
	}
	sign := func(h *Handler, change func(*accessToken)) string {
		now := p.Clock.Now().Unix()
		claims := accessToken{Issuer: p.url, Subject: testEmail, Audience: apiAudience, ID: "x", IssuedAt: now, Expiry: now + 60}
		change(&claims)
		token, err := h.service.Sign(claims)
		if err != nil {
			t.Fatal(err)
		}
		return "Bearer " + token
	}
	for _, test := range []struct {
		name, id, authorization string
		status                  int
		message                 string
	}{
		{"control", testProject, "Bearer " + granted, 200, ""},
		{"control signed here", testProject, sign(p.handler, func(*accessToken) {}), 200, ""},
		{"anonymous", testProject, "", 401, "a bearer token is missing"},
		{"basic", testProject, "Basic AAAA", 401, "a bearer token is missing"},
		{"no token", testProject, "Bearer ", 401, "the access token is not valid"},
		{"the cluster's token", testProject, "Bearer " + p.token(t, nil), 401, "the access token is not valid"},
		{"another audience", testProject, sign(p.handler, func(a *accessToken) { a.Audience = Audience }), 401, "the access token is not valid"},
		{"another issuer", testProject, sign(p.handler, func(a *accessToken) { a.Issuer += "/" }), 401, "the access token is not valid"},
		{"another key", testProject, sign(foreign, func(*accessToken) {}), 401, "the access token is not valid"},
		{"expired", testProject, sign(p.handler, func(a *accessToken) { a.Expiry = p.Clock.Now().Unix() }), 401, "the access token is expired"},
		{"no permission", testProject, "Bearer " + ungranted, 403, "the service account may not read the project"},
		{"no such project", "demo", "Bearer " + granted, 404, "there is no such project"},
	} {
		t.Run(test.name, func(t *testing.T) {
			got := p.read(t, test.id, test.authorization)
			if got.status != test.status || got.Message != test.message {
				t.Errorf("got %d %s, want %d %q", got.status, got.body, test.status, test.message)
			}
			if test.status != 200 && (got.Status != test.status || got.Path != "/v2/projects/"+test.id || got.Code != http.StatusText(test.status) ||
				got.Time != p.Clock.Now().UTC().Format(time.RFC3339Nano)) {
				t.Errorf("error %+v", got.apiError)
			}
			if challenge := got.header.Get("WWW-Authenticate"); (challenge == "Bearer") != (test.status == 401) {
				t.Errorf("WWW-Authenticate %q", challenge)
			}
		})
	}
	p.Clock.Advance(time.Hour - time.Second)
	if got := p.read(t, testProject, "Bearer "+granted); got.status != http.StatusOK {
		t.Errorf("in the last second: %d %s", got.status, got.body)
	}
	p.Clock.Advance(time.Second)
	if got := p.read(t, testProject, "Bearer "+granted); got.Message != "the access token is expired" {
		t.Errorf("after its life: %d %s", got.status, got.body)
	}
}

// TestJourney looks at what a token leaves in the trace, from check to use.
func TestJourney(t *testing.T) {
	p := newProvider(t)
	token := p.token(t, nil)
	access := p.post(t, tokenForm(token)).AccessToken
	p.read(t, testProject, "Bearer "+access)
	p.read(t, "demo", "Bearer "+access)
	form := tokenForm(token)
	form.Del("client_id")
	p.post(t, form)

	var steps []string
	for _, e := range p.Trace.Journey(trace.JourneyOf(token)) {
		if e.Step == "grant" || e.Step == "use" || e.Name == "request" {
			steps = append(steps, strings.TrimSpace(fmt.Sprintf("%s %s %s %s %s", e.Station, e.Step, e.Name, e.Outcome, e.Reason)))
		}
	}
	want := "stackit grant " + testEmail + " ok\nstackit-api use project " + testProject + " ok\nstackit check request refused invalid_request"
	if got := strings.Join(steps, "\n"); got != want {
		t.Errorf("steps:\n%s\nwant:\n%s", got, want)
	}
	refused := p.Trace.Journey(trace.JourneyOf(access))
	if last := refused[len(refused)-1]; last.Step != "use" || last.Name != "unknown project" || last.Reason != string(sts.RoleUnknown) {
		t.Errorf("a use that was refused left %+v", last)
	}
	p.Secrets(t, token, access, access[strings.LastIndex(access, ".")+1:])
}

func TestNewRefuses(t *testing.T) {
	p := newProvider(t)
	if _, err := New(p.config()); err != nil {
		t.Fatalf("control: %v", err)
	}
	first := func(c *Config) *Provider { return &c.Accounts[0].Providers[0] }
	for name, test := range map[string]struct {
		change func(*Config)
		want   string
	}{
		"URL with a path":      {func(c *Config) { c.URL += "/" }, "https origin"},
		"no e-mail address":    {func(c *Config) { c.Accounts[0].Email = "demo" }, "not an e-mail address"},
		"account twice":        {func(c *Config) { c.Accounts[1].Email = testEmail }, "twice"},
		"no providers":         {func(c *Config) { c.Accounts[0].Providers = nil }, "no providers"},
		"provider unnamed":     {func(c *Config) { first(c).Name = "" }, "unnamed"},
		"provider twice":       {func(c *Config) { c.Accounts[1].Providers[1].Name = "demo" }, "there twice"},
		"no assertion on aud":  {func(c *Config) { first(c).Assertions = first(c).Assertions[1:] }, "no assertion on aud"},
		"no assertion on sub":  {func(c *Config) { first(c).Assertions = first(c).Assertions[:1] }, `limits "sub"`},
		"operator":             {func(c *Config) { first(c).Assertions[1].Operator = "like" }, "there is no operator"},
		"empty value":          {func(c *Config) { first(c).Assertions[1].Value = "" }, "must not be empty"},
		"issuer over http":     {func(c *Config) { first(c).Issuer = "http://issuer.example" }, "https"},
		"project id":           {func(c *Config) { c.Projects[0].ID = "demo" }, "UUID"},
		"project twice":        {func(c *Config) { c.Projects = append(c.Projects, c.Projects[0]) }, "is there twice"},
		"no readers":           {func(c *Config) { c.Projects[0].Readers = nil }, "no readers"},
		"unknown reader":       {func(c *Config) { c.Projects[0].Readers = []string{"nobody@sa.stackit.cloud"} }, "not a service account"},
		"short life":           {func(c *Config) { c.Lifetime = time.Millisecond }, "less than a second"},
		"no client for issuer": {func(c *Config) { c.Client = nil }, "client"},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := p.config()
			test.change(&cfg)
			if _, err := New(cfg); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("error %v; want one with %q", err, test.want)
			}
		})
	}
}

func FuzzParameters(f *testing.F) {
	f.Add("grant_type=client_credentials&client_id=x&client_assertion_type=urn:schwarz:params:oauth:client-assertion-type:workload-jwt")
	f.Add("grant_type=client_credentials&client_id=%00&client_assertion=a.b.c")
	f.Fuzz(func(t *testing.T, body string) {
		form, err := url.ParseQuery(body)
		if err != nil {
			return
		}
		request, e := parseRequest(form)
		if e != nil && (e.status != 400 || e.code == "" || e.description == "") {
			t.Fatalf("refused with %+v", e)
		}
		if e == nil && (request.email == "" || form.Get("grant_type") != grantType) {
			t.Fatalf("accepted %+v", request)
		}
	})
}
