package gcp

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/oidclab/oidclab/lab/sts"
	"github.com/oidclab/oidclab/lab/sts/internal/ststest"
	"github.com/oidclab/oidclab/lab/trace"
)

func TestMain(m *testing.M) { ststest.Main(m, application) }

const (
	testProject  = "123456789012"
	testPool     = "oidclab"
	testProvider = "cluster-1"
	testSubject  = "system:serviceaccount:demo:app"
	testAccount  = "app@oidclab.iam.gserviceaccount.com"

	cloudPlatform = "https://www.googleapis.com/auth/cloud-platform"
	condition     = `attribute.namespace == "demo" && google.subject.startsWith("system:serviceaccount:")`
)

func testAudience() string { return Audience(testProject, testPool, testProvider) }

// project is a served Handler. Its pool has a provider without and one with a
// condition. The principal of testSubject can read the bucket demo and
// impersonate testAccount, which can read it too.
type project struct {
	*ststest.Lab
	issuer  *ststest.Issuer
	handler *Handler
	url     string
}

func newProject(t testing.TB, change ...func(*Config)) *project {
	t.Helper()
	l := ststest.New(t)
	p := &project{Lab: l, issuer: l.NewIssuer(t)}
	cfg := p.config()
	for _, c := range change {
		c(&cfg)
	}
	handler, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	p.handler = handler
	server := l.Listen(t)
	server.Serve(handler)
	p.url = server.URL()
	return p
}

func (p *project) config() Config {
	mapping := map[string]string{
		"google.subject":      "assertion.sub",
		"google.groups":       `"groups" in assertion ? assertion.groups : []`,
		"attribute.namespace": "assertion['kubernetes.io']['namespace']",
	}
	member := Principal(testProject, testPool, testSubject)
	return Config{
		ProjectNumber: testProject,
		Pools: []Pool{{ID: testPool, Providers: []Provider{
			{ID: testProvider, IssuerURI: p.issuer.URL, AttributeMapping: mapping},
			{ID: "conditional", IssuerURI: p.issuer.URL, AllowedAudiences: []string{"gcp"}, AttributeMapping: mapping, AttributeCondition: condition},
			{ID: "disabled", Disabled: true, IssuerURI: p.issuer.URL, AttributeMapping: mapping},
		}}, {ID: "disabled-pool", Disabled: true, Providers: []Provider{
			{ID: testProvider, IssuerURI: p.issuer.URL, AttributeMapping: mapping},
		}}},
		ServiceAccounts: []ServiceAccount{
			{Email: testAccount, Policy: []Binding{{RoleWorkloadIdentityUser, []string{member}}}},
			{Email: "other@oidclab.iam.gserviceaccount.com"},
		},
		Buckets: []Bucket{{
			Name:    "demo",
			Objects: map[string][]byte{"greeting": []byte("hello"), "a/b": []byte("nested")},
			Policy:  []Binding{{RoleObjectViewer, []string{member, ServiceAccountMember(testAccount)}}},
		}},
		Client: p.Client, Clock: p.Clock, Trace: p.Trace,
	}
}

// token returns a good token, with changes to its claims.
func (p *project) token(t testing.TB, changes map[string]any) string {
	t.Helper()
	return p.issuer.Sign(t, p.claims(changes))
}

func (p *project) claims(changes map[string]any) map[string]any {
	all := map[string]any{"kubernetes.io": map[string]any{"namespace": "demo"}}
	for name, value := range changes {
		all[name] = value
	}
	return p.issuer.Claims(testSubject, "https:"+testAudience(), all)
}

func exchangeForm(token string) url.Values {
	return url.Values{
		"grant_type": {grantType}, "requested_token_type": {tokenTypeAccessToken},
		"audience": {testAudience()}, "scope": {cloudPlatform},
		"subject_token": {token}, "subject_token_type": {tokenTypeJWT},
	}
}

// answer is what a test looks at of any answer.
type answer struct {
	status int
	header http.Header
	body   string

	AccessToken     string          `json:"access_token"`
	IssuedTokenType string          `json:"issued_token_type"`
	TokenType       string          `json:"token_type"`
	ExpiresIn       json.Number     `json:"expires_in"`
	Impersonated    string          `json:"accessToken"`
	ExpireTime      string          `json:"expireTime"`
	Error           json.RawMessage `json:"error"`
	Description     string          `json:"error_description"`
}

// code is the error of an answer of the Security Token Service.
func (a answer) code() string {
	var code string
	_ = json.Unmarshal(a.Error, &code)
	return code
}

// cause is the error of an answer of the other services.
func (a answer) cause() string {
	var e apiError
	_ = json.Unmarshal(a.Error, &e)
	return e.cause()
}

func (p *project) do(t testing.TB, method, target, token, contentType, body string) answer {
	t.Helper()
	request := ststest.Request(t, method, p.url+target, body)
	if token != "" {
		request.Header.Set("Authorization", "Bearer "+token)
	}
	if contentType != "" {
		request.Header.Set("Content-Type", contentType)
	}
	status, header, data := p.Do(t, request)
	got := answer{status: status, header: header, body: string(data)}
	if strings.HasPrefix(header.Get("Content-Type"), "application/json") {
		if err := json.Unmarshal(data, &got); err != nil {
			t.Fatalf("%v in %s", err, data)
		}
	}
	return got
}

const formType = "application/x-www-form-urlencoded"

