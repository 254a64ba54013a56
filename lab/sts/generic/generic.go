// Package generic is a token service that speaks OAuth 2.0 Token Exchange
// (RFC 8693): a cluster's token goes in, a signed access token (RFC 9068) for
// one target service comes out. It takes the token as an authorization grant and
// as the credentials of a client too (RFC 7523), and one kind of party speaks
// Auth0's dialect of token exchange, see [CustomExchange]. The package also has
// the protected resource that takes those access tokens.
//
// One service has several relying parties, each with its own [sts.Core] and so
// with its own idea of which tokens are good and how long keys are cached. All
// sign with the service's one key, which it publishes over HTTPS like any
// issuer.
//
// The target of an exchange is named by audience, or by resource where the
// target's name is a URI; a party with one target needs no name. What the
// protocol leaves open is decided so:
//
//   - A subject token that is not good is invalid_request, as section 2.2.2
//     demands, or invalid_grant where [Party.InvalidGrant] says so, as most
//     servers in the field answer. A bad assertion is invalid_grant, and a bad
//     client assertion invalid_client, as RFC 7523 section 3 demands.
//   - A good one whose subject the target does not trust is invalid_target: the
//     service is unwilling to issue a token for that target.
//   - An issuer that cannot be reached is 503 with temporarily_unavailable, since
//     nothing is known about the token.
//   - The access token lives for [Party.Lifetime], but never beyond the moment
//     at which the subject token would no longer be accepted: an exchange must
//     not prolong a trust.
//   - There are no scopes, no actors and, but in Auth0's dialect, no clients with
//     secrets; asking for one of those is an error. The client_id claim, which RFC
//     9068 requires, is the subject: the workload is its own client. Of a client
//     assertion the client_id must be that, too (RFC 7523 section 3).
package generic

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/oidclab/oidclab/lab/clock"
	"github.com/oidclab/oidclab/lab/sts"
	"github.com/oidclab/oidclab/lab/sts/internal/tokenservice"
	"github.com/oidclab/oidclab/lab/trace"
)

// Config is a token service.
type Config struct {
	URL     string  // the service's own issuer URL: an https origin, no trailing slash
	Parties []Party // at least one; the first is also mounted at /token

	Client *http.Client // trusts the lab CA
	Clock  clock.Clock
	Trace  *trace.Log // may be nil
}

// Party is one relying party of the service, mounted at /NAME/token.
type Party struct {
	Name         string // a DNS label, and the name in traces
	Profile      sts.Profile
	Issuers      []sts.Issuer
	Roles        []sts.Role    // the target services, by the names that requests give as audience
	Lifetime     time.Duration // of access tokens; 0 means 15 min
	InvalidGrant bool          // answer a bad subject token with invalid_grant, not with invalid_request

	Custom *CustomExchange // speak Auth0's dialect; nil means the RFCs'
}

// defaultLifetime of access tokens.
const defaultLifetime = 15 * time.Minute

// Handler answers for all parties. It is safe for concurrent use.
type Handler struct {
	mux   *http.ServeMux
	clock clock.Clock
	cores map[string]*sts.Core // by party
}

// party is a Party at work.
type party struct {
	Party
	core   *sts.Core
	bad    *throttle // of a custom exchange
	signer *tokenservice.Signer
	url    string // the service's own, the issuer of access tokens
	clock  clock.Clock
	trace  *trace.Log
}

