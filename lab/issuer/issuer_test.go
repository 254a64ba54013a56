package issuer_test

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/oidclab/oidclab/lab/issuer"
)

const origin = "https://127.0.0.1:8443"

const goodKeys = `{"keys":[{"kty":"RSA","kid":"k1","use":"sig","alg":"RS256","n":"AQAB","e":"AQAB"}]}`

// source is an API server as the front sees it.
type source struct {
	mu              sync.Mutex
	discovery, keys string
	maxAge          time.Duration
	err             error
	fetches         atomic.Int64
}

func newSource(id string) *source {
	return &source{
		discovery: `{"issuer":"` + origin + `/c/` + id + `","jwks_uri":"` + origin + `/c/` + id + `/openid/v1/jwks","response_types_supported":["id_token"]}`,
		keys:      goodKeys,
		maxAge:    10 * time.Second,
	}
}

func (s *source) Discovery(context.Context) ([]byte, time.Duration, error) { return s.get(s.discovery) }
func (s *source) JWKS(context.Context) ([]byte, time.Duration, error) {
	s.fetches.Add(1)
	s.mu.Lock()
	keys := s.keys
	s.mu.Unlock()
	return s.get(keys)
}

func (s *source) get(body string) ([]byte, time.Duration, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return []byte(body), s.maxAge, s.err
}

func (s *source) set(change func(*source)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change(s)
}

type testClock struct{ now atomic.Pointer[time.Time] }

func newTestClock() *testClock {
	c := &testClock{}
	start := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	c.now.Store(&start)
	return c
}

func (c *testClock) Now() time.Time { return *c.now.Load() }
func (c *testClock) Advance(d time.Duration) {
	t := c.Now().Add(d)
	c.now.Store(&t)
}

func newFront(t *testing.T) (*issuer.Front, *source, *testClock) {
	t.Helper()
	clock := newTestClock()
	front := issuer.New(origin, issuer.Layouts()[0], clock.Now)
	s := newSource("c1")
	front.Publish("c1", s)
	return front, s, clock
}

func do(front *issuer.Front, method, target string, change ...func(*http.Request)) *http.Response {
	request := httptest.NewRequest(method, target, nil)
	for _, c := range change {
		c(request)
	}
	recorder := httptest.NewRecorder()
	front.ServeHTTP(recorder, request)
	return recorder.Result()
}

func bodyOf(t *testing.T, response *http.Response) string {
	t.Helper()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(body)
}

func TestDocuments(t *testing.T) {
	front, s, _ := newFront(t)
	for _, test := range []struct{ path, contentType, body string }{
		{"/c/c1/.well-known/openid-configuration", "application/json", s.discovery},
		{"/c/c1/openid/v1/jwks", "application/jwk-set+json", s.keys},
	} {
		t.Run(test.path, func(t *testing.T) {
			get := do(front, http.MethodGet, test.path)
			if get.StatusCode != 200 || bodyOf(t, get) != test.body {
				t.Fatalf("GET: %s", get.Status)
			}
			for name, want := range map[string]string{
				"Content-Type": test.contentType, "Cache-Control": "public, max-age=10", "X-Content-Type-Options": "nosniff", "Age": "",
			} {
				if got := get.Header.Get(name); got != want {
					t.Errorf("%s: %q, want %q", name, got, want)
				}
			}
			etag := get.Header.Get("ETag")
			if !strings.HasPrefix(etag, `"`) {
				t.Errorf("ETag %q is not a strong one", etag)
			}
			head := do(front, http.MethodHead, test.path)
			if head.StatusCode != 200 || bodyOf(t, head) != "" || head.Header.Get("ETag") != etag || head.ContentLength != int64(len(test.body)) {
				t.Errorf("HEAD: %s, %d bytes announced", head.Status, head.ContentLength)
			}
			for _, value := range []string{etag, "W/" + etag, `"other", ` + etag, "*"} {
				same := do(front, http.MethodGet, test.path, func(r *http.Request) { r.Header.Set("If-None-Match", value) })
				if same.StatusCode != http.StatusNotModified || bodyOf(t, same) != "" {
					t.Errorf("If-None-Match %s: %s", value, same.Status)
				}
			}
			if other := do(front, http.MethodGet, test.path, func(r *http.Request) { r.Header.Set("If-None-Match", `"other"`) }); other.StatusCode != 200 {
				t.Errorf("If-None-Match of another version: %s", other.Status)
			}
			for _, method := range []string{http.MethodPost, http.MethodPut, http.MethodDelete, http.MethodOptions, "BREW"} {
				if response := do(front, method, test.path); response.StatusCode != 405 || response.Header.Get("Allow") != "GET, HEAD" {
					t.Errorf("%s: %s", method, response.Status)
				}
			}
		})
	}
}

