package azure

import (
	"encoding/json"
	"encoding/xml"
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
	testTenant  = "72f988bf-0000-4000-8000-2d7cd011db47"
	testClient  = "11111111-0000-4000-8000-000000000001" // may read the container
	otherClient = "11111111-0000-4000-8000-000000000002" // may not, and trusts otherSubject too
	emptyClient = "11111111-0000-4000-8000-000000000003" // has no credentials

	testSubject  = "system:serviceaccount:demo:app"
	otherSubject = "system:serviceaccount:demo:other"
	thirdSubject = "system:serviceaccount:demo:third" // trusted with its own audience

	testContent = "read me"
	storageTime = "2021-08-06" // a version of the storage services
)

// directory is a served Handler and an issuer.
type directory struct {
	*ststest.Lab
	issuer  *ststest.Issuer
	second  *ststest.Issuer // is trusted by otherClient only
	handler *Handler
	url     string
}

func newDirectory(t testing.TB) *directory {
	t.Helper()
	l := ststest.New(t)
	d := &directory{Lab: l, issuer: l.NewRSAIssuer(t), second: l.NewRSAIssuer(t)}
	d.serve(t, nil)
	return d
}

// serve starts a handler, with changes to its configuration.
func (d *directory) serve(t testing.TB, change func(*Config)) {
	t.Helper()
	server := d.Listen(t)
	d.url = server.URL()
	cfg := d.config()
	if change != nil {
		change(&cfg)
	}
	handler, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	d.handler = handler
	server.Serve(handler)
}

func (d *directory) config() Config {
	return Config{
		URL: d.url, Tenant: testTenant,
		Applications: []Application{
			{ClientID: testClient, Credentials: []FederatedCredential{
				{Name: "demo-app", Issuer: d.issuer.URL, Subject: testSubject},
				{Name: "demo-third", Issuer: d.issuer.URL, Subject: thirdSubject, Audience: "api://third"},
			}},
			{ClientID: otherClient, Credentials: []FederatedCredential{
				{Name: "demo-app", Issuer: d.issuer.URL, Subject: testSubject},
				{Name: "demo-other", Issuer: d.issuer.URL, Subject: otherSubject},
				{Name: "second", Issuer: d.second.URL, Subject: testSubject},
			}},
			{ClientID: emptyClient},
		},
		Containers: []Container{{Name: "demo", Blobs: map[string][]byte{"a/hello.txt": []byte(testContent)}, Readers: []string{testClient}}},
		Client:     d.Client, Clock: d.Clock, Trace: d.Trace,
	}
}

// token returns a good assertion, with changes to its claims.
func (d *directory) token(t testing.TB, changes map[string]any) string {
	t.Helper()
	return d.issuer.Sign(t, d.issuer.Claims(testSubject, Audience, changes))
}

func tokenForm(token string) url.Values {
	return url.Values{
		"client_assertion": {token}, "client_assertion_type": {assertionType}, "client_id": {testClient}, "client_info": {"1"},
		"grant_type": {grantType}, "scope": {"https://storage.azure.com/.default openid offline_access profile"},
	}
}

// answer is what a test looks at of any answer.
type answer struct {
	status int
	header http.Header
	body   string

	tokenResponse
	errorResponse

	Code    string `xml:"Code"`
	Message string `xml:"Message"`
	Detail  string `xml:"AuthenticationErrorDetail"`
}

func (d *directory) do(t testing.TB, request *http.Request) answer {
	t.Helper()
	var got answer
	status, header, body := d.Do(t, request)
	got.status, got.header, got.body = status, header, string(body)
	switch media, _, _ := strings.Cut(got.header.Get("Content-Type"), ";"); {
	case media == "application/json":
		for _, into := range []any{&got.tokenResponse, &got.errorResponse} {
			if err := json.Unmarshal(body, into); err != nil {
				t.Fatalf("%v in %s", err, body)
			}
		}
	case media == "application/xml" && len(body) > 0:
		if err := xml.Unmarshal(body, &got); err != nil {
			t.Fatalf("%v in %s", err, body)
		}
	}
	return got
}

func (d *directory) tokenURL() string { return d.url + "/" + testTenant + "/oauth2/v2.0/token" }

func (d *directory) post(t testing.TB, form url.Values) answer {
	t.Helper()
	return d.do(t, ststest.Request(t, http.MethodPost, d.tokenURL(), form.Encode()))
}

// read gets a blob with an access token.
func (d *directory) read(t testing.TB, path, accessToken string) answer {
	t.Helper()
	request := ststest.Request(t, http.MethodGet, d.url+path, "")
	request.Header.Set("X-Ms-Version", storageTime)
	request.Header.Set("Authorization", "Bearer "+accessToken)
	return d.do(t, request)
}

