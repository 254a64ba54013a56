package stackit

import (
	"net/http"

	"github.com/oidclab/oidclab/lab/sts"
	"github.com/oidclab/oidclab/lab/sts/internal/tokenservice"
)

// oauthError is an error of the token endpoint (RFC 6749 section 5.2).
type oauthError struct {
	status      int
	code        string
	description string
}

func invalidRequest(description string) *oauthError {
	return &oauthError{http.StatusBadRequest, "invalid_request", description}
}

func serverError() *oauthError {
	return &oauthError{http.StatusInternalServerError, "server_error", "the service failed"}
}

// write answers with the error.
func (e *oauthError) write(w http.ResponseWriter) {
	tokenservice.WriteJSON(w, e.status, map[string]string{"error": e.code, "error_description": e.description})
}

// refused is the answer to a workload's token that the core refused; the
// package comment says why which. A reason that is not in the list is answered
// as a failure of the service; a test sees to it that there is none.
func refused(r *sts.Refusal) *oauthError {
	switch r.Reason {
	case sts.IssuerUnreachable:
		return &oauthError{http.StatusServiceUnavailable, "temporarily_unavailable", "the keys of the issuer could not be fetched"}
	case sts.TokenMissing:
		return invalidRequest("client_assertion is missing")
	}
	description := describe(r.Reason)
	if description == "" {
		return serverError()
	}
	return &oauthError{http.StatusUnauthorized, "invalid_client", description}
}

// describe says what is wrong with a workload's token; it is empty for what is
// not about the token and the account.
func describe(reason sts.Reason) string {
	switch reason {
	case sts.KeyUnknown:
		return "the token's key is not among the issuer's cached keys"
	case sts.RoleUnknown:
		return "there is no such service account"
	case sts.IssuerUnknown, sts.IssuerNotTrusted:
		return "the service account has no federated identity provider for the token's issuer"
	case sts.AudienceMismatch, sts.SubjectMismatch, sts.ConditionMismatch:
		return "the token does not satisfy the assertions of the federated identity provider"
	}
	return tokenservice.Describe(reason)
}
