// Package issuer is the front that makes clusters into OIDC issuers: it
// publishes, public and unauthenticated, the discovery document and the key
// set that each cluster's API server serves to those with credentials.
//
// The issuer of a cluster is a fixed URL below the front's own; the Host header
// of a request has no say in it. Documents are kept for as long as the API
// server allows and served on, stale, while it is down; [Front.Ready] tells.
package issuer

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"path"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// The media types of the two documents: OpenID Connect Discovery 1.0 section
// 4.2 and RFC 7517 section 8.5.2.
const (
	discoveryType = "application/json"
	keySetType    = "application/jwk-set+json"
)

// noSniff is a header value.
var noSniff = []string{"nosniff"}

// discoveryPath follows an issuer, but for its trailing slash (OpenID Connect
// Discovery 1.0 section 4).
const discoveryPath = "/.well-known/openid-configuration"

const (
	fetchTimeout  = 3 * time.Second
	stalePatience = 250 * time.Millisecond // for a fetch while there is something stale to serve
	retryInterval = 500 * time.Millisecond // between attempts while a cluster does not answer
	minFreshness  = time.Second            // an external signer's keys come with max-age=0
	// maxFreshness is for API servers with key files, which allow an hour. Other
	// clusters' API servers fetch keys again for an unknown kid in the last 30 s of
	// max-age only (keysExpiryDelta in go-oidc v2, jwks.go): so, always.
	maxFreshness = 30 * time.Second
	announceWait = 20 * time.Second // for a cluster that is coming up; less than clients' usual 30 s
)

// Source is where a cluster's documents come from: its API server.
type Source interface {
	// Discovery and JWKS return the document as served and for how long the
	// server allows it to be cached (Cache-Control max-age).
	Discovery(ctx context.Context) (body []byte, maxAge time.Duration, err error)
	JWKS(ctx context.Context) (body []byte, maxAge time.Duration, err error)
}

// Front serves the documents of any number of clusters. Make one with New.
type Front struct {
	origin string
	layout Layout
	now    func() time.Time
	mux    *http.ServeMux

	mu        sync.RWMutex
	clusters  map[string]*cluster
	documents map[string]place // by path
}

// place is whose document is at a path, and which.
type place struct {
	cluster string // id
	pick    func(*cluster) *document
}

type cluster struct {
	published       chan struct{} // closed once there are documents
	discovery, keys *document
}

// New returns a front that is reached at origin, such as
// "https://127.0.0.1:8443". It serves no cluster yet and does no I/O.
// A nil now means time.Now.
func New(origin string, layout Layout, now func() time.Time) *Front {
	if now == nil {
		now = time.Now
	}
	f := &Front{origin: origin, layout: layout, now: now, mux: http.NewServeMux(), clusters: map[string]*cluster{}, documents: map[string]place{}}
	f.mux.HandleFunc("/livez", f.live)
	f.mux.HandleFunc("/readyz", f.ready)
	f.mux.HandleFunc("/", f.nothing)
	return f
}

// IssuerURL returns the issuer of the cluster with the given id: the iss claim of its tokens.
func (f *Front) IssuerURL(id string) string { return f.origin + f.layout.issuer(id) }

// KeySetURL returns the jwks_uri of the cluster with the given id.
func (f *Front) KeySetURL(id string) string { return f.IssuerURL(id) + f.layout.KeySet }

// DiscoveryURL returns where the discovery document of the cluster with the given
// id is.
func (f *Front) DiscoveryURL(id string) string {
	return strings.TrimSuffix(f.IssuerURL(id), "/") + discoveryPath
}

// Announce says that the cluster with the given id is coming up. Until it is
// published, requests for its documents wait: an API server that trusts it, and
// comes up beside it, asks once and then not again for 10 s.
func (f *Front) Announce(id string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.clusters[id] == nil {
		f.clusters[id] = &cluster{published: make(chan struct{})}
		f.place(id)
	}
}

// place says where the documents of a cluster are. The caller holds the lock.
func (f *Front) place(id string) {
	f.documents[strings.TrimPrefix(f.DiscoveryURL(id), f.origin)] = place{id, func(c *cluster) *document { return c.discovery }}
	f.documents[strings.TrimPrefix(f.KeySetURL(id), f.origin)] = place{id, func(c *cluster) *document { return c.keys }}
}

// Publish serves the documents of source as the cluster with the given id.
func (f *Front) Publish(id string, source Source) {
	c := &cluster{
		published: make(chan struct{}),
		discovery: &document{
			contentType: []string{discoveryType}, now: f.now, fetch: source.Discovery,
			vet: func(body []byte) error { return vetDiscovery(body, f.IssuerURL(id), f.KeySetURL(id)) },
		},
		keys: &document{contentType: []string{keySetType}, now: f.now, fetch: source.JWKS, vet: vetKeySet},
	}
	close(c.published)
	f.mu.Lock()
	defer f.mu.Unlock()
	announced := f.clusters[id]
	f.clusters[id] = c
	f.place(id)
	if announced != nil && announced.discovery == nil {
		close(announced.published)
	}
}