// wantError compares an error answer of the token service.
func (d *directory) wantError(t testing.TB, got answer, status int, oauth string, code int, text string) {
	t.Helper()
	if got.status != status || got.Error != oauth || !slices.Equal(got.Codes, []int{code}) {
		t.Errorf("got %d %s %d\nwant %d %s %d\nin %s", got.status, got.Error, got.Codes, status, oauth, code, got.body)
	}
	want := fmt.Sprintf("AADSTS%d: %s Trace ID: %s Correlation ID: %s Timestamp: %s", code, text, got.TraceID, got.CorrelationID, got.Timestamp)
	if got.Description != want {
		t.Errorf("got  %s\nwant %s", got.Description, want)
	}
	if want := d.Clock.Now().UTC().Format("2006-01-02 15:04:05Z"); got.Timestamp != want {
		t.Errorf("timestamp %q, want %q", got.Timestamp, want)
	}
	if got.TraceID != got.header.Get("X-Ms-Request-Id") || !isUUID(got.TraceID) || !isUUID(got.CorrelationID) || got.URI != fmt.Sprintf("https://login.microsoftonline.com/error?code=%d", code) {
		t.Errorf("trace id %q, correlation id %q, uri %q", got.TraceID, got.CorrelationID, got.URI)
	}
}

func TestToken(t *testing.T) {
	d := newDirectory(t)
	token := d.token(t, nil)
	got := d.post(t, tokenForm(token))
	if got.status != http.StatusOK || got.TokenType != "Bearer" || got.ExpiresIn != 3599 || got.ExtExpiresIn != 3599 {
		t.Fatalf("got %d %s", got.status, got.body)
	}
	if got.header.Get("Cache-Control") != "no-store, no-cache" || !isUUID(got.header.Get("X-Ms-Request-Id")) {
		t.Errorf("header %v", got.header)
	}
	var configuration struct {
		Issuer, JWKSURI string
		Keys            string `json:"jwks_uri"`
	}
	if err := json.Unmarshal([]byte(d.do(t, ststest.Request(t, http.MethodGet, d.url+"/"+testTenant+"/v2.0/.well-known/openid-configuration", "")).body), &configuration); err != nil {
		t.Fatal(err)
	}
	keys := d.do(t, ststest.Request(t, http.MethodGet, configuration.Keys, ""))
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
	now := float64(d.Clock.Now().Unix())
	for name, want := range map[string]any{
		"iss": configuration.Issuer, "aud": "https://storage.azure.com", "appid": testClient, "tid": testTenant, "oid": d.handler.objectID(testClient),
		"sub": d.handler.objectID(testClient), "oidclab_journey": trace.JourneyOf(token), "iat": now, "nbf": now, "exp": now + 3599,
	} {
		if claims[name] != want {
			t.Errorf("claim %s: %v, want %v", name, claims[name], want)
		}
	}
	if again := d.post(t, tokenForm(token)); again.AccessToken == got.AccessToken || again.status != http.StatusOK {
		t.Error("a second answer has the token of the first")
	}
	if blob := d.read(t, "/demo/a/hello.txt", got.AccessToken); blob.body != testContent {
		t.Errorf("blob: %d %s", blob.status, blob.body)
	}
	d.Secrets(t, token, token[strings.LastIndex(token, ".")+1:], got.AccessToken, got.AccessToken[strings.LastIndex(got.AccessToken, ".")+1:])
}

