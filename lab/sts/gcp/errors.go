package gcp

import (
	"fmt"
	"net/http"
	"strconv"
	"time"

	"github.com/oidclab/oidclab/lab/sts"
)

// oauthError is an error answer of the Security Token Service (RFC 6749
// section 5.2).
type oauthError struct {
	status      int
	Code        string `json:"error"`
	Description string `json:"error_description"`
}

func oauth(code, description string) *oauthError {
	status := http.StatusBadRequest
	if code == "unauthorized_client" { // reported of the vendor, not documented
		status = http.StatusForbidden
	}
	return &oauthError{status, code, description}
}

func invalidRequest(description string) *oauthError { return oauth("invalid_request", description) }

const (
	invalidAudience = `Invalid value for "audience". This value should be the full resource name of the Identity Provider. See https://cloud.google.com/iam/docs/reference/sts/rest/v1/TopLevel/token for the list of possible formats.`
	invalidTarget   = `The target service indicated by the "audience" parameters is invalid. This might either be because the pool or provider is disabled or deleted or because it doesn't exist.`
)

// refused is the answer to a subject token that the core or the provider's
// mapping refused. Texts without a comment were seen in answers of the real
// service; the others are ours, since none are on record. A reason that is not
// in the list is answered as a failure of the service; a test sees to it that
// there is none.
func refused(r *sts.Refusal) *oauthError {
	switch r.Reason {
	case sts.TokenMissing:
		return invalidRequest(`Invalid value for "subject_token".`) // ours
	case sts.TokenTooLarge:
		return invalidRequest("The size of the ID Token exceeds the limit.") // ours
	case sts.TokenMalformed:
		return oauth("invalid_grant", "Unable to parse the ID Token.") // ours
	case sts.HeaderRefused:
		return oauth("invalid_grant", "The header of the ID Token is invalid: "+r.Claim+".") // ours
	case sts.AlgorithmRefused:
		return oauth("invalid_grant", "The algorithm of the ID Token must be RS256 or ES256.") // ours
	case sts.ClaimMissing:
		return oauth("invalid_grant", "The ID Token lacks the required claim "+r.Claim+".") // ours
	case sts.ClaimInvalid:
		return oauth("invalid_grant", "A claim of the ID Token is invalid.") // ours
	case sts.IssuerUnknown:
		return oauth("invalid_grant", fmt.Sprintf("The issuer in ID Token %s does not match the expected ones: %s", r.Got, r.Want))
	case sts.IssuerUnreachable:
		return oauth("invalid_grant", "Error connecting to the given credential's issuer.")
	case sts.KeyUnknown:
		return oauth("invalid_grant", "The key of the ID Token is not among the keys of its issuer.") // ours
	case sts.SignatureInvalid:
		return oauth("invalid_grant", "The signature of the ID Token is invalid.") // ours
	case sts.TokenExpired:
		return oauth("invalid_grant", "ID Token expired at "+unix(r.Got)+".") // ours
	case sts.TokenNotYetValid:
		return oauth("invalid_grant", "ID Token is not valid before "+unix(r.Got)+".") // ours
	case sts.TokenIssuedInFuture:
		return oauth("invalid_grant", "ID Token issued at "+unix(r.Got)+" is from the future.") // ours
	case sts.TokenTooOld:
		return oauth("invalid_grant", "ID Token issued at "+unix(r.Got)+" is stale to sign-in.")
	case sts.AudienceMismatch:
		return oauth("invalid_grant", "The audience in ID Token does not match the expected audience.")
	case sts.RoleUnknown, sts.IssuerNotTrusted:
		return oauth("invalid_target", invalidTarget)
	case sts.SubjectMismatch, sts.ConditionMismatch:
		if r.Err != nil {
			return oauth("unauthorized_client", r.Err.Error())
		}
		return oauth("unauthorized_client", "The given credential is rejected by the attribute condition.")
	default:
		return &oauthError{http.StatusInternalServerError, "server_error", "The request could not be processed."}
	}
}