func (p *project) exchange(t testing.TB, form url.Values) answer {
	t.Helper()
	return p.do(t, "POST", "/v1/token", "", formType, form.Encode())
}

// federated returns a good federated access token, with changes to the claims.
func (p *project) federated(t testing.TB, changes map[string]any) string {
	t.Helper()
	got := p.exchange(t, exchangeForm(p.token(t, changes)))
	if got.status != http.StatusOK {
		t.Fatalf("status %d: %s", got.status, got.body)
	}
	return got.AccessToken
}

const scopeBody = `{"lifetime":"3600s","scope":["` + cloudPlatform + `"]}`

func (p *project) impersonate(t testing.TB, email, token, body string) answer {
	t.Helper()
	return p.do(t, "POST", "/v1/projects/-/serviceAccounts/"+email+":generateAccessToken", token, "application/json", body)
}

func (p *project) read(t testing.TB, object, token string) answer {
	t.Helper()
	return p.do(t, "GET", "/storage/v1/b/"+object+"?alt=media", token, "", "")
}

func TestExchange(t *testing.T) {
	p := newProject(t)
	token := p.token(t, nil)
	got := p.exchange(t, exchangeForm(token))
	if got.status != http.StatusOK || got.IssuedTokenType != tokenTypeAccessToken || got.TokenType != "Bearer" || got.ExpiresIn != "3600" {
		t.Fatalf("status %d: %s", got.status, got.body)
	}
	if !strings.HasPrefix(got.AccessToken, "ya29.oidclab-") {
		t.Errorf("token %q is not obviously fake", got.AccessToken)
	}
	if got.header.Get("Cache-Control") != "no-store" {
		t.Errorf("Cache-Control %q", got.header.Get("Cache-Control"))
	}
	if again := p.exchange(t, exchangeForm(token)); again.AccessToken == got.AccessToken {
		t.Error("a second token is that of the first exchange")
	}
	if r := p.read(t, "demo/o/greeting", got.AccessToken); r.status != http.StatusOK || r.body != "hello" {
		t.Errorf("read as the federated principal: %d %s", r.status, r.body)
	}
	impersonated := p.impersonate(t, testAccount, got.AccessToken, scopeBody)
	if want := p.Clock.Now().Add(time.Hour).UTC().Format(time.RFC3339); impersonated.status != http.StatusOK || impersonated.ExpireTime != want {
		t.Fatalf("impersonation: %d %s", impersonated.status, impersonated.body)
	}
	if r := p.read(t, "demo/o/a%2Fb", impersonated.Impersonated); r.status != http.StatusOK || r.body != "nested" {
		t.Errorf("read as the service account: %d %s", r.status, r.body)
	}
	p.Secrets(t, token, token[strings.LastIndex(token, ".")+1:], got.AccessToken, impersonated.Impersonated)
}

func TestDateIsLabTime(t *testing.T) {
	p := newProject(t)
	p.Clock.Advance(-48 * time.Hour)
	want := p.Clock.Now().UTC().Format(http.TimeFormat)
	if got := p.exchange(t, url.Values{}).header.Get("Date"); got != want {
		t.Errorf("Date %q, want %q", got, want)
	}
}

func TestSubjectTokensRefused(t *testing.T) {
	p := newProject(t)
	now := p.Clock.Now().Unix()
	stranger := p.NewIssuer(t)
	day := int64(24 * time.Hour / time.Second)
	const badAudience = "The audience in ID Token does not match the expected audience."
	for _, test := range []struct {
		name, token       string
		status            int
		code, description string
	}{
		{"control", p.token(t, nil), 200, "", ""},
		{"default audience without https", p.token(t, map[string]any{"aud": testAudience()}), 200, "", ""},
		{"default audience over http", p.token(t, map[string]any{"aud": "http:" + testAudience()}), 400, "invalid_grant", badAudience},
		{"audience of another provider", p.token(t, map[string]any{"aud": "gcp"}), 400, "invalid_grant", badAudience},
		{"issuer", stranger.Sign(t, p.claims(map[string]any{"iss": stranger.URL})), 400, "invalid_grant", "The issuer in ID Token " + stranger.URL + " does not match the expected ones: " + p.issuer.URL},
		{"trailing slash", p.token(t, map[string]any{"iss": p.issuer.URL + "/"}), 400, "invalid_grant", "The issuer in ID Token " + p.issuer.URL + "/ does not match the expected ones: " + p.issuer.URL},
		{"forged", p.issuer.Forge(t, p.claims(nil)), 400, "invalid_grant", "The signature of the ID Token is invalid."},
		{"without kid", withHeader(`{"alg":"ES256"}`, p.token(t, nil)), 400, "invalid_grant", "The header of the ID Token is invalid: kid."},
		{"ES384", withHeader(`{"alg":"ES384","kid":"one"}`, p.token(t, nil)), 400, "invalid_grant", "The algorithm of the ID Token must be RS256 or ES256."},
		{"last second", p.token(t, map[string]any{"exp": now + 1}), 200, "", ""},
		{"expired", p.token(t, map[string]any{"exp": now}), 400, "invalid_grant", fmt.Sprintf("ID Token expired at %d.", now)},
		{"almost a day old", p.token(t, map[string]any{"iat": now - day + 1}), 200, "", ""},
		{"a day old", p.token(t, map[string]any{"iat": now - day}), 400, "invalid_grant", fmt.Sprintf("ID Token issued at %d is stale to sign-in.", now-day)},
		{"not yet valid", p.token(t, map[string]any{"nbf": now + 1}), 400, "invalid_grant", fmt.Sprintf("ID Token is not valid before %d.", now+1)},
		{"issued in the future", p.token(t, map[string]any{"iat": now + 1}), 400, "invalid_grant", fmt.Sprintf("ID Token issued at %d is from the future.", now+1)},
		{"no sub", p.token(t, map[string]any{"sub": nil}), 400, "invalid_grant", "The ID Token lacks the required claim sub."},
		{"no exp", p.token(t, map[string]any{"exp": nil}), 400, "invalid_grant", "The ID Token lacks the required claim exp."},
		{"garbage", "garbage", 400, "invalid_grant", "Unable to parse the ID Token."},
		{"huge", strings.Repeat("x", 16<<10+1), 400, "invalid_request", "The size of the ID Token exceeds the limit."},
		{"longest subject", p.token(t, map[string]any{"sub": strings.Repeat("s", 127)}), 200, "", ""},
		{"long subject", p.token(t, map[string]any{"sub": strings.Repeat("s", 128)}), 403, "unauthorized_client", "The size of mapped attribute google.subject exceeds the 127 bytes limit. Either modify your attribute mapping or the incoming assertion to produce a mapped attribute that is less than 127 bytes."},
		{"attribute of another type", p.token(t, map[string]any{"kubernetes.io": map[string]any{"namespace": 1}}), 403, "unauthorized_client", "The mapped attribute 'attribute.namespace' must be of type STRING."},
		{"attribute's claim missing", p.token(t, map[string]any{"kubernetes.io": nil}), 403, "unauthorized_client", "The attribute mapping of 'attribute.namespace' could not be evaluated."},
	} {
		t.Run(test.name, func(t *testing.T) {
			got := p.exchange(t, exchangeForm(test.token))
			if got.status != test.status || got.code() != test.code || got.Description != test.description {
				t.Errorf("got %d %s %q\nwant %d %s %q", got.status, got.code(), got.Description, test.status, test.code, test.description)
			}
			if len(test.token) > 20 && strings.Contains(got.body, test.token) {
				t.Error("the answer holds the token")
			}
		})
	}
}

