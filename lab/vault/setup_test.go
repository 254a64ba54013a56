package vault

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/vault/api"

	"github.com/oidclab/oidclab/lab/pki"
)

var setup = Setup{
	Audience:       "vault",
	Namespace:      "demo",
	ServiceAccount: "app",
	Clusters: []Cluster{{
		ID:            "c1",
		Issuer:        "https://127.0.0.1:1/c/c1",
		JWKSURI:       "https://127.0.0.1:1/c/c1/keys",
		PublicKeys:    []string{"first key", "second key"},
		IssuerCA:      []byte("issuer CA"),
		Server:        "https://127.0.0.1:2",
		ServerCA:      []byte("server CA"),
		ReviewerToken: "reviewer",
	}},
}

// call is a request as Vault sees it.
type call struct {
	Method, Path, Body string
}

func TestConfigure(t *testing.T) {
	var calls []call
	client := startVault(t, func(w http.ResponseWriter, r *http.Request) {
		if got := r.Header.Get("X-Vault-Token"); got != "root" {
			t.Errorf("%s with token %q", r.URL, got)
		}
		body, _ := io.ReadAll(r.Body)
		calls = append(calls, call{r.Method, r.URL.RequestURI(), string(body)})
		w.WriteHeader(http.StatusNoContent)
	})
	client.SetToken("root")
	if err := configure(t.Context(), client, setup); err != nil {
		t.Fatal(err)
	}
	const bareRole = `{
		"role_type": "jwt", "user_claim": "sub", "clock_skew_leeway": 60,
		"bound_audiences": ["vault"], "bound_subject": "system:serviceaccount:demo:app",
		"token_policies": ["demo-none"], "token_ttl": 900, "token_max_ttl": 900}`
	readerRole := strings.Replace(bareRole, "demo-none", "demo-reader", 1)
	want := []call{
		{"PUT", "/v1/sys/mounts/secret", `{"type": "kv", "options": {"version": "2"}}`},
		{"PUT", "/v1/sys/policies/acl/demo-reader", `{"policy": "path \"secret/data/demo/*\" { capabilities = [\"read\"] }"}`},
		{"PUT", "/v1/sys/policies/acl/demo-none", `{"policy": "path \"secret/*\" { capabilities = [\"deny\"] }"}`},

		{"PUT", "/v1/sys/auth/jwt-c1", `{"type": "jwt"}`},
		{"PUT", "/v1/auth/jwt-c1/config", `{
			"oidc_discovery_url": "https://127.0.0.1:1/c/c1",
			"oidc_discovery_ca_pem": "issuer CA",
			"bound_issuer": "https://127.0.0.1:1/c/c1",
			"jwt_supported_algs": ["RS256", "ES256", "ES384", "ES512"]}`},
		{"PUT", "/v1/auth/jwt-c1/role/no-secrets", bareRole},
		{"PUT", "/v1/auth/jwt-c1/role/demo", readerRole},
		{"PUT", "/v1/auth/jwt-c1/role/demo-by-claims", `{
			"role_type": "jwt", "user_claim": "sub", "clock_skew_leeway": 60,
			"bound_audiences": ["vault"], "bound_claims_type": "glob", "bound_claims": {
				"/kubernetes.io/namespace": "demo", "/kubernetes.io/serviceaccount/name": "app", "sub": "system:serviceaccount:*"},
			"token_policies": ["demo-reader"], "token_ttl": 900, "token_max_ttl": 900}`},

		{"PUT", "/v1/sys/auth/jwt-c1-jwks-url", `{"type": "jwt"}`},
		{"PUT", "/v1/auth/jwt-c1-jwks-url/config", `{
			"jwks_url": "https://127.0.0.1:1/c/c1/keys",
			"jwks_ca_pem": "issuer CA",
			"bound_issuer": "https://127.0.0.1:1/c/c1",
			"jwt_supported_algs": ["RS256", "ES256", "ES384", "ES512"]}`},
		{"PUT", "/v1/auth/jwt-c1-jwks-url/role/no-secrets", bareRole},
		{"PUT", "/v1/auth/jwt-c1-jwks-url/role/demo", readerRole},

		{"PUT", "/v1/sys/auth/jwt-c1-pinned", `{"type": "jwt"}`},
		{"PUT", "/v1/auth/jwt-c1-pinned/config", `{
			"jwt_validation_pubkeys": ["first key", "second key"],
			"bound_issuer": "https://127.0.0.1:1/c/c1",
			"jwt_supported_algs": ["RS256", "ES256", "ES384", "ES512"]}`},
		{"PUT", "/v1/auth/jwt-c1-pinned/role/no-secrets", bareRole},
		{"PUT", "/v1/auth/jwt-c1-pinned/role/demo", readerRole},

		{"PUT", "/v1/sys/auth/jwt-c1-no-issuer", `{"type": "jwt"}`},
		{"PUT", "/v1/auth/jwt-c1-no-issuer/config", `{
			"oidc_discovery_url": "https://127.0.0.1:1/c/c1",
			"oidc_discovery_ca_pem": "issuer CA",
			"jwt_supported_algs": ["RS256", "ES256", "ES384", "ES512"]}`},
		{"PUT", "/v1/auth/jwt-c1-no-issuer/role/no-secrets", bareRole},

		{"PUT", "/v1/sys/auth/kubernetes-c1", `{"type": "kubernetes"}`},
		{"PUT", "/v1/auth/kubernetes-c1/config", `{
			"kubernetes_host": "https://127.0.0.1:2", "kubernetes_ca_cert": "server CA", "token_reviewer_jwt": "reviewer",
			"disable_local_ca_jwt": true, "disable_iss_validation": true}`},
		{"PUT", "/v1/auth/kubernetes-c1/role/demo", `{
			"bound_service_account_names": ["app"], "bound_service_account_namespaces": ["demo"],
			"audience": "vault", "alias_name_source": "serviceaccount_uid",
			"token_policies": ["demo-reader"], "token_ttl": 900, "token_max_ttl": 900}`},
		{"PUT", "/v1/auth/kubernetes-c1/role/no-secrets", `{
			"bound_service_account_names": ["app"], "bound_service_account_namespaces": ["demo"],
			"audience": "vault", "alias_name_source": "serviceaccount_uid",
			"token_policies": ["demo-none"], "token_ttl": 900, "token_max_ttl": 900}`},
		{"PUT", "/v1/auth/kubernetes-c1/role/no-audience", `{
			"bound_service_account_names": ["app"], "bound_service_account_namespaces": ["demo"],
			"alias_name_source": "serviceaccount_uid",
			"token_policies": ["demo-none"], "token_ttl": 900, "token_max_ttl": 900}`},

		{"PUT", "/v1/secret/data/demo/greeting", `{"data": {"message": "Hello from Vault"}}`},
	}
	for _, list := range [][]call{calls, want} {
		for i := range list {
			list[i].Body = canonical(t, list[i].Body)
		}
	}
	if diff := cmp.Diff(want, calls); diff != "" {
		t.Error(diff)
	}
}

