// Package proxy is the zero-override mode of the lab: an HTTP proxy under which
// unmodified applications with production settings reach the lab's token
// services by the vendors' real host names. An application needs HTTPS_PROXY
// and the lab's root certificate, nothing else.
//
// The proxy answers CONNECT for the hosts it was given, ends TLS itself with a
// certificate for exactly that name, and hands the requests inside, HTTP/1.1
// or HTTP/2, to the host's handler. It is also a guard: every other host, port
// and method is refused and counted, and the package dials nobody at all, so
// that no token of a cluster leaves the machine.
package proxy

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/oidclab/oidclab/lab/pki"
	"github.com/oidclab/oidclab/lab/trace"
)

// httpsPort is the only port that is tunnelled.
const httpsPort = "443"

// limits bound what one client can hold.
type limits struct {
	tunnels           int           // open at once
	certificates      int           // kept
	handshakeTimeout  time.Duration // to send a request's header, or to do a TLS handshake
	readTimeout       time.Duration // to send a whole request
	writeTimeout      time.Duration // to be answered, and to read the answer
	idleTimeout       time.Duration // between two requests
	connectHeaderSize int           // bytes of a CONNECT request
	headerSize        int           // bytes of the header of a request inside, which may carry a token
}

var defaultLimits = limits{
	tunnels:           256,
	certificates:      256,
	handshakeTimeout:  10 * time.Second,
	readTimeout:       30 * time.Second,
	writeTimeout:      30 * time.Second,
	idleTimeout:       2 * time.Minute,
	connectHeaderSize: 8 << 10,
	headerSize:        32 << 10,
}

// Config is what a Proxy needs.
type Config struct {
	CA    *pki.CA // makes the hosts' certificates
	Hosts []Host  // the first that matches answers
	Trace *trace.Log
	Log   *slog.Logger // of broken connections; nil drops it
}

// Host is a vendor's host, or a family of them, and who plays it.
type Host struct {
	// Pattern is a lower-case DNS name in which a label may be "*", which
	// stands for exactly one label: "sts.*.amazonaws.com". The last two labels
	// must be spelled out.
	Pattern string
	Handler http.Handler
	NoHTTP2 bool // offer HTTP/1.1 only
}

// Proxy is an HTTP proxy on a loopback address. Make one with New. It is safe
// for concurrent use.
type Proxy struct {
	hosts  []host
	limits limits
	certs  *certificates
	record *record

	outer    *http.Server // takes CONNECT
	inner    *http.Server // takes what comes through tunnels
	handover handover     // of tunnels to inner

	mu      sync.Mutex
	address net.Addr // nil before Listen
	closed  bool
	count   int                  // of tunnels that were admitted
	tunnels map[*tunnel]struct{} // that are open
	serving sync.WaitGroup       // outer and inner
}

// New returns a proxy. It does no I/O. An error names the host that is wrong.
func New(cfg Config) (*Proxy, error) { return newProxy(cfg, defaultLimits) }

func newProxy(cfg Config, limits limits) (*Proxy, error) {
	if cfg.CA == nil {
		return nil, errors.New("proxy: there is no certificate authority")
	}
	hosts, err := parseHosts(cfg.Hosts)
	if err != nil {
		return nil, err
	}
	p := &Proxy{
		hosts:    hosts,
		limits:   limits,
		certs:    &certificates{ca: cfg.CA, limit: limits.certificates, configs: map[string]*tls.Config{}},
		record:   &record{trace: cfg.Trace},
		handover: newHandover(),
		tunnels:  map[*tunnel]struct{}{},
	}
	errorLog := newErrorLog(cfg.Log)
	p.outer = &http.Server{
		Handler:           p,
		ReadHeaderTimeout: limits.handshakeTimeout,
		ReadTimeout:       limits.readTimeout,
		WriteTimeout:      limits.writeTimeout,
		IdleTimeout:       limits.idleTimeout,
		MaxHeaderBytes:    limits.connectHeaderSize,
		ErrorLog:          errorLog,

		DisableGeneralOptionsHandler: true,
	}
	p.inner = &http.Server{
		Handler:           http.HandlerFunc(p.serveInside),
		TLSConfig:         &tls.Config{GetConfigForClient: p.tlsConfig, MinVersion: tls.VersionTLS12},
		ReadHeaderTimeout: limits.handshakeTimeout,
		ReadTimeout:       limits.readTimeout,
		WriteTimeout:      limits.writeTimeout,
		IdleTimeout:       limits.idleTimeout,
		MaxHeaderBytes:    limits.headerSize,
		ErrorLog:          errorLog,

		DisableGeneralOptionsHandler: true,
		ConnContext: func(ctx context.Context, conn net.Conn) context.Context {
			return context.WithValue(ctx, tunnelKey{}, tunnelOf(conn))
		},
		ConnState: func(conn net.Conn, state http.ConnState) {
			if state != http.StateNew {
				tunnelOf(conn).used.Store(true)
			}
		},
	}
	return p, nil
}

