package exchange_test

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/credentials/processcreds"
	"github.com/google/go-cmp/cmp"

	"github.com/oidclab/oidclab/lab/exchange"
	"github.com/oidclab/oidclab/lab/sts/aws"
)

const (
	account = "000000000042"
	region  = "eu-central-1"
)

// assumed is an answer as the vendor's model has it.
const assumed = `<AssumeRoleWithWebIdentityResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/">
  <AssumeRoleWithWebIdentityResult>
    <SubjectFromWebIdentityToken>system:serviceaccount:demo:app</SubjectFromWebIdentityToken>
    <Audience>sts.amazonaws.com</Audience>
    <AssumedRoleUser>
      <Arn>arn:aws:sts::000000000042:assumed-role/demo/test</Arn>
      <AssumedRoleId>AROAEXAMPLE:test</AssumedRoleId>
    </AssumedRoleUser>
    <Credentials>
      <SessionToken>session</SessionToken>
      <SecretAccessKey>secret</SecretAccessKey>
      <Expiration>2026-11-21T22:58:26Z</Expiration>
      <AccessKeyId>ASIAEXAMPLE</AccessKeyId>
    </Credentials>
    <Provider>https://issuer.example/c/c1</Provider>
  </AssumeRoleWithWebIdentityResult>
  <ResponseMetadata><RequestId>r1</RequestId></ResponseMetadata>
</AssumeRoleWithWebIdentityResponse>`

func TestAWS(t *testing.T) {
	for name, test := range map[string]struct {
		duration time.Duration
		more     url.Values
	}{
		"default duration": {0, nil},
		"a duration":       {15 * time.Minute, url.Values{"DurationSeconds": {"900"}}},
	} {
		want := url.Values{
			"Action": {"AssumeRoleWithWebIdentity"}, "Version": {"2011-06-15"},
			"RoleArn": {"arn:aws:iam::000000000042:role/demo"}, "RoleSessionName": {"test"}, "WebIdentityToken": {subjectToken},
		}
		for parameter, values := range test.more {
			want[parameter] = values
		}
		p := startParty(t, func(w http.ResponseWriter, r *http.Request) {
			if r.Method != http.MethodPost || r.URL.RequestURI() != "/" || r.Header.Get("Authorization") != "" {
				t.Errorf("%s %s %v", r.Method, r.URL, r.Header)
			}
			_ = r.ParseForm()
			if diff := cmp.Diff(want, r.PostForm); diff != "" {
				t.Errorf("%s: %s", name, diff)
			}
			answer(w, 200, "text/xml", assumed)
		})
		got, err := exchange.AWS(t.Context(), exchange.AWSTarget{
			Endpoint: p.url, Region: region, RoleARN: "arn:aws:iam::000000000042:role/demo", SessionName: "test", Duration: test.duration, Client: p.client,
		}, subjectToken)
		if err != nil {
			t.Fatal(err)
		}
		wantJSON := `{"Credentials":{"AccessKeyId":"ASIAEXAMPLE","SecretAccessKey":"secret","SessionToken":"session","Expiration":"2026-11-21T22:58:26Z"},` +
			`"SubjectFromWebIdentityToken":"system:serviceaccount:demo:app","AssumedRoleUser":{"AssumedRoleId":"AROAEXAMPLE:test","Arn":"arn:aws:sts::000000000042:assumed-role/demo/test"},` +
			`"Provider":"https://issuer.example/c/c1","Audience":"sts.amazonaws.com"}`
		if diff := cmp.Diff(wantJSON, marshal(t, got)); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
}

// Codes that the SDK itself would ask about again are among these.
func TestAWSIsRefused(t *testing.T) {
	for _, test := range []struct {
		status        int
		code, message string
	}{
		{400, "InvalidIdentityToken", "Incorrect token audience"},
		{400, "ExpiredTokenException", "Token expired: current date/time 1731098245 must be before the expiration date/time 1731095240"},
		{400, "IDPCommunicationError", "unreachable"},
		{403, "AccessDenied", "Not authorized to perform sts:AssumeRoleWithWebIdentity"},
		{400, "ValidationError", "1 validation error detected"},
		{400, "Throttling", "Rate exceeded"},
	} {
		p := startParty(t, func(w http.ResponseWriter, _ *http.Request) {
			answer(w, test.status, "text/xml", `<ErrorResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><Error><Type>Sender</Type><Code>`+
				test.code+`</Code><Message>`+test.message+`</Message></Error><RequestId>r1</RequestId></ErrorResponse>`)
		})
		_, err := exchange.AWS(t.Context(), exchange.AWSTarget{Endpoint: p.url, Region: region, RoleARN: "x", SessionName: "test", Client: p.client}, subjectToken)
		p.wantRefused(t, err, exchange.RefusedError{Party: "aws", Status: test.status, Code: test.code, Message: test.message})
	}
}

func TestWhoAmIIsRefused(t *testing.T) {
	for name, test := range map[string]struct {
		code     string
		date     time.Duration // of the answer, from now
		requests int32
	}{
		"expired credentials":              {"ExpiredToken", 0, 1},
		"wrong secret":                     {"SignatureDoesNotMatch", 0, 1},
		"wrong secret and a moved clock":   {"SignatureDoesNotMatch", time.Hour, 3},
		"expired credentials, moved clock": {"ExpiredToken", time.Hour, 1},
	} {
		p := startParty(t, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Date", time.Now().Add(test.date).UTC().Format(http.TimeFormat))
			answer(w, 403, "text/xml", "<ErrorResponse><Error><Code>"+test.code+"</Code><Message>no</Message></Error></ErrorResponse>")
		})
		_, err := exchange.WhoAmI(t.Context(), exchange.AWSTarget{Endpoint: p.url, Region: region, Client: p.client},
			exchange.AWSCredentials{AccessKeyID: "ASIAEXAMPLE", SecretAccessKey: "secret", SessionToken: "session"})
		var refused *exchange.RefusedError
		if n := p.requests.Load(); !errors.As(err, &refused) || refused.Code != test.code || refused.Status != 403 || n != test.requests {
			t.Errorf("%s: after %d requests, want %d: %v", name, n, test.requests, err)
		}
	}
}