func TestConfigureEachCluster(t *testing.T) {
	two := setup
	second := setup.Clusters[0]
	second.ID, second.Issuer = "c2", "https://127.0.0.1:1/c/c2"
	two.Clusters = append(two.Clusters[:1:1], second)
	issuers := make(map[string]string)
	client := startVault(t, func(w http.ResponseWriter, r *http.Request) {
		var config struct {
			Bound string `json:"bound_issuer"`
		}
		_ = json.NewDecoder(r.Body).Decode(&config)
		if config.Bound != "" {
			issuers[r.URL.Path] = config.Bound
		}
	})
	if err := configure(t.Context(), client, two); err != nil {
		t.Fatal(err)
	}
	want := map[string]string{
		"/v1/auth/jwt-c1/config":          "https://127.0.0.1:1/c/c1",
		"/v1/auth/jwt-c1-jwks-url/config": "https://127.0.0.1:1/c/c1",
		"/v1/auth/jwt-c1-pinned/config":   "https://127.0.0.1:1/c/c1",
		"/v1/auth/jwt-c2/config":          "https://127.0.0.1:1/c/c2",
		"/v1/auth/jwt-c2-jwks-url/config": "https://127.0.0.1:1/c/c2",
		"/v1/auth/jwt-c2-pinned/config":   "https://127.0.0.1:1/c/c2",
	}
	if diff := cmp.Diff(want, issuers); diff != "" {
		t.Error(diff)
	}
}

