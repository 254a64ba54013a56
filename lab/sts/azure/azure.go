// Package azure is a token service that speaks Microsoft Entra ID as far as
// workload identity federation goes: instance discovery, a tenant's OpenID
// configuration, and the client credentials grant with a cluster's token as
// client assertion. Beside it is a storage account whose blobs are read with
// the access tokens.
//
// The package translates. Whether a token is accepted, and for which
// application, is decided by the [sts.Core] that New builds from applications
// and their federated identity credentials. What differs from the vendor:
//
//   - The token itself is checked first, and the application and its
//     credentials last, where Entra begins with the application.
//   - Access tokens are signed with ES256, and named after the service's own
//     URL, under which their keys are.
//   - There is one tenant, and one resource to ask a token for.
package azure

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/oidclab/oidclab/lab/clock"
	"github.com/oidclab/oidclab/lab/sts"
	"github.com/oidclab/oidclab/lab/sts/internal/tokenservice"
	"github.com/oidclab/oidclab/lab/trace"
)

// Audience is what a credential expects if it names no other (Microsoft Graph,
// federatedIdentityCredential, audiences).
const Audience = "api://AzureADTokenExchange"

// The limits of federated identity credentials (Microsoft Entra, "Important
// considerations and restrictions for federated identity credentials").
const (
	maxCredentials     = 20 // per application
	minNameLength      = 3
	maxNameLength      = 120
	maxAttributeLength = 600
)

// defaultLifetime of access tokens: that of an answer's usual expires_in, 3599.
const defaultLifetime = time.Hour - time.Second

// Config is a tenant and a storage account.
type Config struct {
	URL          string // the service's own URL: an https origin, no trailing slash
	Tenant       string // a UUID
	Applications []Application
	Containers   []Container   // of the storage account
	Lifetime     time.Duration // of access tokens; 0 means 3599 s
	Profile      sts.Profile   // how assertions are judged; the zero value means sts.Azure()
	Party        string        // the name in traces; empty means "azure"

	Client *http.Client // trusts the lab CA
	Clock  clock.Clock
	Trace  *trace.Log // may be nil
}

// Application is an application registration, or a managed identity.
type Application struct {
	ClientID    string                // a UUID
	Credentials []FederatedCredential // at most 20
}

// FederatedCredential is a federated identity credential. An assertion matches
// if issuer, subject and audience are equal, to the letter and its case.
type FederatedCredential struct {
	Name     string // unique in its application: 3 to 120 letters, digits, hyphens and underscores
	Issuer   string // the exact iss claim
	Subject  string // the exact sub claim
	Audience string // empty means [Audience]
}

// Container is a container of the storage account.
type Container struct {
	Name    string // 3 to 63 lower-case letters, digits and hyphens
	Blobs   map[string][]byte
	Readers []string // client ids of applications with the role Storage Blob Data Reader
}

// Handler answers for the tenant and the storage account, with the time of the
// lab in the Date header. It is safe for concurrent use.
type Handler struct {
	http.Handler

	entra      http.Handler // without the storage account
	service    *tokenservice.Service
	tenant     string
	apps       map[string][]FederatedCredential // by client id
	containers map[string]Container
	core       *sts.Core
	storage    *tokenservice.Resource
}

// New returns a handler for the root of a listener of its own, with a new
// signing key: SDKs drop a path prefix of the authority. It does no I/O. An
// error names the application, credential or container that is wrong.
func New(cfg Config) (*Handler, error) {
	service, err := tokenservice.New(tokenservice.Config{
		URL: cfg.URL, Party: cfg.Party, Profile: cfg.Profile, Lifetime: cfg.Lifetime, Client: cfg.Client, Clock: cfg.Clock, Trace: cfg.Trace,
	}, tokenservice.Config{Party: "azure", Profile: sts.Azure(), Lifetime: defaultLifetime})
	if err != nil {
		return nil, fmt.Errorf("azure: %w", err)
	}
	if !isUUID(cfg.Tenant) {
		return nil, fmt.Errorf("azure: tenant %q is not a UUID in lower case", cfg.Tenant)
	}
	h := &Handler{
		service: service, tenant: cfg.Tenant,
		apps: make(map[string][]FederatedCredential), containers: make(map[string]Container),
	}
	if h.core, err = h.newCore(cfg.Applications); err != nil {
		return nil, fmt.Errorf("azure: %w", err)
	}
	if h.storage, err = h.newStorage(cfg.Containers); err != nil {
		return nil, fmt.Errorf("azure: %w", err)
	}
	all, entra := http.NewServeMux(), http.NewServeMux()
	for pattern, serve := range map[string]http.HandlerFunc{
		"GET /common/discovery/instance":                      h.serveInstance,
		"GET /{tenant}/v2.0/.well-known/openid-configuration": h.serveConfiguration,
		"GET /{tenant}/discovery/v2.0/keys":                   h.serveKeys,
		"/{tenant}/oauth2/v2.0/token":                         h.serveToken,
	} {
		all.HandleFunc(pattern, serve)
		entra.HandleFunc(pattern, serve)
	}
	all.HandleFunc("/", h.serveBlob)
	h.Handler, h.entra = service.AtLabTime(all), service.AtLabTime(entra)
	return h, nil
}

