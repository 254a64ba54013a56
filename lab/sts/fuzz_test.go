package sts

import (
	"bytes"
	"context"
	"crypto/rsa"
	"encoding/json"
	"net/url"
	"reflect"
	"regexp"
	"strings"
	"testing"
)

// Seeds are in the code: go test runs them, and
//
//	go test -run '^$' -fuzz FuzzClaims -fuzztime 5m ./lab/sts
//
// goes on from there.

// reread decodes a JSON object the way everybody else does.
func reread(t *testing.T, data string) map[string]any {
	t.Helper()
	d := json.NewDecoder(strings.NewReader(data))
	d.UseNumber()
	var members map[string]any
	if err := d.Decode(&members); err != nil {
		t.Fatalf("accepted, but encoding/json says %v: %q", err, data)
	}
	return members
}

func FuzzHeader(f *testing.F) {
	b := newParty(f, Strict())
	body := toJSON(b.forge(nil).claims)
	for _, seed := range []string{`{"alg":"ES256","kid":"ec-1"}`, `{"alg":"ES256","kid":"ec-1","typ":"JWT"}`, `{"alg":"none"}`, `{"alg":["ES256"],"kid":"ec-1"}`,
		`{"alg":"ES256","kid":"ec-1","crit":["b64"],"b64":false}`, `{"alg":"ES256","alg":"none","kid":"ec-1"}`, `{"alg":"ES256","KID":"ec-1"}`, "{", ""} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, header string) {
		token := ecKey().sign(header, body)
		if b.core.Exchange(context.Background(), Request{Token: token, Role: roleName}).Refusal != nil {
			return
		}
		members := reread(t, header)
		typ, present := members["typ"]
		_, crit := members["crit"]
		if members["alg"] != "ES256" || members["kid"] != "ec-1" || present && typ != "JWT" || crit {
			t.Errorf("accepted: %q", header)
		}
	})
}

func FuzzClaims(f *testing.F) {
	b := newParty(f, Strict())
	others := b.verifiers()
	good := b.forge(nil).claims
	f.Add(toJSON(good))
	f.Add(like(good, `"sub":"admin"`))
	f.Add(like(good, `"SUB":"admin"`))
	f.Add(like(without(good, "exp"), `"exp":1e300`))
	f.Add(like(without(good, "aud"), `"aud":["x",["lab"]]`))
	f.Add(like(good, `"nbf":null`))
	f.Add(`{"iss":"` + b.issuer.URL + `"}`)
	f.Add("[]")
	f.Fuzz(func(t *testing.T, body string) {
		token := ecKey().sign(`{"alg":"ES256","kid":"ec-1"}`, body)
		v := b.core.Exchange(context.Background(), Request{Token: token, Role: roleName})
		if v.Refusal != nil {
			return
		}
		members := reread(t, body)
		if members["iss"] != b.issuer.URL || members["sub"] != subject || !strings.Contains(toJSON(members["aud"]), `"lab`) {
			t.Errorf("accepted: %q", body)
		}
		for name, verify := range others {
			if err := verify(token); err != nil && v.Claims.Accepted == audience {
				t.Errorf("accepted, but %s says %v: %q", name, err, body)
			}
		}
	})
}

