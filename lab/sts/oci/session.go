package oci

import (
	"crypto"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/google/uuid"

	"github.com/oidclab/oidclab/lab/sts"
	"github.com/oidclab/oidclab/lab/sts/internal/tokenservice"
)

const (
	sessionAudience = "oci"

	// securityTokenPrefix of a key id says that a session token follows
	// (oci-go-sdk, common/auth, SecurityToken).
	securityTokenPrefix = "ST$"

	keySetPath = "/admin/v1/SigningCert/jwk"

	// The sizes of keys in bits that session tokens are bound to: the SDK makes
	// one of 3072 for the token exchange, and one of 2048 for OKE.
	minKeyBits = 2048
	maxKeyBits = 4096
)

// sessionToken are the claims of a session token. The vendor's SDK reads exp,
// iat, tenant and sub, and of workloads res_tenant and res_compartment.
type sessionToken struct {
	Issuer    string `json:"iss"`
	Subject   string `json:"sub"` // OCID of the user or the workload
	Audience  string `json:"aud"`
	ID        string `json:"jti"`
	IssuedAt  int64  `json:"iat"`
	Expiry    int64  `json:"exp"`
	Principal string `json:"ptype"` // user or resource
	Tenant    string `json:"tenant"`
	Key       string `json:"jwk"` // the public key of requests: a JWK (RFC 7517) as a string
	Journey   string `json:"oidclab_journey"`

	workloadClaims
}

// workloadClaims are those of a workload, named as in policies
// (request.principal.namespace and so on).
type workloadClaims struct {
	ResourceType        string `json:"res_type,omitempty"`
	ResourceTenant      string `json:"res_tenant,omitempty"`
	ResourceCompartment string `json:"res_compartment,omitempty"`
	Cluster             string `json:"cluster_id,omitempty"`
	Namespace           string `json:"namespace,omitempty"`
	ServiceAccount      string `json:"service_account,omitempty"`
}

// grant signs a session token that is bound to a key, for the workload whose
// token was accepted.
func (h *Handler) grant(verdict sts.Verdict, key *rsa.PublicKey, subject, principal string, workload workloadClaims) (string, error) {
	jwk, err := marshalKey(key)
	if err != nil {
		return "", err
	}
	now := h.service.Clock.Now().Truncate(time.Second)
	return h.service.Sign(sessionToken{
		Issuer: h.service.URL, Subject: subject, Audience: sessionAudience, ID: uuid.NewString(),
		IssuedAt: now.Unix(), Expiry: now.Add(h.service.Lifetime).Unix(),
		Principal: principal, Tenant: h.tenancy, Key: jwk, Journey: verdict.Journey,
		workloadClaims: workload,
	})
}

func marshalKey(key *rsa.PublicKey) (string, error) {
	jwk := jose.JSONWebKey{Key: key, Algorithm: "RS256", Use: "sig"}
	thumbprint, err := jwk.Thumbprint(crypto.SHA256)
	if err != nil {
		return "", err
	}
	jwk.KeyID = base64.RawURLEncoding.EncodeToString(thumbprint)
	text, err := jwk.MarshalJSON()
	return string(text), err
}

// sessionKey returns the key that an accepted session token is bound to.
func sessionKey(claims *sts.Claims) (*rsa.PublicKey, error) {
	text, _ := claims.Raw["jwk"].(string)
	var jwk jose.JSONWebKey
	if err := json.Unmarshal([]byte(text), &jwk); err != nil {
		return nil, err
	}
	key, ok := jwk.Key.(*rsa.PublicKey)
	if !ok {
		return nil, errors.New("the session token is bound to no RSA key")
	}
	return key, checkKey(key)
}

// checkKey wants an RSA key that signatures can be trusted to.
func checkKey(key any) error {
	public, ok := key.(*rsa.PublicKey)
	if !ok {
		return errors.New("the public key is not an RSA key")
	}
	if bits := public.N.BitLen(); bits < minKeyBits || bits > maxKeyBits {
		return fmt.Errorf("the public key has %d bits, not %d to %d", bits, minKeyBits, maxKeyBits)
	}
	return nil
}

// serveConfiguration answers with the identity domain's metadata (OpenID
// Connect Discovery 1.0 section 3), by which session tokens can be verified.
func (h *Handler) serveConfiguration(w http.ResponseWriter, _ *http.Request) {
	tokenservice.WriteJSON(w, http.StatusOK, map[string]any{
		"issuer":                                h.service.URL,
		"token_endpoint":                        h.service.URL + "/oauth2/v1/token",
		"jwks_uri":                              h.service.URL + keySetPath,
		"grant_types_supported":                 []string{grantType},
		"token_endpoint_auth_methods_supported": []string{"client_secret_basic"},
		"response_types_supported":              []string{}, // there is no authorization endpoint
		"subject_types_supported":               []string{"public"},
		"id_token_signing_alg_values_supported": []string{tokenservice.Algorithm},
	})
}

func (h *Handler) serveKeys(w http.ResponseWriter, _ *http.Request) {
	tokenservice.WriteJSON(w, http.StatusOK, h.service.KeySet())
}
