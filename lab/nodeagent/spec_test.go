package nodeagent

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/oidclab/oidclab/fixtures/manifests"
)

func pointer[T any](value T) *T { return &value }

func TestIdentify(t *testing.T) {
	workload := imageOf(manifests.Image, "/bin/oidclab")
	for name, c := range map[string]struct {
		pod       *corev1.PodSecurityContext
		container *corev1.SecurityContext
		img       image
		want      user
		refusal   string
	}{
		"an image that is not known":  {want: user{}},
		"the workload image":          {img: workload, want: user{uid: 65532, gid: 65532}},
		"runAsNonRoot, and it is":     {img: workload, pod: &corev1.PodSecurityContext{RunAsNonRoot: pointer(true)}, want: user{uid: 65532, gid: 65532}},
		"runAsNonRoot, and it is not": {pod: &corev1.PodSecurityContext{RunAsNonRoot: pointer(true)}, refusal: "image will run as root"},
		"runAsNonRoot, and runAsUser 0": {
			img: workload, pod: &corev1.PodSecurityContext{RunAsNonRoot: pointer(true), RunAsUser: pointer(int64(0))}, refusal: "breaks non-root policy",
		},
		"the container's word counts": {
			pod: &corev1.PodSecurityContext{RunAsUser: pointer(int64(0)), RunAsNonRoot: pointer(true)}, container: &corev1.SecurityContext{RunAsUser: pointer(int64(7))},
			want: user{uid: 7},
		},
		"groups": {
			pod:  &corev1.PodSecurityContext{RunAsUser: pointer(int64(7)), RunAsGroup: pointer(int64(8)), FSGroup: pointer(int64(9)), SupplementalGroups: []int64{10}},
			want: user{uid: 7, gid: 8, groups: []int{10, 9}},
		},
		"privileged": {container: &corev1.SecurityContext{Privileged: pointer(true)}, refusal: "no privileged containers"},
	} {
		pod := &corev1.Pod{Spec: corev1.PodSpec{SecurityContext: c.pod}}
		got, err := identify(pod, &corev1.Container{Name: "c", SecurityContext: c.container}, c.img)
		if c.refusal != "" {
			if err == nil || !strings.Contains(err.Error(), c.refusal) {
				t.Errorf("%s: got %v, want %s", name, err, c.refusal)
			}
			continue
		}
		if err != nil || got.uid != c.want.uid || got.gid != c.want.gid || !slices.Equal(got.groups, c.want.groups) {
			t.Errorf("%s: got %+v, %v; want %+v", name, got, err, c.want)
		}
	}
}

func TestImages(t *testing.T) {
	for name, known := range map[string]bool{
		manifests.Image: true, "oidclab/workload:0123456789ab": true, "docker.io/oidclab/workload": true,
		"oidclab/workload-not:local": false, "registry.example/oidclab/workload:local": false, "busybox": false,
	} {
		if got := len(imageOf(name, "/bin/oidclab").entrypoint) > 0; got != known {
			t.Errorf("%s: known is %v", name, got)
		}
	}
}

func TestCommand(t *testing.T) {
	workload := imageOf(manifests.Image, "/bin/oidclab")
	environment := map[string]string{"A": "b"}
	for name, c := range map[string]struct {
		container corev1.Container
		img       image
		want      []string
	}{
		"entrypoint and args":  {corev1.Container{Args: []string{"probe", "$(A)", "$$(A)", "$(C)"}}, workload, []string{"/oidclab", "probe", "b", "$(A)", "$(C)"}},
		"command":              {corev1.Container{Command: []string{"sh"}}, workload, []string{"sh"}},
		"command of unknown":   {corev1.Container{Command: []string{"sh"}, Args: []string{"-c"}}, image{}, []string{"sh", "-c"}},
		"entrypoint not known": {corev1.Container{Image: "nginx"}, image{}, nil},
	} {
		got, err := commandOf(&c.container, c.img, environment)
		if !slices.Equal(got, c.want) || (err == nil) != (c.want != nil) {
			t.Errorf("%s: got %q, %v", name, got, err)
		}
		if reason, message := "", ""; err != nil {
			if reason, message = reasonOf(err); reason != "CreateContainerError" || !strings.Contains(message, `"nginx"`) {
				t.Errorf("%s: got %s, %s", name, reason, message)
			}
		}
	}
}

