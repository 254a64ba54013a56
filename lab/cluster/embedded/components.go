package embedded

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/oidclab/oidclab/lab/cluster"
	"github.com/oidclab/oidclab/lab/proc"
)

// stopGrace is how long a component may take to end by itself. Nothing is lost
// when one is killed.
const stopGrace = 250 * time.Millisecond

// controllers is what workloads need on a node that is always there.
var controllers = []string{
	"clusterrole-aggregation-controller",
	"cronjob-controller",
	"deployment-controller",
	"garbage-collector-controller",
	"job-controller",
	"namespace-controller",
	"pod-garbage-collector-controller",
	"replicaset-controller",
	"root-ca-certificate-publisher-controller",
	"serviceaccount-controller",
	"serviceaccount-token-controller",
}

// spec describes a component. Paths in its flags are relative to the cluster's
// directory.
func (c *Cluster) spec(component string, ready func(context.Context) error, flags ...string) proc.Spec {
	args := append(append([]string{}, c.config.Command[1:]...), component)
	return proc.Spec{
		Name:      component,
		Path:      c.config.Command[0],
		Args:      append(args, flags...),
		Dir:       c.files.dir,
		LogFile:   c.files.logFile(component),
		Ready:     ready,
		Restart:   proc.Always,
		StopGrace: stopGrace,
	}
}

func (c *Cluster) etcdSpec() proc.Spec {
	socket := filepath.Join(c.files.dir, etcdSocket)
	client := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		},
	}}
	ready := func(ctx context.Context) error { return get(ctx, client, "http://etcd/readyz") }
	return c.spec("etcd", ready,
		"--data-dir="+etcdData,
		"--client-socket="+etcdSocket,
		"--peer-socket="+etcdPeerSocket,
	)
}

func (c *Cluster) apiServerSpec(identity cluster.Identity) proc.Spec {
	spec := c.spec("kube-apiserver", c.api.Ready,
		"--secure-port="+strconv.Itoa(c.port), // for what it says of itself; it serves on the inherited listener
		"--advertise-address=127.0.0.1",
		"--endpoint-reconciler-type=none",
		"--etcd-servers=unix://"+etcdSocket,
		"--service-cluster-ip-range="+serviceRange,
		"--tls-cert-file="+certFile,
		"--tls-private-key-file="+keyFile,
		"--client-ca-file="+caFile,
		"--authentication-config="+authenticationFile,
		"--authorization-mode=Node,RBAC",
		"--enable-admission-plugins=NodeRestriction",
		"--disable-admission-plugins=TaintNodesByCondition", // no controller would take the taint away again
		"--kubelet-certificate-authority="+caFile,
		"--kubelet-client-certificate="+nodeClientCertFile,
		"--kubelet-client-key="+nodeClientKeyFile,
		"--service-account-jwks-uri="+identity.JWKSURI,
		"--allow-privileged=true",
		"--profiling=false",
	)
	for _, issuer := range append([]string{identity.Issuer}, identity.AcceptedIssuers...) {
		spec.Args = append(spec.Args, "--service-account-issuer="+issuer)
	}
	spec.Args = append(spec.Args, signingFlags(identity)...)
	spec.ExtraFiles = []*os.File{c.listener}
	return spec
}

func signingFlags(identity cluster.Identity) []string {
	if identity.KeyFiles == nil {
		return []string{"--service-account-signing-endpoint=" + identity.SignerSocket}
	}
	flags := []string{
		"--service-account-signing-key-file=" + signingKeyFile,
		"--service-account-max-token-expiration=" + cluster.MaxTokenLife.String(),
		"--service-account-extend-token-expiration=false",
	}
	for i := range identity.KeyFiles.PublicKeys {
		flags = append(flags, "--service-account-key-file="+publicKeyFile(i))
	}
	return flags
}

func (c *Cluster) controllerManagerSpec() proc.Spec {
	return c.spec("kube-controller-manager", c.defaultNamespaceReady,
		"--kubeconfig="+controllerManagerFile,
		"--controllers="+strings.Join(controllers, ","),
		"--root-ca-file="+caFile,
		"--leader-elect=false",
		"--secure-port=0",
		"--profiling=false",
	)
}

// nodeName is the name of a cluster's only node.
func nodeName(cluster string) string { return cluster + "-node" }

func (c *Cluster) nodeAgentSpec() proc.Spec {
	spec := c.spec("node-agent", nil, // pods wait for it by themselves
		"--node="+nodeName(c.config.Identity.ID),
		"--kubeconfig="+nodeFile,
		"--scheduler-kubeconfig="+schedulerFile,
		"--tls-cert-file="+nodeCertFile,
		"--tls-private-key-file="+nodeKeyFile,
		"--client-ca-file="+caFile,
		"--dir="+podsDir,
	)
	for _, part := range append(append([]string{}, c.config.Command...), "container") {
		spec.Args = append(spec.Args, "--sandbox-command="+part)
	}
	return spec
}

// defaultNamespaceReady returns nil once the controllers have made what every
// pod of the default namespace needs.
func (c *Cluster) defaultNamespaceReady(ctx context.Context) error {
	core := c.api.Kubernetes().CoreV1()
	if _, err := core.ServiceAccounts(metav1.NamespaceDefault).Get(ctx, "default", metav1.GetOptions{}); err != nil {
		return err
	}
	_, err := core.ConfigMaps(metav1.NamespaceDefault).Get(ctx, "kube-root-ca.crt", metav1.GetOptions{})
	return err
}

func get(ctx context.Context, client *http.Client, url string) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	response, err := client.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("GET %s: %s", url, response.Status)
	}
	return nil
}
