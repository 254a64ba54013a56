package sts

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"maps"
	"math/big"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestKeyIsNotUsed publishes a key with a defect beside a good one: the key is
// set aside, the set is still used.
func TestKeyIsNotUsed(t *testing.T) {
	number := func(n *big.Int) string { return base64.RawURLEncoding.EncodeToString(n.Bytes()) }
	modulus := rsaKey().private.Public().(*rsa.PublicKey).N
	with := func(name string, value any) map[string]any {
		jwk := rsaKey().jwk()
		jwk[name] = value
		return jwk
	}
	ec := func(name string, value any) map[string]any {
		jwk := ecKey().withKid("rsa-1").jwk()
		jwk[name] = value
		return jwk
	}
	small := new(big.Int).Sub(new(big.Int).Lsh(big.NewInt(1), 2047), big.NewInt(1))
	large := new(big.Int).Add(new(big.Int).Lsh(big.NewInt(1), 8192), big.NewInt(1))
	private := map[string]any{}
	for _, member := range []string{"d", "p", "q", "dp", "dq", "qi", "oth", "k", "priv"} {
		private[member] = "AQAB"
	}
	type defect struct {
		jwk  map[string]any
		says string
	}
	defects := map[string]defect{
		"no kty":                {without(rsaKey().jwk(), "kty"), "key type"},
		"unknown kty":           {with("kty", "XYZ"), "key type"},
		"kty in small letters":  {with("kty", "rsa"), "key type"},
		"symmetric":             {map[string]any{"kty": "oct", "kid": "rsa-1", "k": "c2VjcmV0"}, "private"},
		"use enc":               {with("use", "enc"), "use"},
		"use SIG":               {with("use", "SIG"), "use"},
		"use null":              {with("use", nil), "use"},
		"key_ops sign":          {with("key_ops", []any{"sign"}), "key_ops"},
		"key_ops empty":         {with("key_ops", []any{}), "key_ops"},
		"key_ops a text":        {with("key_ops", "verify"), "key_ops"},
		"alg of another family": {with("alg", "ES256"), "RSA"},
		"alg unknown":           {with("alg", "RS257"), "RSA"},
		"alg for encryption":    {with("alg", "RSA-OAEP"), "RSA"},
		"alg null":              {with("alg", nil), "alg"},
		"alg empty":             {with("alg", ""), "alg"},
		"RSA of 2047 bits":      {with("n", number(small)), "2047 bits"},
		"RSA of 8193 bits":      {with("n", number(large)), "too large"},
		"RSA of 16384 bits":     {with("n", number(new(big.Int).Lsh(large, 8191))), "too large"},
		"even modulus":          {with("n", number(new(big.Int).Add(modulus, big.NewInt(1)))), "even"},
		"exponent 1":            {with("e", "AQ"), "e value"},
		"exponent 2":            {with("e", "Ag"), "exponent 2"},
		"exponent 65536":        {with("e", "AQAA"), "exponent 65536"},
		"exponent 2^32+1":       {with("e", number(new(big.Int).Add(new(big.Int).Lsh(big.NewInt(1), 32), big.NewInt(1)))), "exponent"},
		"exponent 2^64+1":       {with("e", number(new(big.Int).Add(new(big.Int).Lsh(big.NewInt(1), 64), big.NewInt(1)))), "e value"},
		"no modulus":            {without(rsaKey().jwk(), "n"), "missing"},
		"x5c of nothing":        {with("x5c", []any{"AAAA"}), "x5c"},
		"ROCA":                  {with("n", number(rocaModulus())), "ROCA"},
		"point off the curve":   {ec("x", strings.Repeat("A", 43)), "curve"},
		"unknown curve":         {ec("crv", "secp256k1"), "secp256k1"},
		"curve of another size": {ec("crv", "P-384"), "length"},
		"short coordinate":      {ec("y", "AQAB"), "length"},
		"EC alg of another curve": {func() map[string]any {
			return ec("alg", "ES384")
		}(), "curve"},
	}
	for member, value := range private {
		defects["private member "+member] = defect{with(member, value), "private"}
	}
	for name, tt := range defects {
		t.Run(name, func(t *testing.T) {
			b := newParty(t, Strict())
			b.issuer.serveKeys(keySetOf(tt.jwk, ecKey().jwk()))
			r := b.refuses(name, CheckKeys, KeyUnknown, nil)
			if r.Err == nil || !strings.Contains(r.Err.Error(), tt.says) {
				t.Errorf("error %v, want one that says %q", r.Err, tt.says)
			}
			b.accepts("the other key", func(f *forged) { f.key, f.header = ecKey(), map[string]any{"alg": "ES256", "kid": "ec-1"} })
			b.issuer.serveKeys(keySetOf(rsaKey().jwk()))
			b.clock.Advance(30 * time.Second)
			b.accepts("control", nil)
		})
	}
}

