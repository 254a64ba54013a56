package exchange_test

import (
	"errors"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/oidclab/oidclab/lab/exchange"
	"github.com/oidclab/oidclab/lab/sts"
	"github.com/oidclab/oidclab/lab/sts/generic"
)

func TestGeneric(t *testing.T) {
	const body = `{"access_token":"at","issued_token_type":"urn:ietf:params:oauth:token-type:access_token","token_type":"Bearer","expires_in":900,"scope":"read"}`
	for name, test := range map[string]struct {
		target exchange.GenericTarget
		more   url.Values
	}{
		"plain":      {exchange.GenericTarget{}, nil},
		"everything": {exchange.GenericTarget{Audience: "a", Resource: "https://r.example/", Scope: "s"}, url.Values{"audience": {"a"}, "resource": {"https://r.example/"}, "scope": {"s"}}},
	} {
		want := url.Values{
			"grant_type":           {"urn:ietf:params:oauth:grant-type:token-exchange"},
			"subject_token":        {subjectToken},
			"subject_token_type":   {"urn:ietf:params:oauth:token-type:jwt"},
			"requested_token_type": {"urn:ietf:params:oauth:token-type:access_token"},
		}
		for parameter, values := range test.more {
			want[parameter] = values
		}
		p := startParty(t, func(w http.ResponseWriter, r *http.Request) {
			if r.Method != http.MethodPost || r.URL.RequestURI() != "/token" || r.Header.Get("Content-Type") != "application/x-www-form-urlencoded" {
				t.Errorf("%s: %s %s %v", name, r.Method, r.URL, r.Header)
			}
			_ = r.ParseForm()
			if diff := cmp.Diff(want, r.PostForm); diff != "" {
				t.Errorf("%s: %s", name, diff)
			}
			answer(w, 200, "application/json;charset=UTF-8", body)
		})
		test.target.TokenURL, test.target.Client = p.url+"/token", p.client
		got, err := exchange.Generic(t.Context(), test.target, subjectToken)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(body, marshal(t, got)); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
}

func TestGenericIsRefused(t *testing.T) {
	for _, test := range []struct {
		status int
		body   string
		want   exchange.RefusedError
	}{
		{400, `{"error":"invalid_request","error_description":"token expired"}`, exchange.RefusedError{Code: "invalid_request", Message: "token expired"}},
		{400, `{"error":"invalid_target"}`, exchange.RefusedError{Code: "invalid_target"}},
		{404, "404 page not found\n", exchange.RefusedError{Message: "404 page not found"}},
	} {
		p := startParty(t, func(w http.ResponseWriter, _ *http.Request) { answer(w, test.status, "application/json", test.body) })
		_, err := exchange.Generic(t.Context(), exchange.GenericTarget{TokenURL: p.url + "/token", Client: p.client}, subjectToken)
		test.want.Party, test.want.Status = "generic", test.status
		p.wantRefused(t, err, test.want)
	}
}

func TestGenericAnswerLacksSomething(t *testing.T) {
	for _, body := range []string{
		`{"issued_token_type":"x","token_type":"Bearer"}`,
		`{"access_token":"at","token_type":"Bearer"}`,
		`{"access_token":"at","issued_token_type":"x"}`,
	} {
		p := startParty(t, func(w http.ResponseWriter, _ *http.Request) { answer(w, 200, "application/json", body) })
		_, err := exchange.Generic(t.Context(), exchange.GenericTarget{TokenURL: p.url + "/token", Client: p.client}, subjectToken)
		if err == nil || !strings.Contains(err.Error(), "the answer lacks") {
			t.Errorf("%s: %v", body, err)
		}
	}
}

func TestGrants(t *testing.T) {
	target := exchange.GenericTarget{Audience: "orders"}
	custom := target
	custom.TokenType, custom.ClientID, custom.ClientSecret = "urn:example:token", "demo", "secret"
	for _, test := range []struct {
		grant  exchange.Grant
		target exchange.GenericTarget
		want   url.Values
	}{
		{exchange.JWTBearer, target, url.Values{"grant_type": {"urn:ietf:params:oauth:grant-type:jwt-bearer"}, "assertion": {subjectToken}}},
		{exchange.ClientAssertion, target, url.Values{
			"grant_type": {"client_credentials"}, "client_assertion": {subjectToken}, "client_assertion_type": {"urn:ietf:params:oauth:client-assertion-type:jwt-bearer"},
		}},
		{exchange.TokenExchange, custom, url.Values{
			"grant_type": {"urn:ietf:params:oauth:grant-type:token-exchange"}, "subject_token": {subjectToken}, "subject_token_type": {"urn:example:token"},
			"client_id": {"demo"}, "client_secret": {"secret"},
		}},
	} {
		test.want.Set("audience", "orders")
		p := startParty(t, func(w http.ResponseWriter, r *http.Request) {
			if err := r.ParseForm(); err != nil || !cmp.Equal(r.PostForm, test.want) {
				t.Errorf("%s: %v %s", test.grant, err, cmp.Diff(test.want, r.PostForm))
			}
			answer(w, 200, "application/json", `{"access_token":"at","token_type":"Bearer"}`)
		})
		test.target.Grant, test.target.TokenURL, test.target.Client = test.grant, p.url+"/token", p.client
		got, err := exchange.Generic(t.Context(), test.target, subjectToken)
		if exchanged := test.grant == exchange.TokenExchange; exchanged != (err != nil) || !exchanged && got.AccessToken != "at" {
			t.Errorf("%s: %+v, %v", test.grant, got, err) // only an exchange must say what it issued
		}
	}
	target.Grant = "password"
	target.TokenURL = "https://127.0.0.1:1/token"
	if _, err := exchange.Generic(t.Context(), target, subjectToken); err == nil || !strings.Contains(err.Error(), `no grant "password"`) {
		t.Errorf("another grant: %v", err)
	}
}

func TestUseResource(t *testing.T) {
	for _, test := range []struct{ contentType, body, want string }{
		{"application/json", `{"subject": "me"}` + "\n", `{"subject": "me"}`},
		{"application/json; charset=utf-8", `[]`, `[]`},
		{"application/json", `not json`, `"not json"`},
		{"text/plain", `{}`, `"{}"`},
	} {
		p := startParty(t, func(w http.ResponseWriter, r *http.Request) {
			if r.Method != http.MethodGet || r.URL.RequestURI() != "/resource" || r.Header.Get("Authorization") != "Bearer at" {
				t.Errorf("%s %s %v", r.Method, r.URL, r.Header)
			}
			answer(w, 200, test.contentType, test.body)
		})
		got, err := exchange.UseResource(t.Context(), p.client, p.url+"/resource", "at")
		if err != nil || string(got) != test.want {
			t.Errorf("got %s, %v, want %s", got, err, test.want)
		}
	}
}

func TestUseResourceIsRefused(t *testing.T) {
	for _, test := range []struct {
		status          int
		challenge, body string
		want            exchange.RefusedError
	}{
		{401, `Bearer realm="lab", error="invalid_token", error_description="The access token expired"`, "", exchange.RefusedError{Code: "invalid_token", Message: "The access token expired"}},
		{403, `Bearer error_description="more", error="insufficient_scope"`, "no", exchange.RefusedError{Code: "insufficient_scope", Message: "more"}},
		{401, "Bearer", "who are you?", exchange.RefusedError{Message: "who are you?"}},
	} {
		p := startParty(t, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("WWW-Authenticate", test.challenge)
			answer(w, test.status, "text/plain", test.body)
		})
		_, err := exchange.UseResource(t.Context(), p.client, p.url+"/resource", "at")
		test.want.Party, test.want.Status = "resource", test.status
		p.wantRefused(t, err, test.want)
	}
}

