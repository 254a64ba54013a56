package sts

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	_ "crypto/sha256" // for crypto.SHA256
	_ "crypto/sha512" // for crypto.SHA384 and crypto.SHA512
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"slices"

	"github.com/go-jose/go-jose/v4"
)

const (
	maxKidBytes = 256
	minRSABits  = 2048 // RFC 7518 section 3.3
	maxRSABits  = 8192 // verification time grows with the square
)

// algorithm binds a JWS alg value to one kind of key, RFC 7518 section 3.1.
type algorithm struct {
	kty   string
	curve elliptic.Curve // EC only
	hash  crypto.Hash    // zero for EdDSA, which hashes itself
	pss   bool           // RSA only
}

// algorithmNamed knows the asymmetric algorithms. "none" and HS* are not among
// them, so no profile can allow those.
func algorithmNamed(alg string) (algorithm, bool) {
	switch alg {
	case "RS256":
		return algorithm{kty: "RSA", hash: crypto.SHA256}, true
	case "RS384":
		return algorithm{kty: "RSA", hash: crypto.SHA384}, true
	case "RS512":
		return algorithm{kty: "RSA", hash: crypto.SHA512}, true
	case "PS256":
		return algorithm{kty: "RSA", hash: crypto.SHA256, pss: true}, true
	case "PS384":
		return algorithm{kty: "RSA", hash: crypto.SHA384, pss: true}, true
	case "PS512":
		return algorithm{kty: "RSA", hash: crypto.SHA512, pss: true}, true
	case "ES256":
		return algorithm{kty: "EC", curve: elliptic.P256(), hash: crypto.SHA256}, true
	case "ES384":
		return algorithm{kty: "EC", curve: elliptic.P384(), hash: crypto.SHA384}, true
	case "ES512":
		return algorithm{kty: "EC", curve: elliptic.P521(), hash: crypto.SHA512}, true
	case "EdDSA": // RFC 8037
		return algorithm{kty: "OKP"}, true
	}
	return algorithm{}, false
}

// publicKey is one usable key of an issuer.
type publicKey struct {
	kid string
	alg string // the only algorithm the key is for; "" if its JWK names none
	key any    // *rsa.PublicKey, *ecdsa.PublicKey or ed25519.PublicKey
}

// fits says why the key is not for alg, or nil.
func (k publicKey) fits(alg string) error {
	if k.alg != "" && k.alg != alg {
		return fmt.Errorf("the key is for %s", shown(k.alg))
	}
	a, _ := algorithmNamed(alg)
	switch key := k.key.(type) {
	case *rsa.PublicKey:
		if a.kty != "RSA" {
			return errors.New("the key is an RSA key")
		}
	case *ecdsa.PublicKey:
		if a.kty != "EC" || a.curve != key.Curve {
			return fmt.Errorf("the key is on curve %s", key.Curve.Params().Name)
		}
	case ed25519.PublicKey:
		if a.kty != "OKP" {
			return errors.New("the key is an Ed25519 key")
		}
	default:
		return errors.New("the key is of no supported type")
	}
	return nil
}

// verify reports whether signature is the key's, under alg, of the signing input.
func (k publicKey) verify(alg string, input, signature []byte) bool {
	a, ok := algorithmNamed(alg)
	if !ok || k.fits(alg) != nil {
		return false
	}
	digest := input
	if a.hash != 0 {
		h := a.hash.New()
		h.Write(input)
		digest = h.Sum(nil)
	}
	switch key := k.key.(type) {
	case *rsa.PublicKey:
		if a.pss {
			// RFC 7518 section 3.5: the salt is as long as the hash.
			return rsa.VerifyPSS(key, a.hash, digest, signature, &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash}) == nil
		}
		return rsa.VerifyPKCS1v15(key, a.hash, digest, signature) == nil
	case *ecdsa.PublicKey:
		// RFC 7518 section 3.4: r and s, each as long as the curve's order.
		size := (a.curve.Params().BitSize + 7) / 8
		if len(signature) != 2*size {
			return false
		}
		r, s := new(big.Int).SetBytes(signature[:size]), new(big.Int).SetBytes(signature[size:])
		return ecdsa.Verify(key, digest, r, s)
	case ed25519.PublicKey:
		return ed25519.Verify(key, digest, signature)
	}
	return false
}

// keySet is what an issuer published. It is immutable.
type keySet struct {
	keys     map[string]publicKey
	unusable map[string]error // by kid ("" for none): why a published key is not used
}

// kids returns the usable key ids, sorted.
func (s *keySet) kids() []string {
	kids := make([]string, 0, len(s.keys))
	for kid := range s.keys {
		kids = append(kids, kid)
	}
	slices.Sort(kids)
	return kids
}

