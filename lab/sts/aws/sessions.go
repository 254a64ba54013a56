package aws

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base32"
	"encoding/base64"
	"sync"
	"time"
)

const (
	// maxSessions bounds the sessions that are remembered; the oldest go first.
	maxSessions = 10_000
	// keepExpired is how long an expired session is remembered, so that its
	// holder is told ExpiredToken and not that the key was never there.
	keepExpired = 24 * time.Hour
)

// session is a role that was assumed, with its credentials. It is never
// changed once it was issued.
type session struct {
	accessKeyID     string
	secretAccessKey string
	token           string
	expires         time.Time // lab time, whole seconds as on the wire

	role    role
	name    string
	journey string      // of the web identity token
	policy  permissions // of all session policies; nil if there are none
	claims  sessionClaims
	tags    map[string]string // those of the claims, by key in lower case
}

// issue returns a new session with random credentials. They can be told from
// real ones by the access key id, which begins with ASIAOIDCLAB.
func issue(r role, name, journey string, expires time.Time) *session {
	return &session{
		accessKeyID:     "ASIAOIDCLAB" + rand.Text()[:9],
		secretAccessKey: randomBase64(30),
		token:           randomBase64(192),
		expires:         expires.UTC().Truncate(time.Second),
		role:            r,
		name:            name,
		journey:         journey,
	}
}

// arn is the ARN of the assumed role session.
func (s *session) arn(account string) string {
	return "arn:aws:sts::" + account + ":assumed-role/" + s.role.name + "/" + s.name
}

// userID is the unique id of the session: that of the role, and the session's name.
func (s *session) userID() string { return s.role.id + ":" + s.name }

func (s *session) expired(now time.Time) bool { return !now.Before(s.expires) }

// holdsToken compares a session token in constant time.
func (s *session) holdsToken(token string) bool {
	return subtle.ConstantTimeCompare([]byte(s.token), []byte(token)) == 1
}

// sessions remembers what was issued, in memory. It is safe for concurrent use.
type sessions struct {
	mu    sync.Mutex
	byKey map[string]*session // by access key id
	order []*session          // oldest first
}

func newSessions() *sessions { return &sessions{byKey: make(map[string]*session)} }

func (s *sessions) add(added *session, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(s.order) > 0 && (len(s.order) >= maxSessions || s.order[0].expired(now.Add(-keepExpired))) {
		delete(s.byKey, s.order[0].accessKeyID)
		s.order = s.order[1:]
	}
	s.byKey[added.accessKeyID] = added
	s.order = append(s.order, added)
}

// get returns nil if there is no such session. An access key id is no secret.
func (s *sessions) get(accessKeyID string) *session {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.byKey[accessKeyID]
}

// roleID derives a stable unique id, AROA and 17 characters, from a role's ARN.
func roleID(arn string) string {
	sum := sha256.Sum256([]byte(arn))
	return "AROAOIDCLAB" + base32.StdEncoding.EncodeToString(sum[:])[:10]
}

func randomBase64(n int) string {
	b := make([]byte, n)
	_, _ = rand.Read(b) // never fails, see its documentation
	return base64.StdEncoding.EncodeToString(b)
}