// Core returns the core that decides about assertions, for instance to look at
// its key cache.
func (h *Handler) Core() *sts.Core { return h.core }

// newCore registers the applications: each is a role that trusts its
// credentials.
func (h *Handler) newCore(applications []Application) (*sts.Core, error) {
	var issuers []sts.Issuer
	var roles []sts.Role
	for _, app := range applications {
		if !isUUID(app.ClientID) {
			return nil, fmt.Errorf("application %q: the client id is not a UUID in lower case", app.ClientID)
		}
		if _, ok := h.apps[app.ClientID]; ok {
			return nil, fmt.Errorf("application %s is there twice", app.ClientID)
		}
		credentials, err := checkedCredentials(app.Credentials)
		if err != nil {
			return nil, fmt.Errorf("application %s: %w", app.ClientID, err)
		}
		h.apps[app.ClientID] = credentials
		role := sts.Role{Name: app.ClientID}
		for _, c := range credentials {
			issuers = tokenservice.WithAudience(issuers, c.Issuer, c.Audience)
			role.Trust = append(role.Trust, sts.Statement{Issuer: c.Issuer, Conditions: []sts.Condition{
				{Operator: sts.StringEquals, Claim: "sub", Values: []string{c.Subject}},
				{Operator: sts.StringEquals, Claim: "aud", Values: []string{c.Audience}},
			}})
		}
		if len(credentials) > 0 {
			roles = append(roles, role)
		}
	}
	return h.service.Core(issuers, roles)
}

// checkedCredentials fills in the default audience.
func checkedCredentials(credentials []FederatedCredential) ([]FederatedCredential, error) {
	if n := len(credentials); n > maxCredentials {
		return nil, fmt.Errorf("%d federated identity credentials; there may be %d", n, maxCredentials)
	}
	checked := slices.Clone(credentials)
	for i := range checked {
		c := &checked[i]
		if c.Audience == "" {
			c.Audience = Audience
		}
		if err := c.validate(); err != nil {
			return nil, fmt.Errorf("credential %q: %w", c.Name, err)
		}
		for _, other := range checked[:i] {
			if other.Name == c.Name {
				return nil, fmt.Errorf("credential %q is there twice", c.Name)
			}
			if other.Issuer == c.Issuer && other.Subject == c.Subject {
				return nil, fmt.Errorf("credentials %q and %q have the same issuer and subject", other.Name, c.Name)
			}
		}
	}
	return checked, nil
}

func (c *FederatedCredential) validate() error {
	if n := len(c.Name); n < minNameLength || n > maxNameLength || strings.Trim(c.Name, alphanumeric+"-_") != "" {
		return fmt.Errorf("the name must be %d to %d letters, digits, hyphens and underscores", minNameLength, maxNameLength)
	}
	for _, attribute := range []string{c.Issuer, c.Subject, c.Audience} {
		if attribute == "" || len(attribute) > maxAttributeLength {
			return fmt.Errorf("issuer, subject and audience must have 1 to %d characters", maxAttributeLength)
		}
	}
	return nil
}

const alphanumeric = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"

// newStorage registers the containers: each is a role that trusts its readers.
func (h *Handler) newStorage(containers []Container) (*tokenservice.Resource, error) {
	issuer := h.issuer(h.service.URL)
	var roles []sts.Role
	for _, c := range containers {
		if n := len(c.Name); n < 3 || n > 63 || strings.Trim(c.Name, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" {
			return nil, fmt.Errorf("container %q: the name must be 3 to 63 lower-case letters, digits and hyphens", c.Name)
		}
		if len(c.Readers) == 0 {
			return nil, fmt.Errorf("container %s: no readers: nobody could use it", c.Name)
		}
		var subjects []string
		for _, reader := range c.Readers {
			if _, ok := h.apps[reader]; !ok {
				return nil, fmt.Errorf("container %s: reader %q is not an application of the tenant", c.Name, reader)
			}
			subjects = append(subjects, h.objectID(reader))
		}
		if _, ok := h.containers[c.Name]; ok {
			return nil, fmt.Errorf("container %s is there twice", c.Name)
		}
		h.containers[c.Name] = c
		roles = append(roles, sts.Role{Name: c.Name, Trust: []sts.Statement{{
			Issuer:     issuer,
			Conditions: []sts.Condition{{Operator: sts.StringEquals, Claim: "sub", Values: subjects}},
		}}})
	}
	storage, err := h.service.Resource("storage", issuer, storageResource, roles)
	if err != nil {
		return nil, fmt.Errorf("storage account: %w", err)
	}
	return storage, nil
}

// objectID returns the object id of an application's service principal.
func (h *Handler) objectID(clientID string) string {
	return uuid.NewSHA1(uuid.MustParse(h.tenant), []byte(clientID)).String()
}

// issuer returns the name of the tenant's access tokens under an authority.
func (h *Handler) issuer(authority string) string { return authority + "/" + h.tenant + "/v2.0" }

// isUUID says whether s is a UUID as it is written in this package's data.
func isUUID(s string) bool {
	id, err := uuid.Parse(s)
	return err == nil && id.String() == s
}
