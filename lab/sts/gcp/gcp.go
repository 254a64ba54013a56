// Package gcp is the part of Google Cloud that a federated workload meets: the
// Security Token Service (POST /v1/token), the impersonation of service
// accounts (generateAccessToken of the IAM Service Account Credentials API),
// and a Cloud Storage bucket whose objects can be listed and read by the JSON
// API, all at one origin.
//
// The package translates. Whether a token is good is decided by a [sts.Core],
// one for each workload identity provider. A good token is then mapped to a
// principal and judged by the provider's attribute condition, both in CEL as on
// Google Cloud, and what the principal may do is decided by allow policies that
// name it: a pool or a provider alone grants nothing.
//
// As on Google Cloud, all providers of a pool share its subjects. Two clusters
// in one pool are told apart only if their mappings make different subjects of
// them, for instance "cluster-1::" + assertion.sub.
//
// What Google Cloud has and this package does not: IAM conditions on bindings,
// delegation chains, workforce pools, and members that stand for everybody
// (allUsers, or a whole pool), which New refuses. An issuer may have a
// certificate of the lab's authority. Tokens are obviously fake.
package gcp

import (
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/oidclab/oidclab/lab/clock"
	"github.com/oidclab/oidclab/lab/sts"
	"github.com/oidclab/oidclab/lab/trace"
)

// Config is a Google Cloud project as far as federation is concerned.
type Config struct {
	ProjectNumber   string // digits
	Pools           []Pool
	ServiceAccounts []ServiceAccount
	Buckets         []Bucket
	Profile         sts.Profile // how tokens are judged; the zero value means sts.GCP()
	Party           string      // the name in traces; empty means "gcp"

	Client *http.Client // trusts the lab CA
	Clock  clock.Clock
	Trace  *trace.Log // may be nil
}

// Pool is a workload identity pool in the location global. The limits of its
// fields and of those of [Provider] are those of the IAM API reference,
// projects.locations.workloadIdentityPools.
type Pool struct {
	ID        string // 4 to 32 of lower-case letters, digits and hyphens
	Disabled  bool
	Providers []Provider
}

// Provider is an OIDC provider of a pool.
type Provider struct {
	ID       string // like that of a pool
	Disabled bool

	IssuerURI string // the exact iss claim, with https://
	// AllowedAudiences are at most 10 of at most 256 characters. None means
	// the provider's resource name, with //iam.googleapis.com/ before it or the
	// same with https:.
	AllowedAudiences []string
	// JWKSJSON is an uploaded key set: it is used instead of the one that the
	// issuer publishes, and does not follow its rotations. Nil means discovery.
	JWKSJSON []byte

	// AttributeMapping holds a CEL expression over assertion, the claims, for
	// google.subject, and perhaps for google.groups and attribute.NAME. Beside
	// the standard functions of CEL there are TEXT.extract(TEMPLATE), as IAM
	// Conditions have it, and TEXT.split(SEPARATOR).
	AttributeMapping map[string]string
	// AttributeCondition is a CEL expression over assertion, google and
	// attribute that must be true. Empty means that every good token will do.
	AttributeCondition string
}

// ServiceAccount is a service account that can be impersonated.
type ServiceAccount struct {
	Email  string
	Policy []Binding // with the role roles/iam.workloadIdentityUser
}

// Bucket is a Cloud Storage bucket.
type Bucket struct {
	Name    string
	Objects map[string][]byte // contents by object name
	Policy  []Binding         // with the role roles/storage.objectViewer
}

// Binding is one of an allow policy: it grants a role to members. See
// [Principal], [PrincipalSet] and [ServiceAccountMember] for what those look like.
type Binding struct {
	Role    string
	Members []string
}

// The roles that bindings can grant.
const (
	RoleWorkloadIdentityUser = "roles/iam.workloadIdentityUser" // includes iam.serviceAccounts.getAccessToken
	RoleObjectViewer         = "roles/storage.objectViewer"     // includes storage.objects.get and .list
)

const (
	maxAudiences      = 10
	maxAudienceLength = 256 // characters

	iamService = "//iam.googleapis.com/" // how full resource names of IAM begin
)

// PoolName returns the resource name of a pool.
func PoolName(project, pool string) string {
	return "projects/" + project + "/locations/global/workloadIdentityPools/" + pool
}

