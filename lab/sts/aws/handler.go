package aws

import (
	"bytes"
	"encoding/xml"
	"net/http"
	"net/url"
	"time"

	"github.com/google/uuid"

	"github.com/oidclab/oidclab/lab/sts"
	"github.com/oidclab/oidclab/lab/trace"
)

// version is that of the only STS API there is.
const version = "2011-06-15"

// ServeHTTP implements [http.Handler]. Answers carry the time of the lab in
// the Date header, by which the SDKs correct their own clock.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	requestID := uuid.NewString()
	header := w.Header()
	header.Set("Date", h.clock.Now().UTC().Format(http.TimeFormat))
	header.Set("X-Amzn-RequestId", requestID)
	header.Set("Content-Type", "text/xml")
	header.Set("Cache-Control", "no-store")

	answer, e := h.answer(w, r)
	status := http.StatusOK
	if e != nil {
		status, answer = e.Status, newErrorResponse(e)
	}
	answer.setRequestID(requestID)
	body, err := xml.MarshalIndent(answer, "", "  ")
	if err != nil {
		panic("aws: an answer cannot be encoded: " + err.Error()) // its type is wrong
	}
	w.WriteHeader(status)
	_, _ = w.Write(append(plainQuotes(body), '\n')) // the client may be gone
}

// plainQuotes undoes an escape that only attributes need: people read answers
// with curl.
func plainQuotes(body []byte) []byte {
	return bytes.ReplaceAll(bytes.ReplaceAll(body, []byte("&#39;"), []byte("'")), []byte("&#34;"), []byte(`"`))
}

func (h *Handler) answer(w http.ResponseWriter, r *http.Request) (response, *apiError) {
	if r.Method != http.MethodPost && r.Method != http.MethodGet {
		w.Header().Set("Allow", "GET, POST")
		return nil, &apiError{http.StatusMethodNotAllowed, "MethodNotAllowed", "The Query protocol takes GET and POST"}
	}
	if r.URL.Path != "/" {
		return nil, &apiError{http.StatusNotFound, "UnknownOperationException", "STS answers at / only"}
	}
	parameters, body, e := readParameters(r)
	if e != nil {
		return nil, e
	}
	action := parameters["Action"]
	if action == "" {
		return nil, &apiError{http.StatusBadRequest, "MissingAction", "The request is missing an action or a required parameter"}
	}
	if parameters["Version"] == version {
		switch action {
		case "AssumeRoleWithWebIdentity":
			return h.assumeRole(r, parameters)
		case "GetCallerIdentity":
			return h.getCallerIdentity(r, body)
		}
	}
	return nil, invalidAction(action, parameters["Version"])
}

// assumeRole exchanges a web identity token for the credentials of a session.
func (h *Handler) assumeRole(r *http.Request, parameters map[string]string) (response, *apiError) {
	request, e := parseAssumeRequest(parameters)
	if e != nil {
		if token := parameters["WebIdentityToken"]; token != "" {
			h.record(trace.JourneyOf(token), "check", "request", e)
		}
		return nil, e
	}
	if request.providerID != "" {
		// For OAuth 2.0 access tokens of two named providers, which are not
		// federated by a cluster (STS API reference, ProviderId). Text is ours.
		return nil, invalidIdentityToken("No OAuth 2.0 provider found in your account for " + request.providerID)
	}
	verdict := h.core.Exchange(r.Context(), sts.Request{Token: request.token, Role: request.roleARN})
	if verdict.Refusal != nil {
		return nil, refused(verdict.Refusal, h.clock.Now(), h.skew)
	}
	role := h.roles[request.roleARN]
	duration := request.duration
	switch {
	case duration == 0:
		duration = min(defaultDuration, role.maxSession)
	case duration > role.maxSession:
		e := validationError("The requested DurationSeconds exceeds the MaxSessionDuration set for this role.")
		h.record(verdict.Journey, "grant", role.arn, e)
		return nil, e
	}
	now := h.clock.Now()
	session := issue(role, request.sessionName, verdict.Journey, now.Add(duration))
	h.sessions.add(session, now)
	h.record(verdict.Journey, "grant", role.arn, nil)

	result := assumeRoleResult{
		Subject:  verdict.Claims.Subject,
		Audience: verdict.Claims.Accepted,
		Provider: verdict.Claims.Issuer,
	}
	result.AssumedRoleUser.Arn = session.arn(h.account)
	result.AssumedRoleUser.AssumedRoleID = session.userID()
	result.Credentials.AccessKeyID = session.accessKeyID
	result.Credentials.SecretAccessKey = session.secretAccessKey
	result.Credentials.SessionToken = session.token
	result.Credentials.Expiration = session.expires.Format(time.RFC3339)
	return &assumeRoleResponse{Result: result}, nil
}

// defaultDuration of a session (STS API reference, DurationSeconds).
const defaultDuration = time.Hour

// getCallerIdentity says whose credentials signed the request.
func (h *Handler) getCallerIdentity(r *http.Request, body []byte) (response, *apiError) {
	query, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return nil, missingAuthentication() // readParameters has refused it before
	}
	signature, e := parseSignature(r, query)
	if e != nil {
		return nil, e
	}
	session := h.sessions.get(signature.accessKeyID)
	if session == nil {
		return nil, invalidClientTokenID()
	}
	e = h.authenticate(r, body, signature, session)
	h.record(session.journey, "use", "GetCallerIdentity", e)
	if e != nil {
		return nil, e
	}
	return &callerIdentityResponse{Result: callerIdentityResult{
		Arn:     session.arn(h.account),
		UserID:  session.userID(),
		Account: h.account,
	}}, nil
}

func (h *Handler) authenticate(r *http.Request, body []byte, signature signature, session *session) *apiError {
	now := h.clock.Now()
	switch {
	case !session.holdsToken(signature.token):
		return invalidClientTokenID()
	case session.expired(now):
		return expiredToken()
	}
	if e := signature.checkTime(now); e != nil {
		return e
	}
	return signature.check(r, body, session)
}

// record adds an event to a token's journey. Of an error it keeps the code
// only: its text may quote the request.
func (h *Handler) record(journey, step, name string, e *apiError) {
	event := trace.Event{Journey: journey, Station: h.party, Step: step, Name: name, Outcome: trace.OK}
	if e != nil {
		event.Outcome, event.Reason = trace.Refused, e.Code
	}
	h.trace.Add(event)
}
