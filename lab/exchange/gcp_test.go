package exchange_test

import (
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/oidclab/oidclab/lab/exchange"
	"github.com/oidclab/oidclab/lab/sts/gcp"
)

const (
	gcpProject     = "123456789012"
	gcpPool        = "oidclab"
	gcpReadMessage = " does not have storage.objects.get access to the Google Cloud Storage object. Permission 'storage.objects.get' denied on resource (or it may not exist)."
)

// startGCP starts the lab's own Google Cloud: subject and testGCPUser can read
// the bucket demo, and subject can impersonate testGCPUser.
func startGCP(t *testing.T) (*lab, exchange.GCPTarget) {
	t.Helper()
	l := startLab(t)
	member := gcp.Principal(gcpProject, gcpPool, subject)
	handler, err := gcp.New(gcp.Config{
		ProjectNumber: gcpProject,
		Pools: []gcp.Pool{{ID: gcpPool, Providers: []gcp.Provider{{
			ID: "cluster-1", IssuerURI: l.issuer, AttributeMapping: map[string]string{"google.subject": "assertion.sub"},
			AttributeCondition: `assertion.sub.startsWith("system:serviceaccount:demo:")`,
		}}}},
		ServiceAccounts: []gcp.ServiceAccount{{Email: testGCPUser, Policy: []gcp.Binding{{Role: gcp.RoleWorkloadIdentityUser, Members: []string{member}}}}},
		Buckets: []gcp.Bucket{{
			Name: "demo", Objects: map[string][]byte{"a/greeting": []byte("hello")},
			Policy: []gcp.Binding{{Role: gcp.RoleObjectViewer, Members: []string{member, gcp.ServiceAccountMember(testGCPUser)}}},
		}},
		Client: l.client, Clock: l.clock,
	})
	if err != nil {
		t.Fatal(err)
	}
	return l, exchange.GCPTarget{URL: serveUnder(t, l.ca, handler), Audience: gcp.Audience(gcpProject, gcpPool, "cluster-1"), Client: l.client}
}

func TestGCP(t *testing.T) {
	for _, account := range []string{"", testGCPUser} {
		t.Run("account "+account, func(t *testing.T) {
			l, target := startGCP(t)
			target.ServiceAccount = account
			got, err := exchange.GCP(t.Context(), target, l.sign(t, subject, target.Audience))
			if err != nil {
				t.Fatal(err)
			}
			if life := time.Until(got.Expiry); life < 59*time.Minute || life > time.Hour {
				t.Errorf("the token is good for %s", life)
			}
			if want := `{"access_token":"` + got.AccessToken + `","expiry":"` + got.Expiry.Format(time.RFC3339Nano) + `"}`; marshal(t, got) != want {
				t.Errorf("marshals as %s", marshal(t, got))
			}
			content, err := exchange.ReadObject(t.Context(), target, got.AccessToken, "demo", "a/greeting")
			if err != nil || string(content) != "hello" {
				t.Errorf("got %q, %v", content, err)
			}

			_, err = exchange.ReadObject(t.Context(), target, got.AccessToken, "demo", "b")
			wantRefusal(t, "no such object", err, exchange.RefusedError{Party: "gcp", Status: 404, Code: "notFound", Message: "No such object: demo/b"}, got.AccessToken)
			l.clock.Advance(time.Hour)
			_, err = exchange.ReadObject(t.Context(), target, got.AccessToken, "demo", "a/greeting")
			wantRefusal(t, "expired access token", err, exchange.RefusedError{Party: "gcp", Status: 401, Code: "authError", Message: "Invalid Credentials"}, got.AccessToken)
		})
	}
}

