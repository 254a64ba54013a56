package proxy

import (
	"context"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
)

// Nothing in the package can open a connection: of the packages that can, it
// uses only what is listed here, and those that are not listed it does not
// import.
func TestNothingIsDialled(t *testing.T) {
	uses := map[string][]string{
		"net": {"Addr", "Conn", "ErrClosed", "JoinHostPort", "Listen", "SplitHostPort", "TCPAddr"},
		"net/http": {
			"ConnState", "Error", "ErrServerClosed", "Handler", "HandlerFunc", "MethodConnect", "NewResponseController", "Request", "ResponseWriter", "Server",
			"StateNew", "StatusForbidden", "StatusInternalServerError", "StatusMisdirectedRequest", "StatusServiceUnavailable",
		},
		"crypto/tls": {"Certificate", "ClientHelloInfo", "Config", "Conn", "VersionTLS12"},
		"net/netip":  {"ParseAddr", "ParseAddrPort"},
	}
	harmless := []string{
		"context", "errors", "fmt", "io", "log", "log/slog", "slices", "strings", "sync", "sync/atomic", "time",
		"github.com/oidclab/oidclab/lab/pki", "github.com/oidclab/oidclab/lab/trace",
	}
	names, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	looked := 0
	for _, name := range names {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		looked++
		f, err := parser.ParseFile(token.NewFileSet(), name, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		imported := map[string]string{} // path by the name in the file
		for _, spec := range f.Imports {
			path := strings.Trim(spec.Path.Value, `"`)
			if uses[path] == nil && !slices.Contains(harmless, path) {
				t.Errorf("%s imports %s: say in this test that it opens no connections", name, path)
			}
			if spec.Name != nil {
				t.Errorf("%s renames %s, which hides from this test what is used of it", name, path)
			}
			imported[path[strings.LastIndexByte(path, '/')+1:]] = path
		}
		ast.Inspect(f, func(n ast.Node) bool {
			selector, ok := n.(*ast.SelectorExpr)
			if !ok {
				return true
			}
			if left, ok := selector.X.(*ast.Ident); ok && left.Obj == nil {
				if path := imported[left.Name]; uses[path] != nil && !slices.Contains(uses[path], selector.Sel.Name) {
					t.Errorf("%s uses %s.%s", name, path, selector.Sel.Name)
				}
			}
			return true
		})
	}
	if looked < 4 {
		t.Errorf("%d files were looked at", looked)
	}
}

// Whatever is asked for, nobody is called: not a listener on this machine, not
// the resolver, and nothing through the process's default transport.
func TestNobodyIsCalled(t *testing.T) {
	var calls atomic.Int32
	refuse := func(context.Context, string, string) (net.Conn, error) {
		calls.Add(1)
		return nil, errors.New("recorded")
	}
	resolver, transport := net.DefaultResolver, http.DefaultTransport
	net.DefaultResolver = &net.Resolver{PreferGo: true, Dial: refuse}
	http.DefaultTransport = &http.Transport{DialContext: refuse}
	defer func() { net.DefaultResolver, http.DefaultTransport = resolver, transport }()

	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	accepting := make(chan struct{})
	go func() {
		defer close(accepting)
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			calls.Add(1)
			conn.Close()
		}
	}()
	defer func() { listener.Close(); <-accepting }()
	recorder := listener.Addr().String()
	_, port, _ := net.SplitHostPort(recorder)

	l := start(t, nil, Host{Pattern: "sts.amazonaws.com", Handler: greeter}, Host{Pattern: "sts.*.amazonaws.com", Handler: greeter}, Host{Pattern: "recorder.example", Handler: greeter})
	for _, request := range []string{
		connectTo(recorder),
		connectTo("localhost:" + port),
		connectTo("[::ffff:127.0.0.1]:" + port),
		connectTo("recorder.example:" + port),
		connectTo("example.com:443"),
		"GET http://" + recorder + "/ HTTP/1.1\r\nHost: x\r\n\r\n",
		"GET http://localhost:" + port + "/ HTTP/1.1\r\nHost: x\r\n\r\n",
		"GET / HTTP/1.1\r\nHost: " + recorder + "\r\n\r\n",
	} {
		if status, body := ask(t, l.dial(t), request); status != http.StatusForbidden {
			t.Errorf("%q: %d %s", request, status, body)
		}
	}
	client := l.client(t, nil)
	for _, host := range []string{"sts.amazonaws.com", "sts.us-east-1.amazonaws.com", "recorder.example"} {
		if response, _ := get(t, client, "https://"+host+"/"); response.StatusCode != 200 {
			t.Errorf("%s: %d", host, response.StatusCode)
		}
	}
	if n := calls.Load(); n != 0 {
		t.Errorf("%d calls were recorded", n)
	}

	// Control: each of the three records a call.
	if conn, err := net.Dial("tcp", recorder); err == nil {
		_, _ = conn.Read(make([]byte, 1)) // until it was accepted and closed
		conn.Close()
	}
	_, _ = net.DefaultResolver.LookupHost(t.Context(), "example.com")
	if response, err := http.Get("http://" + recorder); err == nil {
		response.Body.Close()
	}
	if n := calls.Load(); n < 3 {
		t.Errorf("control: %d calls were recorded", n)
	}
}
