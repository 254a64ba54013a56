package issuer_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/oidclab/oidclab/lab/internal/sidebyside"
	"github.com/oidclab/oidclab/lab/issuer"
	"github.com/oidclab/oidclab/lab/pki"
	"github.com/oidclab/oidclab/lab/serve"
)

// keySetFile is as long as the key set of a cluster after a rotation: two RSA keys.
var keySetFile = fmt.Sprintf(`{"keys":[%s,%[1]s]}`, `{"kty":"RSA","use":"sig","alg":"RS256","e":"AQAB","kid":"`+strings.Repeat("k", 43)+`","n":"`+strings.Repeat("A", 342)+`"}`)

// BenchmarkFront reads a key set from the front and, as a file, from nginx: over
// TLS with the same certificate and cipher, on connections that are kept. The
// front shall do at least 0.7 times as many as nginx. To run it:
//
//	go test -run - -bench Front -benchtime 1x ./lab/issuer
func BenchmarkFront(b *testing.B) {
	program, err := exec.LookPath("nginx")
	if err != nil {
		program, err = exec.LookPath("/usr/sbin/nginx") // which is not on everybody's PATH
	}
	if err != nil {
		b.Skip("there is no nginx to compare with; Debian has it as nginx-light")
	}
	ca, err := pki.New("bench")
	if err != nil {
		b.Fatal(err)
	}
	leaf, err := ca.Server("127.0.0.1")
	if err != nil {
		b.Fatal(err)
	}
	front := startFront(b, leaf)
	other := startNginx(b, program, leaf)
	const path = "/c/c1/openid/v1/jwks"
	workers := 8 * runtime.GOMAXPROCS(0)
	for b.Loop() {
		rates := sidebyside.Measure(b, workers,
			sidebyside.Part{Name: "front", Worker: reader(b, ca.Pool(), front, path)},
			sidebyside.Part{Name: "nginx", Worker: reader(b, ca.Pool(), other, path)})
		var ratios []float64
		for round := range rates[0] {
			ratios = append(ratios, rates[0][round]/rates[1][round])
		}
		b.ReportMetric(sidebyside.Median(rates[0]), "front/s")
		b.ReportMetric(sidebyside.Median(rates[1]), "nginx/s")
		b.ReportMetric(sidebyside.Median(ratios), "of-nginx(limit:0.7)")
		b.ReportMetric(0, "ns/op")
	}
}

// startFront serves, in a process of its own as nginx has, a cluster whose API
// server has the key set, and returns the address.
func startFront(b *testing.B, leaf pki.Leaf) string {
	b.Helper()
	command := exec.Command(os.Args[0])
	command.Env = append(os.Environ(), frontVariable+"="+string(leaf.CertPEM)+string(leaf.KeyPEM))
	command.Stderr = os.Stderr
	stdin, err := command.StdinPipe()
	if err != nil {
		b.Fatal(err)
	}
	stdout, err := command.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := command.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		_ = stdin.Close()
		if err := command.Wait(); err != nil {
			b.Error(err)
		}
	})
	address, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil {
		b.Fatal(err)
	}
	return strings.TrimSuffix(address, "\n")
}

// frontVariable holds the certificate and the key of a process that is only to
// serve the front.
const frontVariable = "OIDCLAB_BENCH_FRONT"