// A new reviewer changes what Vault reviews with, and nothing else.
func TestSetReviewer(t *testing.T) {
	var calls []call
	client := startVault(t, func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		calls = append(calls, call{r.Method, r.URL.RequestURI(), canonical(t, string(body))})
		w.WriteHeader(http.StatusNoContent)
	})
	renewed := setup.Clusters[0]
	renewed.ReviewerToken = "renewed"
	if err := (&Server{root: client}).SetReviewer(t.Context(), renewed); err != nil {
		t.Fatal(err)
	}
	want := []call{{"PUT", "/v1/auth/kubernetes-c1/config", canonical(t, `{
		"kubernetes_host": "https://127.0.0.1:2", "kubernetes_ca_cert": "server CA", "token_reviewer_jwt": "renewed",
		"disable_local_ca_jwt": true, "disable_iss_validation": true}`)}}
	if diff := cmp.Diff(want, calls); diff != "" {
		t.Error(diff)
	}
}

func TestConfigureIsRefused(t *testing.T) {
	client := startVault(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/v1/auth/jwt-c1/config" {
			answer(w, http.StatusBadRequest, `{"errors":["error checking oidc discovery URL"]}`)
		}
	})
	err := configure(t.Context(), client, setup)
	if want := "vault: write auth/jwt-c1/config: status 400: error checking oidc discovery URL"; err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
}

// Vault says so, and only so, when it does not know a parameter.
func TestConfigureWithAnUnknownParameter(t *testing.T) {
	for warning, want := range map[string]string{
		"Endpoint ignored these unrecognized parameters: [audiences]": "vault: write auth/kubernetes-c1/role/demo: Endpoint ignored these unrecognized parameters: [audiences]",
		"something else": "",
	} {
		client := startVault(t, func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/v1/auth/kubernetes-c1/role/demo" {
				answer(w, http.StatusOK, `{"warnings":["`+warning+`"]}`)
			}
		})
		got := ""
		if err := configure(t.Context(), client, setup); err != nil {
			got = err.Error()
		}
		if got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

const upgrading = `{"errors":["Upgrading from non-versioned to versioned data. This backend will be unavailable for a brief period and will resume service shortly."]}`

func TestConfigureWaitsForTheStore(t *testing.T) {
	attempts := 0
	client := startVault(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/v1/secret/data/demo/greeting" {
			if attempts++; attempts < 3 {
				answer(w, http.StatusBadRequest, upgrading)
			}
		}
	})
	if err := configure(t.Context(), client, setup); err != nil || attempts != 3 {
		t.Errorf("after %d attempts: %v", attempts, err)
	}
}

func TestConfigureDoesNotWaitForEver(t *testing.T) {
	client := startVault(t, func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, "/v1/secret/") {
			answer(w, http.StatusBadRequest, upgrading)
		}
	})
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	err := configure(ctx, client, setup)
	if err == nil || !strings.Contains(err.Error(), "deadline exceeded") {
		t.Errorf("got %v", err)
	}
}

