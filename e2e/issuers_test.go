package e2e

import (
	"encoding/json"
	"fmt"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/oidclab/oidclab/fixtures"
	"github.com/oidclab/oidclab/lab/issuer"
	"github.com/oidclab/oidclab/lab/problem"
	"github.com/oidclab/oidclab/scenarios"
)

// TestIssuerStyles has every relying party take tokens of issuers in every style
// but the default one, which all other tests have.
func TestIssuerStyles(t *testing.T) {
	t.Parallel()
	u := newUser(t)
	for _, layout := range issuer.Layouts()[1:] {
		t.Run(layout.Name, func(t *testing.T) {
			info := u.up(t, "--name", layout.Name, "--issuer-style", layout.Name)
			if info.IssuerStyle != layout.Name {
				t.Errorf("the lab says that its style is %s", info.IssuerStyle)
			}
			run := u.start(t, "", "scenarios", "run", "--name", layout.Name, "--label-filter", "discovery || journey", "-o", "json").wait(t, 2*time.Minute)
			var summary scenarios.Summary
			if err := json.Unmarshal([]byte(run.stdout), &summary); err != nil {
				t.Fatalf("%v: %s", err, run)
			}
			for _, result := range summary.Results {
				if result.Failed() {
					t.Errorf("%s: %s", result.Name, result.Reason)
				}
			}
			if summary.Passed < 10 {
				t.Errorf("%d scenarios passed", summary.Passed)
			}
			u.run(t, "down", "--name", layout.Name).want(t, 0)
		})
	}
}

// A cluster without its public issuer has nobody who could follow a change of its
// keys, which is said at once. With it, one that is made anew is as good as new.
func TestInternalIssuer(t *testing.T) {
	t.Parallel()
	u := newUser(t)
	info := u.up(t, "--name", labName, "--vault", "none")
	u.run(t, "cluster", "issuer", "--name", labName, "internal").want(t, 0)
	for _, change := range [][]string{{"keys", "rotate"}, {"keys", "rotate", "--phase", "publish"}, {"keys", "rotate", "--phase", "remove"}, {"cluster", "recreate"}} {
		u.run(t, append(change, "--name", labName)...).want(t, int(problem.Conflict), "oidclab cluster issuer public")
	}
	u.run(t, "exchange", "generic", "--name", labName).want(t, int(problem.Refused))
	u.run(t, "cluster", "issuer", "--name", labName, "public").want(t, 0)
	u.run(t, "exchange", "generic", "--name", labName).want(t, 0)
	u.run(t, "keys", "rotate", "--name", labName, "--phase", "publish").want(t, 0)
	core := kubernetesClient(t, info.Clusters[0]).CoreV1()
	for i := range 500 { // the versions of objects go far beyond a new cluster's
		busy := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{GenerateName: fmt.Sprint("busy-", i, "-")}}
		if _, err := core.ConfigMaps(metav1.NamespaceDefault).Create(t.Context(), busy, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	u.run(t, "clock", "freeze", "--name", labName).want(t, 0) // key caches age by it
	u.run(t, "exchange", "aws", "--name", labName).want(t, 0)
	u.run(t, "cluster", "recreate", "--name", labName).want(t, 0, "oidclab clock advance 5m")
	u.run(t, "exchange", "aws", "--name", labName).want(t, int(problem.Refused), "Couldn't retrieve verification key")
	u.run(t, "clock", "advance", "5m", "--name", labName).want(t, 0)
	for _, party := range []string{"aws", "gcp", "azure", "generic"} {
		u.run(t, "exchange", party, "--name", labName).want(t, 0)
	}
	namespace := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "later"}}
	if _, err := core.Namespaces().Create(t.Context(), namespace, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	mustAwait(t, patience, "the lab's CA", func() error {
		_, err := core.ConfigMaps(namespace.Name).Get(t.Context(), fixtures.CAConfigMap, metav1.GetOptions{})
		return err
	})
}
