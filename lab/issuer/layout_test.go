package issuer_test

import (
	"net/http"
	"strings"
	"testing"

	"github.com/oidclab/oidclab/lab/issuer"
)

func TestLayouts(t *testing.T) {
	want := map[string]struct{ issuer, keySet string }{
		"excloud":  {"/c/c1", "/c/c1/openid/v1/jwks"},
		"oke":      {"/n/okecustprod/b/oidc/o/UUID", "/n/okecustprod/b/oidc/o/UUID/jwks"},
		"eks":      {"/id/HEX", "/id/HEX/keys"},
		"gardener": {"/projects/c1/shoots/UUID/issuer", "/projects/c1/shoots/UUID/issuer/jwks"},
		"aks":      {"/00000000-0000-4000-8000-000000000000/UUID/", "/00000000-0000-4000-8000-000000000000/UUID/openid/v1/jwks"},
	}
	random := strings.NewReplacer("UUID", "8bd90807-b730-50b2-9d19-4690d0f5a59f", "HEX", "321E2037A53334C2A95FF375FEE41BC4")
	for _, layout := range issuer.Layouts() {
		t.Run(layout.Name, func(t *testing.T) {
			front, again := issuer.New(origin, layout, nil), issuer.New(origin, layout, nil)
			if front.IssuerURL("c1") != again.IssuerURL("c1") || front.IssuerURL("c1") == front.IssuerURL("c2") {
				t.Errorf("issuers %s, %s, %s", front.IssuerURL("c1"), again.IssuerURL("c1"), front.IssuerURL("c2"))
			}
			expected := want[layout.Name]
			if got, want := front.IssuerURL("c1"), origin+random.Replace(expected.issuer); got != want {
				t.Errorf("issuer %s, want %s", got, want)
			}
			if got, want := front.KeySetURL("c1"), origin+random.Replace(expected.keySet); got != want {
				t.Errorf("key set %s, want %s", got, want)
			}
			for _, id := range []string{"c1", "c2"} {
				s := newSource(id)
				s.discovery = `{"issuer":"` + front.IssuerURL(id) + `","jwks_uri":"` + front.KeySetURL(id) + `"}`
				front.Publish(id, s)
				document := strings.TrimSuffix(front.IssuerURL(id), "/") + "/.well-known/openid-configuration"
				for url, body := range map[string]string{document: s.discovery, front.KeySetURL(id): s.keys} {
					response := do(front, http.MethodGet, strings.TrimPrefix(url, origin))
					if got := bodyOf(t, response); response.StatusCode != 200 || got != body {
						t.Errorf("%s: %s %s", url, response.Status, got)
					}
				}
			}
			for _, guess := range []string{"/openid/v1/jwks", "/jwks", "/keys", "/.well-known/jwks.json"} {
				url := strings.TrimSuffix(front.IssuerURL("c1"), "/") + guess
				if response := do(front, http.MethodGet, strings.TrimPrefix(url, origin)); (response.StatusCode == 200) != (url == front.KeySetURL("c1")) {
					t.Errorf("%s: %s", url, response.Status)
				}
			}
		})
	}
}

func TestWithdraw(t *testing.T) {
	front, s, _ := newFront(t)
	for _, step := range []struct {
		do   func()
		want int
	}{
		{func() {}, 200},
		{func() { front.Withdraw("c1") }, 404},
		{func() { front.Withdraw("c1") }, 404},
		{func() { front.Publish("c1", s) }, 200},
	} {
		step.do()
		if response := do(front, http.MethodGet, "/c/c1/openid/v1/jwks"); response.StatusCode != step.want {
			t.Errorf("%s, want %d", response.Status, step.want)
		}
	}
}

func TestLayoutNamed(t *testing.T) {
	for name, want := range map[string]string{"": "excloud", "excloud": "excloud", "oke": "oke"} {
		if got, err := issuer.LayoutNamed(name); err != nil || got.Name != want {
			t.Errorf("%q: %s, %v", name, got.Name, err)
		}
	}
	if _, err := issuer.LayoutNamed("OKE"); err == nil || !strings.Contains(err.Error(), "there are aks, eks, excloud, gardener, oke") {
		t.Errorf("got %v", err)
	}
}
