package sts

import (
	"context"
	"crypto/elliptic"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/oidclab/oidclab/lab/trace"
)

// longLived makes tokens valid for a day around the start, so that only the
// key cache decides.
func longLived(f *forged) { with(f.claims, "exp", start.Unix()+86400) }

// by returns a change that signs with key.
func by(key signingKey) func(*forged) {
	return func(f *forged) {
		longLived(f)
		f.key = key
		with(f.header, "kid", key.kid)
	}
}

// fetched checks how often discovery document and key set were asked for.
func (b *party) fetched(name string, want int) {
	b.tb.Helper()
	discoveries, fetches := b.issuer.counts()
	if discoveries != want || fetches != want {
		b.tb.Errorf("%s: %d discoveries and %d key sets fetched, want %d of each", name, discoveries, fetches, want)
	}
	if s := b.core.Cached(b.issuer.URL); s.Discoveries != want || s.Fetches != want {
		b.tb.Errorf("%s: the state says %d discoveries and %d fetches, want %d of each", name, s.Discoveries, s.Fetches, want)
	}
}

func TestRefetchOnUnknownKid(t *testing.T) {
	b := newParty(t, Strict())
	b.fetched("before the first token", 0)
	b.accepts("cold", longLived)
	b.accepts("warm", longLived)
	b.fetched("warm", 1)

	b.issuer.publish(rsaKey(), otherRSA())
	b.clock.Advance(30*time.Second - 1)
	b.refuses("new key within the interval", CheckKeys, KeyUnknown, by(otherRSA()))
	b.fetched("within the interval", 1)
	b.clock.Advance(1)
	b.accepts("new key after the interval", by(otherRSA()))
	b.fetched("after the interval", 2)
	b.refuses("a kid of nobody", CheckKeys, KeyUnknown, by(rsaKey().withKid("nobody")))
	b.fetched("the interval starts anew", 2)
	b.accepts("old key, still published", longLived)
}

func TestRemovedKeyIsAcceptedForTheTTL(t *testing.T) {
	for _, profile := range Profiles() {
		b := newParty(t, profile)
		b.accepts("cold", longLived)
		b.issuer.publish(otherRSA())
		if profile.Cache.TTL == 0 {
			b.clock.Advance(23 * time.Hour)
			b.accepts(profile.Name+": removed, never asked again", longLived)
			b.fetched(profile.Name, 1)
			continue
		}
		b.clock.Advance(profile.Cache.TTL - 1)
		b.accepts(profile.Name+": removed, within the TTL", longLived)
		b.fetched("within the TTL", 1)
		b.clock.Advance(1)
		b.refuses(profile.Name+": removed, after the TTL", CheckKeys, KeyUnknown, longLived)
		b.fetched("after the TTL", 2)
		b.accepts("control", by(otherRSA()))
	}
}

func TestSTACKITWaitsForTheHour(t *testing.T) {
	b := newParty(t, STACKIT())
	b.accepts("cold", longLived)
	b.issuer.publish(rsaKey(), otherRSA())
	b.clock.Advance(time.Hour - 1)
	b.refuses("new key within the hour", CheckKeys, KeyUnknown, by(otherRSA()))
	b.fetched("within the hour", 1)
	b.clock.Advance(1)
	b.accepts("new key after the hour", by(otherRSA()))
	b.fetched("after the hour", 2)
}

func TestBadSignatureDoesNotRefetch(t *testing.T) {
	b := newParty(t, Strict())
	b.accepts("cold", longLived)
	b.clock.Advance(time.Minute)
	for range 20 {
		b.refuses("forged", CheckSignature, SignatureInvalid, by(otherRSA().withKid("rsa-1")))
	}
	b.fetched("after forged tokens", 1)
}

func TestClockMovedBackMakesTheCacheStale(t *testing.T) {
	b := newParty(t, Strict())
	b.clock.Advance(time.Hour)
	b.accepts("cold", longLived)
	b.clock.Freeze(start)
	b.issuer.publish(otherRSA())
	b.refuses("keys from the future", CheckKeys, KeyUnknown, longLived)
	b.fetched("after the clock moved back", 2)
	b.accepts("control", by(otherRSA()))
	b.fetched("the new set is cached", 2)
}