func TestHostHeaderHasNoSay(t *testing.T) {
	front, s, _ := newFront(t)
	for _, host := range []string{"evil.example", "127.0.0.1:1", "", "a b"} {
		response := do(front, http.MethodGet, "/c/c1/.well-known/openid-configuration", func(r *http.Request) {
			r.Host = host
			r.Header.Set("X-Forwarded-Host", host)
		})
		if got := bodyOf(t, response); got != s.discovery {
			t.Errorf("Host %q changed the document: %s", host, got)
		}
	}
}

func TestOtherPathsAreNotFoundAndNeverRedirect(t *testing.T) {
	front, _, _ := newFront(t)
	for _, path := range []string{
		"/", "/c", "/c/", "/c/c1", "/c/c1/", "/c/c2/openid/v1/jwks", "/c/c1/openid/v1/jwks/", "/c/c1//openid/v1/jwks",
		"/c/c1/../c1/openid/v1/jwks", "/c/c1/./openid/v1/jwks", "/c//openid/v1/jwks", "/C/c1/openid/v1/jwks", "/c/c1/openid/v1/keys",
		"/c/c1%2fopenid/v1/jwks", "/.well-known/openid-configuration", "/c/c1/.well-known/openid-configuration/",
	} {
		if response := do(front, http.MethodGet, path); response.StatusCode != 404 {
			t.Errorf("%s: %s, Location %q", path, response.Status, response.Header.Get("Location"))
		}
	}
	if response := do(front, http.MethodGet, "/c/c1/openid/v1/jwks"); response.StatusCode != 200 {
		t.Errorf("control: %s", response.Status)
	}
}

func TestNeverPublishesAPrivatePart(t *testing.T) {
	for _, member := range []string{"d", "p", "q", "dp", "dq", "qi", "oth", "k", "D", "\\u0064"} {
		front, s, _ := newFront(t)
		s.set(func(s *source) {
			s.keys = `{"keys":[{"kty":"RSA","n":"AQAB","e":"AQAB"},{"kty":"RSA","n":"AQAB","e":"AQAB","` + member + `":"c2VjcmV0"}]}`
		})
		response := do(front, http.MethodGet, "/c/c1/openid/v1/jwks")
		if body := bodyOf(t, response); response.StatusCode != 503 || strings.Contains(body, "c2VjcmV0") {
			t.Errorf("%s: %s %s", member, response.Status, body)
		}
		if err := front.Ready(t.Context()); err == nil || strings.Contains(err.Error(), "c2VjcmV0") {
			t.Errorf("%s: ready says %v", member, err)
		}
	}
	for name, keys := range map[string]string{
		"symmetric": `{"keys":[{"kty":"oct"}]}`, "no kty": `{"keys":[{"n":"AQAB"}]}`, "empty": `{"keys":[]}`, "not JSON": `<html>`,
	} {
		front, s, _ := newFront(t)
		s.set(func(s *source) { s.keys = keys })
		if response := do(front, http.MethodGet, "/c/c1/openid/v1/jwks"); response.StatusCode != 503 {
			t.Errorf("%s: %s", name, response.Status)
		}
	}
}

