package aws

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"fmt"
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
	testAccount  = "123456789012"
	testRole     = "arn:aws:iam::123456789012:role/demo"
	testSubject  = "system:serviceaccount:demo:app"
	testAudience = "sts.amazonaws.com"
)

// account is a served Handler with one provider and the role demo.
type account struct {
	*ststest.Lab
	issuer  *ststest.Issuer
	handler *Handler
	url     string
	s3      string
}

func newAccount(t testing.TB, change ...func(*Config)) *account {
	t.Helper()
	l := ststest.New(t)
	a := &account{Lab: l, issuer: l.NewIssuer(t)}
	config := a.config()
	for _, c := range change {
		c(&config)
	}
	handler, err := New(config)
	if err != nil {
		t.Fatal(err)
	}
	a.handler = handler
	server, s3 := l.Listen(t), l.Listen(t)
	server.Serve(handler)
	s3.Serve(handler.S3())
	a.url, a.s3 = server.URL()+"/", s3.URL()
	return a
}

func (a *account) config() Config {
	return Config{
		Account:   testAccount,
		Providers: []Provider{{URL: a.issuer.URL, ClientIDs: []string{testAudience, "second"}}},
		Roles: []Role{{
			Name:               "demo",
			TrustPolicy:        trustPolicyFor(a.issuer.URL, testSubject, webIdentityAction),
			Policy:             json.RawMessage(readPolicy),
			MaxSessionDuration: 2 * time.Hour,
		}, {
			Name:        "tagged",
			TrustPolicy: trustPolicyFor(a.issuer.URL, testSubject, webIdentityAction, tagAction, sourceIdentityAction),
			Policy:      json.RawMessage(teamPolicy),
		}, {
			Name: "chained", Policy: json.RawMessage(teamPolicy), MaxSessionDuration: 2 * time.Hour,
			TrustPolicy: json.RawMessage(`{"Statement": [
				{"Effect": "Allow", "Principal": {"AWS": ["` + RoleARN(testAccount, "tagged") + `", "` + testRole + `"]}, "Action": "sts:AssumeRole"},
				{"Effect": "Allow", "Principal": {"AWS": "` + RoleARN(testAccount, "tagged") + `"}, "Action": ["sts:AssumeRole", "sts:TagSession", "sts:SetSourceIdentity"]}]}`),
		}},
		Buckets: []Bucket{
			{Name: "demo", Region: testRegion, Objects: map[string][]byte{"greeting": []byte("hello"), "a b/ü+c": []byte("escaped"), "secret": []byte("x")}},
			{Name: "other", Region: "us-west-2", Objects: map[string][]byte{"greeting": []byte("hello")}},
		},
		DisabledRegions: []string{"ap-east-1"},
		Client:          a.Client, Clock: a.Clock, Trace: a.Trace,
	}
}

// readPolicy lets the role demo read the bucket demo, but for one object.
const readPolicy = `{"Version": "2012-10-17", "Statement": [
	{"Effect": "Allow", "Action": "s3:GetObject", "Resource": "arn:aws:s3:::demo/*"},
	{"Effect": "Allow", "Action": ["s3:List*"], "Resource": "arn:aws:s3:::demo"},
	{"Effect": "Allow", "Action": "sts:AssumeRole", "Resource": "*"},
	{"Effect": "Deny", "Action": "s3:*", "Resource": "arn:aws:s3:::demo/secret"}]}`

// teamPolicy lets the role tagged read what sessions of the team blue may read.
const teamPolicy = `{"Version": "2012-10-17", "Statement": {"Effect": "Allow", "Action": "s3:get*", "Resource": "arn:aws:s3:::demo/*",
	"Condition": {"StringEquals": {"aws:PrincipalTag/Team": ["blue", "green"]}}}}`

const testRegion = "eu-central-1"

// trustPolicyFor allows the subject to do actions.
func trustPolicyFor(issuer, subject string, actions ...string) json.RawMessage {
	provider := strings.TrimPrefix(issuer, "https://")
	allowed, _ := json.Marshal(actions)
	return json.RawMessage(fmt.Sprintf(`{"Version":"2012-10-17","Statement":[{"Effect":"Allow",
		"Principal":{"Federated":%q},"Action":%s,
		"Condition":{"StringEquals":{%q:%q,%q:[%q,"second"]}}}]}`,
		ProviderARN(testAccount, issuer), allowed, provider+":sub", subject, provider+":aud", testAudience))
}