func TestFailingIssuerIsNotHammered(t *testing.T) {
	b := newParty(t, Strict())
	b.issuer.breakKeys()
	for range 50 {
		b.refuses("down", CheckKeys, IssuerUnreachable, longLived)
	}
	b.fetched("while down", 1)
	b.issuer.publish(rsaKey())
	b.clock.Advance(30*time.Second - 1)
	if r := b.refuses("up, within the interval", CheckKeys, IssuerUnreachable, longLived); r.Err == nil {
		t.Error("the cause is lost")
	}
	b.clock.Advance(1)
	b.accepts("up, after the interval", longLived)
	b.fetched("up", 2)
	if s := b.core.Cached(b.issuer.URL); s.LastError != "" || !slices.Equal(s.Kids, []string{"rsa-1"}) || !s.FetchedAt.Equal(b.clock.Now()) {
		t.Errorf("state %+v", s)
	}
}

func TestIssuerDownWhileKeysAreCached(t *testing.T) {
	b := newParty(t, Strict())
	b.accepts("cold", longLived)
	b.issuer.breakKeys()
	b.clock.Advance(time.Minute)
	b.refuses("unknown kid", CheckKeys, IssuerUnreachable, by(otherRSA()))
	b.refuses("unknown kid, not asked again", CheckKeys, IssuerUnreachable, by(otherRSA()))
	b.fetched("unknown kid", 2)
	b.accepts("cached key", longLived)
	if s := b.core.Cached(b.issuer.URL); s.LastError == "" || len(s.Kids) != 2 {
		t.Errorf("state %+v", s)
	}
	b.clock.Advance(10 * time.Minute)
	b.refuses("past the TTL", CheckKeys, IssuerUnreachable, longLived)
	b.issuer.publish(rsaKey())
	b.clock.Advance(30 * time.Second)
	b.accepts("up again", longLived)
}

func TestServeStale(t *testing.T) {
	profile := Strict()
	profile.Cache.ServeStale = time.Hour
	b := newParty(t, profile)
	b.accepts("cold", longLived)
	b.issuer.breakKeys()
	b.clock.Advance(profile.Cache.TTL + time.Hour - 1)
	b.accepts("stale, after a failed fetch", longLived)
	b.accepts("stale, not asked again", longLived)
	b.fetched("stale", 2)
	b.refuses("unknown kid while stale", CheckKeys, IssuerUnreachable, by(otherRSA()))
	b.clock.Advance(1)
	b.refuses("past the stale time", CheckKeys, IssuerUnreachable, longLived)
	b.clock.Advance(time.Minute)
	b.issuer.publish(rsaKey())
	b.accepts("up again", longLived)
}

func TestKeysWithoutTTLAreKept(t *testing.T) {
	profile := Strict()
	profile.Cache.TTL = 0
	b := newParty(t, profile)
	b.accepts("cold", longLived)
	b.issuer.publish(otherRSA())
	b.clock.Advance(23 * time.Hour)
	b.accepts("removed, never asked again", longLived)
	b.fetched("kept", 1)
	b.accepts("a new kid replaces the set", by(otherRSA()))
	b.refuses("removed", CheckKeys, KeyUnknown, longLived)
}

func TestUploadedKeysAreASnapshot(t *testing.T) {
	b := newParty(t, Strict(), func(c *Config) { c.Issuers[0].KeySet = []byte(keySetOf(rsaKey().jwk())) })
	b.issuer.publish(otherRSA())
	b.accepts("uploaded", longLived)
	refusal := b.refuses("published only", CheckKeys, KeyUnknown, by(otherRSA()))
	if !strings.Contains(refusal.Hint, "upload") {
		t.Errorf("hint %q", refusal.Hint)
	}
	b.clock.Advance(24*time.Hour - time.Second)
	b.accepts("uploaded, a day later", longLived)
	b.fetched("never", 0)
	state := b.core.Cached(b.issuer.URL)
	if !slices.Equal(state.Kids, []string{"rsa-1"}) || !state.FetchedAt.IsZero() {
		t.Errorf("state %+v", state)
	}
	events, _ := b.trace.Since(0)
	if !slices.ContainsFunc(events, func(e trace.Event) bool { return e.Step == "jwks" && e.Detail == "uploaded" }) {
		t.Error("no event says that the keys were uploaded")
	}
}

