package oci

import (
	"bytes"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/oidclab/oidclab/lab/sts"
	"github.com/oidclab/oidclab/lab/sts/internal/tokenservice"
	"github.com/oidclab/oidclab/lab/trace"
)

// serveStorage is object storage: every request is authenticated, and then
// GetNamespace and GetObject are answered.
func (h *Handler) serveStorage(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("Opc-Request-Id", requestID(r))
	if id := r.Header.Get("Opc-Client-Request-Id"); id != "" {
		w.Header().Set("Opc-Client-Request-Id", id)
	}
	session, e := h.authenticate(r)
	if e != nil {
		session.record(h, "request", e)
		e.write(w)
		return
	}
	h.serveObject(w, r, session)
}

// session is who makes a request.
type session struct {
	token   string // its journey
	journey string // of the workload's token
	subject string // OCID
}

// authenticate judges the session token of a request, and its signature by the
// key that the token is bound to.
func (h *Handler) authenticate(r *http.Request) (session, *serviceError) {
	signed, err := parseSignature(r.Header.Get("Authorization"))
	if err != nil {
		return session{}, notAuthenticated(err.Error())
	}
	token, ok := strings.CutPrefix(signed.keyID, securityTokenPrefix)
	if !ok {
		return session{}, notAuthenticated("the key id is not that of a session token")
	}
	verdict := h.storage.Verify(r.Context(), token)
	caller := session{token: verdict.Journey, journey: verdict.Journey}
	if verdict.Refusal != nil {
		return caller, refusedByStorage(verdict.Refusal)
	}
	caller.journey, _ = verdict.Claims.Raw[tokenservice.JourneyClaim].(string)
	caller.subject = verdict.Claims.Subject
	key, err := sessionKey(verdict.Claims)
	if err != nil {
		return caller, internalError()
	}
	if err := signed.verify(r, key); err != nil {
		return caller, notAuthenticated(err.Error())
	}
	return caller, signed.checkDate(r, h.service.Clock.Now())
}

// refusedByStorage is the answer to a session token that the core refused. A
// reason that is not in the list is answered as a failure of the service; a test
// sees to it that there is none.
func refusedByStorage(r *sts.Refusal) *serviceError {
	switch r.Reason {
	case sts.IssuerUnreachable:
		return unavailable()
	case sts.RoleUnknown, sts.IssuerNotTrusted, sts.SubjectMismatch, sts.ConditionMismatch:
		return internalError() // there are no roles here
	}
	return notAuthenticated(string(r.Reason))
}

// record adds an event to the journey of the workload's token.
func (s session) record(h *Handler, name string, e *serviceError) {
	event := trace.Event{Journey: s.journey, Station: h.storageParty(), Step: "use", Name: name, Outcome: trace.OK, Detail: "session token " + s.token}
	if e != nil {
		event.Outcome, event.Reason, event.Detail = trace.Refused, e.code, e.message
		if e.why != "" {
			event.Detail = e.why
		}
	}
	if s.journey != "" {
		h.service.Trace.Add(event)
	}
}

// serveObject answers an authenticated request: GET /n (GetNamespace) and
// GET /n/NAMESPACE/b/BUCKET/o/OBJECT (GetObject). Nobody may do anything else.
func (h *Handler) serveObject(w http.ResponseWriter, r *http.Request, caller session) {
	path := strings.Split(strings.TrimPrefix(r.URL.Path, "/n"), "/")
	reading := r.Method == http.MethodGet || r.Method == http.MethodHead
	if reading && (len(path) == 1 || len(path) == 2 && path[1] == "") {
		caller.record(h, "namespace", nil)
		tokenservice.WriteJSON(w, http.StatusOK, h.namespace)
		return
	}
	e := notFound()
	if reading && len(path) >= 6 && path[2] == "b" && path[4] == "o" {
		var content []byte
		if content, e = h.object(caller, path[1], path[3], strings.Join(path[5:], "/")); e == nil {
			caller.record(h, "object "+path[3]+"/"+strings.Join(path[5:], "/"), nil)
			w.Header().Set("Content-Type", "application/octet-stream")
			http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(content))
			return
		}
	}
	caller.record(h, "storage", e)
	e.write(w)
}

// object returns an object that the caller may read. Who may not cannot tell
// whether it is there.
func (h *Handler) object(caller session, namespace, name, object string) ([]byte, *serviceError) {
	if namespace != h.namespace {
		return nil, &serviceError{http.StatusNotFound, "NamespaceNotFound", "You do not have authorization to perform this request, or the requested resource could not be found.", ""}
	}
	bucket := h.buckets[name]
	if !slices.Contains(bucket.Readers, caller.subject) {
		return nil, &serviceError{http.StatusNotFound, "BucketNotFound",
			fmt.Sprintf("Either the bucket named '%s' does not exist in the namespace '%s' or you are not authorized to access it", name, namespace), ""}
	}
	content, ok := bucket.Objects[object]
	if !ok {
		return nil, &serviceError{http.StatusNotFound, "ObjectNotFound", fmt.Sprintf("The object '%s' was not found in the bucket '%s'", object, name), ""}
	}
	return content, nil
}

// requestID names the call as the caller did, or anew: OCI's answers carry it.
func requestID(r *http.Request) string {
	if id := r.Header.Get("Opc-Request-Id"); id != "" && len(id) <= 128 {
		return id
	}
	return uuid.NewString()
}