// withHeader returns the token with another header.
func withHeader(header, token string) string {
	_, rest, _ := strings.Cut(token, ".")
	return base64.RawURLEncoding.EncodeToString([]byte(header)) + "." + rest
}

func TestUnreachableIssuer(t *testing.T) {
	l := ststest.New(t)
	gone := l.Listen(t)
	if err := gone.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	p := newProject(t, func(c *Config) { c.Pools[0].Providers[0].IssuerURI = gone.URL() })
	got := p.exchange(t, exchangeForm(p.token(t, map[string]any{"iss": gone.URL()})))
	if got.status != 400 || got.code() != "invalid_grant" || got.Description != "Error connecting to the given credential's issuer." {
		t.Errorf("got %d %s", got.status, got.body)
	}
}

func TestRequestsRefused(t *testing.T) {
	p := newProject(t)
	for _, test := range []struct {
		name              string
		change            url.Values // an empty list removes the parameter
		status            int
		code, description string
	}{
		{"control", nil, 200, "", ""},
		{"ID token", url.Values{"subject_token_type": {tokenTypeIDToken}}, 200, "", ""},
		{"options", url.Values{"options": {`{"userProject":"1"}`}}, 200, "", ""},
		{"no grant type", url.Values{"grant_type": nil}, 400, "unsupported_grant_type", "The grant_type must be " + grantType + "."},
		{"another grant type", url.Values{"grant_type": {"client_credentials"}}, 400, "unsupported_grant_type", "The grant_type must be " + grantType + "."},
		{"no requested type", url.Values{"requested_token_type": nil}, 400, "invalid_request", "The requested_token_type must be " + tokenTypeAccessToken + "."},
		{"SAML", url.Values{"subject_token_type": {"urn:ietf:params:oauth:token-type:saml2"}}, 400, "invalid_request", "The subject_token_type must be " + tokenTypeJWT + " or " + tokenTypeIDToken + "."},
		{"no token", url.Values{"subject_token": nil}, 400, "invalid_request", `Invalid value for "subject_token".`},
		{"no scope", url.Values{"scope": {" "}}, 400, "invalid_scope", "A scope is required."},
		{"no audience", url.Values{"audience": nil}, 400, "invalid_request", invalidAudience},
		{"audience with https", url.Values{"audience": {"https:" + testAudience()}}, 400, "invalid_request", invalidAudience},
		{"audience is the pool", url.Values{"audience": {iamService + PoolName(testProject, testPool)}}, 400, "invalid_request", invalidAudience},
		{"unknown provider", url.Values{"audience": {testAudience() + "2"}}, 400, "invalid_target", invalidTarget},
		{"unknown pool", url.Values{"audience": {Audience(testProject, "nobody", testProvider)}}, 400, "invalid_target", invalidTarget},
		{"unknown project", url.Values{"audience": {Audience("1", testPool, testProvider)}}, 400, "invalid_target", invalidTarget},
		{"disabled provider", url.Values{"audience": {Audience(testProject, testPool, "disabled")}}, 400, "invalid_target", invalidTarget},
		{"provider of a disabled pool", url.Values{"audience": {Audience(testProject, "disabled-pool", testProvider)}}, 400, "invalid_target", invalidTarget},
		{"twice", url.Values{"scope": {"a", "b"}}, 400, "invalid_request", "a parameter is there twice"},
		{"huge", url.Values{"x": {strings.Repeat("x", 256<<10)}}, 413, "invalid_request", "the request is too large"},
	} {
		t.Run(test.name, func(t *testing.T) {
			form := exchangeForm(p.token(t, nil))
			for name, values := range test.change {
				form[name] = values
			}
			got := p.exchange(t, form)
			if got.status != test.status || got.code() != test.code || got.Description != test.description {
				t.Errorf("got %d %s %q\nwant %d %s %q", got.status, got.code(), got.Description, test.status, test.code, test.description)
			}
		})
	}
	for _, test := range []struct{ method, target, contentType string }{
		{"GET", "/v1/token", ""}, {"POST", "/", formType}, {"POST", "/v1/projects/-/serviceAccounts/" + testAccount + ":signJwt", "application/json"},
	} {
		if got := p.do(t, test.method, test.target, "", test.contentType, ""); got.status != 404 || got.cause() != "NOT_FOUND" {
			t.Errorf("%s %s: %d %s", test.method, test.target, got.status, got.body)
		}
	}
	if got := p.do(t, "POST", "/v1/token", "", "application/json", "{}"); got.status != 400 || got.code() != "invalid_request" {
		t.Errorf("JSON: %d %s", got.status, got.body)
	}
}

