package gcp

import (
	"crypto/rand"
	"crypto/subtle"
	"slices"
	"strings"
	"sync"
	"time"
)

const (
	// tokenPrefix begins like Google's access tokens, and then says what this is.
	tokenPrefix = "ya29.oidclab-"

	// maxCredentials bounds the credentials that are remembered; the oldest go first.
	maxCredentials = 10_000
	// keepExpired is how long an expired credential is remembered, so that its
	// use is seen in the journey of the token it was made for.
	keepExpired = 24 * time.Hour
)

// credential is an access token that was issued. It is never changed.
type credential struct {
	id        string
	token     string // tokenPrefix, id, a hyphen and a secret
	expires   time.Time
	principal principal
	scopes    scopes
	journey   string // of the subject token it goes back to
}

// principal is whom a credential stands for.
type principal struct {
	member string  // as policies name it
	pool   string  // the pool's resource name; empty for a service account
	mapped *mapped // nil for a service account
}

// is reports whether the member of a binding means this principal.
func (p principal) is(member string) bool {
	if member == p.member {
		return true
	}
	set, ok := strings.CutPrefix(member, "principalSet:"+iamService+p.pool+"/")
	if !ok || p.mapped == nil {
		return false
	}
	if group, ok := strings.CutPrefix(set, "group/"); ok {
		return slices.Contains(p.mapped.groups, group)
	}
	name, want, _ := strings.Cut(strings.TrimPrefix(set, attributePrefix), "/")
	got, ok := p.mapped.attributes[name]
	return ok && got == want
}

// may reports whether a policy grants the principal anything. New has seen to
// it that a policy has bindings of one role only.
func (p principal) may(policy []Binding) bool {
	return slices.ContainsFunc(policy, func(b Binding) bool { return slices.ContainsFunc(b.Members, p.is) })
}

// scopes are the OAuth 2.0 scopes of a credential, as far as they matter here.
type scopes struct {
	impersonate bool // generateAccessToken
	read        bool // objects of a bucket
}

// scopesOf knows the scopes that the methods take, as their API references
// list them (iamcredentials v1, projects.serviceAccounts.generateAccessToken;
// storage v1, objects.get).
func scopesOf(names []string) scopes {
	const auth = "https://www.googleapis.com/auth/"
	has := func(wanted ...string) bool {
		return slices.ContainsFunc(wanted, func(w string) bool { return slices.Contains(names, auth+w) })
	}
	return scopes{
		impersonate: has("cloud-platform", "iam"),
		read:        has("cloud-platform", "cloud-platform.read-only", "devstorage.read_only", "devstorage.read_write", "devstorage.full_control"),
	}
}

// issue returns a new credential with a random token.
func issue(p principal, s scopes, journey string, expires time.Time) *credential {
	id := rand.Text()
	return &credential{
		id:        id,
		token:     tokenPrefix + id + "-" + rand.Text(),
		expires:   expires,
		principal: p,
		scopes:    s,
		journey:   journey,
	}
}

func (c *credential) expired(now time.Time) bool { return !now.Before(c.expires) }

// credentials remembers what was issued, in memory. It is safe for concurrent use.
type credentials struct {
	mu    sync.Mutex
	byID  map[string]*credential
	order []*credential // in the order of issue
}

func newCredentials() *credentials { return &credentials{byID: make(map[string]*credential)} }

func (c *credentials) add(added *credential, now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for len(c.order) > 0 && (len(c.order) >= maxCredentials || c.order[0].expired(now.Add(-keepExpired))) {
		delete(c.byID, c.order[0].id)
		c.order = c.order[1:]
	}
	c.byID[added.id] = added
	c.order = append(c.order, added)
}

// find returns the credential with this token, expired or not, or nil. The id
// within the token is no secret; the token is compared in constant time.
func (c *credentials) find(token string) *credential {
	id, _, _ := strings.Cut(strings.TrimPrefix(token, tokenPrefix), "-")
	c.mu.Lock()
	found := c.byID[id]
	c.mu.Unlock()
	if found == nil || subtle.ConstantTimeCompare([]byte(found.token), []byte(token)) != 1 {
		return nil
	}
	return found
}