// rocaModulus returns a product of two numbers (not prime, which the
// fingerprint does not ask) of the form k·M + (65537^a mod M).
func rocaModulus() *big.Int {
	m := big.NewInt(1)
	for p := int64(2); p <= 701; p++ { // the 126 primes of a 2048-bit key
		if big.NewInt(p).ProbablyPrime(0) {
			m.Mul(m, big.NewInt(p))
		}
	}
	factor := func(a, k int64) *big.Int {
		f := new(big.Int).Exp(big.NewInt(65537), big.NewInt(a), m)
		return f.Add(f, new(big.Int).Mul(m, new(big.Int).Add(new(big.Int).Lsh(big.NewInt(1), 1023-uint(m.BitLen())+1), big.NewInt(k))))
	}
	return new(big.Int).Mul(factor(1234, 5), factor(9876, 7))
}

func TestROCAFingerprint(t *testing.T) {
	if !weakROCA(rocaModulus()) {
		t.Error("a weak modulus passes")
	}
	for range 1000 {
		n, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 2048))
		if err != nil {
			t.Fatal(err)
		}
		if weakROCA(n.SetBit(n, 0, 1)) {
			t.Errorf("%x is called weak", n)
		}
	}
}

// TestKeysWithTheSameKid: strict uses none, AWS the last.
func TestKeysWithTheSameKid(t *testing.T) {
	twice := keySetOf(otherRSA().withKid("rsa-1").jwk(), rsaKey().jwk(), ecKey().jwk())
	strict, aws := newParty(t, Strict()), newParty(t, AWS())
	strict.issuer.serveKeys(twice)
	aws.issuer.serveKeys(twice)
	first := func(f *forged) { f.key = otherRSA().withKid("rsa-1") }
	strict.refuses("strict, the last", CheckKeys, KeyUnknown, nil)
	strict.refuses("strict, the first", CheckKeys, KeyUnknown, first)
	strict.accepts("strict, another kid", func(f *forged) { f.key, f.header = ecKey(), map[string]any{"alg": "ES256", "kid": "ec-1"} })
	aws.accepts("aws, the last", nil)
	aws.refuses("aws, the first", CheckSignature, SignatureInvalid, first)

	// The last one counts even if it cannot be used.
	aws.issuer.serveKeys(keySetOf(rsaKey().jwk(), map[string]any{"kty": "XYZ", "kid": "rsa-1"}))
	aws.clock.Advance(10 * time.Minute)
	aws.refuses("aws, the last unusable", CheckKeys, KeyUnknown, longLived)
	// Three of them are not better than two.
	strict.issuer.serveKeys(keySetOf(rsaKey().jwk(), rsaKey().jwk(), rsaKey().jwk()))
	strict.clock.Advance(time.Minute)
	strict.refuses("strict, three times", CheckKeys, KeyUnknown, nil)
}

