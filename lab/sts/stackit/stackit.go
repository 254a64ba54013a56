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

// Handler answers for the identity provider and the resource manager, with the
// time of the lab in the Date header. It is safe for concurrent use.
type Handler struct {
	http.Handler

	service  *tokenservice.Service
	projects map[string]Project // by id
	core     *sts.Core
	api      *tokenservice.Resource
}

// New returns a handler for the root of a listener of its own, with a new
// signing key. It does no I/O. An error names the account, provider or project
// that is wrong.
func New(cfg Config) (*Handler, error) {
	service, err := tokenservice.New(tokenservice.Config{
		URL: cfg.URL, Party: cfg.Party, Profile: cfg.Profile, Lifetime: cfg.Lifetime, Client: cfg.Client, Clock: cfg.Clock, Trace: cfg.Trace,
	}, tokenservice.Config{Party: "stackit", Profile: sts.STACKIT(), Lifetime: defaultLifetime})
	if err != nil {
		return nil, fmt.Errorf("stackit: %w", err)
	}
	h := &Handler{service: service, projects: make(map[string]Project)}
	if h.core, err = newCore(service, cfg.Accounts); err != nil {
		return nil, fmt.Errorf("stackit: %w", err)
	}
	if h.api, err = h.newAPI(cfg); err != nil {
		return nil, fmt.Errorf("stackit: %w", err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/oauth/v2/token", h.serveToken)
	mux.HandleFunc("GET /oauth/v2/jwks", h.serveKeys)
	mux.HandleFunc("GET /.well-known/openid-configuration", h.serveConfiguration)
	mux.HandleFunc("GET /v2/projects/{id}", h.serveProject)
	h.Handler = service.AtLabTime(mux)
	return h, nil
}

// Core returns the core that decides about workloads' tokens, for instance to
// look at its key cache.
func (h *Handler) Core() *sts.Core { return h.core }

// newCore registers the service accounts: each is a role that trusts its
// providers.
func newCore(service *tokenservice.Service, accounts []ServiceAccount) (*sts.Core, error) {
	var issuers []sts.Issuer
	var roles []sts.Role
	for _, account := range accounts {
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
			for _, a := range p.Assertions {
				if a.Item == "aud" {
					issuers = tokenservice.WithAudience(issuers, p.Issuer, a.Value)
				}
			}
			role.Trust = append(role.Trust, statement)
		}
		roles = append(roles, role)
	}
	return service.Core(issuers, roles)
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

// newAPI registers the projects: each is a role that trusts its readers.
func (h *Handler) newAPI(cfg Config) (*tokenservice.Resource, error) {
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
	api, err := h.service.Resource("api", cfg.URL, apiAudience, roles)
	if err != nil {
		return nil, fmt.Errorf("resource manager: %w", err)
	}
	return api, nil
}