func TestEnvironment(t *testing.T) {
	client := fake.NewClientset(
		&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "demo", Name: "env"}, Data: map[string]string{"A": "a", "B": "b"}},
		&corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "demo", Name: "secret"}, Data: map[string][]byte{"S": []byte("s")}},
	)
	m := maker{client: client, server: [2]string{"127.0.0.1", "6443"}}
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "demo", Name: "app-1", Labels: map[string]string{"l": "v"}}, Spec: corev1.PodSpec{NodeName: "n", ServiceAccountName: "app"}}
	from := func(name string) corev1.LocalObjectReference { return corev1.LocalObjectReference{Name: name} }
	field := func(path string) *corev1.EnvVarSource {
		return &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{FieldPath: path}}
	}
	c := &corev1.Container{
		EnvFrom: []corev1.EnvFromSource{
			{ConfigMapRef: &corev1.ConfigMapEnvSource{LocalObjectReference: from("env")}}, {Prefix: "P_", SecretRef: &corev1.SecretEnvSource{LocalObjectReference: from("secret")}},
			{ConfigMapRef: &corev1.ConfigMapEnvSource{LocalObjectReference: from("none"), Optional: pointer(true)}},
		},
		Env: []corev1.EnvVar{
			{Name: "B", Value: "own"}, {Name: "C", Value: "$(A)$(B)$(P_S)"}, {Name: "NODE", ValueFrom: field("spec.nodeName")},
			{Name: "LABEL", ValueFrom: field("metadata.labels['l']")}, {Name: "ACCOUNT", ValueFrom: field("spec.serviceAccountName")},
			{Name: "KEY", ValueFrom: &corev1.EnvVarSource{ConfigMapKeyRef: &corev1.ConfigMapKeySelector{LocalObjectReference: from("env"), Key: "A"}}},
			{Name: "NO", ValueFrom: &corev1.EnvVarSource{ConfigMapKeyRef: &corev1.ConfigMapKeySelector{LocalObjectReference: from("env"), Key: "Z", Optional: pointer(true)}}},
		},
	}
	got, err := m.environment(t.Context(), pod, c)
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"A": "a", "B": "own", "P_S": "s", "C": "aowns", "NODE": "n", "LABEL": "v", "ACCOUNT": "app", "KEY": "a", "HOSTNAME": "app-1", "KUBERNETES_SERVICE_PORT": "6443",
	} {
		if got[name] != want {
			t.Errorf("%s: got %q, want %q", name, got[name], want)
		}
	}
	if _, found := got["NO"]; found {
		t.Error("an optional key that is not there is set")
	}
	for want, broken := range map[string]corev1.Container{
		`configmaps "none" not found`:               {EnvFrom: []corev1.EnvFromSource{{ConfigMapRef: &corev1.ConfigMapEnvSource{LocalObjectReference: from("none")}}}},
		"couldn't find key Z in configmap demo/env": {Env: []corev1.EnvVar{{Name: "Z", ValueFrom: &corev1.EnvVarSource{ConfigMapKeyRef: &corev1.ConfigMapKeySelector{LocalObjectReference: from("env"), Key: "Z"}}}}},
	} {
		_, err := m.environment(t.Context(), pod, &broken)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %s", err, want)
		}
		if reason, _ := reasonOf(err); reason != "CreateContainerConfigError" {
			t.Errorf("%s: the reason is %s", want, reason)
		}
	}
}

func TestSubPath(t *testing.T) {
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "v", "..1"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "v", "..1", "f"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("..1/f", filepath.Join(dir, "v", "f")); err != nil {
		t.Fatal(err)
	}
	for sub, want := range map[string]string{"f": filepath.Join(dir, "v", "..1", "f"), "": filepath.Join(dir, "v"), "../x": "", "none": ""} {
		got, err := mounts(&corev1.Pod{}, &corev1.Container{VolumeMounts: []corev1.VolumeMount{{Name: "v", MountPath: "/m", SubPath: sub}}}, dir, nil)
		if want == "" {
			if err == nil {
				t.Errorf("%q: got %v", sub, got)
			}
			continue
		}
		resolved, resolveErr := filepath.EvalSymlinks(want)
		if err != nil || resolveErr != nil || len(got) != 1 || got[0].Source != resolved && got[0].Source != want {
			t.Errorf("%q: got %v, %v", sub, got, err)
		}
	}
}

func TestPhase(t *testing.T) {
	running := corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}
	waiting := corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{}}
	ended := func(code int32) corev1.ContainerState {
		return corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{ExitCode: code}}
	}
	for name, c := range map[string]struct {
		policy corev1.RestartPolicy
		states []corev1.ContainerState
		want   corev1.PodPhase
	}{
		"waiting":                 {corev1.RestartPolicyAlways, []corev1.ContainerState{running, waiting}, corev1.PodPending},
		"running":                 {corev1.RestartPolicyNever, []corev1.ContainerState{running, ended(0)}, corev1.PodRunning},
		"well":                    {corev1.RestartPolicyNever, []corev1.ContainerState{ended(0), ended(0)}, corev1.PodSucceeded},
		"badly":                   {corev1.RestartPolicyNever, []corev1.ContainerState{ended(0), ended(1)}, corev1.PodFailed},
		"badly, but tried again":  {corev1.RestartPolicyOnFailure, []corev1.ContainerState{ended(1)}, corev1.PodRunning},
		"well, and started again": {corev1.RestartPolicyAlways, []corev1.ContainerState{ended(0)}, corev1.PodRunning},
	} {
		var status corev1.PodStatus
		for _, state := range c.states {
			status.ContainerStatuses = append(status.ContainerStatuses, corev1.ContainerStatus{State: state})
		}
		if got := phase(&corev1.Pod{Spec: corev1.PodSpec{RestartPolicy: c.policy}}, status, true); got != c.want {
			t.Errorf("%s: got %s, want %s", name, got, c.want)
		}
	}
}

func TestSeekTail(t *testing.T) {
	long := strings.Repeat("x", 5000)
	for _, c := range []struct {
		content string
		lines   int
		want    string
	}{
		{"a\nb\nc\n", 2, "b\nc\n"}, {"a\nb\nc", 1, "c"}, {"a\nb\n", 9, "a\nb\n"}, {"a\n", 0, ""}, {"", 3, ""}, {"a\n" + long + "\n" + long + "\n", 1, long + "\n"},
	} {
		path := filepath.Join(t.TempDir(), "log")
		if err := os.WriteFile(path, []byte(c.content), 0o600); err != nil {
			t.Fatal(err)
		}
		file, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = file.Close() }()
		if err := seekTail(file, c.lines); err != nil {
			t.Fatal(err)
		}
		rest := make([]byte, len(c.content)+1)
		n, _ := file.Read(rest)
		if got := string(rest[:n]); got != c.want {
			t.Errorf("the last %d lines of %.20q: got %.20q, want %.20q", c.lines, c.content, got, c.want)
		}
	}
}