// token returns a good token, with changes to its claims.
func (a *account) token(t testing.TB, changes map[string]any) string {
	t.Helper()
	return a.issuer.Sign(t, a.issuer.Claims(testSubject, testAudience, changes))
}

func assumeForm(token string) url.Values {
	return url.Values{
		"Action": {"AssumeRoleWithWebIdentity"}, "Version": {version},
		"RoleArn": {testRole}, "RoleSessionName": {"session"}, "WebIdentityToken": {token},
	}
}

// answer is what a test looks at of any answer.
type answer struct {
	status int
	header http.Header
	body   string

	Code    string `xml:"Error>Code"`
	Type    string `xml:"Error>Type"`
	Message string `xml:"Error>Message"`

	AccessKeyID     string `xml:"AssumeRoleWithWebIdentityResult>Credentials>AccessKeyId"`
	SecretAccessKey string `xml:"AssumeRoleWithWebIdentityResult>Credentials>SecretAccessKey"`
	SessionToken    string `xml:"AssumeRoleWithWebIdentityResult>Credentials>SessionToken"`
	Expiration      string `xml:"AssumeRoleWithWebIdentityResult>Credentials>Expiration"`

	Arn     string `xml:"GetCallerIdentityResult>Arn"`
	Account string `xml:"GetCallerIdentityResult>Account"`

	ErrorID    string `xml:"RequestId"`
	MetadataID string `xml:"ResponseMetadata>RequestId"`
}

func (a *account) do(t testing.TB, request *http.Request) answer {
	t.Helper()
	var got answer
	status, header, body := a.Do(t, request)
	got.status, got.header, got.body = status, header, string(body)
	if len(body) > 0 {
		if err := xml.Unmarshal(body, &got); err != nil {
			t.Fatalf("%v in %s", err, body)
		}
	}
	return got
}

func (a *account) post(t testing.TB, form url.Values) answer {
	t.Helper()
	return a.do(t, ststest.Request(t, http.MethodPost, a.url, form.Encode()))
}

func wantError(t testing.TB, got answer, status int, code, message string) {
	t.Helper()
	if got.status != status || got.Code != code || got.Message != message {
		t.Errorf("got %d %s %q\nwant %d %s %q", got.status, got.Code, got.Message, status, code, message)
	}
	if got.ErrorID == "" || got.ErrorID != got.header.Get("X-Amzn-RequestId") {
		t.Errorf("request id %q in the body, %q in the header", got.ErrorID, got.header.Get("X-Amzn-RequestId"))
	}
}

func TestAssumeRole(t *testing.T) {
	a := newAccount(t)
	token := a.token(t, nil)
	got := a.post(t, assumeForm(token))
	if got.status != http.StatusOK {
		t.Fatalf("status %d: %s", got.status, got.body)
	}
	if !strings.HasPrefix(got.AccessKeyID, "ASIAOIDCLAB") || len(got.AccessKeyID) != 20 || len(got.SecretAccessKey) != 40 {
		t.Errorf("credentials %s with a secret of %d", got.AccessKeyID, len(got.SecretAccessKey))
	}
	if want := a.Clock.Now().Add(time.Hour).UTC().Format(time.RFC3339); got.Expiration != want {
		t.Errorf("expiration %s, want %s", got.Expiration, want)
	}
	if got.MetadataID == "" || got.MetadataID != got.header.Get("X-Amzn-RequestId") {
		t.Errorf("request id %q in the body, %q in the header", got.MetadataID, got.header.Get("X-Amzn-RequestId"))
	}
	if got.header.Get("Content-Type") != "text/xml" {
		t.Errorf("content type %q", got.header.Get("Content-Type"))
	}
	again := a.post(t, assumeForm(token))
	if again.AccessKeyID == got.AccessKeyID || again.SecretAccessKey == got.SecretAccessKey || again.SessionToken == got.SessionToken {
		t.Error("a second session has credentials of the first")
	}
	a.Secrets(t, token, token[strings.LastIndex(token, ".")+1:], got.SecretAccessKey, got.SessionToken, got.AccessKeyID)

	if r := a.do(t, ststest.Request(t, http.MethodGet, a.url+"?"+assumeForm(token).Encode(), "")); r.status != http.StatusOK {
		t.Errorf("as a GET query: %d %s", r.status, r.body)
	}
}

