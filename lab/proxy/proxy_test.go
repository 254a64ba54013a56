package proxy

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/oidclab/oidclab/lab/pki"
	"github.com/oidclab/oidclab/lab/trace"
)

func TestMain(m *testing.M) {
	if name := os.Getenv(childVariable); name != "" {
		os.Exit(child(name))
	}
	goleak.VerifyTestMain(m)
}

// patience is how long a test waits for what must happen.
const patience = 10 * time.Second

// lab is a proxy that listens, and its authority.
type lab struct {
	*Proxy
	ca    *pki.CA
	trace *trace.Log
}

// greeter answers with what it was asked.
var greeter = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
	fmt.Fprintf(w, "%s %s %s", r.Proto, r.Host, r.URL.Path)
})

func newAuthority(t testing.TB) *pki.CA {
	t.Helper()
	ca, err := pki.New("proxy test")
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

func start(t testing.TB, change func(*limits), hosts ...Host) *lab {
	t.Helper()
	return startWith(t, newAuthority(t), change, hosts...)
}

func startWith(t testing.TB, ca *pki.CA, change func(*limits), hosts ...Host) *lab {
	t.Helper()
	if len(hosts) == 0 {
		hosts = []Host{{Pattern: "sts.amazonaws.com", Handler: greeter}, {Pattern: "sts.*.amazonaws.com", Handler: greeter}}
	}
	limits := defaultLimits
	if change != nil {
		change(&limits)
	}
	l := &lab{ca: ca, trace: trace.New()}
	var err error
	if l.Proxy, err = newProxy(Config{CA: ca, Hosts: hosts, Trace: l.trace}, limits); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), patience)
		defer cancel()
		if err := l.Close(ctx); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	if err := l.Listen("127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
	return l
}

// client goes through the proxy, and trusts the lab.
func (l *lab) client(t testing.TB, change func(*http.Transport)) *http.Client {
	t.Helper()
	address, err := url.Parse(l.URL())
	if err != nil {
		t.Fatal(err)
	}
	transport := &http.Transport{
		Proxy:             http.ProxyURL(address),
		TLSClientConfig:   &tls.Config{RootCAs: l.ca.Pool()},
		ForceAttemptHTTP2: true,
	}
	if change != nil {
		change(transport)
	}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: patience}
}

// dial opens a connection to the proxy.
func (l *lab) dial(t testing.TB) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", strings.TrimPrefix(l.URL(), "http://"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	return conn
}

// ask sends raw text and returns the proxy's answer.
func ask(t testing.TB, conn net.Conn, text string) (status int, body string) {
	t.Helper()
	if _, err := io.WriteString(conn, text); err != nil {
		t.Fatal(err)
	}
	method, _, _ := strings.Cut(text, " ")
	response, err := http.ReadResponse(bufio.NewReader(conn), &http.Request{Method: method})
	if err != nil {
		t.Fatalf("%q: %v", text, err)
	}
	defer response.Body.Close()
	if response.StatusCode == http.StatusOK {
		return response.StatusCode, ""
	}
	content, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatalf("%q: %v", text, err)
	}
	return response.StatusCode, string(content)
}

func connectTo(target string) string { return "CONNECT " + target + " HTTP/1.1\r\nHost: x\r\n\r\n" }

// tunnelTo opens a tunnel to the host and does the handshake for serverName.
func (l *lab) tunnelTo(t testing.TB, host, serverName string, change func(*tls.Config)) (*tls.Conn, error) {
	t.Helper()
	conn := l.dial(t)
	if status, body := ask(t, conn, connectTo(host+":443")); status != http.StatusOK {
		t.Fatalf("CONNECT: %d %s", status, body)
	}
	config := &tls.Config{RootCAs: l.ca.Pool(), ServerName: serverName}
	if change != nil {
		change(config)
	}
	inside := tls.Client(conn, config)
	return inside, inside.Handshake()
}

// eventually waits for a condition; it returns "" or why it does not hold.
func eventually(t testing.TB, condition func() string) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for {
		reason := condition()
		if reason == "" {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("after %s: %s", patience, reason)
		}
		<-time.After(5 * time.Millisecond)
	}
}

func (l *lab) noTunnels() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.count != 0 || len(l.tunnels) != 0 {
		return fmt.Sprintf("%d tunnels are counted, %d open", l.count, len(l.tunnels))
	}
	return ""
}

