// Package keys holds the keys that sign a cluster's service-account tokens, and
// moves them through their life:
//
//	published ―(SignWith)―► signing ―(another key signs)―► retired ―(Remove)―► removed
//
// Keys of the first three states are published, so that tokens signed with them
// verify. Exactly one key signs at any time.
//
// A rotation that refuses nobody publishes a key, waits until every consumer can
// have fetched it, signs with it, waits until the last token of the old key has
// expired (see [Key.LastExpiry]), and removes the old key. The set allows other
// orders too: breaking a rotation is what a lab is for.
package keys

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/oidclab/oidclab/lab/clock"
)

// State is where a key is in its life.
type State string

// The states.
const (
	Published State = "published" // in the key set, signs nothing yet
	Signing   State = "signing"   // in the key set, signs new tokens
	Retired   State = "retired"   // in the key set, signs nothing any more
	Removed   State = "removed"   // no longer in the key set; its private part is gone
)

// Algorithm is a JWS algorithm (RFC 7518 section 3.1) that kube-apiserver signs
// service-account tokens with.
type Algorithm string

// The algorithms.
const (
	RS256 Algorithm = "RS256" // RSA, 2048 bits
	ES256 Algorithm = "ES256" // ECDSA on P-256
)

// Key is a view of one key at one moment. It never holds the private part.
type Key struct {
	ID         string           // the kid: base64url(SHA-256(SPKI DER)), as kube-apiserver makes it
	State      State            //
	Since      time.Time        // when it came into this state
	Algorithm  Algorithm        //
	Public     crypto.PublicKey //
	LastExpiry time.Time        // the latest exp that it signed; of NewStatic, that it can have signed. Zero if it has signed nothing
}

// Set is a set of signing keys. Make one with New or NewStatic. It is safe for
// concurrent use.
type Set struct {
	clock     clock.Clock
	algorithm Algorithm
	maxLife   time.Duration     // of tokens that somebody else signs; 0 means that all go through Sign
	install   func(Files) error // nil if nobody else needs the keys

	changing sync.Mutex // held over a change, which can take as long as an API server takes to restart

	mu      sync.Mutex
	keys    []*entry // oldest first
	changed time.Time
}

type entry struct {
	Key
	private crypto.Signer // nil once removed
}

// New returns a set whose only key signs. The clock tells when keys change their
// state. An empty algorithm means RS256; another than the package's is an error.
func New(clock clock.Clock, algorithm Algorithm) (*Set, error) {
	if algorithm == "" {
		algorithm = RS256
	}
	first, err := newEntry(algorithm)
	if err != nil {
		return nil, err
	}
	first.State, first.Since = Signing, clock.Now()
	return &Set{clock: clock, algorithm: algorithm, keys: []*entry{first}, changed: first.Since}, nil
}

// NewStatic returns a set like New, for an API server that signs with key files.
// Every change is handed to install before it is made, and not made if that
// fails. The set does not see what its keys sign: it takes the tokens of a key to
// live for maxLife from the moment when the key stops signing.
func NewStatic(clock clock.Clock, algorithm Algorithm, maxLife time.Duration, install func(Files) error) (*Set, error) {
	s, err := New(clock, algorithm)
	if err != nil {
		return nil, err
	}
	s.maxLife, s.install = maxLife, install
	return s, nil
}

// Publish adds a new key in state Published.
func (s *Set) Publish() (Key, error) {
	added, err := newEntry(s.algorithm)
	if err != nil {
		return Key{}, err
	}
	added.State = Published
	return s.change(func(keys []*entry) ([]*entry, *entry, error) { return append(keys, added), added, nil })
}

// SignWith makes a published or retired key the signing key. The key that signed
// until now becomes Retired.
func (s *Set) SignWith(id string) (Key, error) {
	return s.change(func(keys []*entry) ([]*entry, *entry, error) {
		e, err := find(keys, id)
		if err != nil {
			return nil, nil, err
		}
		switch e.State {
		case Signing:
			return nil, nil, fmt.Errorf("keys: %s signs already; publish another key to rotate to", id)
		case Removed:
			return nil, nil, fmt.Errorf("keys: %s is removed and its private part is gone; publish a new key", id)
		}
		signing(keys).State = Retired
		e.State = Signing
		return keys, e, nil
	})
}

