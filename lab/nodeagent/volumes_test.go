package nodeagent

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
	"k8s.io/kubernetes/pkg/kubelet/token"

	"github.com/oidclab/oidclab/lab/nodeagent/sandbox"
)

// issuer is an API server that issues numbered tokens of a given age.
type issuer struct {
	client   *fake.Clientset
	requests []authenticationv1.TokenRequestSpec
	age      time.Duration
}

func newIssuer(objects ...runtime.Object) *issuer {
	i := &issuer{client: fake.NewClientset(objects...)}
	i.client.PrependReactor("create", "serviceaccounts", func(action clienttesting.Action) (bool, runtime.Object, error) {
		if action.GetSubresource() != "token" {
			return false, nil, nil
		}
		request := action.(clienttesting.CreateAction).GetObject().(*authenticationv1.TokenRequest).DeepCopy()
		i.requests = append(i.requests, request.Spec)
		life := time.Duration(*request.Spec.ExpirationSeconds) * time.Second
		request.Status = authenticationv1.TokenRequestStatus{
			Token: fmt.Sprintf("token %d", len(i.requests)), ExpirationTimestamp: metav1.NewTime(time.Now().Add(life - i.age)),
		}
		return true, request, nil
	})
	return i
}

func (i *issuer) volumes() *volumes {
	return &volumes{client: i.client, tokens: token.NewManager(i.client)}
}

// tokenPod is a pod with a token and a ConfigMap in one volume.
func tokenPod(change func(*corev1.Pod)) *corev1.Pod {
	mode, seconds := int32(0o644), int64(600)
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "demo", Name: "app-1", UID: "uid-1"},
		Spec: corev1.PodSpec{
			ServiceAccountName: "app",
			Containers:         []corev1.Container{{Name: "c"}},
			Volumes: []corev1.Volume{{Name: "v", VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{
				DefaultMode: &mode,
				Sources: []corev1.VolumeProjection{
					{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{Audience: "vault", ExpirationSeconds: &seconds, Path: "token"}},
					{ConfigMap: &corev1.ConfigMapProjection{LocalObjectReference: corev1.LocalObjectReference{Name: "ca"}}},
				},
			}}}},
		},
	}
	if change != nil {
		change(pod)
	}
	return pod
}

func configMapOf(content string) *corev1.ConfigMap {
	return &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "demo", Name: "ca"}, Data: map[string]string{"ca.crt": content}}
}

func read(t *testing.T, path string) string {
	t.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(content)
}

func TestTokenIsThePods(t *testing.T) {
	i := newIssuer(configMapOf("certificate"))
	dir := t.TempDir()
	if err := i.volumes().write(t.Context(), tokenPod(nil), dir); err != nil {
		t.Fatal(err)
	}
	if got := read(t, filepath.Join(dir, "v", "token")) + read(t, filepath.Join(dir, "v", "ca.crt")); got != "token 1certificate" {
		t.Errorf("got %q", got)
	}
	if len(i.requests) != 1 {
		t.Fatalf("%d requests", len(i.requests))
	}
	got := i.requests[0]
	if len(got.Audiences) != 1 || got.Audiences[0] != "vault" || *got.ExpirationSeconds != 600 ||
		*got.BoundObjectRef != (authenticationv1.BoundObjectReference{APIVersion: "v1", Kind: "Pod", Name: "app-1", UID: "uid-1"}) {
		t.Errorf("asked for %+v", got)
	}
}

// A token is asked for again at 80 % of its life, less up to 10 s, and the volume
// changes as a whole.
func TestRenewal(t *testing.T) {
	for age, renewed := range map[time.Duration]bool{0: false, 469 * time.Second: false, 481 * time.Second: true} {
		i := newIssuer(configMapOf("certificate"))
		i.age = age
		v, dir := i.volumes(), t.TempDir()
		var data [2]string
		for n := range data {
			if err := v.write(t.Context(), tokenPod(nil), dir); err != nil {
				t.Fatal(err)
			}
			var err error
			if data[n], err = os.Readlink(filepath.Join(dir, "v", "..data")); err != nil {
				t.Fatal(err)
			}
		}
		want := "token 1"
		if renewed {
			want = "token 2"
		}
		if got := read(t, filepath.Join(dir, "v", "token")); got != want || (data[0] != data[1]) != renewed {
			t.Errorf("a token of %s: got %q, in %v", age, got, data)
		}
	}
}

// Modes and owners are kubelet's: see its projected volume.
func TestModes(t *testing.T) {
	if sandbox.NeedsUserNamespace() {
		t.Skip("needs root, to give files away")
	}
	user, group, other := int64(4711), int64(4712), int64(4713)
	for name, c := range map[string]struct {
		change   func(*corev1.Pod)
		mode     fs.FileMode // of the token
		uid, gid uint32
	}{
		"default":   {nil, 0o644, 0, 0},
		"runAsUser": {func(p *corev1.Pod) { p.Spec.SecurityContext = &corev1.PodSecurityContext{RunAsUser: &user} }, 0o600, 4711, 0},
		"fsGroup":   {func(p *corev1.Pod) { p.Spec.SecurityContext = &corev1.PodSecurityContext{FSGroup: &group} }, 0o640, 0, 4712},
		"both": {func(p *corev1.Pod) {
			p.Spec.SecurityContext = &corev1.PodSecurityContext{RunAsUser: &user, FSGroup: &group}
		}, 0o640, 4711, 4712},
		"owner only": {func(p *corev1.Pod) { *p.Spec.Volumes[0].Projected.DefaultMode = 0o400 }, 0o400, 0, 0},
		"two users": {func(p *corev1.Pod) {
			p.Spec.Containers = []corev1.Container{
				{Name: "a", SecurityContext: &corev1.SecurityContext{RunAsUser: &user}}, {Name: "b", SecurityContext: &corev1.SecurityContext{RunAsUser: &other}},
			}
		}, 0o644, 0, 0},
	} {
		dir := t.TempDir()
		if err := newIssuer(configMapOf("certificate")).volumes().write(t.Context(), tokenPod(c.change), dir); err != nil {
			t.Fatal(err)
		}
		info, err := os.Stat(filepath.Join(dir, "v", "token"))
		if err != nil {
			t.Fatal(err)
		}
		owner := info.Sys().(*syscall.Stat_t)
		if info.Mode().Perm() != c.mode || owner.Uid != c.uid || owner.Gid != c.gid {
			t.Errorf("%s: got %o of %d:%d, want %o of %d:%d", name, info.Mode().Perm(), owner.Uid, owner.Gid, c.mode, c.uid, c.gid)
		}
	}
}

func TestVolumesThatCannotBe(t *testing.T) {
	for want, change := range map[string]func(*corev1.Pod){
		`configmaps "none" not found`: func(p *corev1.Pod) { p.Spec.Volumes[0].Projected.Sources[1].ConfigMap.Name = "none" },
		"emptyDir, projected, configMap, secret and downwardAPI volumes only": func(p *corev1.Pod) {
			p.Spec.Volumes[0].VolumeSource = corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: "/"}}
		},
	} {
		err := newIssuer(configMapOf("certificate")).volumes().write(t.Context(), tokenPod(change), t.TempDir())
		if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), `volume "v"`) {
			t.Errorf("got %v, want %s", err, want)
		}
	}
	isOptional := true
	dir := t.TempDir()
	err := newIssuer().volumes().write(t.Context(), tokenPod(func(p *corev1.Pod) { p.Spec.Volumes[0].Projected.Sources[1].ConfigMap.Optional = &isOptional }), dir)
	if err != nil {
		t.Error("an optional ConfigMap:", err)
	}
}