func get(t testing.TB, client *http.Client, url string) (*http.Response, string) {
	t.Helper()
	response, err := client.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response, string(body)
}

func TestVersionsOfHTTP(t *testing.T) {
	l := start(t, nil)
	for _, test := range []struct {
		name, want string
		change     func(*http.Transport)
	}{
		{"HTTP/2", "HTTP/2.0 sts.eu-central-1.amazonaws.com /path", nil},
		{"HTTP/1.1", "HTTP/1.1 sts.eu-central-1.amazonaws.com /path", func(t *http.Transport) { t.ForceAttemptHTTP2 = false }},
	} {
		t.Run(test.name, func(t *testing.T) {
			response, body := get(t, l.client(t, test.change), "https://sts.eu-central-1.amazonaws.com/path")
			if body != test.want {
				t.Errorf("answered %q, want %q", body, test.want)
			}
			if names := response.TLS.PeerCertificates[0].DNSNames; !slices.Equal(names, []string{"sts.eu-central-1.amazonaws.com"}) {
				t.Errorf("the certificate is for %v", names)
			}
		})
	}
	events, _ := l.trace.Since(0)
	if len(events) != 2 || events[0].Name != "sts.eu-central-1.amazonaws.com" || events[0].Outcome != trace.OK {
		t.Errorf("events %+v", events)
	}
	if refused := l.Refused(); len(refused) != 0 {
		t.Errorf("refused %+v", refused)
	}
}

func TestEachHostHasItsHandler(t *testing.T) {
	named := func(name string) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, name) })
	}
	l := start(t, nil, Host{Pattern: "sts.googleapis.com", Handler: named("sts")}, Host{Pattern: "*.googleapis.com", Handler: named("any")}, Host{Pattern: "*.blob.core.windows.net", Handler: named("blob")})
	client := l.client(t, nil)
	for host, want := range map[string]string{"sts.googleapis.com": "sts", "storage.googleapis.com": "any", "account.blob.core.windows.net": "blob"} {
		if _, body := get(t, client, "https://"+host+"/"); body != want {
			t.Errorf("%s: %q answered, want %q", host, body, want)
		}
	}
}

func TestHostWithoutHTTP2(t *testing.T) {
	l := start(t, nil, Host{Pattern: "sts.amazonaws.com", Handler: greeter}, Host{Pattern: "idcs.identity.oraclecloud.com", Handler: greeter, NoHTTP2: true})
	client := l.client(t, func(t *http.Transport) { t.ForceAttemptHTTP2 = true })
	for host, want := range map[string]string{"sts.amazonaws.com": "HTTP/2.0", "idcs.identity.oraclecloud.com": "HTTP/1.1"} {
		if response, body := get(t, client, "https://"+host+"/"); response.Proto != want {
			t.Errorf("%s: %s, want %s: %s", host, response.Proto, want, body)
		}
	}
}

// DNS knows neither case nor, at the end, the dot of the root.
func TestSpellingsOfAName(t *testing.T) {
	l := start(t, nil)
	client := l.client(t, nil)
	for _, host := range []string{"sts.amazonaws.com", "STS.AmazonAWS.com", "sts.amazonaws.com.", "sts.amazonaws.com:443"} {
		response, body := get(t, client, "https://"+host+"/")
		if response.StatusCode != 200 {
			t.Errorf("%s: %d %s", host, response.StatusCode, body)
		}
	}
}

