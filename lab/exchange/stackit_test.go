package exchange_test

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/oidclab/oidclab/lab/exchange"
	"github.com/oidclab/oidclab/lab/sts/stackit"
)

// startSTACKIT starts the lab's own STACKIT, and returns its origin too:
// subject can be testEmail, which can read testProject.
func startSTACKIT(t *testing.T) (*lab, exchange.STACKITTarget, string) {
	t.Helper()
	l := startLab(t)
	var service *stackit.Handler // needs its own URL
	origin := serveUnder(t, l.ca, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { service.ServeHTTP(w, r) }))
	service, err := stackit.New(stackit.Config{
		URL: origin,
		Accounts: []stackit.ServiceAccount{{Email: testEmail, Providers: []stackit.Provider{{
			Name: "demo", Issuer: l.issuer, Assertions: []stackit.Assertion{
				{Item: "aud", Operator: "equals", Value: stackit.Audience}, {Item: "sub", Operator: "equals", Value: subject},
			},
		}}}},
		Projects: []stackit.Project{{ID: testProject, Name: "demo", Readers: []string{testEmail}}},
		Client:   l.client, Clock: l.clock,
	})
	if err != nil {
		t.Fatal(err)
	}
	return l, exchange.STACKITTarget{TokenURL: origin + "/oauth/v2/token", Email: testEmail, Client: l.client}, origin
}

func TestSTACKIT(t *testing.T) {
	for _, moved := range []time.Duration{0, 2 * time.Hour, -2 * time.Hour} {
		t.Run(moved.String(), func(t *testing.T) {
			l, target, api := startSTACKIT(t)
			l.clock.Advance(moved)
			got, err := exchange.STACKIT(t.Context(), target, l.sign(t, subject, stackit.Audience))
			if err != nil {
				t.Fatal(err)
			}
			if life := got.Expiry.Sub(l.clock.Now()); life < 59*time.Minute || life > time.Hour {
				t.Errorf("the token is good for %s of lab time", life)
			}
			if want := `{"access_token":"` + got.AccessToken + `","expiry":"` + got.Expiry.Format(time.RFC3339) + `"}`; marshal(t, got) != want {
				t.Errorf("marshals as %s", marshal(t, got))
			}
			project, err := exchange.ReadProject(t.Context(), l.client, api, got.AccessToken, testProject)
			want := `{"projectId":"` + testProject + `","containerId":"` + testProject + `","name":"demo","lifecycleState":"ACTIVE"}`
			if err != nil || marshal(t, project) != want {
				t.Errorf("got %s, %v, want %s", marshal(t, project), err, want)
			}

			_, err = exchange.ReadProject(t.Context(), l.client, api, got.AccessToken, testTenant)
			wantRefusal(t, "no such project", err, exchange.RefusedError{Party: "stackit", Status: 404, Message: "there is no such project"}, got.AccessToken)
			l.clock.Advance(time.Hour)
			_, err = exchange.ReadProject(t.Context(), l.client, api, got.AccessToken, testProject)
			wantRefusal(t, "expired access token", err, exchange.RefusedError{Party: "stackit", Status: 401, Message: "the access token is expired"}, got.AccessToken)
		})
	}
}

func TestSTACKITIsRefused(t *testing.T) {
	l, target, _ := startSTACKIT(t)
	good := l.sign(t, subject, stackit.Audience)
	if _, err := exchange.STACKIT(t.Context(), target, good); err != nil {
		t.Fatal(err)
	}
	const assertions = "the token does not satisfy the assertions of the federated identity provider"
	for name, test := range map[string]struct{ email, token, message string }{
		"audience": {testEmail, l.sign(t, subject, "vault"), assertions},
		"subject":  {testEmail, l.sign(t, subject+"2", stackit.Audience), assertions},
		"account":  {"nobody@sa.stackit.cloud", good, "there is no such service account"},
	} {
		target.Email = test.email
		_, err := exchange.STACKIT(t.Context(), target, test.token)
		wantRefusal(t, name, err, exchange.RefusedError{Party: "stackit", Status: 401, Code: "invalid_client", Message: test.message}, test.token)
	}
	target.Email = testEmail
	l.clock.Advance(time.Hour)
	_, err := exchange.STACKIT(t.Context(), target, good)
	wantRefusal(t, "expired", err, exchange.RefusedError{Party: "stackit", Status: 401, Code: "invalid_client", Message: "the token is expired"}, good)
}

// Without an account the SDK would take that of the environment.
func TestSTACKITWithoutAnAccount(t *testing.T) {
	t.Setenv("STACKIT_SERVICE_ACCOUNT_EMAIL", testEmail)
	p := startParty(t, func(http.ResponseWriter, *http.Request) { t.Error("a request was sent") })
	_, err := exchange.STACKIT(t.Context(), exchange.STACKITTarget{TokenURL: p.url, Client: p.client}, subjectToken)
	if err == nil || !strings.Contains(err.Error(), "no service account") {
		t.Errorf("got %v", err)
	}
}

func TestSTACKITAnswersNoToken(t *testing.T) {
	for token, want := range map[string]string{
		"opaque":                   "not a JWT",
		"a.%.c":                    "not a JWT",
		unsignedJWT(`{"sub":"x"}`): "without exp",
	} {
		p := startParty(t, func(w http.ResponseWriter, _ *http.Request) {
			answer(w, 200, "application/json", `{"access_token":"`+token+`","expires_in":3600}`)
		})
		_, err := exchange.STACKIT(t.Context(), exchange.STACKITTarget{TokenURL: p.url, Email: testEmail, Client: p.client}, subjectToken)
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), token) {
			t.Errorf("got %v, want %s", err, want)
		}
	}
}
