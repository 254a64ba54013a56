package vault

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"github.com/hashicorp/vault/api"
)

// A real Vault takes the configuration, and then the right tokens and no
// others. The cluster is the two documents and the TokenReview that Vault asks for.
func TestRealVault(t *testing.T) {
	program := realVault(t)
	cluster := startCluster(t)
	server, err := Start(t.Context(), Config{Program: program, Dir: t.TempDir(), CA: newCA(t)})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := server.Stop(t.Context()); err != nil {
			t.Error(err)
		}
	}()
	err = server.Configure(t.Context(), Setup{
		Audience: "vault", Namespace: "demo", ServiceAccount: "app",
		Clusters: []Cluster{{
			ID: "c1", Issuer: cluster.url, JWKSURI: cluster.url + "/openid/v1/jwks", PublicKeys: []string{cluster.publicKey(t)}, IssuerCA: cluster.ca, Server: cluster.url, ServerCA: cluster.ca, ReviewerToken: "reviewer",
		}},
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := server.Healthy(t.Context()); err != nil {
		t.Error(err)
	}

	valid := cluster.token(t, nil)
	for _, test := range []struct {
		name, mount, role, token string
		status                   int    // of the refused login; 0 for one that is accepted
		text                     string // in the answer
		reads                    bool   // the secret
	}{
		{"jwt", JWTMount("c1"), Role, valid, 0, "", true},
		{"jwt, bare role", JWTMount("c1"), BareRole, valid, 0, "", false},
		{"jwt, audience", JWTMount("c1"), Role, cluster.token(t, map[string]any{"aud": []string{"other"}}), 400, "invalid audience (aud) claim", false},
		{"jwt, subject", JWTMount("c1"), Role, cluster.token(t, map[string]any{"sub": "system:serviceaccount:demo:other"}), 400, "invalid subject (sub) claim", false},
		{"jwt, issuer", JWTMount("c1"), Role, cluster.token(t, map[string]any{"iss": cluster.url + "/"}), 400, "invalid issuer (iss) claim", false},
		{"jwt, expired", JWTMount("c1"), Role, cluster.token(t, map[string]any{"exp": time.Now().Add(-ClockSkew - 5*time.Second).Unix()}), 400, "token is expired", false},
		{"jwt, within the skew", JWTMount("c1"), Role, cluster.token(t, map[string]any{"exp": time.Now().Add(-ClockSkew / 2).Unix()}), 0, "", true},
		{"jwt, other key", JWTMount("c1"), Role, startCluster(t).token(t, map[string]any{"iss": cluster.url}), 400, "failed to verify id token signature", false},
		{"jwt, claims", JWTMount("c1"), ClaimsRole, valid, 0, "", true},
		{"jwt, claims of another subject", JWTMount("c1"), ClaimsRole, cluster.token(t, map[string]any{"sub": "app"}), 400, `claim "sub" does not match any associated bound claim values`, false},
		{"jwt by JWKS URL", JWKSURLMount("c1"), Role, valid, 0, "", true},
		{"jwt by JWKS URL, other key", JWKSURLMount("c1"), Role, startCluster(t).token(t, map[string]any{"iss": cluster.url}), 400, "error verifying token signature", false},
		{"jwt with pinned keys", PinnedMount("c1"), Role, valid, 0, "", true},
		{"jwt with pinned keys, other key", PinnedMount("c1"), Role, startCluster(t).token(t, map[string]any{"iss": cluster.url}), 400, "error verifying token signature", false},
		{"jwt without issuer", NoIssuerMount("c1"), BareRole, cluster.token(t, map[string]any{"iss": "https://issuer.example"}), 0, "", false},
		{"jwt without issuer, other key", NoIssuerMount("c1"), BareRole, startCluster(t).token(t, nil), 400, "error verifying token signature", false},
		{"kubernetes", KubernetesMount("c1"), Role, valid, 0, "", true},
		{"kubernetes without audience", KubernetesMount("c1"), NoAudienceRole, cluster.token(t, map[string]any{"aud": []string{"other"}}), 0, "", false},
		{"kubernetes, bare role", KubernetesMount("c1"), BareRole, valid, 0, "", false},
		{"kubernetes, audience", KubernetesMount("c1"), Role, cluster.token(t, map[string]any{"aud": []string{"other"}}), 403, "invalid audience (aud) claim", false},
		{"kubernetes, not a token of the cluster", KubernetesMount("c1"), Role, startCluster(t).token(t, map[string]any{"iss": cluster.url}), 403, "permission denied", false},
	} {
		t.Run(test.name, func(t *testing.T) {
			client, err := NewClient(server.URL(), &http.Client{Transport: server.transport})
			if err != nil {
				t.Fatal(err)
			}
			login, err := client.Logical().WriteWithContext(t.Context(), "auth/"+test.mount+"/login", map[string]any{"role": test.role, "jwt": test.token})
			if test.status != 0 {
				var refused *api.ResponseError
				if !errors.As(err, &refused) || refused.StatusCode != test.status || !strings.Contains(err.Error(), test.text) {
					t.Errorf("got %v, want status %d with %q", err, test.status, test.text)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			client.SetToken(login.Auth.ClientToken)
			secret, err := client.Logical().ReadWithContext(t.Context(), SecretPath)
			var refused *api.ResponseError
			switch {
			case test.reads && err != nil:
				t.Error(err)
			case test.reads:
				if data, _ := secret.Data["data"].(map[string]any); data["message"] != greeting {
					t.Errorf("secret %v", secret.Data)
				}
			case !errors.As(err, &refused) || refused.StatusCode != http.StatusForbidden:
				t.Errorf("the secret was not denied: %v", err)
			}
		})
	}
}

// realVault returns the Vault program, and skips the test if there is none.
func realVault(t *testing.T) string {
	t.Helper()
	program, err := Find(exec.LookPath)
	if err == nil {
		return program
	}
	if os.Getenv("OIDCLAB_REQUIRE_VAULT") == "1" {
		t.Fatal(err)
	}
	t.Skipf("needs the capability \"vault program on PATH\" (OIDCLAB_REQUIRE_VAULT=1 makes this a failure): %v", err)
	return ""
}

// fakeCluster is what Vault sees of a cluster.
type fakeCluster struct {
	url string
	ca  []byte
	key jose.JSONWebKey
}

func startCluster(t *testing.T) *fakeCluster {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	cluster := &fakeCluster{key: jose.JSONWebKey{Key: private, KeyID: "k1", Algorithm: "ES256", Use: "sig"}}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /.well-known/openid-configuration", func(w http.ResponseWriter, _ *http.Request) {
		respond(w, http.StatusOK, map[string]any{
			"issuer": cluster.url, "jwks_uri": cluster.url + "/openid/v1/jwks",
			"response_types_supported": []string{"id_token"}, "subject_types_supported": []string{"public"},
			"id_token_signing_alg_values_supported": []string{"ES256"},
		})
	})
	mux.HandleFunc("GET /openid/v1/jwks", func(w http.ResponseWriter, _ *http.Request) {
		respond(w, http.StatusOK, jose.JSONWebKeySet{Keys: []jose.JSONWebKey{cluster.key.Public()}})
	})
	mux.HandleFunc("POST /apis/authentication.k8s.io/v1/tokenreviews", func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer reviewer" {
			respond(w, http.StatusUnauthorized, map[string]any{"kind": "Status", "status": "Failure", "code": 401})
			return
		}
		var review struct {
			Spec struct {
				Token     string
				Audiences []string
			}
		}
		_ = json.NewDecoder(r.Body).Decode(&review)
		status := map[string]any{"authenticated": false, "error": "invalid bearer token"}
		if token, err := jwt.ParseSigned(review.Spec.Token, []jose.SignatureAlgorithm{jose.ES256}); err == nil && token.Claims(cluster.key.Public(), &struct{}{}) == nil {
			status = map[string]any{
				"authenticated": true, "audiences": review.Spec.Audiences,
				"user": map[string]any{"username": "system:serviceaccount:demo:app", "uid": "uid-1", "groups": []string{"system:serviceaccounts"}},
			}
		}
		respond(w, http.StatusCreated, map[string]any{"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "status": status})
	})
	url, ca := serveTLS(t, mux)
	cluster.url, cluster.ca = url, ca.CertPEM()
	return cluster
}

func (c *fakeCluster) publicKey(t *testing.T) string {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(c.key.Public().Key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
}

// token returns a token of the workload, with some claims changed.
func (c *fakeCluster) token(t *testing.T, changed map[string]any) string {
	t.Helper()
	now := time.Now()
	claims := map[string]any{
		"iss": c.url, "sub": "system:serviceaccount:demo:app", "aud": []string{"vault"},
		"iat": now.Add(-10 * time.Minute).Unix(), "nbf": now.Add(-10 * time.Minute).Unix(), "exp": now.Add(10 * time.Minute).Unix(),
		"kubernetes.io": map[string]any{
			"namespace": "demo", "serviceaccount": map[string]any{"name": "app", "uid": "uid-1"},
		},
	}
	for name, value := range changed {
		claims[name] = value
	}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: c.key}, nil)
	if err != nil {
		t.Fatal(err)
	}
	token, err := jwt.Signed(signer).Claims(claims).Serialize()
	if err != nil {
		t.Fatal(err)
	}
	return token
}

func respond(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body)
}