func TestAssertionsRefused(t *testing.T) {
	d := newDirectory(t)
	now := d.Clock.Now()
	at := func(offset int) string {
		return now.Add(time.Duration(offset) * time.Second).UTC().Format("2006-01-02T15:04:05.0000000Z")
	}
	notInTime := func(from, to int) string {
		return "Client assertion is not within its valid time range. Current time: " + at(0) + ", assertion valid from " + at(from) + ", expiry time of assertion " + at(to) + "."
	}
	stranger, elliptic := d.NewRSAIssuer(t), d.NewIssuer(t)
	unpublished := stranger.Claims(testSubject, Audience, map[string]any{"iss": d.issuer.URL})
	for _, test := range []struct {
		name   string
		token  string
		client string // default testClient
		status int
		oauth  string
		code   int
		text   string
	}{
		{name: "control", token: d.token(t, nil)},
		{name: "control with an audience of its own", token: d.token(t, map[string]any{"sub": thirdSubject, "aud": "api://third"})},
		{name: "control of the other application", token: d.token(t, map[string]any{"sub": otherSubject}), client: otherClient},
		{name: "control of the second issuer", token: d.second.Sign(t, d.second.Claims(testSubject, Audience, nil)), client: otherClient},
		{name: "control with a client id in upper case", token: d.token(t, nil), client: strings.ToUpper(testClient)},

		{"issuer", stranger.Sign(t, stranger.Claims(testSubject, Audience, nil)), "", 401, "invalid_client", 700211, noMatch + "issuer '" + stranger.URL + "'." + checkThem},
		{"issuer of another application", d.second.Sign(t, d.second.Claims(testSubject, Audience, nil)), "", 401, "invalid_client", 700211, noMatch + "issuer '" + d.second.URL + "'." + checkThem},
		{"trailing slash", d.token(t, map[string]any{"iss": d.issuer.URL + "/"}), "", 401, "invalid_client", 700211, noMatch + "issuer '" + d.issuer.URL + "/'." + checkThem},
		{"subject", d.token(t, map[string]any{"sub": otherSubject}), "", 401, "invalid_client", 700213, noMatch + "subject '" + otherSubject + "'." + checkThem},
		{"case of the subject", d.token(t, map[string]any{"sub": "system:serviceaccount:Demo:app"}), "", 401, "invalid_client", 7002138, noMatch + "subject 'system:serviceaccount:Demo:app'." + caseOnly + checkThem},
		{"audience", d.token(t, map[string]any{"aud": "vault"}), "", 401, "invalid_client", 700212, noMatch + "audience 'vault'." + checkThem},
		{"case of the audience", d.token(t, map[string]any{"aud": strings.ToLower(Audience)}), "", 401, "invalid_client", 700212, noMatch + "audience '" + strings.ToLower(Audience) + "'." + checkThem},
		{"audience of another credential", d.token(t, map[string]any{"aud": []string{"api://third"}}), "", 401, "invalid_client", 700212, noMatch + "audience 'api://third'." + checkThem},
		{"no credentials", d.token(t, nil), emptyClient, 401, "invalid_client", 70025, "The client '" + emptyClient + "' has no configured federated identity credentials."},
		{"no credentials, unknown issuer", stranger.Sign(t, stranger.Claims(testSubject, Audience, nil)), emptyClient, 401, "invalid_client", 70025, "The client '" + emptyClient + "' has no configured federated identity credentials."},
		{"unknown application", d.token(t, nil), "nobody", 400, "unauthorized_client", 700016, "Application with identifier 'nobody' was not found in the directory '" + testTenant + "'. This can happen if the application has not been installed by the administrator of the tenant or consented to by any user in the tenant. You may have sent your authentication request to the wrong tenant."},

		{"expired", d.token(t, map[string]any{"exp": now.Unix() - 300}), "", 401, "invalid_client", 700024, notInTime(0, -300)},
		{name: "expired within the skew", token: d.token(t, map[string]any{"exp": now.Unix() - 299})},
		{"not yet valid", d.token(t, map[string]any{"nbf": now.Unix() + 301}), "", 401, "invalid_client", 700024, notInTime(301, 600)},
		{name: "not yet valid within the skew", token: d.token(t, map[string]any{"nbf": now.Unix() + 300})},
		{"issued in the future", d.token(t, map[string]any{"iat": now.Unix() + 301}), "", 401, "invalid_client", 700024, notInTime(0, 600)},
		{"elliptic curve", elliptic.Sign(t, elliptic.Claims(testSubject, Audience, nil)), "", 400, "invalid_request", 5002738, "Invalid JWT token. 'ES256' is not a supported signature algorithm. Supported signing algorithms are: RS256, RS384, RS512, PS256, PS384, PS512."},
		{"forged", d.issuer.Forge(t, d.issuer.Claims(testSubject, Audience, nil)), "", 400, "invalid_request", 50027, "JWT token is invalid or malformed."},
		{"key of another issuer", stranger.Sign(t, unpublished), "", 400, "invalid_request", 50027, "JWT token is invalid or malformed."},
		{"missing claim", d.token(t, map[string]any{"sub": nil}), "", 400, "invalid_request", 50027, "JWT token is invalid or malformed."},
		{"duplicate claim", "eyJhbGciOiJSUzI1NiIsImtpZCI6Im9uZSJ9.eyJpc3MiOiJhIiwiaXNzIjoiYiJ9.AA", "", 400, "invalid_request", 50027, "JWT token is invalid or malformed."},
		{"newline", d.token(t, nil) + "\n", "", 400, "invalid_request", 50027, "JWT token is invalid or malformed."},
		{"garbage", "garbage", "", 400, "invalid_request", 50027, "JWT token is invalid or malformed."},
		{"too large", strings.Repeat("x", 16<<10+1), "", 400, "invalid_request", 50027, "JWT token is invalid or malformed."},
		{"none", "", "", 401, "invalid_client", 7000216, "'client_assertion', 'client_secret' or 'request' is required for the 'client_credentials' grant type."},
	} {
		t.Run(test.name, func(t *testing.T) {
			form := tokenForm(test.token)
			if test.client != "" {
				form.Set("client_id", test.client)
			}
			got := d.post(t, form)
			if test.code == 0 {
				if got.status != http.StatusOK {
					t.Fatalf("status %d: %s", got.status, got.body)
				}
				return
			}
			d.wantError(t, got, test.status, test.oauth, test.code, test.text)
			if len(test.token) > 20 && strings.Contains(got.body, test.token) {
				t.Error("the answer holds the token")
			}
		})
	}
}

// TestExpiresByTheClock lets time pass instead of forging claims.
func TestExpiresByTheClock(t *testing.T) {
	d := newDirectory(t)
	form := tokenForm(d.token(t, nil))
	if got := d.post(t, form); got.status != http.StatusOK {
		t.Fatalf("control: %d %s", got.status, got.body)
	}
	d.Clock.Advance(15*time.Minute - time.Second) // ten of life, five of skew
	if got := d.post(t, form); got.status != http.StatusOK {
		t.Fatalf("in the last second: %d %s", got.status, got.body)
	}
	d.Clock.Advance(time.Second)
	if got := d.post(t, form); !slices.Equal(got.Codes, []int{700024}) {
		t.Errorf("got %d %s", got.status, got.body)
	}
}

