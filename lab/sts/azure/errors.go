package azure

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/oidclab/oidclab/lab/sts"
	"github.com/oidclab/oidclab/lab/sts/internal/tokenservice"
)

// aadError is an error of the token service. The codes are those of "Microsoft
// Entra authentication and authorization error codes", statuses and texts were
// seen in answers of the real service where a comment does not say otherwise.
type aadError struct {
	status int
	oauth  string // RFC 6749 section 5.2, and Entra's own
	code   int    // AADSTS
	text   string
}

func invalidClient(code int, text string) *aadError {
	return &aadError{http.StatusUnauthorized, "invalid_client", code, text}
}

func invalidRequest(code int, text string) *aadError {
	return &aadError{http.StatusBadRequest, "invalid_request", code, text}
}

func missingParameter(name string) *aadError {
	return invalidRequest(900144, "The request body must contain the following parameter: '"+name+"'.")
}

func tenantNotFound(tenant string) *aadError {
	return invalidRequest(90002, "Tenant '"+bounded(tenant)+"' not found. Check to make sure you have the correct tenant ID and are signing into the correct cloud. "+
		"Check with your subscription administrator, this may happen if there are no active subscriptions for the tenant.")
}

func tenantMalformed(tenant string) *aadError {
	return invalidRequest(900023, "Specified tenant identifier '"+bounded(tenant)+"' is neither a valid DNS name, nor a valid external domain.")
}

func unknownInstance() *aadError {
	return &aadError{http.StatusBadRequest, "invalid_instance", 50049, "Unknown or invalid instance."}
}

func serverError() *aadError {
	return &aadError{http.StatusInternalServerError, "server_error", 90033, "A transient error has occurred. Please try again."}
}

// maxShown bounds what an answer repeats of a request.
const maxShown = maxAttributeLength

func bounded(s string) string {
	if len(s) > maxShown {
		return strings.ToValidUTF8(s[:maxShown], "")
	}
	return strings.ToValidUTF8(s, "")
}

// The sentences that the texts of failed matches share.
const (
	noMatch   = "No matching federated identity record found for presented assertion "
	checkThem = " Check your federated identity credential Subject, Audience and Issuer against the presented assertion. https://learn.microsoft.com/entra/workload-id/workload-identity-federation"
	caseOnly  = " The subject matches with case-insensitive comparison, but not with case-sensitive comparison."
)

// assertion is what the texts repeat of a presented assertion.
type assertion struct {
	kid                       string
	issuer, subject, audience string
	notBefore, expiry         time.Time
}

// readAssertion takes a token apart, for texts only. What cannot be read is
// empty: the core has judged it.
func readAssertion(token string) assertion {
	part := func(i int) []byte {
		data, _ := base64.RawURLEncoding.DecodeString(strings.Split(token+"..", ".")[i])
		return data
	}
	var header struct {
		Kid string `json:"kid"`
	}
	var claims struct {
		Issuer    string `json:"iss"`
		Subject   string `json:"sub"`
		Audience  any    `json:"aud"`
		NotBefore int64  `json:"nbf"`
		Expiry    int64  `json:"exp"`
	}
	_ = json.Unmarshal(part(0), &header)
	_ = json.Unmarshal(part(1), &claims)
	a := assertion{
		kid: bounded(header.Kid), issuer: bounded(claims.Issuer), subject: bounded(claims.Subject),
		notBefore: time.Unix(claims.NotBefore, 0).UTC(), expiry: time.Unix(claims.Expiry, 0).UTC(),
	}
	switch audience := claims.Audience.(type) {
	case string:
		a.audience = bounded(audience)
	case []any:
		var texts []string
		for _, entry := range audience {
			texts = append(texts, fmt.Sprint(entry))
		}
		a.audience = bounded(strings.Join(texts, ","))
	}
	return a
}

