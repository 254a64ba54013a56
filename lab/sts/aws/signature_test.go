package aws

import (
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	awssdk "github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"

	"github.com/oidclab/oidclab/lab/sts/internal/ststest"
)

const mismatch = "The request signature we calculated does not match the signature you provided. Check your AWS Secret Access Key and signing method. Consult the service documentation for details."

// call is a GetCallerIdentity request on its way to be signed and sent.
type call struct {
	credentials awssdk.Credentials
	request     *http.Request
	body        string // what is signed
	service     string
	region      string
	at          time.Time
	presign     bool
	keepHeaders bool // sign X-Amz- headers as such, do not move them to the query
}

// setForm makes the call another POST.
func (c *call) setForm(t testing.TB, form url.Values) {
	t.Helper()
	c.body = form.Encode()
	c.request = ststest.Request(t, http.MethodPost, c.request.URL.String(), c.body)
}

// whoAmI sends a signed GetCallerIdentity. before changes what is signed.
func (a *account) whoAmI(t testing.TB, credentials answer, before func(*call)) answer {
	t.Helper()
	return a.do(t, a.signed(t, credentials, before))
}

func (a *account) signed(t testing.TB, credentials answer, before func(*call)) *http.Request {
	t.Helper()
	const form = "Action=GetCallerIdentity&Version=2011-06-15"
	c := &call{
		credentials: awssdk.Credentials{AccessKeyID: credentials.AccessKeyID, SecretAccessKey: credentials.SecretAccessKey, SessionToken: credentials.SessionToken},
		request:     ststest.Request(t, http.MethodPost, a.url, form),
		body:        form,
		service:     "sts", region: "eu-central-1",
		at: a.Clock.Now(),
	}
	if before != nil {
		before(c)
	}
	sum := sha256.Sum256([]byte(c.body))
	payload := hex.EncodeToString(sum[:])
	if !c.presign {
		if err := v4.NewSigner().SignHTTP(t.Context(), c.credentials, c.request, payload, c.service, c.region, c.at); err != nil {
			t.Fatal(err)
		}
		return c.request
	}
	signer := v4.NewSigner(func(o *v4.SignerOptions) { o.DisableHeaderHoisting = c.keepHeaders })
	signed, header, err := signer.PresignHTTP(t.Context(), c.credentials, c.request, payload, c.service, c.region, c.at)
	if err != nil {
		t.Fatal(err)
	}
	request := ststest.Request(t, c.request.Method, signed, "")
	request.Header = header
	return request
}

// headers are those of a signed request, as text.
func headers(r *http.Request) string {
	var lines []string
	for _, name := range []string{"Authorization", "X-Amz-Date", "X-Amz-Security-Token"} {
		lines = append(lines, name+": "+r.Header.Get(name))
	}
	return strings.Join(lines, "\n")
}

// presigned is the request by which EKS clusters know their callers.
func (a *account) presigned(t testing.TB) func(*call) {
	return func(c *call) {
		c.presign, c.body = true, ""
		c.request = ststest.Request(t, http.MethodGet, a.url+"?Action=GetCallerIdentity&Version=2011-06-15&X-Amz-Expires=60", "")
		c.request.Header.Set("x-k8s-aws-id", "cluster")
	}
}

func TestCallerIdentity(t *testing.T) {
	a := newAccount(t)
	credentials := a.post(t, assumeForm(a.token(t, nil)))
	for name, before := range map[string]func(*call){
		"as the SDK signs":              nil,
		"without a region":              func(c *call) { c.region = "" },
		"without content-length":        func(c *call) { c.request.ContentLength = 0 },
		"with user-agent":               func(c *call) { c.request.Header["user-agent"] = []string{"aws-sdk-dotnet"} },
		"with excess blanks":            func(c *call) { c.request.Header.Set("X-Amz-Meta", "a   b") },
		"with two values":               func(c *call) { c.request.Header["X-Amz-Meta"] = []string{"a", "b"} },
		"signed 5 min ago":              func(c *call) { c.at = c.at.Add(-5 * time.Minute) },
		"signed in 5 min":               func(c *call) { c.at = c.at.Add(5 * time.Minute) },
		"presigned":                     a.presigned(t),
		"presigned 15 min ago":          func(c *call) { a.presigned(t)(c); c.at = c.at.Add(-15 * time.Minute) },
		"presigned with X-Amz- headers": func(c *call) { a.presigned(t)(c); c.keepHeaders = true; c.request.Header.Set("X-Amz-Meta", "a") },
		"with the action in a query": func(c *call) {
			c.body = ""
			c.request = ststest.Request(t, http.MethodGet, a.url+"?Action=GetCallerIdentity&Version=2011-06-15", "")
		},
	} {
		t.Run(name, func(t *testing.T) {
			got := a.whoAmI(t, credentials, before)
			if want := "arn:aws:sts::123456789012:assumed-role/demo/session"; got.status != http.StatusOK || got.Arn != want || got.Account != testAccount {
				t.Errorf("got %d %s, want %s\n%s", got.status, got.Arn, want, got.body)
			}
		})
	}
}

