package pki_test

import (
	"crypto/x509"
	"testing"
	"time"

	"github.com/oidclab/oidclab/lab/clock"
)

func TestRotating(t *testing.T) {
	ca, now := newCA(t), clock.New(nil)
	rotating := ca.Rotating(now, "127.0.0.1", "webhook.lab")
	get := func() *x509.Certificate {
		t.Helper()
		certificate, err := rotating.Get(nil)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"127.0.0.1", "webhook.lab"} {
			if _, err := certificate.Leaf.Verify(x509.VerifyOptions{Roots: ca.Pool(), DNSName: name, CurrentTime: now.Now()}); err != nil {
				t.Fatal(err)
			}
		}
		if rest := certificate.Leaf.NotAfter.Sub(now.Now()); rest < 19*time.Minute || rest > time.Hour {
			t.Fatalf("%s of it are left", rest)
		}
		return certificate.Leaf
	}
	first := get()
	now.Advance(39 * time.Minute)
	if !get().Equal(first) {
		t.Error("issued anew while more than a third of its life was left")
	}
	now.Advance(2 * time.Minute)
	second := get()
	if second.Equal(first) {
		t.Error("not issued anew in its last third")
	}
	now.Advance(24 * time.Hour)
	if get().Equal(second) {
		t.Error("not issued anew when it had ended")
	}
}

func TestRotatingNeedsAName(t *testing.T) {
	if _, err := newCA(t).Rotating(clock.System{}).Get(nil); err == nil {
		t.Error("issued a certificate for nobody")
	}
}