// parseKeySet reads a JWK set, RFC 7517 section 5. A key that cannot be used
// is set aside; a document that is not a key set is an error. Of keys with the
// same kid none is used, unless the rules say which.
func parseKeySet(data []byte, maxKeys int, rules KeyRules) (*keySet, error) {
	doc, err := decodeObject(data)
	if err != nil {
		return nil, err
	}
	if doc.duplicate != nil {
		return nil, fmt.Errorf("member %s occurs twice", shown(*doc.duplicate))
	}
	list, ok := doc.members["keys"].([]any)
	if !ok {
		return nil, errors.New(`no array "keys"`)
	}
	if len(list) > maxKeys {
		return nil, fmt.Errorf("%d keys, at most %d are read", len(list), maxKeys)
	}
	set := &keySet{keys: make(map[string]publicKey), unusable: make(map[string]error)}
	seen := make(map[string]bool)
	kinds := make(map[string]int)
	for _, entry := range list {
		if jwk, ok := entry.(map[string]any); ok {
			kinds[kindOf(jwk)]++
		}
	}
	for _, entry := range list {
		jwk, ok := entry.(map[string]any)
		if !ok {
			return nil, errors.New("a key that is not an object")
		}
		kid, _ := jwk["kid"].(string)
		key, err := parseKey(jwk, rules)
		if err == nil && seen[kid] && !rules.LastWins {
			err = errors.New("several keys have this kid")
		}
		if kind := kindOf(jwk); err == nil && rules.MaxPerKind > 0 && kinds[kind] > rules.MaxPerKind {
			err = fmt.Errorf("%d keys of kty %s, of at most %d", kinds[kind], kind, rules.MaxPerKind)
		}
		seen[kid] = true
		delete(set.keys, kid)
		delete(set.unusable, kid)
		if err != nil {
			set.unusable[kid] = err
		} else {
			set.keys[kid] = key
		}
	}
	return set, nil
}

// kindOf returns the kty of a JWK, or "" if it has none.
func kindOf(jwk map[string]any) string {
	kind, _ := jwk["kty"].(string)
	return kind
}

// parseKey reads a JWK (RFC 7517 section 4) and refuses what must not verify a token.
func parseKey(jwk map[string]any, rules KeyRules) (publicKey, error) {
	kid, _ := jwk["kid"].(string)
	if kid == "" || len(kid) > maxKidBytes {
		return publicKey{}, errors.New("no kid, or one that is too long")
	}
	for _, private := range []string{"d", "p", "q", "dp", "dq", "qi", "oth", "k", "priv"} {
		if _, ok := jwk[private]; ok {
			return publicKey{}, fmt.Errorf("member %q is private: anybody can sign with this key", private)
		}
	}
	if use, ok := jwk["use"]; ok && use != "sig" {
		return publicKey{}, fmt.Errorf("use is %s, not sig", shown(fmt.Sprint(use)))
	}
	if ops, ok := jwk["key_ops"]; ok {
		list, _ := ops.([]any)
		if !slices.Contains(list, any("verify")) {
			return publicKey{}, errors.New("key_ops does not allow verify")
		}
		if rules.RefuseKeyOps {
			return publicKey{}, errors.New("the key has key_ops")
		}
	}
	alg := ""
	if value, ok := jwk["alg"]; ok && !rules.IgnoreAlg {
		if alg, ok = value.(string); !ok || alg == "" {
			return publicKey{}, errors.New("alg is not a name")
		}
	}
	// go-jose sees a copy without the members judged above, and the document
	// has passed the strict decoder.
	data, err := json.Marshal(jwk)
	if err != nil {
		return publicKey{}, err
	}
	var parsed jose.JSONWebKey
	if err := parsed.UnmarshalJSON(data); err != nil {
		return publicKey{}, err
	}
	key := publicKey{kid: kid, alg: alg, key: parsed.Key}
	switch k := parsed.Key.(type) {
	case *rsa.PublicKey:
		err = checkRSA(k)
	case *ecdsa.PublicKey, ed25519.PublicKey: // go-jose has checked that the point is on the curve
	default:
		err = fmt.Errorf("kty %s is not supported", shown(fmt.Sprint(jwk["kty"])))
	}
	if err == nil && alg != "" {
		err = key.fits(alg)
	}
	return key, err
}

func checkRSA(key *rsa.PublicKey) error {
	switch bits := key.N.BitLen(); {
	case bits < minRSABits || bits > maxRSABits:
		return fmt.Errorf("an RSA key of %d bits, want %d to %d", bits, minRSABits, maxRSABits)
	case key.N.Bit(0) == 0:
		return errors.New("an RSA key with an even modulus")
	case key.E < 3 || key.E%2 == 0 || int64(key.E) > 1<<31-1:
		return fmt.Errorf("an RSA key with exponent %d", key.E)
	case weakROCA(key.N):
		return errors.New("an RSA key with the ROCA weakness (CVE-2017-15361)")
	}
	return nil
}

// weakROCA reports the fingerprint of keys whose primes have the form
// k·M + (65537^a mod M): modulo every small prime p that divides M, such a
// modulus is a power of 65537 (Nemec et al., CCS 2017, section 3.3).
func weakROCA(modulus *big.Int) bool {
	primes := [...]uint64{3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59, 61, 67, 71, 73, 79,
		83, 89, 97, 101, 103, 107, 109, 113, 127, 131, 137, 139, 149, 151, 157, 163, 167}
	var remainder, prime big.Int
	for _, p := range primes {
		n := remainder.Mod(modulus, prime.SetUint64(p)).Uint64()
		power := uint64(1)
		for power != n {
			if power = power * 65537 % p; power == 1 {
				return false // all powers seen, n is none of them
			}
		}
	}
	return true
}