func TestKeyNotYetKnown(t *testing.T) {
	d := newDirectory(t)
	issuer := d.NewIssuer(t) // whose rotation keeps its kind of key
	profile := sts.Azure()
	profile.Algorithms = append(profile.Algorithms, "ES256")
	d.serve(t, func(c *Config) {
		c.Profile = profile
		c.Applications[0].Credentials[0].Issuer = issuer.URL
	})
	sign := func() url.Values { return tokenForm(issuer.Sign(t, issuer.Claims(testSubject, Audience, nil))) }
	if got := d.post(t, sign()); got.status != http.StatusOK {
		t.Fatalf("control: %d %s", got.status, got.body)
	}
	issuer.Rotate(t, "two")
	d.Clock.Advance(5*time.Minute - time.Second)
	d.wantError(t, d.post(t, sign()), 401, "invalid_client", 7000272, "The certificate with identifier two used to sign the federated credential could not be found in the metadata of identity provider "+issuer.URL+
		". Please validate that your Identity Provider's metadata exposes the key used to sign the incoming token.")
	d.Clock.Advance(time.Second)
	if got := d.post(t, sign()); got.status != http.StatusOK {
		t.Errorf("after the interval: %d %s", got.status, got.body)
	}
	if state := d.handler.Core().Cached(issuer.URL); !slices.Equal(state.Kids, []string{"two"}) || state.Fetches != 2 {
		t.Errorf("cache %+v", state)
	}
}

func TestUnreachableIssuer(t *testing.T) {
	d := newDirectory(t)
	gone := d.Listen(t)
	if err := gone.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	d.serve(t, func(c *Config) { c.Applications[0].Credentials[0].Issuer = gone.URL() })
	d.wantError(t, d.post(t, tokenForm(d.token(t, map[string]any{"iss": gone.URL()}))), 400, "invalid_request", 50166, "Request to External OIDC endpoint failed.")
}

// TestEveryReasonHasAnAnswer walks the closed set of reasons.
func TestEveryReasonHasAnAnswer(t *testing.T) {
	d := newDirectory(t)
	want := map[sts.Reason][2]string{ // of the token service, of storage
		sts.TokenMissing:        {"401 invalid_client 7000216", "401 InvalidAuthenticationInfo"},
		sts.TokenTooLarge:       {"400 invalid_request 50027", "401 InvalidAuthenticationInfo"},
		sts.TokenMalformed:      {"400 invalid_request 50027", "401 InvalidAuthenticationInfo"},
		sts.HeaderRefused:       {"400 invalid_request 50027", "401 InvalidAuthenticationInfo"},
		sts.AlgorithmRefused:    {"400 invalid_request 5002738", "401 InvalidAuthenticationInfo"},
		sts.ClaimMissing:        {"400 invalid_request 50027", "401 InvalidAuthenticationInfo"},
		sts.ClaimInvalid:        {"400 invalid_request 50027", "401 InvalidAuthenticationInfo"},
		sts.IssuerUnknown:       {"401 invalid_client 700211", "401 InvalidAuthenticationInfo"},
		sts.IssuerUnreachable:   {"400 invalid_request 50166", "503 ServerBusy"},
		sts.KeyUnknown:          {"401 invalid_client 7000272", "401 InvalidAuthenticationInfo"},
		sts.SignatureInvalid:    {"400 invalid_request 50027", "401 InvalidAuthenticationInfo"},
		sts.TokenExpired:        {"401 invalid_client 700024", "401 InvalidAuthenticationInfo"},
		sts.TokenNotYetValid:    {"401 invalid_client 700024", "401 InvalidAuthenticationInfo"},
		sts.TokenIssuedInFuture: {"401 invalid_client 700024", "401 InvalidAuthenticationInfo"},
		sts.TokenTooOld:         {"401 invalid_client 700024", "401 InvalidAuthenticationInfo"},
		sts.AudienceMismatch:    {"401 invalid_client 700212", "401 InvalidAuthenticationInfo"},
		sts.RoleUnknown:         {"400 unauthorized_client 700016", "404 ContainerNotFound"},
		sts.IssuerNotTrusted:    {"401 invalid_client 700211", "403 AuthorizationPermissionMismatch"},
		sts.SubjectMismatch:     {"401 invalid_client 700213", "403 AuthorizationPermissionMismatch"},
		sts.ConditionMismatch:   {"401 invalid_client 700212", "403 AuthorizationPermissionMismatch"},
	}
	check := func(reason sts.Reason, want [2]string) {
		client := testClient
		if reason == sts.RoleUnknown {
			client = "nobody"
		}
		e := d.handler.refused(&sts.Refusal{Reason: reason}, client, "")
		if got := fmt.Sprintf("%d %s %d", e.status, e.oauth, e.code); got != want[0] || e.text == "" {
			t.Errorf("%s: the token service answers with %s %q, want %q", reason, got, e.text, want[0])
		}
		blob := refusedByStorage(&sts.Refusal{Reason: reason})
		if got := fmt.Sprintf("%d %s", blob.status, blob.Code); got != want[1] || blob.Message == "" {
			t.Errorf("%s: storage answers with %s %q, want %q", reason, got, blob.Message, want[1])
		}
	}
	for _, reason := range sts.Reasons() {
		check(reason, want[reason])
	}
	check("unheard of", [2]string{"500 server_error 90033", "500 InternalError"})
}

