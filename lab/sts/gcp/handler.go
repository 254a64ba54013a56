package gcp

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/oidclab/oidclab/lab/sts"
	"github.com/oidclab/oidclab/lab/sts/internal/tokenservice"
	"github.com/oidclab/oidclab/lab/trace"
)

// lifetime of access tokens: of federated ones as the vendor's service has it,
// of those of service accounts the default and the longest (IAM documentation,
// "Create short-lived credentials for a service account").
const lifetime = time.Hour

// The URIs of RFC 8693, section 2.1 and section 3.
const (
	grantType = "urn:ietf:params:oauth:grant-type:token-exchange"

	tokenTypeAccessToken = "urn:ietf:params:oauth:token-type:access_token"
	tokenTypeIDToken     = "urn:ietf:params:oauth:token-type:id_token"
	tokenTypeJWT         = "urn:ietf:params:oauth:token-type:jwt"
)

func (h *Handler) routes() {
	h.mux.HandleFunc("POST /v1/token", h.token)
	h.mux.HandleFunc("POST /v1/projects/-/serviceAccounts/{call}", h.serviceAccount)
	h.mux.HandleFunc("GET /storage/v1/b/{bucket}/o", h.objects)
	h.mux.HandleFunc("GET /storage/v1/b/{bucket}/o/{object}", h.object)
	h.mux.HandleFunc("GET /download/storage/v1/b/{bucket}/o/{object}", h.object)
	// Google's front end has no 405: a method that does not exist is not found.
	h.mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) {
		writeError(w, rpcError(http.StatusNotFound, "NOT_FOUND", "Method not found."))
	})
}

// ServeHTTP implements [http.Handler]. Answers carry the time of the lab in
// the Date header.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	tokenservice.SetDate(w, h.clock)
	w.Header().Set("Cache-Control", "no-store")
	h.mux.ServeHTTP(w, r)
}

// tokenResponse is a successful answer of the Security Token Service (RFC 8693
// section 2.2.1).
type tokenResponse struct {
	AccessToken     string `json:"access_token"`
	IssuedTokenType string `json:"issued_token_type"`
	TokenType       string `json:"token_type"`
	ExpiresIn       int64  `json:"expires_in"` // seconds
}

// token exchanges a subject token for a federated access token.
func (h *Handler) token(w http.ResponseWriter, r *http.Request) {
	form, formError := tokenservice.ReadForm(r)
	request, e := parseExchange(form)
	if formError != nil {
		e = &oauthError{formError.Status, "invalid_request", formError.Text}
	}
	var response *tokenResponse
	if e == nil {
		response, e = h.exchange(r, request)
	} else if token := form.Get("subject_token"); token != "" {
		h.record(trace.Event{Journey: trace.JourneyOf(token), Step: "check", Name: "request", Outcome: trace.Refused, Reason: e.Code, Detail: e.Description})
	}
	if e != nil {
		tokenservice.WriteJSON(w, e.status, e)
		return
	}
	tokenservice.WriteJSON(w, http.StatusOK, response)
}

// exchangeRequest is a token exchange request (RFC 8693 section 2.1).
type exchangeRequest struct {
	audience     string
	subjectToken string
	scopes       scopes
}

// parseExchange reads the form, whose parameters are there at most once. The
// options parameter, which workforce pools have, is ignored like unknown ones.
func parseExchange(form url.Values) (exchangeRequest, *oauthError) {
	names := strings.Fields(form.Get("scope"))
	request := exchangeRequest{audience: form.Get("audience"), subjectToken: form.Get("subject_token"), scopes: scopesOf(names)}
	switch kind := form.Get("subject_token_type"); {
	case form.Get("grant_type") != grantType:
		return request, oauth("unsupported_grant_type", "The grant_type must be "+grantType+".")
	case form.Get("requested_token_type") != tokenTypeAccessToken:
		return request, invalidRequest("The requested_token_type must be " + tokenTypeAccessToken + ".")
	case kind != tokenTypeJWT && kind != tokenTypeIDToken:
		return request, invalidRequest("The subject_token_type must be " + tokenTypeJWT + " or " + tokenTypeIDToken + ".")
	case request.subjectToken == "":
		return request, refused(&sts.Refusal{Reason: sts.TokenMissing})
	case !isAudience(request.audience):
		return request, invalidRequest(invalidAudience)
	case len(names) == 0:
		return request, oauth("invalid_scope", "A scope is required.")
	}
	return request, nil
}