// Withdraw serves the documents of the cluster with the given id no longer.
func (f *Front) Withdraw(id string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.clusters, id)
}

// cluster returns the cluster with the given id, or nil. It waits for one that
// is announced, for as long as ctx allows.
func (f *Front) cluster(ctx context.Context, id string) *cluster {
	c := f.lookup(id)
	if c == nil || c.discovery != nil {
		return c
	}
	ctx, cancel := context.WithTimeout(ctx, announceWait)
	defer cancel()
	select {
	case <-c.published:
	case <-ctx.Done():
	}
	return f.lookup(id)
}

func (f *Front) lookup(id string) *cluster {
	f.mu.RLock()
	defer f.mu.RUnlock()
	return f.clusters[id]
}

// Ready returns nil if the documents of every cluster are fresh or can be
// fetched now, and otherwise an error that names each that cannot.
func (f *Front) Ready(ctx context.Context) error {
	f.mu.RLock()
	clusters := maps.Clone(f.clusters)
	f.mu.RUnlock()
	if len(clusters) == 0 {
		return errors.New("no cluster is published yet")
	}
	var problems []error
	for _, id := range slices.Sorted(maps.Keys(clusters)) {
		c := clusters[id]
		if c.discovery == nil {
			problems = append(problems, fmt.Errorf("cluster %s: it is coming up", id))
			continue
		}
		for _, d := range []*document{c.discovery, c.keys} {
			if _, err := d.get(ctx); err != nil {
				problems = append(problems, fmt.Errorf("cluster %s: %w", id, err))
				break
			}
		}
	}
	return errors.Join(problems...)
}

// Refresh fetches the key set of the cluster again, however fresh it is.
func (f *Front) Refresh(ctx context.Context, id string) error {
	c := f.lookup(id)
	if c == nil || c.keys == nil {
		return fmt.Errorf("issuer: no cluster %q is published", id)
	}
	c.keys.expire(ctx)
	_, err := c.keys.get(ctx)
	return err
}

// ServeHTTP answers the two documents of each cluster, /livez and /readyz.
func (f *Front) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header()["X-Content-Type-Options"] = noSniff
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		writeError(w, http.StatusMethodNotAllowed, "method_not_allowed", "only GET and HEAD are answered")
		return
	}
	f.mu.RLock()
	place, ok := f.documents[r.URL.Path]
	f.mu.RUnlock()
	if ok && r.URL.RawPath == "" { // with one, the path was written in another way
		f.document(w, r, place)
		return
	}
	// ServeMux would redirect unclean paths; an issuer never redirects.
	if path.Clean(r.URL.Path) != r.URL.Path {
		writeError(w, http.StatusNotFound, "not_found", "no such path")
		return
	}
	f.mux.ServeHTTP(w, r)
}

func (f *Front) nothing(w http.ResponseWriter, _ *http.Request) {
	writeError(w, http.StatusNotFound, "not_found", "no cluster of this front has a document here")
}

func (f *Front) document(w http.ResponseWriter, r *http.Request, place place) {
	c := f.cluster(r.Context(), place.cluster)
	if c == nil {
		f.nothing(w, r)
		return
	}
	if c.discovery == nil {
		writeError(w, http.StatusServiceUnavailable, "cluster_unavailable", "the cluster is coming up")
		return
	}
	place.pick(c).serve(w, r)
}

func (f *Front) live(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	_, _ = fmt.Fprintln(w, "ok")
}

func (f *Front) ready(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	if err := f.Ready(r.Context()); err != nil {
		w.WriteHeader(http.StatusServiceUnavailable)
		_, _ = fmt.Fprintln(w, err)
		return
	}
	_, _ = fmt.Fprintln(w, "ok")
}

// document is one document of one cluster, cached.
type document struct {
	contentType []string // header value, as are those below
	now         func() time.Time
	fetch       func(context.Context) ([]byte, time.Duration, error)
	vet         func([]byte) error

	mu      sync.Mutex
	running chan struct{} // closed when the fetch under way has ended; nil if there is none
	body    []byte
	etag    []string
	length  []string
	fetched time.Time
	fresh   time.Time // until when body may be served without asking
	tried   time.Time // the last attempt that failed
	err     error     // of that attempt; nil after a success
}

// version is a document as it stood at one moment.
type version struct {
	body   []byte
	etag   []string      // header value
	length []string      // header value
	age    time.Duration // since it was fetched
	left   time.Duration // for which it stays fresh; 0 if it is stale
}

// errSlow is why a stale document is served while its fetch goes on.
var errSlow = errors.New("the cluster's API server does not answer at once")

