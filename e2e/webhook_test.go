package e2e

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/oidclab/oidclab/fixtures"
)

// TestWebhook: an API server that was killed asks the pod identity webhook when
// it is back, and status tells when an API server would not ask it any more.
func TestWebhook(t *testing.T) {
	t.Parallel()
	u := newUser(t)
	info := u.up(t, "--name", labName, "--engine", "embedded", "--vault", "none")
	client := kubernetesClient(t, info.Clusters[0])
	stackit := info.Webhook.Profiles[2]
	_, err := client.CoreV1().ServiceAccounts(fixtures.Namespace).Create(t.Context(), &corev1.ServiceAccount{
		ObjectMeta: metav1.ObjectMeta{Name: "annotated", Annotations: stackit.Annotations[info.Clusters[0].ID]},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	injected := func() error {
		pod, err := client.CoreV1().Pods(fixtures.Namespace).Create(t.Context(), &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Name: "web"},
			Spec:       corev1.PodSpec{ServiceAccountName: "annotated", Containers: []corev1.Container{{Name: "main", Image: "none.invalid/none"}}},
		}, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
		if err == nil && (len(pod.Spec.Containers[0].Env) == 0 || pod.Spec.Containers[0].Env[0].Name != "STACKIT_SERVICE_ACCOUNT_EMAIL") {
			t.Fatalf("%s did not inject: %+v", stackit.Configuration, pod.Spec.Containers[0].Env)
		}
		return err
	}
	if err := injected(); err != nil {
		t.Fatal(err)
	}
	u.keepDown(t, "kube-apiserver", func() error {
		if injected() == nil {
			return errors.New("it still admits pods")
		}
		return nil
	})
	mustAwait(t, recoveryLimit, "a pod is admitted again", injected)

	mustAwait(t, recoveryLimit, "the lab is ready again", func() error {
		if r := u.run(t, "status", "--name", labName); r.code != 0 {
			return fmt.Errorf("status: %s", r)
		}
		return nil
	})
	degraded := func(why string) {
		t.Helper()
		if r := u.run(t, "status", "--name", labName).want(t, 4); !strings.Contains(r.stdout, why) {
			t.Fatalf("want the problem %q: %s", why, r)
		}
	}
	configurations := client.AdmissionregistrationV1().MutatingWebhookConfigurations()
	elsewhere := []byte(`[{"op":"replace","path":"/webhooks/0/clientConfig/url","value":"https://127.0.0.1:1/"}]`)
	if _, err := configurations.Patch(t.Context(), stackit.Configuration, types.JSONPatchType, elsewhere, metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	degraded(stackit.Configuration + " does not lead to the lab's webhook")
	if err := configurations.Delete(t.Context(), stackit.Configuration, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	degraded(stackit.Configuration)
	u.run(t, "down", "--name", labName).want(t, 0)
}
