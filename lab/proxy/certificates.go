package proxy

import (
	"crypto/tls"
	"fmt"
	"sync"

	"github.com/oidclab/oidclab/lab/pki"
)

// certificates makes a certificate for each name when it is first asked for,
// and keeps some.
type certificates struct {
	ca    *pki.CA
	limit int

	mu      sync.Mutex
	configs map[string]*tls.Config // by name
}

// configOf returns a TLS configuration whose certificate is for name only.
func (c *certificates) configOf(name string) (*tls.Config, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if config := c.configs[name]; config != nil {
		return config, nil
	}
	leaf, err := c.ca.Server(name)
	if err != nil {
		return nil, fmt.Errorf("proxy: %w", err)
	}
	cert, err := leaf.TLS()
	if err != nil {
		return nil, fmt.Errorf("proxy: %w", err)
	}
	if len(c.configs) >= c.limit {
		for other := range c.configs { // any one: making it again takes a millisecond
			delete(c.configs, other)
			break
		}
	}
	config := &tls.Config{
		Certificates: []tls.Certificate{cert}, NextProtos: []string{"h2", "http/1.1"}, MinVersion: tls.VersionTLS12,
		DynamicRecordSizingDisabled: true, // as in package serve
	}
	c.configs[name] = config
	return config, nil
}