func TestCondition(t *testing.T) {
	p := newProject(t)
	conditional := func(changes map[string]any) answer {
		t.Helper()
		changes["aud"] = "gcp"
		form := exchangeForm(p.token(t, changes))
		form.Set("audience", Audience(testProject, testPool, "conditional"))
		return p.exchange(t, form)
	}
	if got := conditional(map[string]any{}); got.status != http.StatusOK {
		t.Fatalf("control: %d %s", got.status, got.body)
	}
	for name, changes := range map[string]map[string]any{
		"another namespace": {"kubernetes.io": map[string]any{"namespace": "other"}},
		"another subject":   {"sub": "somebody"},
	} {
		got := conditional(changes)
		if got.status != 403 || got.code() != "unauthorized_client" || got.Description != "The given credential is rejected by the attribute condition." {
			t.Errorf("%s: %d %s", name, got.status, got.body)
		}
		events, _ := p.Trace.Since(0)
		last := events[len(events)-1]
		if last.Name != "conditions" || last.Reason != string(sts.ConditionMismatch) || last.Outcome != trace.Refused || last.Want != condition || last.Got != "false" {
			t.Errorf("%s: event %+v", name, last)
		}
	}
	form := exchangeForm(p.token(t, nil))
	form.Set("audience", Audience(testProject, testPool, "conditional"))
	if got := p.exchange(t, form); got.code() != "invalid_grant" {
		t.Errorf("a default audience where others are allowed: %d %s", got.status, got.body)
	}
}

// TestEveryReasonHasAnAnswer walks the closed set of reasons.
func TestEveryReasonHasAnAnswer(t *testing.T) {
	want := map[sts.Reason]string{
		sts.TokenMissing:        "400 invalid_request",
		sts.TokenTooLarge:       "400 invalid_request",
		sts.TokenMalformed:      "400 invalid_grant",
		sts.HeaderRefused:       "400 invalid_grant",
		sts.AlgorithmRefused:    "400 invalid_grant",
		sts.ClaimMissing:        "400 invalid_grant",
		sts.ClaimInvalid:        "400 invalid_grant",
		sts.IssuerUnknown:       "400 invalid_grant",
		sts.IssuerUnreachable:   "400 invalid_grant",
		sts.KeyUnknown:          "400 invalid_grant",
		sts.SignatureInvalid:    "400 invalid_grant",
		sts.TokenExpired:        "400 invalid_grant",
		sts.TokenNotYetValid:    "400 invalid_grant",
		sts.TokenIssuedInFuture: "400 invalid_grant",
		sts.TokenTooOld:         "400 invalid_grant",
		sts.AudienceMismatch:    "400 invalid_grant",
		sts.RoleUnknown:         "400 invalid_target",
		sts.IssuerNotTrusted:    "400 invalid_target",
		sts.SubjectMismatch:     "403 unauthorized_client",
		sts.ConditionMismatch:   "403 unauthorized_client",
	}
	for _, reason := range sts.Reasons() {
		e := refused(&sts.Refusal{Reason: reason, Got: "2026-01-01T00:00:00Z"})
		if got := fmt.Sprintf("%d %s", e.status, e.Code); got != want[reason] {
			t.Errorf("%s: answered with %s, want %q", reason, got, want[reason])
		}
		if e.Description == "" {
			t.Errorf("%s: no text", reason)
		}
	}
	if e := refused(&sts.Refusal{Reason: "unheard of"}); e.status != 500 {
		t.Errorf("control: an unmapped reason is answered with %d", e.status)
	}
}

