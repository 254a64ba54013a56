package sts

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/oidclab/oidclab/lab/trace"
)

// Core is the verifying part of one relying party: its registered issuers,
// their cached keys, its roles. It is safe for concurrent use.
type Core struct {
	cfg     Config
	issuers map[string]*registeredIssuer // by URL
	roles   map[string]Role              // by name

	// What the profile wants of every token, as results show it.
	required                                        []string
	wantSize, wantAlgorithms, wantClaims, wantTimes string
}

// registeredIssuer is an issuer with its keys.
type registeredIssuer struct {
	Issuer
	keys *keyCache
}

// New returns a core that judges by cfg, whose slices must not be changed
// afterwards. It does no I/O: keys are fetched when the first token needs
// them. The error names the first thing in cfg that would let in tokens that
// nobody meant to trust, or that cannot work.
func New(cfg Config) (*Core, error) {
	c := &Core{
		cfg: cfg, issuers: make(map[string]*registeredIssuer), roles: make(map[string]Role),
		required:       requiredClaims(cfg.Profile),
		wantSize:       fmt.Sprintf("at most %d bytes", cfg.Profile.MaxTokenBytes),
		wantAlgorithms: strings.Join(cfg.Profile.Algorithms, ", "),
		wantTimes:      wantTimes(cfg.Profile),
	}
	c.wantClaims = strings.Join(c.required, ", ")
	if err := c.register(); err != nil {
		return nil, fmt.Errorf("relying party %q: %w", cfg.Party, err)
	}
	return c, nil
}

func (c *Core) register() error {
	if c.cfg.Client == nil || c.cfg.Clock == nil {
		return errors.New("a client that trusts the issuers and a clock are needed")
	}
	if err := validateProfile(c.cfg.Profile); err != nil {
		return err
	}
	client := *c.cfg.Client
	client.Jar = nil
	client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	for _, issuer := range c.cfg.Issuers {
		if err := validateIssuer(issuer); err != nil {
			return fmt.Errorf("issuer %q: %w", issuer.URL, err)
		}
		if c.issuers[issuer.URL] != nil {
			return fmt.Errorf("issuer %q: registered twice; give it all its audiences at once", issuer.URL)
		}
		keys := &keyCache{
			issuer: issuer.URL,
			policy: c.cfg.Profile.Cache,
			rules:  c.cfg.Profile.Keys,
			client: &client,
			clock:  c.cfg.Clock,
		}
		if issuer.KeySet != nil {
			if err := keys.upload(issuer.KeySet); err != nil {
				return fmt.Errorf("issuer %q: uploaded key set: %w", issuer.URL, err)
			}
		}
		c.issuers[issuer.URL] = &registeredIssuer{issuer, keys}
	}
	for _, role := range c.cfg.Roles {
		if err := c.validateRole(role); err != nil {
			return fmt.Errorf("role %q: %w", role.Name, err)
		}
		c.roles[role.Name] = role
	}
	return nil
}

func validateProfile(p Profile) error {
	fail := func(format string, args ...any) error {
		return fmt.Errorf("profile %q: %s", p.Name, fmt.Sprintf(format, args...))
	}
	for _, alg := range p.Algorithms {
		if _, ok := algorithmNamed(alg); !ok {
			return fail("algorithm %q is not an asymmetric signature this package verifies", alg)
		}
	}
	cache := p.Cache
	switch {
	case len(p.Algorithms) == 0:
		return fail("no algorithms: every token would be refused")
	case (len(p.Types) == 0) != p.AnyType:
		return fail(`want types, or AnyType: every token would be refused; "" stands for an absent typ`)
	case p.MaxTokenBytes <= 0 || p.MaxHeaderBytes <= 0 || cache.MaxBodyBytes <= 0 || cache.MaxKeys <= 0 || cache.FetchTimeout <= 0:
		return fail("MaxTokenBytes, MaxHeaderBytes, Cache.MaxBodyBytes, Cache.MaxKeys and Cache.FetchTimeout must be set: nothing a stranger sends is read without a bound")
	case p.Skew < 0 || p.NotBeforeSkew < 0 || p.MaxAge < 0 || p.ImpliedLife < 0 || cache.TTL < 0 || cache.MinInterval < 0 || cache.ServeStale < 0:
		return fail("a negative duration")
	case p.MaxAge > 0 && (p.IgnoreIssuedAt || p.ImpliedLife > 0):
		return fail("MaxAge %s is counted from iat, which this profile does not require", p.MaxAge)
	case p.ImpliedLife > 0 && p.IgnoreIssuedAt:
		return fail("ImpliedLife %s may be counted from iat, which this profile does not compare: it could begin at any time", p.ImpliedLife)
	case cache.TTL > 0 && cache.MinInterval > cache.TTL:
		return fail("Cache.MinInterval %s is longer than Cache.TTL %s: keys would be out of date and could not be fetched", cache.MinInterval, cache.TTL)
	}
	return nil
}