func TestDateIsLabTime(t *testing.T) {
	a := newAccount(t)
	a.Clock.Advance(-48 * time.Hour)
	want := a.Clock.Now().UTC().Format(http.TimeFormat)
	if got := a.post(t, url.Values{}).header.Get("Date"); got != want {
		t.Errorf("Date %q, want %q", got, want)
	}
}

func TestTokensRefused(t *testing.T) {
	a := newAccount(t)
	now := a.Clock.Now().Unix()
	const denied = "Not authorized to perform sts:AssumeRoleWithWebIdentity"
	stranger := a.NewIssuer(t)
	for _, test := range []struct {
		name    string
		token   string
		status  int
		code    string
		message string
	}{
		{"control", a.token(t, nil), 200, "", ""},
		{"audience", a.token(t, map[string]any{"aud": "vault"}), 400, "InvalidIdentityToken", couldNotValidate},
		{"audience that is empty", a.token(t, map[string]any{"aud": ""}), 400, "InvalidIdentityToken", couldNotValidate},
		{"one of several client ids", a.token(t, map[string]any{"aud": "second"}), 200, "", ""},
		{"several audiences", a.token(t, map[string]any{"aud": []string{testAudience, "second"}}), 400, "InvalidIdentityToken", "Token audience contains more than one audience while authorized party is not present"},
		{"several audiences, azp decides", a.token(t, map[string]any{"aud": []string{"x", "y"}, "azp": testAudience}), 200, "", ""},
		{"azp mismatch", a.token(t, map[string]any{"azp": "vault"}), 400, "InvalidIdentityToken", couldNotValidate},
		{"azp that is empty", a.token(t, map[string]any{"azp": ""}), 400, "InvalidIdentityToken", couldNotValidate},
		{"sub null", a.token(t, map[string]any{"sub": json.RawMessage("null")}), 500, "InternalFailure", "The request processing has failed because of an unknown error, exception or failure."},
		{"exp null", a.token(t, map[string]any{"exp": json.RawMessage("null")}), 400, "InvalidIdentityToken", "Invalid timestamp in token claims."},
		{"subject", a.token(t, map[string]any{"sub": "system:serviceaccount:demo:other"}), 403, "AccessDenied", denied},
		{"issuer", stranger.Sign(t, stranger.Claims(testSubject, testAudience, nil)), 400, "InvalidIdentityToken", "No OpenIDConnect provider found in your account for " + stranger.URL},
		{"trailing slash", a.token(t, map[string]any{"iss": a.issuer.URL + "/"}), 400, "InvalidIdentityToken", "No OpenIDConnect provider found in your account for " + a.issuer.URL + "/"},
		{"forged", a.issuer.Forge(t, a.issuer.Claims(testSubject, testAudience, nil)), 400, "InvalidIdentityToken", couldNotValidate},
		{"expired", a.token(t, map[string]any{"exp": now - 300}), 400, "ExpiredTokenException", fmt.Sprintf("Token expired: current date/time %d must be before the expiration date/time %d", now-300, now-300)},
		{"expired within the skew", a.token(t, map[string]any{"exp": now - 299}), 200, "", ""},
		{"not yet valid", a.token(t, map[string]any{"nbf": now + 301}), 400, "InvalidIdentityToken", fmt.Sprintf("Token not yet valid: current date/time %d must be after or equal to the not-before date/time %d", now+300, now+301)},
		{"issued in the future", a.token(t, map[string]any{"iat": now + 301}), 400, "InvalidIdentityToken", fmt.Sprintf("Token issued in the future: %d", now+301)},
		{"missing claim", a.token(t, map[string]any{"iat": nil}), 400, "InvalidIdentityToken", "Missing a required claim: iat"},
		{"empty audience", a.token(t, map[string]any{"aud": []string{}}), 400, "InvalidIdentityToken", "Claim is not allowed to be empty: aud"},
		{"fraction of a second", a.token(t, map[string]any{"exp": float64(now) + 100.5}), 400, "InvalidIdentityToken", "Invalid timestamp in token claims."},
		{"garbage", "garbage", 400, "InvalidIdentityToken", notAJWT},
		{"too long", strings.Repeat("x", 20001), 400, "ValidationError", "1 validation error detected: Value at 'webIdentityToken' failed to satisfy constraint: Member must have length less than or equal to 20000"},
	} {
		t.Run(test.name, func(t *testing.T) {
			got := a.post(t, assumeForm(test.token))
			if test.status == http.StatusOK {
				if got.status != test.status {
					t.Fatalf("status %d: %s", got.status, got.body)
				}
				return
			}
			wantError(t, got, test.status, test.code, test.message)
			if want := map[bool]string{true: "Sender", false: "Receiver"}[test.status < 500]; got.Type != want {
				t.Errorf("type %q, want %q", got.Type, want)
			}
			if strings.Contains(got.body, test.token) && len(test.token) > 20 {
				t.Error("the answer holds the token")
			}
		})
	}
}