func TestParametersRefused(t *testing.T) {
	d := newDirectory(t)
	good := tokenForm(d.token(t, nil))
	for _, test := range []struct {
		name   string
		change url.Values // an empty list removes the parameter
		status int
		oauth  string
		code   int
		text   string
	}{
		{name: "control"},
		{name: "control with a slash", change: url.Values{"scope": {"https://storage.azure.com//.default"}}},
		{"no grant type", url.Values{"grant_type": nil}, 400, "invalid_request", 900144, "The request body must contain the following parameter: 'grant_type'."},
		{"another grant type", url.Values{"grant_type": {"password"}}, 400, "unsupported_grant_type", 70003, "The app requested an unsupported grant type 'password'."},
		{"no client id", url.Values{"client_id": nil}, 400, "invalid_request", 900144, "The request body must contain the following parameter: 'client_id'."},
		{"no scope", url.Values{"scope": nil}, 400, "invalid_request", 900144, "The request body must contain the following parameter: 'scope'."},
		{"OpenID scopes only", url.Values{"scope": {"openid profile"}}, 400, "invalid_scope", 70011, "The provided request must include a 'scope' input parameter. The provided value for the input parameter 'scope' is not valid. The scope openid profile is not valid."},
		{"two resources", url.Values{"scope": {"https://storage.azure.com/.default https://vault.azure.net/.default"}}, 400, "invalid_scope", 70011, "The provided request must include a 'scope' input parameter. The provided value for the input parameter 'scope' is not valid. The scope https://storage.azure.com/.default https://vault.azure.net/.default is not valid."},
		{"no suffix", url.Values{"scope": {"https://storage.azure.com"}}, 400, "invalid_scope", 1002012, "The provided value for scope https://storage.azure.com is not valid. Client credential flows must have a scope value with /.default suffixed to the resource identifier (application ID URI)."},
		{"unknown resource", url.Values{"scope": {"https://vault.azure.net/.default"}}, 400, "invalid_resource", 500011, "The resource principal named https://vault.azure.net was not found in the tenant. This can happen if the application has not been installed by the administrator of the tenant or consented to by any user in the tenant."},
		{"no assertion type", url.Values{"client_assertion_type": nil}, 400, "invalid_request", 900144, "The request body must contain the following parameter: 'client_assertion_type'."},
		{"another assertion type", url.Values{"client_assertion_type": {"urn:schwarz:params:oauth:client-assertion-type:workload-jwt"}}, 400, "invalid_request", 90100, "The client_assertion_type parameter is empty or not valid."},
		{"duplicate", url.Values{"client_id": {testClient, testClient}}, 400, "invalid_request", 90100, "A request parameter is empty or not valid: a parameter is there twice."},
		{"huge", url.Values{"x": {strings.Repeat("x", 256<<10)}}, 413, "invalid_request", 90100, "A request parameter is empty or not valid: the request is too large."},
	} {
		t.Run(test.name, func(t *testing.T) {
			form := url.Values{}
			for _, values := range []url.Values{good, test.change} {
				for name := range values {
					form[name] = values[name]
				}
			}
			got := d.post(t, form)
			if test.code == 0 {
				if got.status != http.StatusOK {
					t.Fatalf("status %d: %s", got.status, got.body)
				}
				return
			}
			d.wantError(t, got, test.status, test.oauth, test.code, test.text)
		})
	}
}

