package exchange_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"net/http"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"

	"github.com/oidclab/oidclab/lab/clock"
	"github.com/oidclab/oidclab/lab/pki"
)

const subject = "system:serviceaccount:demo:app"

// lab is what the lab's own token services need around them.
type lab struct {
	ca     *pki.CA
	client *http.Client
	clock  *clock.Lab
	issuer string // serves its documents
	key    jose.JSONWebKey
}

func startLab(t *testing.T) *lab {
	t.Helper()
	ca, err := pki.New("oidclab test")
	if err != nil {
		t.Fatal(err)
	}
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	l := &lab{
		ca: ca, client: newClient(t, ca), clock: clock.New(nil),
		key: jose.JSONWebKey{Key: private, KeyID: "k1", Algorithm: "ES256", Use: "sig"},
	}
	documents := http.NewServeMux()
	documents.HandleFunc("GET /.well-known/openid-configuration", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, 200, "application/json", marshal(t, map[string]any{
			"issuer": l.issuer, "jwks_uri": l.issuer + "/openid/v1/jwks",
			"response_types_supported": []string{"id_token"}, "subject_types_supported": []string{"public"},
			"id_token_signing_alg_values_supported": []string{"ES256"},
		}))
	})
	documents.HandleFunc("GET /openid/v1/jwks", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, 200, "application/jwk-set+json", marshal(t, jose.JSONWebKeySet{Keys: []jose.JSONWebKey{l.key.Public()}}))
	})
	l.issuer = serveUnder(t, ca, documents)
	return l
}

// token returns a token of the workload that was just issued, in lab time.
func (l *lab) token(t *testing.T, audience string) string {
	t.Helper()
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: l.key}, nil)
	if err != nil {
		t.Fatal(err)
	}
	now := l.clock.Now()
	token, err := jwt.Signed(signer).Claims(jwt.Claims{
		Issuer: l.issuer, Subject: subject, Audience: jwt.Audience{audience},
		IssuedAt: jwt.NewNumericDate(now), NotBefore: jwt.NewNumericDate(now), Expiry: jwt.NewNumericDate(now.Add(10 * time.Minute)),
	}).Serialize()
	if err != nil {
		t.Fatal(err)
	}
	return token
}
