package sts

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/oidclab/oidclab/lab/clock"
)

// KeySetState is what a Core holds of one issuer's keys.
type KeySetState struct {
	Issuer      string    `json:"issuer"`
	Kids        []string  `json:"kids"`                // usable keys, sorted
	FetchedAt   time.Time `json:"fetchedAt,omitzero"`  // of these keys, lab time; zero if there are none yet, or they were uploaded
	Discoveries int       `json:"discoveries"`         // fetches of the discovery document, failed ones included
	Fetches     int       `json:"fetches"`             // fetches of the key set, failed ones included
	LastError   string    `json:"lastError,omitempty"` // of the last fetch; empty if it succeeded
}

// keyCache keeps the keys of one issuer as its policy says.
type keyCache struct {
	issuer   string
	policy   CachePolicy
	rules    KeyRules
	client   *http.Client
	clock    clock.Clock
	uploaded bool // set was uploaded: it is used as it is, and nothing is ever fetched

	// The lock is never held during a fetch, so a cached key is always at hand.
	mu          sync.Mutex
	set         *keySet   // nil until the first fetch succeeds
	fetchedAt   time.Time // of set
	askedAt     time.Time // start of the last fetch, successful or not; zero if there was none
	lastError   error     // of the last fetch
	running     *fetch    // nil if none
	discoveries int
	fetches     int
}

// fetch is one run of discovery and key set that any number of callers wait for.
type fetch struct {
	done    chan struct{} // closed when the fields below are set
	jwksURI string        // empty if discovery failed
	set     *keySet       // nil if the fetch failed
	err     error
}

// lookup is how a key was searched for.
type lookup struct {
	key      publicKey
	fetch    *fetch        // what was waited for; nil if the cache decided
	age      time.Duration // of the key set that decided
	stale    bool          // past its TTL and used only because the issuer cannot be reached
	uploaded bool          // the key set that decided was uploaded
	err      error         // nil if there is a key
	unknown  bool          // err means that the issuer does not publish a usable key, not that it cannot be reached
}

// upload sets the keys once and for all, from a JWK set.
func (c *keyCache) upload(data []byte) error {
	set, err := parseKeySet(data, c.policy.MaxKeys, c.rules)
	if err != nil {
		return err
	}
	for kid, err := range set.unusable {
		return fmt.Errorf("key %s: %w", shown(kid), err)
	}
	if len(set.keys) == 0 {
		return errors.New("no keys: every token would be refused")
	}
	c.set, c.uploaded = set, true
	return nil
}

