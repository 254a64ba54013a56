package keys_test

import (
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/oidclab/oidclab/lab/clock"
	"github.com/oidclab/oidclab/lab/keys"
)

const maxLife = 24 * time.Hour

// installer is an API server that takes key files, or does not.
type installer struct {
	files keys.Files
	err   error
}

func (i *installer) install(files keys.Files) error {
	if i.err == nil {
		i.files = files
	}
	return i.err
}

func newStatic(t *testing.T) (*keys.Set, *clock.Lab, *installer) {
	t.Helper()
	lab := clock.New(nil)
	lab.Freeze(start)
	i := &installer{}
	set, err := keys.NewStatic(lab, keys.ES256, maxLife, i.install)
	if err != nil {
		t.Fatal(err)
	}
	return set, lab, i
}

// signer returns the id of the key that files make an API server sign with.
func signer(t *testing.T, files keys.Files) string {
	t.Helper()
	block, _ := pem.Decode(files.SigningKey)
	if block == nil {
		t.Fatal("the signing key is not PEM")
	}
	private, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return idOf(t, private.(crypto.Signer).Public())
}

func publics(t *testing.T, files keys.Files) []string {
	t.Helper()
	var ids []string
	for _, file := range files.PublicKeys {
		block, _ := pem.Decode(file)
		if block == nil {
			t.Fatal("a public key is not PEM")
		}
		public, err := x509.ParsePKIXPublicKey(block.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, idOf(t, public))
	}
	return ids
}

func idOf(t *testing.T, public any) string {
	t.Helper()
	id, err := keys.ID(public)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// The files say at every phase who signs and what is published.
func TestFiles(t *testing.T) {
	set, _, installed := newStatic(t)
	old := set.Current().ID
	check := func(phase string, files keys.Files, signs string, published ...string) {
		t.Helper()
		if got := signer(t, files); got != signs {
			t.Errorf("%s: signs with %s, want %s", phase, got, signs)
		}
		if got := publics(t, files); !slices.Equal(got, published) || !slices.Equal(files.KeyIDs, published) {
			t.Errorf("%s: publishes %v as %v, want %v", phase, got, files.KeyIDs, published)
		}
	}
	files, err := set.Files()
	if err != nil {
		t.Fatal(err)
	}
	check("new", files, old, old)
	next, err := set.Publish()
	if err != nil {
		t.Fatal(err)
	}
	check("published", installed.files, old, old, next.ID)
	if _, err := set.SignWith(next.ID); err != nil {
		t.Fatal(err)
	}
	check("signing", installed.files, next.ID, old, next.ID)
	if _, err := set.Remove(old); err != nil {
		t.Fatal(err)
	}
	check("removed", installed.files, next.ID, next.ID)
}

// A change that the API server does not take is not made.
func TestChangeThatIsNotInstalled(t *testing.T) {
	set, _, installed := newStatic(t)
	old := set.Current().ID
	next, err := set.Publish()
	if err != nil {
		t.Fatal(err)
	}
	before := set.Keys()
	installed.err = errors.New("the API server did not come back")
	for name, change := range map[string]func() (keys.Key, error){
		"publish": set.Publish,
		"sign":    func() (keys.Key, error) { return set.SignWith(next.ID) },
		"remove":  func() (keys.Key, error) { return set.Remove(next.ID) },
	} {
		if _, err := change(); !errors.Is(err, installed.err) {
			t.Errorf("%s: got %v, want the cause", name, err)
		}
		if after := set.Keys(); !slices.Equal(statesOf(after), statesOf(before)) {
			t.Errorf("%s: got %v, want the keys as they were, %v", name, statesOf(after), statesOf(before))
		}
	}
	installed.err = nil
	if _, err := set.SignWith(next.ID); err != nil {
		t.Errorf("control: %v", err)
	}
	if _, err := set.Remove(old); err != nil {
		t.Errorf("control: %v", err)
	}
}

func statesOf(list []keys.Key) []keys.State {
	var result []keys.State
	for _, k := range list {
		result = append(result, k.State)
	}
	return result
}

// What a key can have signed is bounded by the longest life of a token, from
// when it stops signing.
func TestLastExpiryOfStaticKeys(t *testing.T) {
	set, lab, _ := newStatic(t)
	old := set.Current()
	if want := start.Add(maxLife); !old.LastExpiry.Equal(want) {
		t.Errorf("signing: got %s, want %s", old.LastExpiry, want)
	}
	next, err := set.Publish()
	if err != nil {
		t.Fatal(err)
	}
	if !next.LastExpiry.IsZero() {
		t.Errorf("published: got %s, want none", next.LastExpiry)
	}
	lab.Advance(time.Hour)
	if next, err = set.SignWith(next.ID); err != nil {
		t.Fatal(err)
	}
	lab.Advance(time.Hour)
	all := set.Keys()
	if want := start.Add(time.Hour + maxLife); !all[0].LastExpiry.Equal(want) || !next.LastExpiry.Equal(want) {
		t.Errorf("retired: got %s (and %s for the one that took over), want %s, since when it signs nothing", all[0].LastExpiry, next.LastExpiry, want)
	}
	if want := start.Add(2*time.Hour + maxLife); !all[1].LastExpiry.Equal(want) {
		t.Errorf("still signing: got %s, want %s", all[1].LastExpiry, want)
	}
}

// A replaced set has one key, and none of the former ones is published, signs or
// can be forged with.
func TestReplace(t *testing.T) {
	set, _, installed := newStatic(t)
	old := set.Current().ID
	if _, err := set.Publish(); err != nil {
		t.Fatal(err)
	}
	next, err := set.Replace(nil)
	if err != nil {
		t.Fatal(err)
	}
	if got := statesOf(set.Keys()); !slices.Equal(got, []keys.State{keys.Removed, keys.Removed, keys.Signing}) {
		t.Errorf("got %v, want only the new key left, signing", got)
	}
	if got := publics(t, installed.files); !slices.Equal(got, []string{next.ID}) || signer(t, installed.files) != next.ID {
		t.Errorf("installed %v, signing with %s, want %s alone", got, signer(t, installed.files), next.ID)
	}
	if _, err := set.Forge(keys.Forgery{Claims: map[string]any{}, KeyID: old}); err == nil {
		t.Error("the private part of a former key is still there")
	}
}
