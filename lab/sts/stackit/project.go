package stackit

import (
	"net/http"
	"strings"
	"time"

	"github.com/oidclab/oidclab/lab/sts"
	"github.com/oidclab/oidclab/lab/sts/internal/tokenservice"
)

// project is a project on the wire (STACKIT resource manager API v2,
// GetProjectResponse), without its place in the hierarchy and its times.
type project struct {
	ProjectID      string `json:"projectId"`
	ContainerID    string `json:"containerId"`
	Name           string `json:"name"`
	LifecycleState string `json:"lifecycleState"`
}

// apiError is an error of the resource manager API (its ErrorResponse). The
// messages are ours.
type apiError struct {
	Time    string `json:"timeStamp"`
	Path    string `json:"path"`
	Status  int    `json:"status"`
	Error   string `json:"error"`
	Message string `json:"message"`
}

// serveProject answers Get Project Details of the resource manager.
func (h *Handler) serveProject(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Cache-Control", "no-store")
	id := r.PathValue("id")
	scheme, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	if !strings.EqualFold(scheme, "Bearer") {
		h.refuseProject(w, r, http.StatusUnauthorized, "a bearer token is missing")
		return
	}
	p, known := h.projects[id]
	used := "unknown project"
	if known {
		used = "project " + id
	}
	if refusal := h.api.Use(r, strings.TrimSpace(token), id, used); refusal != nil {
		status, message := refusedByProject(refusal)
		h.refuseProject(w, r, status, message)
		return
	}
	tokenservice.WriteJSON(w, http.StatusOK, project{ProjectID: p.ID, ContainerID: p.ID, Name: p.Name, LifecycleState: "ACTIVE"})
}

// refusedByProject is the answer to an access token that the core refused. A
// reason that is not in the list is answered as a failure of the service; a
// test sees to it that there is none.
func refusedByProject(r *sts.Refusal) (status int, message string) {
	switch r.Reason {
	case sts.TokenMissing, sts.TokenTooLarge, sts.TokenMalformed, sts.HeaderRefused, sts.AlgorithmRefused, sts.ClaimMissing, sts.ClaimInvalid,
		sts.IssuerUnknown, sts.KeyUnknown, sts.SignatureInvalid, sts.TokenNotYetValid, sts.TokenIssuedInFuture, sts.TokenTooOld, sts.AudienceMismatch:
		return http.StatusUnauthorized, "the access token is not valid"
	case sts.TokenExpired:
		return http.StatusUnauthorized, "the access token is expired"
	case sts.IssuerUnreachable:
		return http.StatusServiceUnavailable, "the access token could not be verified"
	case sts.RoleUnknown:
		return http.StatusNotFound, "there is no such project"
	case sts.IssuerNotTrusted, sts.SubjectMismatch, sts.ConditionMismatch:
		return http.StatusForbidden, "the service account may not read the project"
	}
	return http.StatusInternalServerError, "the service failed"
}

func (h *Handler) refuseProject(w http.ResponseWriter, r *http.Request, status int, message string) {
	if status == http.StatusUnauthorized {
		w.Header().Set("WWW-Authenticate", "Bearer") // RFC 6750 section 3
	}
	tokenservice.WriteJSON(w, status, apiError{
		Time: h.service.Clock.Now().UTC().Format(time.RFC3339Nano), Path: r.URL.Path,
		Status: status, Error: http.StatusText(status), Message: message,
	})
}
