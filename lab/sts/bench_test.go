package sts

import (
	"context"
	"crypto"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"strings"
	"testing"

	"github.com/oidclab/oidclab/lab/trace"
)

// The core with a warm key cache must take no more than 1.25 times what the
// signature and the parsing take anyway:
//
//	go test -run '^$' -bench 'CoreWarm|BareVerify' -count 6 ./lab/sts

// kubernetesToken is as large as what an API server issues for a pod.
func kubernetesToken(b *party) string {
	return b.forge(func(f *forged) {
		f.rawBody = toJSON(map[string]any{
			"aud": []string{audience}, "exp": start.Unix() + 3607, "iat": start.Unix(), "iss": b.issuer.URL,
			"jti": "0c4f0a5c-51ef-4f86-a8b8-4e5bcd1b9a0e", "nbf": start.Unix(), "sub": subject,
			"kubernetes.io": map[string]any{
				"namespace":      "shop",
				"node":           map[string]any{"name": "node-1", "uid": "5a2f7f5e-7c6b-4a35-8b6b-7a1f0d6d7c11"},
				"pod":            map[string]any{"name": "cart-5d8f7c9b8-x2x7p", "uid": "b9a0d9f8-53c6-4d8d-8f52-2f0a9be0c7d4"},
				"serviceaccount": map[string]any{"name": "cart", "uid": "9c9c2f0e-7b9d-4f0e-9d55-0b1c6f5b6d10"},
				"warnafter":      start.Unix() + 3607,
			},
		})
	}).token()
}

func BenchmarkCoreWarm(b *testing.B) {
	for name, log := range map[string]*trace.Log{"untraced": nil, "traced": trace.New()} {
		b.Run(name, func(b *testing.B) {
			party := newParty(b, Strict(), func(c *Config) { c.Trace = log })
			request := Request{Token: kubernetesToken(party), Role: roleName}
			b.ReportAllocs()
			for b.Loop() {
				if v := party.core.Exchange(context.Background(), request); v.Refusal != nil {
					b.Fatal(v.Refusal)
				}
			}
		})
	}
}

func BenchmarkBareVerify(b *testing.B) {
	token := kubernetesToken(newParty(b, Strict()))
	public := rsaKey().private.Public().(*rsa.PublicKey)
	b.ReportAllocs()
	for b.Loop() {
		parts := strings.Split(token, ".")
		var header, claims map[string]any
		for i, into := range []any{&header, &claims} {
			data, err := base64.RawURLEncoding.DecodeString(parts[i])
			if err != nil {
				b.Fatal(err)
			}
			if err := json.Unmarshal(data, into); err != nil {
				b.Fatal(err)
			}
		}
		signature, err := base64.RawURLEncoding.DecodeString(parts[2])
		if err != nil {
			b.Fatal(err)
		}
		digest := sha256.Sum256([]byte(parts[0] + "." + parts[1]))
		if err := rsa.VerifyPKCS1v15(public, crypto.SHA256, digest[:], signature); err != nil {
			b.Fatal(err)
		}
	}
}
