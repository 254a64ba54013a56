package e2e

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/oidclab/oidclab/lab"
	"github.com/oidclab/oidclab/lab/proc"
)

const recoveryLimit = 30 * time.Second

// TestComponentKilled: each component of a cluster comes back with its data,
// and meanwhile the lab says that it is degraded.
func TestComponentKilled(t *testing.T) {
	t.Parallel()
	u := newUser(t)
	info := u.up(t, "--name", labName, "--vault", "none")
	cluster := kubernetesClient(t, info.Clusters[0])
	ctx := t.Context()
	want := map[string]string{"made": "before the crash"}
	if _, err := cluster.CoreV1().ConfigMaps("demo").Create(ctx, &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{Name: "kept"}, Data: want,
	}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	account, err := cluster.CoreV1().ServiceAccounts("demo").Get(ctx, "app", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}

	for _, component := range []string{"etcd", "kube-apiserver", "kube-controller-manager"} {
		t.Run(component, func(t *testing.T) {
			mustAwait(t, recoveryLimit, "degraded", func() error {
				if pid, err := u.process(component); err == nil {
					_ = syscall.Kill(pid, syscall.SIGKILL)
				}
				status, r := u.status(t, "--name", labName)
				if r.code != 4 {
					return fmt.Errorf("want exit 4: %s", r)
				}
				if status.Ready || len(status.Problems) == 0 {
					t.Errorf("degraded, but ready is %t and the problems are %q", status.Ready, status.Problems)
				}
				return nil
			})
			mustAwait(t, recoveryLimit, "recovery", func() error {
				if _, r := u.status(t, "--name", labName); r.code != 0 {
					return errors.New(r.String())
				}
				return nil
			})
			u.observe(t)
			status, _ := u.status(t, "--name", labName)
			i := slices.IndexFunc(status.Components, func(s proc.Status) bool { return s.Name == "c1/"+component })
			if i < 0 || status.Components[i].Restarts == 0 || status.Components[i].LastExit != "signal: killed" {
				t.Errorf("want a restart of %s after a kill: %+v", component, status.Components)
			}

			kept, err := cluster.CoreV1().ConfigMaps("demo").Get(ctx, "kept", metav1.GetOptions{})
			if err != nil || kept.Data["made"] != want["made"] {
				t.Errorf("the config map: %v, %v", kept.Data, err)
			}
			same, err := cluster.CoreV1().ServiceAccounts("demo").Get(ctx, "app", metav1.GetOptions{})
			if err != nil || same.UID != account.UID {
				t.Errorf("the service account: uid %s, %v; want %s", same.UID, err, account.UID)
			}
			u.run(t, "exchange", "aws", "--name", labName).want(t, 0)
			u.run(t, "exchange", "generic", "--name", labName).want(t, 0)
		})
	}
}

// TestFrontOutlivesAPIServer: keys are served on, stale, and /readyz says so.
func TestFrontOutlivesAPIServer(t *testing.T) {
	t.Parallel()
	u := newUser(t)
	info := u.up(t, "--name", labName, "--vault", "none")
	token := u.run(t, "token", "mint", "--name", labName, "--audience", "oidclab").want(t, 0).stdout
	client := httpsClient(t, info)
	_, _, before := get(t, client, info.Clusters[0].JWKSURI)
	if status, _, body := get(t, client, info.Front+"/readyz"); status != http.StatusOK {
		t.Fatalf("before: /readyz answers %d %s", status, body)
	}
	u.keepDown(t, "kube-apiserver", func() error {
		status, header, body := get(t, client, info.Clusters[0].JWKSURI)
		if status != http.StatusOK || body != before {
			t.Fatalf("the key set: %d %s, want 200 and %s", status, body, before)
		}
		ready, _, reason := get(t, client, info.Front+"/readyz")
		if ready != http.StatusServiceUnavailable || !strings.Contains(reason, "cluster c1") {
			return fmt.Errorf("/readyz answers %d %s, want 503 and the cluster", ready, reason)
		}
		if header.Get("Age") == "" || header.Get("Cache-Control") != "public, max-age=0" {
			return fmt.Errorf("a stale key set without Age, or fresh for some time: %v", header)
		}
		u.feed(t, token, "exchange", "generic", "--name", labName, "--token", "-").want(t, 0)
		return nil
	})
	mustAwait(t, recoveryLimit, "recovery", func() error {
		if status, _, body := get(t, client, info.Front+"/readyz"); status != http.StatusOK {
			return fmt.Errorf("/readyz answers %d %s", status, body)
		}
		return nil
	})
	u.observe(t)
}

// keepDown kills a component again and again until check, tried after each
// kill, returns nil.
func (u *user) keepDown(t *testing.T, component string, check func() error) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	killing := make(chan struct{})
	go func() {
		defer close(killing)
		ticker := time.NewTicker(pollGap)
		defer ticker.Stop()
		for {
			if pid, err := u.process(component); err == nil {
				_ = syscall.Kill(pid, syscall.SIGKILL)
			}
			select {
			case <-ctx.Done():
				return
			case <-ticker.C:
			}
		}
	}()
	defer func() { cancel(); <-killing }()
	mustAwait(t, recoveryLimit, component+" is down", check)
}

func kubernetesClient(t *testing.T, cluster lab.ClusterInfo) kubernetes.Interface {
	t.Helper()
	config, err := clientcmd.BuildConfigFromFlags("", cluster.Kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	config.QPS = -1 // as fast as it goes
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	return client
}

// httpsClient trusts the lab's certificate authority and nobody else.
func httpsClient(t *testing.T, info lab.Info) *http.Client {
	t.Helper()
	pem, err := os.ReadFile(info.CAFile)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		t.Fatalf("%s holds no certificate", info.CAFile)
	}
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: 10 * time.Second}
}

func get(t *testing.T, client *http.Client, url string) (status int, header http.Header, body string) {
	t.Helper()
	response, err := client.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	data, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response.StatusCode, response.Header, string(data)
}