func TestImpersonation(t *testing.T) {
	p := newProject(t, func(c *Config) {
		c.ServiceAccounts = append(c.ServiceAccounts,
			ServiceAccount{Email: "group@x", Policy: []Binding{{RoleWorkloadIdentityUser, []string{PrincipalSet(testProject, testPool, "group", "admins")}}}},
			ServiceAccount{Email: "attribute@x", Policy: []Binding{{RoleWorkloadIdentityUser, []string{PrincipalSet(testProject, testPool, "attribute.namespace", "demo")}}}},
			ServiceAccount{Email: "unmapped@x", Policy: []Binding{{RoleWorkloadIdentityUser, []string{PrincipalSet(testProject, testPool, "attribute.cluster", "x")}}}},
			ServiceAccount{Email: "elsewhere@x", Policy: []Binding{{RoleWorkloadIdentityUser, []string{Principal(testProject, "disabled-pool", testSubject)}}}},
		)
	})
	app := p.federated(t, nil)
	admin := p.federated(t, map[string]any{"sub": "admin", "groups": []string{"users", "admins"}, "kubernetes.io": map[string]any{"namespace": "kube-system"}})
	narrow := exchangeForm(p.token(t, nil))
	narrow.Set("scope", "https://www.googleapis.com/auth/devstorage.read_only")
	account := p.impersonate(t, testAccount, app, scopeBody).Impersonated
	for _, test := range []struct {
		name, email, token, body string
		status                   int
		cause                    string
	}{
		{"control", testAccount, app, scopeBody, 200, ""},
		{"another subject", testAccount, admin, scopeBody, 403, "IAM_PERMISSION_DENIED"},
		{"no binding", "other@oidclab.iam.gserviceaccount.com", app, scopeBody, 403, "IAM_PERMISSION_DENIED"},
		{"unknown account", "nobody@x", app, scopeBody, 403, "IAM_PERMISSION_DENIED"},
		{"same subject of another pool", "elsewhere@x", app, scopeBody, 403, "IAM_PERMISSION_DENIED"},
		{"by group", "group@x", admin, scopeBody, 200, ""},
		{"not in the group", "group@x", app, scopeBody, 403, "IAM_PERMISSION_DENIED"},
		{"by attribute", "attribute@x", app, scopeBody, 200, ""},
		{"another attribute value", "attribute@x", admin, scopeBody, 403, "IAM_PERMISSION_DENIED"},
		{"attribute that is not mapped", "unmapped@x", app, scopeBody, 403, "IAM_PERMISSION_DENIED"},
		{"as a service account", testAccount, account, scopeBody, 403, "IAM_PERMISSION_DENIED"},
		{"narrow scope", testAccount, p.exchange(t, narrow).AccessToken, scopeBody, 403, "ACCESS_TOKEN_SCOPE_INSUFFICIENT"},
		{"no token", testAccount, "", scopeBody, 401, "UNAUTHENTICATED"},
		{"garbage token", testAccount, "ya29.oidclab-x-y", scopeBody, 401, "UNAUTHENTICATED"},
		{"changed token", testAccount, app[:len(app)-1] + string(app[len(app)-1]^1), scopeBody, 401, "UNAUTHENTICATED"},
		{"cluster's token", testAccount, p.token(t, nil), scopeBody, 401, "UNAUTHENTICATED"},
		{"no lifetime", testAccount, app, `{"scope":["x"]}`, 200, ""},
		{"shortest lifetime", testAccount, app, `{"scope":["x"],"lifetime":"1s"}`, 200, ""},
		{"no time", testAccount, app, `{"scope":["x"],"lifetime":"0s"}`, 400, "INVALID_ARGUMENT"},
		{"too long", testAccount, app, `{"scope":["x"],"lifetime":"3601s"}`, 400, "INVALID_ARGUMENT"},
		{"far too long", testAccount, app, `{"scope":["x"],"lifetime":"99999999999999999999s"}`, 400, "INVALID_ARGUMENT"},
		{"in minutes", testAccount, app, `{"scope":["x"],"lifetime":"5m"}`, 400, "INVALID_ARGUMENT"},
		{"in minutes and seconds", testAccount, app, `{"scope":["x"],"lifetime":"5m1s"}`, 400, "INVALID_ARGUMENT"},
		{"negative", testAccount, app, `{"scope":["x"],"lifetime":"-5s"}`, 400, "INVALID_ARGUMENT"},
		{"no scope", testAccount, app, `{}`, 400, "INVALID_ARGUMENT"},
		{"delegates", testAccount, app, `{"scope":["x"],"delegates":["a"]}`, 400, "INVALID_ARGUMENT"},
		{"unknown member", testAccount, app, `{"scope":["x"],"y":1}`, 400, "INVALID_ARGUMENT"},
		{"not JSON", testAccount, app, `scope=x`, 400, "INVALID_ARGUMENT"},
		{"huge", testAccount, app, `{"scope":["` + strings.Repeat("x", 64<<10) + `"]}`, 413, "INVALID_ARGUMENT"},
	} {
		t.Run(test.name, func(t *testing.T) {
			got := p.impersonate(t, test.email, test.token, test.body)
			if got.status != test.status || got.cause() != test.cause {
				t.Errorf("got %d %s, want %d %s", got.status, got.body, test.status, test.cause)
			}
		})
	}
	p.Secrets(t, app, admin, account)
}