// isAudience reports whether the audience has the form of a provider's full
// resource name.
func isAudience(audience string) bool {
	name, ok := strings.CutPrefix(audience, iamService)
	parts := strings.Split(name, "/")
	return ok && len(parts) == 8 && !slices.Contains(parts, "") &&
		parts[0] == "projects" && parts[2] == "locations" && parts[3] == "global" && parts[4] == "workloadIdentityPools" && parts[6] == "providers"
}

func (h *Handler) exchange(r *http.Request, request exchangeRequest) (*tokenResponse, *oauthError) {
	p := h.providers[request.audience]
	if p == nil || p.disabled {
		refusal := &sts.Refusal{Check: sts.CheckRole, Reason: sts.RoleUnknown, Want: "a provider that exists and is enabled", Got: shown(request.audience)}
		h.recordCheck(trace.JourneyOf(request.subjectToken), sts.CheckRole, refusal, "", "")
		return nil, refused(refusal)
	}
	verdict := p.core.Verify(r.Context(), request.subjectToken)
	if verdict.Refusal != nil {
		return nil, refused(verdict.Refusal)
	}
	attributes, refusal := p.mapping.evaluate(verdict.Claims.Raw)
	if attributes != nil {
		h.recordCheck(verdict.Journey, sts.CheckSubject, nil, "a "+subjectKey, attributes.subject)
	}
	if refusal != nil {
		h.recordCheck(verdict.Journey, refusal.Check, refusal, "", "")
		return nil, refused(refusal)
	}
	if p.mapping.condition != nil {
		h.recordCheck(verdict.Journey, sts.CheckConditions, nil, p.mapping.text, "true")
	}
	who := principal{
		member: "principal:" + iamService + p.pool + "/subject/" + attributes.subject,
		pool:   p.pool, mapped: attributes,
	}
	granted := h.issue(who, request.scopes, verdict.Journey, lifetime)
	h.record(trace.Event{Journey: verdict.Journey, Step: "grant", Name: shown(who.member), Outcome: trace.OK})
	return &tokenResponse{
		AccessToken:     granted.token,
		IssuedTokenType: tokenTypeAccessToken,
		TokenType:       "Bearer",
		ExpiresIn:       int64(lifetime.Seconds()),
	}, nil
}

func (h *Handler) issue(who principal, s scopes, journey string, lifetime time.Duration) *credential {
	now := h.clock.Now()
	granted := issue(who, s, journey, now.Add(lifetime))
	h.credentials.add(granted, now)
	return granted
}

// accessTokenRequest is that of generateAccessToken (IAM Service Account
// Credentials API reference).
type accessTokenRequest struct {
	Delegates []string `json:"delegates"`
	Scope     []string `json:"scope"`
	Lifetime  string   `json:"lifetime"` // google.protobuf.Duration: seconds and "s"
}

type accessTokenResponse struct {
	AccessToken string `json:"accessToken"`
	ExpireTime  string `json:"expireTime"` // RFC 3339
}

// maxBodyBytes bounds the body of a generateAccessToken request.
const maxBodyBytes = 64 << 10

// serviceAccount answers calls of methods of a service account.
func (h *Handler) serviceAccount(w http.ResponseWriter, r *http.Request) {
	email, ok := strings.CutSuffix(r.PathValue("call"), ":generateAccessToken")
	if !ok {
		writeError(w, rpcError(http.StatusNotFound, "NOT_FOUND", "Method not found."))
		return
	}
	caller, e := h.authenticate(r,
		unauthenticated("Request is missing required authentication credential."),
		unauthenticated("Request had invalid authentication credentials."))
	var response *accessTokenResponse
	if e == nil {
		response, e = h.impersonate(r, caller, email)
	}
	if caller != nil {
		event := trace.Event{Journey: caller.journey, Step: "grant", Name: shown(ServiceAccountMember(email)), Outcome: trace.OK, Got: shown(caller.principal.member)}
		h.recordAnswer(event, e)
	}
	if e != nil {
		writeError(w, e)
		return
	}
	tokenservice.WriteJSON(w, http.StatusOK, response)
}

