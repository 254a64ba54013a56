package lab

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/oidclab/oidclab/fixtures"
	"github.com/oidclab/oidclab/lab/clock"
	"github.com/oidclab/oidclab/lab/cluster/embedded"
	"github.com/oidclab/oidclab/lab/issuer"
	"github.com/oidclab/oidclab/lab/keys"
	"github.com/oidclab/oidclab/lab/pki"
	"github.com/oidclab/oidclab/lab/problem"
	"github.com/oidclab/oidclab/lab/serve"
	"github.com/oidclab/oidclab/lab/sts"
	"github.com/oidclab/oidclab/lab/sts/aws"
	"github.com/oidclab/oidclab/lab/sts/generic"
	"github.com/oidclab/oidclab/lab/trace"
	"github.com/oidclab/oidclab/lab/vault"
)

// maxDocument bounds what the lab reads from its own servers.
const maxDocument = 1 << 20

// Lab is a lab that is up. Make one with Up.
type Lab struct {
	Clock *clock.Lab // of token service, caches and credentials
	Trace *trace.Log

	spec    Spec
	info    Info
	since   time.Time
	ca      *pki.CA
	client  *http.Client // trusts the lab's CA, and uses no proxy
	front   *issuer.Front
	members []*member
	parties []party
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
	cluster *embedded.Cluster

	rotating sync.Mutex
	rotation *Rotation // guarded by rotating; nil before the first
}

// party is a relying party of the lab's token services.
type party struct {
	name  string
	cache sts.CachePolicy
	core  *sts.Core
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
	l := &Lab{spec: spec, Clock: clock.New(nil), Trace: trace.New(), since: time.Now()}
	l.info = Info{Name: spec.Name, Engine: "embedded", Dir: spec.Dir, CAFile: filepath.Join(spec.Dir, "ca.crt"), Absent: map[string]string{}}

	var p plan
	front := p.step("certificates and issuer front", l.startFront)
	services := p.step("token service", l.startServices, front)
	var clusters []*step
	for _, m := range l.newMembers() {
		signing := p.step("signing keys "+m.id, m.startSigner(l), front)
		clusters = append(clusters, p.step("cluster "+m.id, m.startCluster(l), signing))
	}
	if spec.Vault != "" {
		server := p.step("vault", l.startVault, front)
		p.step("vault configuration", l.configureVault, append(clusters, server)...)
	} else {
		l.info.Absent["vault"] = spec.NoVault
	}
	if len(clusters) > 1 {
		p.step("trust between clusters", l.awaitTrustInEachOther, clusters...)
	}
	p.step("ready", l.awaitReady, append(clusters, services)...)
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
		l.members = append(l.members, &member{id: id, dir: filepath.Join(l.spec.Dir, "clusters", id)})
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
	l.front = issuer.New(server.URL(), nil)
	l.info.Front = server.URL()
	for _, m := range l.members {
		m.issuer, m.jwksURI = l.front.IssuerURL(m.id), l.front.KeySetURL(m.id)
		l.front.Announce(m.id)
	}
	server.Serve(l.front)
	return l.info.Front, nil
}

func (l *Lab) listen(u *undo, name string, port int) (*serve.Server, error) {
	leaf, err := l.ca.Server("127.0.0.1", "localhost")
	if err != nil {
		return nil, err
	}
	cert, err := leaf.TLS()
	if err != nil {
		return nil, err
	}
	server, err := serve.Listen("127.0.0.1:"+strconv.Itoa(port), cert, l.spec.Log.With("server", name))
	if err != nil {
		if inUse := new(serve.InUseError); errors.As(err, &inUse) {
			return nil, problem.New(problem.Conflict, "choose another --port, or leave it out for any free one", "%w", err)
		}
		return nil, err
	}
	u.add(name, server.Close)
	return server, nil
}

// startServices starts the token services. They need issuers' URLs only: keys
// are fetched when the first token comes.
func (l *Lab) startServices(_ context.Context, u *undo) (string, error) {
	if err := l.startAWS(u); err != nil {
		return "", err
	}
	if err := l.startGeneric(u); err != nil {
		return "", err
	}
	names := make([]string, 0, len(l.parties))
	for _, p := range l.parties {
		names = append(names, p.name)
	}
	return strings.Join(names, " "), nil
}

