package probe_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"

	"github.com/oidclab/oidclab/lab/clock"
	"github.com/oidclab/oidclab/lab/pki"
	"github.com/oidclab/oidclab/lab/probe"
	"github.com/oidclab/oidclab/lab/serve"
	"github.com/oidclab/oidclab/lab/sts/oci"
)

const (
	okeCluster  = "ocid1.cluster.oc1..demo"
	okeAudience = "https://kubernetes.default.svc"
	okeObject   = "a/hello world.txt"
	okeContent  = "Hello"
)

// oke is a cluster of OKE whose service account demo/app may read the object.
type oke struct {
	key    *ecdsa.PrivateKey
	issuer string
	bucket string // URL
	config probe.Config
}

// newOKE starts a cluster of OKE, with object storage, and sets what the SDK
// finds in a pod.
func newOKE(t *testing.T) *oke {
	t.Helper()
	ca, err := pki.New("probe_test")
	if err != nil {
		t.Fatal(err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	issuer, storage := listen(t, ca, "127.0.0.1", 0), listen(t, ca, "127.0.0.1", 0)
	issuer.Serve(discovery(issuer.URL(), key))
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: ca.Pool()}}
	t.Cleanup(transport.CloseIdleConnections)
	handler, err := oci.New(oci.Config{
		URL: storage.URL(), Tenancy: "ocid1.tenancy.oc1..demo", Namespace: "axdemo",
		Clusters: []oci.Cluster{{OCID: okeCluster, Compartment: "ocid1.tenancy.oc1..demo", Issuer: issuer.URL(), Audiences: []string{okeAudience}}},
		Buckets: []oci.Bucket{{
			Name: "demo", Objects: map[string][]byte{okeObject: []byte(okeContent)}, Readers: []string{oci.WorkloadOCID(okeCluster, "demo", "app")},
		}},
		Client: &http.Client{Transport: transport}, Clock: clock.New(nil),
	})
	if err != nil {
		t.Fatal(err)
	}
	storage.Serve(handler)
	proxymux, host := listenAtProxymuxPort(t, ca)
	proxymux.Serve(handler.Proxymux())

	dir := t.TempDir()
	caFile := filepath.Join(dir, "ca.crt")
	if err := os.WriteFile(caFile, ca.CertPEM(), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, value := range map[string]string{
		"OCI_RESOURCE_PRINCIPAL_VERSION": "2.2", "OCI_RESOURCE_PRINCIPAL_REGION": "us-ashburn-1", "KUBERNETES_SERVICE_HOST": host,
		"OCI_KUBERNETES_SERVICE_ACCOUNT_CERT_PATH": caFile, "OIDCLAB_OCI_POD_TOKEN_FILE": filepath.Join(dir, "token"),
		"OCI_DEFAULT_CERTS_PATH": caFile, // as SSL_CERT_FILE, which Go reads once per process
	} {
		t.Setenv(name, value)
	}
	return &oke{key, issuer.URL(), storage.URL() + "/n/axdemo/b/demo/o/", probe.Config{Getenv: os.Getenv}}
}

func listen(t *testing.T, ca *pki.CA, host string, port int) *serve.Server {
	t.Helper()
	server, err := tryListen(t, ca, host, port)
	if err != nil {
		t.Fatal(err)
	}
	return server
}

func tryListen(t *testing.T, ca *pki.CA, host string, port int) (*serve.Server, error) {
	t.Helper()
	leaf, err := ca.Server(host)
	if err != nil {
		t.Fatal(err)
	}
	certificate, err := leaf.TLS()
	if err != nil {
		t.Fatal(err)
	}
	server, err := serve.Listen(fmt.Sprintf("%s:%d", host, port), certificate, slog.New(slog.DiscardHandler))
	if err == nil {
		t.Cleanup(func() { _ = server.Close(context.WithoutCancel(t.Context())) }) // the SDK keeps its connections
	}
	return server, err
}

// listenAtProxymuxPort listens at the port that the SDK insists on, on a loopback
// address where nobody else does.
func listenAtProxymuxPort(t *testing.T, ca *pki.CA) (server *serve.Server, host string) {
	t.Helper()
	for i := 254; i > 0; i-- {
		host = fmt.Sprintf("127.12.250.%d", i)
		server, err := tryListen(t, ca, host, oci.ProxymuxPort)
		if errors.As(err, new(*serve.InUseError)) {
			continue
		}
		if err != nil {
			t.Skipf("needs the loopback address %s: %v", host, err)
		}
		return server, host
	}
	t.Fatal("every address is in use")
	return nil, ""
}

// discovery serves the document and the keys of an issuer.
func discovery(issuer string, key *ecdsa.PrivateKey) http.Handler {
	mux := http.NewServeMux()
	for path, document := range map[string]any{
		"/.well-known/openid-configuration": map[string]any{
			"issuer": issuer, "jwks_uri": issuer + "/jwks", "response_types_supported": []string{"id_token"},
			"subject_types_supported": []string{"public"}, "id_token_signing_alg_values_supported": []string{"ES256"},
		},
		"/jwks": jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: key.Public(), KeyID: "k", Algorithm: "ES256", Use: "sig"}}},
	} {
		mux.HandleFunc("GET "+path, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			_ = json.NewEncoder(w).Encode(document)
		})
	}
	return mux
}