// Audience returns what a request for a token names a provider by, its full
// resource name. It is also one of the two default audiences of its tokens.
func Audience(project, pool, provider string) string {
	return iamService + PoolName(project, pool) + "/providers/" + provider
}

// Principal returns the member that is one subject of a pool, the value that
// google.subject was mapped to.
func Principal(project, pool, subject string) string {
	return "principal:" + iamService + PoolName(project, pool) + "/subject/" + subject
}

// PrincipalSet returns the member that is all identities of a pool with an
// attribute: name is "group" for one of google.groups, or attribute.NAME.
func PrincipalSet(project, pool, name, value string) string {
	return "principalSet:" + iamService + PoolName(project, pool) + "/" + name + "/" + value
}

// ServiceAccountMember returns the member that is a service account.
func ServiceAccountMember(email string) string { return "serviceAccount:" + email }

// Handler answers the requests for one project. It is safe for concurrent use.
type Handler struct {
	party       string
	mux         *http.ServeMux
	providers   map[string]*provider // by audience
	policies    map[string][]Binding // of service accounts, by email
	buckets     map[string]Bucket
	credentials *credentials
	started     time.Time // lab time
	clock       clock.Clock
	trace       *trace.Log
}

// provider is a Provider at work.
type provider struct {
	pool     string // its resource name
	disabled bool   // the provider, or its pool
	core     *sts.Core
	mapping  *mapping
}

// New returns a handler for the root of a listener of its own. It does no I/O.
// An error names the pool, provider, service account or bucket that is wrong.
func New(cfg Config) (*Handler, error) {
	if cfg.ProjectNumber == "" || strings.Trim(cfg.ProjectNumber, "0123456789") != "" {
		return nil, fmt.Errorf("gcp: project number %q is not digits; a project id will not do", cfg.ProjectNumber)
	}
	if cfg.Clock == nil {
		return nil, errors.New("gcp: a clock is missing")
	}
	if cfg.Party == "" {
		cfg.Party = "gcp"
	}
	if cfg.Profile.Name == "" {
		cfg.Profile = sts.GCP()
	}
	h := &Handler{
		party:       cfg.Party,
		mux:         http.NewServeMux(),
		providers:   make(map[string]*provider),
		policies:    make(map[string][]Binding),
		buckets:     make(map[string]Bucket),
		credentials: newCredentials(),
		started:     cfg.Clock.Now(),
		clock:       cfg.Clock,
		trace:       cfg.Trace,
	}
	pools := make(map[string]bool)
	for _, pool := range cfg.Pools {
		if pools[pool.ID] {
			return nil, fmt.Errorf("gcp: pool %q is there twice", pool.ID)
		}
		pools[pool.ID] = true
		if err := h.addPool(cfg, pool); err != nil {
			return nil, fmt.Errorf("gcp: pool %q: %w", pool.ID, err)
		}
	}
	for _, account := range cfg.ServiceAccounts {
		if err := h.addServiceAccount(cfg, account); err != nil {
			return nil, fmt.Errorf("gcp: service account %q: %w", account.Email, err)
		}
	}
	for _, bucket := range cfg.Buckets {
		if err := h.addBucket(cfg, bucket); err != nil {
			return nil, fmt.Errorf("gcp: bucket %q: %w", bucket.Name, err)
		}
	}
	h.routes()
	return h, nil
}

// Core returns the core of a provider, for instance to look at its key cache;
// nil if there is no such provider.
func (h *Handler) Core(audience string) *sts.Core {
	if p := h.providers[audience]; p != nil {
		return p.core
	}
	return nil
}

func (h *Handler) addPool(cfg Config, pool Pool) error {
	if err := checkID(pool.ID); err != nil {
		return err
	}
	for _, p := range pool.Providers {
		audience := Audience(cfg.ProjectNumber, pool.ID, p.ID)
		if h.providers[audience] != nil {
			return fmt.Errorf("provider %q is there twice", p.ID)
		}
		added, err := newProvider(cfg, p, audience)
		if err != nil {
			return fmt.Errorf("provider %q: %w", p.ID, err)
		}
		added.pool = PoolName(cfg.ProjectNumber, pool.ID)
		added.disabled = added.disabled || pool.Disabled
		h.providers[audience] = added
	}
	return nil
}