// TestKeyServesItsAlgorithmOnly crosses all algorithms with all kinds of keys.
func TestKeyServesItsAlgorithmOnly(t *testing.T) {
	all := Strict()
	all.Algorithms = []string{"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"}
	rs := rsaKey()
	keys := []signingKey{ecKey(), newEC("ec-384", "ES384", elliptic.P384()), newEC("ec-521", "ES512", elliptic.P521())}
	for _, alg := range all.Algorithms[:6] {
		keys = append(keys, signingKey{"rsa-" + alg, alg, rs.private})
	}
	b := newParty(t, all)
	b.issuer.publish(keys...)
	for _, key := range keys {
		for _, alg := range all.Algorithms {
			change := func(f *forged) { f.key, f.header = key, map[string]any{"alg": alg, "kid": key.kid} }
			if alg == key.alg {
				b.accepts(key.kid, change)
			} else {
				b.refuses(key.kid+" as "+alg, CheckKeys, KeyUnknown, change)
			}
		}
	}
	// A JWK without alg serves its type's algorithms, each with its own padding.
	jwk := rs.jwk()
	delete(jwk, "alg")
	b.issuer.serveKeys(keySetOf(jwk))
	b.clock.Advance(time.Minute)
	for _, signed := range all.Algorithms[:6] {
		for _, said := range all.Algorithms[:6] {
			change := func(f *forged) {
				f.key, f.header = signingKey{"rsa-1", signed, rs.private}, map[string]any{"alg": said, "kid": "rsa-1"}
			}
			if signed == said {
				b.accepts(signed, change)
			} else {
				b.refuses(signed+" said to be "+said, CheckSignature, SignatureInvalid, change)
			}
		}
	}
}

// TestPSSSaltIsAsLongAsTheHash, RFC 7518 section 3.5.
func TestPSSSaltIsAsLongAsTheHash(t *testing.T) {
	private := rsaKey().private.(*rsa.PrivateKey)
	key := publicKey{kid: "rsa-1", key: private.Public()}
	a, _ := algorithmNamed("PS256")
	digest := a.hash.New().Sum(nil)
	for salt, want := range map[int]bool{32: true, 0: false, 20: false, 31: false, 33: false, 222: false} {
		options := &rsa.PSSOptions{SaltLength: salt, Hash: a.hash}
		if salt == 0 {
			continue // stands for "as long as possible", which is 222
		}
		signature, err := rsa.SignPSS(rand.Reader, private, a.hash, digest, options)
		if err != nil {
			t.Fatal(err)
		}
		if got := key.verify("PS256", nil, signature); got != want {
			t.Errorf("salt of %d bytes: %v, want %v", salt, got, want)
		}
	}
}

func TestECDSASignatureHasOneForm(t *testing.T) {
	private := ecKey().private.(*ecdsa.PrivateKey)
	key := publicKey{kid: "ec-1", key: private.Public()}
	a, _ := algorithmNamed("ES256")
	digest := a.hash.New().Sum(nil)
	r, s, err := ecdsa.Sign(rand.Reader, private, digest)
	if err != nil {
		t.Fatal(err)
	}
	raw := append(r.FillBytes(make([]byte, 32)), s.FillBytes(make([]byte, 32))...)
	asn1, err := ecdsa.SignASN1(rand.Reader, private, digest)
	if err != nil {
		t.Fatal(err)
	}
	order := private.Curve.Params().N
	for name, tt := range map[string]struct {
		signature []byte
		want      bool
	}{
		"r and s":         {raw, true},
		"ASN.1":           {asn1, false},
		"a zero before s": {slices.Concat(raw[:32], []byte{0}, raw[32:]), false},
		"a byte more":     {append(slices.Clone(raw), 0), false},
		"a byte less":     {raw[:63], false},
		"empty":           {nil, false},
		"zeros":           {make([]byte, 64), false},
		"r + order":       {append(new(big.Int).Add(r, order).Bytes(), raw[32:]...), false},
		"r is order":      {append(order.Bytes(), raw[32:]...), false},
		"s is zero":       {append(slices.Clone(raw[:32]), make([]byte, 32)...), false},
		"s and r":         {append(slices.Clone(raw[32:]), raw[:32]...), false},
		"r and r":         {append(slices.Clone(raw[:32]), raw[:32]...), false},
	} {
		if got := key.verify("ES256", nil, tt.signature); got != tt.want {
			t.Errorf("%s: %v, want %v", name, got, tt.want)
		}
	}
}

func TestMembersOfAKeyAreCaseSensitive(t *testing.T) {
	b := newParty(t, Strict())
	jwk := rsaKey().jwk()
	upper := maps.Clone(jwk)
	delete(upper, "kid")
	upper["KID"] = "rsa-1"
	b.issuer.serveKeys(keySetOf(upper))
	b.refuses("KID", CheckKeys, KeyUnknown, nil)
	b.issuer.serveKeys(keySetOf(jwk))
	b.clock.Advance(30 * time.Second)
	b.accepts("control", nil)
}
