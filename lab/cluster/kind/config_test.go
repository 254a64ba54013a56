package kind

import (
	"encoding/json"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/strategicpatch"
	"k8s.io/apimachinery/pkg/util/version"
	"sigs.k8s.io/yaml"

	"github.com/oidclab/oidclab/lab/cluster"
	"github.com/oidclab/oidclab/lab/keys"
)

func signed() cluster.Identity {
	return cluster.Identity{ID: "c1", Issuer: "https://issuer.example", JWKSURI: "https://issuer.example/keys", SignerSocket: "/lab/c1/signer.sock"}
}

func selfSigned() cluster.Identity {
	return cluster.Identity{
		ID: "c1", Issuer: "https://issuer.example", AcceptedIssuers: []string{"https://old.example", "https://older.example"}, JWKSURI: "https://issuer.example/keys",
		KeyFiles: &keys.Files{SigningKey: []byte("private"), PublicKeys: [][]byte{[]byte("first"), []byte("second")}, KeyIDs: []string{"1", "2"}},
	}
}

func flagsOf(args []argument) []string {
	var flags []string
	for _, a := range args {
		flags = append(flags, a.String())
	}
	return flags
}

func TestArguments(t *testing.T) {
	for name, c := range map[string]struct {
		identity cluster.Identity
		want     []string
	}{
		"external signer": {signed(), []string{
			"--service-account-issuer=https://issuer.example",
			"--service-account-jwks-uri=https://issuer.example/keys",
			"--service-account-signing-endpoint=/oidclab-signer/signer.sock",
		}},
		"key files, former issuers": {selfSigned(), []string{
			"--service-account-issuer=https://issuer.example",
			"--service-account-issuer=https://old.example",
			"--service-account-issuer=https://older.example",
			"--service-account-jwks-uri=https://issuer.example/keys",
			"--service-account-key-file=/oidclab/keys/3/0.pub",
			"--service-account-key-file=/oidclab/keys/3/1.pub",
			"--service-account-signing-key-file=/oidclab/keys/3/signing.key",
			"--service-account-max-token-expiration=24h0m0s",
			"--service-account-extend-token-expiration=false",
		}},
	} {
		if got := flagsOf(arguments(c.identity, 3)); !slices.Equal(got, c.want) {
			t.Errorf("%s: got %q", name, got)
		}
	}
}

func TestCheckArguments(t *testing.T) {
	want := arguments(signed(), 0)
	running := append([]string{"kube-apiserver", "--secure-port=6443"}, flagsOf(want)...)
	if err := checkArguments(running, want); err != nil {
		t.Errorf("control: %v", err)
	}
	for name, c := range map[string]struct {
		running []string
		says    string
	}{
		"a flag was dropped":     {running[:len(running)-1], "without --service-account-signing-endpoint"},
		"another issuer":         {append([]string{"--service-account-issuer=https://kubernetes.default.svc"}, running...), "with --service-account-issuer=https://kubernetes"},
		"key files are left":     {append(slices.Clone(running), "--service-account-key-file=/etc/kubernetes/pki/sa.pub"), "which nobody asked for"},
		"there is no API server": {nil, "without --service-account-issuer"},
	} {
		if err := checkArguments(c.running, want); err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: got %v, want an error that says %q", name, err, c.says)
		}
	}
}

// staticPod is an API server as kubeadm 1.36 sets one up, in short.
const staticPod = `{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "kube-apiserver"}, "spec": {"hostNetwork": true, "containers": [{
  "name": "kube-apiserver", "image": "kube-apiserver:v1", "command": ["kube-apiserver", "--secure-port=6443",
  "--service-account-key-file=/etc/kubernetes/pki/sa.pub", "--service-account-signing-key-file=/etc/kubernetes/pki/sa.key",
  "--service-account-issuer=https://old.example"]}]}}`

func command(t *testing.T, pod []byte) []string {
	t.Helper()
	var p corev1.Pod
	if err := yaml.Unmarshal(pod, &p); err != nil {
		t.Fatal(err)
	}
	if len(p.Spec.Containers) != 1 || p.Spec.Containers[0].Image != "kube-apiserver:v1" || !p.Spec.HostNetwork {
		t.Fatalf("the rest of the pod has changed: %s", pod)
	}
	return p.Spec.Containers[0].Command
}