func TestUnreachableIssuer(t *testing.T) {
	a := newAccount(t)
	cfg := a.config()
	gone := a.Listen(t)
	if err := gone.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	cfg.Providers = []Provider{{URL: gone.URL(), ClientIDs: []string{testAudience}}}
	cfg.Roles = cfg.Roles[:1]
	cfg.Roles[0].TrustPolicy = trustPolicyFor(gone.URL(), testSubject, webIdentityAction)
	handler, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	server := a.Listen(t)
	server.Serve(handler)
	a.url = server.URL() + "/"
	wantError(t, a.post(t, assumeForm(a.token(t, map[string]any{"iss": gone.URL()}))), 400, "IDPCommunicationError", noVerificationKey)
}

// TestEveryReasonHasAnAnswer walks the closed set of reasons.
func TestEveryReasonHasAnAnswer(t *testing.T) {
	want := map[sts.Reason]string{
		sts.TokenMissing:        "400 ValidationError",
		sts.TokenTooLarge:       "400 ValidationError",
		sts.TokenMalformed:      "400 InvalidIdentityToken",
		sts.HeaderRefused:       "400 InvalidIdentityToken",
		sts.AlgorithmRefused:    "400 InvalidIdentityToken",
		sts.ClaimMissing:        "400 InvalidIdentityToken",
		sts.ClaimInvalid:        "400 InvalidIdentityToken",
		sts.IssuerUnknown:       "400 InvalidIdentityToken",
		sts.IssuerUnreachable:   "400 IDPCommunicationError",
		sts.KeyUnknown:          "400 InvalidIdentityToken",
		sts.SignatureInvalid:    "400 InvalidIdentityToken",
		sts.TokenExpired:        "400 ExpiredTokenException",
		sts.TokenNotYetValid:    "400 InvalidIdentityToken",
		sts.TokenIssuedInFuture: "400 InvalidIdentityToken",
		sts.TokenTooOld:         "400 ExpiredTokenException",
		sts.AudienceMismatch:    "400 InvalidIdentityToken",
		sts.RoleUnknown:         "403 AccessDenied",
		sts.IssuerNotTrusted:    "403 AccessDenied",
		sts.SubjectMismatch:     "403 AccessDenied",
		sts.ConditionMismatch:   "403 AccessDenied",
	}
	for _, reason := range sts.Reasons() {
		e := refused(&sts.Refusal{Reason: reason, Got: "2026-01-01T00:00:00Z"}, time.Unix(0, 0), 0)
		if got := fmt.Sprintf("%d %s", e.Status, e.Code); got != want[reason] {
			t.Errorf("%s: answered with %s, want %q", reason, got, want[reason])
		}
		if e.Message == "" {
			t.Errorf("%s: no text", reason)
		}
	}
	if e := refused(&sts.Refusal{Reason: "unheard of"}, time.Unix(0, 0), 0); e.Status != 500 {
		t.Errorf("control: an unmapped reason is answered with %d", e.Status)
	}
}