func TestRefusesTheDocumentOfAnotherIssuer(t *testing.T) {
	for _, discovery := range []string{
		`{"issuer":"https://kubernetes.default.svc","jwks_uri":"` + origin + `/c/c1/openid/v1/jwks"}`,
		`{"issuer":"` + origin + `/c/c1/","jwks_uri":"` + origin + `/c/c1/openid/v1/jwks"}`,
		`{"issuer":"` + origin + `/c/c1","jwks_uri":"https://10.0.0.1:6443/openid/v1/jwks"}`,
		`[]`,
	} {
		front, s, _ := newFront(t)
		s.set(func(s *source) { s.discovery = discovery })
		if response := do(front, http.MethodGet, "/c/c1/.well-known/openid-configuration"); response.StatusCode != 503 {
			t.Errorf("%s: %s", discovery, response.Status)
		}
	}
}

func TestStaleIsServedWhileTheClusterIsDown(t *testing.T) {
	front, s, clock := newFront(t)
	if err := front.Ready(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.set(func(s *source) { s.err = errors.New("connection refused") })
	if err := front.Ready(t.Context()); err != nil {
		t.Errorf("documents are fresh, but: %v", err)
	}
	clock.Advance(11 * time.Second)
	response := do(front, http.MethodGet, "/c/c1/openid/v1/jwks")
	if response.StatusCode != 200 || bodyOf(t, response) != goodKeys || response.Header.Get("Age") != "11" || response.Header.Get("Cache-Control") != "public, max-age=0" {
		t.Errorf("stale: %s, Age %q, %s", response.Status, response.Header.Get("Age"), response.Header.Get("Cache-Control"))
	}
	if ready := do(front, http.MethodGet, "/readyz"); ready.StatusCode != 503 || !strings.Contains(bodyOf(t, ready), "cluster c1: connection refused") {
		t.Errorf("readyz: %s", ready.Status)
	}
	if live := do(front, http.MethodGet, "/livez"); live.StatusCode != 200 {
		t.Errorf("livez: %s", live.Status)
	}
	before := s.fetches.Load()
	for range 20 {
		do(front, http.MethodGet, "/c/c1/openid/v1/jwks")
	}
	if n := s.fetches.Load() - before; n != 0 {
		t.Errorf("%d fetches within the retry interval", n)
	}
	s.set(func(s *source) { s.err, s.keys = nil, strings.ReplaceAll(goodKeys, "k1", "k2") })
	clock.Advance(time.Second)
	if response := do(front, http.MethodGet, "/c/c1/openid/v1/jwks"); !strings.Contains(bodyOf(t, response), `"k2"`) || response.Header.Get("Age") != "" {
		t.Error("the front did not follow the cluster's return")
	}
	if ready := do(front, http.MethodGet, "/readyz"); ready.StatusCode != 200 {
		t.Errorf("readyz after the return: %s", ready.Status)
	}
}

func TestUnavailableBeforeTheFirstFetch(t *testing.T) {
	front, s, _ := newFront(t)
	s.set(func(s *source) { s.err = errors.New("connection refused") })
	response := do(front, http.MethodGet, "/c/c1/openid/v1/jwks")
	var answer map[string]string
	if err := json.NewDecoder(response.Body).Decode(&answer); err != nil || response.StatusCode != 503 || answer["error"] != "cluster_unavailable" || response.Header.Get("Retry-After") == "" {
		t.Errorf("%s %v", response.Status, answer)
	}
	if err := issuer.New(origin, issuer.Layouts()[0], nil).Ready(t.Context()); err == nil {
		t.Error("ready without a cluster")
	}
}

func TestRefresh(t *testing.T) {
	front, s, _ := newFront(t)
	do(front, http.MethodGet, "/c/c1/openid/v1/jwks")
	s.set(func(s *source) { s.keys = strings.ReplaceAll(goodKeys, "k1", "k2") })
	if body := bodyOf(t, do(front, http.MethodGet, "/c/c1/openid/v1/jwks")); !strings.Contains(body, "k1") {
		t.Error("a fresh document was fetched again")
	}
	if err := front.Refresh(t.Context(), "c1"); err != nil {
		t.Fatal(err)
	}
	if body := bodyOf(t, do(front, http.MethodGet, "/c/c1/openid/v1/jwks")); !strings.Contains(body, "k2") {
		t.Error("Refresh fetched nothing")
	}
	if err := front.Refresh(t.Context(), "c9"); err == nil {
		t.Error("refreshed a cluster that does not exist")
	}
}

// Readers never see anything but whole sets, and never more than one fetch runs at a time.
func TestConcurrentReadersDuringRotation(t *testing.T) {
	clock := newTestClock()
	front := issuer.New(origin, issuer.Layouts()[0], clock.Now)
	s := newSource("c1")
	s.maxAge = 0
	var running, worst atomic.Int64
	front.Publish("c1", slowSource{s, &running, &worst})
	var group sync.WaitGroup
	for range 32 {
		group.Go(func() {
			for range 50 {
				var set struct{ Keys []struct{ Kid string } }
				response := do(front, http.MethodGet, "/c/c1/openid/v1/jwks")
				if err := json.NewDecoder(response.Body).Decode(&set); err != nil || len(set.Keys) != 1 {
					t.Errorf("torn answer: %v", err)
				}
			}
		})
	}
	for i := range 200 {
		kid := string(rune('a' + i%26))
		s.set(func(s *source) { s.keys = strings.ReplaceAll(goodKeys, "k1", kid) })
	}
	group.Wait()
	if worst.Load() != 1 {
		t.Errorf("%d fetches at once", worst.Load())
	}
}

type slowSource struct {
	*source
	running, worst *atomic.Int64
}

func (s slowSource) JWKS(ctx context.Context) ([]byte, time.Duration, error) {
	n := s.running.Add(1)
	defer s.running.Add(-1)
	s.worst.Store(max(n, s.worst.Load()))
	return s.source.JWKS(ctx)
}

func TestAnnouncedClusterIsWaitedFor(t *testing.T) {
	front := issuer.New(origin, issuer.Layouts()[0], nil)
	front.Announce("c1")
	if err := front.Ready(t.Context()); err == nil || !strings.Contains(err.Error(), "c1: it is coming up") {
		t.Errorf("ready says %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	impatient := do(front, http.MethodGet, "/c/c1/openid/v1/jwks", func(r *http.Request) { *r = *r.WithContext(ctx) })
	if impatient.StatusCode != 503 {
		t.Errorf("whoever does not wait gets %s", impatient.Status)
	}
	answer := make(chan *http.Response)
	go func() { answer <- do(front, http.MethodGet, "/c/c1/openid/v1/jwks") }()
	if other := do(front, http.MethodGet, "/c/c2/openid/v1/jwks"); other.StatusCode != 404 {
		t.Errorf("a cluster that is not announced: %s", other.Status)
	}
	front.Publish("c1", newSource("c1"))
	if response := <-answer; response.StatusCode != 200 {
		t.Errorf("whoever waits gets %s", response.Status)
	}
	if again := do(front, http.MethodGet, "/c/c1/openid/v1/jwks"); again.StatusCode != 200 {
		t.Errorf("after that: %s", again.Status)
	}
}

func TestStaleIsServedAtOnceWhileTheClusterHangs(t *testing.T) {
	front, s, clock := newFront(t)
	hung := &hangingSource{source: s, hang: make(chan struct{})}
	front.Publish("c1", hung)
	if err := front.Ready(t.Context()); err != nil {
		t.Fatal(err)
	}
	hung.hanging.Store(true)
	defer close(hung.hang)
	clock.Advance(11 * time.Second)
	began := time.Now()
	response := do(front, http.MethodGet, "/c/c1/openid/v1/jwks")
	if took := time.Since(began); response.StatusCode != 200 || bodyOf(t, response) != goodKeys || response.Header.Get("Age") != "11" || took > 2*time.Second {
		t.Errorf("%s after %s, Age %q", response.Status, took, response.Header.Get("Age"))
	}
	if err := front.Ready(t.Context()); err == nil || !strings.Contains(err.Error(), "does not answer") {
		t.Errorf("ready says %v", err)
	}
}

// hangingSource does not answer while it hangs.
type hangingSource struct {
	*source
	hanging atomic.Bool
	hang    chan struct{}
}

func (s *hangingSource) JWKS(ctx context.Context) ([]byte, time.Duration, error) {
	if s.hanging.Load() {
		<-s.hang
		return nil, 0, errors.New("hung")
	}
	return s.source.JWKS(ctx)
}