func TestGCPIsRefused(t *testing.T) {
	l, target := startGCP(t)
	impersonating := target
	impersonating.ServiceAccount = testGCPUser
	good := l.sign(t, subject, target.Audience)
	for _, control := range []exchange.GCPTarget{target, impersonating} {
		if _, err := exchange.GCP(t.Context(), control, good); err != nil {
			t.Fatal(err)
		}
	}
	unknown := target
	unknown.Audience = gcp.Audience(gcpProject, gcpPool, "nobody")
	const other = "system:serviceaccount:demo:other"
	for name, test := range map[string]struct {
		target exchange.GCPTarget
		token  string
		want   exchange.RefusedError
	}{
		"audience": {target, l.sign(t, subject, "vault"),
			exchange.RefusedError{Status: 400, Code: "invalid_grant", Message: "The audience in ID Token does not match the expected audience."}},
		"condition": {target, l.sign(t, "system:serviceaccount:x:app", target.Audience),
			exchange.RefusedError{Status: 403, Code: "unauthorized_client", Message: "The given credential is rejected by the attribute condition."}},
		"provider": {unknown, good,
			exchange.RefusedError{Status: 400, Code: "invalid_target", Message: `The target service indicated by the "audience" parameters is invalid. This might either be because the pool or provider is disabled or deleted or because it doesn't exist.`}},
		"impersonation by another subject": {impersonating, l.sign(t, other, target.Audience),
			exchange.RefusedError{Status: 403, Code: "IAM_PERMISSION_DENIED", Message: "Permission 'iam.serviceAccounts.getAccessToken' denied on resource (or it may not exist)."}},
	} {
		_, err := exchange.GCP(t.Context(), test.target, test.token)
		test.want.Party = "gcp"
		wantRefusal(t, name, err, test.want, test.token)
	}

	granted, err := exchange.GCP(t.Context(), target, l.sign(t, other, target.Audience))
	if err != nil {
		t.Fatal(err)
	}
	_, err = exchange.ReadObject(t.Context(), target, granted.AccessToken, "demo", "a/greeting")
	wantRefusal(t, "subject without a grant", err, exchange.RefusedError{
		Party: "gcp", Status: 403, Code: "forbidden", Message: gcp.Principal(gcpProject, gcpPool, other) + gcpReadMessage,
	}, granted.AccessToken)

	l.clock.Advance(time.Hour)
	_, err = exchange.GCP(t.Context(), target, good)
	if refused := asRefused(err); refused == nil || refused.Status != 400 || refused.Code != "invalid_grant" || !strings.HasPrefix(refused.Message, "ID Token expired at ") ||
		strings.Contains(err.Error(), good) {
		t.Errorf("expired: %v", err)
	}
}

// A refusal of the second request may quote what the first one granted.
func TestGCPDoesNotShowTheFederatedToken(t *testing.T) {
	p := startParty(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/v1/token" {
			answer(w, 200, "application/json", `{"access_token":"federated","issued_token_type":"urn:ietf:params:oauth:token-type:access_token","token_type":"Bearer","expires_in":3600}`)
			return
		}
		answer(w, 403, "application/json", `{"error":{"code":403,"message":"`+r.Header.Get("Authorization")+` may not","status":"PERMISSION_DENIED"}}`)
	})
	_, err := exchange.GCP(t.Context(), exchange.GCPTarget{URL: p.url, Audience: "a", ServiceAccount: testGCPUser, Client: p.client}, subjectToken)
	wantRefusal(t, "impersonation", err, exchange.RefusedError{Party: "gcp", Status: 403, Code: "PERMISSION_DENIED", Message: "Bearer [token] may not"})
	if n := p.requests.Load(); n != 2 {
		t.Errorf("%d requests", n)
	}
}

// The library writes requests and answers to stderr if this variable is set.
func TestGCPLogsNothing(t *testing.T) {
	t.Setenv("GOOGLE_SDK_GO_LOGGING_LEVEL", "debug")
	log, err := os.Create(filepath.Join(t.TempDir(), "stderr"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	stderr := os.Stderr
	os.Stderr = log
	defer func() { os.Stderr = stderr }()

	l, target := startGCP(t)
	target.ServiceAccount = testGCPUser
	if _, err := exchange.GCP(t.Context(), target, l.sign(t, subject, target.Audience)); err != nil {
		t.Fatal(err)
	}
	if content, err := os.ReadFile(log.Name()); err != nil || len(content) > 0 {
		t.Errorf("%d bytes were logged, %v", len(content), err)
	}
}