func TestCredentialsExpire(t *testing.T) {
	p := newProject(t)
	app := p.federated(t, nil)
	short := p.impersonate(t, testAccount, app, `{"lifetime":"60s","scope":["`+cloudPlatform+`"]}`).Impersonated
	p.Clock.Advance(time.Minute - 1)
	if got := p.read(t, "demo/o/greeting", short); got.status != 200 {
		t.Errorf("control: %d %s", got.status, got.body)
	}
	p.Clock.Advance(1)
	if got := p.read(t, "demo/o/greeting", short); got.status != 401 || got.cause() != "authError" {
		t.Errorf("the service account's token after its lifetime: %d %s", got.status, got.body)
	}
	p.Clock.Advance(59*time.Minute - 1)
	if got := p.impersonate(t, testAccount, app, scopeBody); got.status != 200 {
		t.Errorf("control: %d %s", got.status, got.body)
	}
	p.Clock.Advance(1)
	if got := p.impersonate(t, testAccount, app, scopeBody); got.status != 401 || got.cause() != "UNAUTHENTICATED" {
		t.Errorf("the federated token after its lifetime: %d %s", got.status, got.body)
	}
	if got := p.read(t, "demo/o/greeting", app); got.status != 401 {
		t.Errorf("the federated token after its lifetime: %d %s", got.status, got.body)
	}
}

// TestUploadedKeys follows what happens to a provider with an uploaded key set
// when its issuer rotates.
func TestUploadedKeys(t *testing.T) {
	p := newProject(t)
	response, err := p.Client.Get(p.issuer.URL + "/jwks")
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	jwks, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	cfg := p.config()
	cfg.Pools[0].Providers[1].AllowedAudiences = nil
	cfg.Pools[0].Providers[1].JWKSJSON = jwks
	uploaded, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	audience := Audience(testProject, testPool, "conditional")
	status := func(token string) (string, *sts.Refusal) {
		_, e := uploaded.exchange(&http.Request{}, exchangeRequest{audience: audience, subjectToken: token})
		verdict := uploaded.Core(audience).Verify(t.Context(), token)
		if e == nil {
			return "", verdict.Refusal
		}
		return e.Description, verdict.Refusal
	}
	changes := map[string]any{"aud": audience}
	if text, _ := status(p.token(t, changes)); text != "" {
		t.Fatalf("control: %s", text)
	}
	p.issuer.Rotate(t, "two")
	p.Clock.Advance(time.Hour)
	text, refusal := status(p.token(t, changes))
	if text != "The key of the ID Token is not among the keys of its issuer." || !strings.Contains(refusal.Hint, "upload") {
		t.Errorf("after the rotation: %s, %v", text, refusal)
	}
	if state := uploaded.Core(audience).Cached(p.issuer.URL); state.Discoveries != 0 || state.Fetches != 0 {
		t.Errorf("keys were fetched: %+v", state)
	}
	if got := p.exchange(t, exchangeForm(p.token(t, nil))); got.status != http.StatusOK {
		t.Errorf("control, a provider with discovery: %d %s", got.status, got.body)
	}
}

// TestSubjectsOfAPoolAreShared shows a trap of the real service, and the way out.
func TestSubjectsOfAPoolAreShared(t *testing.T) {
	l := ststest.New(t)
	other := l.NewRSAIssuer(t) // RS256, as clusters have it
	p := newProject(t, func(c *Config) {
		c.Pools[0].Providers = append(c.Pools[0].Providers,
			Provider{ID: "collides", IssuerURI: other.URL, AllowedAudiences: []string{"gcp"}, AttributeMapping: map[string]string{"google.subject": "assertion.sub"}},
			Provider{ID: "differs", IssuerURI: other.URL, AllowedAudiences: []string{"gcp"}, AttributeMapping: map[string]string{"google.subject": `"cluster-2::" + assertion.sub`}})
		c.Client = l.Client
	})
	for provider, want := range map[string]int{"collides": 200, "differs": 403} {
		form := exchangeForm(other.Sign(t, other.Claims(testSubject, "gcp", map[string]any{
			"iat": p.Clock.Now().Unix(), "nbf": p.Clock.Now().Unix(), "exp": p.Clock.Now().Unix() + 600})))
		form.Set("audience", Audience(testProject, testPool, provider))
		got := p.exchange(t, form)
		if got.status != http.StatusOK {
			t.Fatalf("%s: %d %s", provider, got.status, got.body)
		}
		if read := p.read(t, "demo/o/greeting", got.AccessToken); read.status != want {
			t.Errorf("%s: %d %s, want %d", provider, read.status, read.body, want)
		}
	}
}

// TestJourney looks at what a token leaves in the trace, from check to use.
func TestJourney(t *testing.T) {
	p := newProject(t)
	token := p.token(t, nil)
	app := p.exchange(t, exchangeForm(token)).AccessToken
	account := p.impersonate(t, testAccount, app, scopeBody).Impersonated
	p.impersonate(t, "other@oidclab.iam.gserviceaccount.com", app, scopeBody)
	p.read(t, "demo/o/greeting", account)
	p.Clock.Advance(time.Hour)
	p.read(t, "demo/o/greeting", account)

	var steps []string
	for _, e := range p.Trace.Journey(trace.JourneyOf(token)) {
		if e.Step == "grant" || e.Step == "use" || e.Name == "subject" {
			steps = append(steps, strings.TrimSpace(fmt.Sprintf("%s %s %s %s %s", e.Station, e.Step, e.Name, e.Outcome, e.Reason)))
		}
	}
	want := []string{
		"gcp check subject ok",
		"gcp grant " + Principal(testProject, testPool, testSubject) + " ok",
		"gcp grant serviceAccount:" + testAccount + " ok",
		"gcp grant serviceAccount:other@oidclab.iam.gserviceaccount.com refused IAM_PERMISSION_DENIED",
		"gcp use demo/greeting ok",
		"gcp use demo/greeting refused authError",
	}
	if !slices.Equal(steps, want) {
		t.Errorf("steps:\n%s\nwant:\n%s", strings.Join(steps, "\n"), strings.Join(want, "\n"))
	}

	form := exchangeForm(token)
	form.Set("scope", "")
	p.exchange(t, form)
	form = exchangeForm(token)
	form.Set("audience", testAudience()+"2")
	p.exchange(t, form)
	events, _ := p.Trace.Since(0)
	if e := events[len(events)-2]; e.Journey != trace.JourneyOf(token) || e.Name != "request" || e.Reason != "invalid_scope" {
		t.Errorf("a request that was refused before the core left %+v", e)
	}
	if e := events[len(events)-1]; e.Journey != trace.JourneyOf(token) || e.Name != "role" || e.Reason != string(sts.RoleUnknown) {
		t.Errorf("a request for an unknown provider left %+v", e)
	}
	p.Secrets(t, token, app, account)
}