func TestSetupWithAHole(t *testing.T) {
	client := startVault(t, func(_ http.ResponseWriter, r *http.Request) { t.Errorf("called %s", r.URL) })
	for want, change := range map[string]func(*Setup, *Cluster){
		"the audience is missing":                     func(s *Setup, _ *Cluster) { s.Audience = "" },
		"the namespace is missing":                    func(s *Setup, _ *Cluster) { s.Namespace = "" },
		"the service account is missing":              func(s *Setup, _ *Cluster) { s.ServiceAccount = "" },
		"the id of a cluster is missing":              func(_ *Setup, c *Cluster) { c.ID = "" },
		"the issuer of cluster c1 is missing":         func(_ *Setup, c *Cluster) { c.Issuer = "" },
		"the issuer's CA of cluster c1 is missing":    func(_ *Setup, c *Cluster) { c.IssuerCA = nil },
		"the server of cluster c1 is missing":         func(_ *Setup, c *Cluster) { c.Server = "" },
		"the server's CA of cluster c1 is missing":    func(_ *Setup, c *Cluster) { c.ServerCA = nil },
		"the reviewer token of cluster c1 is missing": func(_ *Setup, c *Cluster) { c.ReviewerToken = "" },
	} {
		changed := setup
		changed.Clusters = append([]Cluster(nil), setup.Clusters...)
		change(&changed, &changed.Clusters[0])
		if err := configure(t.Context(), client, changed); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
}

func TestClientKeepsToItself(t *testing.T) {
	t.Setenv("VAULT_TOKEN", "somebody else's")
	t.Setenv("VAULT_NAMESPACE", "elsewhere")
	t.Setenv("VAULT_HEADERS", `{"X-Other": "value"}`)
	t.Setenv("VAULT_WRAP_TTL", "5m")
	t.Setenv("VAULT_MAX_RETRIES", "5")
	requests := 0
	client := startVault(t, func(w http.ResponseWriter, r *http.Request) {
		requests++
		if got := r.Header.Get("X-Vault-Token"); got != "" {
			t.Errorf("token %q", got)
		}
		for _, name := range []string{"X-Vault-Namespace", "X-Other", "X-Vault-Wrap-Ttl"} {
			if got := r.Header.Get(name); got != "" {
				t.Errorf("header %s: %q", name, got)
			}
		}
		if r.Header.Get("X-Vault-Request") != "true" {
			t.Error("no header X-Vault-Request")
		}
		if r.URL.Path == "/v1/moved" {
			http.Redirect(w, r, "/v1/elsewhere", http.StatusTemporaryRedirect)
			return
		}
		if r.URL.Path == "/v1/elsewhere" {
			t.Error("a redirect was followed")
		}
		answer(w, http.StatusServiceUnavailable, `{"errors":["Vault is sealed"]}`)
	})
	if _, err := client.Logical().ReadWithContext(t.Context(), "any"); err == nil || requests != 1 {
		t.Errorf("%d requests: %v", requests, err)
	}
	_, _ = client.Logical().ReadWithContext(t.Context(), "moved")
	if requests != 2 {
		t.Errorf("%d requests", requests)
	}
}

func TestClientWithABrokenVariable(t *testing.T) {
	t.Setenv("VAULT_CACERT", t.TempDir()+"/gone.pem")
	if _, err := NewClient("https://127.0.0.1:1", http.DefaultClient); err == nil || !strings.Contains(err.Error(), "VAULT_*") {
		t.Errorf("got %v", err)
	}
}

// startVault serves handler over HTTPS and returns a client without a token.
func startVault(t *testing.T, handler http.HandlerFunc) *api.Client {
	t.Helper()
	url, ca := serveTLS(t, handler)
	httpClient := secure(ca)
	t.Cleanup(httpClient.CloseIdleConnections)
	client, err := NewClient(url, httpClient)
	if err != nil {
		t.Fatal(err)
	}
	return client
}

func serveTLS(t *testing.T, handler http.Handler) (url string, ca *pki.CA) {
	t.Helper()
	ca = newCA(t)
	leaf, err := ca.Server("127.0.0.1")
	if err != nil {
		t.Fatal(err)
	}
	cert, err := leaf.TLS()
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewUnstartedServer(handler)
	server.TLS = &tls.Config{Certificates: []tls.Certificate{cert}}
	server.StartTLS()
	t.Cleanup(server.Close)
	return server.URL, ca
}

func secure(ca *pki.CA) *http.Client {
	return &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: ca.Pool()}}}
}

func answer(w http.ResponseWriter, status int, body string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = io.WriteString(w, body)
}

func canonical(t *testing.T, body string) string {
	t.Helper()
	var value any
	if err := json.Unmarshal([]byte(body), &value); err != nil {
		t.Fatalf("%v in %s", err, body)
	}
	content, err := json.Marshal(value)
	if err != nil {
		t.Fatal(err)
	}
	return string(content)
}
