package aws

import (
	"bytes"
	"encoding/xml"
	"net/http"
	"slices"
	"strings"
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

// regionOf returns the region of STS's name there.
func regionOf(host string) (string, bool) {
	host, _, _ = strings.Cut(host, ":")
	region, ok := strings.CutPrefix(strings.ToLower(host), "sts.")
	if !ok {
		return "", false
	}
	return strings.CutSuffix(region, ".amazonaws.com")
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
	if region, ok := regionOf(r.Host); ok && slices.Contains(h.disabledRegions, region) {
		e := regionDisabled(h.account)
		h.record(trace.JourneyOf(request.token), "check", "region", e)
		return nil, e
	}
	switch request.providerID {
	case "":
	case "www.amazon.com", "graph.facebook.com":
		// They are asked about their own OAuth 2.0 access tokens (STS API
		// reference, ProviderId), of which a cluster's token is none.
		return nil, idpRejected(request.providerID)
	default: // no text is on record
		return nil, invalidIdentityToken("No OAuth 2.0 provider found in your account for " + request.providerID)
	}
	verdict := h.core.Exchange(r.Context(), sts.Request{Token: request.token, Role: request.roleARN})
	if verdict.Refusal != nil {
		return nil, refused(verdict.Refusal, h.clock.Now(), h.skew)
	}
	claims, e := readSessionClaims(verdict.Claims.Raw)
	if e != nil {
		h.record(verdict.Journey, "grant", request.roleARN, e)
		return nil, e
	}
	for _, action := range claims.actions() {
		// A decision of its own: another statement may allow the action.
		if h.core.Exchange(r.Context(), sts.Request{Token: request.token, Role: coreRole(request.roleARN, action)}).Refusal != nil {
			return nil, accessDenied(action)
		}
	}
	packed := packedSize(request.policy, request.policyARNs, claims.tags)
	if packed > 100 {
		e := packedPolicyTooLarge(packed)
		h.record(verdict.Journey, "grant", request.roleARN, e)
		return nil, e
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
	session.policy, session.tags, session.sourceIdentity = request.permissions, lowered(claims.tags), claims.sourceIdentity
	h.sessions.add(session, now)
	h.record(verdict.Journey, "grant", role.arn, nil)

	result := assumeRoleResult{
		Subject:  verdict.Claims.Subject,
		Audience: verdict.Claims.Accepted,
		Provider: verdict.Claims.Issuer,

		SourceIdentity:   claims.sourceIdentity,
		PackedPolicySize: packed,
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

// getCallerIdentity says whose credentials signed the request. That needs no
// permission.
func (h *Handler) getCallerIdentity(r *http.Request, body []byte) (response, *apiError) {
	session, e := h.signer(r, body)
	if session != nil {
		h.record(session.journey, "use", "GetCallerIdentity", e)
	}
	if e != nil {
		return nil, e
	}
	return &callerIdentityResponse{Result: callerIdentityResult{
		Arn:     session.arn(h.account),
		UserID:  session.userID(),
		Account: h.account,
	}}, nil
}

const (
	signatureSkew = 5 * time.Minute
	// presignedLife is how long a presigned request is good for. STS does not
	// look at X-Amz-Expires (aws-iam-authenticator, pkg/token).
	presignedLife = 15 * time.Minute
)

// signer returns the session whose credentials signed a request to STS. If
// there is an error, it is the session that they were said to be of, or nil.
func (h *Handler) signer(r *http.Request, body []byte) (*session, *apiError) {
	now := h.clock.Now()
	signature, e := parseSignature(r, r.URL.Query(), serviceSTS)
	if e != nil {
		return nil, unauthenticated(e)
	}
	session, e := signature.holder(h.sessions, now)
	if e == nil {
		life := signatureSkew
		if signature.presigned {
			life = presignedLife
		}
		e = signature.checkTime(now, signatureSkew, life)
	}
	if e == nil {
		e = signature.check(r, sha256Hex(body), session)
	}
	if e != nil {
		return session, unauthenticated(e)
	}
	return session, nil
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
