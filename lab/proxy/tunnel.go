package proxy

import (
	"crypto/tls"
	"io"
	"net"
	"sync"
	"sync/atomic"
)

// tunnel is a client's connection after CONNECT.
type tunnel struct {
	net.Conn
	proxy  *Proxy
	host   string // canonical
	player host   // who answers for it

	input io.Reader   // what was read along with CONNECT, then the connection
	used  atomic.Bool // the server inside has begun to read requests
	left  bool        // guarded by proxy.mu
}

type tunnelKey struct{}

// tunnelOf returns the tunnel below a connection of the inner server.
func tunnelOf(conn net.Conn) *tunnel { return conn.(*tls.Conn).NetConn().(*tunnel) }

func (t *tunnel) Read(b []byte) (int, error) { return t.input.Read(b) }

func (t *tunnel) Close() error {
	defer t.proxy.leave(t)
	return t.Conn.Close()
}

// handover is the listener of the inner server: it accepts tunnels.
type handover struct {
	tunnels chan *tunnel
	closed  chan struct{}
	once    *sync.Once
}

func newHandover() handover {
	return handover{tunnels: make(chan *tunnel), closed: make(chan struct{}), once: new(sync.Once)}
}

// give waits until t is accepted; false means that nobody will.
func (h handover) give(t *tunnel) bool {
	select {
	case h.tunnels <- t:
		return true
	case <-h.closed:
		return false
	}
}

func (h handover) Accept() (net.Conn, error) {
	select {
	case t := <-h.tunnels:
		return t, nil
	case <-h.closed:
		return nil, net.ErrClosed
	}
}

func (h handover) Close() error {
	h.once.Do(func() { close(h.closed) })
	return nil
}

// Addr is asked for by nobody but logs.
func (h handover) Addr() net.Addr { return &net.TCPAddr{} }
