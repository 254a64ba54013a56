package kind

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"k8s.io/apimachinery/pkg/util/version"
	"sigs.k8s.io/kind/pkg/apis/config/v1alpha4"

	"github.com/oidclab/oidclab/lab/cluster"
)

// Where a node, and its API server, find what is mounted.
const (
	nodeDir     = "/oidclab"        // files that this package writes
	signerDir   = "/oidclab-signer" // directory of the external signer's socket
	cniFile     = "/etc/cni/net.d/10-oidclab.conflist"
	storageFile = "/kind/manifests/default-storage.yaml"
	keysDir     = "keys" // in nodeDir
)

// managed begins every flag that makes an identity.
const managed = "--service-account-"

// oldest is the first Kubernetes whose API server takes an external signer
// without a feature gate (KEP-740), and whose kubeadm takes lists of arguments.
var oldest = version.MustParseSemantic("v1.36.0")

// argument is a flag of kube-apiserver as kubeadm's v1beta4 has it.
type argument struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

func (a argument) String() string { return "--" + a.Name + "=" + a.Value }

// arguments are the flags of the API server that make an identity. Key files
// are those of a generation: a directory of their own.
func arguments(identity cluster.Identity, generation int) []argument {
	args := []argument{{"service-account-issuer", identity.Issuer}}
	for _, issuer := range identity.AcceptedIssuers {
		args = append(args, argument{"service-account-issuer", issuer})
	}
	args = append(args, argument{"service-account-jwks-uri", identity.JWKSURI})
	if identity.KeyFiles == nil {
		return append(args, argument{"service-account-signing-endpoint", path.Join(signerDir, filepath.Base(identity.SignerSocket))})
	}
	dir := path.Join(nodeDir, keysDir, strconv.Itoa(generation))
	for i := range identity.KeyFiles.PublicKeys {
		args = append(args, argument{"service-account-key-file", path.Join(dir, publicKeyFile(i))})
	}
	return append(args,
		argument{"service-account-signing-key-file", path.Join(dir, signingKeyFile)},
		argument{"service-account-max-token-expiration", cluster.MaxTokenLife.String()},
		argument{"service-account-extend-token-expiration", "false"})
}

const signingKeyFile = "signing.key"

func publicKeyFile(i int) string { return strconv.Itoa(i) + ".pub" }

// writeKeys writes a generation of key files.
func (c *Cluster) writeKeys(identity cluster.Identity, generation int) error {
	if identity.KeyFiles == nil {
		return nil
	}
	files := map[string][]byte{signingKeyFile: identity.KeyFiles.SigningKey}
	for i, key := range identity.KeyFiles.PublicKeys {
		files[publicKeyFile(i)] = key
	}
	return writeFiles(c.keysDir(generation), files)
}

// removeOldKeys removes every generation of key files but the current one.
func (c *Cluster) removeOldKeys() error {
	generations, err := filepath.Glob(filepath.Join(c.mountDir(), keysDir, "*"))
	for _, dir := range generations {
		if dir != c.keysDir(c.generation) {
			err = errors.Join(err, os.RemoveAll(dir))
		}
	}
	return err
}

func (c *Cluster) keysDir(generation int) string {
	return filepath.Join(c.mountDir(), keysDir, strconv.Itoa(generation))
}

// mountDir is the directory that nodes have as nodeDir.
func (c *Cluster) mountDir() string { return filepath.Join(c.config.Dir, "node") }

func writeFiles(dir string, files map[string][]byte) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			return err
		}
	}
	return nil
}

// writeMount writes what the node of a cluster with an identity has as nodeDir.
func (c *Cluster) writeMount(identity cluster.Identity) error {
	authentication, err := cluster.AuthenticationConfig(c.config.Trusts)
	if err != nil {
		return err
	}
	files := map[string][]byte{"authentication.yaml": authentication, "cni.conflist": []byte(cniConfig), "storage.yaml": []byte(storageClass)}
	if err := writeFiles(c.mountDir(), files); err != nil {
		return err
	}
	patches := map[string][]byte{}
	if identity.KeyFiles == nil {
		// kubeadm always sets these, an empty value would not unset them, and the
		// API server refuses them beside an external signer. Nor would anybody
		// believe the tokens that the controller manager would sign.
		patches["kube-apiserver+strategic.json"] = podPatch("kube-apiserver",
			"--service-account-key-file=/etc/kubernetes/pki/sa.pub", "--service-account-signing-key-file=/etc/kubernetes/pki/sa.key")
		patches["kube-controller-manager+strategic.json"] = podPatch("kube-controller-manager",
			"--service-account-private-key-file=/etc/kubernetes/pki/sa.key")
	} else {
		patches["kube-apiserver+strategic.json"] = podPatch("kube-apiserver")
	}
	if err := writeFiles(filepath.Join(c.mountDir(), "patches"), patches); err != nil {
		return err
	}
	return c.writeKeys(identity, c.generation)
}

// podPatch returns a strategic merge patch of a static pod. It takes arguments out
// of its command, and lets nobody wait for its end: watches would keep an API
// server for as long as it may take, and nothing is lost when one is killed.
func podPatch(component string, without ...string) []byte {
	patch, err := json.Marshal(map[string]any{"spec": map[string]any{
		"terminationGracePeriodSeconds": 1,
		"containers":                    []any{map[string]any{"name": component, "$deleteFromPrimitiveList/command": append([]string{}, without...)}},
	}})
	if err != nil {
		panic(err) // strings can be marshalled
	}
	return patch
}

// cniConfig connects the pods of the only node: containernetworking's ptp, and
// portmap for host ports.
const cniConfig = `{
  "cniVersion": "1.0.0",
  "name": "oidclab",
  "plugins": [
    {
      "type": "ptp", "ipMasq": true,
      "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.244.0.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}]}
    },
    {"type": "portmap", "capabilities": {"portMappings": true}}
  ]
}
`

