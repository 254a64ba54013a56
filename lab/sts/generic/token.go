package generic

import (
	"crypto/rand"
	"net/http"
	"time"

	"github.com/oidclab/oidclab/lab/sts"
	"github.com/oidclab/oidclab/lab/sts/internal/tokenservice"
	"github.com/oidclab/oidclab/lab/trace"
)

// exchangeResponse is a successful answer (RFC 6749 section 5.1), and that of
// a token exchange (RFC 8693 section 2.2.1).
type exchangeResponse struct {
	AccessToken     string `json:"access_token"`
	IssuedTokenType string `json:"issued_token_type,omitempty"` // of a token exchange only
	TokenType       string `json:"token_type"`
	ExpiresIn       int64  `json:"expires_in"` // seconds
}

// ServeHTTP is the token endpoint of the party.
func (p *party) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Cache-Control", "no-store")
	if r.Method != http.MethodPost {
		w.Header().Set("Allow", http.MethodPost)
		(&oauthError{http.StatusMethodNotAllowed, "invalid_request", "the token endpoint takes POST"}).write(w)
		return
	}
	request, e := p.read(r)
	if e != nil {
		if request.subjectToken != "" {
			p.record(trace.JourneyOf(request.subjectToken), "check", "request", e)
		}
		e.write(w)
		return
	}
	response, e := p.exchange(r, request)
	if e != nil {
		e.write(w)
		return
	}
	writeJSON(w, http.StatusOK, response)
}

// read parses a request in the party's dialect.
func (p *party) read(r *http.Request) (exchangeRequest, *oauthError) {
	if p.Custom == nil {
		return readRequest(r)
	}
	form, malformed := tokenservice.ReadForm(r)
	if malformed != nil {
		return exchangeRequest{subjectToken: form.Get("subject_token")}, &oauthError{malformed.Status, "invalid_request", malformed.Text}
	}
	if !p.bad.spend(r, 0) {
		return exchangeRequest{subjectToken: form.Get("subject_token")}, tooManyAttempts()
	}
	return p.Custom.parse(r, form)
}

func (p *party) exchange(r *http.Request, request exchangeRequest) (*exchangeResponse, *oauthError) {
	if request.target == "" {
		if len(p.Roles) > 1 {
			return nil, invalidTarget("name the target service as audience or resource")
		}
		request.target = p.Roles[0].Name
	}
	verdict := p.core.Exchange(r.Context(), sts.Request{Token: request.subjectToken, Role: request.target})
	if verdict.Refusal != nil {
		if p.Custom == nil {
			return nil, p.refused(request.dialect, verdict.Refusal)
		}
		if isBadToken(verdict.Refusal) {
			p.bad.spend(r, 1)
		}
		return nil, p.Custom.refused(verdict.Refusal)
	}
	if request.clientID != "" && request.clientID != verdict.Claims.Subject { // RFC 7523 section 3, 2.B
		e := &oauthError{http.StatusBadRequest, "invalid_client", "the client_id is not the subject of the client_assertion"}
		p.record(verdict.Journey, "check", "request", e)
		return nil, e
	}
	now := p.clock.Now().Truncate(time.Second)
	expiry := p.expiry(now, verdict.Claims.Expiry)
	token, err := p.signer.Sign(accessToken{
		Issuer:        p.url,
		Subject:       verdict.Claims.Subject,
		Audience:      request.target,
		ClientID:      verdict.Claims.Subject,
		ID:            rand.Text(),
		IssuedAt:      now.Unix(),
		Expiry:        expiry.Unix(),
		SubjectIssuer: verdict.Claims.Issuer,
		Journey:       verdict.Journey,
	})
	if err != nil {
		e := serverError()
		p.record(verdict.Journey, "grant", request.target, e)
		return nil, e
	}
	p.record(verdict.Journey, "grant", request.target, nil)
	response := &exchangeResponse{AccessToken: token, TokenType: "Bearer", ExpiresIn: int64(expiry.Sub(now).Seconds())}
	if request.dialect == tokenExchange {
		response.IssuedTokenType = tokenTypeAccessToken
	}
	return response, nil
}

// expiry of an access token made now for a subject token that expires at
// subject: after the lifetime, or when the subject token is no longer accepted.
func (p *party) expiry(now, subject time.Time) time.Time {
	expiry := now.Add(p.Lifetime).Truncate(time.Second)
	if last := subject.Add(p.Profile.Skew).Truncate(time.Second); last.Before(expiry) {
		expiry = last
	}
	if !expiry.After(now) { // the last second passed since the core looked at the clock
		expiry = now.Add(time.Second)
	}
	return expiry
}

// record adds an event to a token's journey.
func (p *party) record(journey, step, name string, e *oauthError) {
	event := trace.Event{Journey: journey, Station: p.Name, Step: step, Name: name, Outcome: trace.OK}
	if e != nil {
		event.Outcome, event.Reason, event.Detail = trace.Refused, e.code, e.description
	}
	p.trace.Add(event)
}
