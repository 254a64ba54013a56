package sts

import (
	"context"
	"runtime"
	"strings"
	"testing"
)

// TestHugeInputIsCheap gives what a stranger can send without any key: it must
// be refused before much is made of it.
func TestHugeInputIsCheap(t *testing.T) {
	b := newParty(t, Strict())
	huge := map[string]string{
		"dots":           strings.Repeat(".", 1e6),
		"a large header": strings.Repeat("A", 1e6) + ".e30.",
		"a large body":   encode(`{"alg":"RS256","kid":"rsa-1"}`) + "." + strings.Repeat("A", 1e6) + ".",
		"deep nesting":   encode(`{"alg":"RS256","kid":"rsa-1"}`) + "." + encode(strings.Repeat(`{"a":`, 2_000)+"1"+strings.Repeat("}", 2_000)) + ".",
		"many members":   encode(`{"alg":"RS256","kid":"rsa-1"}`) + "." + encode(`{"a":`+strings.Repeat(`[],"a":`, 1_500)+"1}") + ".",
		"a wide array":   encode(`{"alg":"RS256","kid":"rsa-1"}`) + "." + encode(`{"a":[`+strings.Repeat("[],", 3_900)+"1]}") + ".",
	}
	for name, token := range huge {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		v := b.core.Verify(context.Background(), token)
		runtime.ReadMemStats(&after)
		if v.Refusal == nil {
			t.Errorf("%s: accepted", name)
		}
		// The hash that names the journey takes a copy of the token.
		if used := after.TotalAlloc - before.TotalAlloc; used > 512<<10+uint64(len(token)) {
			t.Errorf("%s: %d bytes allocated for a token of %d", name, used, len(token))
		}
	}
	if discoveries, fetches := b.issuer.counts(); discoveries+fetches > 0 {
		t.Error("keys were fetched")
	}
	b.accepts("control", nil)
}

// TestHugeDocumentsAreCheap serves what an issuer that turned against its relying
// parties can serve. Some of it is allocated by the server, in this process.
func TestHugeDocumentsAreCheap(t *testing.T) {
	list := func(key string, times int) string { return `{"keys":[` + strings.Repeat(key+",", times) + key + `]}` }
	wide := strings.TrimSuffix(toJSON(map[string]any{"kty": "RSA", "kid": "k", "e": "AQAB", "n": strings.Repeat("_", 10_900)}), "\n")
	for name, change := range map[string]func(*testIssuer){
		"gzip bomb as discovery document": func(i *testIssuer) { i.handleDiscovery(bomb) },
		"gzip bomb as key set":            func(i *testIssuer) { i.handleKeys(bomb) },
		"10 000 keys":                     func(i *testIssuer) { i.serveKeys(list(`{"kty":"RSA","kid":"k","n":"_w","e":"AQAB"}`, 10_000)) },
		"empty keys up to the limit":      func(i *testIssuer) { i.serveKeys(list("{}", 340_000)) },
		"90 keys of 65 000 bits":          func(i *testIssuer) { i.serveKeys(list(wide, 90)) },
		"nesting up to the limit":         func(i *testIssuer) { i.serveKeys(strings.Repeat(`{"keys":[`, 110_000)) },
		"one name up to the limit":        func(i *testIssuer) { i.serveDiscovery(`{"` + strings.Repeat("n", 1<<20-100) + `":1}`) },
	} {
		b := newParty(t, Strict())
		change(b.issuer)
		request := Request{Token: b.forge(nil).token(), Role: roleName}
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		v := b.core.Exchange(context.Background(), request)
		runtime.ReadMemStats(&after)
		if v.Refusal == nil || v.Refusal.Check != CheckKeys {
			t.Errorf("%s: %v", name, v.Refusal)
		}
		if used := after.TotalAlloc - before.TotalAlloc; used > 12<<20 {
			t.Errorf("%s: %d bytes allocated", name, used)
		}
	}
}
