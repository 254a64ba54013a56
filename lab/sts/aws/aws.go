// Package aws is a token service that speaks AWS STS: the Query protocol with
// the actions AssumeRoleWithWebIdentity, AssumeRole of sessions that came of it,
// and GetCallerIdentity, version 2011-06-15, with the vendor's limits, codes, statuses and texts. Beside it is
// an S3 whose objects are read with the credentials.
//
// The package translates. Whether a token is accepted, and for which role, is
// decided by the [sts.Core] that New builds from providers, roles and trust
// policies written as AWS writes them. Where it differs from AWS:
//
//   - An issuer may have a port number.
//   - Policy elements that are not evaluated are refused as malformed.
//   - How much session policies and tags may take when packed is a model:
//     the vendor does not document it.
package aws

import (
	"crypto/sha1"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/oidclab/oidclab/lab/clock"
	"github.com/oidclab/oidclab/lab/sts"
	"github.com/oidclab/oidclab/lab/trace"
)

// The limits of IAM on providers and roles (IAM user guide, "IAM and STS
// quotas"; IAM API reference, CreateOpenIDConnectProvider and CreateRole).
const (
	maxClientIDs           = 100
	maxThumbprints         = 5
	maxClientIDLength      = 255
	maxProviderURLLength   = 255
	minMaxSessionDuration  = time.Hour
	maxMaxSessionDuration  = 12 * time.Hour
	defaultMaxSession      = time.Hour
	maxTrustPolicyDocument = 4096 // characters, the quota after an increase
)

// Config is an AWS account as far as STS is concerned.
type Config struct {
	Account   string      // 12 digits
	Providers []Provider  // IAM OIDC identity providers
	Roles     []Role      // IAM roles for web identities
	Profile   sts.Profile // how tokens are judged; the zero value means sts.AWS()
	Party     string      // the name in traces; empty means "aws"
	Buckets   []Bucket    // of S3, see [Handler.S3]

	// DisabledRegions are those in which STS is not activated for the account.
	// A request is for a region if it is for STS's host name there.
	DisabledRegions []string

	Client *http.Client // trusts the lab CA
	Clock  clock.Clock
	Trace  *trace.Log // may be nil
}

// Provider is an IAM OIDC identity provider.
type Provider struct {
	URL       string   // the exact iss claim, with https://
	ClientIDs []string // accepted audiences, 1 to 100

	// Thumbprints are SHA-1 sums of certificates, in hex, at most 5. As with an
	// issuer whose certificate is of an authority that AWS knows they are not
	// used: here that authority is the lab's.
	Thumbprints []string
}

// Role is an IAM role with the ARN arn:aws:iam::ACCOUNT:role/NAME.
type Role struct {
	Name               string
	TrustPolicy        json.RawMessage // an IAM policy document
	Policy             json.RawMessage // the identity-based policy; without one the role may read nothing
	MaxSessionDuration time.Duration   // 1 to 12 hours; 0 means 1 hour
}

// Handler answers the requests of one account. It is safe for concurrent use.
type Handler struct {
	account  string
	party    string
	skew     time.Duration // the core's tolerance on times
	core     *sts.Core
	roles    map[string]role // by ARN
	sessions *sessions
	buckets  map[string]Bucket
	started  time.Time // lab time
	clock    clock.Clock
	trace    *trace.Log

	disabledRegions []string
}

type role struct {
	name, arn, id string
	maxSession    time.Duration
	policy        permissions
	trusted       map[string][]string // ARNs of roles whose sessions may assume this one, by action
}

// New returns a handler for the root of a listener of its own: SDKs call
// "/". It does no I/O. An error names the provider, role, bucket or policy
// element that is wrong, policies with AWS's code MalformedPolicyDocument.
func New(cfg Config) (*Handler, error) {
	if len(cfg.Account) != 12 || strings.Trim(cfg.Account, "0123456789") != "" {
		return nil, fmt.Errorf("aws: account %q is not 12 digits", cfg.Account)
	}
	if cfg.Party == "" {
		cfg.Party = "aws"
	}
	if cfg.Profile.Name == "" {
		cfg.Profile = sts.AWS()
	}
	issuers, providers, err := registered(cfg)
	if err != nil {
		return nil, err
	}
	roles := make(map[string]role)
	var trusting []sts.Role
	for _, r := range cfg.Roles {
		checked, err := checkedRole(cfg.Account, r)
		if err != nil {
			return nil, err
		}
		if _, ok := roles[checked.arn]; ok {
			return nil, fmt.Errorf("aws: role %s is there twice", r.Name)
		}
		trust, err := parseTrustPolicy(r.TrustPolicy, providers)
		if err != nil {
			return nil, fmt.Errorf("aws: trust policy of role %s: MalformedPolicyDocument: %w", r.Name, err)
		}
		checked.trusted = trust.roles
		roles[checked.arn] = checked
		for _, action := range []string{webIdentityAction, tagAction, sourceIdentityAction} {
			if statements := trust.webIdentities[action]; statements != nil {
				trusting = append(trusting, sts.Role{Name: coreRole(checked.arn, action), Trust: statements})
			}
		}
	}
	buckets, err := checkedBuckets(cfg.Buckets)
	if err != nil {
		return nil, err
	}
	core, err := sts.New(sts.Config{
		Party: cfg.Party, Profile: cfg.Profile, Issuers: issuers, Roles: trusting,
		Client: cfg.Client, Clock: cfg.Clock, Trace: cfg.Trace,
	})
	if err != nil {
		return nil, fmt.Errorf("aws: %w", err)
	}
	return &Handler{
		account: cfg.Account, party: cfg.Party, skew: cfg.Profile.Skew, core: core, roles: roles,
		sessions: newSessions(), buckets: buckets, started: cfg.Clock.Now(), clock: cfg.Clock, trace: cfg.Trace,
		disabledRegions: cfg.DisabledRegions,
	}, nil
}