// find returns the key for kid. It fetches if the policy wants that, together
// with whoever else is waiting. A caller whose ctx ends stops waiting; the
// fetch goes on for the others.
func (c *keyCache) find(ctx context.Context, kid string) lookup {
	if c.uploaded {
		found := c.choose(c.set, 0, kid)
		found.uploaded = true
		return found
	}
	c.mu.Lock()
	now := c.clock.Now()
	if c.fresh(now) {
		found := c.cached(now, kid)
		if found.err == nil || !c.policy.RefetchUnknownKid {
			c.mu.Unlock()
			return found
		}
	}
	f := c.running
	if f == nil {
		if wait, held := c.held(now); held {
			defer c.mu.Unlock()
			return c.without(now, kid, fmt.Errorf("not fetched again for another %s", wait.Round(time.Second)))
		}
		f = &fetch{done: make(chan struct{})}
		c.running, c.askedAt = f, now
		go c.run(context.WithoutCancel(ctx), f)
	}
	c.mu.Unlock()

	select {
	case <-f.done:
	case <-ctx.Done():
		return lookup{err: fmt.Errorf("waiting for the issuer's keys: %w", context.Cause(ctx))}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	var found lookup
	if f.err == nil {
		found = c.choose(f.set, 0, kid)
	} else {
		found = c.without(c.clock.Now(), kid, nil)
	}
	found.fetch = f
	return found
}

// fresh says whether the cached set may be used as it is. A set from the
// future (the clock was moved back) is as good as none: its age is unknown.
func (c *keyCache) fresh(now time.Time) bool {
	if c.set == nil || now.Before(c.fetchedAt) {
		return false
	}
	return c.policy.TTL == 0 || now.Sub(c.fetchedAt) < c.policy.TTL
}

// held says whether, and for how long, the minimum interval forbids a fetch.
func (c *keyCache) held(now time.Time) (time.Duration, bool) {
	if c.askedAt.IsZero() || now.Before(c.askedAt) {
		return 0, false
	}
	wait := c.policy.MinInterval - now.Sub(c.askedAt)
	return wait, wait > 0
}

// without decides when the issuer was not asked (then held says why) or did
// not answer: by the cached set if it may still be used.
func (c *keyCache) without(now time.Time, kid string, held error) lookup {
	switch {
	case c.fresh(now):
		found := c.cached(now, kid)
		switch {
		case found.err == nil:
		case c.lastError != nil: // the kid may be in the set that could not be fetched
			found.err, found.unknown = also(c.lastError, held), false
		default:
			found.err = also(found.err, held)
		}
		return found
	case c.set != nil && !now.Before(c.fetchedAt) && now.Sub(c.fetchedAt) < c.policy.TTL+c.policy.ServeStale:
		found := c.cached(now, kid)
		found.stale = true
		if found.err != nil {
			found.err, found.unknown = c.lastError, false
		}
		return found
	case c.lastError != nil:
		return lookup{err: also(c.lastError, held)}
	default:
		return lookup{err: held}
	}
}

// also adds more, which may be nil, to err.
func also(err, more error) error {
	if more == nil {
		return err
	}
	return fmt.Errorf("%w; %w", err, more)
}

func (c *keyCache) cached(now time.Time, kid string) lookup {
	return c.choose(c.set, now.Sub(c.fetchedAt), kid)
}

func (c *keyCache) choose(set *keySet, age time.Duration, kid string) lookup {
	found := lookup{age: age}
	if key, ok := set.keys[kid]; ok {
		found.key = key
		return found
	}
	found.unknown = true
	if found.err = set.unusable[kid]; found.err == nil {
		found.err = errors.New("no key has this kid")
	}
	return found
}

// run fetches once and publishes the outcome. Discovery is done anew each
// time, so a moved jwks_uri is followed.
func (c *keyCache) run(ctx context.Context, f *fetch) {
	jwksURI, err := discover(ctx, c.client, c.issuer, c.policy)
	fetched := err == nil
	var set *keySet
	if fetched {
		set, err = c.fetchSet(ctx, jwksURI)
	}

	c.mu.Lock()
	defer c.mu.Unlock()
	c.discoveries++
	if fetched {
		c.fetches++
	}
	if err == nil {
		c.set, c.fetchedAt = set, c.askedAt
	}
	c.lastError, c.running = err, nil
	f.jwksURI, f.set, f.err = jwksURI, set, err
	close(f.done)
}

func (c *keyCache) fetchSet(ctx context.Context, jwksURI string) (*keySet, error) {
	body, err := get(ctx, c.client, jwksURI, c.policy)
	if err != nil {
		return nil, fmt.Errorf("key set: %w", err)
	}
	set, err := parseKeySet(body, c.policy.MaxKeys, c.rules)
	if err != nil {
		return nil, fmt.Errorf("key set: %s: %w", jwksURI, err)
	}
	return set, nil
}

func (c *keyCache) state() KeySetState {
	c.mu.Lock()
	defer c.mu.Unlock()
	state := KeySetState{Issuer: c.issuer, Discoveries: c.discoveries, Fetches: c.fetches}
	if c.set != nil {
		state.Kids, state.FetchedAt = c.set.kids(), c.fetchedAt
	}
	if c.lastError != nil {
		state.LastError = c.lastError.Error()
	}
	return state
}
