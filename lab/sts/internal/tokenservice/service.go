package tokenservice

import (
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"time"

	"github.com/oidclab/oidclab/lab/clock"
	"github.com/oidclab/oidclab/lab/sts"
	"github.com/oidclab/oidclab/lab/trace"
)

// Config is what the configurations of token services have in common.
type Config struct {
	URL      string        // the service's own URL: an https origin, no trailing slash
	Party    string        // the name in traces
	Profile  sts.Profile   // how workloads' tokens are judged
	Lifetime time.Duration // of access tokens: at least a second

	Client *http.Client // trusts the lab CA
	Clock  clock.Clock
	Trace  *trace.Log // may be nil
}

// Service is a token service but for its protocol: it takes workloads' tokens
// for access tokens, which it signs, and knows who may use those for what.
type Service struct {
	Config
	*Signer
}

// New returns a service with a new signing key. What cfg does not say of party,
// profile and lifetime is that of defaults.
func New(cfg, defaults Config) (*Service, error) {
	if err := CheckOrigin(cfg.URL); err != nil {
		return nil, err
	}
	if cfg.Party == "" {
		cfg.Party = defaults.Party
	}
	if cfg.Profile.Name == "" {
		cfg.Profile = defaults.Profile
	}
	if cfg.Lifetime == 0 {
		cfg.Lifetime = defaults.Lifetime
	}
	if cfg.Lifetime < time.Second {
		return nil, fmt.Errorf("a lifetime of %s is less than a second", cfg.Lifetime)
	}
	signer, err := NewSigner(TypeJWT)
	if err != nil {
		return nil, err
	}
	return &Service{cfg, signer}, nil
}

// CheckOrigin wants an https origin without a trailing slash.
func CheckOrigin(address string) error {
	if u, err := url.Parse(address); err != nil || u.Host == "" || address != "https://"+u.Host {
		return fmt.Errorf("URL %q is not an https origin without a trailing slash", address)
	}
	return nil
}

// WithAudience registers an audience of an issuer, once.
func WithAudience(issuers []sts.Issuer, issuer, audience string) []sts.Issuer {
	i := slices.IndexFunc(issuers, func(known sts.Issuer) bool { return known.URL == issuer })
	if i < 0 {
		return append(issuers, sts.Issuer{URL: issuer, Audiences: []string{audience}})
	}
	if !slices.Contains(issuers[i].Audiences, audience) {
		issuers[i].Audiences = append(issuers[i].Audiences, audience)
	}
	return issuers
}

// Core returns the core that judges workloads' tokens.
func (s *Service) Core(issuers []sts.Issuer, roles []sts.Role) (*sts.Core, error) {
	return s.core(s.Party, s.Profile, issuers, roles)
}

func (s *Service) core(party string, profile sts.Profile, issuers []sts.Issuer, roles []sts.Role) (*sts.Core, error) {
	return sts.New(sts.Config{
		Party: party, Profile: profile, Issuers: issuers, Roles: roles,
		Client: s.Client, Clock: s.Clock, Trace: s.Trace,
	})
}

// Record adds an event to the journey of a workload's token: it was refused if
// there is a reason.
func (s *Service) Record(journey, step, name, reason, detail string) {
	event := trace.Event{Journey: journey, Station: s.Party, Step: step, Name: name, Outcome: trace.OK, Detail: detail}
	if reason != "" {
		event.Outcome, event.Reason = trace.Refused, reason
	}
	s.Trace.Add(event)
}

// AtLabTime has the answers of a handler carry the time of the lab in the Date
// header.
func (s *Service) AtLabTime(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		SetDate(w, s.Clock)
		next.ServeHTTP(w, r)
	})
}

// Resource is what the access tokens of a service are for.
type Resource struct {
	party string
	core  *sts.Core
	trace *trace.Log
}

// Resource returns a resource, named after the service in traces, which takes
// access tokens of the given issuer and audience. Its roles are the things
// that can be used. An access token must have the claim [JourneyClaim].
func (s *Service) Resource(name, issuer, audience string, roles []sts.Role) (*Resource, error) {
	party := s.Party + "-" + name
	core, err := s.core(party, AccessTokens(TypeJWT), []sts.Issuer{{URL: issuer, Audiences: []string{audience}}}, roles)
	if err != nil {
		return nil, err
	}
	return &Resource{party, core, s.Trace}, nil
}

// JourneyClaim is the claim of access tokens that holds the journey of the
// workload's token, a hash of it (see package trace).
const JourneyClaim = "oidclab_journey"

// Use says why an access token may not be used for a role, or nil. The trace
// calls that thing by the given name.
func (resource *Resource) Use(r *http.Request, token, role, name string) *sts.Refusal {
	verdict := resource.core.Exchange(r.Context(), sts.Request{Token: token, Role: role})
	event := trace.Event{Journey: verdict.Journey, Station: resource.party, Step: "use", Name: name, Outcome: trace.OK}
	if verdict.Refusal != nil {
		event.Outcome, event.Reason = trace.Refused, string(verdict.Refusal.Reason)
	} else {
		// The access token's own journey ends here; what it is for goes on with
		// that of the workload's token it was exchanged for.
		event.Journey, _ = verdict.Claims.Raw[JourneyClaim].(string)
		event.Detail = "access token " + verdict.Journey
	}
	resource.trace.Add(event)
	return verdict.Refusal
}