func TestParametersRefused(t *testing.T) {
	a := newAccount(t)
	long := strings.Repeat("x", 2049)
	good := assumeForm(a.token(t, nil))
	for _, test := range []struct {
		name    string
		change  url.Values // an empty list removes the parameter
		status  int
		code    string
		message string
	}{
		{"control", nil, 200, "", ""},
		{"no action", url.Values{"Action": nil}, 400, "MissingAction", "The request is missing an action or a required parameter"},
		{"unknown action", url.Values{"Action": {"AssumeRoot"}}, 400, "InvalidAction", "Could not find operation AssumeRoot for version 2011-06-15"},
		{"unknown version", url.Values{"Version": {"2010-05-08"}}, 400, "InvalidAction", "Could not find operation AssumeRoleWithWebIdentity for version 2010-05-08"},
		{"no version", url.Values{"Version": nil}, 400, "InvalidAction", "Could not find operation AssumeRoleWithWebIdentity for version NO_VERSION_SPECIFIED"},
		{"duplicate parameter", url.Values{"RoleArn": {testRole, testRole}}, 400, "InvalidQueryParameter", "The AWS query string is malformed or does not adhere to AWS standards"},
		{"no token", url.Values{"WebIdentityToken": nil}, 400, "ValidationError", "1 validation error detected: Value null at 'webIdentityToken' failed to satisfy constraint: Member must not be null"},
		{"short token", url.Values{"WebIdentityToken": {"abc"}}, 400, "ValidationError", "1 validation error detected: Value at 'webIdentityToken' failed to satisfy constraint: Member must have length greater than or equal to 4"},
		{"no role and session", url.Values{"RoleArn": nil, "RoleSessionName": nil}, 400, "ValidationError", "2 validation errors detected: Value null at 'roleArn' failed to satisfy constraint: Member must not be null; Value null at 'roleSessionName' failed to satisfy constraint: Member must not be null"},
		{"short ARN", url.Values{"RoleArn": {"demo"}}, 400, "ValidationError", "1 validation error detected: Value 'demo' at 'roleArn' failed to satisfy constraint: Member must have length greater than or equal to 20"},
		{"long ARN", url.Values{"RoleArn": {long}}, 400, "ValidationError", "1 validation error detected: Value '" + long + "' at 'roleArn' failed to satisfy constraint: Member must have length less than or equal to 2048"},
		{"no ARN", url.Values{"RoleArn": {"this is not an ARN at all"}}, 400, "ValidationError", "Request ARN is invalid"},
		{"unknown role", url.Values{"RoleArn": {testRole + "2"}}, 403, "AccessDenied", "Not authorized to perform sts:AssumeRoleWithWebIdentity"},
		{"short session name", url.Values{"RoleSessionName": {"x"}}, 400, "ValidationError", "1 validation error detected: Value 'x' at 'roleSessionName' failed to satisfy constraint: Member must have length greater than or equal to 2"},
		{"session name with a blank", url.Values{"RoleSessionName": {"a b"}}, 400, "ValidationError", `1 validation error detected: Value 'a b' at 'roleSessionName' failed to satisfy constraint: Member must satisfy regular expression pattern: [\w+=,.@-]*`},
		{"longest session name", url.Values{"RoleSessionName": {strings.Repeat("x", 64)}}, 200, "", ""},
		{"too long session name", url.Values{"RoleSessionName": {strings.Repeat("x", 65)}}, 400, "ValidationError", "1 validation error detected: Value '" + strings.Repeat("x", 65) + "' at 'roleSessionName' failed to satisfy constraint: Member must have length less than or equal to 64"},
		{"shortest duration", url.Values{"DurationSeconds": {"900"}}, 200, "", ""},
		{"short duration", url.Values{"DurationSeconds": {"899"}}, 400, "ValidationError", "1 validation error detected: Value '899' at 'durationSeconds' failed to satisfy constraint: Member must have value greater than or equal to 900"},
		{"long duration", url.Values{"DurationSeconds": {"43201"}}, 400, "ValidationError", "1 validation error detected: Value '43201' at 'durationSeconds' failed to satisfy constraint: Member must have value less than or equal to 43200"},
		{"longest duration of the role", url.Values{"DurationSeconds": {"7200"}}, 200, "", ""},
		{"beyond the role", url.Values{"DurationSeconds": {"7201"}}, 400, "ValidationError", "The requested DurationSeconds exceeds the MaxSessionDuration set for this role."},
		{"duration in words", url.Values{"DurationSeconds": {"1h"}}, 400, "ValidationError", "1 validation error detected: Value '1h' at 'durationSeconds' failed to satisfy constraint: Member must be a number"},
		{"session policy", url.Values{"Policy": {`{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"*","Resource":"*"}]}`}}, 200, "", ""},
		{"session policy that is not JSON", url.Values{"Policy": {"{"}}, 400, "MalformedPolicyDocument", "This policy contains invalid Json"},
		{"long session policy", url.Values{"Policy": {long}}, 400, "ValidationError", "1 validation error detected: Value '" + long + "' at 'policy' failed to satisfy constraint: Member must have length less than or equal to 2048"},
		{"policy ARN", url.Values{"PolicyArns.member.1.arn": {"arn:aws:iam::aws:policy/ReadOnlyAccess"}}, 200, "", ""},
		{"short policy ARN", url.Values{"PolicyArns.member.1.arn": {"x"}}, 400, "ValidationError", "1 validation error detected: Value 'x' at 'policyArns.1.member.arn' failed to satisfy constraint: Member must have length between 20 and 2048, inclusive"},
		{"eleven policy ARNs", policyARNs(11), 400, "ValidationError", "1 validation error detected: Value at 'policyArns' failed to satisfy constraint: Member must have length less than or equal to 10"},
		{"ten policy ARNs", policyARNs(10), 200, "", ""},
		{"short provider", url.Values{"ProviderId": {"x"}}, 400, "ValidationError", "1 validation error detected: Value 'x' at 'providerId' failed to satisfy constraint: Member must have length greater than or equal to 4"},
		{"provider", url.Values{"ProviderId": {"www.amazon.com"}}, 403, "IDPRejectedClaim", "www.amazon.com: www.amazon.com responded with HTTP/1.1 400 Bad Request"},
		{"unknown provider", url.Values{"ProviderId": {"accounts.example"}}, 400, "InvalidIdentityToken", "No OAuth 2.0 provider found in your account for accounts.example"},
		{"session policy without a statement", url.Values{"Policy": {`{"Version":"2012-10-17"}`}}, 400, "MalformedPolicyDocument", "missing required field Statement"},
		{"unknown policy ARN", url.Values{"PolicyArns.member.1.arn": {"arn:aws:iam::123456789012:policy/mine"}}, 400, "MalformedPolicyDocument", "policy arn:aws:iam::123456789012:policy/mine is not known here; pass its document as the session policy"},
	} {
		t.Run(test.name, func(t *testing.T) {
			form := url.Values{}
			for name, values := range good {
				form[name] = values
			}
			for name, values := range test.change {
				form[name] = values
			}
			got := a.post(t, form)
			if test.status == http.StatusOK {
				if got.status != http.StatusOK {
					t.Fatalf("status %d: %s", got.status, got.body)
				}
				return
			}
			wantError(t, got, test.status, test.code, test.message)
		})
	}
}