// token returns that of a pod of demo/app, with changes to its claims.
func (o *oke) token(t *testing.T, changes map[string]any) string {
	t.Helper()
	return o.signed(t, o.key, changes)
}

func (o *oke) signed(t *testing.T, key *ecdsa.PrivateKey, changes map[string]any) string {
	t.Helper()
	claims := map[string]any{
		"iss": o.issuer, "sub": "system:serviceaccount:demo:app", "aud": []string{okeAudience},
		"iat": time.Now().Unix(), "nbf": time.Now().Unix(), "exp": time.Now().Add(time.Hour).Unix(),
	}
	for name, value := range changes {
		claims[name] = value
	}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: key, KeyID: "k"}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	token, err := jwt.Signed(signer).Claims(claims).Serialize()
	if err != nil {
		t.Fatal(err)
	}
	return token
}

// probe probes with a token, and reads an object unless its name is empty.
func (o *oke) probe(t *testing.T, token, resource string) probe.Result {
	t.Helper()
	if err := os.WriteFile(os.Getenv("OIDCLAB_OCI_POD_TOKEN_FILE"), []byte(token), 0o600); err != nil {
		t.Fatal(err)
	}
	config := o.config
	config.Resource = resource
	return probe.Run(t.Context(), "oci", config)
}

// A pod becomes a principal by any token of its cluster's API server; what it may
// read is up to policies.
func TestOCI(t *testing.T) {
	o := newOKE(t)
	object := o.bucket + "a/hello%20world.txt"
	other := map[string]any{"sub": "system:serviceaccount:demo:other"}
	for resource, want := range map[string]string{object: okeContent, "": ""} {
		got := o.probe(t, o.token(t, nil), resource)
		if got.Error != "" || got.Content != want || got.Identity != oci.WorkloadOCID(okeCluster, "demo", "app") || got.Token.Issuer != o.issuer {
			t.Fatalf("control: %q: %+v", resource, got)
		}
	}
	if got := o.probe(t, o.token(t, other), ""); got.Error != "" || got.Identity != oci.WorkloadOCID(okeCluster, "demo", "other") {
		t.Errorf("control: another account is another principal: %+v", got)
	}

	stranger, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct{ token, resource, want string }{
		"another account":  {o.token(t, other), object, "BucketNotFound"},
		"another object":   {o.token(t, nil), o.bucket + "none", "ObjectNotFound"},
		"another audience": {o.token(t, map[string]any{"aud": "oidclab"}), object, "another audience than the cluster's API server"},
		"another key":      {o.signed(t, stranger, nil), object, "signature is invalid"},
		"nearly over":      {o.token(t, map[string]any{"exp": time.Now().Add(time.Minute).Unix()}), object, "service token expired"}, // says the SDK
		"no JWT":           {"s3cret.s3cret", object, `string "[token]"`},
		"no https":         {o.token(t, nil), strings.Replace(object, "https", "http", 1), "is not https://HOST/n/NAMESPACE/b/BUCKET/o/OBJECT"},
		"no object":        {o.token(t, nil), o.bucket, "is not https://"},
		"no host":          {o.token(t, nil), "https:///n/axdemo/b/demo/o/a", "is not https://"},
		"of another API":   {o.token(t, nil), strings.Replace(object, "/b/", "/buckets/", 1), "is not https://"},
	} {
		t.Run(name, func(t *testing.T) {
			got := o.probe(t, test.token, test.resource)
			line, err := got.Line()
			if err != nil || !strings.Contains(got.Error, test.want) || got.Identity != "" || got.Content != "" {
				t.Errorf("got %+v, %v; want %q", got, err, test.want)
			}
			if strings.Contains(string(line), test.token) {
				t.Errorf("the token is in the line: %s", line)
			}
		})
	}
}