func TestRequestsRefused(t *testing.T) {
	d := newDirectory(t)
	good := tokenForm(d.token(t, nil)).Encode()
	const other = "99999999-0000-4000-8000-000000000000"
	instance := func(endpoint string) string {
		return "/common/discovery/instance?api-version=1.1&authorization_endpoint=" + url.QueryEscape(endpoint)
	}
	for _, test := range []struct {
		name, method, path string
		status             int
		oauth              string
		code               int
	}{
		{"control", "POST", "/" + testTenant + "/oauth2/v2.0/token", 200, "", 0},
		{"control in upper case", "POST", "/" + strings.ToUpper(testTenant) + "/oauth2/v2.0/token", 200, "", 0},
		{"GET", "GET", "/" + testTenant + "/oauth2/v2.0/token", 405, "invalid_request", 900561},
		{"unknown tenant", "POST", "/" + other + "/oauth2/v2.0/token", 400, "invalid_request", 90002},
		{"unknown domain", "POST", "/example.onmicrosoft.com/oauth2/v2.0/token", 400, "invalid_request", 90002},
		{"malformed tenant", "POST", "/demo/oauth2/v2.0/token", 400, "invalid_request", 900023},
		{"control of the configuration", "GET", "/" + testTenant + "/v2.0/.well-known/openid-configuration", 200, "", 0},
		{"configuration of an unknown tenant", "GET", "/" + other + "/v2.0/.well-known/openid-configuration", 400, "invalid_tenant", 90002},
		{"control of the keys", "GET", "/" + testTenant + "/discovery/v2.0/keys", 200, "", 0},
		{"keys of an unknown tenant", "GET", "/" + other + "/discovery/v2.0/keys", 400, "invalid_tenant", 90002},
		{"control of the instance", "GET", instance(d.url + "/" + testTenant + "/oauth2/v2.0/authorize"), 200, "", 0},
		{"unknown instance", "GET", instance("https://login.example/" + testTenant + "/oauth2/v2.0/authorize"), 400, "invalid_instance", 50049},
		{"instance over http", "GET", instance("http://login.microsoftonline.com/" + testTenant + "/oauth2/v2.0/authorize"), 400, "invalid_instance", 50049},
		{"instance of an unknown tenant", "GET", instance(d.url + "/" + other + "/oauth2/v2.0/authorize"), 400, "invalid_request", 90002},
		{"no instance", "GET", "/common/discovery/instance", 400, "invalid_instance", 50049},
	} {
		t.Run(test.name, func(t *testing.T) {
			request := ststest.Request(t, test.method, d.url+test.path, good)
			request.Header.Set("Client-Request-Id", "0b9b7f70-0000-4000-8000-000000000009")
			got := d.do(t, request)
			if got.status != test.status || got.Error != test.oauth || test.code != 0 && !slices.Equal(got.Codes, []int{test.code}) {
				t.Errorf("got %d %s %d, want %d %s %d", got.status, got.Error, got.Codes, test.status, test.oauth, test.code)
			}
			if test.code != 0 && got.CorrelationID != "0b9b7f70-0000-4000-8000-000000000009" {
				t.Errorf("correlation id %q", got.CorrelationID)
			}
			if allow := got.header.Get("Allow"); (allow == "POST") != (test.status == 405) {
				t.Errorf("Allow %q", allow)
			}
		})
	}
}

// TestAuthority asks for the metadata under both names of the service, and
// under a stranger's, which must not get into it.
func TestAuthority(t *testing.T) {
	d := newDirectory(t)
	for host, want := range map[string]string{"": d.url, "login.microsoftonline.com": "https://login.microsoftonline.com", "evil.example": d.url} {
		request := ststest.Request(t, http.MethodGet, d.url+"/"+testTenant+"/v2.0/.well-known/openid-configuration", "")
		request.Host = host
		var got map[string]any
		if err := json.Unmarshal([]byte(d.do(t, request).body), &got); err != nil {
			t.Fatal(err)
		}
		for name, path := range map[string]string{
			"issuer": "/v2.0", "authorization_endpoint": "/oauth2/v2.0/authorize", "token_endpoint": "/oauth2/v2.0/token", "jwks_uri": "/discovery/v2.0/keys",
		} {
			if got[name] != want+"/"+testTenant+path {
				t.Errorf("under %q: %s is %v, want it under %s", host, name, got[name], want)
			}
		}
	}
}

