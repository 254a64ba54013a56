package pki

import (
	"crypto/tls"
	"sync"
	"time"

	"github.com/oidclab/oidclab/lab/clock"
)

// The life of a certificate that is issued anew, and what is left of it when it
// is.
const (
	rotatingLifetime = time.Hour
	rotatingRest     = 20 * time.Minute
)

// Rotating is the certificate of a server that outlives certificates: one of an
// hour, issued anew in its last third. It is safe for concurrent use.
type Rotating struct {
	ca    *CA
	clock clock.Clock
	names []string

	mu      sync.Mutex
	current *tls.Certificate
	renew   time.Time // when current is too old
}

// Rotating returns a certificate for a server that is reached by the given
// names, as by Server. The clock is that of those who verify it.
func (c *CA) Rotating(clock clock.Clock, names ...string) *Rotating {
	return &Rotating{ca: c, clock: clock, names: names}
}

// Get returns the certificate of now. It is for tls.Config.GetCertificate, whose
// argument it does not need.
func (r *Rotating) Get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.clock.Now()
	if r.current != nil && now.Before(r.renew) {
		return r.current, nil
	}
	leaf, err := r.ca.server(now, rotatingLifetime, r.names)
	if err != nil {
		return nil, err
	}
	certificate, err := leaf.TLS()
	if err != nil {
		return nil, err
	}
	r.current, r.renew = &certificate, now.Add(rotatingLifetime-rotatingRest)
	return r.current, nil
}