// TestKeysBelongToTheirIssuer has two issuers with the same kid.
func TestKeysBelongToTheirIssuer(t *testing.T) {
	evil := newIssuer(t, otherRSA().withKid("rsa-1"))
	b := newParty(t, Strict(), func(c *Config) {
		c.Issuers = append(c.Issuers, Issuer{URL: evil.URL, Audiences: []string{audience}})
	})
	// httptest servers share one certificate, so the client trusts both.
	b.refuses("signed by the other issuer", CheckSignature, SignatureInvalid, by(otherRSA().withKid("rsa-1")))
	b.refuses("another issuer's good token", CheckRole, IssuerNotTrusted, func(f *forged) {
		by(otherRSA().withKid("rsa-1"))(f)
		with(f.claims, "iss", evil.URL)
	})
	b.accepts("control", nil)
}

// TestNoIssuerSpeaksForAnother has issuers whose keys have the same kid, and
// tokens of each that are signed by each.
func TestNoIssuerSpeaksForAnother(t *testing.T) {
	const number = 32
	var issuers []Issuer
	var trust []Statement
	keys := map[string]signingKey{}
	for range number {
		key := newEC("shared", "ES256", elliptic.P256())
		url := newIssuer(t, key).URL
		keys[url] = key
		issuers = append(issuers, Issuer{URL: url, Audiences: []string{audience}})
		trust = append(trust, Statement{Issuer: url, Conditions: []Condition{{StringEquals, "sub", []string{subject}}}})
	}
	b := newParty(t, Strict(), func(c *Config) { c.Issuers, c.Roles[0].Trust = issuers, trust })
	for issuer := range keys {
		for signer, key := range keys {
			said := func(f *forged) {
				f.key, f.header = key, map[string]any{"alg": "ES256", "kid": "shared"}
				f.claims["iss"] = issuer
			}
			if signer == issuer {
				b.accepts("control", said)
			} else {
				b.refuses("signed by another issuer", CheckSignature, SignatureInvalid, said)
			}
		}
	}
}

// gate is a handler that holds requests until it is opened.
type gate struct {
	arrived, open chan struct{}
	once          sync.Once
	next          http.HandlerFunc
}

func newGate(next http.HandlerFunc) *gate {
	return &gate{arrived: make(chan struct{}), open: make(chan struct{}), next: next}
}

func (g *gate) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	g.once.Do(func() { close(g.arrived) })
	<-g.open
	g.next(w, r)
}

func TestOneFetchForAllCallers(t *testing.T) {
	b := newParty(t, Strict())
	g := newGate(text(keySetOf(rsaKey().jwk())))
	b.issuer.handleKeys(g.ServeHTTP)
	token := b.forge(nil).token()
	request := Request{Token: token, Role: roleName}

	// The first caller starts the fetch and gives up while it is held.
	ctx, cancel := context.WithCancel(context.Background())
	first := make(chan Verdict, 1)
	go func() { first <- b.core.Exchange(ctx, request) }()
	<-g.arrived
	cancel()
	if v := <-first; v.Refusal == nil || v.Refusal.Reason != IssuerUnreachable || !errors.Is(v.Refusal, context.Canceled) {
		t.Errorf("the first caller: %v", v.Refusal)
	}

	var done sync.WaitGroup
	verdicts := make([]Verdict, 999)
	for i := range verdicts {
		done.Go(func() { verdicts[i] = b.core.Exchange(context.Background(), request) })
	}
	close(g.open)
	done.Wait()
	for i, v := range verdicts {
		if v.Refusal != nil {
			t.Fatalf("caller %d: %v", i, v.Refusal)
		}
	}
	b.fetched("all callers", 1)
}

// TestGoodTokensPassDuringAStorm holds the fetch for an unknown kid: tokens
// whose key is cached must not wait for it.
func TestGoodTokensPassDuringAStorm(t *testing.T) {
	b := newParty(t, Strict())
	b.accepts("cold", longLived)
	b.clock.Advance(time.Minute)
	g := newGate(text(keySetOf(rsaKey().jwk(), otherRSA().jwk())))
	b.issuer.handleKeys(g.ServeHTTP)

	var storm sync.WaitGroup
	stormed := make([]Verdict, 200)
	for i := range stormed {
		token := b.forge(by(rsaKey().withKid(fmt.Sprint("storm-", i)))).token()
		storm.Go(func() { stormed[i] = b.core.Exchange(context.Background(), Request{Token: token, Role: roleName}) })
	}
	<-g.arrived
	for range 100 {
		b.accepts("during the storm", longLived)
	}
	close(g.open)
	storm.Wait()
	for _, v := range stormed {
		if v.Refusal == nil || v.Refusal.Reason != KeyUnknown {
			t.Errorf("a kid of nobody: %v", v.Refusal)
		}
	}
	b.fetched("the storm", 2)
	b.accepts("the key that was rotated in meanwhile", by(otherRSA()))
}