func TestNewRefuses(t *testing.T) {
	p := newProject(t)
	if _, err := New(p.config()); err != nil {
		t.Fatalf("control: %v", err)
	}
	first := func(change func(*Provider)) func(*Config) {
		return func(c *Config) { change(&c.Pools[0].Providers[0]) }
	}
	mapped := func(key, expression string) func(*Config) {
		return first(func(p *Provider) {
			p.AttributeMapping = map[string]string{"google.subject": "assertion.sub", key: expression}
		})
	}
	member := func(m string) func(*Config) {
		return func(c *Config) { c.ServiceAccounts[0].Policy[0].Members = []string{m} }
	}
	for name, test := range map[string]struct {
		change func(*Config)
		want   string
	}{
		"project id":              {func(c *Config) { c.ProjectNumber = "my-project" }, "digits"},
		"no project":              {func(c *Config) { c.ProjectNumber = "" }, "digits"},
		"short pool id":           {func(c *Config) { c.Pools[0].ID = "abc" }, "4 to 32"},
		"long pool id":            {func(c *Config) { c.Pools[0].ID = strings.Repeat("a", 33) }, "4 to 32"},
		"reserved id":             {func(c *Config) { c.Pools[0].ID = "gcp-pool" }, "gcp-"},
		"pool twice":              {func(c *Config) { c.Pools = append(c.Pools, c.Pools[0]) }, "is there twice"},
		"provider id":             {first(func(p *Provider) { p.ID = "Cluster" }), "4 to 32"},
		"provider twice":          {first(func(p *Provider) { p.ID = "conditional" }), "is there twice"},
		"issuer over http":        {first(func(p *Provider) { p.IssuerURI = "http://issuer.example" }), "https"},
		"11 audiences":            {first(func(p *Provider) { p.AllowedAudiences = slices.Repeat([]string{"a"}, 11) }), "11 allowed audiences"},
		"long audience":           {first(func(p *Provider) { p.AllowedAudiences = []string{strings.Repeat("ä", 257)} }), "256 characters"},
		"empty audience":          {first(func(p *Provider) { p.AllowedAudiences = []string{""} }), "audience"},
		"uploaded with x5c":       {first(func(p *Provider) { p.JWKSJSON = []byte(`{"keys":[{"kty":"EC","x5c":[]}]}`) }), "Input JWK is not in a valid json format: member x5c"},
		"uploaded non-JSON":       {first(func(p *Provider) { p.JWKSJSON = []byte("{") }), "Input JWK"},
		"uploaded empty":          {first(func(p *Provider) { p.JWKSJSON = []byte{} }), "Input JWK"},
		"uploaded no keys":        {first(func(p *Provider) { p.JWKSJSON = []byte("{}") }), "uploaded key set"},
		"no subject":              {first(func(p *Provider) { p.AttributeMapping = nil }), "lacks google.subject"},
		"unknown key":             {mapped("google.email", "assertion.sub"), "google.email"},
		"key in capitals":         {mapped("attribute.Namespace", "assertion.sub"), "attribute.NAME"},
		"long key":                {mapped("attribute."+strings.Repeat("a", 101), "assertion.sub"), "1 to 100"},
		"51 attributes":           {first(func(p *Provider) { p.AttributeMapping = manyAttributes(51) }), "there can be 50"},
		"long expression":         {mapped("attribute.a", `"`+strings.Repeat("a", 2047)+`"`), "2049 characters"},
		"not CEL":                 {mapped("attribute.a", "assertion."), "attribute.a"},
		"number":                  {mapped("attribute.a", "1 + 1"), "yields a int"},
		"string as groups":        {mapped("google.groups", `"a"`), "yields a string"},
		"mapping of mapping":      {mapped("attribute.a", "google.subject"), "undeclared reference to 'google'"},
		"long condition":          {first(func(p *Provider) { p.AttributeCondition = "true" + strings.Repeat(" ", 4093) }), "4097 characters"},
		"condition a string":      {first(func(p *Provider) { p.AttributeCondition = `"true"` }), "yields a string"},
		"nested macros":           {first(func(p *Provider) { p.AttributeCondition = doubled(30) + " == " + doubled(30) }), "nesting limit"},
		"costly condition":        {first(func(p *Provider) { p.AttributeCondition = costly() }), "costs at least"},
		"account":                 {func(c *Config) { c.ServiceAccounts[0].Email = "app" }, "e-mail"},
		"account twice":           {func(c *Config) { c.ServiceAccounts = append(c.ServiceAccounts, c.ServiceAccounts[0]) }, "is there twice"},
		"bucket":                  {func(c *Config) { c.Buckets[0].Name = "a/b" }, "slash"},
		"bucket twice":            {func(c *Config) { c.Buckets = append(c.Buckets, c.Buckets[0]) }, "is there twice"},
		"role":                    {func(c *Config) { c.ServiceAccounts[0].Policy[0].Role = RoleObjectViewer }, "grants nothing here"},
		"bucket's role":           {func(c *Config) { c.Buckets[0].Policy[0].Role = "roles/owner" }, "grants nothing here"},
		"everybody":               {member("allUsers"), "allUsers"},
		"the whole pool":          {member("principalSet:" + iamService + PoolName(testProject, testPool) + "/*"), "every identity of the pool"},
		"no subject named":        {member(Principal(testProject, testPool, "")), "SUBJECT"},
		"no group named":          {member(PrincipalSet(testProject, testPool, "group", "")), "GROUP"},
		"unknown pool":            {member(Principal(testProject, "nobody", testSubject)), "of a pool of this project"},
		"another project":         {member(Principal("1", testPool, testSubject)), "of a pool of this project"},
		"account as impersonator": {member(ServiceAccountMember(testAccount)), "principal:"},
		"unknown account":         {func(c *Config) { c.Buckets[0].Policy[0].Members = []string{ServiceAccountMember("nobody@x")} }, "no such service account"},
		"no clock":                {func(c *Config) { c.Clock = nil }, "clock"},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := p.config()
			test.change(&cfg)
			if _, err := New(cfg); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("error %v; want one with %q", err, test.want)
			}
		})
	}
	for name, change := range map[string]func(*Config){
		"10 audiences":      first(func(p *Provider) { p.AllowedAudiences = slices.Repeat([]string{strings.Repeat("ä", 256)}, 10) }),
		"50 attributes":     first(func(p *Provider) { p.AttributeMapping = manyAttributes(50) }),
		"longest mapping":   mapped("attribute.a", `"`+strings.Repeat("a", 2046)+`"`),
		"longest condition": first(func(p *Provider) { p.AttributeCondition = "true" + strings.Repeat(" ", 4092) }),
		"longest key":       mapped("attribute."+strings.Repeat("a", 100), "assertion.sub"),
	} {
		cfg := p.config()
		change(&cfg)
		if _, err := New(cfg); err != nil {
			t.Errorf("control, %s: %v", name, err)
		}
	}
}

