// Package serve runs the lab's HTTPS servers: the listener is opened first, so
// that its URL is known before anything serves; then a handler is served on
// it; then it is shut down, once or more often.
package serve

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"syscall"
	"time"
)

// The limits of every server of the lab.
const (
	readHeaderTimeout = 10 * time.Second
	readTimeout       = 30 * time.Second
	idleTimeout       = 2 * time.Minute
	maxHeaderBytes    = 32 << 10
)

// Server is an HTTPS server on a loopback address.
type Server struct {
	listener net.Listener
	http     *http.Server

	mu     sync.Mutex
	closed bool
	served chan struct{} // closed when Serve's goroutine has ended; nil before
}

// Listen opens a listener on address ("127.0.0.1:0" for any free port) whose
// certificate is cert. Nothing is answered until Serve. A port that is taken
// gives an [InUseError].
func Listen(address string, cert tls.Certificate, log *slog.Logger) (*Server, error) {
	listener, err := net.Listen("tcp", address)
	if errors.Is(err, syscall.EADDRINUSE) {
		return nil, &InUseError{Address: address}
	}
	if err != nil {
		return nil, fmt.Errorf("serve: %w", err)
	}
	return &Server{
		listener: listener,
		http: &http.Server{
			TLSConfig: &tls.Config{
				Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12,
				DynamicRecordSizingDisabled: true, // or even a small answer would arrive in parts
			},
			ReadHeaderTimeout: readHeaderTimeout,
			ReadTimeout:       readTimeout,
			IdleTimeout:       idleTimeout,
			MaxHeaderBytes:    maxHeaderBytes,
			ErrorLog:          newErrorLog(log),
		},
	}, nil
}

// InUseError is returned by Listen when another process holds the address.
type InUseError struct{ Address string }

func (e *InUseError) Error() string {
	return fmt.Sprintf("address %s is in use by another process", e.Address)
}

// URL returns the server's origin, such as "https://127.0.0.1:41733".
func (s *Server) URL() string { return "https://" + s.listener.Addr().String() }

// WithoutHTTP2 has the server offer HTTP/1.1 only. It is for before Serve.
func (s *Server) WithoutHTTP2() {
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	s.http.Protocols = protocols
}

// WithCertificate has the server ask for its certificate at each handshake. It
// is for before Serve.
func (s *Server) WithCertificate(get func(*tls.ClientHelloInfo) (*tls.Certificate, error)) {
	s.http.TLSConfig.Certificates, s.http.TLSConfig.GetCertificate = nil, get
}

// Serve answers requests with handler until Close. It returns at once.
func (s *Server) Serve(handler http.Handler) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || s.served != nil {
		return
	}
	s.served = make(chan struct{})
	s.http.Handler = handler
	go func() {
		defer close(s.served)
		if err := s.http.ServeTLS(s.listener, "", ""); !errors.Is(err, http.ErrServerClosed) {
			s.http.ErrorLog.Printf("server %s ended: %v", s.URL(), err)
		}
	}()
}

// Close lets running requests finish until ctx ends, then cuts them. It may be
// called in any phase, and again.
func (s *Server) Close(ctx context.Context) error {
	s.mu.Lock()
	s.closed = true
	served := s.served
	s.mu.Unlock()
	if served == nil {
		if err := s.listener.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
			return fmt.Errorf("serve: %w", err)
		}
		return nil
	}
	if err := s.http.Shutdown(ctx); err != nil {
		_ = s.http.Close()
	}
	<-served
	return nil
}

func newErrorLog(logger *slog.Logger) *log.Logger {
	if logger == nil {
		logger = slog.New(slog.DiscardHandler)
	}
	return slog.NewLogLogger(logger.Handler(), slog.LevelWarn)
}
