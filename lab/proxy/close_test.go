package proxy

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"
)

// ended says whether the other side has closed the connection.
func ended(conn net.Conn) string {
	_ = conn.SetReadDeadline(time.Now().Add(patience))
	if _, err := io.Copy(io.Discard, conn); err != nil {
		if timeout, ok := err.(net.Error); ok && timeout.Timeout() {
			return "still open"
		}
	}
	return ""
}

// Close ends what is open within a moment, whatever it waits for.
func TestCloseInAnyPhase(t *testing.T) {
	tunnelled := func(protocols ...string) func(*testing.T, *lab) net.Conn {
		return func(t *testing.T, l *lab) net.Conn {
			conn, err := l.tunnelTo(t, "sts.amazonaws.com", "sts.amazonaws.com", nil)
			if err != nil {
				t.Fatal(err)
			}
			return conn
		}
	}
	for name, open := range map[string]func(*testing.T, *lab) net.Conn{
		"connected": func(t *testing.T, l *lab) net.Conn { return l.dial(t) },
		"half a CONNECT": func(t *testing.T, l *lab) net.Conn {
			conn := l.dial(t)
			_, _ = io.WriteString(conn, "CONNECT sts")
			return conn
		},
		"no hello": func(t *testing.T, l *lab) net.Conn {
			conn := l.dial(t)
			ask(t, conn, connectTo("sts.amazonaws.com:443"))
			return conn
		},
		"half a hello": func(t *testing.T, l *lab) net.Conn {
			conn := l.dial(t)
			ask(t, conn, connectTo("sts.amazonaws.com:443"))
			_, _ = io.WriteString(conn, "\x16\x03\x01\x02\x00\x01")
			return conn
		},
		"no request": tunnelled(),
		"idle": func(t *testing.T, l *lab) net.Conn {
			conn := tunnelled()(t, l)
			ask(t, conn, "GET / HTTP/1.1\r\nHost: sts.amazonaws.com\r\n\r\n")
			return conn
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := start(t, nil)
			conn := open(t, l)
			began := time.Now()
			for range 2 {
				if err := l.Close(t.Context()); err != nil {
					t.Error(err)
				}
			}
			if took := time.Since(began); took > 4*time.Second {
				t.Errorf("Close took %s", took)
			}
			if reason := ended(conn); reason != "" {
				t.Error(reason)
			}
			if reason := l.noTunnels(); reason != "" {
				t.Error(reason)
			}
			if _, err := net.Dial("tcp", l.URL()[len("http://"):]); err == nil {
				t.Error("still listening")
			}
		})
	}
}

func TestCloseWithoutListen(t *testing.T) {
	p, err := New(Config{CA: newAuthority(t), Hosts: []Host{{Pattern: "sts.amazonaws.com", Handler: greeter}}})
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := p.Close(t.Context()); err != nil {
			t.Error(err)
		}
	}
	if err := p.Listen("127.0.0.1:0"); err == nil {
		t.Error("listens after Close")
	}
}

// blocking is a handler that waits: for a test, or for its client to go.
func blocking(entered chan<- struct{}, leave <-chan struct{}) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		entered <- struct{}{}
		select {
		case <-leave:
		case <-r.Context().Done():
		}
		_, _ = io.WriteString(w, "done")
	})
}

func TestCloseLetsRequestsFinish(t *testing.T) {
	for _, version := range []string{"h2", "http/1.1"} {
		entered, leave, closed := make(chan struct{}, 1), make(chan struct{}), make(chan error, 1)
		l := start(t, nil, Host{Pattern: "sts.amazonaws.com", Handler: blocking(entered, leave)})
		client := l.client(t, func(t *http.Transport) { t.ForceAttemptHTTP2 = version == "h2" })
		answered := make(chan string, 1)
		go func() {
			response, err := client.Get("https://sts.amazonaws.com/")
			if err != nil {
				answered <- err.Error()
				return
			}
			defer response.Body.Close()
			body, _ := io.ReadAll(response.Body)
			answered <- string(body)
		}()
		<-entered
		go func() { closed <- l.Close(t.Context()) }()
		eventually(t, func() string {
			if conn, err := net.Dial("tcp", l.URL()[len("http://"):]); err == nil {
				conn.Close()
				return "still listening"
			}
			return ""
		})
		select {
		case <-closed:
			t.Errorf("%s: Close did not wait", version)
		default:
		}
		close(leave)
		if got := <-answered; got != "done" {
			t.Errorf("%s: answered %q", version, got)
		}
		if err := <-closed; err != nil {
			t.Error(err)
		}
	}
}

func TestCloseCutsRequestsWhenTheContextEnds(t *testing.T) {
	for _, version := range []string{"h2", "http/1.1"} {
		entered := make(chan struct{}, 1)
		l := start(t, nil, Host{Pattern: "sts.amazonaws.com", Handler: blocking(entered, nil)})
		client := l.client(t, func(t *http.Transport) { t.ForceAttemptHTTP2 = version == "h2" })
		result := make(chan error, 1)
		go func() {
			response, err := client.Get("https://sts.amazonaws.com/")
			if err == nil {
				response.Body.Close()
			}
			result <- err
		}()
		<-entered
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		if err := l.Close(ctx); err != nil {
			t.Error(err)
		}
		cancel()
		if err := <-result; err == nil {
			t.Errorf("%s: the request outlived Close", version)
		}
		if reason := l.noTunnels(); reason != "" {
			t.Error(reason)
		}
	}
}

func TestCloseWhileClientsCome(t *testing.T) {
	for range 20 {
		l := start(t, nil)
		stop := make(chan struct{})
		var group sync.WaitGroup
		for range 4 {
			group.Go(func() {
				for {
					select {
					case <-stop:
						return
					default:
					}
					conn, err := net.Dial("tcp", l.URL()[len("http://"):])
					if err != nil {
						return
					}
					_, _ = io.WriteString(conn, connectTo("sts.amazonaws.com:443"))
					_ = conn.SetReadDeadline(time.Now().Add(patience))
					_, _ = conn.Read(make([]byte, 100))
					conn.Close()
				}
			})
		}
		eventually(t, func() string {
			if events, _ := l.trace.Since(0); len(events) < 10 {
				return "nobody has come"
			}
			return ""
		})
		var closing sync.WaitGroup
		for range 2 {
			closing.Go(func() { _ = l.Close(t.Context()) })
		}
		closing.Wait()
		close(stop)
		group.Wait()
		eventually(t, l.noTunnels)
	}
}

// A client that was admitted before Close and comes back from the hijack after
// it gets no tunnel.
func TestNoTunnelIsOpenedDuringClose(t *testing.T) {
	l := start(t, nil)
	request := httptest.NewRequest(http.MethodConnect, "sts.amazonaws.com:443", nil)
	request.RemoteAddr = "127.0.0.1:4000"
	late, early := &tunnel{proxy: l.Proxy}, &tunnel{proxy: l.Proxy}
	for _, admitted := range []*tunnel{late, early} {
		if reason := l.admit(admitted, request); reason != "" {
			t.Fatal(reason)
		}
	}
	if !l.enter(early) {
		t.Error("control: no tunnel before Close")
	}
	l.leave(early)
	if err := l.Close(t.Context()); err != nil {
		t.Error(err)
	}
	if l.enter(late) {
		t.Error("a tunnel after Close")
	}
	l.leave(late)
	if reason := l.admit(&tunnel{proxy: l.Proxy}, request); reason != NotServing {
		t.Errorf("after Close: %q, want %s", reason, NotServing)
	}
}