// get returns the document. If it cannot be fetched, it returns the last good
// version, if there is one, together with the error.
func (d *document) get(ctx context.Context) (version, error) {
	d.mu.Lock()
	now := d.now()
	switch {
	case d.body != nil && now.Before(d.fresh):
		defer d.mu.Unlock()
		return d.version(now), nil
	case d.err != nil && now.Before(d.tried.Add(retryInterval)):
		defer d.mu.Unlock()
		return d.version(now), d.err
	}
	running := d.running
	if running == nil {
		running = make(chan struct{})
		d.running = running
		// One reader that goes away must not spoil the fetch for those who wait.
		go d.run(context.WithoutCancel(ctx), running)
	}
	var patience <-chan time.Time
	if d.body != nil {
		patience = time.After(stalePatience)
	}
	d.mu.Unlock()

	slow := false
	select {
	case <-running:
	case <-patience:
		slow = true
	case <-ctx.Done():
		slow = true
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	err := d.err
	if err == nil && slow {
		err = errSlow
	}
	return d.version(d.now()), err
}

// run fetches the document once.
func (d *document) run(ctx context.Context, done chan struct{}) {
	defer close(done)
	ctx, cancel := context.WithTimeout(ctx, fetchTimeout)
	defer cancel()
	body, maxAge, err := d.fetch(ctx)
	if err == nil {
		err = d.vet(body)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.running = nil
	now := d.now()
	if err != nil {
		d.tried, d.err = now, err
		return
	}
	sum := sha256.Sum256(body)
	d.body, d.etag, d.length = body, []string{`"` + hex.EncodeToString(sum[:16]) + `"`}, []string{strconv.Itoa(len(body))}
	d.fetched, d.fresh, d.err = now, now.Add(min(max(maxAge, minFreshness), maxFreshness)), nil
}

func (d *document) version(now time.Time) version {
	return version{body: d.body, etag: d.etag, length: d.length, age: now.Sub(d.fetched), left: max(0, d.fresh.Sub(now))}
}

// expire makes the next get fetch. A fetch that is under way is waited for: it
// may have begun before what the caller knows of.
func (d *document) expire(ctx context.Context) {
	d.mu.Lock()
	running := d.running
	d.mu.Unlock()
	if running != nil {
		select {
		case <-running:
		case <-ctx.Done():
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.fresh, d.err = time.Time{}, nil
}

func (d *document) serve(w http.ResponseWriter, r *http.Request) {
	v, err := d.get(r.Context())
	if v.body == nil {
		w.Header().Set("Retry-After", "1")
		writeError(w, http.StatusServiceUnavailable, "cluster_unavailable", "the cluster's API server does not answer and nothing is cached yet")
		return
	}
	header := w.Header() // whose names are in canonical form here: Set would see to that each time
	header["Content-Type"] = d.contentType
	header["Cache-Control"] = []string{"public, max-age=" + strconv.Itoa(int(v.left.Seconds()+0.999))}
	header["Etag"] = v.etag
	if err != nil { // stale: RFC 9111 section 5.1
		header.Set("Age", strconv.Itoa(int(v.age.Seconds())))
	}
	if matches(r.Header.Get("If-None-Match"), v.etag[0]) {
		w.WriteHeader(http.StatusNotModified)
		return
	}
	header["Content-Length"] = v.length
	if r.Method == http.MethodGet {
		_, _ = w.Write(v.body)
	}
}

// matches is the weak comparison of If-None-Match, RFC 9110 section 13.1.2.
func matches(header, etag string) bool {
	for candidate := range strings.SplitSeq(header, ",") {
		candidate = strings.TrimPrefix(strings.TrimSpace(candidate), "W/")
		if candidate == "*" || candidate == etag {
			return true
		}
	}
	return false
}

// vetDiscovery refuses a document that speaks for another issuer: a cluster
// that was started with other flags than the lab thinks.
func vetDiscovery(body []byte, issuer, keySetURL string) error {
	var document struct {
		Issuer  string `json:"issuer"`
		JWKSURI string `json:"jwks_uri"`
	}
	if err := json.Unmarshal(body, &document); err != nil {
		return fmt.Errorf("discovery document: %w", err)
	}
	if document.Issuer != issuer {
		return fmt.Errorf("discovery document: issuer is %q, not %q", document.Issuer, issuer)
	}
	if document.JWKSURI != keySetURL {
		return fmt.Errorf("discovery document: jwks_uri is %q, not %q", document.JWKSURI, keySetURL)
	}
	return nil
}

// vetKeySet refuses anything but RSA and EC public keys: a set with a private
// or symmetric part (RFC 7518 section 6) must not be published, not even once.
func vetKeySet(body []byte) error {
	var set struct {
		Keys []map[string]json.RawMessage `json:"keys"`
	}
	if err := json.Unmarshal(body, &set); err != nil {
		return fmt.Errorf("key set: %w", err)
	}
	if len(set.Keys) == 0 {
		return errors.New("key set: it has no keys")
	}
	for i, key := range set.Keys {
		var kty string
		if err := json.Unmarshal(key["kty"], &kty); err != nil || (kty != "RSA" && kty != "EC") {
			return fmt.Errorf("key set: key %d is neither RSA nor EC", i)
		}
		for name := range key {
			switch strings.ToLower(name) {
			case "d", "p", "q", "dp", "dq", "qi", "oth", "k":
				return fmt.Errorf("key set: key %d has the private member %q: it is not published", i, name)
			}
		}
	}
	return nil
}

func writeError(w http.ResponseWriter, status int, code, description string) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]string{"error": code, "error_description": description})
}