// Remove takes a published or retired key out of the key set for good: tokens
// that it signed no longer verify once consumers fetch the set again.
func (s *Set) Remove(id string) (Key, error) {
	return s.change(func(keys []*entry) ([]*entry, *entry, error) {
		e, err := find(keys, id)
		if err != nil {
			return nil, nil, err
		}
		switch e.State {
		case Signing:
			return nil, nil, fmt.Errorf("keys: %s signs; sign with another key before removing it", id)
		case Removed:
			return nil, nil, fmt.Errorf("keys: %s is removed already; nothing is left to do", id)
		}
		e.private, e.State = nil, Removed
		return keys, e, nil
	})
}

// Replace removes every key and has a new one sign at once, as when a cluster is
// made anew. An install that is not nil takes the place of the set's own.
func (s *Set) Replace(install func(Files) error) (Key, error) {
	added, err := newEntry(s.algorithm)
	if err != nil {
		return Key{}, err
	}
	added.State = Signing
	if install == nil {
		install = s.install
	}
	return s.changeBy(install, func(keys []*entry) ([]*entry, *entry, error) {
		for _, e := range keys {
			e.private, e.State = nil, Removed
		}
		return append(keys, added), added, nil
	})
}

func (s *Set) change(edit func([]*entry) ([]*entry, *entry, error)) (Key, error) {
	return s.changeBy(s.install, edit)
}