func validateIssuer(issuer Issuer) error {
	u, err := url.Parse(issuer.URL)
	if err != nil {
		return err
	}
	// OpenID Connect Discovery 1.0 section 3: an https URL without query and fragment.
	if !strings.HasPrefix(issuer.URL, "https://") || u.Hostname() == "" || u.User != nil || strings.ContainsAny(issuer.URL, "?#") {
		return errors.New("want an https URL without user, query and fragment")
	}
	if len(issuer.Audiences) == 0 || slices.Contains(issuer.Audiences, "") {
		return errors.New("want at least one audience, none of them empty: without, a token made for anybody would be accepted")
	}
	return nil
}

// Exchange runs all checks on a token that asks to become a role. It waits for
// the issuer's keys no longer than ctx allows.
func (c *Core) Exchange(ctx context.Context, request Request) Verdict {
	return c.run(ctx, request, exchange[:])
}

// Verify runs the checks up to and including the audience: whether the token
// is good, not what it may become.
func (c *Core) Verify(ctx context.Context, token string) Verdict {
	return c.run(ctx, Request{Token: token}, exchange[:verified])
}

// Cached returns what is held of an issuer's keys; of an issuer that is not
// registered, nothing.
func (c *Core) Cached(issuer string) KeySetState {
	registered := c.issuers[issuer]
	if registered == nil {
		return KeySetState{Issuer: issuer}
	}
	return registered.keys.state()
}

// run does the steps in order up to the first that refuses.
func (c *Core) run(ctx context.Context, request Request, steps []step) Verdict {
	a := &attempt{core: c, request: request, journey: trace.JourneyOf(request.Token)}
	verdict := Verdict{Journey: a.journey, Results: make([]Result, 0, len(steps))}
	for _, s := range steps {
		if verdict.Refusal != nil {
			verdict.Results = append(verdict.Results, Result{Check: s.check, Outcome: "not reached"})
			continue
		}
		found, refusal := s.run(ctx, a)
		result := Result{Check: s.check, Outcome: "passed", Want: found.want, Got: found.got, Detail: found.detail}
		event := trace.Event{Step: "check", Name: string(s.check), Outcome: trace.OK}
		if refusal != nil {
			refusal.Check = s.check
			verdict.Refusal = refusal
			result = Result{Check: s.check, Outcome: "refused", Want: refusal.Want, Got: refusal.Got, Detail: refusal.detail()}
			event.Outcome, event.Reason = trace.Refused, string(refusal.Reason)
		}
		event.Want, event.Got, event.Detail = result.Want, result.Got, result.Detail
		a.trace(event)
		verdict.Results = append(verdict.Results, result)
	}
	if verdict.Refusal == nil {
		verdict.Claims = &a.claims
	}
	return verdict
}

// trace records an event of the token's journey.
func (a *attempt) trace(event trace.Event) {
	event.Journey, event.Station = a.journey, a.core.cfg.Party
	a.core.cfg.Trace.Add(event)
}