func (h *Handler) impersonate(r *http.Request, caller *credential, email string) (*accessTokenResponse, *apiError) {
	request, lifetime, e := readAccessTokenRequest(r)
	switch {
	case e != nil:
		return nil, e
	case !caller.scopes.impersonate:
		return nil, scopeInsufficient()
	case !caller.principal.may(h.policies[email]):
		return nil, getAccessTokenDenied()
	}
	granted := h.issue(principal{member: ServiceAccountMember(email)}, scopesOf(request.Scope), caller.journey, lifetime)
	return &accessTokenResponse{AccessToken: granted.token, ExpireTime: granted.expires.UTC().Format(time.RFC3339)}, nil
}

func readAccessTokenRequest(r *http.Request) (accessTokenRequest, time.Duration, *apiError) {
	body, err := io.ReadAll(http.MaxBytesReader(nil, r.Body, maxBodyBytes))
	switch {
	case errors.As(err, new(*http.MaxBytesError)):
		return accessTokenRequest{}, 0, rpcError(http.StatusRequestEntityTooLarge, "INVALID_ARGUMENT", "Request payload size exceeds the limit.")
	case err != nil:
		return accessTokenRequest{}, 0, invalidArgument("The request could not be read.")
	}
	return parseAccessTokenRequest(body)
}

func parseAccessTokenRequest(body []byte) (accessTokenRequest, time.Duration, *apiError) {
	var request accessTokenRequest
	decoder := json.NewDecoder(bytes.NewReader(body))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&request); err != nil || decoder.More() {
		return request, 0, invalidArgument("Invalid JSON payload received.")
	}
	switch {
	case len(request.Scope) == 0:
		return request, 0, invalidArgument("Request contains an invalid argument.")
	case len(request.Delegates) > 0:
		return request, 0, invalidArgument("Delegation chains are not supported by this lab.")
	case request.Lifetime == "":
		return request, lifetime, nil
	}
	seconds, ok := strings.CutSuffix(request.Lifetime, "s")
	if !ok || strings.Trim(seconds, "0123456789.") != "" {
		return request, 0, invalidArgument("Request contains an invalid argument.")
	}
	wanted, err := time.ParseDuration(request.Lifetime)
	switch {
	case err != nil || wanted < time.Second:
		return request, 0, invalidArgument("Request contains an invalid argument.")
	case wanted > lifetime:
		return request, 0, invalidArgument("The access token lifetime cannot exceed 3600 seconds.")
	}
	return request, wanted.Truncate(time.Second), nil
}

// authenticate returns the credential of the Authorization header (RFC 6750
// section 2.1). One that is expired is returned beside the error, since its
// journey is known.
func (h *Handler) authenticate(r *http.Request, missing, invalid *apiError) (*credential, *apiError) {
	header := r.Header.Get("Authorization")
	if header == "" {
		return nil, missing
	}
	scheme, token, _ := strings.Cut(header, " ")
	if !strings.EqualFold(scheme, "Bearer") {
		return nil, invalid
	}
	found := h.credentials.find(strings.TrimSpace(token))
	if found == nil || found.expired(h.clock.Now()) {
		return found, invalid
	}
	return found, nil
}

func writeError(w http.ResponseWriter, e *apiError) {
	if e.Code == http.StatusUnauthorized {
		w.Header().Set("WWW-Authenticate", `Bearer realm="https://accounts.google.com/"`)
	}
	tokenservice.WriteJSON(w, e.Code, map[string]*apiError{"error": e})
}

// record adds an event to a token's journey.
func (h *Handler) record(event trace.Event) {
	event.Station = h.party
	h.trace.Add(event)
}

// recordCheck records a check that the core leaves to this package.
func (h *Handler) recordCheck(journey string, check sts.Check, refusal *sts.Refusal, want, got string) {
	event := trace.Event{Journey: journey, Step: "check", Name: string(check), Outcome: trace.OK, Want: shown(want), Got: shown(got)}
	if refusal != nil {
		event.Outcome, event.Reason, event.Want, event.Got, event.Detail = trace.Refused, string(refusal.Reason), refusal.Want, refusal.Got, refusal.Hint
		if refusal.Err != nil {
			event.Detail = refusal.Err.Error() + " " + refusal.Hint
		}
	}
	h.record(event)
}

// recordAnswer records a grant or a use, which e refused unless it is nil.
func (h *Handler) recordAnswer(event trace.Event, e *apiError) {
	if e != nil {
		event.Outcome, event.Reason, event.Detail = trace.Refused, e.cause(), shown(e.Message)
	}
	h.record(event)
}
