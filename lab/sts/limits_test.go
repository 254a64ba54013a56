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
