package azure

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/xml"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/oidclab/oidclab/lab/sts"
)

// bearerVersion is the first version of the storage services that takes bearer
// tokens (Azure Storage, "Authorize with Microsoft Entra ID").
const bearerVersion = "2017-11-09"

// storageError is an error of Blob Storage (Azure Storage, "Status and error
// codes").
type storageError struct {
	XMLName xml.Name `xml:"Error"`
	Code    string
	Message string
	Detail  string `xml:"AuthenticationErrorDetail,omitempty"`

	status int
}

func newStorageError(status int, code, message string) *storageError {
	return &storageError{Code: code, Message: message, status: status}
}

func unauthenticated(code, detail string) *storageError {
	e := newStorageError(http.StatusUnauthorized, code, "Server failed to authenticate the request. Please refer to the information in the www-authenticate header.")
	e.Detail = detail
	return e
}

// schemeRefused is for what is no bearer token, or came too early for one.
func schemeRefused(detail string) *storageError {
	e := newStorageError(http.StatusForbidden, "AuthenticationFailed", "Server failed to authenticate the request. Make sure the value of Authorization header is formed correctly including the signature.")
	e.Detail = detail
	return e
}

// serveBlob answers Get Blob and Get Blob Properties (Blob Storage REST API)
// at /CONTAINER/BLOB.
func (h *Handler) serveBlob(w http.ResponseWriter, r *http.Request) {
	container, name, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
	header := w.Header()
	header.Set("X-Ms-Request-Id", uuid.NewString())
	if id := r.Header.Get("X-Ms-Client-Request-Id"); id != "" && len(id) <= 1024 {
		header.Set("X-Ms-Client-Request-Id", id)
	}
	if e := h.authorize(r, container, name); e != nil {
		h.refuseBlob(w, e)
		return
	}
	blob, ok := h.containers[container].Blobs[name]
	if !ok {
		h.refuseBlob(w, newStorageError(http.StatusNotFound, "BlobNotFound", "The specified blob does not exist."))
		return
	}
	sum := sha256.Sum256(blob)
	header.Set("Content-Type", "application/octet-stream")
	header.Set("Content-Length", strconv.Itoa(len(blob)))
	header.Set("Etag", `"0x`+strings.ToUpper(hex.EncodeToString(sum[:8]))+`"`)
	header.Set("X-Ms-Blob-Type", "BlockBlob")
	header.Set("X-Ms-Version", r.Header.Get("X-Ms-Version"))
	if r.Method == http.MethodGet {
		_, _ = w.Write(blob) // the client may be gone
	}
}

// authorize says why a request may not read a blob.
func (h *Handler) authorize(r *http.Request, container, name string) *storageError {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		return newStorageError(http.StatusMethodNotAllowed, "UnsupportedHttpVerb", "The resource doesn't support specified Http Verb.")
	}
	if container == "" || name == "" {
		return newStorageError(http.StatusBadRequest, "InvalidUri", "The requested URI does not represent any resource on the server.")
	}
	version := r.Header.Get("X-Ms-Version")
	if _, err := time.Parse(time.DateOnly, version); err != nil && version != "" {
		return newStorageError(http.StatusBadRequest, "InvalidHeaderValue", "The value for one of the HTTP headers is not in the correct format.")
	}
	scheme, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	switch {
	case scheme == "":
		return unauthenticated("NoAuthenticationInformation", "")
	case !strings.EqualFold(scheme, "Bearer"):
		return schemeRefused("")
	case version < bearerVersion: // also if there is none
		return schemeRefused("Authentication scheme Bearer is not supported in this version.")
	}
	used := "unknown container"
	if _, ok := h.containers[container]; ok {
		used = "container " + container
	}
	if refusal := h.storage.Use(r, strings.TrimSpace(token), container, used); refusal != nil {
		return refusedByStorage(refusal)
	}
	return nil
}

// refusedByStorage is the answer to an access token that the core refused. A
// reason that is not in the list is answered as a failure of the service; a
// test sees to it that there is none. Where no detail is on record there is none.
func refusedByStorage(r *sts.Refusal) *storageError {
	const code = "InvalidAuthenticationInfo"
	switch r.Reason {
	case sts.TokenMissing, sts.TokenTooLarge, sts.TokenMalformed, sts.HeaderRefused, sts.AlgorithmRefused, sts.ClaimMissing, sts.ClaimInvalid:
		return unauthenticated(code, "")
	case sts.IssuerUnknown:
		return unauthenticated(code, "Issuer validation failed. Issuer did not match.")
	case sts.KeyUnknown, sts.SignatureInvalid:
		return unauthenticated(code, "Signature validation failed. Signature key not found.")
	case sts.TokenExpired:
		return unauthenticated(code, "Lifetime validation failed. The token is expired.")
	case sts.TokenNotYetValid, sts.TokenIssuedInFuture, sts.TokenTooOld:
		return unauthenticated(code, "Lifetime validation failed.")
	case sts.AudienceMismatch:
		return unauthenticated(code, "Audience validation failed. Audience did not match.")
	case sts.IssuerUnreachable:
		return newStorageError(http.StatusServiceUnavailable, "ServerBusy", "The server is currently unable to receive requests. Please retry your request.")
	case sts.RoleUnknown:
		return newStorageError(http.StatusNotFound, "ContainerNotFound", "The specified container does not exist.")
	case sts.IssuerNotTrusted, sts.SubjectMismatch, sts.ConditionMismatch:
		return newStorageError(http.StatusForbidden, "AuthorizationPermissionMismatch", "This request is not authorized to perform this operation using this permission.")
	default:
		return newStorageError(http.StatusInternalServerError, "InternalError", "The server encountered an internal error. Please retry the request.")
	}
}

// refuseBlob answers with an error. Its message ends with the request id and
// the time, as those of the real service do.
func (h *Handler) refuseBlob(w http.ResponseWriter, e *storageError) {
	header := w.Header()
	header.Set("Content-Type", "application/xml")
	header.Set("X-Ms-Error-Code", e.Code)
	switch e.status {
	case http.StatusUnauthorized:
		header.Set("Www-Authenticate", "Bearer authorization_uri="+h.service.URL+"/"+h.tenant+"/oauth2/authorize resource_id="+storageResource)
	case http.StatusMethodNotAllowed:
		header.Set("Allow", "GET, HEAD")
	}
	e.Message += "\nRequestId:" + header.Get("X-Ms-Request-Id") + "\nTime:" + h.service.Clock.Now().UTC().Format("2006-01-02T15:04:05.0000000Z")
	body, err := xml.Marshal(e)
	if err != nil {
		panic("azure: an error cannot be encoded: " + err.Error()) // its type is wrong
	}
	body = bytes.ReplaceAll(body, []byte("&#xA;"), []byte("\n")) // as on the wire, and for people
	w.WriteHeader(e.status)
	_, _ = fmt.Fprintf(w, `<?xml version="1.0" encoding="utf-8"?>%s`, body) // the client may be gone
}
