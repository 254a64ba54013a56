package oci

import (
	"net/http"

	"github.com/google/uuid"

	"github.com/oidclab/oidclab/lab/sts"
	"github.com/oidclab/oidclab/lab/sts/internal/tokenservice"
)

// oauthError is an error of the identity domain: RFC 6749 section 5.2, and an
// id of the call.
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
	if e.code == "invalid_client" {
		w.Header().Set("WWW-Authenticate", `Basic realm="oci"`)
	}
	tokenservice.WriteJSON(w, e.status, map[string]string{"error": e.code, "error_description": e.description, "ecid": uuid.NewString()})
}

// refused is the answer to a subject token that the core refused. A reason that
// is not in the list is answered as a failure of the service; a test sees to it
// that there is none.
func refused(r *sts.Refusal) *oauthError {
	switch r.Reason {
	case sts.IssuerUnreachable:
		return &oauthError{http.StatusServiceUnavailable, "temporarily_unavailable", "the keys of the issuer could not be fetched"}
	case sts.TokenMissing:
		return invalidRequest("subject_token is missing")
	case sts.RoleUnknown, sts.IssuerNotTrusted:
		return &oauthError{http.StatusBadRequest, "unauthorized_client", "no identity propagation trust lets the client exchange tokens of the issuer"}
	}
	description := describe(r.Reason)
	if description == "" {
		return serverError()
	}
	return &oauthError{http.StatusBadRequest, "invalid_grant", description}
}

// describe says what is wrong with a workload's token; it is empty for what is
// not about the token.
func describe(reason sts.Reason) string {
	switch reason {
	case sts.IssuerUnknown:
		return "no identity propagation trust has the token's issuer"
	case sts.AudienceMismatch:
		return "the token's audience is not among the client claim values of the trust"
	case sts.SubjectMismatch, sts.ConditionMismatch:
		return "the token meets no impersonation rule of the trust"
	}
	return tokenservice.Describe(reason)
}

// serviceError is an error of OCI's services (API reference, "API Errors").
type serviceError struct {
	status  int
	code    string
	message string
	why     string // what the trace shows and the caller is not told; the message if empty
}

// notAuthenticated does not tell the caller what is wrong, but the trace.
func notAuthenticated(why string) *serviceError {
	return &serviceError{http.StatusUnauthorized, "NotAuthenticated", "The required information to complete authentication was not provided or was incorrect.", why}
}

func notFound() *serviceError {
	return &serviceError{http.StatusNotFound, "NotAuthorizedOrNotFound", "Authorization failed or requested resource not found.", ""}
}

func internalError() *serviceError {
	return &serviceError{http.StatusInternalServerError, "InternalServerError", "The service failed.", ""}
}

func unavailable() *serviceError {
	return &serviceError{http.StatusServiceUnavailable, "ServiceUnavailable", "The service is currently unavailable.", ""}
}

// write answers with the error.
func (e *serviceError) write(w http.ResponseWriter) {
	tokenservice.WriteJSON(w, e.status, map[string]string{"code": e.code, "message": e.message})
}
