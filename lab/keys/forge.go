package keys

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"

	"github.com/go-jose/go-jose/v4"

	_ "crypto/sha256" // for crypto.SHA256
	_ "crypto/sha512" // for crypto.SHA384 and crypto.SHA512
)

// Forgery describes a token that the API server would never issue. The zero
// value of each field means what the API server does.
type Forgery struct {
	// Claims are the payload, as JSON makes it. A json.RawMessage is taken byte
	// for byte, also if it is not JSON.
	Claims any
	// KeyID names the key of the set that signs, in any state but removed.
	// Empty means the signing key.
	KeyID string
	// Key signs instead of the key that KeyID names; the header still names
	// that one. See Generate.
	Key crypto.Signer
	// Algorithm is how to sign: RS, PS, ES or HS with 256, 384 or 512, or
	// "none" for an empty signature. HS takes the PEM of the public key as its
	// secret, the classic confusion of algorithms (RFC 8725 section 2.1).
	Algorithm string
	// Header is laid over {alg, kid, typ}, for instance with jku, jwk, x5u, or
	// an alg that is not how the token is signed. A nil value takes a member out.
	Header map[string]any
}

// Forge signs a forgery and returns the compact token. It leaves
// Key.LastExpiry alone: no safe rotation waits for forged tokens.
func (s *Set) Forge(f Forgery) (string, error) {
	key, private, err := s.forgeWith(f.KeyID)
	if err != nil {
		return "", err
	}
	algorithm := f.Algorithm
	if f.Key != nil {
		private = f.Key
		if algorithm == "" {
			algorithm = string(natural(f.Key.Public()))
		}
	}
	if algorithm == "" {
		algorithm = string(key.Algorithm)
	}
	header := map[string]any{"alg": algorithm, "kid": key.ID, "typ": "JWT"}
	for name, value := range f.Header {
		if value == nil {
			delete(header, name)
		} else {
			header[name] = value
		}
	}
	headerJSON, err := json.Marshal(header)
	if err != nil {
		return "", fmt.Errorf("keys: forged header: %w", err)
	}
	payload, raw := f.Claims.(json.RawMessage)
	if !raw {
		if payload, err = json.Marshal(f.Claims); err != nil {
			return "", fmt.Errorf("keys: forged claims: %w", err)
		}
	}
	input := encode(headerJSON) + "." + encode(payload)
	signature, err := sign(algorithm, private, []byte(input))
	if err != nil {
		return "", err
	}
	return input + "." + encode(signature), nil
}

func (s *Set) forgeWith(id string) (Key, crypto.Signer, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := signing(s.keys)
	if id != "" {
		var err error
		if e, err = find(s.keys, id); err != nil {
			return Key{}, nil, err
		}
	}
	if e.private == nil {
		return Key{}, nil, fmt.Errorf("keys: %s is removed and its private part is gone; forge with another key", e.ID)
	}
	return e.Key, e.private, nil
}

// natural returns the algorithm that a key signs with if nobody says otherwise.
func natural(public crypto.PublicKey) Algorithm {
	if _, ok := public.(*rsa.PublicKey); ok {
		return RS256
	}
	return ES256
}

// sign makes a JWS signature (RFC 7518 section 3). Unlike a library it will
// sign in ways that no consumer should accept.
func sign(algorithm string, private crypto.Signer, input []byte) ([]byte, error) {
	if algorithm == "none" {
		return nil, nil
	}
	hashes := map[string]crypto.Hash{"256": crypto.SHA256, "384": crypto.SHA384, "512": crypto.SHA512}
	if len(algorithm) != len("RS256") || hashes[algorithm[2:]] == 0 {
		return nil, fmt.Errorf("keys: cannot sign with %q; use RS, PS, ES or HS with 256, 384 or 512, or none", algorithm)
	}
	hash := hashes[algorithm[2:]]
	if algorithm[:2] == "HS" {
		secret, err := publicPEM(private.Public())
		if err != nil {
			return nil, err
		}
		mac := hmac.New(hash.New, secret)
		mac.Write(input)
		return mac.Sum(nil), nil
	}
	digest := hash.New()
	digest.Write(input)
	sum := digest.Sum(nil)
	switch key := private.(type) {
	case *rsa.PrivateKey:
		switch algorithm[:2] {
		case "RS":
			return rsa.SignPKCS1v15(rand.Reader, key, hash, sum)
		case "PS":
			return rsa.SignPSS(rand.Reader, key, hash, sum, &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash})
		}
	case *ecdsa.PrivateKey:
		if algorithm[:2] == "ES" {
			r, s, err := ecdsa.Sign(rand.Reader, key, sum)
			if err != nil {
				return nil, err
			}
			size := (key.Curve.Params().BitSize + 7) / 8
			signature := make([]byte, 2*size)
			r.FillBytes(signature[:size])
			s.FillBytes(signature[size:])
			return signature, nil
		}
	}
	return nil, fmt.Errorf("keys: a %T cannot sign with %s; pass a key that can", private, algorithm)
}

// JWK returns a public key as the API server would publish it, for instance for
// the jwk header of a forged token or a key set behind its jku.
func JWK(public crypto.PublicKey) (jose.JSONWebKey, error) {
	id, err := ID(public)
	if err != nil {
		return jose.JSONWebKey{}, err
	}
	return Key{ID: id, Algorithm: natural(public), Public: public}.JWK(), nil
}

// Claims returns the claims of a token without checking anything. Numbers are
// json.Number, so that they come out of a Forgery as they went in.
func Claims(token string) (map[string]any, error) {
	parts, err := split(token)
	if err != nil {
		return nil, err
	}
	return decodeClaims(parts[1])
}

// AlterPayload changes the claims of a token and leaves header and signature as
// they are.
func AlterPayload(token string, change func(claims map[string]any)) (string, error) {
	parts, err := split(token)
	if err != nil {
		return "", err
	}
	claims, err := decodeClaims(parts[1])
	if err != nil {
		return "", err
	}
	change(claims)
	payload, err := json.Marshal(claims)
	if err != nil {
		return "", fmt.Errorf("keys: altered claims: %w", err)
	}
	return parts[0] + "." + encode(payload) + "." + parts[2], nil
}

// AlterSignature flips one bit of a token's signature.
func AlterSignature(token string) (string, error) {
	parts, err := split(token)
	if err != nil {
		return "", err
	}
	signature, err := base64.RawURLEncoding.DecodeString(parts[2])
	if err != nil || len(signature) == 0 {
		return "", errors.New("keys: the token has no signature in base64url to alter")
	}
	signature[len(signature)/2] ^= 1
	return parts[0] + "." + parts[1] + "." + encode(signature), nil
}

func split(token string) ([]string, error) {
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return nil, fmt.Errorf("keys: not a compact token: it has %d parts, not 3", len(parts))
	}
	return parts, nil
}

func decodeClaims(part string) (map[string]any, error) {
	payload, err := base64.RawURLEncoding.DecodeString(part)
	if err != nil {
		return nil, errors.New("keys: the token's payload is not base64url")
	}
	decoder := json.NewDecoder(bytes.NewReader(payload))
	decoder.UseNumber()
	var claims map[string]any
	if err := decoder.Decode(&claims); err != nil {
		return nil, errors.New("keys: the token's payload is not a JSON object")
	}
	return claims, nil
}

func publicPEM(public crypto.PublicKey) ([]byte, error) {
	der, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		return nil, fmt.Errorf("keys: public key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}), nil
}

func encode(data []byte) string { return base64.RawURLEncoding.EncodeToString(data) }
