package sts

import (
	"fmt"
	"testing"
)

// TestKeyRules: what AWS makes of keys that a strict party judges by the RFC.
func TestKeyRules(t *testing.T) {
	changed := func(key signingKey, member string, value any) map[string]any {
		jwk := key.jwk()
		jwk[member] = value
		return jwk
	}
	many := func(n int, jwk map[string]any) []map[string]any {
		list := []map[string]any{jwk}
		for i := 1; i < n; i++ {
			list = append(list, otherRSA().withKid(fmt.Sprint("more-", i)).jwk())
		}
		return list
	}
	for _, test := range []struct {
		name        string
		keys        []map[string]any
		strict, aws Reason // for a token by the RSA key; "" if it is accepted
	}{
		{"control", []map[string]any{rsaKey().jwk()}, "", ""},
		{"key_ops verify", []map[string]any{changed(rsaKey(), "key_ops", []any{"verify"})}, "", KeyUnknown},
		{"key_ops sign", []map[string]any{changed(rsaKey(), "key_ops", []any{"sign"})}, KeyUnknown, KeyUnknown},
		{"another alg", []map[string]any{changed(rsaKey(), "alg", "RS512")}, KeyUnknown, ""},
		{"alg of another kind", []map[string]any{changed(rsaKey(), "alg", "ES256")}, KeyUnknown, ""},
		{"use enc", []map[string]any{changed(rsaKey(), "use", "enc")}, KeyUnknown, KeyUnknown},
		{"100 RSA keys", many(100, rsaKey().jwk()), "", ""},
		{"101 RSA keys", many(101, rsaKey().jwk()), IssuerUnreachable, KeyUnknown},
	} {
		for _, profile := range []Profile{Strict(), AWS()} {
			b := newParty(t, profile)
			b.issuer.serveKeys(keySetOf(test.keys...))
			want := test.strict
			if profile.Name == "aws" {
				want = test.aws
			}
			name := test.name + ", " + profile.Name
			if want == "" {
				b.accepts(name, nil)
			} else {
				b.refuses(name, CheckKeys, want, nil)
			}
		}
	}
	// Too many keys of one kind leave the other kind alone.
	b := newParty(t, AWS())
	b.issuer.serveKeys(keySetOf(append(many(101, rsaKey().jwk()), ecKey().jwk())...))
	b.accepts("an EC key beside 101 RSA keys", func(f *forged) { f.key, f.header = ecKey(), map[string]any{"alg": "ES256", "kid": "ec-1"} })
}

// TestAnySubject: AWS reads a sub that others refuse, and no role trusts an
// empty one.
func TestAnySubject(t *testing.T) {
	roles := func(c *Config) {
		trusting := func(name string, condition Condition) {
			c.Roles = append(c.Roles, Role{name, []Statement{{c.Issuers[0].URL, []Condition{condition}}}})
		}
		trusting("number", Condition{StringEquals, "sub", []string{"12345"}})
		trusting("pattern", Condition{StringLike, "sub", []string{"system:*"}})
	}
	aws, strict := newParty(t, AWS(), roles), newParty(t, Strict(), roles)
	as := func(role string, sub any) func(*forged) {
		return func(f *forged) { f.role, f.claims["sub"] = role, sub }
	}
	aws.accepts("number", as("number", 12345))
	aws.accepts("the same as text", as("number", "12345"))
	aws.refuses("another number", CheckSubject, SubjectMismatch, as("number", 12346))
	aws.refuses("empty", CheckSubject, SubjectMismatch, as("pattern", ""))
	aws.refuses("null", CheckClaims, ClaimInvalid, as("pattern", nil))
	aws.refuses("array", CheckClaims, ClaimInvalid, as("pattern", []string{subject}))
	strict.accepts("control", as("pattern", subject))
	strict.refuses("number", CheckClaims, ClaimInvalid, as("number", 12345))
	strict.refuses("empty", CheckClaims, ClaimInvalid, as("pattern", ""))
	if v := aws.exchange(as("number", 12345)); v.Claims == nil || v.Claims.Subject != "12345" {
		t.Errorf("claims %+v", v.Claims)
	}
}
