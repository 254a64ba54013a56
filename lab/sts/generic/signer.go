package generic

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"time"

	"github.com/go-jose/go-jose/v4"
)

const (
	signingAlgorithm = "ES256"
	accessTokenType  = "at+jwt" // typ, RFC 9068 section 2.1
)

// accessToken are the claims of an access token (RFC 9068 section 2.2), and
// two of our own.
type accessToken struct {
	Issuer   string `json:"iss"`
	Subject  string `json:"sub"` // that of the subject token
	Audience string `json:"aud"` // the target service
	ClientID string `json:"client_id"`
	ID       string `json:"jti"`
	IssuedAt int64  `json:"iat"`
	Expiry   int64  `json:"exp"`

	// SubjectIssuer tells apart subjects of the same name from two clusters.
	SubjectIssuer string `json:"subject_issuer"`
	// Journey is that of the subject token, a hash of it (see package trace),
	// so that what is done with this token can be added to that journey.
	Journey string `json:"oidclab_journey"`
}

// signer signs access tokens with one key.
type signer struct {
	issuer string
	public jose.JSONWebKey
	jose   jose.Signer
}

func newSigner(issuer string, key *ecdsa.PrivateKey) (*signer, error) {
	public := jose.JSONWebKey{Key: key.Public(), Algorithm: signingAlgorithm, Use: "sig"}
	thumbprint, err := public.Thumbprint(crypto.SHA256) // RFC 7638
	if err != nil {
		return nil, fmt.Errorf("signing key: %w", err)
	}
	public.KeyID = base64.RawURLEncoding.EncodeToString(thumbprint)
	s, err := jose.NewSigner(
		jose.SigningKey{Algorithm: signingAlgorithm, Key: jose.JSONWebKey{Key: key, KeyID: public.KeyID}},
		new(jose.SignerOptions).WithType(accessTokenType))
	if err != nil {
		return nil, fmt.Errorf("signing key: %w", err)
	}
	return &signer{issuer: issuer, public: public, jose: s}, nil
}

func (s *signer) keySet() jose.JSONWebKeySet {
	return jose.JSONWebKeySet{Keys: []jose.JSONWebKey{s.public}}
}

// sign fills in what is the same for all parties, and returns the compact token.
func (s *signer) sign(token accessToken, now, expiry time.Time) (string, error) {
	token.Issuer = s.issuer
	token.ClientID = token.Subject
	token.ID = rand.Text()
	token.IssuedAt, token.Expiry = now.Unix(), expiry.Unix()
	payload, err := json.Marshal(token)
	if err != nil {
		return "", err
	}
	signed, err := s.jose.Sign(payload)
	if err != nil {
		return "", err
	}
	return signed.CompactSerialize()
}
