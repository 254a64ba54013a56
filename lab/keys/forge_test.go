package keys_test

import (
	"crypto/hmac"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/oidclab/oidclab/lab/clock"
	"github.com/oidclab/oidclab/lab/keys"
)

func decodeHeader(t *testing.T, token string) map[string]any {
	t.Helper()
	raw, err := base64.RawURLEncoding.Strict().DecodeString(strings.Split(token, ".")[0])
	if err != nil {
		t.Fatal(err)
	}
	var header map[string]any
	if err := json.Unmarshal(raw, &header); err != nil {
		t.Fatal(err)
	}
	return header
}

// verifies says whether a token is signed, in one of the algorithms, by a key.
func verifies(token string, key any, algorithms ...jose.SignatureAlgorithm) bool {
	object, err := jose.ParseSignedCompact(token, algorithms)
	if err != nil {
		return false
	}
	_, err = object.Verify(key)
	return err == nil
}

func rsaSet(t *testing.T) *keys.Set {
	t.Helper()
	set, err := keys.New(clock.System{}, keys.RS256)
	if err != nil {
		t.Fatal(err)
	}
	return set
}

func forge(t *testing.T, set *keys.Set, f keys.Forgery) string {
	t.Helper()
	token, err := set.Forge(f)
	if err != nil {
		t.Fatal(err)
	}
	return token
}

func TestForgeIsTrulySigned(t *testing.T) {
	set := rsaSet(t)
	token := forge(t, set, keys.Forgery{Claims: map[string]any{"exp": 1}})
	if !verifies(token, set.Current().Public, jose.RS256) {
		t.Error("a forgery without changes does not verify with the signing key")
	}
	if !set.Current().LastExpiry.IsZero() {
		t.Error("a forgery counts as a signed token")
	}
}

func TestForgeWithEachKeyOfTheSet(t *testing.T) {
	set := rsaSet(t)
	old := set.Current()
	next, err := set.Publish()
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range []keys.Key{old, next} {
		token := forge(t, set, keys.Forgery{KeyID: key.ID})
		if !verifies(token, key.Public, jose.RS256) || decodeHeader(t, token)["kid"] != key.ID {
			t.Errorf("a %s key did not sign under its id", key.State)
		}
	}
	if _, err := set.Remove(next.ID); err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{next.ID, "none"} {
		if _, err := set.Forge(keys.Forgery{KeyID: id}); err == nil {
			t.Errorf("forged with key %s, which is not there", id)
		}
	}
}

func TestForgeAlgorithms(t *testing.T) {
	set := rsaSet(t)
	public := set.Current().Public.(*rsa.PublicKey)
	for _, algorithm := range []jose.SignatureAlgorithm{jose.RS256, jose.RS384, jose.RS512, jose.PS256, jose.PS384, jose.PS512} {
		token := forge(t, set, keys.Forgery{Algorithm: string(algorithm)})
		if !verifies(token, public, algorithm) {
			t.Errorf("%s does not verify", algorithm)
		}
	}
	elliptic, err := keys.Generate(keys.ES256)
	if err != nil {
		t.Fatal(err)
	}
	if token := forge(t, set, keys.Forgery{Key: elliptic}); !verifies(token, elliptic.Public(), jose.ES256) {
		t.Error("ES256 by a foreign key does not verify")
	}
	for _, bad := range []string{"ES256", "XX256", "RS", "RS1", "RS257", "EdDSA"} {
		if _, err := set.Forge(keys.Forgery{Algorithm: bad}); err == nil {
			t.Errorf("an RSA key signed with %q", bad)
		}
	}
}

func TestForgeNone(t *testing.T) {
	token := forge(t, rsaSet(t), keys.Forgery{Algorithm: "none", Claims: map[string]any{"sub": "x"}})
	if !strings.HasSuffix(token, ".") || strings.Count(token, ".") != 2 {
		t.Errorf("got %s, want an empty third part (RFC 7519 section 6.1)", token)
	}
	if got := decodeHeader(t, token)["alg"]; got != "none" {
		t.Errorf("got alg %v, want none", got)
	}
}

