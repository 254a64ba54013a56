package lab

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"github.com/oidclab/oidclab/lab/clock"
	"github.com/oidclab/oidclab/lab/cluster"
	"github.com/oidclab/oidclab/lab/issuer"
	"github.com/oidclab/oidclab/lab/keys"
	"github.com/oidclab/oidclab/lab/pki"
	"github.com/oidclab/oidclab/lab/problem"
	"github.com/oidclab/oidclab/lab/proxy"
	"github.com/oidclab/oidclab/lab/serve"
	"github.com/oidclab/oidclab/lab/sts"
	"github.com/oidclab/oidclab/lab/trace"
	"github.com/oidclab/oidclab/lab/vault"
)

// loopback is where the lab listens if all who need it are processes of this machine.
const loopback = "127.0.0.1"

// maxDocument bounds what the lab reads from its own servers.
const maxDocument = 1 << 20

// Lab is a lab that is up. Make one with Up.
type Lab struct {
	Clock *clock.Lab // of token service, caches and credentials
	Trace *trace.Log

	spec    Spec
	observe func(StepEvent)
	info    Info
	address string // of every listener: an IP address by which this machine, pods and containers reach it
	since   time.Time
	ca      *pki.CA
	client  *http.Client // trusts the lab's CA, and uses no proxy
	front   *issuer.Front
	members []*member
	parties []party
	hosts   []proxy.Host // the vendors' host names, and who plays them
	proxy   *proxy.Proxy
	vault   *vault.Server // nil without one
	undo    undo

	tokenFiles tokenFiles
}

// member is one cluster of the lab and what belongs to it.
type member struct {
	id      string
	issuer  string
	jwksURI string
	dir     string
	keys    *keys.Set
	cluster cluster.Cluster

	anew     chan struct{} // see watchAnew
	changing sync.Mutex    // held over a change of the cluster's identity
	rotating sync.Mutex
	rotation *Rotation // guarded by rotating; nil before the first
}

// step is the name of the step that starts the cluster.
func (m *member) step() string { return "cluster " + m.id }

// party is a relying party of the lab's token services.
type party struct {
	name  string
	cache sts.CachePolicy
	keys  func(issuer string) sts.KeySetState // what it holds of an issuer's keys
}

// Up brings up a lab. The context bounds the start only. After an error
// nothing is left running; files stay in the directory. observe is told of
// each step, one call at a time; nil means nobody wants to know.
func Up(ctx context.Context, spec Spec, observe func(StepEvent)) (*Lab, error) {
	spec, err := spec.validated()
	if err != nil {
		return nil, err
	}
	if observe == nil {
		observe = func(StepEvent) {}
	}
	observe = oneAtATime(observe)
	l := &Lab{spec: spec, observe: observe, Clock: clock.New(nil), Trace: trace.New(), since: time.Now(), address: loopback}
	l.info = Info{Name: spec.Name, Engine: spec.Engine, Signer: spec.Signer, IssuerStyle: spec.Issuers, Dir: spec.Dir, CAFile: filepath.Join(spec.Dir, "ca.crt"), Absent: map[string]string{}}

	l.describePods()

	var p plan
	var network []*step
	if spec.Engine == Kind {
		network = append(network, p.step("docker network", l.startNetwork))
	}
	front := p.step("certificates and issuer front", l.startFront, network...)
	services := p.step("token service", l.startServices, front)
	var clusters []*step
	for _, m := range l.newMembers() {
		signing := p.step("signing keys "+m.id, m.startSigning(l), front)
		clusters = append(clusters, p.step(m.step(), m.startCluster(l), signing))
	}
	if spec.Vault != "" || spec.VaultImage != "" {
		server := p.step("vault", l.startVault, front)
		p.step("vault configuration", l.configureVault, append([]*step{server}, clusters...)...)
	} else {
		l.info.Absent["vault"] = spec.NoVault
	}
	if len(clusters) > 1 {
		p.step("trust between clusters", l.awaitTrustInEachOther, clusters...)
	}
	hook := p.step("pod identity webhook", l.startWebhook, append([]*step{services}, clusters...)...)
	p.step("ready", l.awaitReady, hook)
	if err := p.up(ctx, &l.undo, observe); err != nil {
		return nil, err
	}
	watching, stop := context.WithCancel(context.WithoutCancel(ctx))
	var watchers sync.WaitGroup
	watchers.Go(func() { l.watchRotations(watching) })
	watchers.Go(func() { l.tokenFiles.watch(watching, l) })
	l.undo.add("watchers", func(context.Context) error {
		stop()
		watchers.Wait()
		l.client.CloseIdleConnections() // or each server would wait a second for those to it, with HTTP/2
		return nil
	})
	return l, nil
}

// Down stops everything, newest first. It may be called again.
func (l *Lab) Down(ctx context.Context) error { return l.undo.all(ctx) }

// Info returns where everything is.
func (l *Lab) Info() Info { return l.info }

func (l *Lab) newMembers() []*member {
	for i := range l.spec.Clusters {
		id := clusterID(i)
		l.members = append(l.members, &member{id: id, dir: filepath.Join(l.spec.Dir, "clusters", id), anew: make(chan struct{}, 1)})
	}
	return l.members
}

func (l *Lab) startFront(_ context.Context, u *undo) (string, error) {
	ca, err := pki.New("oidclab " + l.spec.Name)
	if err != nil {
		return "", err
	}
	l.ca = ca
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: ca.Pool()}, ForceAttemptHTTP2: true, MaxIdleConnsPerHost: 16}
	l.client = &http.Client{Transport: transport}
	u.add("client connections", func(context.Context) error { transport.CloseIdleConnections(); return nil })
	if err := os.WriteFile(l.info.CAFile, ca.CertPEM(), 0o644); err != nil {
		return "", err
	}
	server, err := l.listen(u, "issuer front", l.spec.Port)
	if err != nil {
		return "", err
	}
	layout, err := issuer.LayoutNamed(l.spec.Issuers)
	if err != nil {
		return "", err
	}
	l.front = issuer.New(server.URL(), layout, nil)
	l.info.Front = server.URL()
	for _, m := range l.members {
		m.issuer, m.jwksURI = l.front.IssuerURL(m.id), l.front.KeySetURL(m.id)
		l.front.Announce(m.id)
	}
	server.Serve(l.front)
	return l.info.Front, nil
}

func (l *Lab) listen(u *undo, name string, port int) (*serve.Server, error) {
	server, err := l.listenAt(u, name, l.address, port)
	if inUse := new(serve.InUseError); errors.As(err, &inUse) {
		return nil, problem.New(problem.Conflict, "choose another --port, or leave it out for any free one", "%w", err)
	}
	return server, err
}

// listenAt listens on a port of an IP address of this machine.
func (l *Lab) listenAt(u *undo, name, host string, port int) (*serve.Server, error) {
	names := []string{host}
	if host == loopback {
		names = append(names, "localhost")
	}
	certificate := l.ca.Rotating(clock.System{}, names...)
	first, err := certificate.Get(nil)
	if err != nil {
		return nil, err
	}
	server, err := serve.Listen(net.JoinHostPort(host, strconv.Itoa(port)), *first, l.spec.Log.With("server", name))
	if err != nil {
		return nil, err
	}
	u.add(name, server.Close)
	server.WithCertificate(certificate.Get)
	return server, nil
}
