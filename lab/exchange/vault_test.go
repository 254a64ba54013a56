package exchange_test

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/oidclab/oidclab/lab/exchange"
)

// The two logins, which differ in where they go.
var logins = map[string]func(context.Context, exchange.VaultTarget, string) (exchange.VaultResult, error){
	"jwt-c1":        exchange.VaultJWT,
	"kubernetes-c1": exchange.VaultKubernetes,
}

func TestVaultLogin(t *testing.T) {
	for mount, login := range logins {
		p := startParty(t, func(w http.ResponseWriter, r *http.Request) {
			var body map[string]any
			_ = json.NewDecoder(r.Body).Decode(&body)
			if r.Method != http.MethodPut || r.URL.RequestURI() != "/v1/auth/"+mount+"/login" || r.Header.Get("X-Vault-Token") != "" || r.Header.Get("X-Vault-Request") != "true" {
				t.Errorf("%s %s %v", r.Method, r.URL, r.Header)
			}
			if diff := cmp.Diff(map[string]any{"role": "demo", "jwt": subjectToken}, body); diff != "" {
				t.Error(diff)
			}
			answer(w, 200, "application/json", `{"request_id":"1","lease_id":"","renewable":false,"lease_duration":0,"data":null,"wrap_info":null,"warnings":null,
				"auth":{"client_token":"hvs.client","accessor":"acc","policies":["default","demo-reader"],"token_policies":["default","demo-reader"],
				"metadata":{"role":"demo"},"lease_duration":900,"renewable":true,"entity_id":"e1","token_type":"service","orphan":true}}`)
		})
		got, err := login(t.Context(), exchange.VaultTarget{Address: p.url, Mount: mount, Role: "demo", Client: p.client}, subjectToken)
		if err != nil {
			t.Fatal(err)
		}
		want := `{"client_token":"hvs.client","accessor":"acc","policies":["default","demo-reader"],"metadata":{"role":"demo"},"entity_id":"e1","lease_duration":900,"renewable":true}`
		if diff := cmp.Diff(want, marshal(t, got)); diff != "" {
			t.Error(diff)
		}
	}
}

func TestVaultLoginIsRefused(t *testing.T) {
	for _, test := range []struct {
		mount  string
		status int
		text   string
	}{
		{"jwt-c1", 400, "error validating token: invalid audience (aud) claim: audience claim does not match any expected audience"},
		{"jwt-c1", 400, "error validating token: error verifying token signature: failed to verify id token signature"},
		{"jwt-c1", 400, `role "nope" could not be found`},
		{"kubernetes-c1", 403, "permission denied"},
		{"kubernetes-c1", 403, "service account name not authorized"},
		{"kubernetes-c1", 400, `invalid role name "nope"`},
	} {
		body, err := json.Marshal(map[string][]string{"errors": {test.text}})
		if err != nil {
			t.Fatal(err)
		}
		p := startParty(t, func(w http.ResponseWriter, _ *http.Request) {
			answer(w, test.status, "application/json", string(body))
		})
		_, err = logins[test.mount](t.Context(), exchange.VaultTarget{Address: p.url, Mount: test.mount, Role: "nope", Client: p.client}, subjectToken)
		p.wantRefused(t, err, exchange.RefusedError{Party: "vault", Status: test.status, Message: test.text})
	}
}

func TestReadSecret(t *testing.T) {
	p := startParty(t, func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		if r.Method != http.MethodGet || r.URL.RequestURI() != "/v1/secret/data/demo/greeting" || r.Header.Get("X-Vault-Token") != "hvs.client" {
			t.Errorf("%s %s %v", r.Method, r.URL, r.Header)
		}
		answer(w, 200, "application/json", `{"request_id":"1","lease_id":"","renewable":false,"lease_duration":0,
			"data":{"data":{"message":"Hello from Vault"},"metadata":{"created_time":"2026-11-21T22:58:26.1Z","custom_metadata":null,"deletion_time":"","destroyed":false,"version":3}},
			"wrap_info":null,"warnings":null,"auth":null}`)
	})
	got, err := exchange.ReadSecret(t.Context(), exchange.VaultTarget{Address: p.url, Client: p.client}, "hvs.client", "secret/data/demo/greeting")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(`{"data":{"message":"Hello from Vault"},"version":3}`, marshal(t, got)); diff != "" {
		t.Error(diff)
	}
}

func TestReadSecretIsRefused(t *testing.T) {
	for _, test := range []struct {
		status     int
		body, want string
	}{
		{403, `{"errors":["1 error occurred:\n\t* permission denied\n\n"]}`, "1 error occurred:  * permission denied"},
		{404, `{"errors":[]}`, "there is nothing at secret/data/demo/greeting"},
	} {
		p := startParty(t, func(w http.ResponseWriter, _ *http.Request) { answer(w, test.status, "application/json", test.body) })
		_, err := exchange.ReadSecret(t.Context(), exchange.VaultTarget{Address: p.url, Client: p.client}, "hvs.client", "secret/data/demo/greeting")
		p.wantRefused(t, err, exchange.RefusedError{Party: "vault", Status: test.status, Message: test.want})
	}
}

func marshal(t *testing.T, value any) string {
	t.Helper()
	content, err := json.Marshal(value)
	if err != nil {
		t.Fatal(err)
	}
	return string(content)
}