// OptInRegions returns the regions that are disabled in a new account (AWS
// account management, "Enable or disable AWS Regions in your account").
func OptInRegions() []string {
	return []string{
		"af-south-1", "ap-east-1", "ap-east-2", "ap-south-2", "ap-southeast-3", "ap-southeast-4", "ap-southeast-5", "ap-southeast-6", "ap-southeast-7",
		"ca-west-1", "eu-central-2", "eu-south-1", "eu-south-2", "il-central-1", "me-central-1", "me-south-1", "mx-central-1",
	}
}

// coreRole is the name under which the core knows who may do an action with a
// role. Those of further actions are no ARNs, so no request can name them.
func coreRole(arn, action string) string {
	if action == webIdentityAction {
		return arn
	}
	return action + " " + arn
}

// Core returns the core that decides, for instance to look at its key cache.
func (h *Handler) Core() *sts.Core { return h.core }

// RoleARN returns the ARN of a role of the account.
func RoleARN(account, name string) string { return "arn:aws:iam::" + account + ":role/" + name }

// ProviderARN returns the ARN by which trust policies name the provider of an
// issuer.
func ProviderARN(account, issuer string) string {
	return "arn:aws:iam::" + account + ":oidc-provider/" + strings.TrimPrefix(issuer, "https://")
}

// registered returns the account's providers as the core wants them, and their
// issuers by provider ARN.
func registered(cfg Config) ([]sts.Issuer, map[string]string, error) {
	var issuers []sts.Issuer
	byARN := make(map[string]string)
	for _, p := range cfg.Providers {
		u, err := url.Parse(p.URL)
		if err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil || strings.ContainsAny(p.URL, "?#") || len(p.URL) > maxProviderURLLength {
			return nil, nil, fmt.Errorf("aws: provider %q: the URL must be https://HOST[/PATH] of at most %d characters, without user, query and fragment", p.URL, maxProviderURLLength)
		}
		if n := len(p.ClientIDs); n < 1 || n > maxClientIDs {
			return nil, nil, fmt.Errorf("aws: provider %s: %d client ids; there must be 1 to %d", p.URL, n, maxClientIDs)
		}
		for _, id := range p.ClientIDs {
			if id == "" || len(id) > maxClientIDLength {
				return nil, nil, fmt.Errorf("aws: provider %s: client id %q must have 1 to %d characters", p.URL, id, maxClientIDLength)
			}
		}
		if n := len(p.Thumbprints); n > maxThumbprints {
			return nil, nil, fmt.Errorf("aws: provider %s: %d thumbprints; there may be %d", p.URL, n, maxThumbprints)
		}
		for _, thumbprint := range p.Thumbprints {
			if sum, err := hex.DecodeString(thumbprint); err != nil || len(sum) != sha1.Size {
				return nil, nil, fmt.Errorf("aws: provider %s: thumbprint %q must have 40 hexadecimal digits", p.URL, thumbprint)
			}
		}
		arn := ProviderARN(cfg.Account, p.URL)
		if _, ok := byARN[arn]; ok {
			return nil, nil, fmt.Errorf("aws: provider %s is there twice", p.URL)
		}
		byARN[arn] = p.URL
		issuers = append(issuers, sts.Issuer{URL: p.URL, Audiences: p.ClientIDs})
	}
	return issuers, byARN, nil
}

// isName says whether s matches AWS's pattern [\w+=,.@-]*, that of names of
// roles and of their sessions.
func isName(s string) bool {
	for _, c := range []byte(s) {
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', strings.IndexByte("_+=,.@-", c) >= 0:
		default:
			return false
		}
	}
	return true
}

func checkedRole(account string, r Role) (role, error) {
	if r.Name == "" || len(r.Name) > 64 || !isName(r.Name) {
		return role{}, fmt.Errorf("aws: role name %q must be 1 to 64 of letters, digits and +=,.@_-", r.Name)
	}
	if r.MaxSessionDuration == 0 {
		r.MaxSessionDuration = defaultMaxSession
	}
	if d := r.MaxSessionDuration; d < minMaxSessionDuration || d > maxMaxSessionDuration {
		return role{}, fmt.Errorf("aws: role %s: a maximum session duration of %s is not within 1 to 12 hours", r.Name, d)
	}
	arn := RoleARN(account, r.Name)
	checked := role{name: r.Name, arn: arn, id: roleID(arn), maxSession: r.MaxSessionDuration}
	if r.Policy != nil {
		var err error
		if checked.policy, err = parsePermissions(r.Policy); err != nil {
			return role{}, fmt.Errorf("aws: policy of role %s: MalformedPolicyDocument: %w", r.Name, err)
		}
	}
	return checked, nil
}