func TestForgeHMACWithThePublicKey(t *testing.T) {
	set := rsaSet(t)
	token := forge(t, set, keys.Forgery{Algorithm: "HS256"})
	der, err := x509.MarshalPKIXPublicKey(set.Current().Public)
	if err != nil {
		t.Fatal(err)
	}
	mac := hmac.New(sha256.New, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
	cut := strings.LastIndex(token, ".")
	mac.Write([]byte(token[:cut]))
	if got, want := token[cut+1:], base64.RawURLEncoding.EncodeToString(mac.Sum(nil)); got != want {
		t.Errorf("got %s, want the HMAC under the PEM of the public key", got)
	}
}

func TestForgeWithAForeignKey(t *testing.T) {
	set := rsaSet(t)
	foreign, err := keys.Generate(keys.RS256)
	if err != nil {
		t.Fatal(err)
	}
	jwk, err := keys.JWK(foreign.Public())
	if err != nil {
		t.Fatal(err)
	}
	token := forge(t, set, keys.Forgery{Key: foreign, Header: map[string]any{"jwk": jwk, "jku": "https://evil.invalid/keys"}})
	if verifies(token, set.Current().Public, jose.RS256) {
		t.Error("verifies with the key of the set")
	}
	if !verifies(token, foreign.Public(), jose.RS256) {
		t.Error("does not verify with the foreign key")
	}
	header := decodeHeader(t, token)
	if header["kid"] != set.Current().ID || header["jku"] != "https://evil.invalid/keys" {
		t.Errorf("got header %v, want the true kid and the jku", header)
	}
	embedded, ok := header["jwk"].(map[string]any)
	if !ok || embedded["kid"] != jwk.KeyID || embedded["d"] != nil {
		t.Errorf("got jwk %v, want the foreign public key", header["jwk"])
	}
}

func TestForgeHeader(t *testing.T) {
	set := rsaSet(t)
	token := forge(t, set, keys.Forgery{Header: map[string]any{"kid": nil, "alg": "ES256"}})
	header := decodeHeader(t, token)
	if _, has := header["kid"]; has || header["alg"] != "ES256" || header["typ"] != "JWT" {
		t.Errorf("got header %v, want no kid, alg ES256 and typ JWT", header)
	}
}

func TestForgeRawPayload(t *testing.T) {
	token := forge(t, rsaSet(t), keys.Forgery{Claims: json.RawMessage(`{"aud":"a","aud":"b"`)})
	payload, err := base64.RawURLEncoding.DecodeString(strings.Split(token, ".")[1])
	if err != nil || string(payload) != `{"aud":"a","aud":"b"` {
		t.Errorf("got payload %s (%v), want the bytes as they were", payload, err)
	}
}

func TestAlter(t *testing.T) {
	set := rsaSet(t)
	const exp = 1<<53 + 1 // a float64 would lose it
	signed, err := set.Sign([]byte(`{"exp":9007199254740993,"sub":"a"}`))
	if err != nil {
		t.Fatal(err)
	}
	good := signed.Token()
	if !verifies(good, set.Current().Public, jose.RS256) {
		t.Fatal("control does not verify")
	}

	altered, err := keys.AlterPayload(good, func(claims map[string]any) { claims["sub"] = "b" })
	if err != nil {
		t.Fatal(err)
	}
	if verifies(altered, set.Current().Public, jose.RS256) {
		t.Error("an altered payload verifies")
	}
	claims, err := keys.Claims(altered)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := claims["exp"].(json.Number).Int64(); claims["sub"] != "b" || got != exp || err != nil {
		t.Errorf("got claims %v, want sub b and the same exp", claims)
	}

	flipped, err := keys.AlterSignature(good)
	if err != nil {
		t.Fatal(err)
	}
	if verifies(flipped, set.Current().Public, jose.RS256) {
		t.Error("an altered signature verifies")
	}
	if good[:strings.LastIndex(good, ".")] != flipped[:strings.LastIndex(flipped, ".")] || good == flipped {
		t.Error("AlterSignature changed something other than the signature")
	}

	for _, bad := range []string{"", "a.b", "a.!.c", "a.bm8.c", "a.bm8."} {
		if _, err := keys.AlterPayload(bad, func(map[string]any) {}); err == nil {
			t.Errorf("altered the payload of %q", bad)
		}
	}
	for _, bad := range []string{"", "a.b.", "a.b.!"} {
		if _, err := keys.AlterSignature(bad); err == nil {
			t.Errorf("altered the signature of %q", bad)
		}
	}
}

// TestExpiredTokenNeedsNoWaiting is what forging is for.
func TestExpiredTokenNeedsNoWaiting(t *testing.T) {
	set := rsaSet(t)
	signed, err := set.Sign([]byte(`{"exp":4000000000,"sub":"a"}`))
	if err != nil {
		t.Fatal(err)
	}
	claims, err := keys.Claims(signed.Token())
	if err != nil {
		t.Fatal(err)
	}
	claims["exp"] = time.Now().Add(-time.Hour).Unix()
	if token := forge(t, set, keys.Forgery{Claims: claims}); !verifies(token, set.Current().Public, jose.RS256) {
		t.Error("the expired token is not signed by the true key")
	}
}