// TestStormOnTheClock has forty tokens a second with kids of nobody for two
// minutes of the lab, and a rotation in between. The issuer is asked once per
// interval, and the first token of the new key waits for no more than that.
func TestStormOnTheClock(t *testing.T) {
	b := newParty(t, Strict())
	b.accepts("cold", longLived)
	b.issuer.publish(rsaKey())
	good := b.forge(longLived)
	signed := strings.SplitN(good.token(), ".", 2)[1]
	const rotation = 45 * time.Second
	acceptedAfter := time.Duration(0)
	for n := range 4_800 {
		b.clock.Advance(25 * time.Millisecond)
		since := b.clock.Now().Sub(start)
		header := encode(toJSON(map[string]any{"alg": "RS256", "kid": fmt.Sprint("storm-", n)}))
		if v := b.core.Exchange(t.Context(), Request{Token: header + "." + signed, Role: roleName}); v.Refusal == nil || v.Refusal.Reason != KeyUnknown {
			t.Fatalf("after %s: a kid of nobody: %v", since, v.Refusal)
		}
		switch {
		case since == rotation:
			b.issuer.publish(rsaKey(), otherRSA())
		case since > rotation && acceptedAfter == 0 && n%10 == 0 && b.exchange(by(otherRSA())).Refusal == nil:
			acceptedAfter = since - rotation
		}
		if n%100 == 0 {
			b.accepts("a good token in the storm", longLived)
		}
	}
	if limit := b.core.cfg.Profile.Cache.MinInterval + time.Second; acceptedAfter == 0 || acceptedAfter > limit {
		t.Errorf("the new key was accepted after %s, want at most %s", acceptedAfter, limit)
	}
	b.fetched("two minutes", 1+int(2*time.Minute/b.core.cfg.Profile.Cache.MinInterval))
}

// TestVaultAsksForEveryUnknownKid, as go-oidc does: a storm on Vault is one on
// the issuer.
func TestVaultAsksForEveryUnknownKid(t *testing.T) {
	b := newParty(t, Vault())
	b.accepts("cold", nil)
	for range 20 {
		b.refuses("a kid of nobody", CheckKeys, KeyUnknown, by(rsaKey().withKid("nobody")))
	}
	b.fetched("the storm", 21)
	b.accepts("control", nil)
}

// TestFailingIssuerIsAskedOnce by any number of callers at a time.
func TestFailingIssuerIsAskedOnce(t *testing.T) {
	b := newParty(t, Strict())
	g := newGate(func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "down", http.StatusServiceUnavailable) })
	b.issuer.handleKeys(g.ServeHTTP)
	request := Request{Token: b.forge(nil).token(), Role: roleName}
	verdicts := make([]Verdict, 500)
	var callers sync.WaitGroup
	for i := range verdicts {
		callers.Go(func() { verdicts[i] = b.core.Exchange(context.Background(), request) })
	}
	<-g.arrived
	close(g.open)
	callers.Wait()
	for i, v := range verdicts {
		if v.Refusal == nil || v.Refusal.Reason != IssuerUnreachable {
			t.Fatalf("caller %d: %v", i, v.Refusal)
		}
	}
	b.fetched("all callers", 1)
	b.issuer.publish(rsaKey())
	b.clock.Advance(30 * time.Second)
	b.accepts("control", nil)
}

func TestFetchHasATimeLimit(t *testing.T) {
	profile := Strict()
	profile.Cache.FetchTimeout = time.Second
	b := newParty(t, profile)
	hang := func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }
	b.issuer.handleKeys(hang)
	r := b.refuses("a key set that hangs", CheckKeys, IssuerUnreachable, nil)
	if !errors.Is(r, context.DeadlineExceeded) {
		t.Error(r)
	}
	b.issuer.publish(rsaKey())
	b.clock.Advance(30 * time.Second)
	b.accepts("control", nil)
}

func TestStateOfAnUnknownIssuer(t *testing.T) {
	b := newParty(t, Strict())
	if s := b.core.Cached("https://nobody.example"); s.Fetches != 0 || s.Kids != nil || s.Issuer != "https://nobody.example" {
		t.Errorf("state %+v", s)
	}
}