func newProvider(cfg Config, p Provider, audience string) (*provider, error) {
	if err := checkID(p.ID); err != nil {
		return nil, err
	}
	if n := len(p.AllowedAudiences); n > maxAudiences {
		return nil, fmt.Errorf("%d allowed audiences; there can be %d", n, maxAudiences)
	}
	for _, a := range p.AllowedAudiences {
		if utf8.RuneCountInString(a) > maxAudienceLength {
			return nil, fmt.Errorf("allowed audience %q is longer than %d characters", a, maxAudienceLength)
		}
	}
	if p.JWKSJSON != nil {
		if err := checkUpload(p.JWKSJSON); err != nil {
			return nil, err
		}
	}
	mapping, err := newMapping(p.AttributeMapping, p.AttributeCondition)
	if err != nil {
		return nil, err
	}
	audiences := p.AllowedAudiences
	if len(audiences) == 0 {
		audiences = []string{audience, "https:" + audience}
	}
	core, err := sts.New(sts.Config{
		Party: cfg.Party, Profile: cfg.Profile,
		Issuers: []sts.Issuer{{URL: p.IssuerURI, Audiences: audiences, KeySet: p.JWKSJSON}},
		Client:  cfg.Client, Clock: cfg.Clock, Trace: cfg.Trace,
	})
	if err != nil {
		return nil, err
	}
	return &provider{disabled: p.Disabled, core: core, mapping: mapping}, nil
}

// checkID checks the id of a pool or a provider.
func checkID(id string) error {
	if len(id) < 4 || len(id) > 32 || strings.Trim(id, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" || strings.HasPrefix(id, "gcp-") {
		return fmt.Errorf("id %q must be 4 to 32 of lower-case letters, digits and hyphens, and not begin with gcp-", id)
	}
	return nil
}

func (h *Handler) addServiceAccount(cfg Config, account ServiceAccount) error {
	local, domain, _ := strings.Cut(account.Email, "@")
	if local == "" || domain == "" || strings.ContainsAny(account.Email, "/: ") {
		return errors.New("want an e-mail address")
	}
	if _, ok := h.policies[account.Email]; ok {
		return errors.New("it is there twice")
	}
	h.policies[account.Email] = account.Policy
	return checkPolicy(cfg, account.Policy, RoleWorkloadIdentityUser)
}

func (h *Handler) addBucket(cfg Config, bucket Bucket) error {
	if bucket.Name == "" || strings.Contains(bucket.Name, "/") {
		return errors.New("want a name without a slash")
	}
	if _, ok := h.buckets[bucket.Name]; ok {
		return errors.New("it is there twice")
	}
	h.buckets[bucket.Name] = bucket
	return checkPolicy(cfg, bucket.Policy, RoleObjectViewer)
}

// checkPolicy refuses bindings that grant nothing that this package knows, or
// grant it to more than anybody could mean.
func checkPolicy(cfg Config, policy []Binding, role string) error {
	for _, b := range policy {
		if b.Role != role {
			return fmt.Errorf("role %q grants nothing here; the role is %s", b.Role, role)
		}
		for _, m := range b.Members {
			if err := checkMember(cfg, m, role); err != nil {
				return fmt.Errorf("member %q: %w", m, err)
			}
		}
	}
	return nil
}

func checkMember(cfg Config, member, role string) error {
	if email, ok := strings.CutPrefix(member, ServiceAccountMember("")); ok && role != RoleWorkloadIdentityUser {
		if !slices.ContainsFunc(cfg.ServiceAccounts, func(a ServiceAccount) bool { return a.Email == email }) {
			return errors.New("there is no such service account")
		}
		return nil
	}
	for _, pool := range cfg.Pools {
		if subject, ok := strings.CutPrefix(member, Principal(cfg.ProjectNumber, pool.ID, "")); ok && subject != "" {
			return nil
		}
		set, ok := strings.CutPrefix(member, "principalSet:"+iamService+PoolName(cfg.ProjectNumber, pool.ID)+"/")
		if !ok {
			continue
		}
		if set == "*" {
			return errors.New("this is every identity of the pool, whatever its subject; name a subject, a group or an attribute")
		}
		if name, value, _ := strings.Cut(set, "/"); value != "" && (name == "group" || strings.HasPrefix(name, attributePrefix)) {
			return nil
		}
	}
	return errors.New("want principal:" + iamService + "POOL/subject/SUBJECT, principalSet:" + iamService + "POOL/group/GROUP or POOL/attribute.NAME/VALUE of a pool of this project, or of a bucket serviceAccount:EMAIL")
}
