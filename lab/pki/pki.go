// Package pki makes the certificates of one lab: a root that lives as long as
// the lab, and leaves for its servers and clients. Nothing is reused between
// labs, and no private key of a root ever leaves the process.
package pki

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"time"
)

// lifetime of root and leaves: longer than any lab, far shorter than a mistake.
const lifetime = 30 * 24 * time.Hour

// backdate keeps new certificates valid for peers whose clock is behind.
const backdate = 5 * time.Minute

// CA is a certificate authority with an ECDSA P-256 key. Make one with New.
type CA struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pem  []byte
}

// Leaf is a certificate and its private key (PKCS #8), both PEM.
type Leaf struct {
	CertPEM []byte
	KeyPEM  []byte
}

// New returns a certificate authority of the given common name.
func New(commonName string) (*CA, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("pki: key of %s: %w", commonName, err)
	}
	template, err := newTemplate(commonName, time.Now(), lifetime)
	if err != nil {
		return nil, err
	}
	template.IsCA = true
	template.BasicConstraintsValid = true
	template.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageCRLSign | x509.KeyUsageDigitalSignature
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("pki: certificate of %s: %w", commonName, err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("pki: certificate of %s: %w", commonName, err)
	}
	return &CA{cert: cert, key: key, pem: encodeCert(der)}, nil
}

// CertPEM returns the root certificate.
func (c *CA) CertPEM() []byte { return append([]byte(nil), c.pem...) }

// Pool returns a new pool that holds just the root certificate.
func (c *CA) Pool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(c.cert)
	return pool
}

// Server returns a certificate for a server that is reached by the given
// names, which are DNS names or IP addresses. At least one is needed.
func (c *CA) Server(names ...string) (Leaf, error) { return c.server(time.Now(), lifetime, names) }

func (c *CA) server(now time.Time, life time.Duration, names []string) (Leaf, error) {
	if len(names) == 0 {
		return Leaf{}, fmt.Errorf("pki: a server certificate needs a name")
	}
	template, err := newTemplate(names[0], now, life)
	if err != nil {
		return Leaf{}, err
	}
	template.KeyUsage = x509.KeyUsageDigitalSignature
	template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	for _, name := range names {
		if ip := net.ParseIP(name); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, name)
		}
	}
	return c.issue(template)
}

// Client returns a client certificate. Kubernetes takes the common name as the
// user and the organizations as its groups.
func (c *CA) Client(commonName string, organizations ...string) (Leaf, error) {
	template, err := newTemplate(commonName, time.Now(), lifetime)
	if err != nil {
		return Leaf{}, err
	}
	template.Subject.Organization = organizations
	template.KeyUsage = x509.KeyUsageDigitalSignature
	template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	return c.issue(template)
}

func (c *CA) issue(template *x509.Certificate) (Leaf, error) {
	name := template.Subject.CommonName
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return Leaf{}, fmt.Errorf("pki: key of %s: %w", name, err)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, c.cert, key.Public(), c.key)
	if err != nil {
		return Leaf{}, fmt.Errorf("pki: certificate of %s: %w", name, err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return Leaf{}, fmt.Errorf("pki: key of %s: %w", name, err)
	}
	return Leaf{
		CertPEM: encodeCert(der),
		KeyPEM:  pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}),
	}, nil
}

// TLS returns the leaf as crypto/tls wants it.
func (l Leaf) TLS() (tls.Certificate, error) {
	cert, err := tls.X509KeyPair(l.CertPEM, l.KeyPEM)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("pki: %w", err)
	}
	return cert, nil
}

func newTemplate(commonName string, now time.Time, life time.Duration) (*x509.Certificate, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, fmt.Errorf("pki: serial number: %w", err)
	}
	return &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{CommonName: commonName},
		NotBefore:    now.Add(-backdate),
		NotAfter:     now.Add(life),
	}, nil
}

func encodeCert(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}
