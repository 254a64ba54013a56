package webhook

import (
	"encoding/json"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestConfiguration compares with the vendors' manifests.
func TestConfiguration(t *testing.T) {
	const rules = `"rules":[{"apiGroups":[""],"apiVersions":["v1"],"operations":["CREATE"],"resources":["pods"],"scope":"*"}],"sideEffects":"None"`
	const head = `{"apiVersion":"admissionregistration.k8s.io/v1","kind":"MutatingWebhookConfiguration","metadata":{"name":"oidclab"},"webhooks":[{"clientConfig":{"caBundle":"cGVt","url":"https://127.0.0.1:1/c1"},`
	const stackitSkip = `{"key":"workload-identity.stackit.cloud/skip-pod-identity-webhook","operator":"DoesNotExist"}`
	for name, want := range map[string]string{
		"stackit": head + `"name":"mpod.stackit.cloud","admissionReviewVersions":["v1"],"failurePolicy":"Fail","matchPolicy":"Equivalent","reinvocationPolicy":"Never",
			"namespaceSelector":{"matchExpressions":[{"key":"kubernetes.io/metadata.name","operator":"NotIn","values":["kube-system"]},` + stackitSkip + `]},
			"objectSelector":{"matchExpressions":[` + stackitSkip + `]},` + rules + `}]}`,
		"aws": head + `"name":"pod-identity-webhook.amazonaws.com","admissionReviewVersions":["v1beta1"],"failurePolicy":"Ignore","matchPolicy":"Equivalent","reinvocationPolicy":"Never",
			"namespaceSelector":{},"objectSelector":{"matchExpressions":[{"key":"eks.amazonaws.com/skip-pod-identity-webhook","operator":"DoesNotExist"}]},` + rules + `}]}`,
		"azure": head + `"name":"mutation.azure-workload-identity.io","admissionReviewVersions":["v1","v1beta1"],"failurePolicy":"Fail","matchPolicy":"Equivalent","reinvocationPolicy":"IfNeeded",
			"namespaceSelector":{},"objectSelector":{"matchLabels":{"azure.workload.identity/use":"true"}},` + rules + `}]}`,
	} {
		t.Run(name, func(t *testing.T) {
			got, err := json.Marshal(profiles()[name].Configuration("oidclab", "https://127.0.0.1:1/c1", []byte("pem")))
			if err != nil {
				t.Fatal(err)
			}
			var wanted, have any
			if err := json.Unmarshal([]byte(want), &wanted); err != nil {
				t.Fatal(err)
			}
			if err := json.Unmarshal(got, &have); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(wanted, have); diff != "" {
				t.Errorf("configuration (-want +got):\n%s", diff)
			}
		})
	}
}
