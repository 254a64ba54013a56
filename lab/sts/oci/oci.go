// Package oci is a token service that speaks Oracle Cloud Infrastructure as far
// as workload identity goes: the token exchange of an identity domain, the
// endpoint of OKE at which pods of a cluster get their identity, and the calls
// of object storage that the tokens of both are tried on.
//
// A session token is of no use to who merely holds it: it is bound to the
// caller's RSA key, and every request is signed with that key
// (draft-cavage-http-signatures-08, as OCI's "Request Signatures" has it).
//
// The package translates. Whether a workload's token is accepted is decided by
// the [sts.Core] that New builds from identity propagation trusts and clusters.
// Where this is not the vendor, or where the vendor's documents say nothing:
//
//   - The vendor is told where an issuer's keys are (publicKeyEndpoint); here
//     the issuer's discovery document says so.
//   - The vendor's OKE asks the cluster about a pod's token; here it is judged
//     by the issuer's keys, so that the token of a deleted pod is good until it
//     expires. And each of the vendor's clusters knows its own pods only; here
//     one endpoint answers for all clusters, whose pods its tokens tell apart.
//   - A rule about sub is demanded of every service user, and it must not match
//     everything.
//   - The claims of session tokens are the vendor's where its SDK reads them or
//     its policies name them, and so are the codes and shapes of errors. The
//     texts of the identity domain's errors are ours.
package oci

import (
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"time"

	"github.com/oidclab/oidclab/lab/clock"
	"github.com/oidclab/oidclab/lab/sts"
	"github.com/oidclab/oidclab/lab/sts/internal/tokenservice"
	"github.com/oidclab/oidclab/lab/trace"
)

// defaultLifetime of session tokens ("JWT-to-UPST token exchange": 60 minutes).
const defaultLifetime = time.Hour

// Config is a tenancy: its identity domain, its clusters and its object storage.
type Config struct {
	URL       string // the service's own: an https origin, no trailing slash
	Tenancy   string // OCID
	Namespace string // of object storage
	Trusts    []Trust
	Clients   []OAuthClient
	Clusters  []Cluster
	Buckets   []Bucket
	Lifetime  time.Duration // of session tokens; 0 means 1 h
	Profile   sts.Profile   // how workloads' tokens are judged; the zero value means Profile()
	Party     string        // the name in traces; empty means "oci"

	Client *http.Client // trusts the lab CA
	Clock  clock.Clock
	Trace  *trace.Log // may be nil
}

// OAuthClient is a confidential application of the identity domain.
type OAuthClient struct {
	ID     string
	Secret string
}

// Trust is an identity propagation trust (identity domains API,
// IdentityPropagationTrust) in JWTs with impersonation of service users. There
// is one for an issuer.
type Trust struct {
	Name         string
	Issuer       string        // the exact iss claim
	Audiences    []string      // clientClaimValues, where clientClaimName is aud
	Clients      []string      // oauthClients: who may exchange tokens by this trust
	ServiceUsers []ServiceUser // impersonationServiceUsers; the first whose rule holds is impersonated
}

// ServiceUser is a user that workloads may become.
type ServiceUser struct {
	OCID string
	Rule string // "sub eq VALUE", "sub sw VALUE" (starts with) or "sub co VALUE" (contains)
}

// Cluster is an OKE cluster whose pods may become workload principals.
type Cluster struct {
	OCID        string
	Compartment string   // OCID
	Issuer      string   // the exact iss claim of its tokens
	Audiences   []string // of its API server
	Basic       bool     // not an enhanced one: its pods are refused
}

// Bucket is a bucket of object storage.
type Bucket struct {
	Name    string
	Objects map[string][]byte // content by name
	Readers []string          // OCIDs of service users, and of workloads (see WorkloadOCID)
}

// WorkloadOCID returns what this service calls the pods of a service account.
func WorkloadOCID(cluster, namespace, serviceAccount string) string {
	return "ocid1.workload.oc1.." + cluster + "." + namespace + "." + serviceAccount
}

// Profile returns how an identity domain judges tokens. The vendor documents
// none of it, but that a trust may tolerate skew if it says so: as strict as
// [sts.Strict].
func Profile() sts.Profile {
	p := sts.Strict()
	p.Name = "oci"
	p.Cache.Name = "undocumented by the vendor, 10 min model"
	return p
}

// Handler answers for identity domain and object storage, with the time of the
// lab in the Date header. It is safe for concurrent use.
type Handler struct {
	http.Handler

	service   *tokenservice.Service
	tenancy   string
	namespace string
	clients   map[string]OAuthClient // by id
	trusts    map[string]Trust       // by issuer
	clusters  map[string]Cluster     // by issuer
	buckets   map[string]Bucket      // by name
	core      *sts.Core              // of the identity domain
	proxymux  *sts.Core
	storage   *sts.Core // judges session tokens
}