// New returns a handler for the root of a listener of its own, with a new
// signing key. It does no I/O. An error names the party that is wrong.
func New(cfg Config) (*Handler, error) {
	if u, err := url.Parse(cfg.URL); err != nil || u.Scheme != "https" || u.Host == "" || cfg.URL != "https://"+u.Host {
		return nil, fmt.Errorf("generic: URL %q is not an https origin without a trailing slash", cfg.URL)
	}
	if len(cfg.Parties) == 0 {
		return nil, errors.New("generic: no parties: there would be nobody to ask for a token")
	}
	signer, err := tokenservice.NewSigner(accessTokenType)
	if err != nil {
		return nil, fmt.Errorf("generic: %w", err)
	}
	h := &Handler{mux: http.NewServeMux(), clock: cfg.Clock, cores: make(map[string]*sts.Core)}
	custom := "" // the party at /oauth/token
	for i, p := range cfg.Parties {
		mounted, err := newParty(cfg, p, signer)
		if err != nil {
			return nil, fmt.Errorf("generic: party %q: %w", p.Name, err)
		}
		if h.cores[p.Name] != nil {
			return nil, fmt.Errorf("generic: party %q is there twice", p.Name)
		}
		h.cores[p.Name] = mounted.core
		h.mux.Handle("/"+p.Name+"/token", mounted)
		if i == 0 {
			h.mux.Handle("/token", mounted)
		}
		if p.Custom != nil {
			if custom != "" {
				return nil, fmt.Errorf("generic: parties %q and %q: only one can have /oauth/token", custom, p.Name)
			}
			custom = p.Name
			h.mux.Handle("/oauth/token", mounted)
		}
	}
	h.publish(cfg, signer)
	return h, nil
}

func newParty(cfg Config, p Party, signer *tokenservice.Signer) (*party, error) {
	if p.Name == "" || strings.Trim(p.Name, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" {
		return nil, errors.New("the name must be of lower-case letters, digits and hyphens, since it is in the path")
	}
	if p.Lifetime == 0 {
		p.Lifetime = defaultLifetime
	}
	if p.Lifetime < time.Second {
		return nil, fmt.Errorf("a lifetime of %s is less than a second", p.Lifetime)
	}
	if len(p.Roles) == 0 {
		return nil, errors.New("no roles: there would be nothing to ask a token for")
	}
	attempts := 0
	if p.Custom != nil {
		if err := p.Custom.validate(); err != nil {
			return nil, err
		}
		attempts = p.Custom.MaxAttempts
	}
	core, err := sts.New(sts.Config{
		Party: p.Name, Profile: p.Profile, Issuers: p.Issuers, Roles: p.Roles,
		Client: cfg.Client, Clock: cfg.Clock, Trace: cfg.Trace,
	})
	if err != nil {
		return nil, err
	}
	return &party{Party: p, core: core, bad: newThrottle(attempts, cfg.Clock), signer: signer, url: cfg.URL, clock: cfg.Clock, trace: cfg.Trace}, nil
}

// Core returns the core of a party, for instance to look at its key cache;
// nil if there is no such party.
func (h *Handler) Core(party string) *sts.Core { return h.cores[party] }

// ServeHTTP implements [http.Handler]. Answers carry the time of the lab in
// the Date header.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	tokenservice.SetDate(w, h.clock)
	h.mux.ServeHTTP(w, r)
}

// publish mounts the service's metadata (RFC 8414 section 2, and under the
// name that OpenID Connect Discovery has for it) and its key set (RFC 7517).
// Other methods than GET and HEAD are answered with 405 by the mux.
func (h *Handler) publish(cfg Config, signer *tokenservice.Signer) {
	metadata := map[string]any{
		"issuer":                                cfg.URL,
		"token_endpoint":                        cfg.URL + "/token",
		"jwks_uri":                              cfg.URL + "/jwks",
		"grant_types_supported":                 []string{grantType, grantAssertion, grantCredentials},
		"response_types_supported":              []string{}, // there is no authorization endpoint
		"token_endpoint_auth_methods_supported": []string{"none", "private_key_jwt"},
		"subject_types_supported":               []string{"public"},
		"id_token_signing_alg_values_supported": []string{tokenservice.Algorithm},
	}
	for path, document := range map[string]any{
		"/.well-known/oauth-authorization-server": metadata,
		"/.well-known/openid-configuration":       metadata,
		"/jwks":                                   signer.KeySet(),
	} {
		h.mux.HandleFunc("GET "+path, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Cache-Control", "public, max-age=300")
			writeJSON(w, http.StatusOK, document)
		})
	}
}

func writeJSON(w http.ResponseWriter, status int, value any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(value) // the client may be gone
}