func TestBlob(t *testing.T) {
	d := newDirectory(t)
	granted := d.post(t, tokenForm(d.token(t, nil))).AccessToken
	form := tokenForm(d.token(t, nil))
	form.Set("client_id", otherClient)
	ungranted := d.post(t, form).AccessToken
	foreign, err := New(d.config()) // the same configuration with another key
	if err != nil {
		t.Fatal(err)
	}
	sign := func(h *Handler, change func(*accessToken)) string {
		now := d.Clock.Now().Unix()
		claims := accessToken{Audience: storageResource, Issuer: h.issuer(d.url), IssuedAt: now, NotBefore: now, Expiry: now + 60, Subject: h.objectID(testClient)}
		change(&claims)
		token, err := h.service.Sign(claims)
		if err != nil {
			t.Fatal(err)
		}
		return "Bearer " + token
	}
	const refer = "Server failed to authenticate the request. Please refer to the information in the www-authenticate header."
	const formed = "Server failed to authenticate the request. Make sure the value of Authorization header is formed correctly including the signature."
	for _, test := range []struct {
		name, method, path, authorization, version string
		status                                     int
		code, message, detail                      string
	}{
		{"control", "GET", "/demo/a/hello.txt", "Bearer " + granted, storageTime, 200, "", "", ""},
		{"control signed here", "GET", "/demo/a/hello.txt", sign(d.handler, func(*accessToken) {}), storageTime, 200, "", "", ""},
		{"control HEAD", "HEAD", "/demo/a/hello.txt", "Bearer " + granted, storageTime, 200, "", "", ""},
		{"oldest version", "GET", "/demo/a/hello.txt", "bearer " + granted, "2017-11-09", 200, "", "", ""},
		{"older version", "GET", "/demo/a/hello.txt", "Bearer " + granted, "2017-07-29", 403, "AuthenticationFailed", formed, "Authentication scheme Bearer is not supported in this version."},
		{"no version", "GET", "/demo/a/hello.txt", "Bearer " + granted, "", 403, "AuthenticationFailed", formed, "Authentication scheme Bearer is not supported in this version."},
		{"malformed version", "GET", "/demo/a/hello.txt", "Bearer " + granted, "latest", 400, "InvalidHeaderValue", "The value for one of the HTTP headers is not in the correct format.", ""},
		{"anonymous", "GET", "/demo/a/hello.txt", "", storageTime, 401, "NoAuthenticationInformation", refer, ""},
		{"shared key", "GET", "/demo/a/hello.txt", "SharedKey demo:AAAA", storageTime, 403, "AuthenticationFailed", formed, ""},
		{"no token", "GET", "/demo/a/hello.txt", "Bearer ", storageTime, 401, "InvalidAuthenticationInfo", refer, ""},
		{"garbage", "GET", "/demo/a/hello.txt", "Bearer x.y.z", storageTime, 401, "InvalidAuthenticationInfo", refer, ""},
		{"the cluster's token", "GET", "/demo/a/hello.txt", "Bearer " + d.token(t, nil), storageTime, 401, "InvalidAuthenticationInfo", refer, ""},
		{"another resource", "GET", "/demo/a/hello.txt", sign(d.handler, func(a *accessToken) { a.Audience = "https://vault.azure.net" }), storageTime, 401, "InvalidAuthenticationInfo", refer, "Audience validation failed. Audience did not match."},
		{"another issuer", "GET", "/demo/a/hello.txt", sign(d.handler, func(a *accessToken) { a.Issuer = "https://sts.windows.net/" + testTenant + "/" }), storageTime, 401, "InvalidAuthenticationInfo", refer, "Issuer validation failed. Issuer did not match."},
		{"another key", "GET", "/demo/a/hello.txt", sign(foreign, func(*accessToken) {}), storageTime, 401, "InvalidAuthenticationInfo", refer, "Signature validation failed. Signature key not found."},
		{"expired", "GET", "/demo/a/hello.txt", sign(d.handler, func(a *accessToken) { a.Expiry = d.Clock.Now().Unix() }), storageTime, 401, "InvalidAuthenticationInfo", refer, "Lifetime validation failed. The token is expired."},
		{"not yet valid", "GET", "/demo/a/hello.txt", sign(d.handler, func(a *accessToken) { a.NotBefore++ }), storageTime, 401, "InvalidAuthenticationInfo", refer, "Lifetime validation failed."},
		{"no permission", "GET", "/demo/a/hello.txt", "Bearer " + ungranted, storageTime, 403, "AuthorizationPermissionMismatch", "This request is not authorized to perform this operation using this permission.", ""},
		{"no such blob", "GET", "/demo/b", "Bearer " + granted, storageTime, 404, "BlobNotFound", "The specified blob does not exist.", ""},
		{"no such container", "GET", "/demo2/a/hello.txt", "Bearer " + granted, storageTime, 404, "ContainerNotFound", "The specified container does not exist.", ""},
		{"no blob", "GET", "/demo", "Bearer " + granted, storageTime, 400, "InvalidUri", "The requested URI does not represent any resource on the server.", ""},
		{"PUT", "PUT", "/demo/a/hello.txt", "Bearer " + granted, storageTime, 405, "UnsupportedHttpVerb", "The resource doesn't support specified Http Verb.", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			request := ststest.Request(t, test.method, d.url+test.path, "")
			for name, value := range map[string]string{"Authorization": test.authorization, "X-Ms-Version": test.version} {
				if value != "" {
					request.Header.Set(name, value)
				}
			}
			got := d.do(t, request)
			message, _, _ := strings.Cut(got.Message, "\n")
			if got.status != test.status || got.Code != test.code || message != test.message || got.Detail != test.detail {
				t.Errorf("got %d %s %q %q\nwant %d %s %q %q", got.status, got.Code, message, got.Detail, test.status, test.code, test.message, test.detail)
			}
			if got.header.Get("X-Ms-Error-Code") != test.code {
				t.Errorf("x-ms-error-code %q", got.header.Get("X-Ms-Error-Code"))
			}
			if test.status == 200 && test.method == "GET" && got.body != testContent {
				t.Errorf("content %q", got.body)
			}
			want := ""
			if test.status == 401 {
				want = "Bearer authorization_uri=" + d.url + "/" + testTenant + "/oauth2/authorize resource_id=https://storage.azure.com"
			}
			if got.header.Get("Www-Authenticate") != want {
				t.Errorf("WWW-Authenticate %q, want %q", got.header.Get("Www-Authenticate"), want)
			}
		})
	}
	d.Clock.Advance(time.Hour - 2*time.Second)
	if got := d.read(t, "/demo/a/hello.txt", granted); got.status != http.StatusOK {
		t.Errorf("in the last second: %d %s", got.status, got.body)
	}
	d.Clock.Advance(time.Second)
	if got := d.read(t, "/demo/a/hello.txt", granted); got.Detail != "Lifetime validation failed. The token is expired." {
		t.Errorf("after its life: %d %s", got.status, got.body)
	}
}

