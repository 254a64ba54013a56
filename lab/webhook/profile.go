package webhook

import (
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Profile is how one vendor's webhook behaves. Get one from STACKIT, AWS or
// Azure.
type Profile struct {
	Name string // "stackit", "aws" or "azure"

	// What its configuration says.
	Webhook            string // the webhook's name: the API server's refusals begin with it
	Path               string // of its URL
	ReviewVersions     []string
	FailurePolicy      admissionregistrationv1.FailurePolicyType
	MatchPolicy        admissionregistrationv1.MatchPolicyType
	ReinvocationPolicy admissionregistrationv1.ReinvocationPolicyType
	NamespaceSelector  metav1.LabelSelector
	ObjectSelector     metav1.LabelSelector

	// What a workload meets.
	TokenFile string            // where containers find the token, unless an annotation says otherwise
	Audience  string            // of the token, likewise
	PodLabels map[string]string // what a pod must have to be injected; none means that its service account decides

	conflicts      conflictRule
	skips          func(*corev1.Pod) bool                                        // before the service account is looked up; may be nil
	withoutAccount func(account string, lookup error) error                      // what becomes of the pod; nil admits it as it is
	want           func(*corev1.Pod, *corev1.ServiceAccount) (*injection, error) // nil means nothing
}

// conflictRule is what becomes of what a pod has already.
type conflictRule int

const (
	refuseConflicts   conflictRule = iota // the pod is refused
	keepExisting                          // it stays, and the vendor's is left out
	replaceVolumeOnly                     // volume and mount are replaced, the environment stays
)

// injection is what a webhook wants of a pod.
type injection struct {
	volume    corev1.Volume
	mountPath string
	env       [][]corev1.EnvVar            // a group is left out as a whole if a container has one of it
	skip      func(*corev1.Container) bool // containers that are left alone
}

// Extra is what the lab adds to the containers that a webhook injects into. It
// never changes what a pod has or a vendor injects. The pod's annotation
// ExtraAnnotation + "-" + the profile's name lists it.
type Extra struct {
	Env       []corev1.EnvVar
	Volume    *corev1.Volume // may be nil
	MountPath string         // of Volume
}

// ExtraAnnotation is the stem of the annotations that say what in a pod is the
// lab's and not the vendor's.
const ExtraAnnotation = "oidclab.dev/extra"

// Configuration returns the registration, called name, of a webhook with this
// profile at url. caBundle (PEM) vouches for its certificate. Everything else is
// as in the vendor's own manifest.
func (p Profile) Configuration(name, url string, caBundle []byte) *admissionregistrationv1.MutatingWebhookConfiguration {
	none, scope := admissionregistrationv1.SideEffectClassNone, admissionregistrationv1.AllScopes
	return &admissionregistrationv1.MutatingWebhookConfiguration{
		TypeMeta:   metav1.TypeMeta{APIVersion: admissionregistrationv1.SchemeGroupVersion.String(), Kind: "MutatingWebhookConfiguration"},
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Webhooks: []admissionregistrationv1.MutatingWebhook{{
			Name:                    p.Webhook,
			ClientConfig:            admissionregistrationv1.WebhookClientConfig{URL: &url, CABundle: caBundle},
			AdmissionReviewVersions: p.ReviewVersions,
			FailurePolicy:           &p.FailurePolicy,
			MatchPolicy:             &p.MatchPolicy,
			ReinvocationPolicy:      &p.ReinvocationPolicy,
			SideEffects:             &none,
			NamespaceSelector:       &p.NamespaceSelector,
			ObjectSelector:          &p.ObjectSelector,
			Rules: []admissionregistrationv1.RuleWithOperations{{
				Operations: []admissionregistrationv1.OperationType{admissionregistrationv1.Create},
				Rule:       admissionregistrationv1.Rule{APIGroups: []string{""}, APIVersions: []string{"v1"}, Resources: []string{"pods"}, Scope: &scope},
			}},
		}},
	}
}

// doesNotExist selects what does not have a label, whatever its value.
func doesNotExist(label string) metav1.LabelSelectorRequirement {
	return metav1.LabelSelectorRequirement{Key: label, Operator: metav1.LabelSelectorOpDoesNotExist}
}

// tokenVolume is a projected volume with one service-account token.
func tokenVolume(name, path, audience string, expirationSeconds int64) corev1.Volume {
	return corev1.Volume{Name: name, VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{
		Sources: []corev1.VolumeProjection{{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{
			Path: path, Audience: audience, ExpirationSeconds: &expirationSeconds,
		}}},
	}}}
}