func newErrorLog(logger *slog.Logger) *log.Logger {
	if logger == nil {
		logger = slog.New(slog.DiscardHandler)
	}
	return slog.NewLogLogger(logger.Handler(), slog.LevelWarn)
}

// Listen opens a listener on address, an IP address of the loopback interface
// and a port ("127.0.0.1:0" for any free one), and serves on it until Close.
func (p *Proxy) Listen(address string) error {
	parsed, err := netip.ParseAddrPort(address)
	if err != nil {
		return fmt.Errorf("proxy: address %q is not an IP address and a port: %w", address, err)
	}
	if !parsed.Addr().Unmap().IsLoopback() {
		return fmt.Errorf("proxy: address %s is not on the loopback interface; the proxy serves this machine only, listen on 127.0.0.1", address)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed || p.address != nil {
		return errors.New("proxy: Listen was called twice, or after Close")
	}
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return fmt.Errorf("proxy: %w", err)
	}
	p.address = listener.Addr()
	p.serving.Go(func() { p.ended(p.outer.Serve(listener)) })
	p.serving.Go(func() { p.ended(p.inner.ServeTLS(p.handover, "", "")) })
	return nil
}

func (p *Proxy) ended(err error) {
	if !errors.Is(err, http.ErrServerClosed) {
		p.outer.ErrorLog.Printf("proxy ended: %v", err)
	}
}

// URL returns the value of HTTPS_PROXY, such as "http://127.0.0.1:41733".
// Before Listen it is empty.
func (p *Proxy) URL() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.address == nil {
		return ""
	}
	return "http://" + p.address.String()
}

// Refused returns what was refused since New, in the order of the first time.
func (p *Proxy) Refused() []Refusal { return p.record.list() }

// Close lets running requests finish until ctx ends, then cuts them. Tunnels
// without a request are cut at once. It may be called in any phase, and again.
func (p *Proxy) Close(ctx context.Context) error {
	_ = p.outer.Close() // whoever has no tunnel yet waits for nothing
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	p.cut(func(t *tunnel) bool { return !t.used.Load() })
	if err := p.inner.Shutdown(ctx); err != nil {
		_ = p.inner.Close()
	}
	_ = p.handover.Close()
	p.cut(func(*tunnel) bool { return true })
	p.serving.Wait()
	return nil
}

func (p *Proxy) cut(condition func(*tunnel) bool) {
	p.mu.Lock()
	var chosen []*tunnel
	for t := range p.tunnels {
		if condition(t) {
			chosen = append(chosen, t)
		}
	}
	p.mu.Unlock()
	for _, t := range chosen {
		_ = t.Close()
	}
}

// ServeHTTP implements [http.Handler] for the proxy's own listener: it opens a
// tunnel (CONNECT, RFC 9110 section 9.3.6) or says why not.
func (p *Proxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	t := &tunnel{proxy: p}
	if reason := p.admit(t, r); reason != "" {
		p.refuse(w, r, reason)
		return
	}
	conn, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		p.leave(t)
		http.Error(w, "oidclab proxy: the connection cannot become a tunnel", http.StatusInternalServerError)
		return
	}
	// A client may have sent its TLS hello along with CONNECT.
	early := io.LimitReader(buffered, int64(buffered.Reader.Buffered()))
	t.Conn, t.input = conn, io.MultiReader(early, conn)
	if !p.enter(t) {
		_ = t.Close()
		return
	}
	_ = conn.SetWriteDeadline(time.Now().Add(p.limits.handshakeTimeout)) // the TLS server sets its own
	if _, err := io.WriteString(conn, "HTTP/1.1 200 Connection established\r\n\r\n"); err != nil {
		_ = t.Close()
		return
	}
	p.record.connected(t.host)
	if !p.handover.give(t) {
		_ = t.Close()
	}
}