// TestJourney looks at what a token leaves in the trace, from check to use.
func TestJourney(t *testing.T) {
	d := newDirectory(t)
	token := d.token(t, nil)
	access := d.post(t, tokenForm(token)).AccessToken
	d.read(t, "/demo/a/hello.txt", access)
	d.read(t, "/other/a/hello.txt", access)
	form := tokenForm(token)
	form.Del("scope")
	d.post(t, form)

	var steps []string
	for _, e := range d.Trace.Journey(trace.JourneyOf(token)) {
		if e.Step == "grant" || e.Step == "use" || e.Name == "request" {
			steps = append(steps, strings.TrimSpace(fmt.Sprintf("%s %s %s %s %s", e.Station, e.Step, e.Name, e.Outcome, e.Reason)))
		}
	}
	want := "azure grant " + testClient + " ok\nazure-storage use container demo ok\nazure check request refused AADSTS900144"
	if got := strings.Join(steps, "\n"); got != want {
		t.Errorf("steps:\n%s\nwant:\n%s", got, want)
	}
	refused := d.Trace.Journey(trace.JourneyOf(access))
	if last := refused[len(refused)-1]; last.Step != "use" || last.Name != "unknown container" || last.Outcome != trace.Refused || last.Reason != string(sts.RoleUnknown) {
		t.Errorf("a use that was refused left %+v", last)
	}
	d.Secrets(t, token, access, access[strings.LastIndex(access, ".")+1:])
}

func TestNewRefuses(t *testing.T) {
	d := newDirectory(t)
	if _, err := New(d.config()); err != nil {
		t.Fatalf("control: %v", err)
	}
	credential := func(c *Config) *FederatedCredential { return &c.Applications[0].Credentials[0] }
	filled := func(n int) []FederatedCredential {
		credentials := make([]FederatedCredential, n)
		for i := range credentials {
			credentials[i] = FederatedCredential{Name: fmt.Sprintf("credential-%d", i), Issuer: d.issuer.URL, Subject: fmt.Sprint(i)}
		}
		return credentials
	}
	cfg := d.config()
	cfg.Applications[0].Credentials = filled(20)
	if _, err := New(cfg); err != nil {
		t.Errorf("control with 20 credentials: %v", err)
	}
	for name, test := range map[string]struct {
		change func(*Config)
		want   string
	}{
		"URL with a path":       {func(c *Config) { c.URL += "/azure" }, "https origin"},
		"URL over http":         {func(c *Config) { c.URL = "http://azure.example" }, "https origin"},
		"tenant":                {func(c *Config) { c.Tenant = "demo" }, "UUID"},
		"tenant in upper case":  {func(c *Config) { c.Tenant = strings.ToUpper(c.Tenant) }, "lower case"},
		"client id":             {func(c *Config) { c.Applications[0].ClientID = "demo" }, "UUID"},
		"application twice":     {func(c *Config) { c.Applications[2].ClientID = testClient }, "is there twice"},
		"21 credentials":        {func(c *Config) { c.Applications[0].Credentials = filled(21) }, "21 federated identity credentials"},
		"short name":            {func(c *Config) { credential(c).Name = "ab" }, "the name must be"},
		"name with a blank":     {func(c *Config) { credential(c).Name = "a b" }, "the name must be"},
		"name twice":            {func(c *Config) { credential(c).Name = "demo-third" }, "is there twice"},
		"issuer, subject twice": {func(c *Config) { credential(c).Subject = thirdSubject }, "the same issuer and subject"},
		"no subject":            {func(c *Config) { credential(c).Subject = "" }, "1 to 600 characters"},
		"long subject":          {func(c *Config) { credential(c).Subject = strings.Repeat("x", 601) }, "1 to 600 characters"},
		"issuer over http":      {func(c *Config) { credential(c).Issuer = "http://issuer.example" }, "https"},
		"container name":        {func(c *Config) { c.Containers[0].Name = "A" }, "the name must be"},
		"container twice":       {func(c *Config) { c.Containers = append(c.Containers, c.Containers[0]) }, "is there twice"},
		"no readers":            {func(c *Config) { c.Containers[0].Readers = nil }, "no readers"},
		"unknown reader":        {func(c *Config) { c.Containers[0].Readers = []string{testTenant} }, "not an application"},
		"short life":            {func(c *Config) { c.Lifetime = time.Millisecond }, "less than a second"},
		"no client for issuer":  {func(c *Config) { c.Client = nil }, "client"},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := d.config()
			test.change(&cfg)
			if _, err := New(cfg); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("error %v; want one with %q", err, test.want)
			}
		})
	}
}

func FuzzParameters(f *testing.F) {
	f.Add("grant_type=client_credentials&client_id=x&scope=https://storage.azure.com/.default&client_assertion=a.b.c")
	f.Add("grant_type=client_credentials&scope=/.default&client_id=%00&client_assertion_type=x")
	f.Fuzz(func(t *testing.T, body string) {
		form, err := url.ParseQuery(body)
		if err != nil {
			return
		}
		request, e := parseRequest(form)
		if e != nil && (e.status < 400 || e.code == 0 || e.oauth == "") {
			t.Fatalf("refused with %+v", e)
		}
		if e == nil && (request.clientID == "" || checkScope(form.Get("scope")) != nil) {
			t.Fatalf("accepted %+v", request)
		}
		if a := readAssertion(form.Get("client_assertion")); max(len(a.kid), len(a.issuer), len(a.subject), len(a.audience)) > maxShown {
			t.Fatalf("shows %+v", a)
		}
	})
}
