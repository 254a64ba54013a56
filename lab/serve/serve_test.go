package serve_test

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/oidclab/oidclab/lab/pki"
	"github.com/oidclab/oidclab/lab/serve"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestServeAndClose(t *testing.T) {
	ca, cert := newCertificate(t)
	server, err := serve.Listen("127.0.0.1:0", cert, nil)
	if err != nil {
		t.Fatal(err)
	}
	server.Serve(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "hello") }))
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: ca.Pool()}}}
	defer client.CloseIdleConnections()

	response, err := client.Get(server.URL())
	if err != nil {
		t.Fatal(err)
	}
	body, _ := io.ReadAll(response.Body)
	_ = response.Body.Close()
	if string(body) != "hello" {
		t.Errorf("body %q", body)
	}
	closeTwice(t, server)
	if _, err := client.Get(server.URL()); err == nil {
		t.Error("answered after Close")
	}
}

func TestCertificateOfEachHandshake(t *testing.T) {
	ca, first := newCertificate(t)
	leaf, err := ca.Server("127.0.0.1")
	if err != nil {
		t.Fatal(err)
	}
	second, err := leaf.TLS()
	if err != nil {
		t.Fatal(err)
	}
	server, err := serve.Listen("127.0.0.1:0", first, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer closeTwice(t, server)
	var current atomic.Pointer[tls.Certificate]
	server.WithCertificate(func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return current.Load(), nil })
	server.Serve(http.NotFoundHandler())
	for _, want := range []tls.Certificate{first, second} {
		current.Store(&want)
		connection, err := tls.Dial("tcp", strings.TrimPrefix(server.URL(), "https://"), &tls.Config{RootCAs: ca.Pool()})
		if err != nil {
			t.Fatal(err)
		}
		if got := connection.ConnectionState().PeerCertificates[0]; !got.Equal(want.Leaf) {
			t.Errorf("certificate %s, want %s", got.SerialNumber, want.Leaf.SerialNumber)
		}
		_ = connection.Close()
	}
}

func TestCloseCutsRequestsWhenTheContextEnds(t *testing.T) {
	ca, cert := newCertificate(t)
	server, err := serve.Listen("127.0.0.1:0", cert, nil)
	if err != nil {
		t.Fatal(err)
	}
	entered := make(chan struct{})
	server.Serve(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		close(entered)
		<-r.Context().Done()
	}))
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: ca.Pool()}}}
	defer client.CloseIdleConnections()
	result := make(chan error, 1)
	go func() {
		response, err := client.Get(server.URL())
		if err == nil {
			_ = response.Body.Close()
		}
		result <- err
	}()
	<-entered
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := server.Close(ctx); err != nil {
		t.Error(err)
	}
	if err := <-result; err == nil {
		t.Error("the request outlived Close")
	}
}

func TestListenOnATakenPort(t *testing.T) {
	_, cert := newCertificate(t)
	first, err := serve.Listen("127.0.0.1:0", cert, nil)
	if err != nil {
		t.Fatal(err)
	}
	address := first.URL()[len("https://"):]
	_, err = serve.Listen(address, cert, nil)
	var inUse *serve.InUseError
	if !errors.As(err, &inUse) || inUse.Address != address {
		t.Errorf("got %v", err)
	}
	closeTwice(t, first)
	second, err := serve.Listen(address, cert, nil)
	if err != nil {
		t.Fatalf("after Close before Serve: %v", err)
	}
	closeTwice(t, second)
}

func closeTwice(t *testing.T, server *serve.Server) {
	t.Helper()
	for range 2 {
		if err := server.Close(t.Context()); err != nil {
			t.Error(err)
		}
	}
}

func newCertificate(t *testing.T) (*pki.CA, tls.Certificate) {
	t.Helper()
	ca, err := pki.New("oidclab test")
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := ca.Server("127.0.0.1")
	if err != nil {
		t.Fatal(err)
	}
	cert, err := leaf.TLS()
	if err != nil {
		t.Fatal(err)
	}
	return ca, cert
}

func TestWithoutHTTP2(t *testing.T) {
	ca, cert := newCertificate(t)
	for _, without := range []bool{false, true} {
		server, err := serve.Listen("127.0.0.1:0", cert, nil)
		if err != nil {
			t.Fatal(err)
		}
		want := "h2"
		if without {
			want = "http/1.1"
			server.WithoutHTTP2()
		}
		server.Serve(http.NotFoundHandler())
		connection, err := tls.Dial("tcp", strings.TrimPrefix(server.URL(), "https://"), &tls.Config{RootCAs: ca.Pool(), NextProtos: []string{"h2", "http/1.1"}})
		if err != nil {
			t.Fatal(err)
		}
		if got := connection.ConnectionState().NegotiatedProtocol; got != want {
			t.Errorf("without HTTP/2 %t: %s, want %s", without, got, want)
		}
		_ = connection.Close()
		closeTwice(t, server)
	}
}
