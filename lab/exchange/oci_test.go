package exchange_test

import (
	"encoding/base64"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/oidclab/oidclab/lab/exchange"
	"github.com/oidclab/oidclab/lab/sts/oci"
)

const (
	testOCIUser    = "ocid1.user.oc1..app"
	testOCICluster = "ocid1.cluster.oc1..demo"
	podAudience    = "https://kubernetes.default.svc"
)

// startOCI starts the lab's own OCI: subject can be testOCIUser, and as a pod
// the workload of its service account, and both can read demo/greeting.
func startOCI(t *testing.T) (*lab, exchange.OCITarget) {
	t.Helper()
	l := startLab(t)
	var service *oci.Handler // needs its own URL
	origin := serveUnder(t, l.ca, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { service.ServeHTTP(w, r) }))
	service, err := oci.New(oci.Config{
		URL: origin, Tenancy: "ocid1.tenancy.oc1..demo", Namespace: "axdemo", Clients: []oci.OAuthClient{{ID: "demo", Secret: "secret"}},
		Trusts: []oci.Trust{{
			Name: "demo", Issuer: l.issuer, Audiences: []string{"oci"}, Clients: []string{"demo"},
			ServiceUsers: []oci.ServiceUser{{OCID: testOCIUser, Rule: "sub eq " + subject}},
		}},
		Clusters: []oci.Cluster{{OCID: testOCICluster, Compartment: "ocid1.tenancy.oc1..demo", Issuer: l.issuer, Audiences: []string{podAudience}}},
		Buckets: []oci.Bucket{{
			Name: "demo", Objects: map[string][]byte{"a/greeting": []byte("hello")}, Readers: []string{testOCIUser, oci.WorkloadOCID(testOCICluster, "demo", "app")},
		}},
		Client: l.client, Clock: l.clock,
	})
	if err != nil {
		t.Fatal(err)
	}
	pods := serveUnder(t, l.ca, service.Proxymux())
	return l, exchange.OCITarget{URL: origin, PodURL: pods, ClientID: "demo", ClientSecret: "secret", Client: l.client}
}

func TestOCI(t *testing.T) {
	for _, moved := range []time.Duration{0, 2 * time.Hour, -2 * time.Hour} {
		t.Run(moved.String(), func(t *testing.T) {
			l, target := startOCI(t)
			l.clock.Advance(moved)
			byToken, err := exchange.OCI(t.Context(), target, l.sign(t, subject, "oci"))
			if err != nil {
				t.Fatal(err)
			}
			asPod, err := exchange.OCIPod(t.Context(), target, l.sign(t, subject, podAudience))
			if err != nil {
				t.Fatal(err)
			}
			for _, session := range []exchange.OCIResult{byToken, asPod} {
				if life := session.Expiry.Sub(l.clock.Now()); life < 59*time.Minute || life > time.Hour {
					t.Errorf("the session is good for %s of lab time", life)
				}
				if got, err := exchange.ReadOCIObject(t.Context(), target, session, "axdemo", "demo", "a/greeting"); err != nil || string(got) != "hello" {
					t.Errorf("got %q, %v", got, err)
				}
			}
			_, err = exchange.ReadOCIObject(t.Context(), target, byToken, "axdemo", "demo", "other")
			wantRefusal(t, "no such object", err, exchange.RefusedError{
				Party: "oci", Status: 404, Code: "ObjectNotFound", Message: "The object 'other' was not found in the bucket 'demo'",
			}, byToken.SecurityToken)
			stolen := byToken
			stolen.PrivateKey = asPod.PrivateKey
			_, err = exchange.ReadOCIObject(t.Context(), target, stolen, "axdemo", "demo", "a/greeting")
			const notAuthenticated = "The required information to complete authentication was not provided or was incorrect."
			wantRefusal(t, "a session without its key", err, exchange.RefusedError{Party: "oci", Status: 401, Code: "NotAuthenticated", Message: notAuthenticated}, byToken.SecurityToken)
			l.clock.Advance(time.Hour)
			_, err = exchange.ReadOCIObject(t.Context(), target, byToken, "axdemo", "demo", "a/greeting")
			wantRefusal(t, "expired session", err, exchange.RefusedError{Party: "oci", Status: 401, Code: "NotAuthenticated", Message: notAuthenticated}, byToken.SecurityToken)
		})
	}
}

func TestOCIIsRefused(t *testing.T) {
	l, target := startOCI(t)
	good := l.sign(t, subject, "oci")
	if _, err := exchange.OCI(t.Context(), target, good); err != nil {
		t.Fatal(err)
	}
	stranger := target
	stranger.ClientSecret = "another"
	for name, test := range map[string]struct {
		target        exchange.OCITarget
		token         string
		status        int
		code, message string
	}{
		"audience": {target, l.sign(t, subject, "vault"), 400, "invalid_grant", "the token's audience is not among the client claim values of the trust"},
		"subject":  {target, l.sign(t, subject+"2", "oci"), 400, "invalid_grant", "the token meets no impersonation rule of the trust"},
		"client":   {stranger, good, 401, "invalid_client", "the client could not be authenticated"},
	} {
		_, err := exchange.OCI(t.Context(), test.target, test.token)
		wantRefusal(t, name, err, exchange.RefusedError{Party: "oci", Status: test.status, Code: test.code, Message: test.message}, test.token, test.target.ClientSecret+"!")
	}
	_, err := exchange.OCIPod(t.Context(), target, good)
	wantRefusal(t, "pod", err, exchange.RefusedError{
		Party: "oci", Status: 401, Code: "NotAuthenticated", Message: "The token is for another audience than the cluster's API server.",
	}, good)
}

func TestOCIAnswersNoToken(t *testing.T) {
	for body, want := range map[string]string{
		`{"access_token":"a.b.c"}`:                       "the answer has no token",
		`{"token":"opaque"}`:                             "not a JWT",
		`{"token":"` + unsignedJWT(`{"sub":"x"}`) + `"}`: "without exp",
	} {
		p := startParty(t, func(w http.ResponseWriter, _ *http.Request) { answer(w, 200, "application/json", body) })
		_, err := exchange.OCI(t.Context(), exchange.OCITarget{URL: p.url, ClientID: "demo", ClientSecret: "secret", Client: p.client}, subjectToken)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %s", body, err, want)
		}
	}
	for _, body := range []string{"{}", `""`, `"` + base64.StdEncoding.EncodeToString([]byte(`{"token":"a.b.c"}`)) + `"`} {
		p := startParty(t, func(w http.ResponseWriter, _ *http.Request) { answer(w, 200, "application/json", body) })
		if _, err := exchange.OCIPod(t.Context(), exchange.OCITarget{PodURL: p.url, Client: p.client}, subjectToken); err == nil || !strings.Contains(err.Error(), "the answer has no token") {
			t.Errorf("%s: %v", body, err)
		}
	}
}
