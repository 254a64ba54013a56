package probe_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"

	"github.com/oidclab/oidclab/lab/probe"
)

// signed returns a JWT, each with a signature of its own.
func signed(t *testing.T, claims map[string]any) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: key}, nil)
	if err != nil {
		t.Fatal(err)
	}
	token, err := jwt.Signed(signer).Claims(claims).Serialize()
	if err != nil {
		t.Fatal(err)
	}
	return token
}

// party is a token service that answers as told, and the environment that leads
// to it.
func party(t *testing.T, token string, answer http.HandlerFunc) (probe.Config, *httptest.Server) {
	t.Helper()
	server := httptest.NewTLSServer(answer)
	t.Cleanup(server.Close)
	dir := t.TempDir()
	certificate := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
	environment := map[string]string{
		"OIDCLAB_TOKEN_URL": server.URL + "/token", "OIDCLAB_TARGET": "greeter",
		"OIDCLAB_TOKEN_FILE": filepath.Join(dir, "token"), "OIDCLAB_CA_FILE": filepath.Join(dir, "ca.crt"),
	}
	for name, content := range map[string]string{"OIDCLAB_TOKEN_FILE": token, "OIDCLAB_CA_FILE": string(certificate)} {
		if err := os.WriteFile(environment[name], []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return probe.Config{Getenv: func(name string) string { return environment[name] }}, server
}

func TestRun(t *testing.T) {
	now := time.Now().Truncate(time.Second)
	claims := map[string]any{
		"iss": "https://issuer.example", "sub": "system:serviceaccount:demo:app", "aud": []string{"oidclab"},
		"iat": now.Unix(), "exp": now.Add(time.Hour).Unix(), "kubernetes.io": map[string]any{"pod": map[string]string{"name": "app-1"}},
	}
	token := signed(t, claims)
	config, server := party(t, token, func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.URL.Path == "/resource" && strings.HasPrefix(r.Header.Get("Authorization"), "Bearer "):
			fmt.Fprint(w, "Hello")
		case r.FormValue("subject_token") != token:
			w.WriteHeader(http.StatusBadRequest)
			fmt.Fprintf(w, `{"error":"invalid_request","error_description":"not the token, but %s"}`, r.FormValue("subject_token"))
		default:
			_ = json.NewEncoder(w).Encode(map[string]any{
				"access_token": token, "issued_token_type": "urn:ietf:params:oauth:token-type:access_token", "token_type": "Bearer", "expires_in": 60,
			})
		}
	})
	config.Resource = server.URL + "/resource"

	got := probe.Run(t.Context(), "generic", config)
	if got.Error != "" || got.Identity != "system:serviceaccount:demo:app" || got.Content != "Hello" {
		t.Errorf("got %+v", got)
	}
	if got.Token == nil || got.Token.Issuer != "https://issuer.example" || got.Token.Pod != "app-1" || len(got.Token.Audience) != 1 ||
		!got.Token.IssuedAt.Equal(now) || !got.Token.Expiry.Equal(now.Add(time.Hour)) {
		t.Errorf("the token: %+v", got.Token)
	}
	line, err := got.Line()
	if err != nil || strings.Count(string(line), "\n") != 1 || strings.Contains(string(line), "eyJ") {
		t.Errorf("the line: %q, %v", line, err)
	}

	// The file is read anew, and what a party says about a token is not shown.
	other := signed(t, claims)
	if err := os.WriteFile(config.Getenv("OIDCLAB_TOKEN_FILE"), []byte(other+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	got = probe.Run(t.Context(), "generic", config)
	line, err = got.Line()
	if err != nil || !strings.Contains(got.Error, "not the token, but [token]") || strings.Contains(string(line), "eyJ") || got.Identity != "" {
		t.Errorf("got %s, %v", line, err)
	}
}

func TestWhatIsMissingIsSaid(t *testing.T) {
	nothing := probe.Config{Getenv: func(string) string { return "" }}
	for party, want := range map[string]string{
		"generic": "OIDCLAB_TOKEN_URL is not set", "vault": "OIDCLAB_VAULT_MOUNT is not set", "oci": "OCI_RESOURCE_PRINCIPAL_VERSION", "kubernetes": "in-cluster", "nobody": "no relying party",
	} {
		if got := probe.Run(t.Context(), party, nothing); !strings.Contains(got.Error, want) || got.Token != nil {
			t.Errorf("%s: got %+v, want %s", party, got, want)
		}
	}
}

// An SDK's error can hold what the party said of the token.
func TestErrorsOfSDKsHoldNoToken(t *testing.T) {
	token := signed(t, map[string]any{"iss": "https://issuer.example"})
	config, server := party(t, token, func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusBadRequest)
		fmt.Fprintf(w, `{"errors":["no such token: %s"]}`, token)
	})
	t.Setenv("VAULT_ADDR", server.URL)
	t.Setenv("VAULT_CACERT", config.Getenv("OIDCLAB_CA_FILE"))
	environment := map[string]string{
		"OIDCLAB_VAULT_MOUNT": "jwt", "OIDCLAB_VAULT_ROLE": "app", "OIDCLAB_VAULT_TOKEN_FILE": config.Getenv("OIDCLAB_TOKEN_FILE"),
	}
	got := probe.Run(t.Context(), "vault", probe.Config{Getenv: func(name string) string { return environment[name] }})
	if !strings.Contains(got.Error, "no such token: [token]") || strings.Contains(got.Error, token) {
		t.Errorf("got %q", got.Error)
	}
}