// refused is the answer to an assertion for an application that the core
// refused. A reason that is not in the list is answered as a failure of the
// service; a test sees to it that there is none.
func (h *Handler) refused(r *sts.Refusal, clientID, token string) *aadError {
	presented := readAssertion(token)
	switch r.Reason {
	case sts.TokenMissing:
		return invalidClient(7000216, "'client_assertion', 'client_secret' or 'request' is required for the 'client_credentials' grant type.")
	case sts.TokenTooLarge, sts.TokenMalformed, sts.HeaderRefused, sts.ClaimInvalid:
		return invalidRequest(50027, "JWT token is invalid or malformed.")
	case sts.ClaimMissing, sts.SignatureInvalid: // the code stands for these too; no text is on record
		return invalidRequest(50027, "JWT token is invalid or malformed.")
	case sts.AlgorithmRefused: // of the status nothing is on record
		return invalidRequest(5002738, "Invalid JWT token. '"+r.Got+"' is not a supported signature algorithm. Supported signing algorithms are: "+r.Want+".")
	case sts.IssuerUnknown, sts.IssuerNotTrusted, sts.RoleUnknown:
		return h.unmatched(clientID, presented.issuer)
	case sts.IssuerUnreachable:
		return invalidRequest(50166, "Request to External OIDC endpoint failed.")
	case sts.KeyUnknown:
		return invalidClient(7000272, "The certificate with identifier "+presented.kid+" used to sign the federated credential could not be found in the metadata of identity provider "+presented.issuer+
			". Please validate that your Identity Provider's metadata exposes the key used to sign the incoming token.")
	case sts.TokenExpired, sts.TokenNotYetValid, sts.TokenIssuedInFuture, sts.TokenTooOld:
		const layout = "2006-01-02T15:04:05.0000000Z"
		return invalidClient(700024, fmt.Sprintf("Client assertion is not within its valid time range. Current time: %s, assertion valid from %s, expiry time of assertion %s.",
			h.service.Clock.Now().UTC().Format(layout), presented.notBefore.Format(layout), presented.expiry.Format(layout)))
	case sts.AudienceMismatch, sts.ConditionMismatch: // a credential has no other condition
		return invalidClient(700212, noMatch+"audience '"+presented.audience+"'."+checkThem)
	case sts.SubjectMismatch:
		for _, c := range h.apps[clientID] {
			if c.Issuer == presented.issuer && strings.EqualFold(c.Subject, presented.subject) {
				return invalidClient(7002138, noMatch+"subject '"+presented.subject+"'."+caseOnly+checkThem)
			}
		}
		return invalidClient(700213, noMatch+"subject '"+presented.subject+"'."+checkThem)
	default:
		return serverError()
	}
}

// unmatched is the answer if no credential of an application is for an issuer.
func (h *Handler) unmatched(clientID, issuer string) *aadError {
	credentials, known := h.apps[clientID]
	switch {
	case !known:
		return &aadError{http.StatusBadRequest, "unauthorized_client", 700016, "Application with identifier '" + bounded(clientID) + "' was not found in the directory '" + h.tenant +
			"'. This can happen if the application has not been installed by the administrator of the tenant or consented to by any user in the tenant. " +
			"You may have sent your authentication request to the wrong tenant."}
	case len(credentials) == 0:
		return invalidClient(70025, "The client '"+clientID+"' has no configured federated identity credentials.")
	default:
		return invalidClient(700211, noMatch+"issuer '"+issuer+"'."+checkThem)
	}
}

// errorResponse is an error on the wire.
type errorResponse struct {
	Error         string `json:"error"`
	Description   string `json:"error_description"`
	Codes         []int  `json:"error_codes"`
	Timestamp     string `json:"timestamp"`
	TraceID       string `json:"trace_id"`
	CorrelationID string `json:"correlation_id"`
	URI           string `json:"error_uri"`
}

// refuse answers with an error. Its correlation id is that of the request, if
// the request has one.
func (h *Handler) refuse(w http.ResponseWriter, r *http.Request, e *aadError) {
	traceID, correlationID := uuid.NewString(), uuid.NewString()
	if id, err := uuid.Parse(r.Header.Get("client-request-id")); err == nil {
		correlationID = id.String()
	}
	timestamp := h.service.Clock.Now().UTC().Format("2006-01-02 15:04:05Z")
	code := strconv.Itoa(e.code)
	w.Header().Set("X-Ms-Request-Id", traceID)
	w.Header().Set("Cache-Control", "no-store, no-cache")
	tokenservice.WriteJSON(w, e.status, errorResponse{
		Error:         e.oauth,
		Description:   fmt.Sprintf("AADSTS%s: %s Trace ID: %s Correlation ID: %s Timestamp: %s", code, e.text, traceID, correlationID, timestamp),
		Codes:         []int{e.code},
		Timestamp:     timestamp,
		TraceID:       traceID,
		CorrelationID: correlationID,
		URI:           "https://" + publicHost + "/error?code=" + code,
	})
}