// kubeadm applies the patches with the same library.
func TestPodPatch(t *testing.T) {
	keyFiles := []string{"--service-account-key-file=/etc/kubernetes/pki/sa.pub", "--service-account-signing-key-file=/etc/kubernetes/pki/sa.key"}
	for name, c := range map[string]struct{ without, want []string }{
		"external signer": {keyFiles, []string{"kube-apiserver", "--secure-port=6443", "--service-account-issuer=https://old.example"}},
		"key files":       {nil, append(append([]string{"kube-apiserver", "--secure-port=6443"}, keyFiles...), "--service-account-issuer=https://old.example")},
	} {
		patched, err := strategicpatch.StrategicMergePatch([]byte(staticPod), podPatch("kube-apiserver", c.without...), corev1.Pod{})
		if err != nil {
			t.Fatal(err)
		}
		if got := command(t, patched); !slices.Equal(got, c.want) {
			t.Errorf("%s: got %q, want %q", name, got, c.want)
		}
		var pod corev1.Pod
		if err := yaml.Unmarshal(patched, &pod); err != nil || pod.Spec.TerminationGracePeriodSeconds == nil || *pod.Spec.TerminationGracePeriodSeconds != 1 {
			t.Errorf("%s: the grace is %v (%v)", name, pod.Spec.TerminationGracePeriodSeconds, err)
		}
	}
}

