package aws

import (
	"context"
	"encoding/xml"
	"errors"
	"io"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	awssdk "github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/smithy-go"

	"github.com/oidclab/oidclab/lab/sts/internal/ststest"
	"github.com/oidclab/oidclab/lab/trace"
)

// store returns the SDK's client of S3 for a session.
func (a *account) store(credentials answer, region string) *s3.Client {
	return s3.New(s3.Options{
		Region: region, BaseEndpoint: &a.s3, HTTPClient: a.Client, RetryMaxAttempts: 1,
		Credentials: awssdk.CredentialsProviderFunc(func(context.Context) (awssdk.Credentials, error) {
			return awssdk.Credentials{AccessKeyID: credentials.AccessKeyID, SecretAccessKey: credentials.SecretAccessKey, SessionToken: credentials.SessionToken}, nil
		}),
	})
}

// get reads an object with the SDK.
func get(t *testing.T, client *s3.Client, bucket, key string) (string, error) {
	t.Helper()
	output, err := client.GetObject(t.Context(), &s3.GetObjectInput{Bucket: &bucket, Key: &key})
	if err != nil {
		return "", err
	}
	defer output.Body.Close()
	content, err := io.ReadAll(output.Body) // which verifies the checksum
	return string(content), err
}

func (a *account) assume(t *testing.T, changes url.Values) answer {
	t.Helper()
	form := assumeForm(a.token(t, nil))
	maps.Copy(form, changes)
	got := a.post(t, form)
	if got.status != http.StatusOK {
		t.Fatalf("status %d: %s", got.status, got.body)
	}
	return got
}

func TestObject(t *testing.T) {
	a := newAccount(t)
	client := a.store(a.assume(t, nil), testRegion)
	for key, want := range map[string]string{"greeting": "hello", "a b/ü+c": "escaped"} {
		if got, err := get(t, client, "demo", key); err != nil || got != want {
			t.Errorf("%s: %q, %v", key, got, err)
		}
	}
	head, err := client.HeadObject(t.Context(), &s3.HeadObjectInput{Bucket: awssdk.String("demo"), Key: awssdk.String("greeting")})
	if err != nil || awssdk.ToInt64(head.ContentLength) != 5 || awssdk.ToString(head.ETag) != `"5d41402abc4b2a76b9719d911017c592"` {
		t.Errorf("HEAD: %+v, %v", head, err)
	}
	part, err := client.GetObject(t.Context(), &s3.GetObjectInput{Bucket: awssdk.String("demo"), Key: awssdk.String("greeting"), Range: awssdk.String("bytes=1-2")})
	if err != nil {
		t.Fatal(err)
	}
	defer part.Body.Close()
	if content, err := io.ReadAll(part.Body); err != nil || string(content) != "el" {
		t.Errorf("range: %q, %v", content, err)
	}
}

// TestVirtualHost signs for the vendor's host names, as under a proxy.
func TestVirtualHost(t *testing.T) {
	a := newAccount(t)
	credentials := a.assume(t, nil)
	for _, host := range []string{"demo.s3.eu-central-1.amazonaws.com", "demo.s3.amazonaws.com"} {
		if got := a.getObject(t, credentials, func(c *call) { c.request.URL.Path, c.request.Host = "/greeting", host }, nil); got.body != "hello" {
			t.Errorf("%s: %+v", host, got)
		}
	}
	if got := a.getObject(t, credentials, func(c *call) { c.request.Host = "s3.eu-central-1.amazonaws.com" }, nil); got.body != "hello" {
		t.Errorf("path style: %+v", got)
	}
	if got := a.getObject(t, credentials, func(c *call) { c.request.URL.Path, c.request.Host = "/greeting", "nobody.s3.amazonaws.com" }, nil); got.Code != "NoSuchBucket" || got.BucketName != "nobody" {
		t.Errorf("another bucket: %+v", got)
	}
}