func manyAttributes(n int) map[string]string {
	mapping := map[string]string{"google.subject": "assertion.sub", "google.groups": "[]"}
	for i := range n {
		mapping[fmt.Sprintf("attribute.a%d", i)] = "assertion.sub"
	}
	return mapping
}

// costly returns a condition that costs more than there can be for any token.
func costly() string {
	list := "[" + strings.Repeat("1,", 999) + "1]"
	return list + ".map(a," + list + ".map(b,a+b)) != []"
}

func TestCredentialsAreBounded(t *testing.T) {
	now := time.Unix(1_000_000, 0)
	c := newCredentials()
	first := issue(principal{}, scopes{}, "", now.Add(time.Hour))
	c.add(first, now)
	if c.find(first.token) == nil {
		t.Fatal("control: a new credential is not there")
	}
	if c.find(first.token+"x") != nil || c.find(tokenPrefix+first.id+"-") != nil || c.find("") != nil {
		t.Error("another token is taken for the credential's")
	}
	later := now.Add(time.Hour + keepExpired)
	c.add(issue(principal{}, scopes{}, "", later.Add(time.Hour)), later)
	if c.find(first.token) != nil {
		t.Error("a credential that expired long ago is still there")
	}
	for range maxCredentials {
		c.add(issue(principal{}, scopes{}, "", later.Add(time.Hour)), later)
	}
	if len(c.order) != maxCredentials || len(c.byID) != maxCredentials {
		t.Errorf("%d in order, %d by id; the bound is %d", len(c.order), len(c.byID), maxCredentials)
	}
}

func TestCredentialsJSON(t *testing.T) {
	file := CredentialFile{URL: "https://127.0.0.1:1234/", Audience: testAudience(), TokenFile: "/var/run/secrets/token"}
	data, err := CredentialsJSON(file)
	if err != nil {
		t.Fatal(err)
	}
	want := `{
  "audience": "//iam.googleapis.com/projects/123456789012/locations/global/workloadIdentityPools/oidclab/providers/cluster-1",
  "credential_source": {
    "file": "/var/run/secrets/token",
    "format": {
      "type": "text"
    }
  },
  "subject_token_type": "urn:ietf:params:oauth:token-type:jwt",
  "token_url": "https://127.0.0.1:1234/v1/token",
  "type": "external_account",
  "universe_domain": "googleapis.com"
}
`
	if string(data) != want {
		t.Errorf("got %s", data)
	}
	file.ServiceAccount = testAccount
	data, err = CredentialsJSON(file)
	if err != nil || !bytes.Contains(data, []byte(`"service_account_impersonation_url": "https://127.0.0.1:1234/v1/projects/-/serviceAccounts/`+testAccount+`:generateAccessToken"`)) {
		t.Errorf("%v: got %s", err, data)
	}
}