func FuzzKeySet(f *testing.F) {
	f.Add([]byte(keySetOf(rsaKey().jwk(), ecKey().jwk())))
	f.Add([]byte(keySetOf(rsaKey().jwk(), rsaKey().jwk())))
	f.Add([]byte(`{"keys":[{"kty":"OKP","crv":"Ed25519","kid":"a","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}`))
	f.Add([]byte(`{"keys":[{"kty":"RSA","kid":"a","n":"AQAB","e":"AQABAQABAQABAQAB"}]}`))
	f.Add([]byte(`{"keys":[{"kty":"EC","crv":"P-256","kid":"a","x":"","y":null}]}`))
	f.Add([]byte(`{"keys":[{"kty":"oct","kid":"a","k":"AQAB"},{}]}`))
	f.Add([]byte(`{"keys":{}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		set, err := parseKeySet(data, 10, KeyRules{})
		if err != nil {
			return
		}
		for kid, key := range set.keys {
			if kid == "" || kid != key.kid || set.unusable[kid] != nil {
				t.Errorf("kid %q of key %q", kid, key.kid)
			}
			if k, ok := key.key.(*rsa.PublicKey); ok && (k.N.BitLen() < minRSABits || k.N.BitLen() > maxRSABits) {
				t.Errorf("RSA key of %d bits", k.N.BitLen())
			}
			key.verify("RS256", []byte("x"), []byte("y"))
			key.verify("ES256", []byte("x"), make([]byte, 64))
			key.verify("EdDSA", []byte("x"), make([]byte, 64))
		}
	})
}

func FuzzDiscovery(f *testing.F) {
	const issuer = "https://issuer.example/c/1"
	f.Add([]byte(`{"issuer":"https://issuer.example/c/1","jwks_uri":"https://issuer.example/c/1/openid/v1/jwks"}`))
	f.Add([]byte(`{"issuer":"https://issuer.example/c/1","jwks_uri":"https://issuer.example@evil.example/"}`))
	f.Add([]byte(`{"issuer":"https://issuer.example/c/1","jwks_uri":"https://issuer.example:443/%2f..//\\evil.example"}`))
	f.Add([]byte(`{"issuer":"https://issuer.example/c/1","ISSUER":"x","jwks_uri":"//issuer.example"}`))
	f.Add([]byte(`{}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		jwksURI, err := parseDiscovery(data, issuer)
		if err != nil {
			return
		}
		u, err := url.Parse(jwksURI)
		if err != nil || u.Scheme != "https" || !strings.EqualFold(u.Hostname(), "issuer.example") || u.User != nil || u.Port() != "" && u.Port() != "443" {
			t.Errorf("keys would be fetched from %q", jwksURI)
		}
	})
}

func FuzzStringLike(f *testing.F) {
	f.Add("system:serviceaccount:*:cart", "system:serviceaccount:shop:cart")
	f.Add("a?c*", "abc")
	f.Add("**?", "")
	f.Add("a|b", "a")
	f.Add("*a*a*b", "aaaaaaaaaaaaaaaa")
	f.Fuzz(func(t *testing.T, pattern, s string) {
		if len(pattern) > 200 || len(s) > 200 {
			return
		}
		pattern, s = strings.ToValidUTF8(pattern, ""), strings.ToValidUTF8(s, "")
		expression := strings.NewReplacer(`\*`, `.*`, `\?`, `.`).Replace(regexp.QuoteMeta(pattern))
		want := regexp.MustCompile(`(?s)\A(?:` + expression + `)\z`).MatchString(s)
		if got := stringLike(pattern, s); got != want {
			t.Errorf("%q matches %q: %v, want %v", pattern, s, got, want)
		}
	})
}

// FuzzJSON compares the strict decoder with encoding/json: what it accepts, it
// reads in the same way.
func FuzzJSON(f *testing.F) {
	for _, seed := range []string{`{}`, `{"a":1,"b":[true,false,null,-0.5e+7],"c":{"d":"\u00e9\\\"/"}}`, `{"a":1,"a":{"b":2}}`, ` { "a" : [ ] } `,
		`{"":""}`, `{"a":"\ud83d\ude00"}`, `{"a":"\ud83d"}`, `{"a":}`, `{"a":1}}`, "{\"a\":\"\xff\"}", `[{}]`, `{"a":"\\"}`} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		got, err := decodeObject(data)
		if err != nil {
			return
		}
		d := json.NewDecoder(bytes.NewReader(data))
		d.UseNumber()
		var want map[string]any
		if err := d.Decode(&want); err != nil || !reflect.DeepEqual(got.members, want) {
			t.Errorf("%q: %v, encoding/json has %v (%v)", data, got.members, want, err)
		}
	})
}
