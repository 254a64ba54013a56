package lab

import (
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"syscall"

	"github.com/oidclab/oidclab/fixtures"
	"github.com/oidclab/oidclab/lab/proxy"
	"github.com/oidclab/oidclab/lab/serve"
	"github.com/oidclab/oidclab/lab/sts/oci"
)

// OKEPods is what the lab lacks if Info.Absent says so under this name: the
// endpoint at which pods of OKE get their identity.
const OKEPods = "oke"

// startOCI starts Oracle's identity domain and object storage, with a service
// user for each cluster, and the endpoint for the pods of clusters.
func (l *Lab) startOCI(u *undo) error {
	server, err := l.listen(u, "oci", 0)
	if err != nil {
		return err
	}
	server.WithoutHTTP2()
	l.info.OCI = OCIInfo{
		URL: server.URL(), Region: fixtures.OCIRegion, Audience: fixtures.OCIAudience, Clients: map[string]OCIClient{},
		Namespace: fixtures.OCINamespace, Bucket: fixtures.Bucket, Object: fixtures.Object, PodAudiences: map[string]string{},
	}
	config := oci.Config{
		URL: server.URL(), Tenancy: fixtures.OCITenancy, Namespace: fixtures.OCINamespace,
		Client: l.client, Clock: l.Clock, Trace: l.Trace,
	}
	bucket := oci.Bucket{Name: fixtures.Bucket, Objects: map[string][]byte{fixtures.Object: []byte(fixtures.ObjectContent)}}
	for _, m := range l.members {
		client := oci.OAuthClient{ID: fixtures.OCIClientID(m.id), Secret: rand.Text()}
		file := filepath.Join(m.dir, "oci-client-secret")
		if err := errors.Join(os.MkdirAll(m.dir, 0o700), os.WriteFile(file, []byte(client.Secret), 0o600)); err != nil {
			return err
		}
		l.info.OCI.Clients[m.id] = OCIClient{ID: client.ID, SecretFile: file}
		config.Clients = append(config.Clients, client)
		user, cluster := fixtures.OCIUser(m.id), fixtures.OCICluster(m.id)
		config.Trusts = append(config.Trusts, oci.Trust{
			Name: m.id, Issuer: m.issuer, Audiences: []string{fixtures.OCIAudience}, Clients: []string{client.ID},
			ServiceUsers: []oci.ServiceUser{{OCID: user, Rule: "sub eq " + fixtures.Subject}},
		})
		// An API server that is not told its audiences is its issuer's.
		l.info.OCI.PodAudiences[m.id] = m.issuer
		config.Clusters = append(config.Clusters, oci.Cluster{OCID: cluster, Compartment: fixtures.OCITenancy, Issuer: m.issuer, Audiences: []string{m.issuer}})
		bucket.Readers = append(bucket.Readers, user, oci.WorkloadOCID(cluster, fixtures.Namespace, fixtures.ServiceAccount))
	}
	config.Buckets = []oci.Bucket{bucket}
	handler, err := oci.New(config)
	if err != nil {
		return err
	}
	server.Serve(handler)
	l.parties = append(l.parties, party{name: "oci", cache: oci.Profile().Cache, keys: handler.Core().Cached})
	for _, host := range []string{"*.identity.oraclecloud.com", "objectstorage.*.oraclecloud.com"} {
		l.hosts = append(l.hosts, proxy.Host{Pattern: host, Handler: handler, NoHTTP2: true})
	}
	return l.startProxymux(u, handler)
}

// startProxymux listens at the port that Oracle's SDK insists on. Every lab
// needs an address of its own for it; where there is none, it goes without.
func (l *Lab) startProxymux(u *undo, handler *oci.Handler) error {
	for _, host := range l.proxymuxHosts() {
		server, err := l.listenAt(u, "oke", host, oci.ProxymuxPort)
		switch {
		case errors.As(err, new(*serve.InUseError)):
			continue
		case errors.Is(err, syscall.EADDRNOTAVAIL):
			l.info.Absent[OKEPods] = fmt.Sprintf("port %d is taken, and this machine has no further loopback address %s", oci.ProxymuxPort, host)
			return nil
		case err != nil:
			return err
		}
		server.Serve(handler.Proxymux())
		l.info.OCI.PodHost = host
		return nil
	}
	l.info.Absent[OKEPods] = fmt.Sprintf("port %d is taken on every address of the lab", oci.ProxymuxPort)
	return nil
}

// proxymuxHosts are the addresses to try: on the loopback interface, one for
// each of many labs (RFC 1122 section 3.2.1.3: 127.0.0.0/8 is all loopback).
func (l *Lab) proxymuxHosts() []string {
	hosts := []string{l.address}
	if l.address == loopback {
		for i := 1; i < 255; i++ {
			hosts = append(hosts, "127.12.250."+strconv.Itoa(i))
		}
	}
	return hosts
}