// TestList lists with the SDK, which follows the pages.
func TestList(t *testing.T) {
	objects := map[string][]byte{}
	for _, key := range []string{"a b/ü+c", "a b/z", "b/1", "b/2", "c", "d/e/f", "z"} {
		objects[key] = []byte(key)
	}
	a := newAccount(t, func(c *Config) { c.Buckets[0].Objects = objects })
	client := a.store(a.assume(t, nil), testRegion)
	everything := []string{"a b/z", "a b/ü+c", "b/1", "b/2", "c", "d/e/f", "z"}
	for name, test := range map[string]struct {
		input s3.ListObjectsV2Input
		want  []string // keys, then prefixes
	}{
		"everything":        {s3.ListObjectsV2Input{}, everything},
		"after a key":       {s3.ListObjectsV2Input{StartAfter: awssdk.String("b/1")}, everything[3:]},
		"a prefix":          {s3.ListObjectsV2Input{Prefix: awssdk.String("b/")}, everything[2:4]},
		"nothing":           {s3.ListObjectsV2Input{Prefix: awssdk.String("nothing")}, nil},
		"folders":           {s3.ListObjectsV2Input{Delimiter: awssdk.String("/")}, []string{"c", "z", "a b/", "b/", "d/"}},
		"the rest of those": {s3.ListObjectsV2Input{Delimiter: awssdk.String("/"), StartAfter: awssdk.String("b/1")}, []string{"c", "z", "b/", "d/"}},
		"within a folder":   {s3.ListObjectsV2Input{Delimiter: awssdk.String("/"), Prefix: awssdk.String("d/")}, []string{"d/e/"}},
	} {
		for _, size := range []int32{1, 2, 1000, 5000} {
			test.input.Bucket, test.input.MaxKeys = awssdk.String("demo"), &size
			var keys, prefixes []string
			for pages := s3.NewListObjectsV2Paginator(client, &test.input); pages.HasMorePages(); {
				page, err := pages.NextPage(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				if *page.KeyCount > size || int(*page.KeyCount) != len(page.Contents)+len(page.CommonPrefixes) || *page.MaxKeys != min(size, 1000) {
					t.Errorf("%s: %d of %d in a page of %d", name, len(page.Contents)+len(page.CommonPrefixes), *page.KeyCount, size)
				}
				for _, o := range page.Contents {
					keys = append(keys, *o.Key)
					if *o.Size != int64(len(*o.Key)) || *o.ETag != etag(objects[*o.Key]) || o.LastModified == nil {
						t.Errorf("%s: %+v", name, o)
					}
				}
				for _, p := range page.CommonPrefixes {
					prefixes = append(prefixes, *p.Prefix)
				}
			}
			if got := slices.Concat(keys, prefixes); !slices.Equal(got, test.want) {
				t.Errorf("%s, %d a page: %q, want %q", name, size, got, test.want)
			}
		}
	}
	credentials := a.assume(t, nil)
	list := func(query string) object {
		return a.getObject(t, credentials, func(c *call) { c.request.URL.Path, c.request.URL.RawQuery = "/demo", "list-type=2&"+query }, nil)
	}
	if got := list("encoding-type=url&prefix=a%20b%2F%C3%BC"); !strings.Contains(got.body, "<Key>a+b/%C3%BC%2Bc</Key>") || !strings.Contains(got.body, "<Prefix>a+b/%C3%BC</Prefix>") {
		t.Errorf("encoded: %s", got.body)
	}
	for query, code := range map[string]string{
		"max-keys=-1": "InvalidArgument", "max-keys=many": "InvalidArgument", "continuation-token=%21": "InvalidArgument", "encoding-type=base64": "InvalidArgument",
		"fetch-owner=true": "NotImplemented", "max-keys=0": "",
	} {
		if got := list(query); got.Code != code {
			t.Errorf("%s: %d %s", query, got.status, got.body)
		}
	}
}

// object is what a test looks at of an answer of S3.
type object struct {
	status int
	header http.Header
	body   string
	s3Error
}

// getObject sends a request for demo/greeting that before changes before it is
// signed, and after then.
func (a *account) getObject(t testing.TB, credentials answer, before func(*call), after func(*http.Request)) object {
	t.Helper()
	c := &call{
		credentials: awssdk.Credentials{AccessKeyID: credentials.AccessKeyID, SecretAccessKey: credentials.SecretAccessKey, SessionToken: credentials.SessionToken},
		request:     ststest.Request(t, http.MethodGet, a.s3+"/demo/greeting", ""),
		service:     "s3", region: testRegion, at: a.Clock.Now(),
	}
	c.request.Header.Set("X-Amz-Content-Sha256", sha256Hex(nil))
	if before != nil {
		before(c)
	}
	plain := func(o *v4.SignerOptions) { o.DisableURIPathEscaping, o.DisableHeaderHoisting = true, c.keepHeaders }
	request := c.request
	if c.presign {
		signed, header, err := v4.NewSigner(plain).PresignHTTP(t.Context(), c.credentials, c.request, unsignedPayload, c.service, c.region, c.at)
		if err != nil {
			t.Fatal(err)
		}
		request = ststest.Request(t, c.request.Method, signed, "")
		request.Header = header
	} else if err := v4.NewSigner(plain).SignHTTP(t.Context(), c.credentials, c.request, c.request.Header.Get("X-Amz-Content-Sha256"), c.service, c.region, c.at); err != nil {
		t.Fatal(err)
	}
	if after != nil {
		after(request)
	}
	status, header, body := a.Do(t, request)
	got := object{status: status, header: header, body: string(body)}
	if status >= 400 && header.Get("Content-Type") == "application/xml" && len(body) > 0 {
		if err := xml.Unmarshal(body, &got.s3Error); err != nil {
			t.Fatalf("%v in %s", err, body)
		}
		if got.RequestID == "" || got.RequestID != header.Get("X-Amz-Request-Id") {
			t.Errorf("request id %q in the body, %q in the header", got.RequestID, header.Get("X-Amz-Request-Id"))
		}
	}
	return got
}

func presignFor(expires string) func(*call) {
	return func(c *call) {
		c.presign = true
		c.request.Header.Del("X-Amz-Content-Sha256")
		c.request.URL.RawQuery = "X-Amz-Expires=" + expires + "&x-id=GetObject"
	}
}

func both(changes ...func(*call)) func(*call) {
	return func(c *call) {
		for _, change := range changes {
			change(c)
		}
	}
}

func at(d time.Duration) func(*call) { return func(c *call) { c.at = c.at.Add(d) } }

func TestObjectRefused(t *testing.T) {
	a := newAccount(t)
	credentials, other := a.assume(t, nil), a.assume(t, nil)
	getOnly := a.assume(t, url.Values{"Policy": {`{"Statement": {"Effect": "Allow", "Action": "s3:GetObject", "Resource": "*"}}`}})
	narrow := awssdk.Credentials{AccessKeyID: getOnly.AccessKeyID, SecretAccessKey: getOnly.SecretAccessKey, SessionToken: getOnly.SessionToken}
	const (
		wrong   = "The request signature we calculated does not match the signature you provided. Check your key and signing method."
		skewed  = "The difference between the request time and the current time is too large."
		badKey  = "The AWS Access Key Id you provided does not exist in our records."
		badOne  = "The provided token is malformed or otherwise invalid."
		invalid = "The authorization header is malformed; "
		user    = "User: arn:aws:sts::123456789012:assumed-role/demo/session is not authorized to perform: "
	)
	presigned := presignFor("60")
	path := func(p string) func(*call) { return func(c *call) { c.request.URL.Path = p } }
	signedAs := func(change func(*awssdk.Credentials)) func(*call) { return func(c *call) { change(&c.credentials) } }
	for _, test := range []struct {
		name    string
		before  func(*call)
		after   func(*http.Request)
		status  int
		code    string
		message string
	}{
		{name: "control", status: 200},
		{name: "control presigned", before: presigned, status: 200},
		{name: "presigned with a signed header", before: both(presigned, func(c *call) { c.keepHeaders = true; c.request.Header.Set("X-Amz-Meta-A", "a") }), status: 200},
		{name: "unsigned payload", before: func(c *call) { c.request.Header.Set("X-Amz-Content-Sha256", unsignedPayload) }, status: 200},
		{name: "signed 15 min ago", before: at(-15 * time.Minute), status: 200},
		{name: "presigned a week ago for a week", before: both(presignFor("604800"), at(-7*24*time.Hour)), status: 200},
		{"not signed", nil, func(r *http.Request) { r.Header.Del("Authorization") }, 403, "AccessDenied", "Access Denied"},
		{"signature version 2", nil, func(r *http.Request) { r.Header.Set("Authorization", "AWS ASIAOIDCLAB:x") }, 400, "InvalidRequest", "The authorization mechanism you have provided is not supported. Please use AWS4-HMAC-SHA256."},
		{"presigned by version 2", nil, func(r *http.Request) {
			r.URL.RawQuery = "AWSAccessKeyId=ASIAOIDCLAB&Signature=x&Expires=1"
			r.Header.Del("Authorization")
		}, 400, "InvalidRequest", "The authorization mechanism you have provided is not supported. Please use AWS4-HMAC-SHA256."},
		{"in both ways", func(c *call) { c.request.URL.RawQuery = "X-Amz-Algorithm=AWS4-HMAC-SHA256" }, nil, 400, "InvalidArgument", "Only one auth mechanism allowed; only the X-Amz-Algorithm query parameter, Signature query string parameter or the Authorization header should be specified"},
		{"another secret", signedAs(func(c *awssdk.Credentials) { c.SecretAccessKey = other.SecretAccessKey }), nil, 403, "SignatureDoesNotMatch", wrong},
		{"another secret presigned", both(presigned, signedAs(func(c *awssdk.Credentials) { c.SecretAccessKey = "x" })), nil, 403, "SignatureDoesNotMatch", wrong},
		{"another object", nil, func(r *http.Request) { r.URL.Path = "/demo/secret" }, 403, "SignatureDoesNotMatch", wrong},
		{"another object presigned", presigned, func(r *http.Request) { r.URL.Path = "/demo/secret" }, 403, "SignatureDoesNotMatch", wrong},
		{"another method presigned", presigned, func(r *http.Request) { r.Method = http.MethodHead }, 403, "", ""},
		{"a longer life than was signed", presigned, func(r *http.Request) {
			r.URL.RawQuery = strings.Replace(r.URL.RawQuery, "Expires=60", "Expires=600", 1)
		}, 403, "SignatureDoesNotMatch", wrong},
		{"another host", nil, func(r *http.Request) { r.Host = "s3.eu-central-1.amazonaws.com" }, 403, "SignatureDoesNotMatch", wrong},
		{"unknown key", signedAs(func(c *awssdk.Credentials) { c.AccessKeyID = "ASIAOIDCLABAAAAAAAAA" }), nil, 403, "InvalidAccessKeyId", badKey},
		{"another session's token", signedAs(func(c *awssdk.Credentials) { c.SessionToken = other.SessionToken }), nil, 400, "InvalidToken", badOne},
		{"no session token", signedAs(func(c *awssdk.Credentials) { c.SessionToken = "" }), nil, 400, "InvalidToken", badOne},
		{"presigned without a session token", both(presigned, signedAs(func(c *awssdk.Credentials) { c.SessionToken = "" })), nil, 400, "InvalidToken", badOne},
		{"too old", at(-15*time.Minute - time.Second), nil, 403, "RequestTimeTooSkewed", skewed},
		{"from the future", at(15*time.Minute + time.Second), nil, 403, "RequestTimeTooSkewed", skewed},
		{"presigned too long ago", both(presigned, at(-61*time.Second)), nil, 403, "AccessDenied", "Request has expired"},
		{"presigned in the future", both(presigned, at(16*time.Minute)), nil, 403, "AccessDenied", "Request is not valid yet"},
		{"presigned for too long", presignFor("604801"), nil, 400, "AuthorizationQueryParametersError", "X-Amz-Expires must be less than a week (in seconds); that is, the given X-Amz-Expires must be less than 604800 seconds"},
		{"presigned for a negative time", presignFor("-1"), nil, 400, "AuthorizationQueryParametersError", "X-Amz-Expires must be non-negative"},
		{"presigned for no time", presignFor("x"), nil, 400, "AuthorizationQueryParametersError", "X-Amz-Expires should be a number"},
		{"another region", func(c *call) { c.region = "us-east-1" }, nil, 400, "AuthorizationHeaderMalformed", invalid + "the region 'us-east-1' is wrong; expecting 'eu-central-1'"},
		{"another region presigned", both(presigned, func(c *call) { c.region = "us-east-1" }), nil, 400, "AuthorizationQueryParametersError", "Error parsing the X-Amz-Credential parameter; the region 'us-east-1' is wrong; expecting 'eu-central-1'"},
		{"another service", func(c *call) { c.service = "sts" }, nil, 400, "AuthorizationHeaderMalformed", invalid + "Credential should be scoped to correct service: 's3'."},
		{"no signature", nil, replaceAuthorization("Signature=", "Sig="), 400, "AuthorizationHeaderMalformed", invalid + "Authorization header requires 'Signature' parameter."},
		{"header added", nil, func(r *http.Request) { r.Header.Set("X-Amz-Meta-A", "a") }, 403, "AccessDenied", "There were headers present in the request which were not signed"},
		{"another payload", func(c *call) { c.request.Header.Set("X-Amz-Content-Sha256", sha256Hex([]byte("x"))) }, nil, 400, "XAmzContentSHA256Mismatch", "The provided 'x-amz-content-sha256' header does not match what was computed."},
		{"no payload hash", nil, func(r *http.Request) { r.Header.Del("X-Amz-Content-Sha256") }, 400, "InvalidRequest", "Missing required header for this request: x-amz-content-sha256"},
		{"unknown bucket", path("/nobody/x"), nil, 404, "NoSuchBucket", "The specified bucket does not exist"},
		{"unknown key of the bucket", path("/demo/nothing"), nil, 404, "NoSuchKey", "The specified key does not exist."},
		{"explicit deny", path("/demo/secret"), nil, 403, "AccessDenied", user + `s3:GetObject on resource: "arn:aws:s3:::demo/secret" with an explicit deny in an identity-based policy`},
		{"not allowed", both(path("/other/greeting"), func(c *call) { c.region = "us-west-2" }), nil, 403, "AccessDenied", user + `s3:GetObject on resource: "arn:aws:s3:::other/greeting" because no identity-based policy allows the s3:GetObject action`},
		{"list", path("/demo"), nil, 501, "NotImplemented", "A header or query you provided implies functionality that is not implemented."},
		{"list without permission", func(c *call) {
			c.request.URL.Path, c.request.URL.RawQuery = "/demo", "list-type=2"
			c.credentials = narrow
		}, nil, 403, "AccessDenied", user + `s3:ListBucket on resource: "arn:aws:s3:::demo" because no session policy allows the s3:ListBucket action`},
		{"list of another bucket", func(c *call) { c.request.URL.Path, c.request.URL.RawQuery = "/nobody", "list-type=2" }, nil, 404, "NoSuchBucket", "The specified bucket does not exist"},
		{"subresource", func(c *call) { c.request.URL.RawQuery = "acl=" }, nil, 501, "NotImplemented", "A header or query you provided implies functionality that is not implemented."},
		{"PUT", func(c *call) { c.request.Method = http.MethodPut }, nil, 405, "MethodNotAllowed", "The specified method is not allowed against this resource."},
	} {
		t.Run(test.name, func(t *testing.T) {
			got := a.getObject(t, credentials, test.before, test.after)
			if test.status == http.StatusOK {
				if got.status != http.StatusOK || got.body != "hello" {
					t.Fatalf("%d %s", got.status, got.body)
				}
				return
			}
			if got.status != test.status || got.Code != test.code || got.Message != test.message {
				t.Errorf("got %d %s %q\nwant %d %s %q", got.status, got.Code, got.Message, test.status, test.code, test.message)
			}
			for _, secret := range []string{credentials.SecretAccessKey, credentials.SessionToken} {
				if strings.Contains(got.body, secret) {
					t.Error("the answer holds a secret")
				}
			}
		})
	}
	a.Secrets(t, credentials.SecretAccessKey, credentials.SessionToken, credentials.AccessKeyID)

	a.Clock.Advance(time.Hour)
	for name, before := range map[string]func(*call){"in a header": nil, "presigned": presigned} {
		if got := a.getObject(t, credentials, before, nil); got.status != 400 || got.Code != "ExpiredToken" || got.Message != "The provided token has expired." {
			t.Errorf("%s, after the session: %d %s", name, got.status, got.body)
		}
	}
}

// TestObjectRefusedToSDK looks at errors as the SDK reads them.
func TestObjectRefusedToSDK(t *testing.T) {
	a := newAccount(t)
	credentials := a.assume(t, nil)
	for _, test := range []struct{ name, region, bucket, key, code string }{
		{"region", "us-east-1", "demo", "greeting", "AuthorizationHeaderMalformed"},
		{"bucket", testRegion, "nobody", "greeting", "NoSuchBucket"},
		{"key", testRegion, "demo", "nothing", "NoSuchKey"},
		{"permission", testRegion, "demo", "secret", "AccessDenied"},
	} {
		_, err := get(t, a.store(credentials, test.region), test.bucket, test.key)
		var apiError smithy.APIError
		if !errors.As(err, &apiError) || apiError.ErrorCode() != test.code {
			t.Errorf("%s: %v, want %s", test.name, err, test.code)
		}
	}
}

// TestPresignedBySDK fetches what the SDK presigned, without any header.
func TestPresignedBySDK(t *testing.T) {
	a := newAccount(t)
	presigner := s3.NewPresignClient(a.store(a.assume(t, nil), testRegion))
	presigned, err := presigner.PresignGetObject(t.Context(), &s3.GetObjectInput{Bucket: awssdk.String("demo"), Key: awssdk.String("greeting")}, s3.WithPresignExpires(time.Hour/2))
	if err != nil {
		t.Fatal(err)
	}
	if status, _, body := a.Do(t, ststest.Request(t, http.MethodGet, presigned.URL, "")); status != http.StatusOK || string(body) != "hello" {
		t.Errorf("%d %s", status, body)
	}
	a.Clock.Advance(time.Hour/2 + time.Minute)
	if status, _, body := a.Do(t, ststest.Request(t, http.MethodGet, presigned.URL, "")); status != http.StatusForbidden || !strings.Contains(string(body), "<Message>Request has expired</Message><X-Amz-Expires>1800</X-Amz-Expires>") {
		t.Errorf("when it is over: %d %s", status, body)
	}
}

func TestObjectJourney(t *testing.T) {
	a := newAccount(t)
	token := a.token(t, nil)
	credentials := a.post(t, assumeForm(token))
	a.getObject(t, credentials, nil, nil)
	a.getObject(t, credentials, func(c *call) { c.credentials.SecretAccessKey = "x" }, nil)
	a.getObject(t, credentials, func(c *call) { c.request.URL.Path = "/demo/nothing" }, nil)
	var uses []string
	for _, e := range a.Trace.Journey(trace.JourneyOf(token)) {
		if e.Step == "use" {
			uses = append(uses, strings.TrimSpace(e.Name+" "+string(e.Outcome)+" "+e.Reason))
		}
	}
	want := []string{"s3:GetObject demo/greeting ok", "s3:GetObject demo/greeting refused SignatureDoesNotMatch", "s3:GetObject of an unknown object refused NoSuchKey"}
	if !slices.Equal(uses, want) {
		t.Errorf("got %q, want %q", uses, want)
	}
}