func TestRefusedRequests(t *testing.T) {
	for _, test := range []struct {
		request, target string
		reason          Reason
	}{
		{connectTo("example.com:443"), "example.com:443", HostUnknown},
		{connectTo("amazonaws.com:443"), "amazonaws.com:443", HostUnknown},
		{connectTo("sts.amazonaws.com.evil.example:443"), "sts.amazonaws.com.evil.example:443", HostUnknown},
		{connectTo("evilsts.amazonaws.com:443"), "evilsts.amazonaws.com:443", HostUnknown},
		{connectTo("sts.a.b.amazonaws.com:443"), "sts.a.b.amazonaws.com:443", HostUnknown},
		{connectTo("sts..amazonaws.com:443"), notAName, HostUnknown},
		{connectTo("sts.*.amazonaws.com:443"), notAName, HostUnknown},
		{connectTo("sts.amazonaws.com..:443"), notAName, HostUnknown},
		{connectTo("localhost:443"), "localhost:443", HostUnknown},
		{connectTo("127.0.0.1:443"), "127.0.0.1:443", HostUnknown},
		{connectTo("[::1]:443"), "[::1]:443", HostUnknown},
		{connectTo("[::ffff:127.0.0.1]:443"), "[::ffff:127.0.0.1]:443", HostUnknown},
		{connectTo("169.254.169.254:443"), "169.254.169.254:443", HostUnknown},
		{connectTo("2130706433:443"), "2130706433:443", HostUnknown},
		{connectTo("sts.amazonaws.com:80"), "sts.amazonaws.com:80", PortRefused},
		{connectTo("sts.amazonaws.com:8443"), "sts.amazonaws.com:8443", PortRefused},
		{connectTo("sts.amazonaws.com:0443"), "sts.amazonaws.com:0443", PortRefused},
		{connectTo("sts.amazonaws.com:"), "sts.amazonaws.com", PortRefused},
		{connectTo("sts.amazonaws.com"), "sts.amazonaws.com", TargetMalformed},
		{connectTo("user@sts.amazonaws.com:443"), "sts.amazonaws.com:443", TargetMalformed},
		{connectTo("sts.amazonaws.com:443/path"), "sts.amazonaws.com:443", TargetMalformed},
		{connectTo("sts.amazonaws.com:443?query"), "sts.amazonaws.com:443", TargetMalformed},
		{"CONNECT /path HTTP/1.1\r\nHost: sts.amazonaws.com:443\r\n\r\n", "sts.amazonaws.com:443", TargetMalformed},
		{"GET http://sts.amazonaws.com/ HTTP/1.1\r\nHost: sts.amazonaws.com\r\n\r\n", "sts.amazonaws.com", NotConnect},
		{"GET https://sts.amazonaws.com/ HTTP/1.1\r\nHost: sts.amazonaws.com\r\n\r\n", "sts.amazonaws.com", NotConnect},
		{"GET http://169.254.169.254/latest/ HTTP/1.1\r\nHost: 169.254.169.254\r\n\r\n", "169.254.169.254", NotConnect},
		{"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", "127.0.0.1", NotConnect},
		{"OPTIONS * HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", "127.0.0.1", NotConnect},
		{"POST http://example.com/ HTTP/1.1\r\nHost: example.com\r\nContent-Length: 1000000\r\n\r\ntoken", "example.com", NotConnect},
	} {
		t.Run(test.request, func(t *testing.T) {
			l := start(t, nil)
			status, body := ask(t, l.dial(t), test.request)
			if status != http.StatusForbidden {
				t.Errorf("status %d, want 403", status)
			}
			for _, want := range []string{test.target, test.reason.text(), "sts.*.amazonaws.com", "oidclab status"} {
				if !strings.Contains(body, want) {
					t.Errorf("the answer does not say %q: %s", want, body)
				}
			}
			refused := l.Refused()
			if len(refused) != 1 || refused[0].Target != test.target || refused[0].Reason != test.reason || refused[0].Count != 1 {
				t.Errorf("recorded %+v, want %s %s", refused, test.target, test.reason)
			}
			events, _ := l.trace.Since(0)
			if len(events) != 1 || events[0].Name != test.target || events[0].Outcome != trace.Refused || events[0].Reason != string(test.reason) {
				t.Errorf("events %+v", events)
			}
			if status, body := ask(t, l.dial(t), connectTo("sts.amazonaws.com:443")); status != http.StatusOK {
				t.Errorf("control: %d %s", status, body)
			}
		})
	}
}

