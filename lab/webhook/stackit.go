package webhook

import (
	"errors"
	"fmt"
	"net/http"
	"net/mail"
	"net/url"
	"path"
	"strconv"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Annotations of service accounts that STACKIT's webhook heeds.
const (
	STACKITEmail              = stackitPrefix + "service-account-email" // enables it
	STACKITAudience           = stackitPrefix + "audience"
	STACKITExpiration         = stackitPrefix + "service-account-token-expiration-seconds"
	STACKITIDPTokenExpiration = stackitPrefix + "idp-token-expiration-seconds"
	STACKITIDPTokenEndpoint   = stackitPrefix + "idp-token-endpoint"
	STACKITFederatedTokenFile = stackitPrefix + "federated-token-file"

	// STACKITSkip is a label of pods and namespaces, and an annotation of pods and
	// service accounts. The API server skips whatever has the label, with any
	// value; the webhook wants "true".
	STACKITSkip = stackitPrefix + "skip-pod-identity-webhook"

	stackitPrefix    = "workload-identity.stackit.cloud/"
	stackitVolume    = "stackit-workload-identity"
	stackitMountPath = "/var/run/secrets/stackit.cloud/serviceaccount"
	stackitTokenPath = "token"
	stackitAudience  = "sts.accounts.stackit.cloud"
)

// stackitExpiration is the life of a token in seconds, unless an annotation
// says otherwise. Any integer will do: the API server refuses less than 600.
const stackitExpiration = "600"

// STACKIT returns the profile of stackit-pod-identity-webhook.
func STACKIT() Profile {
	return Profile{
		Name:               "stackit",
		Webhook:            "mpod.stackit.cloud",
		Path:               "/mutate--v1-pod",
		ReviewVersions:     []string{"v1"},
		FailurePolicy:      admissionregistrationv1.Fail,
		MatchPolicy:        admissionregistrationv1.Equivalent,
		ReinvocationPolicy: admissionregistrationv1.NeverReinvocationPolicy,
		NamespaceSelector: metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{
			{Key: corev1.LabelMetadataName, Operator: metav1.LabelSelectorOpNotIn, Values: []string{metav1.NamespaceSystem}},
			doesNotExist(STACKITSkip),
		}},
		ObjectSelector: metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{doesNotExist(STACKITSkip)}},
		TokenFile:      path.Join(stackitMountPath, stackitTokenPath),
		Audience:       stackitAudience,
		conflicts:      refuseConflicts,
		skips: func(pod *corev1.Pod) bool {
			return pod.Annotations[STACKITSkip] == "true" || pod.Labels[STACKITSkip] == "true"
		},
		withoutAccount: withoutSTACKITAccount,
		want:           wantSTACKIT,
	}
}

// withoutSTACKITAccount refuses the pod with the API server's own status, if
// there is one, as controller-runtime does.
func withoutSTACKITAccount(account string, lookup error) error {
	if status := apierrors.APIStatus(nil); errors.As(lookup, &status) {
		return &refusal{status.Status()}
	}
	return deny("failed to fetch ServiceAccount %s: %s", account, lookup)
}

// deny refuses as controller-runtime's admission.Denied does.
func deny(format string, args ...any) error {
	return &refusal{metav1.Status{
		Status: metav1.StatusFailure, Code: http.StatusForbidden, Reason: metav1.StatusReasonForbidden, Message: fmt.Sprintf(format, args...),
	}}
}

func wantSTACKIT(_ *corev1.Pod, account *corev1.ServiceAccount) (*injection, error) {
	annotations := account.Annotations
	if annotations[STACKITSkip] == "true" || annotations[STACKITEmail] == "" {
		return nil, nil
	}
	get := func(annotation, otherwise string) string {
		if value := annotations[annotation]; value != "" {
			return value
		}
		return otherwise
	}
	var invalid []error
	check := func(annotation string, err error) {
		if err != nil {
			invalid = append(invalid, fmt.Errorf("invalid %q: %w", annotation, err))
		}
	}
	env := []corev1.EnvVar{{Name: "STACKIT_SERVICE_ACCOUNT_EMAIL", Value: annotations[STACKITEmail]}}
	_, err := mail.ParseAddress(annotations[STACKITEmail])
	check(STACKITEmail, err)
	expiration, err := strconv.ParseInt(get(STACKITExpiration, stackitExpiration), 10, 64)
	check(STACKITExpiration, err)
	mountPath, tokenPath := stackitMountPath, stackitTokenPath
	if file := annotations[STACKITFederatedTokenFile]; file != "" {
		mountPath, tokenPath = path.Dir(file), path.Base(file)
		env = append(env, corev1.EnvVar{Name: "STACKIT_FEDERATED_TOKEN_FILE", Value: file})
	}
	endpoint := annotations[STACKITIDPTokenEndpoint]
	if endpoint != "" {
		env = append(env, corev1.EnvVar{Name: "STACKIT_IDP_TOKEN_ENDPOINT", Value: endpoint})
	}
	if seconds := annotations[STACKITIDPTokenExpiration]; seconds != "" {
		_, err := strconv.ParseInt(seconds, 10, 64)
		check(STACKITIDPTokenExpiration, err)
		env = append(env, corev1.EnvVar{Name: "STACKIT_IDP_TOKEN_EXPIRATION_SECONDS", Value: seconds})
	}
	if endpoint != "" {
		_, err := url.ParseRequestURI(endpoint)
		check(STACKITIDPTokenEndpoint, err)
	}
	if err := errors.Join(invalid...); err != nil {
		return nil, deny("%s", err)
	}
	return &injection{
		volume:    tokenVolume(stackitVolume, tokenPath, get(STACKITAudience, stackitAudience), expiration),
		mountPath: mountPath,
		env:       [][]corev1.EnvVar{env},
	}, nil
}
