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
			return h.assumeWithWebIdentity(r, parameters)
		case "AssumeRole":
			return h.assumeRole(r, body, parameters)
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

// assumeWithWebIdentity exchanges a web identity token for the credentials of a
// session.
func (h *Handler) assumeWithWebIdentity(r *http.Request, parameters map[string]string) (response, *apiError) {
	request, e := parseAssumeRequest(parameters, true)
	if e != nil {
		if token := parameters["WebIdentityToken"]; token != "" {
			h.record(trace.JourneyOf(token), "check", "request", e)
		}
		return nil, e
	}
	if e := h.checkRegion(r); e != nil {
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
	granted, e := h.grant(verdict.Journey, request, claims)
	h.record(verdict.Journey, "grant", request.roleARN, e)
	if e != nil {
		return nil, e
	}
	return &assumeWithWebIdentityResponse{Result: assumeWithWebIdentityResult{
		Subject:  verdict.Claims.Subject,
		Audience: verdict.Claims.Accepted,
		granted:  granted,
		Provider: verdict.Claims.Issuer,
	}}, nil
}

// assumeRole lets a session assume another role: role chaining.
func (h *Handler) assumeRole(r *http.Request, body []byte, parameters map[string]string) (response, *apiError) {
	caller, e := h.signer(r, body)
	if e == nil {
		e = h.checkRegion(r)
	}
	var request assumeRequest
	if e == nil {
		request, e = parseAssumeRequest(parameters, false)
	}
	var granted granted
	if e == nil {
		granted, e = h.chain(caller, parameters, request)
	}
	if caller != nil {
		h.record(caller.journey, "use", "AssumeRole", e)
	}
	if e != nil {
		return nil, e
	}
	return &assumeRoleResponse{Result: granted}, nil
}

func (h *Handler) chain(caller *session, parameters map[string]string, request assumeRequest) (granted, *apiError) {
	for name := range parameters {
		name, _, _ = strings.Cut(name, ".")
		if !slices.Contains([]string{"Action", "Version", "RoleArn", "RoleSessionName", "DurationSeconds", "Policy", "PolicyArns"}, name) {
			return granted{}, validationError("The parameter " + name + " is not evaluated here") // text is ours
		}
	}
	if request.duration > maxChained {
		return granted{}, validationError("The requested DurationSeconds exceeds the 1 hour session limit for roles assumed by role chaining")
	}
	claims := caller.claims.inherited()
	for _, action := range append([]string{chainAction}, claims.actions()...) {
		trusted := slices.Contains(h.roles[request.roleARN].trusted[action], caller.role.arn)
		if !trusted || caller.forbidden(action, request.roleARN, trusted) != "" {
			return granted{}, &apiError{http.StatusForbidden, "AccessDenied", "User: " + caller.arn(h.account) + " is not authorized to perform: " + action + " on resource: " + request.roleARN}
		}
	}
	return h.grant(caller.journey, request, claims)
}

// maxChained is the longest session of a role that was assumed with the
// credentials of another (IAM user guide, "Role chaining").
const maxChained = time.Hour

// grant issues a session of a role to somebody who may have it.
func (h *Handler) grant(journey string, request assumeRequest, claims sessionClaims) (granted, *apiError) {
	packed := packedSize(request.policy, request.policyARNs, claims.tags)
	if packed > 100 {
		return granted{}, packedPolicyTooLarge(packed)
	}
	role := h.roles[request.roleARN]
	duration := request.duration
	switch {
	case duration == 0:
		duration = min(defaultDuration, role.maxSession)
	case duration > role.maxSession:
		return granted{}, validationError("The requested DurationSeconds exceeds the MaxSessionDuration set for this role.")
	}
	now := h.clock.Now()
	session := issue(role, request.sessionName, journey, now.Add(duration))
	session.policy, session.claims, session.tags = request.permissions, claims, lowered(claims.tags)
	h.sessions.add(session, now)

	var g granted
	g.AssumedRoleUser.Arn = session.arn(h.account)
	g.AssumedRoleUser.AssumedRoleID = session.userID()
	g.Credentials.AccessKeyID = session.accessKeyID
	g.Credentials.SecretAccessKey = session.secretAccessKey
	g.Credentials.SessionToken = session.token
	g.Credentials.Expiration = session.expires.Format(time.RFC3339)
	g.SourceIdentity, g.PackedPolicySize = claims.sourceIdentity, packed
	return g, nil
}

// checkRegion refuses to issue credentials in a region that is disabled.
func (h *Handler) checkRegion(r *http.Request) *apiError {
	if region, ok := regionOf(r.Host); ok && slices.Contains(h.disabledRegions, region) {
		return regionDisabled(h.account)
	}
	return nil
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