func TestSignatureRefused(t *testing.T) {
	a := newAccount(t)
	credentials := a.post(t, assumeForm(a.token(t, nil)))
	other := a.post(t, assumeForm(a.token(t, nil)))
	const invalid = "The security token included in the request is invalid."
	now := a.Clock.Now().UTC()
	iso := func(d time.Duration) string { return now.Add(d).Format(isoBasic) }
	for _, test := range []struct {
		name    string
		before  func(*call)
		after   func(*http.Request)
		status  int
		code    string
		message string
	}{
		{name: "control", status: 200},
		{name: "control presigned", before: a.presigned(t), status: 200},
		{"not signed", nil, func(r *http.Request) { r.Header.Del("Authorization") }, 403, "MissingAuthenticationToken", "Request is missing Authentication Token"},
		{"another secret", func(c *call) { c.credentials.SecretAccessKey = other.SecretAccessKey }, nil, 403, "SignatureDoesNotMatch", mismatch},
		{"another secret presigned", func(c *call) { a.presigned(t)(c); c.credentials.SecretAccessKey = "x" }, nil, 403, "SignatureDoesNotMatch", mismatch},
		{"unknown key", func(c *call) { c.credentials.AccessKeyID = "ASIAOIDCLABAAAAAAAAA" }, nil, 403, "InvalidClientTokenId", invalid},
		{"another session's token", func(c *call) { c.credentials.SessionToken = other.SessionToken }, nil, 403, "InvalidClientTokenId", invalid},
		{"no session token", func(c *call) { c.credentials.SessionToken = "" }, nil, 403, "InvalidClientTokenId", invalid},
		{"session token changed after", nil, func(r *http.Request) { r.Header.Set("X-Amz-Security-Token", "x") }, 403, "InvalidClientTokenId", invalid},
		{"another body", func(c *call) { c.body += "&x=y" }, nil, 403, "SignatureDoesNotMatch", mismatch},
		{"another host", nil, func(r *http.Request) { r.Host = "sts.amazonaws.com" }, 403, "SignatureDoesNotMatch", mismatch},
		{"another host presigned", a.presigned(t), func(r *http.Request) { r.Host = "sts.amazonaws.com" }, 403, "SignatureDoesNotMatch", mismatch},
		{"another query", nil, func(r *http.Request) { r.URL.RawQuery = "x=y" }, 403, "SignatureDoesNotMatch", mismatch},
		{"another query presigned", a.presigned(t), func(r *http.Request) { r.URL.RawQuery += "&x=y" }, 403, "SignatureDoesNotMatch", mismatch},
		{"header changed", func(c *call) { c.request.Header.Set("X-Amz-Meta", "a") }, func(r *http.Request) { r.Header.Set("X-Amz-Meta", "b") }, 403, "SignatureDoesNotMatch", mismatch},
		{"presigned header changed", a.presigned(t), func(r *http.Request) { r.Header.Set("x-k8s-aws-id", "b") }, 403, "SignatureDoesNotMatch", mismatch},
		{"header no longer listed", func(c *call) { c.request.Header.Set("X-Amz-Meta", "a") }, replaceAuthorization(";x-amz-meta", ""), 403, "SignatureDoesNotMatch", mismatch},
		{"host not listed", nil, replaceAuthorization("host;", ""), 403, "SignatureDoesNotMatch", "'Host' or ':authority' must be a 'SignedHeader' in the AWS Authorization."},
		{"date changed", nil, func(r *http.Request) { r.Header.Set("X-Amz-Date", iso(time.Second)) }, 403, "SignatureDoesNotMatch", mismatch},
		{"another service", func(c *call) { c.service = "s3" }, nil, 403, "SignatureDoesNotMatch", "Credential should be scoped to correct service: 'sts'."},
		{"another terminator", nil, replaceAuthorization("aws4_request", "aws5_request"), 403, "SignatureDoesNotMatch", "Credential should be scoped with a valid terminator: 'aws4_request'."},
		{"another region", nil, replaceAuthorization("eu-central-1", "us-east-1"), 403, "SignatureDoesNotMatch", mismatch},
		{"another day in the scope", nil, replaceAuthorization(now.Format("20060102")+"/", "20060102/"), 403, "SignatureDoesNotMatch",
			"Date in Credential scope does not match YYYYMMDD from ISO-8601 version of date from HTTP: '20060102' != '" + now.Format("20060102") + "', from '" + iso(0) + "'."},
		{"too old", func(c *call) { c.at = c.at.Add(-5*time.Minute - time.Second) }, nil, 403, "SignatureDoesNotMatch",
			"Signature expired: " + iso(-5*time.Minute-time.Second) + " is now earlier than " + iso(-5*time.Minute) + " (" + iso(0) + " - 5 min.)"},
		{"from the future", func(c *call) { c.at = c.at.Add(5*time.Minute + time.Second) }, nil, 403, "SignatureDoesNotMatch",
			"Signature not yet current: " + iso(5*time.Minute+time.Second) + " is still later than " + iso(5*time.Minute) + " (" + iso(0) + " + 5 min.)"},
		{"presigned too old", func(c *call) { a.presigned(t)(c); c.at = c.at.Add(-15*time.Minute - time.Second) }, nil, 403, "SignatureDoesNotMatch",
			"Signature expired: " + iso(-15*time.Minute-time.Second) + " is now earlier than " + iso(-15*time.Minute) + " (" + iso(0) + " - 15 min.)"},
		{"no date", nil, func(r *http.Request) { r.Header.Del("X-Amz-Date") }, 400, "IncompleteSignature", "Authorization header requires existence of either a 'X-Amz-Date' or a 'Date' header."},
		{"date in words", nil, func(r *http.Request) { r.Header.Set("X-Amz-Date", "today") }, 400, "IncompleteSignature", "Date must be in ISO-8601 'basic format', e.g. 20060102T150405Z."},
		{"short credential", nil, replaceAuthorization("/aws4_request", ""), 400, "IncompleteSignature", "Credential must have exactly 5 slash-delimited elements, e.g. keyid/date/region/service/term."},
		{"no signature", nil, replaceAuthorization("Signature=", "Sig="), 400, "IncompleteSignature", "Authorization header requires 'Signature' parameter."},
		{"another scheme", nil, replaceAuthorization("AWS4-HMAC-SHA256", "Bearer"), 400, "IncompleteSignature", "Unsupported AWS 'algorithm': use AWS4-HMAC-SHA256."},
		{"presigned by another scheme", a.presigned(t), replaceQuery("X-Amz-Algorithm", "AWS4-ECDSA-P256-SHA256"), 400, "IncompleteSignature", "Unsupported AWS 'algorithm': use AWS4-HMAC-SHA256."},
		{"presigned without a date", a.presigned(t), replaceQuery("X-Amz-Date", ""), 400, "IncompleteSignature", "AWS query-string parameters must include 'X-Amz-Date'."},
	} {
		t.Run(test.name, func(t *testing.T) {
			request := a.signed(t, credentials, test.before)
			if test.after != nil {
				test.after(request)
			}
			got := a.do(t, request)
			if test.status == http.StatusOK {
				if got.status != http.StatusOK {
					t.Fatalf("status %d: %s", got.status, got.body)
				}
				return
			}
			wantError(t, got, test.status, test.code, test.message)
		})
	}
	a.Secrets(t, credentials.SecretAccessKey, credentials.SessionToken, credentials.AccessKeyID)
}

func replaceAuthorization(old, replacement string) func(*http.Request) {
	return func(r *http.Request) {
		r.Header.Set("Authorization", strings.Replace(r.Header.Get("Authorization"), old, replacement, 1))
	}
}

func replaceQuery(name, value string) func(*http.Request) {
	return func(r *http.Request) {
		query := r.URL.Query()
		query.Set(name, value)
		r.URL.RawQuery = url.Values(query).Encode()
	}
}

func TestCredentialsExpire(t *testing.T) {
	a := newAccount(t)
	credentials := a.post(t, assumeForm(a.token(t, nil)))
	a.Clock.Advance(time.Hour - time.Second)
	if got := a.whoAmI(t, credentials, nil); got.status != http.StatusOK {
		t.Errorf("control: one second before they expire: %d %s", got.status, got.body)
	}
	a.Clock.Advance(time.Second)
	wantError(t, a.whoAmI(t, credentials, nil), 403, "ExpiredToken", "The security token included in the request is expired")
	// A client that keeps the time of the machine is told the same.
	wantError(t, a.whoAmI(t, credentials, func(c *call) { c.at = c.at.Add(-time.Hour) }), 403, "ExpiredToken", "The security token included in the request is expired")
}