func TestMain(m *testing.M) {
	if pair := os.Getenv(frontVariable); pair != "" {
		if err := serveFront([]byte(pair)); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// serveFront prints the address, and serves until stdin ends.
func serveFront(pair []byte) error {
	cert, err := tls.X509KeyPair(pair, pair)
	if err != nil {
		return err
	}
	server, err := serve.Listen("127.0.0.1:0", cert, nil)
	if err != nil {
		return err
	}
	front := issuer.New(server.URL(), issuer.Layouts()[0], nil)
	s := newSource("c1")
	s.keys = keySetFile
	front.Publish("c1", s)
	server.Serve(front)
	fmt.Println(strings.TrimPrefix(server.URL(), "https://"))
	_, err = io.Copy(io.Discard, os.Stdin)
	cut, cancel := context.WithCancel(context.Background())
	cancel() // the benchmark's connections are idle, and are not waited for
	return errors.Join(err, server.Close(cut))
}

// startNginx serves the key set as a file, with as many workers as the front
// has processors, and returns the address.
func startNginx(b *testing.B, program string, leaf pki.Leaf) string {
	b.Helper()
	dir := b.TempDir()
	write := func(name string, data []byte) string {
		b.Helper()
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			b.Fatal(err)
		}
		if err := os.WriteFile(path, data, 0o600); err != nil {
			b.Fatal(err)
		}
		return path
	}
	write("c/c1/openid/v1/jwks", []byte(keySetFile))
	cert, key := write("cert.pem", leaf.CertPEM), write("key.pem", leaf.KeyPEM)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	address := listener.Addr().String()
	if err := listener.Close(); err != nil {
		b.Fatal(err)
	}
	user := ""
	if os.Getuid() == 0 {
		user = "user root;" // or its workers could not read the directory
	}
	config := write("nginx.conf", fmt.Appendf(nil, `%s
daemon off;
worker_processes %d;
pid %s/pid;
events { worker_connections 512; }
http {
  access_log off;
  sendfile on;
  tcp_nodelay on;
  keepalive_requests 1000000000;
  keepalive_timeout 120s;
  default_type application/jwk-set+json;
  open_file_cache max=10;
  client_body_temp_path %[3]s; proxy_temp_path %[3]s; fastcgi_temp_path %[3]s; uwsgi_temp_path %[3]s; scgi_temp_path %[3]s;
  server {
    listen %[4]s ssl;
    ssl_certificate %[5]s;
    ssl_certificate_key %[6]s;
    root %[3]s;
    add_header Cache-Control "public, max-age=10";
    add_header X-Content-Type-Options nosniff;
  }
}
`, user, runtime.GOMAXPROCS(0), dir, address, cert, key))
	var said bytes.Buffer
	command := exec.Command(program, "-c", config, "-e", "stderr")
	command.Stderr = &said
	if err := command.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		_ = command.Process.Signal(syscall.SIGTERM)
		_ = command.Wait()
	})
	deadline := time.Now().Add(10 * time.Second)
	for {
		connection, err := net.DialTimeout("tcp", address, time.Second)
		if err == nil {
			_ = connection.Close()
			return address
		}
		if time.Now().After(deadline) {
			b.Fatalf("nginx does not listen: %v: %s", err, said.String())
		}
	}
}

// reader returns workers that each read a path again and again on a connection
// of their own.
func reader(b *testing.B, roots *x509.CertPool, address, path string) func() (func() error, error) {
	config := &tls.Config{
		RootCAs: roots, ServerName: "127.0.0.1", MinVersion: tls.VersionTLS12, MaxVersion: tls.VersionTLS12,
		CipherSuites: []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256},
	}
	request := []byte("GET " + path + " HTTP/1.1\r\nHost: " + address + "\r\n\r\n")
	return func() (func() error, error) {
		connection, err := tls.Dial("tcp", address, config)
		if err != nil {
			return nil, err
		}
		b.Cleanup(func() { _ = connection.Close() })
		in := bufio.NewReader(connection)
		return func() error {
			if _, err := connection.Write(request); err != nil {
				return err
			}
			response, err := http.ReadResponse(in, nil)
			if err != nil {
				return err
			}
			n, err := io.Copy(io.Discard, response.Body)
			if err != nil || response.StatusCode != http.StatusOK || n != int64(len(keySetFile)) {
				return fmt.Errorf("%s with %d bytes: %w", response.Status, n, err)
			}
			return response.Body.Close()
		}, nil
	}
}