func policyARNs(n int) url.Values {
	arns := url.Values{}
	for i := range n {
		arns.Set(fmt.Sprintf("PolicyArns.member.%d.arn", i+1), "arn:aws:iam::aws:policy/ReadOnlyAccess")
	}
	return arns
}

func TestRequestsRefused(t *testing.T) {
	a := newAccount(t)
	good := assumeForm(a.token(t, nil)).Encode()
	for _, test := range []struct {
		name, method, target, contentType, body string
		status                                  int
		code                                    string
	}{
		{"control", "POST", a.url, "application/x-www-form-urlencoded", good, 200, ""},
		{"without a content type", "POST", a.url, "", good, 200, ""},
		{"PUT", "PUT", a.url, "application/x-www-form-urlencoded", good, 405, "MethodNotAllowed"},
		{"another path", "POST", a.url + "x", "application/x-www-form-urlencoded", good, 404, "UnknownOperationException"},
		{"JSON", "POST", a.url, "application/x-amz-json-1.1", "{}", 415, "MalformedInput"},
		{"bad escape", "POST", a.url, "application/x-www-form-urlencoded", good + "&x=%zz", 404, "MalformedQueryString"},
		{"semicolon", "POST", a.url, "application/x-www-form-urlencoded", good + ";x=y", 404, "MalformedQueryString"},
		{"invalid UTF-8", "POST", a.url, "application/x-www-form-urlencoded", good + "&x=%ff", 400, "InvalidQueryParameter"},
		{"in query and body", "POST", a.url + "?Action=GetCallerIdentity", "application/x-www-form-urlencoded", good, 400, "InvalidQueryParameter"},
		{"huge", "POST", a.url, "application/x-www-form-urlencoded", good + "&x=" + strings.Repeat("x", maxBodyBytes), 413, "RequestEntityTooLarge"},
	} {
		t.Run(test.name, func(t *testing.T) {
			request := ststest.Request(t, test.method, test.target, test.body)
			request.Header.Set("Content-Type", test.contentType)
			got := a.do(t, request)
			if got.status != test.status || got.Code != test.code {
				t.Errorf("got %d %s, want %d %s", got.status, got.Code, test.status, test.code)
			}
			if test.status == 405 && got.header.Get("Allow") != "GET, POST" {
				t.Errorf("Allow %q", got.header.Get("Allow"))
			}
		})
	}
	// HEAD has no body to be read as XML.
	response, err := a.Client.Do(ststest.Request(t, http.MethodHead, a.url, ""))
	if err != nil {
		t.Fatal(err)
	}
	response.Body.Close()
	if response.StatusCode != 405 {
		t.Errorf("HEAD: %d", response.StatusCode)
	}
}