func TestCredentialProcess(t *testing.T) {
	want := exchange.AWSCredentials{
		AccessKeyID: "ASIAEXAMPLE", SecretAccessKey: "secret", SessionToken: "session",
		Expiration: time.Now().Add(time.Hour).UTC().Truncate(time.Second),
	}
	content, err := want.CredentialProcess()
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "credentials.json")
	if err := os.WriteFile(file, content, 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := processcreds.NewProvider("cat " + file).Retrieve(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	if got.AccessKeyID != want.AccessKeyID || got.SecretAccessKey != want.SecretAccessKey || got.SessionToken != want.SessionToken || !got.CanExpire || !got.Expires.Equal(want.Expiration) {
		t.Error("the SDK reads other credentials")
	}
}

// With the lab's own AWS, whose clock is the lab's.
func TestAWSWithTheLabClock(t *testing.T) {
	for _, moved := range []time.Duration{0, 2 * time.Hour, -2 * time.Hour} {
		t.Run(moved.String(), func(t *testing.T) {
			lab := startAWS(t)
			lab.clock.Advance(moved)
			got, err := exchange.AWS(t.Context(), lab.target, lab.token(t, "sts.amazonaws.com"))
			if err != nil {
				t.Fatal(err)
			}
			if life := got.Credentials.Expiration.Sub(lab.clock.Now()); life < 59*time.Minute || life > time.Hour {
				t.Errorf("credentials are good for %s of lab time", life)
			}
			identity, err := exchange.WhoAmI(t.Context(), lab.target, got.Credentials)
			if err != nil {
				t.Fatal(err)
			}
			if want := "arn:aws:sts::" + account + ":assumed-role/demo/test"; identity.ARN != want || identity.Account != account || identity.UserID != got.AssumedRoleUser.AssumedRoleID {
				t.Errorf("got %+v", identity)
			}

			object, err := exchange.GetObject(t.Context(), lab.target, got.Credentials, "demo", "greeting")
			if err != nil || string(object) != "hello" {
				t.Errorf("object %q: %v", object, err)
			}

			_, err = exchange.AWS(t.Context(), lab.target, lab.token(t, "other"))
			var refused *exchange.RefusedError
			if !errors.As(err, &refused) || refused.Code != "InvalidIdentityToken" {
				t.Errorf("wrong audience: %v", err)
			}
			lab.clock.Advance(time.Hour + time.Second)
			_, err = exchange.WhoAmI(t.Context(), lab.target, got.Credentials)
			if !errors.As(err, &refused) || refused.Code != "ExpiredToken" {
				t.Errorf("expired credentials: %v", err)
			}
			_, err = exchange.GetObject(t.Context(), lab.target, got.Credentials, "demo", "greeting")
			if !errors.As(err, &refused) || refused.Code != "ExpiredToken" || refused.Status != 400 {
				t.Errorf("object with expired credentials: %v", err)
			}
		})
	}
}

func TestGetObjectRefused(t *testing.T) {
	lab := startAWS(t)
	got, err := exchange.AWS(t.Context(), lab.target, lab.token(t, "sts.amazonaws.com"))
	if err != nil {
		t.Fatal(err)
	}
	forged := got.Credentials
	forged.SecretAccessKey = "secret"
	elsewhere := lab.target
	elsewhere.Region = "us-west-2"
	for name, test := range map[string]struct {
		target      exchange.AWSTarget
		credentials exchange.AWSCredentials
		bucket, key string
		code        string
	}{
		"control":       {lab.target, got.Credentials, "demo", "greeting", ""},
		"wrong secret":  {lab.target, forged, "demo", "greeting", "SignatureDoesNotMatch"},
		"other region":  {elsewhere, got.Credentials, "demo", "greeting", "AuthorizationHeaderMalformed"},
		"other bucket":  {lab.target, got.Credentials, "nobody", "greeting", "NoSuchBucket"},
		"no permission": {lab.target, got.Credentials, "demo", "nothing", "AccessDenied"}, // to list what there is
	} {
		_, err := exchange.GetObject(t.Context(), test.target, test.credentials, test.bucket, test.key)
		var refused *exchange.RefusedError
		switch {
		case test.code == "" && err == nil:
		case test.code == "" || !errors.As(err, &refused) || refused.Code != test.code:
			t.Errorf("%s: %v, want %q", name, err, test.code)
		}
	}
	if _, err := exchange.GetObject(t.Context(), lab.target, got.Credentials, "demo", "large"); err == nil || !strings.Contains(err.Error(), "is longer than 1048576 bytes") {
		t.Errorf("a large object: %v", err)
	}
}

type labAWS struct {
	*lab
	target exchange.AWSTarget
}

func startAWS(t *testing.T) *labAWS {
	t.Helper()
	l := startLab(t)
	condition := strings.TrimPrefix(l.issuer, "https://")
	policy := marshal(t, map[string]any{
		"Version": "2012-10-17",
		"Statement": map[string]any{
			"Effect": "Allow", "Action": "sts:AssumeRoleWithWebIdentity",
			"Principal": map[string]any{"Federated": aws.ProviderARN(account, l.issuer)},
			"Condition": map[string]any{"StringEquals": map[string]any{condition + ":sub": subject, condition + ":aud": "sts.amazonaws.com"}},
		},
	})
	handler, err := aws.New(aws.Config{
		Account:   account,
		Providers: []aws.Provider{{URL: l.issuer, ClientIDs: []string{"sts.amazonaws.com"}}},
		Roles: []aws.Role{{
			Name: "demo", TrustPolicy: json.RawMessage(policy),
			Policy: json.RawMessage(`{"Statement": {"Effect": "Allow", "Action": "s3:GetObject", "Resource": "arn:aws:s3:::demo/*"}}`),
		}},
		Buckets: []aws.Bucket{{Name: "demo", Region: region, Objects: map[string][]byte{"greeting": []byte("hello"), "large": make([]byte, 1<<20+1)}}},
		Client:  l.client,
		Clock:   l.clock,
	})
	if err != nil {
		t.Fatal(err)
	}
	return &labAWS{l, exchange.AWSTarget{
		Endpoint: serveUnder(t, l.ca, handler), S3: serveUnder(t, l.ca, handler.S3()), Region: region, RoleARN: aws.RoleARN(account, "demo"), SessionName: "test", Client: l.client,
	}}
}
