// Package stackit is a token service that speaks STACKIT's identity provider as
// far as workload identity federation goes, and the one call of the resource
// manager API that its access tokens are tried on.
//
// The package translates. Whether a token is accepted, and for which service
// account, is decided by the [sts.Core] that New builds from service accounts
// and their federated identity providers. What is not documented by the vendor,
// and so is this package's:
//
//   - The answers to bad requests and tokens: errors of RFC 6749 section 5.2.
//     A token or an account that is not good is invalid_client with 401, since
//     the token authenticates the client. An issuer that cannot be reached is
//     503 with temporarily_unavailable, since nothing is known about the token.
//   - A provider needs an assertion about sub. The vendor only advises it.
//   - The claims of access tokens, except exp, which its SDK reads.
package stackit

import (
	"errors"
	"fmt"
	"net/http"
	"net/mail"
	"net/url"
	"slices"
	"time"

	"github.com/google/uuid"

	"github.com/oidclab/oidclab/lab/clock"
	"github.com/oidclab/oidclab/lab/sts"
	"github.com/oidclab/oidclab/lab/sts/internal/tokenservice"
	"github.com/oidclab/oidclab/lab/trace"
)

// Audience is that of the tokens that STACKIT's pod identity webhook projects
// by default.
const Audience = "sts.accounts.stackit.cloud"

// defaultLifetime of access tokens. With one of 30 minutes or less, a client
// whose SDK refreshes in the background asks for tokens without a pause.
const defaultLifetime = time.Hour

// Config is STACKIT's identity provider and the projects behind it.
type Config struct {
	URL      string // the service's own issuer URL: an https origin, no trailing slash
	Accounts []ServiceAccount
	Projects []Project
	Lifetime time.Duration // of access tokens; 0 means 1 h
	Profile  sts.Profile   // how tokens are judged; the zero value means sts.STACKIT()
	Party    string        // the name in traces; empty means "stackit"

	Client *http.Client // trusts the lab CA
	Clock  clock.Clock
	Trace  *trace.Log // may be nil
}

// ServiceAccount is a STACKIT service account.
type ServiceAccount struct {
	Email     string
	Providers []Provider
}

// Provider is a federated identity provider of a service account (Terraform
// provider, stackit_service_account_federated_identity_provider).
type Provider struct {
	Name       string // unique in its account
	Issuer     string // the exact iss claim
	Assertions []Assertion
}

// Assertion is about one claim of a token. All assertions of a provider must
// hold; one about aud is mandatory.
type Assertion struct {
	Item     string // the claim
	Operator string // "equals"
	Value    string
}

// Project is a project of the resource manager.
type Project struct {
	ID      string // a UUID
	Name    string
	Readers []string // e-mail addresses of service accounts
}

// Handler answers for the identity provider and the resource manager. It is
// safe for concurrent use.
type Handler struct {
	mux      *http.ServeMux
	url      string
	party    string
	lifetime time.Duration
	projects map[string]Project // by id
	core     *sts.Core
	resource *sts.Core // judges access tokens
	signer   *tokenservice.Signer
	clock    clock.Clock
	trace    *trace.Log
}

// New returns a handler for the root of a listener of its own, with a new
// signing key. It does no I/O. An error names the account, provider or project
// that is wrong.
func New(cfg Config) (*Handler, error) {
	if u, err := url.Parse(cfg.URL); err != nil || u.Host == "" || cfg.URL != "https://"+u.Host {
		return nil, fmt.Errorf("stackit: URL %q is not an https origin without a trailing slash", cfg.URL)
	}
	if cfg.Party == "" {
		cfg.Party = "stackit"
	}
	if cfg.Profile.Name == "" {
		cfg.Profile = sts.STACKIT()
	}
	if cfg.Lifetime == 0 {
		cfg.Lifetime = defaultLifetime
	}
	if cfg.Lifetime < time.Second {
		return nil, fmt.Errorf("stackit: a lifetime of %s is less than a second", cfg.Lifetime)
	}
	signer, err := tokenservice.NewSigner(tokenservice.TypeJWT)
	if err != nil {
		return nil, fmt.Errorf("stackit: %w", err)
	}
	h := &Handler{
		mux: http.NewServeMux(), url: cfg.URL, party: cfg.Party, lifetime: cfg.Lifetime,
		projects: make(map[string]Project), signer: signer, clock: cfg.Clock, trace: cfg.Trace,
	}
	if h.core, err = newCore(cfg); err != nil {
		return nil, fmt.Errorf("stackit: %w", err)
	}
	if h.resource, err = h.newResource(cfg); err != nil {
		return nil, fmt.Errorf("stackit: %w", err)
	}
	h.mux.HandleFunc("/oauth/v2/token", h.serveToken)
	h.mux.HandleFunc("GET /oauth/v2/jwks", h.serveKeys)
	h.mux.HandleFunc("GET /.well-known/openid-configuration", h.serveConfiguration)
	h.mux.HandleFunc("GET /v2/projects/{id}", h.serveProject)
	return h, nil
}