// New returns a handler for the root of a listener of its own, with a new
// signing key. It does no I/O. An error names the trust, cluster or bucket that
// is wrong.
//
// The listener should offer HTTP/1.1 only: the vendor's SDK cancels the token
// request before it reads the answer, and over HTTP/2 loses the token if it has
// not arrived by then.
func New(cfg Config) (*Handler, error) {
	service, err := tokenservice.New(tokenservice.Config{
		URL: cfg.URL, Party: cfg.Party, Profile: cfg.Profile, Lifetime: cfg.Lifetime, Client: cfg.Client, Clock: cfg.Clock, Trace: cfg.Trace,
	}, tokenservice.Config{Party: "oci", Profile: Profile(), Lifetime: defaultLifetime})
	if err != nil {
		return nil, fmt.Errorf("oci: %w", err)
	}
	h := &Handler{
		service: service, tenancy: cfg.Tenancy, namespace: cfg.Namespace, clients: make(map[string]OAuthClient),
		trusts: make(map[string]Trust), clusters: make(map[string]Cluster), buckets: make(map[string]Bucket),
	}
	for _, register := range []func(Config) error{h.registerClients, h.registerTrusts, h.registerClusters, h.registerBuckets} {
		if err := register(cfg); err != nil {
			return nil, fmt.Errorf("oci: %w", err)
		}
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/oauth2/v1/token", h.serveToken)
	mux.HandleFunc("GET "+keySetPath, h.serveKeys)
	mux.HandleFunc("GET /.well-known/openid-configuration", h.serveConfiguration)
	mux.HandleFunc("/n", h.serveStorage)
	mux.HandleFunc("/n/", h.serveStorage)
	h.Handler = service.AtLabTime(mux)
	return h, nil
}

// Core returns the core of the identity domain, for instance to look at its key
// cache.
func (h *Handler) Core() *sts.Core { return h.core }

func (h *Handler) registerClients(cfg Config) error {
	if cfg.Tenancy == "" || cfg.Namespace == "" {
		return errors.New("a tenancy and a namespace of object storage are needed")
	}
	for _, c := range cfg.Clients {
		if _, ok := h.clients[c.ID]; ok || c.ID == "" || c.Secret == "" {
			return fmt.Errorf("client %q is there twice, or has no id or no secret", c.ID)
		}
		h.clients[c.ID] = c
	}
	return nil
}

// registerTrusts makes a role of each client: it trusts the issuers of those
// trusts that name it.
func (h *Handler) registerTrusts(cfg Config) error {
	var issuers []sts.Issuer
	statements := map[string][]sts.Statement{} // by client
	for _, trust := range cfg.Trusts {
		if _, ok := h.trusts[trust.Issuer]; ok {
			return fmt.Errorf("trust %q: issuer %s has one already", trust.Name, trust.Issuer)
		}
		if len(trust.ServiceUsers) == 0 || len(trust.Clients) == 0 {
			return fmt.Errorf("trust %q: no service users or no clients: nobody could use it", trust.Name)
		}
		h.trusts[trust.Issuer] = trust
		issuers = append(issuers, sts.Issuer{URL: trust.Issuer, Audiences: trust.Audiences})
		for _, id := range trust.Clients {
			if _, ok := h.clients[id]; !ok {
				return fmt.Errorf("trust %q: there is no client %q", trust.Name, id)
			}
			for _, user := range trust.ServiceUsers {
				rule, err := parseRule(user.Rule)
				if err != nil {
					return fmt.Errorf("trust %q: service user %s: %w", trust.Name, user.OCID, err)
				}
				statements[id] = append(statements[id], sts.Statement{Issuer: trust.Issuer, Conditions: []sts.Condition{rule.condition()}})
			}
		}
	}
	var roles []sts.Role
	for _, c := range cfg.Clients {
		if trusted := statements[c.ID]; len(trusted) > 0 {
			roles = append(roles, sts.Role{Name: c.ID, Trust: trusted})
		}
	}
	var err error
	h.core, err = h.service.Core(issuers, roles)
	return err
}

func (h *Handler) registerClusters(cfg Config) error {
	var issuers []sts.Issuer
	for _, c := range cfg.Clusters {
		if _, ok := h.clusters[c.Issuer]; ok || c.OCID == "" || c.Compartment == "" {
			return fmt.Errorf("cluster %q has no OCID or no compartment, or another one has its issuer", c.OCID)
		}
		h.clusters[c.Issuer] = c
		issuers = append(issuers, sts.Issuer{URL: c.Issuer, Audiences: c.Audiences})
	}
	var err error
	if h.proxymux, err = h.service.Core(issuers, nil); err != nil {
		return fmt.Errorf("clusters: %w", err)
	}
	return nil
}

// bucketName is that of object storage: letters, digits, hyphens, underscores
// and periods.
var bucketName = regexp.MustCompile(`^[A-Za-z0-9_.-]{1,256}$`)

func (h *Handler) registerBuckets(cfg Config) error {
	for _, b := range cfg.Buckets {
		if _, ok := h.buckets[b.Name]; ok || !bucketName.MatchString(b.Name) {
			return fmt.Errorf("bucket %q is there twice, or has a name that no bucket can have", b.Name)
		}
		if len(b.Readers) == 0 || slices.Contains(b.Readers, "") {
			return fmt.Errorf("bucket %s: no readers, or one without an OCID", b.Name)
		}
		h.buckets[b.Name] = b
	}
	var err error
	h.storage, err = sts.New(sts.Config{
		Party: h.storageParty(), Profile: tokenservice.AccessTokens(tokenservice.TypeJWT),
		Issuers: []sts.Issuer{{URL: cfg.URL, Audiences: []string{sessionAudience}}},
		Client:  cfg.Client, Clock: cfg.Clock, Trace: cfg.Trace,
	})
	return err
}

func (h *Handler) storageParty() string { return h.service.Party + "-storage" }