// TestJourney looks at what a token leaves in the trace, from check to use.
func TestJourney(t *testing.T) {
	a := newAccount(t)
	token := a.token(t, nil)
	credentials := a.post(t, assumeForm(token))
	if got := a.whoAmI(t, credentials, nil); got.status != http.StatusOK {
		t.Fatalf("status %d: %s", got.status, got.body)
	}
	a.Clock.Advance(2 * time.Hour)
	wantError(t, a.whoAmI(t, credentials, nil), 403, "ExpiredToken", "The security token included in the request is expired")

	var steps []string
	for _, e := range a.Trace.Journey(trace.JourneyOf(token)) {
		if e.Step != "check" && e.Step != "discovery" && e.Step != "jwks" {
			steps = append(steps, fmt.Sprintf("%s %s %s %s %s", e.Station, e.Step, e.Name, e.Outcome, e.Reason))
		}
	}
	want := "aws grant " + testRole + " ok \naws use GetCallerIdentity ok \naws use GetCallerIdentity refused ExpiredToken"
	if got := strings.Join(steps, "\n"); got != want {
		t.Errorf("steps:\n%s\nwant:\n%s", got, want)
	}

	form := assumeForm(token)
	form.Set("DurationSeconds", "1")
	a.post(t, form)
	events, _ := a.Trace.Since(0)
	last := events[len(events)-1]
	if last.Journey != trace.JourneyOf(token) || last.Name != "request" || last.Reason != "ValidationError" {
		t.Errorf("a request that was refused before the core left %+v", last)
	}
}

