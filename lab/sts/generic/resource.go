package generic

import (
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/oidclab/oidclab/lab/clock"
	"github.com/oidclab/oidclab/lab/sts"
	"github.com/oidclab/oidclab/lab/sts/internal/tokenservice"
	"github.com/oidclab/oidclab/lab/trace"
)

// ResourceConfig is a protected resource.
type ResourceConfig struct {
	Audience string // the resource's name: the aud of access tokens for it
	Issuer   string // the URL of the token service that makes them

	Client *http.Client // trusts the lab CA
	Clock  clock.Clock
	Trace  *trace.Log // may be nil
}

// resourceParty is the name of protected resources in traces.
const resourceParty = "resource"

// resource is a protected resource.
type resource struct {
	audience string
	core     *sts.Core
	clock    clock.Clock
	trace    *trace.Log
}

// Resource returns a protected resource at GET /resource: it takes bearer
// tokens in the Authorization header (RFC 6750 section 2.1), verifies them with
// the keys that their issuer publishes, and answers with what it learned:
// subject, audience, issuer and expires. It does no I/O.
func Resource(cfg ResourceConfig) (http.Handler, error) {
	profile := tokenservice.AccessTokens(accessTokenType, "application/"+accessTokenType) // RFC 9068 section 4
	core, err := sts.New(sts.Config{
		Party: resourceParty, Profile: profile,
		Issuers: []sts.Issuer{{URL: cfg.Issuer, Audiences: []string{cfg.Audience}}},
		Client:  cfg.Client, Clock: cfg.Clock, Trace: cfg.Trace,
	})
	if err != nil {
		return nil, fmt.Errorf("generic: resource: %w", err)
	}
	mux := http.NewServeMux()
	mux.Handle("GET /resource", &resource{cfg.Audience, core, cfg.Clock, cfg.Trace})
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		tokenservice.SetDate(w, cfg.Clock)
		mux.ServeHTTP(w, r)
	}), nil
}

// resourceResponse says whose access token was accepted.
type resourceResponse struct {
	Subject  string    `json:"subject"`
	Audience string    `json:"audience"`
	Issuer   string    `json:"issuer"`
	Expires  time.Time `json:"expires"`
}

func (s *resource) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Cache-Control", "no-store")
	token, ok := bearer(r)
	if !ok {
		// RFC 6750 section 3.1: no error code if there was no attempt.
		challenge(w, http.StatusUnauthorized, "", "")
		return
	}
	verdict := s.core.Verify(r.Context(), token)
	if verdict.Refusal != nil {
		status, code, description := refusedByResource(verdict.Refusal)
		s.trace.Add(trace.Event{Journey: verdict.Journey, Station: resourceParty, Step: "use", Name: s.audience, Outcome: trace.Refused, Reason: string(verdict.Refusal.Reason)})
		challenge(w, status, code, description)
		return
	}
	// The access token's own journey ends here; what it is for goes on with
	// that of the subject token it was exchanged for.
	journey, _ := verdict.Claims.Raw["oidclab_journey"].(string)
	s.trace.Add(trace.Event{Journey: journey, Station: resourceParty, Step: "use", Name: s.audience, Outcome: trace.OK, Detail: "access token " + verdict.Journey})
	writeJSON(w, http.StatusOK, resourceResponse{
		Subject:  verdict.Claims.Subject,
		Audience: verdict.Claims.Accepted,
		Issuer:   verdict.Claims.Issuer,
		Expires:  verdict.Claims.Expiry.UTC(),
	})
}

// bearer returns the token of the Authorization header, which may be empty.
func bearer(r *http.Request) (string, bool) {
	scheme, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	return strings.TrimSpace(token), strings.EqualFold(scheme, "Bearer")
}

// refusedByResource is the answer to an access token that was refused (RFC
// 6750 section 3.1). A reason that is not in the list is answered as a failure
// of the resource; a test sees to it that there is none.
func refusedByResource(r *sts.Refusal) (status int, code, description string) {
	switch r.Reason {
	case sts.TokenMissing:
		return http.StatusBadRequest, "invalid_request", "the access token is missing"
	case sts.IssuerUnreachable:
		return http.StatusServiceUnavailable, "", ""
	case sts.RoleUnknown, sts.IssuerNotTrusted, sts.SubjectMismatch, sts.ConditionMismatch:
		return http.StatusForbidden, "insufficient_scope", "the resource does not trust the subject of the token"
	}
	if description := describe(r.Reason); description != "" {
		return http.StatusUnauthorized, "invalid_token", "the access token " + description
	}
	return http.StatusInternalServerError, "", ""
}

// challenge answers without content (RFC 6750 section 3).
func challenge(w http.ResponseWriter, status int, code, description string) {
	if status < http.StatusInternalServerError {
		value := `Bearer realm="oidclab"`
		if code != "" {
			value += fmt.Sprintf(`, error="%s", error_description="%s"`, code, description)
		}
		w.Header().Set("WWW-Authenticate", value)
	}
	w.WriteHeader(status)
}
