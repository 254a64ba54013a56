package generic

import (
	"net/http"

	"github.com/oidclab/oidclab/lab/sts"
)

// oauthError is an error answer (RFC 6749 section 5.2, RFC 8693 section
// 2.2.2). The description is for people; the RFC allows ASCII without quotes
// and backslashes.
type oauthError struct {
	status      int
	code        string
	description string
}

func invalidRequest(description string) *oauthError {
	return &oauthError{http.StatusBadRequest, "invalid_request", description}
}

func invalidTarget(description string) *oauthError {
	return &oauthError{http.StatusBadRequest, "invalid_target", description}
}

func serverError() *oauthError {
	return &oauthError{http.StatusInternalServerError, "server_error", "the service failed"}
}

// write answers with the error.
func (e *oauthError) write(w http.ResponseWriter) {
	if e.status == http.StatusUnauthorized { // RFC 6749 section 5.2, invalid_client
		w.Header().Set("WWW-Authenticate", `Basic realm="oidclab"`)
	}
	writeJSON(w, e.status, map[string]string{"error": e.code, "error_description": e.description})
}

// refused is the answer to a workload's token that the core refused; the package
// comment says why which. A reason that is not in the list is answered as a
// failure of the service; a test sees to it that there is none.
func (p *party) refused(d dialect, r *sts.Refusal) *oauthError {
	switch r.Reason {
	case sts.IssuerUnreachable:
		return &oauthError{http.StatusServiceUnavailable, "temporarily_unavailable", "the keys of the issuer could not be fetched"}
	case sts.RoleUnknown:
		return invalidTarget("there is no such target service")
	case sts.IssuerNotTrusted, sts.SubjectMismatch, sts.ConditionMismatch:
		return invalidTarget("the target service does not trust the subject of the token")
	}
	description := describe(r.Reason)
	if description == "" {
		return serverError()
	}
	e := invalidRequest("the " + d.parameter + " " + description)
	switch {
	case r.Reason == sts.TokenMissing:
	case d.badToken != "":
		e.code = d.badToken
	case p.InvalidGrant:
		e.code = "invalid_grant"
	}
	return e
}

// describe completes the sentence "the token ..."; it is empty for reasons
// that are not about the token.
func describe(reason sts.Reason) string {
	switch reason {
	case sts.TokenMissing:
		return "is missing"
	case sts.TokenTooLarge:
		return "is too large"
	case sts.TokenMalformed:
		return "is not a signed JWT in compact serialization"
	case sts.HeaderRefused:
		return "has a header that is not accepted"
	case sts.AlgorithmRefused:
		return "is signed with an algorithm that is not accepted"
	case sts.ClaimMissing:
		return "lacks a claim"
	case sts.ClaimInvalid:
		return "has an invalid claim"
	case sts.IssuerUnknown:
		return "is of an unknown issuer"
	case sts.KeyUnknown:
		return "is signed with a key that its issuer does not publish"
	case sts.SignatureInvalid:
		return "has an invalid signature"
	case sts.TokenExpired:
		return "is expired"
	case sts.TokenNotYetValid:
		return "is not yet valid"
	case sts.TokenIssuedInFuture:
		return "was issued in the future"
	case sts.TokenTooOld:
		return "is too old"
	case sts.AudienceMismatch:
		return "is for another audience"
	}
	return ""
}
