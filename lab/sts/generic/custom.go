package generic

import (
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"math"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/oidclab/oidclab/lab/clock"
	"github.com/oidclab/oidclab/lab/sts"
)

// CustomExchange makes a party speak Auth0's Custom Token Exchange, at
// /oauth/token as well: clients have secrets, and the type of the subject token
// names the profile that judges it. Its codes are the vendor's; the texts are
// ours, but for those of unknown clients and services.
type CustomExchange struct {
	// TokenType is the subject_token_type of the profile: a URI, not in the
	// namespaces of IETF, Auth0 and Okta.
	TokenType string
	Clients   []Client
	// Denied is the code for a good token whose subject the target does not trust,
	// which the vendor leaves to its customer; empty means "access_denied".
	Denied string
	// MaxAttempts is how many bad subject tokens an address may send before it
	// is answered with too_many_attempts; it earns another one every 10 minutes.
	// 0 means any number. The vendor's default is 10.
	MaxAttempts int
}

// Client is an application with a secret.
type Client struct {
	ID     string
	Secret string
}

// attemptInterval is how long an address waits for another attempt (Auth0,
// "Suspicious IP Throttling" of custom token exchange: 6 an hour).
const attemptInterval = 10 * time.Minute

// reserved are the beginnings of token types that no profile can have.
func reserved(tokenType string) bool {
	for _, prefix := range []string{"urn:ietf", "urn:auth0", "https://auth0.com", "http://auth0.com", "urn:okta", "https://okta.com", "http://okta.com"} {
		if strings.HasPrefix(strings.ToLower(tokenType), prefix) {
			return true
		}
	}
	return false
}

func (c *CustomExchange) validate() error {
	if u, err := url.Parse(c.TokenType); err != nil || !u.IsAbs() || reserved(c.TokenType) {
		return fmt.Errorf("token type %q is not a URI of your own: those of IETF, Auth0 and Okta are reserved", c.TokenType)
	}
	if len(c.Clients) == 0 {
		return errors.New("no clients: nobody could exchange a token")
	}
	for _, client := range c.Clients {
		if client.ID == "" || client.Secret == "" {
			return fmt.Errorf("client %q has no id or no secret", client.ID)
		}
	}
	return nil
}

// customRequest is what an Auth0 application asks.
func (c *CustomExchange) parse(r *http.Request, form url.Values) (exchangeRequest, *oauthError) {
	request := exchangeRequest{dialect: tokenExchange, subjectToken: form.Get("subject_token"), target: form.Get("audience")}
	if !c.authenticated(r, form) {
		return request, &oauthError{http.StatusUnauthorized, "access_denied", "Unauthorized"}
	}
	tokenType := form.Get("subject_token_type")
	switch {
	case form.Get("grant_type") == "":
		return request, invalidRequest("grant_type is missing")
	case form.Get("grant_type") != grantType:
		return request, &oauthError{http.StatusForbidden, "unauthorized_client", "the grant_type is not allowed for the client"}
	case tokenType == "":
		return request, invalidRequest("subject_token_type is missing")
	case reserved(tokenType):
		return request, invalidRequest("the subject_token_type is in a reserved namespace")
	case tokenType != c.TokenType:
		return request, invalidRequest("there is no custom token exchange profile for the subject_token_type")
	case request.target == "":
		return request, invalidRequest("audience is missing")
	case form.Get("scope") != "":
		return request, &oauthError{http.StatusBadRequest, "invalid_scope", "this service has no scopes; send none"}
	}
	return request, nil
}

// authenticated takes client_id and client_secret from the form, or from HTTP
// Basic (RFC 6749 section 2.3.1).
func (c *CustomExchange) authenticated(r *http.Request, form url.Values) bool {
	id, secret := form.Get("client_id"), form.Get("client_secret")
	if name, password, ok := r.BasicAuth(); ok {
		id, secret = name, password
	}
	known := false
	got := sha256.Sum256([]byte(secret))
	for _, client := range c.Clients {
		want := sha256.Sum256([]byte(client.Secret))
		if client.ID == id && subtle.ConstantTimeCompare(got[:], want[:]) == 1 {
			known = true
		}
	}
	return known
}

// refused is the answer to a subject token that the core refused. A reason that
// is not in the list is answered as a failure of the service; a test sees to it
// that there is none.
func (c *CustomExchange) refused(r *sts.Refusal) *oauthError {
	switch r.Reason {
	case sts.IssuerUnreachable: // the customer's code cannot judge the token
		return serverError()
	case sts.RoleUnknown:
		return &oauthError{http.StatusForbidden, "access_denied", "Service not found"}
	case sts.IssuerNotTrusted, sts.SubjectMismatch, sts.ConditionMismatch:
		code := c.Denied
		if code == "" {
			code = "access_denied"
		}
		return &oauthError{http.StatusBadRequest, code, "the subject of the token may not have the target service"}
	}
	description := describe(r.Reason)
	if description == "" {
		return serverError()
	}
	return invalidRequest("the subject_token " + description)
}

// isBadToken says whether a refusal counts as an attempt.
func isBadToken(r *sts.Refusal) bool {
	return r.Reason != sts.TokenMissing && describe(r.Reason) != ""
}

// throttle counts the bad tokens of addresses.
type throttle struct {
	limit int // 0 means none
	clock clock.Clock

	mu   sync.Mutex
	left map[string]allowance // by address
}

// allowance is how many attempts an address had at a moment.
type allowance struct {
	attempts float64
	at       time.Time
}

func newThrottle(limit int, c clock.Clock) *throttle {
	return &throttle{limit: limit, clock: c, left: make(map[string]allowance)}
}

// maxAddresses bounds what is remembered of strangers.
const maxAddresses = 10_000

// spend takes n attempts from the address of a request, and says whether it
// had any.
func (t *throttle) spend(r *http.Request, n float64) bool {
	if t.limit == 0 {
		return true
	}
	address, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		address = r.RemoteAddr
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	now := t.clock.Now()
	a, known := t.left[address]
	if !known {
		if len(t.left) >= maxAddresses {
			clear(t.left)
		}
		a = allowance{float64(t.limit), now}
	}
	earned := float64(now.Sub(a.at)) / float64(attemptInterval)
	a = allowance{math.Min(float64(t.limit), a.attempts+math.Max(0, earned)), now}
	allowed := a.attempts >= 1
	if allowed {
		a.attempts -= n
	}
	t.left[address] = a
	return allowed
}

// tooManyAttempts is the answer to an address that sent too many bad tokens.
func tooManyAttempts() *oauthError {
	return &oauthError{http.StatusTooManyRequests, "too_many_attempts", "too many invalid subject tokens came from this address"}
}