// changeBy makes a change of states on copies, installs the result, and only then
// makes it the set's own. It returns the key that edit names.
func (s *Set) changeBy(install func(Files) error, edit func([]*entry) ([]*entry, *entry, error)) (Key, error) {
	s.changing.Lock()
	defer s.changing.Unlock()
	s.mu.Lock()
	next := make([]*entry, len(s.keys))
	for i, e := range s.keys {
		next[i] = new(*e)
	}
	s.mu.Unlock()
	next, changed, err := edit(next)
	if err != nil {
		return Key{}, err
	}
	if install != nil {
		files, err := filesOf(next)
		if err != nil {
			return Key{}, err
		}
		if err := install(files); err != nil {
			return Key{}, err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.changed = s.clock.Now()
	for i, e := range next {
		before := Key{}
		if i < len(s.keys) {
			before = s.keys[i].Key
			e.LastExpiry = s.lastExpiry(before) // it may have signed in the meantime
		}
		if e.State != before.State {
			e.Since = s.changed
		}
	}
	s.keys = next
	return s.view(changed), nil
}

// lastExpiry returns the latest exp that a key can have signed by now.
func (s *Set) lastExpiry(k Key) time.Time {
	if s.maxLife > 0 && k.State == Signing {
		return s.clock.Now().Add(s.maxLife)
	}
	return k.LastExpiry
}

// Keys returns all keys, oldest first, removed ones included.
func (s *Set) Keys() []Key {
	s.mu.Lock()
	defer s.mu.Unlock()
	keys := make([]Key, len(s.keys))
	for i, e := range s.keys {
		keys[i] = s.view(e)
	}
	return keys
}

// Current returns the signing key.
func (s *Set) Current() Key {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.view(signing(s.keys))
}

// view returns what others see of an entry. The lock must be held.
func (s *Set) view(e *entry) Key {
	k := e.Key
	k.LastExpiry = s.lastExpiry(k)
	return k
}

// InKeySet returns the keys that consumers can know, oldest first, and the time
// of the last change.
func (s *Set) InKeySet() (keys []Key, changed time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range s.keys {
		if e.State != Removed {
			keys = append(keys, s.view(e))
		}
	}
	return keys, s.changed
}

// JWKS returns the public key set (RFC 7517 section 5), oldest key first.
func (s *Set) JWKS() jose.JSONWebKeySet {
	keys, _ := s.InKeySet()
	set := jose.JSONWebKeySet{Keys: make([]jose.JSONWebKey, len(keys))}
	for i, k := range keys {
		set.Keys[i] = k.JWK()
	}
	return set
}

// JWK returns the public key with kid, alg and use, as kube-apiserver publishes it.
func (k Key) JWK() jose.JSONWebKey {
	return jose.JSONWebKey{Key: k.Public, KeyID: k.ID, Algorithm: string(k.Algorithm), Use: "sig"}
}

// Signature is the result of Sign: the parts of a compact JWS (RFC 7515 section
// 7.1), each in base64url, and the key that made it.
type Signature struct {
	KeyID     string
	Header    string
	Payload   string
	Signature string
}

// Token returns the compact token.
func (s Signature) Token() string { return s.Header + "." + s.Payload + "." + s.Signature }

// Sign signs claims, a JSON object, with the signing key under the header {alg,
// kid, typ: JWT}. Claims without an exp are refused: the set must know how long
// tokens of a key live.
func (s *Set) Sign(claims []byte) (Signature, error) {
	var registered struct {
		Expiry *float64 `json:"exp"`
	}
	if err := json.Unmarshal(claims, &registered); err != nil {
		return Signature{}, fmt.Errorf("keys: claims are not a JSON object with a numeric exp: %w", err)
	}
	if registered.Expiry == nil {
		return Signature{}, errors.New("keys: claims have no exp; add one, a token must end")
	}

	s.mu.Lock()
	e := signing(s.keys)
	// Before the signature exists: a key must not look free while it signs.
	if exp := time.Unix(int64(*registered.Expiry), 0); exp.After(e.LastExpiry) {
		e.LastExpiry = exp
	}
	id, algorithm, private := e.ID, e.Algorithm, e.private
	s.mu.Unlock()

	signer, err := jose.NewSigner(
		jose.SigningKey{Algorithm: jose.SignatureAlgorithm(algorithm), Key: jose.JSONWebKey{Key: private, KeyID: id}},
		new(jose.SignerOptions).WithType("JWT"),
	)
	if err != nil {
		return Signature{}, fmt.Errorf("keys: %w", err)
	}
	object, err := signer.Sign(claims)
	if err != nil {
		return Signature{}, fmt.Errorf("keys: %w", err)
	}
	compact, err := object.CompactSerialize()
	if err != nil {
		return Signature{}, fmt.Errorf("keys: %w", err)
	}
	parts := strings.Split(compact, ".")
	return Signature{KeyID: id, Header: parts[0], Payload: parts[1], Signature: parts[2]}, nil
}

// Generate returns a new private key for an algorithm.
func Generate(algorithm Algorithm) (crypto.Signer, error) {
	switch algorithm {
	case RS256:
		return rsa.GenerateKey(rand.Reader, 2048)
	case ES256:
		return ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	}
	return nil, fmt.Errorf("keys: unknown algorithm %q; use %s or %s", algorithm, RS256, ES256)
}

// ID returns the kid that kube-apiserver gives a public key:
// base64url(SHA-256(SPKI DER)), see k8s.io/kubernetes/pkg/serviceaccount/jwt.go.
func ID(public crypto.PublicKey) (string, error) {
	der, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		return "", fmt.Errorf("keys: key id: %w", err)
	}
	sum := sha256.Sum256(der)
	return base64.RawURLEncoding.EncodeToString(sum[:]), nil
}

func newEntry(algorithm Algorithm) (*entry, error) {
	private, err := Generate(algorithm)
	if err != nil {
		return nil, err
	}
	id, err := ID(private.Public())
	if err != nil {
		return nil, err
	}
	return &entry{Key: Key{ID: id, Algorithm: algorithm, Public: private.Public()}, private: private}, nil
}

func signing(keys []*entry) *entry {
	for _, e := range keys {
		if e.State == Signing {
			return e
		}
	}
	panic("keys: no signing key") // New makes one, and only SignWith moves it
}

func find(keys []*entry, id string) (*entry, error) {
	for _, e := range keys {
		if e.ID == id {
			return e, nil
		}
	}
	return nil, fmt.Errorf("keys: no key %q; list the keys to see their ids", id)
}