// With the lab's own token service and protected resource.
func TestGenericInTheLab(t *testing.T) {
	l := startLab(t)
	var service *generic.Handler // needs its own URL
	origin := serveUnder(t, l.ca, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { service.ServeHTTP(w, r) }))
	service, err := generic.New(generic.Config{
		URL: origin, Client: l.client, Clock: l.clock,
		Parties: []generic.Party{{
			Name: "strict", Profile: sts.Strict(),
			Issuers: []sts.Issuer{{URL: l.issuer, Audiences: []string{"token-service"}}},
			Roles: []sts.Role{{Name: "inventory", Trust: []sts.Statement{{
				Issuer: l.issuer, Conditions: []sts.Condition{{Operator: sts.StringEquals, Claim: "sub", Values: []string{subject}}},
			}}}},
		}},
	})
	if err != nil {
		t.Fatal(err)
	}
	handler, err := generic.Resource(generic.ResourceConfig{Audience: "inventory", Issuer: origin, Client: l.client, Clock: l.clock})
	if err != nil {
		t.Fatal(err)
	}
	resource := serveUnder(t, l.ca, handler) + "/resource"

	target := exchange.GenericTarget{TokenURL: origin + "/strict/token", Audience: "inventory", Client: l.client}
	got, err := exchange.Generic(t.Context(), target, l.token(t, "token-service"))
	if err != nil {
		t.Fatal(err)
	}
	document, err := exchange.UseResource(t.Context(), l.client, resource, got.AccessToken)
	if err != nil || !strings.Contains(string(document), `"subject":"`+subject+`"`) {
		t.Errorf("got %s, %v", document, err)
	}

	_, err = exchange.Generic(t.Context(), target, l.token(t, "other"))
	var refused *exchange.RefusedError
	if !errors.As(err, &refused) || refused.Party != "generic" || refused.Code != "invalid_request" {
		t.Errorf("wrong audience: %v", err)
	}
	l.clock.Advance(time.Hour)
	_, err = exchange.UseResource(t.Context(), l.client, resource, got.AccessToken)
	if !errors.As(err, &refused) || refused.Party != "resource" || refused.Code != "invalid_token" {
		t.Errorf("expired access token: %v", err)
	}
}