// storageClass takes the place of kind's provisioner of volumes.
const storageClass = `apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata:
  name: standard
provisioner: kubernetes.io/no-provisioner
volumeBindingMode: WaitForFirstConsumer
`

// kindConfig returns kind's description of the cluster with an identity.
func (c *Cluster) kindConfig(identity cluster.Identity) (*v1alpha4.Cluster, error) {
	type volume struct {
		Name      string `json:"name"`
		HostPath  string `json:"hostPath"`
		MountPath string `json:"mountPath"`
		ReadOnly  bool   `json:"readOnly"`
		PathType  string `json:"pathType"`
	}
	type operation struct {
		Op    string `json:"op"`
		Path  string `json:"path"`
		Value any    `json:"value"`
	}
	volumes := []volume{{"oidclab", nodeDir, nodeDir, true, "Directory"}}
	mounts := []v1alpha4.Mount{{HostPath: c.mountDir(), ContainerPath: nodeDir, Readonly: true}}
	if identity.KeyFiles == nil {
		volumes = append(volumes, volume{"oidclab-signer", signerDir, signerDir, true, "Directory"})
		mounts = append(mounts, v1alpha4.Mount{HostPath: filepath.Dir(identity.SignerSocket), ContainerPath: signerDir, Readonly: true})
	}
	if c.config.Plain {
		mounts = append(mounts,
			v1alpha4.Mount{HostPath: filepath.Join(c.mountDir(), "cni.conflist"), ContainerPath: cniFile, Readonly: true},
			v1alpha4.Mount{HostPath: filepath.Join(c.mountDir(), "storage.yaml"), ContainerPath: storageFile, Readonly: true})
	}
	// Not merge patches: of several issuers they would leave the last, without a word.
	operations := []operation{{"add", "/apiServer/extraVolumes", volumes}}
	for _, a := range append(arguments(identity, c.generation), argument{"authentication-config", path.Join(nodeDir, "authentication.yaml")}) {
		operations = append(operations, operation{"add", "/apiServer/extraArgs/-", a})
	}
	// The controller manager has nobody to share the API server with: at 20 requests
	// a second, the accounts and tokens of its controllers would keep it from making
	// the cluster's first account for 5 s. And restarts of the API server end leaders,
	// which kubelet brings back later and later, and make the node look dead.
	noElection := argument{"leader-elect", "false"}
	for _, a := range []argument{{"kube-api-qps", "500"}, {"kube-api-burst", "500"}, {"node-monitor-grace-period", "5m"}, noElection} {
		operations = append(operations, operation{"add", "/controllerManager/extraArgs/-", a})
	}
	operations = append(operations, operation{"add", "/scheduler/extraArgs", []argument{noElection}})
	clusterPatch, err := json.Marshal(operations)
	if err != nil {
		return nil, err
	}
	initPatch, err := json.Marshal([]operation{{"add", "/patches", map[string]string{"directory": path.Join(nodeDir, "patches")}}})
	if err != nil {
		return nil, err
	}
	config := &v1alpha4.Cluster{
		Networking: v1alpha4.Networking{
			IPFamily:          v1alpha4.IPv4Family,
			APIServerAddress:  c.config.Address.String(),
			DisableDefaultCNI: c.config.Plain,
		},
		Nodes: []v1alpha4.Node{{Role: v1alpha4.ControlPlaneRole, Image: c.config.Image, ExtraMounts: mounts}},
		KubeadmConfigPatchesJSON6902: []v1alpha4.PatchJSON6902{
			{Group: "kubeadm.k8s.io", Version: "v1beta4", Kind: "ClusterConfiguration", Patch: string(clusterPatch)},
			{Group: "kubeadm.k8s.io", Version: "v1beta4", Kind: "InitConfiguration", Patch: string(initPatch)},
		},
	}
	if c.kept != nil {
		c.kept.adapt(config)
	}
	c.machine.adapt(config)
	return config, nil
}

// node is what a container of the node image, privileged as nodes are, finds.
type node struct {
	kubernetes  *version.Version
	sysResource bool   // it may have CAP_SYS_RESOURCE
	cgroup      string // version, "1" or "2"
}

// adapt makes a cluster work where nodes are short of something.
func (n node) adapt(config *v1alpha4.Cluster) {
	kubelet := map[string]any{"kind": "KubeletConfiguration"}
	if n.cgroup == "1" {
		kubelet["failCgroupV1"] = false
	}
	if !n.sysResource {
		// Limits and OOM scores can't be raised: the same as in a user namespace.
		kubelet["featureGates"] = map[string]bool{"KubeletInUserNamespace": true}
		config.ContainerdConfigPatches = append(config.ContainerdConfigPatches, "[plugins.\"io.containerd.grpc.v1.cri\"]\n  restrict_oom_score_adj = true\n")
	}
	if len(kubelet) == 1 {
		return
	}
	patch, err := json.Marshal(kubelet)
	if err != nil {
		panic(err) // strings and booleans can be marshalled
	}
	config.KubeadmConfigPatches = append(config.KubeadmConfigPatches, string(patch))
}

// checkArguments compares the command line of a running API server with the
// arguments that make an identity.
func checkArguments(command []string, want []argument) error {
	for _, a := range want {
		if !slices.Contains(command, a.String()) {
			return fmt.Errorf("the API server runs without %s", a)
		}
	}
	for _, arg := range command {
		if strings.HasPrefix(arg, managed) && !slices.ContainsFunc(want, func(a argument) bool { return a.String() == arg }) {
			return fmt.Errorf("the API server runs with %s, which nobody asked for", arg)
		}
	}
	return nil
}
