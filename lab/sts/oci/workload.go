package oci

import (
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"io"
	"net/http"
	"strings"

	"github.com/oidclab/oidclab/lab/sts"
)

// ProxymuxPort is the port at which OKE's clusters give pods their identity, on
// the host of the Kubernetes API. The vendor's SDK lets nobody change it.
const ProxymuxPort = 12250

// maxPodKeyBytes bounds a request for a workload's identity.
const maxPodKeyBytes = 16 << 10

// podKeyRequest is what the SDK asks (oci-go-sdk, common/auth,
// workloadIdentityRequestPayload).
type podKeyRequest struct {
	PodKey string `json:"podKey"` // RSA public key, PEM
}

// Proxymux returns the handler that answers at [ProxymuxPort] of a cluster's
// host: a pod's own token goes in, a session token of its service account that
// is bound to a key of the pod comes out.
func (h *Handler) Proxymux() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /resourcePrincipalSessionTokens", h.serveWorkload)
	return h.service.AtLabTime(mux)
}

func (h *Handler) serveWorkload(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("Opc-Request-Id", requestID(r))
	scheme, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	if !strings.EqualFold(scheme, "Bearer") {
		notAuthenticated("").write(w)
		return
	}
	verdict := h.proxymux.Verify(r.Context(), token)
	if verdict.Refusal != nil {
		refusedByProxymux(verdict.Refusal).write(w)
		return
	}
	answer, e := h.workload(r, verdict)
	if e != nil {
		h.service.Record(verdict.Journey, "grant", "workload", e.code, e.message)
		e.write(w)
		return
	}
	// The SDK drops the first and the last byte of the answer, whatever they
	// are: there must be no newline behind the string.
	w.Header().Set("Content-Type", "application/json")
	_, _ = io.WriteString(w, `"`+answer+`"`)
}

// workload makes the answer for a pod whose token was accepted.
func (h *Handler) workload(r *http.Request, verdict sts.Verdict) (string, *serviceError) {
	cluster := h.clusters[verdict.Claims.Issuer]
	if cluster.Basic {
		return "", &serviceError{http.StatusForbidden, "NotAuthorized", "Workload identity needs an enhanced cluster.", ""}
	}
	namespace, serviceAccount, ok := serviceAccountOf(verdict.Claims.Subject)
	if !ok {
		return "", &serviceError{http.StatusUnauthorized, "NotAuthenticated", "The token is not that of a service account.", ""}
	}
	key, err := readPodKey(r)
	if err != nil {
		return "", &serviceError{http.StatusBadRequest, "InvalidParameter", "podKey is not an RSA public key of 2048 bits or more in PEM.", ""}
	}
	subject := WorkloadOCID(cluster.OCID, namespace, serviceAccount)
	token, err := h.grant(verdict, key, subject, "resource", workloadClaims{
		ResourceType: "workload", ResourceTenant: h.tenancy, ResourceCompartment: cluster.Compartment,
		Cluster: cluster.OCID, Namespace: namespace, ServiceAccount: serviceAccount,
	})
	if err != nil {
		return "", internalError()
	}
	document, err := json.Marshal(map[string]string{"token": securityTokenPrefix + token})
	if err != nil {
		return "", internalError()
	}
	h.service.Record(verdict.Journey, "grant", subject, "", "")
	return base64.StdEncoding.EncodeToString(document), nil
}

// serviceAccountOf splits a subject that Kubernetes gives to service accounts.
func serviceAccountOf(subject string) (namespace, name string, ok bool) {
	parts := strings.Split(subject, ":")
	if len(parts) != 4 || parts[0] != "system" || parts[1] != "serviceaccount" || parts[2] == "" || parts[3] == "" {
		return "", "", false
	}
	return parts[2], parts[3], true
}

func readPodKey(r *http.Request) (*rsa.PublicKey, error) {
	var request podKeyRequest
	if err := json.NewDecoder(http.MaxBytesReader(nil, r.Body, maxPodKeyBytes)).Decode(&request); err != nil {
		return nil, err
	}
	block, _ := pem.Decode([]byte(request.PodKey))
	if block == nil {
		return nil, io.ErrUnexpectedEOF
	}
	key, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		return nil, err
	}
	if err := checkKey(key); err != nil {
		return nil, err
	}
	return key.(*rsa.PublicKey), nil
}

// refusedByProxymux is the answer to a pod's token that the core refused. The
// SDK shows it; the texts are ours. A reason that is not in the list is answered
// as a failure of the service; a test sees to it that there is none.
func refusedByProxymux(r *sts.Refusal) *serviceError {
	switch r.Reason {
	case sts.IssuerUnreachable:
		return unavailable()
	case sts.TokenMissing:
		return notAuthenticated("")
	case sts.AudienceMismatch:
		return &serviceError{http.StatusUnauthorized, "NotAuthenticated", "The token is for another audience than the cluster's API server.", ""}
	case sts.IssuerUnknown:
		return &serviceError{http.StatusUnauthorized, "NotAuthenticated", "The token is of another issuer than the cluster.", ""}
	}
	description := describe(r.Reason)
	if description == "" || r.Reason == sts.SubjectMismatch || r.Reason == sts.ConditionMismatch {
		return internalError() // there are no roles here
	}
	return &serviceError{http.StatusUnauthorized, "NotAuthenticated", strings.ToUpper(description[:1]) + description[1:] + ".", ""}
}
