package exchange_test

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/oidclab/oidclab/lab/exchange"
	"github.com/oidclab/oidclab/lab/sts/azure"
)

// startAzure starts the lab's own tenant: subject can be testClient, which can
// read the container demo.
func startAzure(t *testing.T) (*lab, exchange.AzureTarget) {
	t.Helper()
	l := startLab(t)
	l.useRSA(t)
	var service *azure.Handler // needs its own URL
	origin := serveUnder(t, l.ca, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { service.ServeHTTP(w, r) }))
	service, err := azure.New(azure.Config{
		URL: origin, Tenant: testTenant,
		Applications: []azure.Application{{ClientID: testClient, Credentials: []azure.FederatedCredential{{Name: "demo-app", Issuer: l.issuer, Subject: subject}}}},
		Containers:   []azure.Container{{Name: "demo", Blobs: map[string][]byte{"a/greeting": []byte("hello")}, Readers: []string{testClient}}},
		Client:       l.client, Clock: l.clock,
	})
	if err != nil {
		t.Fatal(err)
	}
	return l, exchange.AzureTarget{Authority: origin, Tenant: testTenant, ClientID: testClient, Scope: "https://storage.azure.com/.default", Client: l.client}
}

func TestAzure(t *testing.T) {
	l, target := startAzure(t)
	got, err := exchange.Azure(t.Context(), target, l.sign(t, subject, azure.Audience))
	if err != nil {
		t.Fatal(err)
	}
	if life := time.Until(got.Expiry); life < 59*time.Minute || life > time.Hour {
		t.Errorf("the token is good for %s", life)
	}
	if want := `{"access_token":"` + got.AccessToken + `","expiry":"` + got.Expiry.Format(time.RFC3339Nano) + `"}`; marshal(t, got) != want {
		t.Errorf("marshals as %s", marshal(t, got))
	}
	content, err := exchange.ReadBlob(t.Context(), target.Client, target.Authority, got.AccessToken, "demo", "a/greeting")
	if err != nil || string(content) != "hello" {
		t.Errorf("got %q, %v", content, err)
	}

	_, err = exchange.ReadBlob(t.Context(), target.Client, target.Authority, got.AccessToken, "demo", "b")
	wantRefusal(t, "no such blob", err, exchange.RefusedError{Party: "azure", Status: 404, Code: "BlobNotFound", Message: "The specified blob does not exist."}, got.AccessToken)
	l.clock.Advance(time.Hour)
	_, err = exchange.ReadBlob(t.Context(), target.Client, target.Authority, got.AccessToken, "demo", "a/greeting")
	wantRefusal(t, "expired access token", err, exchange.RefusedError{Party: "azure", Status: 401, Code: "InvalidAuthenticationInfo",
		Message: "Server failed to authenticate the request. Please refer to the information in the www-authenticate header. Lifetime validation failed. The token is expired."}, got.AccessToken)
}

func TestAzureIsRefused(t *testing.T) {
	l, target := startAzure(t)
	good := l.sign(t, subject, azure.Audience)
	if _, err := exchange.Azure(t.Context(), target, good); err != nil {
		t.Fatal(err)
	}
	const (
		noMatch   = "No matching federated identity record found for presented assertion "
		checkThem = " Check your federated identity credential Subject, Audience and Issuer against the presented assertion. https://learn.microsoft.com/entra/workload-id/workload-identity-federation"
	)
	for name, test := range map[string]struct {
		token string
		want  exchange.RefusedError
	}{
		"audience": {l.sign(t, subject, "vault"), exchange.RefusedError{Code: "AADSTS700212", Message: "AADSTS700212: " + noMatch + "audience 'vault'." + checkThem}},
		"subject":  {l.sign(t, subject+"2", azure.Audience), exchange.RefusedError{Code: "AADSTS700213", Message: "AADSTS700213: " + noMatch + "subject '" + subject + "2'." + checkThem}},
	} {
		_, err := exchange.Azure(t.Context(), target, test.token)
		test.want.Party, test.want.Status = "azure", 401
		wantRefusal(t, name, err, test.want, test.token)
	}
	unknown := target
	unknown.Tenant = testClient
	_, err := exchange.Azure(t.Context(), unknown, good)
	if refused := asRefused(err); refused == nil || refused.Status != 400 || refused.Code != "AADSTS90002" {
		t.Errorf("unknown tenant: %v", err)
	}

	l.clock.Advance(time.Hour)
	_, err = exchange.Azure(t.Context(), target, good)
	refused := asRefused(err)
	if refused == nil || refused.Status != 401 || refused.Code != "AADSTS700024" || !strings.HasPrefix(refused.Message, "AADSTS700024: Client assertion is not within its valid time range.") ||
		strings.Contains(refused.Message, "Trace ID") || strings.Contains(err.Error(), good) {
		t.Errorf("expired: %v", err)
	}
}

// The SDK goes where the tenant's configuration, or a variable, sends it.
func TestAzureIsAskedNowhereElse(t *testing.T) {
	elsewhere := startParty(t, func(http.ResponseWriter, *http.Request) { t.Error("a request was sent") })
	p := startParty(t, func(w http.ResponseWriter, r *http.Request) {
		base := "https://" + r.Host + "/" + testTenant
		answer(w, 200, "application/json", `{"issuer":"`+base+`/v2.0","authorization_endpoint":"`+base+`/authorize","token_endpoint":"`+elsewhere.url+`/token"}`)
	})
	target := exchange.AzureTarget{Authority: p.url, Tenant: testTenant, ClientID: testClient, Scope: "s/.default", Client: p.client}
	for _, region := range []string{"", "westeurope"} {
		t.Setenv("AZURE_REGIONAL_AUTHORITY_NAME", region)
		_, err := exchange.Azure(t.Context(), target, subjectToken)
		if err == nil || asRefused(err) != nil || !strings.Contains(err.Error(), "is sent nowhere else") {
			t.Errorf("region %q: got %v", region, err)
		}
	}
}