func (l *Lab) startAWS(u *undo) error {
	server, err := l.listen(u, "aws", 0)
	if err != nil {
		return err
	}
	config := aws.Config{Account: fixtures.AWSAccount, Client: l.client, Clock: l.Clock, Trace: l.Trace}
	l.info.AWS = AWSInfo{Endpoint: server.URL(), Region: fixtures.AWSRegion, Audience: l.spec.AWS.ClientIDs[0], Roles: map[string]string{}}
	for _, m := range l.members {
		config.Providers = append(config.Providers, aws.Provider{URL: m.issuer, ClientIDs: l.spec.AWS.ClientIDs})
		policy, err := fixtures.TrustPolicy(fixtures.AWSAccount, m.issuer, "StringEquals", fixtures.Subject, l.info.AWS.Audience)
		if err != nil {
			return err
		}
		name := m.id + "-" + fixtures.ServiceAccount
		config.Roles = append(config.Roles, aws.Role{Name: name, TrustPolicy: policy})
		l.info.AWS.Roles[m.id] = aws.RoleARN(fixtures.AWSAccount, name)
	}
	for _, role := range l.spec.AWS.Roles {
		config.Roles = append(config.Roles, aws.Role{
			Name: role.Name, MaxSessionDuration: role.MaxSessionDuration, TrustPolicy: l.withIssuers(role.TrustPolicy),
		})
	}
	handler, err := aws.New(config)
	if err != nil {
		return problem.New(problem.BadConfig, "oidclab up --help shows an example", "%w", err)
	}
	server.Serve(handler)
	l.parties = append(l.parties, party{name: "aws", cache: sts.AWS().Cache, core: handler.Core()})
	return nil
}

// startGeneric starts the RFC 8693 token service with two relying parties that
// differ in how they keep keys, and the resource that takes its access tokens.
func (l *Lab) startGeneric(u *undo) error {
	server, err := l.listen(u, "generic", 0)
	if err != nil {
		return err
	}
	resourceServer, err := l.listen(u, "resource", 0)
	if err != nil {
		return err
	}
	pureTTL := sts.Strict()
	pureTTL.Name, pureTTL.Cache = "pure-ttl", sts.STACKIT().Cache
	config := generic.Config{URL: server.URL(), Client: l.client, Clock: l.Clock, Trace: l.Trace}
	l.info.Generic = GenericInfo{
		Issuer: server.URL(), Audience: l.spec.Generic.Audiences[0], Target: fixtures.Target, Resource: resourceServer.URL() + "/resource",
	}
	for _, p := range []generic.Party{{Name: "generic", Profile: sts.Strict()}, {Name: "pure-ttl", Profile: pureTTL}} {
		role := sts.Role{Name: fixtures.Target}
		for _, m := range l.members {
			p.Issuers = append(p.Issuers, sts.Issuer{URL: m.issuer, Audiences: l.spec.Generic.Audiences})
			role.Trust = append(role.Trust, sts.Statement{
				Issuer:     m.issuer,
				Conditions: []sts.Condition{{Operator: sts.StringEquals, Claim: "sub", Values: []string{fixtures.Subject}}},
			})
		}
		p.Roles = []sts.Role{role}
		for _, target := range l.spec.Generic.Targets {
			configured, err := l.genericRole(target)
			if err != nil {
				return err
			}
			p.Roles = append(p.Roles, configured)
		}
		config.Parties = append(config.Parties, p)
	}
	handler, err := generic.New(config)
	if err != nil {
		return problem.New(problem.BadConfig, "oidclab up --help shows an example", "%w", err)
	}
	resource, err := generic.Resource(generic.ResourceConfig{
		Audience: fixtures.Target, Issuer: server.URL(), Client: l.client, Clock: l.Clock, Trace: l.Trace,
	})
	if err != nil {
		return err
	}
	server.Serve(handler)
	resourceServer.Serve(resource)
	for _, p := range config.Parties {
		l.info.Generic.Parties = append(l.info.Generic.Parties, GenericParty{Name: p.Name, TokenURL: server.URL() + "/" + p.Name + "/token", Cache: p.Profile.Cache})
		l.parties = append(l.parties, party{name: p.Name, cache: p.Profile.Cache, core: handler.Core(p.Name)})
	}
	return nil
}

func (l *Lab) genericRole(target GenericTarget) (sts.Role, error) {
	role := sts.Role{Name: target.Name}
	for _, trust := range target.Trust {
		m, err := l.member(trust.Cluster)
		if err != nil {
			return sts.Role{}, problem.New(problem.BadConfig, "", "target %q: %w", target.Name, err)
		}
		role.Trust = append(role.Trust, sts.Statement{Issuer: m.issuer, Conditions: trust.Conditions})
	}
	return role, nil
}

// withIssuers puts in the issuers for which ${issuer:<cluster>} stands.
func (l *Lab) withIssuers(policy []byte) []byte {
	for _, m := range l.members {
		policy = bytes.ReplaceAll(policy, []byte("${issuer:"+m.id+"}"), []byte(strings.TrimPrefix(m.issuer, "https://")))
	}
	return policy
}
