package lab

import (
	"context"
	"crypto"
	"maps"
	"time"

	"github.com/google/uuid"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/oidclab/oidclab/lab/keys"
	"github.com/oidclab/oidclab/lab/problem"
)

// forgedLife is the life of a forged token unless its claims say otherwise.
const forgedLife = 10 * time.Minute

// ForgeRequest asks for a token like that of MintRequest, but for the given
// changes: signed with the cluster's own key, it is what the API server never
// would issue. Times are lab time.
type ForgeRequest struct {
	MintRequest
	Issuer         string         `json:"issuer,omitempty"`               // instead of the cluster's
	ExpiresIn      *time.Duration `json:"expiresInNanoseconds,omitempty"` // from now; negative for an expired token
	ValidIn        *time.Duration `json:"validInNanoseconds,omitempty"`   // nbf, from now
	IssuedIn       *time.Duration `json:"issuedInNanoseconds,omitempty"`  // iat, from now
	Claims         map[string]any `json:"claims,omitempty"`               // laid over; null takes a claim out
	Header         map[string]any `json:"header,omitempty"`               // laid over; null takes a member out
	Algorithm      string         `json:"algorithm,omitempty"`            // RS256 ..., HS256 (with the public key as secret), none
	KeyID          string         `json:"keyId,omitempty"`                // the key of the cluster that signs; empty means the signing key
	ForeignKey     bool           `json:"foreignKey,omitempty"`           // sign with a key that nobody knows, under the true kid
	EmbedForeign   bool           `json:"embedForeignKey,omitempty"`      // ForeignKey, with that key as jwk in the header
	AlterPayload   map[string]any `json:"alterPayload,omitempty"`         // claims changed after signing
	AlterSignature bool           `json:"alterSignature,omitempty"`       // one bit of the signature is changed
}

// Forge returns a token that only looks like one of the cluster.
func (l *Lab) Forge(ctx context.Context, r ForgeRequest) (string, error) {
	m, err := l.member(r.Cluster)
	if err != nil {
		return "", err
	}
	token, err := l.forge(ctx, m, r)
	if err != nil {
		return "", problem.New(problem.Usage, "oidclab token forge --help", "%w", err)
	}
	return token, nil
}

func (l *Lab) forge(ctx context.Context, m *member, r ForgeRequest) (string, error) {
	f := keys.Forgery{
		Claims: l.forgedClaims(ctx, m, r), KeyID: r.KeyID, Algorithm: r.Algorithm, Header: maps.Clone(r.Header),
	}
	if r.ForeignKey || r.EmbedForeign {
		foreign, err := keys.Generate(keys.RS256)
		if err != nil {
			return "", err
		}
		f.Key = foreign
		if r.EmbedForeign {
			if f.Header, err = withJWK(f.Header, foreign.Public()); err != nil {
				return "", err
			}
		}
	}
	token, err := m.keys.Forge(f)
	if err != nil {
		return "", err
	}
	if len(r.AlterPayload) > 0 {
		if token, err = keys.AlterPayload(token, func(claims map[string]any) { overlay(claims, r.AlterPayload) }); err != nil {
			return "", err
		}
	}
	if r.AlterSignature {
		return keys.AlterSignature(token)
	}
	return token, nil
}

// forgedClaims are those of the API server, changed as r says.
func (l *Lab) forgedClaims(ctx context.Context, m *member, r ForgeRequest) map[string]any {
	mint := r.MintRequest.defaulted()
	now := l.Clock.Now()
	account := map[string]any{"name": mint.ServiceAccount}
	if found, err := m.cluster.API().Kubernetes().CoreV1().ServiceAccounts(mint.Namespace).Get(ctx, mint.ServiceAccount, metav1.GetOptions{}); err == nil {
		account["uid"] = string(found.UID)
	} else if apierrors.IsNotFound(err) {
		account["uid"] = uuid.NewString() // nobody there: one more thing the API server would not do
	}
	life := forgedLife
	if mint.Expiration > 0 {
		life = mint.Expiration
	}
	claims := map[string]any{
		"iss": m.issuer, "sub": "system:serviceaccount:" + mint.Namespace + ":" + mint.ServiceAccount, "aud": mint.Audiences, "jti": uuid.NewString(),
		"iat": now.Unix(), "nbf": now.Unix(), "exp": now.Add(life).Unix(),
		"kubernetes.io": map[string]any{"namespace": mint.Namespace, "serviceaccount": account},
	}
	if r.Issuer != "" {
		claims["iss"] = r.Issuer
	}
	for name, offset := range map[string]*time.Duration{"exp": r.ExpiresIn, "nbf": r.ValidIn, "iat": r.IssuedIn} {
		if offset != nil {
			claims[name] = now.Add(*offset).Unix()
		}
	}
	if r.ExpiresIn != nil && *r.ExpiresIn <= 0 && r.IssuedIn == nil && r.ValidIn == nil { // expired, and otherwise in order
		claims["iat"] = now.Add(*r.ExpiresIn - life).Unix()
		claims["nbf"] = claims["iat"]
	}
	overlay(claims, r.Claims)
	return claims
}

func overlay(claims, changes map[string]any) {
	for name, value := range changes {
		if value == nil {
			delete(claims, name)
		} else {
			claims[name] = value
		}
	}
}

func withJWK(header map[string]any, public crypto.PublicKey) (map[string]any, error) {
	jwk, err := keys.JWK(public)
	if err != nil {
		return nil, err
	}
	if header == nil {
		header = map[string]any{}
	}
	header["jwk"] = jwk
	return header, nil
}
