// Package webhook is the pod identity webhook of STACKIT, AWS and Azure: a
// mutating admission webhook that gives a pod a projected service-account token
// and the environment by which the vendor's SDK finds it. What a vendor's
// webhook injects, leaves alone and refuses is a [Profile].
//
// Sources: stackit-pod-identity-webhook at 983c81e, amazon-eks-pod-identity-webhook
// at 3bf80a3, azure-workload-identity v1.6.0. Left out are AWS's ConfigMap of
// roles and its Pod Identity mode, and Azure's custom token endpoint. Azure's
// proxy sidecar is refused.
package webhook

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"mime"
	"net/http"
	"slices"

	admissionv1 "k8s.io/api/admission/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	strictjson "sigs.k8s.io/json"
)

// maxReview bounds a request: an API server takes objects of 3 MiB, and a review
// may hold two.
const maxReview = 7 << 20

// ServiceAccounts is where a webhook looks service accounts up.
type ServiceAccounts interface {
	// ServiceAccount returns a service account. If it does not exist, the error
	// is the API's (apierrors.IsNotFound).
	ServiceAccount(ctx context.Context, namespace, name string) (*corev1.ServiceAccount, error)
}

// Config is what a webhook needs.
type Config struct {
	Profile  Profile
	Accounts ServiceAccounts
	Extra    Extra        // beside what the vendor injects, into the same containers
	Log      *slog.Logger // one line a pod; nil means none
}

// handler answers AdmissionReviews.
type handler struct {
	config Config
	log    *slog.Logger
}

// New returns a webhook. It answers AdmissionReviews of API admission.k8s.io, of
// those versions that the profile's configuration names, with a JSON patch (RFC
// 6902) or a refusal, at any path. It does nothing until it is asked.
func New(config Config) http.Handler {
	log := config.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &handler{config: config, log: log.With("webhook", config.Profile.Name)}
}

func (h *handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodPost {
		w.Header().Set("Allow", http.MethodPost)
		http.Error(w, "an AdmissionReview comes by POST", http.StatusMethodNotAllowed)
		return
	}
	if media, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || media != "application/json" {
		http.Error(w, "an AdmissionReview is application/json", http.StatusUnsupportedMediaType)
		return
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxReview))
	if err != nil {
		http.Error(w, err.Error(), http.StatusRequestEntityTooLarge)
		return
	}
	review, err := h.parse(body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	response, err := h.answer(r.Context(), review.Request)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	content, err := json.Marshal(admissionv1.AdmissionReview{TypeMeta: review.TypeMeta, Response: response})
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(content) // an API server that went away has no use for it
}

// parse returns the review. v1beta1 has the same fields as v1.
func (h *handler) parse(body []byte) (*admissionv1.AdmissionReview, error) {
	review := new(admissionv1.AdmissionReview)
	if err := unmarshal(body, review); err != nil {
		return nil, fmt.Errorf("not an AdmissionReview: %w", err)
	}
	version := review.GroupVersionKind()
	if version.Group != admissionv1.GroupName || version.Kind != "AdmissionReview" || !slices.Contains(h.config.Profile.ReviewVersions, version.Version) {
		return nil, fmt.Errorf("not an AdmissionReview of %s, versions %v: %s", admissionv1.GroupName, h.config.Profile.ReviewVersions, version)
	}
	if review.Request == nil || review.Request.UID == "" {
		return nil, errors.New("the AdmissionReview has no request with a uid")
	}
	return review, nil
}

// answer decides about a pod. An error is not a refusal: it is left to the
// failure policy.
func (h *handler) answer(ctx context.Context, request *admissionv1.AdmissionRequest) (*admissionv1.AdmissionResponse, error) {
	response := &admissionv1.AdmissionResponse{UID: request.UID}
	patch, decision, err := h.mutate(ctx, request)
	log := h.log.With("namespace", request.Namespace, "pod", request.Name, "dryRun", request.DryRun != nil && *request.DryRun)
	if no := (*refusal)(nil); errors.As(err, &no) {
		log.Info("pod refused", "why", no.Error())
		response.Result = &no.status
		return response, nil
	}
	if err != nil {
		log.Warn("cannot decide about pod", "why", err)
		return nil, err
	}
	log.Info("pod admitted", "decision", decision)
	response.Allowed = true
	if len(patch) > 0 {
		if response.Patch, err = json.Marshal(patch); err != nil {
			return nil, err
		}
		jsonPatch := admissionv1.PatchTypeJSONPatch
		response.PatchType = &jsonPatch
	}
	return response, nil
}

// mutate returns what is to be done with the pod of a request, and why.
func (h *handler) mutate(ctx context.Context, request *admissionv1.AdmissionRequest) ([]operation, string, error) {
	pods := metav1.GroupVersionResource{Version: "v1", Resource: "pods"}
	if request.Resource != pods || request.SubResource != "" {
		return nil, "", refuse(http.StatusBadRequest, "this webhook is for pods, not for %s %s", request.Resource, request.SubResource)
	}
	pod := new(corev1.Pod)
	if err := unmarshal(request.Object.Raw, pod); err != nil {
		return nil, "", refuse(http.StatusBadRequest, "not a pod: %s", err)
	}
	profile := h.config.Profile
	if profile.skips != nil && profile.skips(pod) {
		return nil, "skipped: the pod says so", nil
	}
	name := pod.Spec.ServiceAccountName
	if name == "" {
		name = "default" // as the API server does
	}
	account, err := h.config.Accounts.ServiceAccount(ctx, request.Namespace, name)
	if err != nil {
		return nil, "no such service account", profile.withoutAccount(request.Namespace+"/"+name, err)
	}
	wanted, err := profile.want(pod, account)
	if err != nil || wanted == nil {
		return nil, "the service account asks for nothing", err
	}
	e := editor{pod: pod}
	if err := e.inject(wanted, profile.conflicts); err != nil {
		return nil, "", err
	}
	e.injectExtra(h.config.Extra, profile.Name, wanted.skip)
	return e.patch, "injected", nil
}

// refusal is an error that denies a pod.
type refusal struct{ status metav1.Status }

func (r *refusal) Error() string { return r.status.Message }

func refuse(code int32, format string, args ...any) error {
	return &refusal{metav1.Status{Status: metav1.StatusFailure, Code: code, Message: fmt.Sprintf(format, args...)}}
}

// unmarshal reads JSON as an API server does: names are case-sensitive. A
// duplicate field is an error.
func unmarshal(data []byte, into any) error {
	strict, err := strictjson.UnmarshalStrict(data, into, strictjson.DisallowDuplicateFields)
	return errors.Join(append(strict, err)...)
}
