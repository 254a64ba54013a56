package embedded

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"github.com/oidclab/oidclab/lab/cluster"
	"github.com/oidclab/oidclab/lab/keys"
	"github.com/oidclab/oidclab/lab/pki"
)

// Names in a cluster's directory, which is the components' working directory.
const (
	caFile                = "ca.crt"
	certFile              = "apiserver.crt"
	keyFile               = "apiserver.key"
	signingKeyFile        = "sa.key"
	authenticationFile    = "authentication.yaml"
	controllerManagerFile = "controller-manager.kubeconfig"
	schedulerFile         = "scheduler.kubeconfig"
	nodeFile              = "node.kubeconfig"
	nodeCertFile          = "node.crt" // of its server of logs
	nodeKeyFile           = "node.key"
	nodeClientCertFile    = "node-client.crt" // of the API server, which asks for logs
	nodeClientKeyFile     = "node-client.key"
	podsDir               = "pods"
	etcdData              = "etcd"
	etcdSocket            = "etcd.sock"
	etcdPeerSocket        = "etcd-peer.sock"
)

// apiServerNodeClient is the user by whose name the API server asks the node
// agent for logs (nodeagent.APIServerUser).
const apiServerNodeClient = "kube-apiserver-kubelet-client"

// publicKeyFile names the i-th key file, oldest first.
func publicKeyFile(i int) string { return "sa-" + strconv.Itoa(i) + ".pub" }

// maxSocketPath is what fits into sun_path with its final zero byte (unix(7)).
const maxSocketPath = 107

// serviceIP is the first address of serviceRange, which Kubernetes gives to its
// own API.
const (
	serviceRange = "10.96.0.0/16"
	serviceIP    = "10.96.0.1"
)

// files is a cluster's directory.
type files struct{ dir string }

type credentials struct {
	admin      *rest.Config
	kubeconfig []byte // of the same administrator
}

func newFiles(dir string) (files, error) {
	if socket := filepath.Join(dir, etcdSocket); len(socket) > maxSocketPath {
		return files{}, fmt.Errorf("the socket path %s has %d bytes, but unix(7) allows %d; use a shorter state directory", socket, len(socket), maxSocketPath)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return files{}, err
	}
	return files{dir: dir}, nil
}

// logFile returns where a component logs.
func (f files) logFile(component string) string { return filepath.Join(f.dir, component+".log") }

// write makes a certificate authority for the cluster and writes what the
// components read.
func (f files) write(config Config, port int) (credentials, error) {
	id := config.Identity.ID
	ca, err := pki.New("oidclab cluster " + id)
	if err != nil {
		return credentials{}, err
	}
	serving, err := ca.Server("127.0.0.1", "localhost", serviceIP,
		"kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local")
	if err != nil {
		return credentials{}, err
	}
	admin, err := ca.Client("oidclab-admin", "system:masters")
	if err != nil {
		return credentials{}, err
	}
	node, err := ca.Server("127.0.0.1")
	if err != nil {
		return credentials{}, err
	}
	nodeClient, err := ca.Client(apiServerNodeClient)
	if err != nil {
		return credentials{}, err
	}
	authentication, err := cluster.AuthenticationConfig(config.Trusts)
	if err != nil {
		return credentials{}, err
	}
	content := map[string][]byte{
		caFile:             ca.CertPEM(),
		certFile:           serving.CertPEM,
		keyFile:            serving.KeyPEM,
		nodeCertFile:       node.CertPEM,
		nodeKeyFile:        node.KeyPEM,
		nodeClientCertFile: nodeClient.CertPEM,
		nodeClientKeyFile:  nodeClient.KeyPEM,
		authenticationFile: authentication,
	}
	server := "https://127.0.0.1:" + strconv.Itoa(port)
	for _, user := range []struct{ file, name, group string }{
		// An administrator too. Controllers with service accounts of their own would
		// have tokens signed that nobody asked for, and lose them when keys rotate.
		{controllerManagerFile, "system:kube-controller-manager", "system:masters"},
		{schedulerFile, "system:kube-scheduler", ""},
		{nodeFile, "system:node:" + nodeName(id), "system:nodes"},
	} {
		client, err := ca.Client(user.name, user.group)
		if err != nil {
			return credentials{}, err
		}
		if content[user.file], err = kubeconfig("oidclab-"+id, server, ca.CertPEM(), client); err != nil {
			return credentials{}, err
		}
	}
	adminKubeconfig, err := kubeconfig("oidclab-"+id, server, ca.CertPEM(), admin)
	if err != nil {
		return credentials{}, err
	}
	for name, content := range content {
		if err := os.WriteFile(filepath.Join(f.dir, name), content, 0o600); err != nil {
			return credentials{}, err
		}
	}
	return credentials{
		admin: &rest.Config{Host: server, TLSClientConfig: rest.TLSClientConfig{
			CAData: ca.CertPEM(), CertData: admin.CertPEM, KeyData: admin.KeyPEM,
		}},
		kubeconfig: adminKubeconfig,
	}, nil
}

// removeData removes the cluster's objects, and what its pods left.
func (f files) removeData() error {
	return errors.Join(os.RemoveAll(filepath.Join(f.dir, etcdData)), os.RemoveAll(filepath.Join(f.dir, podsDir)))
}

// writeKeys writes the key files of an API server that signs by itself, and
// leaves no others; nil means that it does not.
func (f files) writeKeys(keyFiles *keys.Files) error {
	if keyFiles == nil {
		return nil
	}
	if err := os.WriteFile(filepath.Join(f.dir, signingKeyFile), keyFiles.SigningKey, 0o600); err != nil {
		return err
	}
	for i, public := range keyFiles.PublicKeys {
		if err := os.WriteFile(filepath.Join(f.dir, publicKeyFile(i)), public, 0o600); err != nil {
			return err
		}
	}
	for i := len(keyFiles.PublicKeys); ; i++ {
		if err := os.Remove(filepath.Join(f.dir, publicKeyFile(i))); errors.Is(err, fs.ErrNotExist) {
			return nil
		} else if err != nil {
			return err
		}
	}
}

// kubeconfig returns a kubeconfig that needs no other file.
func kubeconfig(name, server string, ca []byte, client pki.Leaf) ([]byte, error) {
	config := clientcmdapi.NewConfig()
	config.Clusters[name] = &clientcmdapi.Cluster{Server: server, CertificateAuthorityData: ca}
	config.AuthInfos[name] = &clientcmdapi.AuthInfo{ClientCertificateData: client.CertPEM, ClientKeyData: client.KeyPEM}
	config.Contexts[name] = &clientcmdapi.Context{Cluster: name, AuthInfo: name}
	config.CurrentContext = name
	content, err := clientcmd.Write(*config)
	if err != nil {
		return nil, fmt.Errorf("kubeconfig: %w", err)
	}
	return content, nil
}