// Core returns the core that decides about workloads' tokens, for instance to
// look at its key cache.
func (h *Handler) Core() *sts.Core { return h.core }

// ServeHTTP implements [http.Handler]. Answers carry the time of the lab in
// the Date header.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	tokenservice.SetDate(w, h.clock)
	h.mux.ServeHTTP(w, r)
}

// newCore registers the service accounts: each is a role that trusts its
// providers.
func newCore(cfg Config) (*sts.Core, error) {
	var issuers []sts.Issuer
	var roles []sts.Role
	for _, account := range cfg.Accounts {
		if address, err := mail.ParseAddress(account.Email); err != nil || address.Address != account.Email {
			return nil, fmt.Errorf("service account %q: not an e-mail address", account.Email)
		}
		if len(account.Providers) == 0 {
			return nil, fmt.Errorf("service account %s: no providers: nobody could use it", account.Email)
		}
		role := sts.Role{Name: account.Email}
		for i, p := range account.Providers {
			if p.Name == "" || slices.ContainsFunc(account.Providers[:i], func(other Provider) bool { return other.Name == p.Name }) {
				return nil, fmt.Errorf("service account %s: provider %q is unnamed or there twice", account.Email, p.Name)
			}
			statement, err := p.statement()
			if err != nil {
				return nil, fmt.Errorf("service account %s: provider %s: %w", account.Email, p.Name, err)
			}
			issuers = withAudiences(issuers, p)
			role.Trust = append(role.Trust, statement)
		}
		roles = append(roles, role)
	}
	return sts.New(sts.Config{
		Party: cfg.Party, Profile: cfg.Profile, Issuers: issuers, Roles: roles,
		Client: cfg.Client, Clock: cfg.Clock, Trace: cfg.Trace,
	})
}

func (p *Provider) statement() (sts.Statement, error) {
	statement := sts.Statement{Issuer: p.Issuer}
	audience := false
	for _, a := range p.Assertions {
		if a.Operator != "equals" {
			return sts.Statement{}, fmt.Errorf("assertion on %q: there is no operator %q; use equals", a.Item, a.Operator)
		}
		if a.Item == "" || a.Value == "" {
			return sts.Statement{}, fmt.Errorf("assertion on %q: item and value must not be empty", a.Item)
		}
		audience = audience || a.Item == "aud"
		statement.Conditions = append(statement.Conditions, sts.Condition{Operator: sts.StringEquals, Claim: a.Item, Values: []string{a.Value}})
	}
	if !audience {
		return sts.Statement{}, errors.New("no assertion on aud, which is mandatory; add one")
	}
	return statement, nil
}

// withAudiences registers the audiences of a provider's issuer, each once.
func withAudiences(issuers []sts.Issuer, p Provider) []sts.Issuer {
	i := slices.IndexFunc(issuers, func(known sts.Issuer) bool { return known.URL == p.Issuer })
	if i < 0 {
		i = len(issuers)
		issuers = append(issuers, sts.Issuer{URL: p.Issuer})
	}
	for _, a := range p.Assertions {
		if a.Item == "aud" && !slices.Contains(issuers[i].Audiences, a.Value) {
			issuers[i].Audiences = append(issuers[i].Audiences, a.Value)
		}
	}
	return issuers
}

// newResource registers the projects: each is a role that trusts its readers.
func (h *Handler) newResource(cfg Config) (*sts.Core, error) {
	var roles []sts.Role
	for _, p := range cfg.Projects {
		if id, err := uuid.Parse(p.ID); err != nil || id.String() != p.ID {
			return nil, fmt.Errorf("project %q: the id is not a UUID in lower case", p.ID)
		}
		if _, ok := h.projects[p.ID]; ok {
			return nil, fmt.Errorf("project %s is there twice", p.ID)
		}
		for _, reader := range p.Readers {
			if !slices.ContainsFunc(cfg.Accounts, func(a ServiceAccount) bool { return a.Email == reader }) {
				return nil, fmt.Errorf("project %s: reader %q is not a service account", p.ID, reader)
			}
		}
		if len(p.Readers) == 0 {
			return nil, fmt.Errorf("project %s: no readers: nobody could use it", p.ID)
		}
		h.projects[p.ID] = p
		roles = append(roles, sts.Role{Name: p.ID, Trust: []sts.Statement{{
			Issuer:     cfg.URL,
			Conditions: []sts.Condition{{Operator: sts.StringEquals, Claim: "sub", Values: p.Readers}},
		}}})
	}
	core, err := sts.New(sts.Config{
		Party: cfg.Party + "-api", Profile: tokenservice.AccessTokens(tokenservice.TypeJWT), Roles: roles,
		Issuers: []sts.Issuer{{URL: cfg.URL, Audiences: []string{apiAudience}}},
		Client:  cfg.Client, Clock: cfg.Clock, Trace: cfg.Trace,
	})
	if err != nil {
		return nil, fmt.Errorf("resource manager: %w", err)
	}
	return core, nil
}