func TestNewRefuses(t *testing.T) {
	a := newAccount(t)
	largest := a.config()
	largest.Providers[0].Thumbprints = slices.Repeat([]string{strings.Repeat("0a", 20)}, 5)
	for i := range 98 {
		largest.Providers[0].ClientIDs = append(largest.Providers[0].ClientIDs, fmt.Sprint("client-", i))
	}
	if _, err := New(largest); err != nil {
		t.Fatalf("control with 100 client ids and 5 thumbprints: %v", err)
	}
	for name, test := range map[string]struct {
		change func(*Config)
		want   string
	}{
		"account":             {func(c *Config) { c.Account = "12345678901x" }, "12 digits"},
		"provider over http":  {func(c *Config) { c.Providers[0].URL = "http://issuer.example" }, "the URL must be"},
		"provider with query": {func(c *Config) { c.Providers[0].URL += "?x" }, "the URL must be"},
		"no client ids":       {func(c *Config) { c.Providers[0].ClientIDs = nil }, "0 client ids"},
		"101 client ids":      {func(c *Config) { c.Providers[0].ClientIDs = make([]string, 101) }, "101 client ids"},
		"6 thumbprints":       {func(c *Config) { c.Providers[0].Thumbprints = make([]string, 6) }, "6 thumbprints"},
		"thumbprint":          {func(c *Config) { c.Providers[0].Thumbprints = []string{strings.Repeat("x", 40)} }, "40 hexadecimal digits"},
		"policy":              {func(c *Config) { c.Roles[0].Policy = json.RawMessage("{}") }, "policy of role demo: MalformedPolicyDocument: missing required field Statement"},
		"bucket name":         {func(c *Config) { c.Buckets[0].Name = "Demo" }, "bucket"},
		"bucket region":       {func(c *Config) { c.Buckets[0].Region = "" }, "no region"},
		"bucket twice":        {func(c *Config) { c.Buckets = append(c.Buckets, c.Buckets[0]) }, "is there twice"},
		"long client id":      {func(c *Config) { c.Providers[0].ClientIDs = []string{strings.Repeat("x", 256)} }, "1 to 255 characters"},
		"provider twice":      {func(c *Config) { c.Providers = append(c.Providers, c.Providers[0]) }, "is there twice"},
		"role name":           {func(c *Config) { c.Roles[0].Name = "a/b" }, "role name"},
		"role twice":          {func(c *Config) { c.Roles = append(c.Roles, c.Roles[0]) }, "is there twice"},
		"long session":        {func(c *Config) { c.Roles[0].MaxSessionDuration = 13 * time.Hour }, "1 to 12 hours"},
		"short session":       {func(c *Config) { c.Roles[0].MaxSessionDuration = time.Minute }, "1 to 12 hours"},
		"trust policy":        {func(c *Config) { c.Roles[0].TrustPolicy = json.RawMessage("{}") }, "role demo: MalformedPolicyDocument: missing required field Statement"},
		"no condition on sub": {func(c *Config) {
			c.Roles[0].TrustPolicy = bytes.Replace(c.Roles[0].TrustPolicy, []byte(":sub"), []byte(":oaud"), 1)
		}, "sub"},
		"no client for issuer": {func(c *Config) { c.Client = nil }, "client"},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := a.config()
			test.change(&cfg)
			if _, err := New(cfg); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("error %v; want one with %q", err, test.want)
			}
		})
	}
}

func TestSessionsAreBounded(t *testing.T) {
	now := time.Unix(1_000_000, 0)
	s := newSessions()
	first := issue(role{}, "x", "", now.Add(time.Hour))
	s.add(first, now)
	if s.get(first.accessKeyID) == nil {
		t.Fatal("control: a new session is not there")
	}
	later := now.Add(time.Hour + keepExpired)
	s.add(issue(role{}, "x", "", later.Add(time.Hour)), later)
	if s.get(first.accessKeyID) != nil {
		t.Error("a session that expired long ago is still there")
	}
	for range maxSessions {
		s.add(issue(role{}, "x", "", later.Add(time.Hour)), later)
	}
	if len(s.order) != maxSessions || len(s.byKey) != maxSessions {
		t.Errorf("%d in order, %d by key; the bound is %d", len(s.order), len(s.byKey), maxSessions)
	}
}

func FuzzParameters(f *testing.F) {
	f.Add("Action=AssumeRoleWithWebIdentity&PolicyArns.member.1.arn=x&DurationSeconds=900", "RoleArn="+testRole)
	f.Add("PolicyArns.member.0=&PolicyArns.member..arn", "%zz")
	f.Add("RoleSessionName=%00&WebIdentityToken=abcd&RoleSessionName=x", "Policy=%7b%7d")
	f.Fuzz(func(t *testing.T, query, body string) {
		parameters := make(map[string]string)
		for _, encoded := range []string{query, body} {
			if e := addParameters(parameters, encoded); e != nil {
				return
			}
		}
		request, e := parseAssumeRequest(parameters, true)
		if e != nil {
			if e.Status != 400 || e.Code == "" {
				t.Fatalf("refused with %d %s", e.Status, e.Code)
			}
			return
		}
		if n := len(request.sessionName); n < 2 || n > 64 || !isName(request.sessionName) || len(request.roleARN) < 20 || len(request.token) < 4 {
			t.Fatalf("accepted %+v", request)
		}
		if request.duration != 0 && (request.duration < 15*time.Minute || request.duration > 12*time.Hour) {
			t.Fatalf("accepted a duration of %s", request.duration)
		}
	})
}
