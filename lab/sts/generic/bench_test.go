package generic

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"io"
	"net/http"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/oidclab/oidclab/lab/clock"
	"github.com/oidclab/oidclab/lab/internal/sidebyside"
	"github.com/oidclab/oidclab/lab/sts/internal/ststest"
)

// caller is a client with a connection of its own, as every pod has. In one
// that is shared, HTTP/2 writes the answers of several requests at once.
type caller struct {
	http *http.Client
	url  string
}

func (s *service) newCaller(b *testing.B) caller {
	b.Helper()
	transport := s.Client.Transport.(*http.Transport).Clone()
	b.Cleanup(transport.CloseIdleConnections)
	return caller{&http.Client{Transport: transport}, s.url}
}

// post sends a form, and wants the status.
func (c caller) post(path, form string, status int) error {
	response, err := c.http.Post(c.url+path, "application/x-www-form-urlencoded", strings.NewReader(form))
	if err != nil {
		return err
	}
	body, err := io.ReadAll(response.Body)
	_ = response.Body.Close()
	if err != nil || response.StatusCode != status {
		return fmt.Errorf("%s: %s %w", response.Status, body, err)
	}
	return nil
}

// newBench returns a service whose issuer signs with RSA, as clusters do.
func newBench(b *testing.B, change func(*Config)) (*service, *http.ServeMux) {
	b.Helper()
	l := ststest.New(b)
	s := &service{Lab: l, issuer: l.NewRSAIssuer(b)}
	server := l.Listen(b)
	s.url = server.URL()
	config := s.config()
	config.Trace = nil
	if change != nil {
		change(&config)
	}
	handler, err := New(config)
	if err != nil {
		b.Fatal(err)
	}
	s.handler = handler
	mux := http.NewServeMux()
	mux.Handle("/", handler)
	server.Serve(mux)
	return s, mux
}

// BenchmarkExchange is a whole exchange over HTTPS, and beside it what an
// exchange cannot do without: an answer of 1 KiB by the same listener, the
// verification of an RSA signature and the signature of an access token. The
// rate of exchanges shall be at least 0.7 of what these add up to. To run it:
//
//	go test -run - -bench Exchange -benchtime 1x ./lab/sts/generic
func BenchmarkExchange(b *testing.B) {
	s, mux := newBench(b, nil)
	static := bytes.Repeat([]byte("x"), 1<<10)
	mux.HandleFunc("/static", func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		_, _ = w.Write(static)
	})
	form := exchangeForm(s.token(b, nil)).Encode()
	digest := sha256.Sum256([]byte(form))
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		b.Fatal(err)
	}
	signature, err := rsa.SignPKCS1v15(rand.Reader, rsaKey, crypto.SHA256, digest[:])
	if err != nil {
		b.Fatal(err)
	}
	ecKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		b.Fatal(err)
	}
	workers := 8 * runtime.GOMAXPROCS(0)
	callers := make([]caller, workers)
	for i := range callers {
		callers[i] = s.newCaller(b)
	}
	posts := func(path string) func() (func() error, error) {
		var started atomic.Int64
		return func() (func() error, error) {
			c := callers[int(started.Add(1))%workers]
			return func() error { return c.post(path, form, http.StatusOK) }, nil
		}
	}
	parts := []sidebyside.Part{
		{Name: "exchange", Worker: posts("/token")},
		{Name: "static", Worker: posts("/static")},
		{Name: "verify", Worker: sidebyside.Shared(func() error {
			return rsa.VerifyPKCS1v15(&rsaKey.PublicKey, crypto.SHA256, digest[:], signature)
		})},
		{Name: "sign", Worker: sidebyside.Shared(func() error {
			_, err := ecdsa.SignASN1(rand.Reader, ecKey, digest[:])
			return err
		})},
	}
	for b.Loop() {
		rates := sidebyside.Measure(b, workers, parts...)
		var ratios []float64
		for round, exchange := range rates[0] {
			predicted := 1 / (1/rates[1][round] + 1/rates[2][round] + 1/rates[3][round])
			ratios = append(ratios, exchange/predicted)
		}
		for i, part := range parts {
			b.ReportMetric(sidebyside.Median(rates[i]), part.Name+"/s")
		}
		b.ReportMetric(sidebyside.Median(ratios), "of-predicted(limit:0.7)")
		b.ReportMetric(0, "ns/op")
	}
}

// BenchmarkStorm sends 2000 tokens a second with a kid that nobody knows, over
// HTTPS for 20 s, and good ones among them. The issuer shall be asked for keys
// twice at most, and 99 of 100 good tokens be exchanged within 10 ms.
func BenchmarkStorm(b *testing.B) {
	const perSecond, lasts, tick = 2000, 20 * time.Second, 10 * time.Millisecond
	s, _ := newBench(b, func(c *Config) { c.Clock = clock.System{} })
	good := s.token(b, nil)
	goodForm := exchangeForm(good).Encode()
	payload := good[strings.IndexByte(good, '.'):]
	for b.Loop() {
		app := s.newCaller(b)
		if err := app.post("/token", goodForm, http.StatusOK); err != nil { // the keys are cached
			b.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(b.Context(), lasts)
		var workers sync.WaitGroup
		bad := make(chan int)
		sent := make([]int, 16)
		for w := range sent {
			attacker := s.newCaller(b)
			workers.Go(func() {
				for n := range bad {
					header := base64.RawURLEncoding.EncodeToString(fmt.Appendf(nil, `{"alg":"RS256","kid":"storm-%d"}`, n))
					if err := attacker.post("/token", exchangeForm(header+payload).Encode(), http.StatusBadRequest); err != nil {
						b.Error(err)
					}
					sent[w]++
				}
			})
		}
		var took []time.Duration
		workers.Go(func() {
			for ctx.Err() == nil {
				begin := time.Now()
				if err := app.post("/token", goodForm, http.StatusOK); err != nil {
					b.Error(err)
				}
				took = append(took, time.Since(begin))
			}
		})
		ticker := time.NewTicker(tick)
		for n := 0; ctx.Err() == nil; <-ticker.C {
			for range perSecond * int(tick) / int(time.Second) {
				bad <- n
				n++
			}
		}
		ticker.Stop()
		cancel()
		close(bad)
		workers.Wait()
		total := 0
		for _, n := range sent {
			total += n
		}
		slices.Sort(took)
		b.ReportMetric(float64(total)/lasts.Seconds(), "bad/s(wanted:2000)")
		b.ReportMetric(float64(s.handler.Core("generic").Cached(s.issuer.URL).Fetches), "fetches(limit:2)")
		b.ReportMetric(float64(took[len(took)/2].Microseconds())/1000, "ms-p50")
		b.ReportMetric(float64(took[len(took)*99/100].Microseconds())/1000, "ms-p99(limit:10)")
		b.ReportMetric(0, "ns/op")
	}
}