func TestWithArguments(t *testing.T) {
	changed, err := withArguments([]byte(staticPod), arguments(selfSigned(), 1))
	if err != nil {
		t.Fatal(err)
	}
	want := append([]string{"kube-apiserver", "--secure-port=6443"}, flagsOf(arguments(selfSigned(), 1))...)
	if got := command(t, changed); !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	for name, content := range map[string]string{"not a pod": "[", "no container": "{}"} {
		if _, err := withArguments([]byte(content), nil); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func newCluster(t *testing.T, identity cluster.Identity) *Cluster {
	t.Helper()
	c := &Cluster{identity: identity, machine: node{version.MustParseSemantic("v1.36.1"), true, "2"}, config: Config{
		Identity: identity, Dir: t.TempDir(), Image: "node:v1", Network: "oidclab-x-12345", Address: netip.MustParseAddr("172.18.0.1"), Plain: true,
	}}
	if err := c.writeMount(identity); err != nil {
		t.Fatal(err)
	}
	return c
}

// What the nodes have mounted is for them and this user alone.
func TestMount(t *testing.T) {
	for name, c := range map[string]struct {
		identity cluster.Identity
		want     []string
	}{
		"external signer": {signed(), []string{
			"authentication.yaml", "cni.conflist", "patches/kube-apiserver+strategic.json", "patches/kube-controller-manager+strategic.json", "storage.yaml",
		}},
		"key files": {selfSigned(), []string{"authentication.yaml", "cni.conflist", "keys/0/0.pub", "keys/0/1.pub", "keys/0/signing.key", "patches/kube-apiserver+strategic.json", "storage.yaml"}},
	} {
		dir := newCluster(t, c.identity).mountDir()
		var got []string
		err := filepath.WalkDir(dir, func(path string, entry os.DirEntry, err error) error {
			if err != nil {
				return err
			}
			info, err := entry.Info()
			if err != nil {
				return err
			}
			if info.Mode().Perm()&0o077 != 0 {
				t.Errorf("%s: %s has mode %#o", name, path, info.Mode().Perm())
			}
			if !entry.IsDir() {
				relative, err := filepath.Rel(dir, path)
				got = append(got, relative)
				return err
			}
			return nil
		})
		if err != nil || !slices.Equal(got, c.want) {
			t.Errorf("%s: got %q (%v), want %q", name, got, err, c.want)
		}
	}
}

// A healthy host gets kind's defaults; what one lacks is made up for.
func TestAdapt(t *testing.T) {
	kubernetes := version.MustParseSemantic("v1.36.1")
	for name, c := range map[string]struct {
		node       node
		kubelet    string // the patch of its configuration
		containerd bool
	}{
		"full":                   {node{kubernetes, true, "2"}, "", false},
		"cgroup v1":              {node{kubernetes, true, "1"}, `{"failCgroupV1":false,"kind":"KubeletConfiguration"}`, false},
		"without SYS_RESOURCE":   {node{kubernetes, false, "2"}, `{"featureGates":{"KubeletInUserNamespace":true},"kind":"KubeletConfiguration"}`, true},
		"without, and cgroup v1": {node{kubernetes, false, "1"}, `{"failCgroupV1":false,"featureGates":{"KubeletInUserNamespace":true},"kind":"KubeletConfiguration"}`, true},
	} {
		adapted := newCluster(t, signed())
		adapted.machine = c.node
		config, err := adapted.kindConfig(signed())
		if err != nil {
			t.Fatal(err)
		}
		if got := strings.Join(config.KubeadmConfigPatches, "\n"); got != c.kubelet {
			t.Errorf("%s: got kubelet patch %s, want %s", name, got, c.kubelet)
		}
		if got := strings.Contains(strings.Join(config.ContainerdConfigPatches, ""), "restrict_oom_score_adj = true"); got != c.containerd {
			t.Errorf("%s: containerd is patched: %t", name, got)
		}
	}
}

func TestKindConfig(t *testing.T) {
	c := newCluster(t, selfSigned())
	config, err := c.kindConfig(selfSigned())
	if err != nil {
		t.Fatal(err)
	}
	if config.Networking.APIServerAddress != "172.18.0.1" || !config.Networking.DisableDefaultCNI || len(config.Nodes) != 1 || config.Nodes[0].Image != "node:v1" {
		t.Errorf("got %+v", config)
	}
	for _, m := range config.Nodes[0].ExtraMounts {
		if !m.Readonly || m.ContainerPath == signerDir {
			t.Errorf("mount %+v: the node may write to it, or has a signer that nobody needs", m)
		}
	}
	var operations []struct {
		Path  string
		Value json.RawMessage
	}
	if err := json.Unmarshal([]byte(config.KubeadmConfigPatchesJSON6902[0].Patch), &operations); err != nil {
		t.Fatal(err)
	}
	var flags []string
	for _, o := range operations {
		var a argument
		if o.Path == "/apiServer/extraArgs/-" && json.Unmarshal(o.Value, &a) == nil {
			flags = append(flags, a.String())
		}
	}
	if want := append(flagsOf(arguments(selfSigned(), 0)), "--authentication-config=/oidclab/authentication.yaml"); !slices.Equal(flags, want) {
		t.Errorf("got %q, want %q", flags, want)
	}
	c.config.Plain = false
	if config, err = c.kindConfig(selfSigned()); err != nil || config.Networking.DisableDefaultCNI || len(config.Nodes[0].ExtraMounts) != 1 {
		t.Errorf("with kind's own network: %+v (%v)", config, err)
	}
	c.kept = &kept{35123, "/ca"}
	if config, err = c.kindConfig(selfSigned()); err != nil || config.Networking.APIServerPort != 35123 || len(config.Nodes[0].ExtraMounts) != 3 {
		t.Errorf("made anew: %+v (%v)", config, err)
	}
}

func TestBeforeDocker23(t *testing.T) {
	for version, want := range map[string]bool{"20.10.24+dfsg1": true, "23.0.0": false, "28.2.2": false, "dev": false} {
		if got := beforeDocker23(version); got != want {
			t.Errorf("%s: got %t", version, got)
		}
	}
}

func TestTidied(t *testing.T) {
	for message, want := range map[string]string{
		" • Preparing nodes 📦   ...\n":   "Preparing nodes    ...",
		" ✓ Starting control-plane 🕹️\n": "Starting control-plane",
		"plain":                          "plain",
	} {
		if got := tidied(message); got != want {
			t.Errorf("%q: got %q, want %q", message, got, want)
		}
	}
}
