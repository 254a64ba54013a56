package keys_test

import (
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"pgregory.net/rapid"

	"github.com/oidclab/oidclab/lab/clock"
	"github.com/oidclab/oidclab/lab/keys"
)

var start = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// newSet returns a set of fast ES256 keys on a frozen clock.
func newSet(t interface {
	Helper()
	Fatal(...any)
}) (*keys.Set, *clock.Lab) {
	t.Helper()
	lab := clock.New(nil)
	lab.Freeze(start)
	set, err := keys.New(lab, keys.ES256)
	if err != nil {
		t.Fatal(err)
	}
	return set, lab
}

func claims(exp time.Time) []byte {
	return fmt.Appendf(nil, `{"sub":"system:serviceaccount:demo:app","exp":%d}`, exp.Unix())
}

func TestLifeOfAKey(t *testing.T) {
	set, lab := newSet(t)
	first := set.Current()
	if first.State != keys.Signing || !first.Since.Equal(start) {
		t.Fatalf("first key: got %s since %s, want signing since %s", first.State, first.Since, start)
	}

	lab.Advance(time.Minute)
	second, err := set.Publish()
	if err != nil {
		t.Fatal(err)
	}
	if second.State != keys.Published || !second.Since.Equal(start.Add(time.Minute)) {
		t.Errorf("published key: got %s since %s", second.State, second.Since)
	}
	if got := set.Current().ID; got != first.ID {
		t.Errorf("publishing changed the signing key to %s", got)
	}

	lab.Advance(time.Minute)
	if _, err := set.SignWith(second.ID); err != nil {
		t.Fatal(err)
	}
	all := set.Keys()
	if all[0].State != keys.Retired || all[1].State != keys.Signing || !all[0].Since.Equal(start.Add(2*time.Minute)) {
		t.Errorf("after SignWith: got %s since %s and %s, want retired and signing", all[0].State, all[0].Since, all[1].State)
	}
	if got := len(set.JWKS().Keys); got != 2 {
		t.Errorf("a retired key stays published: got %d keys in the set, want 2", got)
	}

	if _, err := set.Remove(first.ID); err != nil {
		t.Fatal(err)
	}
	if got := set.JWKS().Keys; len(got) != 1 || got[0].KeyID != second.ID {
		t.Errorf("after Remove: got %d keys in the set, want only %s", len(got), second.ID)
	}
	if got := set.Keys()[0].State; got != keys.Removed {
		t.Errorf("removed key: got %s, want it listed as removed", got)
	}
}

func TestIllegalTransitions(t *testing.T) {
	set, _ := newSet(t)
	signing := set.Current()
	removed, err := set.Publish()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := set.Remove(removed.ID); err != nil {
		t.Fatal("control:", err)
	}
	for name, c := range map[string]struct {
		move func(string) (keys.Key, error)
		id   string
		want string // the next step
	}{
		"remove the signing key":    {set.Remove, signing.ID, "sign with another key"},
		"remove a removed key":      {set.Remove, removed.ID, "nothing is left to do"},
		"remove an unknown key":     {set.Remove, "none", "list the keys"},
		"sign with the signing key": {set.SignWith, signing.ID, "publish another key"},
		"sign with a removed key":   {set.SignWith, removed.ID, "publish a new key"},
		"sign with an unknown key":  {set.SignWith, "none", "list the keys"},
	} {
		before := set.Keys()
		if _, err := c.move(c.id); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got error %v, want one that says %q", name, err, c.want)
		}
		if !slices.Equal(states(before), states(set.Keys())) {
			t.Errorf("%s: refused, but the set changed", name)
		}
	}
}