// admit decides on a request, and counts t as a tunnel if the reason is empty.
func (p *Proxy) admit(t *tunnel, r *http.Request) Reason {
	client, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil || !client.Addr().Unmap().IsLoopback() {
		return ClientNotLocal
	}
	if r.Method != http.MethodConnect {
		return NotConnect
	}
	name, port, err := net.SplitHostPort(r.URL.Host)
	if err != nil || r.URL.Path != "" || r.URL.RawQuery != "" || r.URL.User != nil {
		return TargetMalformed
	}
	if port != httpsPort {
		return PortRefused
	}
	t.host = canonical(name)
	if t.player = p.hostOf(t.host); t.player.handler == nil {
		return HostUnknown
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed || p.address == nil {
		return NotServing
	}
	if p.count >= p.limits.tunnels {
		return TooManyTunnels
	}
	p.count++
	return ""
}

// enter makes t one of the tunnels that Close closes. False means that Close
// came first.
func (p *Proxy) enter(t *tunnel) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return false
	}
	p.tunnels[t] = struct{}{}
	return true
}

// leave gives back the place of a tunnel that was admitted, once.
func (p *Proxy) leave(t *tunnel) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !t.left {
		t.left = true
		p.count--
		delete(p.tunnels, t)
	}
}

// hostOf returns who plays a host; of one that nobody plays, it has no handler.
func (p *Proxy) hostOf(name string) host {
	for _, h := range p.hosts {
		if h.matches(name) {
			return h
		}
	}
	return host{}
}

func (p *Proxy) refuse(w http.ResponseWriter, r *http.Request, reason Reason) {
	target := r.URL.Host
	if target == "" {
		target = r.Host
	}
	target = p.record.refused(target, reason)
	status := http.StatusForbidden
	if reason == TooManyTunnels || reason == NotServing {
		status = http.StatusServiceUnavailable
	}
	var patterns []string
	for _, h := range p.hosts {
		patterns = append(patterns, h.pattern())
	}
	w.Header().Set("Connection", "close") // a body that was sent along is not read
	http.Error(w, fmt.Sprintf(`oidclab proxy: refused %s: %s
Nothing was sent on. The lab answers HTTPS (CONNECT to port 443) for: %s
"oidclab status" lists what was refused.`, target, reason.text(), strings.Join(patterns, " ")), status)
}

// serveInside answers a request that came through a tunnel.
func (p *Proxy) serveInside(w http.ResponseWriter, r *http.Request) {
	t := r.Context().Value(tunnelKey{}).(*tunnel)
	name, port, err := net.SplitHostPort(r.Host)
	if err != nil {
		name, port = r.Host, httpsPort
	}
	if canonical(name) != t.host || port != httpsPort {
		target := p.record.refused(r.Host, HostMismatch)
		http.Error(w, fmt.Sprintf("oidclab proxy: refused %s: %s, which is %s", target, HostMismatch.text(), t.host), http.StatusMisdirectedRequest)
		return
	}
	t.player.handler.ServeHTTP(w, r)
}

// tlsConfig returns the configuration of a tunnel's TLS, once the client has
// said which server it wants. It is asked for resumed sessions as well.
func (p *Proxy) tlsConfig(hello *tls.ClientHelloInfo) (*tls.Config, error) {
	t := hello.Conn.(*tunnel)
	if canonical(hello.ServerName) != t.host {
		target := p.record.refused(hello.ServerName, ServerNameMismatch)
		return nil, fmt.Errorf("proxy: server name %s: %s, which is %s", target, ServerNameMismatch.text(), t.host)
	}
	config, err := p.certs.configOf(t.host)
	if err == nil && t.player.noHTTP2 {
		config = config.Clone()
		config.NextProtos = []string{"http/1.1"}
	}
	return config, err
}