// unix rewrites a time of a refusal, RFC 3339, as seconds since 1970.
func unix(rfc3339 string) string {
	t, err := time.Parse(time.RFC3339, rfc3339)
	if err != nil {
		return rfc3339
	}
	return strconv.FormatInt(t.Unix(), 10)
}

// apiError is an error answer of the other APIs: with Status as
// google.rpc.Status is written in JSON (AIP-193), with Errors as Cloud Storage
// writes it (JSON API, "HTTP status and error codes").
type apiError struct {
	Code    int         `json:"code"` // the HTTP status
	Message string      `json:"message"`
	Status  string      `json:"status,omitempty"` // a google.rpc.Code
	Details []errorInfo `json:"details,omitempty"`
	Errors  []reason    `json:"errors,omitempty"`
}

// errorInfo is a google.rpc.ErrorInfo.
type errorInfo struct {
	Type     string            `json:"@type"`
	Reason   string            `json:"reason"`
	Domain   string            `json:"domain"`
	Metadata map[string]string `json:"metadata,omitempty"`
}

// reason is an error as Cloud Storage details it.
type reason struct {
	Message      string `json:"message"`
	Domain       string `json:"domain"`
	Reason       string `json:"reason"`
	LocationType string `json:"locationType,omitempty"`
	Location     string `json:"location,omitempty"`
}

// cause is the part of the answer that a program would look at.
func (e *apiError) cause() string {
	switch {
	case len(e.Details) > 0:
		return e.Details[0].Reason
	case len(e.Errors) > 0:
		return e.Errors[0].Reason
	default:
		return e.Status
	}
}

func rpcError(code int, status, message string) *apiError {
	return &apiError{Code: code, Status: status, Message: message}
}

func invalidArgument(message string) *apiError {
	return rpcError(http.StatusBadRequest, "INVALID_ARGUMENT", message)
}

const credentialWanted = "Expected OAuth 2 access token, login cookie or other valid authentication credential. See https://developers.google.com/identity/sign-in/web/devconsole-project."

// unauthenticated is the answer to a request without a token that is good.
func unauthenticated(message string) *apiError {
	return rpcError(http.StatusUnauthorized, "UNAUTHENTICATED", message+" "+credentialWanted)
}

func permissionDenied(message, domain, reason string, metadata map[string]string) *apiError {
	e := rpcError(http.StatusForbidden, "PERMISSION_DENIED", message)
	e.Details = []errorInfo{{Type: "type.googleapis.com/google.rpc.ErrorInfo", Reason: reason, Domain: domain, Metadata: metadata}}
	return e
}

// getAccessTokenDenied is also the answer if there is no such service account.
func getAccessTokenDenied() *apiError {
	const permission = "iam.serviceAccounts.getAccessToken"
	return permissionDenied("Permission '"+permission+"' denied on resource (or it may not exist).",
		"iam.googleapis.com", "IAM_PERMISSION_DENIED", map[string]string{"permission": permission})
}

func scopeInsufficient() *apiError {
	return permissionDenied("Request had insufficient authentication scopes.",
		"googleapis.com", "ACCESS_TOKEN_SCOPE_INSUFFICIENT", nil)
}

func storageError(code int, cause, message string) *apiError {
	e := &apiError{Code: code, Message: message, Errors: []reason{{Message: message, Domain: "global", Reason: cause}}}
	if code == http.StatusUnauthorized {
		e.Errors[0].LocationType, e.Errors[0].Location = "header", "Authorization"
	}
	return e
}

// accessDenied is also the answer if there is no such object or bucket that
// the caller may know of.
func accessDenied(code int, cause, caller, permission string) *apiError {
	resource := "object"
	if permission == objectsList {
		resource = "bucket"
	}
	return storageError(code, cause, caller+" does not have "+permission+" access to the Google Cloud Storage "+resource+". Permission '"+permission+"' denied on resource (or it may not exist).")
}
