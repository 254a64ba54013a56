package webhook

import (
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"path"
	"slices"
	"strconv"
	"strings"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// What Azure's webhook heeds.
const (
	AzureUse            = azurePrefix + "use"                              // label of the pod; "true" enables it
	AzureClientID       = azurePrefix + "client-id"                        // annotation of the service account
	AzureTenantID       = azurePrefix + "tenant-id"                        // of the service account
	AzureExpiration     = azurePrefix + "service-account-token-expiration" // of pod or service account; the pod's wins
	AzureSkipContainers = azurePrefix + "skip-containers"                  // of the pod: names, separated by ";"
	AzureProxySidecar   = azurePrefix + "inject-proxy-sidecar"             // of the pod; refused

	azurePrefix       = "azure.workload.identity/"
	azureVolumePrefix = "azure-workload-identity-reserved-"
	azureMountPath    = "/var/run/secrets/azure/wi"
	azureTokenPath    = "token/azure-identity-token"
	azureAudience     = "api://AzureADTokenExchange"
)

// The life of a token in seconds.
const (
	azureExpiration    = 3600
	azureMinExpiration = 3600
	azureMaxExpiration = 86400
)

// AzureSettings are what Azure's webhook is installed with.
type AzureSettings struct {
	TenantID      string // azureTenantID of the chart
	AuthorityHost string // of the chart's azureEnvironment, such as https://login.microsoftonline.com/
}

// Azure returns the profile of azure-workload-identity.
func Azure(settings AzureSettings) Profile {
	use := map[string]string{AzureUse: "true"}
	return Profile{
		Name:               "azure",
		Webhook:            "mutation.azure-workload-identity.io",
		Path:               "/mutate-v1-pod",
		ReviewVersions:     []string{"v1", "v1beta1"},
		FailurePolicy:      admissionregistrationv1.Fail,
		MatchPolicy:        admissionregistrationv1.Equivalent,
		ReinvocationPolicy: admissionregistrationv1.IfNeededReinvocationPolicy,
		ObjectSelector:     metav1.LabelSelector{MatchLabels: use},
		TokenFile:          path.Join(azureMountPath, azureTokenPath),
		Audience:           azureAudience,
		PodLabels:          use,
		conflicts:          replaceVolumeOnly,
		withoutAccount:     func(_ string, lookup error) error { return refuse(http.StatusBadRequest, "%s", lookup) },
		want:               settings.want,
	}
}

func (s AzureSettings) want(pod *corev1.Pod, account *corev1.ServiceAccount) (*injection, error) {
	if _, ok := pod.Annotations[AzureProxySidecar]; ok {
		return nil, refuse(http.StatusBadRequest, "the lab does not inject Azure's proxy sidecar: remove the annotation %s", AzureProxySidecar)
	}
	expiration, err := azureExpirationOf(pod.Annotations, account.Annotations)
	if err != nil {
		return nil, err
	}
	tenant, ok := account.Annotations[AzureTenantID]
	if !ok {
		tenant = s.TenantID
	}
	var env [][]corev1.EnvVar
	for _, v := range []corev1.EnvVar{
		{Name: "AZURE_CLIENT_ID", Value: account.Annotations[AzureClientID]},
		{Name: "AZURE_TENANT_ID", Value: tenant},
		{Name: "AZURE_FEDERATED_TOKEN_FILE", Value: path.Join(azureMountPath, azureTokenPath)},
		{Name: "AZURE_AUTHORITY_HOST", Value: s.AuthorityHost},
	} {
		if v.Value != "" {
			env = append(env, []corev1.EnvVar{v})
		}
	}
	var skipped []string
	for name := range strings.SplitSeq(pod.Annotations[AzureSkipContainers], ";") {
		skipped = append(skipped, strings.TrimSpace(name))
	}
	return &injection{
		volume:    tokenVolume(azureVolume(pod), azureTokenPath, azureAudience, expiration),
		mountPath: azureMountPath,
		env:       env,
		skip:      func(c *corev1.Container) bool { return slices.Contains(skipped, c.Name) },
	}, nil
}

func azureExpirationOf(pod, account map[string]string) (int64, error) {
	text := pod[AzureExpiration]
	if text == "" {
		text = account[AzureExpiration]
	}
	if text == "" {
		return azureExpiration, nil
	}
	seconds, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		return 0, refuse(http.StatusBadRequest, "%s", err)
	}
	if seconds < azureMinExpiration || seconds > azureMaxExpiration {
		return 0, refuse(http.StatusBadRequest, "token expiration %d not valid. Expected value to be between %d and %d", seconds, azureMinExpiration, azureMaxExpiration)
	}
	return seconds, nil
}

// azureVolume returns the volume's name: the prefix, and as much of the SHA-256
// of the pod's name as there is room for in 63 characters.
func azureVolume(pod *corev1.Pod) string {
	name := pod.Name
	if name == "" {
		name = pod.GenerateName + " (prefix)"
	}
	sum := sha256.Sum256([]byte(name))
	return azureVolumePrefix + hex.EncodeToString(sum[:])[:63-len(azureVolumePrefix)]
}