func TestClientsOfOtherMachinesAreRefused(t *testing.T) {
	l := start(t, nil)
	for address, want := range map[string]bool{
		"127.0.0.1:4000": true, "127.9.9.9:4000": true, "[::1]:4000": true, "[::ffff:127.0.0.1]:4000": true,
		"192.0.2.1:4000": false, "[2001:db8::1]:4000": false, "[::ffff:192.0.2.1]:4000": false, "": false, "@": false,
	} {
		request := httptest.NewRequest(http.MethodConnect, "sts.amazonaws.com:443", nil)
		request.RemoteAddr = address
		response := httptest.NewRecorder() // cannot be hijacked: 500 is as far as an admitted client gets
		l.ServeHTTP(response, request)
		if admitted := response.Code == http.StatusInternalServerError; admitted != want {
			t.Errorf("client %q: status %d, admitted: %v, want %v", address, response.Code, admitted, want)
		}
	}
	if refused := l.Refused(); len(refused) != 1 || refused[0].Reason != ClientNotLocal || refused[0].Count != 5 {
		t.Errorf("recorded %+v", refused)
	}
	if reason := l.noTunnels(); reason != "" {
		t.Error(reason)
	}
}

func TestListenOnLoopbackOnly(t *testing.T) {
	for _, address := range []string{"0.0.0.0:0", "[::]:0", ":0", "192.0.2.1:0", "localhost:0", "127.0.0.1"} {
		p, err := New(Config{CA: newAuthority(t), Hosts: []Host{{Pattern: "sts.amazonaws.com", Handler: greeter}}})
		if err != nil {
			t.Fatal(err)
		}
		if err := p.Listen(address); err == nil {
			t.Errorf("%s: listens", address)
		}
		if url := p.URL(); url != "" {
			t.Errorf("%s: URL %s", address, url)
		}
		if err := p.Listen("127.0.0.1:0"); err != nil {
			t.Errorf("control: %v", err)
		}
		if err := p.Close(t.Context()); err != nil {
			t.Error(err)
		}
	}
}

