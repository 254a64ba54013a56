package generic

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/oidclab/oidclab/lab/sts/internal/ststest"
)

// BenchmarkExchange is a whole exchange over HTTPS, and beside it what an
// exchange cannot do without: an answer of 1 KiB by the same listener, the
// verification of an RSA signature and the signature of an access token. The
// rate of exchanges shall be at least 0.7 of what these add up to.
func BenchmarkExchange(b *testing.B) {
	l := ststest.New(b)
	s := &service{Lab: l, issuer: l.NewRSAIssuer(b)}
	server := l.Listen(b)
	s.url = server.URL()
	config := s.config()
	config.Trace = nil
	handler, err := New(config)
	if err != nil {
		b.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.Handle("/", handler)
	static := bytes.Repeat([]byte("x"), 1<<10)
	mux.HandleFunc("/static", func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		_, _ = w.Write(static)
	})
	server.Serve(mux)
	form := exchangeForm(s.token(b, nil)).Encode()

	post := func(path string) func(*testing.B) {
		return func(b *testing.B) {
			b.SetParallelism(8)
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					response, err := s.Client.Post(s.url+path, "application/x-www-form-urlencoded", strings.NewReader(form))
					if err != nil {
						b.Error(err)
						return
					}
					body, err := io.ReadAll(response.Body)
					_ = response.Body.Close()
					if err != nil || response.StatusCode != http.StatusOK {
						b.Errorf("%s: %s %v", response.Status, body, err)
						return
					}
				}
			})
		}
	}
	b.Run("exchange", post("/token"))
	b.Run("static answer", post("/static"))

	digest := sha256.Sum256([]byte(form))
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		b.Fatal(err)
	}
	signature, err := rsa.SignPKCS1v15(rand.Reader, rsaKey, crypto.SHA256, digest[:])
	if err != nil {
		b.Fatal(err)
	}
	b.Run("bare verification", func(b *testing.B) {
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				if err := rsa.VerifyPKCS1v15(&rsaKey.PublicKey, crypto.SHA256, digest[:], signature); err != nil {
					b.Error(err)
				}
			}
		})
	})
	ecKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		b.Fatal(err)
	}
	b.Run("bare signature", func(b *testing.B) {
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				if _, err := ecdsa.SignASN1(rand.Reader, ecKey, digest[:]); err != nil {
					b.Error(err)
				}
			}
		})
	})
}
