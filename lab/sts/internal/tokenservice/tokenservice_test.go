package tokenservice

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/go-jose/go-jose/v4"
)

func TestSigner(t *testing.T) {
	s, err := NewSigner(TypeJWT)
	if err != nil {
		t.Fatal(err)
	}
	token, err := s.Sign(map[string]string{"sub": "app"})
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := jose.ParseSignedCompact(token, []jose.SignatureAlgorithm{Algorithm})
	if err != nil {
		t.Fatal(err)
	}
	published, err := json.Marshal(s.KeySet())
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(published), `"d"`) {
		t.Error("the private key is published")
	}
	var set jose.JSONWebKeySet
	if err := json.Unmarshal(published, &set); err != nil {
		t.Fatal(err)
	}
	header := parsed.Signatures[0].Header
	if payload, err := parsed.Verify(set.Key(header.KeyID)[0]); err != nil || string(payload) != `{"sub":"app"}` {
		t.Errorf("%v %s", err, payload)
	}
	if header.ExtraHeaders[jose.HeaderType] != TypeJWT {
		t.Errorf("typ %v", header.ExtraHeaders[jose.HeaderType])
	}
	other, err := NewSigner(TypeJWT)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := parsed.Verify(other.KeySet().Keys[0]); err == nil {
		t.Error("two signers have one key")
	}
}

func TestReadForm(t *testing.T) {
	const form = "application/x-www-form-urlencoded"
	for _, test := range []struct {
		name, contentType, body string
		status                  int
		assertion               string // as far as it was found
	}{
		{"control", form, "client_assertion=x&b=", 0, "x"},
		{"control with a charset", form + "; charset=utf-8", "client_assertion=x", 0, "x"},
		{"no content type", "", "client_assertion=x", 400, ""},
		{"JSON", "application/json", "{}", 400, ""},
		{"twice", form, "client_assertion=x&b=1&b=2", 400, "x"},
		{"invalid UTF-8", form, "client_assertion=x&b=%ff", 400, "x"},
		{"bad escape", form, "client_assertion=x&b=%zz", 400, ""},
		{"largest", form, "client_assertion=x&b=" + strings.Repeat("x", maxFormBytes-len("client_assertion=x&b=")), 0, "x"},
		{"too large", form, "client_assertion=x&b=" + strings.Repeat("x", maxFormBytes), 413, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/", strings.NewReader(test.body))
			r.Header.Set("Content-Type", test.contentType)
			got, e := ReadForm(r)
			if status := statusOf(e); status != test.status || got.Get("client_assertion") != test.assertion {
				t.Errorf("status %d, assertion %q; want %d, %q", status, got.Get("client_assertion"), test.status, test.assertion)
			}
		})
	}
}

func statusOf(e *FormError) int {
	if e == nil {
		return 0
	}
	return e.Status
}