func TestTakenPort(t *testing.T) {
	l := start(t, nil)
	p, err := New(Config{CA: l.ca, Hosts: []Host{{Pattern: "sts.amazonaws.com", Handler: greeter}}})
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Listen(strings.TrimPrefix(l.URL(), "http://")); err == nil {
		t.Error("two proxies listen on one port")
	}
	if err := p.Close(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestServerNameMustBeTheHost(t *testing.T) {
	l := start(t, nil)
	insecure := func(c *tls.Config) { c.InsecureSkipVerify = true }
	for _, name := range []string{"sts.eu-central-1.amazonaws.com", "example.com", ""} {
		if _, err := l.tunnelTo(t, "sts.amazonaws.com", name, insecure); err == nil {
			t.Errorf("server name %q got through", name)
		}
	}
	for _, name := range []string{"sts.amazonaws.com", "STS.amazonaws.com"} {
		if _, err := l.tunnelTo(t, "sts.amazonaws.com", name, nil); err != nil {
			t.Errorf("control %s: %v", name, err)
		}
	}
	if refused := l.Refused(); len(refused) != 3 || refused[0].Reason != ServerNameMismatch || refused[0].Target != "sts.eu-central-1.amazonaws.com" {
		t.Errorf("recorded %+v", refused)
	}
}

// A resumed session sends no certificate; its server name is checked all the same.
func TestServerNameOfAResumedSession(t *testing.T) {
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		l := start(t, nil)
		cache := tls.NewLRUClientSessionCache(1)
		resuming := func(c *tls.Config) { c.ClientSessionCache, c.MaxVersion = cache, version }
		for attempt := range 2 {
			conn, err := l.tunnelTo(t, "sts.amazonaws.com", "sts.amazonaws.com", resuming)
			if err != nil {
				t.Fatal(err)
			}
			status, _ := ask(t, conn, "GET / HTTP/1.1\r\nHost: sts.amazonaws.com\r\n\r\n") // the ticket comes with the answer
			if resumed := conn.ConnectionState().DidResume; status != 200 || resumed != (attempt == 1) {
				t.Fatalf("control: status %d, resumed: %v", status, resumed)
			}
		}
		if _, err := l.tunnelTo(t, "sts.eu-central-1.amazonaws.com", "sts.amazonaws.com", resuming); err == nil {
			t.Error("a session of another host was resumed")
		}
	}
}

func TestHostMustBeTheTunnels(t *testing.T) {
	l := start(t, nil)
	for _, version := range []string{"h2", "http/1.1"} {
		client := l.client(t, func(t *http.Transport) { t.ForceAttemptHTTP2 = version == "h2" })
		for host, want := range map[string]int{
			"sts.amazonaws.com":              200,
			"STS.amazonaws.com.":             200,
			"sts.amazonaws.com:443":          200,
			"sts.amazonaws.com:8443":         421,
			"sts.eu-central-1.amazonaws.com": 421,
			"example.com":                    421,
		} {
			request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://sts.amazonaws.com/", nil)
			if err != nil {
				t.Fatal(err)
			}
			request.Host = host
			response, err := client.Do(request)
			if err != nil {
				t.Fatal(err)
			}
			response.Body.Close()
			if response.StatusCode != want {
				t.Errorf("%s, Host %s: status %d, want %d", version, host, response.StatusCode, want)
			}
		}
	}
	conn, err := l.tunnelTo(t, "sts.amazonaws.com", "sts.amazonaws.com", nil)
	if err != nil {
		t.Fatal(err)
	}
	if status, _ := ask(t, conn, "GET https://example.com/ HTTP/1.1\r\nHost: sts.amazonaws.com\r\n\r\n"); status != 421 {
		t.Errorf("absolute form: status %d", status)
	}
	if refused := l.Refused(); len(refused) != 3 || refused[0].Reason != HostMismatch {
		t.Errorf("recorded %+v", refused)
	}
}

func TestHelloTogetherWithConnect(t *testing.T) {
	l := start(t, nil)
	conn := l.dial(t)
	inside := tls.Client(&eager{Conn: conn, first: connectTo("sts.amazonaws.com:443")}, &tls.Config{RootCAs: l.ca.Pool(), ServerName: "sts.amazonaws.com"})
	if status, body := ask(t, inside, "GET / HTTP/1.1\r\nHost: sts.amazonaws.com\r\n\r\n"); status != 200 {
		t.Errorf("%d %s", status, body)
	}
}

// eager sends text before the first write, in one packet with it, and skips
// the answer to CONNECT.
type eager struct {
	net.Conn
	first  string
	reader *bufio.Reader
}

func (e *eager) Write(b []byte) (int, error) {
	_, err := e.Conn.Write(append([]byte(e.first), b...))
	e.first = ""
	return len(b), err
}

func (e *eager) Read(b []byte) (int, error) {
	if e.reader == nil {
		e.reader = bufio.NewReader(e.Conn)
		for {
			line, err := e.reader.ReadString('\n')
			if err != nil || line == "\r\n" {
				break
			}
		}
	}
	return e.reader.Read(b)
}

func TestHeaderSizes(t *testing.T) {
	l := start(t, nil)
	long := strings.Repeat("a", 64<<10)
	if status, _ := ask(t, l.dial(t), "CONNECT sts.amazonaws.com:443 HTTP/1.1\r\nHost: x\r\nX: "+long[:16<<10]+"\r\n\r\n"); status != http.StatusRequestHeaderFieldsTooLarge {
		t.Errorf("CONNECT: status %d", status)
	}
	for size, want := range map[int]int{20 << 10: 200, 64 << 10: 431} {
		conn, err := l.tunnelTo(t, "sts.amazonaws.com", "sts.amazonaws.com", nil)
		if err != nil {
			t.Fatal(err)
		}
		if status, _ := ask(t, conn, "GET / HTTP/1.1\r\nHost: sts.amazonaws.com\r\nAuthorization: Bearer "+long[:size]+"\r\n\r\n"); status != want {
			t.Errorf("inside, %d bytes: status %d, want %d", size, status, want)
		}
	}
}

// A client that falls silent, wherever it does, is cut off.
func TestSilentClients(t *testing.T) {
	l := start(t, func(l *limits) { l.handshakeTimeout, l.idleTimeout = time.Second, time.Second })
	request := "GET / HTTP/1.1\r\nHost: sts.amazonaws.com\r\n\r\n"
	inside := func(t *testing.T) net.Conn {
		conn, err := l.tunnelTo(t, "sts.amazonaws.com", "sts.amazonaws.com", nil)
		if err != nil {
			t.Fatal(err)
		}
		return conn
	}
	send := func(t *testing.T, conn net.Conn, text string) net.Conn {
		if _, err := io.WriteString(conn, text); err != nil {
			t.Fatal(err)
		}
		return conn
	}
	for name, open := range map[string]func(*testing.T) net.Conn{
		"nothing":        func(t *testing.T) net.Conn { return l.dial(t) },
		"half a CONNECT": func(t *testing.T) net.Conn { return send(t, l.dial(t), "CONNECT sts.amaz") },
		"no hello": func(t *testing.T) net.Conn {
			return send(t, l.dial(t), connectTo("sts.amazonaws.com:443"))
		},
		"half a hello": func(t *testing.T) net.Conn {
			return send(t, l.dial(t), connectTo("sts.amazonaws.com:443")+"\x16\x03\x01\x02\x00\x01")
		},
		"no request":      inside,
		"half a request":  func(t *testing.T) net.Conn { return send(t, inside(t), request[:20]) },
		"after a request": func(t *testing.T) net.Conn { return send(t, inside(t), request) },
		"no HTTP/2 frames": func(t *testing.T) net.Conn {
			conn, err := l.tunnelTo(t, "sts.amazonaws.com", "sts.amazonaws.com", func(c *tls.Config) { c.NextProtos = []string{"h2"} })
			if err != nil {
				t.Fatal(err)
			}
			return send(t, conn, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00")
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := io.Copy(io.Discard, open(t))
			if timeout := net.Error(nil); errors.As(err, &timeout) && timeout.Timeout() {
				t.Errorf("was not cut off within %s", patience)
			}
		})
	}
	t.Cleanup(func() { eventually(t, l.noTunnels) })
}

func TestAbruptEnds(t *testing.T) {
	l := start(t, nil)
	for _, text := range []string{"", "CONN", connectTo("sts.amazonaws.com:443"), connectTo("sts.amazonaws.com:443") + "\x16\x03\x01\x02\x00\x01", connectTo("sts.amazonaws.com:443") + "no TLS at all", connectTo("example.com:443")} {
		for range 20 {
			conn := l.dial(t).(*net.TCPConn)
			_ = conn.SetLinger(0) // a reset
			_, _ = io.WriteString(conn, text)
			conn.Close()
		}
	}
	for range 20 {
		conn, err := l.tunnelTo(t, "sts.amazonaws.com", "sts.amazonaws.com", nil)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.WriteString(conn, "GET / HTTP/1.1\r\nHost: sts.amazonaws.com\r\n\r\n")
		conn.NetConn().Close()
	}
	eventually(t, l.noTunnels)
	if response, _ := get(t, l.client(t, nil), "https://sts.amazonaws.com/"); response.StatusCode != 200 {
		t.Errorf("afterwards: %d", response.StatusCode)
	}
}

func TestManyTunnels(t *testing.T) {
	l := start(t, nil)
	var group sync.WaitGroup
	for i := range 200 {
		client := l.client(t, func(t *http.Transport) { t.ForceAttemptHTTP2 = i%2 == 0 })
		group.Go(func() {
			response, err := client.Get(fmt.Sprintf("https://sts.region-%d.amazonaws.com/", i%50))
			if err != nil {
				t.Error(err)
				return
			}
			response.Body.Close()
			if response.StatusCode != 200 {
				t.Errorf("status %d", response.StatusCode)
			}
		})
	}
	group.Wait()
}

func TestTooManyTunnels(t *testing.T) {
	l := start(t, func(l *limits) { l.tunnels = 3 })
	var open []net.Conn
	for range 3 {
		conn := l.dial(t)
		if status, body := ask(t, conn, connectTo("sts.amazonaws.com:443")); status != 200 {
			t.Fatalf("%d %s", status, body)
		}
		open = append(open, conn)
	}
	if status, _ := ask(t, l.dial(t), connectTo("sts.amazonaws.com:443")); status != http.StatusServiceUnavailable {
		t.Errorf("the fourth tunnel: status %d", status)
	}
	if refused := l.Refused(); len(refused) != 1 || refused[0].Reason != TooManyTunnels {
		t.Errorf("recorded %+v", refused)
	}
	open[0].Close()
	eventually(t, func() string {
		if status, body := ask(t, l.dial(t), connectTo("sts.amazonaws.com:443")); status != 200 {
			return body
		}
		return ""
	})
}

func TestCertificatesAreKeptAndBounded(t *testing.T) {
	l := start(t, func(l *limits) { l.certificates = 2 })
	first, err := l.certs.configOf("a.example.com")
	if err != nil {
		t.Fatal(err)
	}
	if again, _ := l.certs.configOf("a.example.com"); again != first {
		t.Error("the certificate was made again")
	}
	for i := range 10 {
		if _, err := l.certs.configOf(fmt.Sprintf("%d.example.com", i)); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(l.certs.configs); n != 2 {
		t.Errorf("%d certificates are kept, want 2", n)
	}
}

func TestRefusalsAreCountedAndBounded(t *testing.T) {
	r := &record{}
	for range 3 {
		r.refused("example.com:443", HostUnknown)
	}
	r.refused("example.com:443", PortRefused)
	for i := range 2 * maxRefusals {
		r.refused(fmt.Sprintf("%d.example.com:443", i), HostUnknown)
	}
	list := r.list()
	if list[0].Count != 3 || list[1].Count != 1 {
		t.Errorf("recorded %+v", list[:2])
	}
	others := list[len(list)-1]
	if len(list) != maxRefusals+1 || others.Target != otherTargets || others.Count != maxRefusals+2 {
		t.Errorf("%d refusals, the last %+v", len(list), others)
	}
}

// Whatever a client sends as a host, only a host name is kept.
func TestNothingButHostNamesIsKept(t *testing.T) {
	const token = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJzeXN0ZW06c2VydmljZWFjY291bnQ6ZGVtbzphcHAifQ.c2ln_bmF0dXJl-MTIz"
	l := start(t, nil)
	for _, request := range []string{
		connectTo(token + ":443"),
		connectTo("example.com:" + token),
		connectTo(token + "@example.com:443"),
		connectTo("example.com:443/" + token),
		"GET http://example.com/?token=" + token + " HTTP/1.1\r\nHost: example.com\r\nAuthorization: Bearer " + token + "\r\n\r\n",
		"GET / HTTP/1.1\r\nHost: " + token + "\r\nProxy-Authorization: Bearer " + token + "\r\n\r\n",
		"GET http://[fe80::1%25" + token + "]/ HTTP/1.1\r\nHost: x\r\n\r\n",
	} {
		status, body := ask(t, l.dial(t), request)
		if status == http.StatusOK || strings.Contains(body, token) {
			t.Errorf("%q: %d %s", request, status, body)
		}
	}
	events, _ := l.trace.Since(0)
	if len(events) < 5 {
		t.Errorf("%d events only", len(events))
	}
	if text := strings.ToLower(fmt.Sprintf("%+v %+v", events, l.Refused())); strings.Contains(text, strings.ToLower(token)) {
		t.Error("a token was kept")
	}
}

func TestWrongConfigurations(t *testing.T) {
	ca := newAuthority(t)
	for _, cfg := range []Config{
		{Hosts: []Host{{Pattern: "sts.amazonaws.com", Handler: greeter}}},
		{CA: ca},
		{CA: ca, Hosts: []Host{{Pattern: "sts.amazonaws.com", Handler: nil}}},
		{CA: ca, Hosts: []Host{{Pattern: "sts.amazonaws.com", Handler: greeter}, {Pattern: "sts.amazonaws.com", Handler: greeter}}},
	} {
		if _, err := New(cfg); err == nil {
			t.Errorf("accepted: %+v", cfg)
		}
	}
	for _, pattern := range []string{
		"", "*", "com", "localhost", "*.com", "amazonaws.*", "*.*", "a.*.com", "sts*.amazonaws.com", "sts.**.amazonaws.com",
		"STS.amazonaws.com", "sts.amazonaws.com.", ".amazonaws.com", "sts..com", "-a.example.com", "a-.example.com",
		"a_b.example.com", "127.0.0.1", "*.0.0.1", "::1", "sts.amazonaws.com:443", strings.Repeat("a", 64) + ".example.com",
	} {
		if _, err := New(Config{CA: ca, Hosts: []Host{{Pattern: pattern, Handler: greeter}}}); err == nil {
			t.Errorf("pattern %q was accepted", pattern)
		}
	}
	for _, pattern := range []string{"sts.amazonaws.com", "sts.*.amazonaws.com", "*.blob.core.windows.net", "stackit.cloud", "*.*.example.com"} {
		if _, err := New(Config{CA: ca, Hosts: []Host{{Pattern: pattern, Handler: greeter}}}); err != nil {
			t.Errorf("control: %v", err)
		}
	}
}