func TestSign(t *testing.T) {
	for _, algorithm := range []keys.Algorithm{keys.RS256, keys.ES256} {
		set, err := keys.New(clock.System{}, algorithm)
		if err != nil {
			t.Fatal(err)
		}
		signed, err := set.Sign(claims(start))
		if err != nil {
			t.Fatal(err)
		}
		object, err := jose.ParseSignedCompact(signed.Token(), []jose.SignatureAlgorithm{jose.SignatureAlgorithm(algorithm)})
		if err != nil {
			t.Fatal(err)
		}
		jwks := set.JWKS()
		payload, err := object.Verify(&jwks)
		if err != nil || string(payload) != string(claims(start)) {
			t.Errorf("%s: got payload %s and error %v, want the claims", algorithm, payload, err)
		}
		// kube-apiserver refuses any other member (externaljwt plugin, validateJWTHeader).
		header := decodeHeader(t, signed.Token())
		want := map[string]any{"alg": string(algorithm), "kid": set.Current().ID, "typ": "JWT"}
		if fmt.Sprint(header) != fmt.Sprint(want) {
			t.Errorf("%s: got header %v, want %v", algorithm, header, want)
		}
	}
}

func TestSignRefusesClaimsWithoutEnd(t *testing.T) {
	set, _ := newSet(t)
	if _, err := set.Sign(claims(start)); err != nil {
		t.Fatal("control:", err)
	}
	for _, bad := range []string{`{}`, `{"exp":"soon"}`, `[]`, `null`, `x`, ``} {
		if _, err := set.Sign([]byte(bad)); err == nil {
			t.Errorf("signed %q", bad)
		}
	}
}

func TestUnknownAlgorithm(t *testing.T) {
	if _, err := keys.New(clock.System{}, "HS256"); err == nil || !strings.Contains(err.Error(), "RS256") {
		t.Errorf("got error %v, want one that names the algorithms", err)
	}
}

func TestLastExpiryIsTheLatest(t *testing.T) {
	set, _ := newSet(t)
	for _, exp := range []time.Time{start.Add(time.Hour), start.Add(2 * time.Hour), start.Add(time.Minute)} {
		if _, err := set.Sign(claims(exp)); err != nil {
			t.Fatal(err)
		}
	}
	if got, want := set.Current().LastExpiry, start.Add(2*time.Hour); !got.Equal(want) {
		t.Errorf("got %s, want %s", got, want)
	}
}

// TestID compares with the kid that openssl gives a key:
// openssl pkey -pubin -outform DER | openssl dgst -sha256 -binary | basenc --base64url.
func TestID(t *testing.T) {
	block, _ := pem.Decode([]byte(`-----BEGIN PUBLIC KEY-----
MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE/GhhCiNg5SVjihE+5oLfhEoYVyq9
n7i7fbKxfBhw9ljbQ31MElU/D+SwLSDAI7JXgPaCyZOlR4yqybyRVydkRg==
-----END PUBLIC KEY-----`))
	public, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	const want = "QgoPADaj42P8-ySGCUKtybK3SWEWzNk2bSu2dyNOWeA"
	if got, err := keys.ID(public); got != want || err != nil {
		t.Errorf("got %s (%v), want %s", got, err, want)
	}
}

func TestKeySetHasNoPrivateMember(t *testing.T) {
	for _, algorithm := range []keys.Algorithm{keys.RS256, keys.ES256} {
		set, err := keys.New(clock.System{}, algorithm)
		if err != nil {
			t.Fatal(err)
		}
		document, err := json.Marshal(set.JWKS())
		if err != nil {
			t.Fatal(err)
		}
		var parsed struct{ Keys []map[string]any }
		if err := json.Unmarshal(document, &parsed); err != nil {
			t.Fatal(err)
		}
		allowed := []string{"kty", "kid", "alg", "use", "n", "e", "crv", "x", "y"}
		for member := range parsed.Keys[0] {
			if !slices.Contains(allowed, member) {
				t.Errorf("%s: the key set has the member %q", algorithm, member)
			}
		}
		switch public := set.JWKS().Keys[0].Key.(type) {
		case *rsa.PublicKey, *ecdsa.PublicKey:
		default:
			t.Errorf("%s: the key set holds a %T", algorithm, public)
		}
	}
}

