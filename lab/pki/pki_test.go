package pki_test

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/oidclab/oidclab/lab/pki"
)

func TestServerCertificate(t *testing.T) {
	ca := newCA(t)
	leaf, err := ca.Server("127.0.0.1", "front.lab")
	if err != nil {
		t.Fatal(err)
	}
	cert, err := leaf.TLS()
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, "hello")
	}))
	server.TLS = &tls.Config{Certificates: []tls.Certificate{cert}}
	server.StartTLS()
	defer server.Close()

	dial := func(name string, roots *x509.CertPool) error {
		conn, err := tls.Dial("tcp", server.Listener.Addr().String(), &tls.Config{RootCAs: roots, ServerName: name})
		if err != nil {
			return err
		}
		return conn.Close()
	}
	for _, name := range []string{"127.0.0.1", "front.lab"} {
		if err := dial(name, ca.Pool()); err != nil {
			t.Errorf("as %s: %v", name, err)
		}
	}
	if err := dial("other.lab", ca.Pool()); err == nil {
		t.Error("accepted under a name that is not in the certificate")
	}
	if err := dial("127.0.0.1", newCA(t).Pool()); err == nil {
		t.Error("accepted under another lab's root")
	}
}

func TestServerNeedsAName(t *testing.T) {
	if _, err := newCA(t).Server(); err == nil || !strings.Contains(err.Error(), "needs a name") {
		t.Fatalf("got %v", err)
	}
}

func TestClientCertificateNamesUserAndGroups(t *testing.T) {
	ca := newCA(t)
	leaf, err := ca.Client("admin", "system:masters")
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(leaf.CertPEM)
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	if cert.Subject.CommonName != "admin" || len(cert.Subject.Organization) != 1 || cert.Subject.Organization[0] != "system:masters" {
		t.Errorf("subject %s", cert.Subject)
	}
	if _, err := cert.Verify(x509.VerifyOptions{Roots: ca.Pool(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil {
		t.Errorf("as a client: %v", err)
	}
	if _, err := cert.Verify(x509.VerifyOptions{Roots: ca.Pool(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}); err == nil {
		t.Error("a client certificate passes for a server's")
	}
	if net.ParseIP(cert.Subject.CommonName) != nil || len(cert.DNSNames)+len(cert.IPAddresses) != 0 {
		t.Error("a client certificate names hosts")
	}
}

func newCA(t *testing.T) *pki.CA {
	t.Helper()
	ca, err := pki.New("oidclab test")
	if err != nil {
		t.Fatal(err)
	}
	return ca
}