func TestViewsDoNotChange(t *testing.T) {
	set, _ := newSet(t)
	before := set.Keys()
	next, err := set.Publish()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := set.SignWith(next.ID); err != nil {
		t.Fatal(err)
	}
	if before[0].State != keys.Signing || len(before) != 1 {
		t.Errorf("an earlier view changed to %v", states(before))
	}
}

// TestStateMachine walks random transitions and compares with a model.
func TestStateMachine(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		set, lab := newSet(t)
		model := map[string]keys.State{set.Current().ID: keys.Signing}
		order := []string{set.Current().ID}
		pick := func(t *rapid.T) string { return rapid.SampledFrom(order).Draw(t, "key") }
		t.Repeat(map[string]func(*rapid.T){
			"publish": func(t *rapid.T) {
				key, err := set.Publish()
				if err != nil {
					t.Fatal(err)
				}
				if _, known := model[key.ID]; known {
					t.Fatalf("key id %s twice", key.ID)
				}
				model[key.ID] = keys.Published
				order = append(order, key.ID)
			},
			"sign with": func(t *rapid.T) {
				id := pick(t)
				_, err := set.SignWith(id)
				legal := model[id] == keys.Published || model[id] == keys.Retired
				if legal != (err == nil) {
					t.Fatalf("sign with a %s key: got error %v", model[id], err)
				}
				if legal {
					for other, state := range model {
						if state == keys.Signing {
							model[other] = keys.Retired
						}
					}
					model[id] = keys.Signing
				}
			},
			"remove": func(t *rapid.T) {
				id := pick(t)
				_, err := set.Remove(id)
				legal := model[id] == keys.Published || model[id] == keys.Retired
				if legal != (err == nil) {
					t.Fatalf("remove a %s key: got error %v", model[id], err)
				}
				if legal {
					model[id] = keys.Removed
				}
			},
			"sign": func(t *rapid.T) {
				lab.Advance(time.Second)
				signed, err := set.Sign(claims(lab.Now().Add(time.Hour)))
				if err != nil {
					t.Fatal(err)
				}
				if model[signed.KeyID] != keys.Signing {
					t.Fatalf("a %s key signed", model[signed.KeyID])
				}
			},
			"": func(t *rapid.T) {
				signing, inSet := 0, 0
				for i, key := range set.Keys() {
					if key.ID != order[i] || key.State != model[key.ID] {
						t.Fatalf("key %d: got %s %s, want %s %s", i, key.ID, key.State, order[i], model[order[i]])
					}
					if key.State == keys.Signing {
						signing++
					}
					if key.State != keys.Removed {
						inSet++
					}
				}
				if signing != 1 {
					t.Fatalf("%d signing keys", signing)
				}
				if got := len(set.JWKS().Keys); got != inSet {
					t.Fatalf("%d keys in the key set, want %d", got, inSet)
				}
			},
		})
	})
}

// TestConcurrentUse is for the race detector; its own claim is that whatever
// was signed verifies with the keys that were published at that time.
func TestConcurrentUse(t *testing.T) {
	set, _ := newSet(t)
	var workers sync.WaitGroup
	for range 4 {
		workers.Go(func() {
			for range 20 {
				signed, err := set.Sign(claims(start))
				if err != nil {
					t.Error(err)
					return
				}
				if jwks := set.JWKS(); len(jwks.Key(signed.KeyID)) != 1 {
					t.Errorf("%s signed but is not in the key set", signed.KeyID)
				}
				set.Keys()
			}
		})
	}
	workers.Go(func() {
		for range 20 {
			key, err := set.Publish()
			if err != nil {
				t.Error(err)
				return
			}
			if _, err := set.SignWith(key.ID); err != nil {
				t.Error(err)
			}
		}
	})
	workers.Wait()
}

func states(all []keys.Key) []string {
	var s []string
	for _, k := range all {
		s = append(s, k.ID+" "+string(k.State))
	}
	return s
}
