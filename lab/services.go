package lab

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"

	"github.com/oidclab/oidclab/fixtures"
	"github.com/oidclab/oidclab/lab/problem"
	"github.com/oidclab/oidclab/lab/proxy"
	"github.com/oidclab/oidclab/lab/sts"
	"github.com/oidclab/oidclab/lab/sts/aws"
	"github.com/oidclab/oidclab/lab/sts/azure"
	"github.com/oidclab/oidclab/lab/sts/gcp"
	"github.com/oidclab/oidclab/lab/sts/generic"
	"github.com/oidclab/oidclab/lab/sts/stackit"
)

// startServices starts the token services. They need issuers' URLs only: keys
// are fetched when the first token comes.
func (l *Lab) startServices(_ context.Context, u *undo) (string, error) {
	for _, start := range []func(*undo) error{l.startAWS, l.startGCP, l.startAzure, l.startSTACKIT, l.startOCI, l.startGeneric, l.startProxy} {
		if err := start(u); err != nil {
			return "", err
		}
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
	s3, err := l.listen(u, "s3", 0)
	if err != nil {
		return err
	}
	config := aws.Config{
		Account: fixtures.AWSAccount, DisabledRegions: aws.OptInRegions(),
		Buckets: []aws.Bucket{{Name: fixtures.Bucket, Region: fixtures.AWSRegion, Objects: map[string][]byte{fixtures.Object: []byte(fixtures.ObjectContent)}}},
		Client:  l.client, Clock: l.Clock, Trace: l.Trace,
	}
	l.info.AWS = AWSInfo{
		Endpoint: server.URL(), S3: s3.URL(), Region: fixtures.AWSRegion, Audience: l.spec.AWS.ClientIDs[0],
		Bucket: fixtures.Bucket, Object: fixtures.Object, Roles: map[string]string{}, TagRoles: map[string]string{},
	}
	for _, m := range l.members {
		config.Providers = append(config.Providers, aws.Provider{URL: m.issuer, ClientIDs: l.spec.AWS.ClientIDs})
	}
	if config.Roles, err = l.awsRoles(); err != nil {
		return err
	}
	handler, err := aws.New(config)
	if err != nil {
		return problem.New(problem.BadConfig, "oidclab up --help shows an example", "%w", err)
	}
	server.Serve(handler)
	s3.Serve(handler.S3())
	l.parties = append(l.parties, party{name: "aws", cache: sts.AWS().Cache, keys: handler.Core().Cached})
	for _, host := range []string{"sts.amazonaws.com", "sts.*.amazonaws.com"} {
		l.hosts = append(l.hosts, proxy.Host{Pattern: host, Handler: handler})
	}
	for _, host := range []string{"s3.amazonaws.com", "s3.*.amazonaws.com", "*.s3.amazonaws.com", "*.s3.*.amazonaws.com"} {
		l.hosts = append(l.hosts, proxy.Host{Pattern: host, Handler: handler.S3()})
	}
	return nil
}

// awsRoles returns two roles for each cluster, whose ARNs it makes known, and
// those that the lab was asked for.
func (l *Lab) awsRoles() ([]aws.Role, error) {
	var roles []aws.Role
	trusting := func(m *member, name string, policy json.RawMessage, actions ...string) (arn string, err error) {
		trust, err := fixtures.TrustPolicy(fixtures.AWSAccount, m.issuer, "StringEquals", fixtures.Subject, l.info.AWS.Audience, actions...)
		roles = append(roles, aws.Role{Name: name, TrustPolicy: trust, Policy: policy})
		return aws.RoleARN(fixtures.AWSAccount, name), err
	}
	for _, m := range l.members {
		name := m.id + "-" + fixtures.ServiceAccount
		var err error
		if l.info.AWS.Roles[m.id], err = trusting(m, name, fixtures.ReadPolicy()); err != nil {
			return nil, err
		}
		if l.info.AWS.TagRoles[m.id], err = trusting(m, name+"-by-tag", fixtures.ReadPolicyByTag(), "sts:TagSession"); err != nil {
			return nil, err
		}
	}
	for _, role := range l.spec.AWS.Roles {
		policy := role.Policy
		if policy == nil {
			policy = fixtures.ReadPolicy()
		}
		roles = append(roles, aws.Role{
			Name: role.Name, MaxSessionDuration: role.MaxSessionDuration, TrustPolicy: l.withIssuers(role.TrustPolicy), Policy: policy,
		})
	}
	return roles, nil
}

// startGeneric starts the OAuth token service with two relying parties that differ
// in how they keep keys and one that speaks Auth0's dialect, and the resource that takes its access tokens.
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
	custom, customInfo, err := l.customExchange()
	if err != nil {
		return err
	}
	for _, p := range []generic.Party{
		{Name: "generic", Profile: sts.Strict()}, {Name: "pure-ttl", Profile: pureTTL}, {Name: "auth0", Profile: sts.Strict(), Custom: custom},
	} {
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
		info := GenericParty{Name: p.Name, TokenURL: server.URL() + "/" + p.Name + "/token", Cache: p.Profile.Cache}
		if p.Custom != nil {
			info.TokenURL, info.Custom = server.URL()+"/oauth/token", customInfo
		}
		l.info.Generic.Parties = append(l.info.Generic.Parties, info)
		l.parties = append(l.parties, party{name: p.Name, cache: p.Profile.Cache, keys: handler.Core(p.Name).Cached})
	}
	return nil
}

// customExchange makes the application that exchanges tokens as Auth0 has it.
func (l *Lab) customExchange() (*generic.CustomExchange, *CustomExchangeInfo, error) {
	client := generic.Client{ID: fixtures.Auth0ClientID, Secret: rand.Text()}
	info := &CustomExchangeInfo{TokenType: fixtures.Auth0TokenType, ClientID: client.ID, SecretFile: filepath.Join(l.spec.Dir, "auth0-client-secret")}
	if err := os.WriteFile(info.SecretFile, []byte(client.Secret), 0o600); err != nil {
		return nil, nil, err
	}
	return &generic.CustomExchange{TokenType: info.TokenType, Clients: []generic.Client{client}}, info, nil
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

// startGCP starts Google's token service, with a pool and a provider for each
// cluster: members of a pool do not tell which provider they came from.
func (l *Lab) startGCP(u *undo) error {
	server, err := l.listen(u, "gcp", 0)
	if err != nil {
		return err
	}
	l.info.GCP = GCPInfo{
		URL: server.URL(), Project: fixtures.GCPProject, ServiceAccount: fixtures.GCPServiceAccount, Bucket: fixtures.Bucket, Object: fixtures.Object, Audiences: map[string]string{},
	}
	config := gcp.Config{ProjectNumber: fixtures.GCPProjectNumber, Client: l.client, Clock: l.Clock, Trace: l.Trace}
	var workloads []string
	for _, m := range l.members {
		pool := "oidclab-" + m.id
		config.Pools = append(config.Pools, gcp.Pool{ID: pool, Providers: []gcp.Provider{{
			ID: fixtures.GCPProvider, IssuerURI: m.issuer,
			AttributeMapping: map[string]string{
				"google.subject": "assertion.sub", "attribute.namespace": "assertion['kubernetes.io']['namespace']",
			},
		}}})
		l.info.GCP.Audiences[m.id] = gcp.Audience(fixtures.GCPProjectNumber, pool, fixtures.GCPProvider)
		workloads = append(workloads, gcp.Principal(fixtures.GCPProjectNumber, pool, fixtures.Subject))
	}
	config.ServiceAccounts = []gcp.ServiceAccount{{
		Email: fixtures.GCPServiceAccount, Policy: []gcp.Binding{{Role: gcp.RoleWorkloadIdentityUser, Members: workloads}},
	}}
	config.Buckets = []gcp.Bucket{{
		Name: fixtures.Bucket, Objects: map[string][]byte{fixtures.Object: []byte(fixtures.ObjectContent)},
		Policy: []gcp.Binding{{Role: gcp.RoleObjectViewer, Members: append(workloads, gcp.ServiceAccountMember(fixtures.GCPServiceAccount))}},
	}}
	handler, err := gcp.New(config)
	if err != nil {
		return err
	}
	server.Serve(handler)
	cores := map[string]*sts.Core{}
	for _, m := range l.members {
		cores[m.issuer] = handler.Core(l.info.GCP.Audiences[m.id])
	}
	l.parties = append(l.parties, party{name: "gcp", cache: sts.GCP().Cache, keys: func(issuer string) sts.KeySetState { return cores[issuer].Cached(issuer) }})
	for _, host := range []string{"sts.googleapis.com", "iamcredentials.googleapis.com", "storage.googleapis.com"} {
		l.hosts = append(l.hosts, proxy.Host{Pattern: host, Handler: handler})
	}
	return nil
}

// startAzure starts Entra's token service, with an application for each cluster.
func (l *Lab) startAzure(u *undo) error {
	server, err := l.listen(u, "azure", 0)
	if err != nil {
		return err
	}
	tokenProxy, err := l.listen(u, "azure-proxy", 0)
	if err != nil {
		return err
	}
	l.info.Azure = AzureInfo{
		Authority: server.URL(), TokenProxy: tokenProxy.URL(), Tenant: fixtures.AzureTenant, Audience: azure.Audience,
		Container: fixtures.Bucket, Blob: fixtures.Object, ClientIDs: map[string]string{},
	}
	config := azure.Config{URL: server.URL(), Tenant: fixtures.AzureTenant, Client: l.client, Clock: l.Clock, Trace: l.Trace}
	container := azure.Container{Name: fixtures.Bucket, Blobs: map[string][]byte{fixtures.Object: []byte(fixtures.ObjectContent)}}
	for i, m := range l.members {
		id := fixtures.AzureClientID(i + 1)
		l.info.Azure.ClientIDs[m.id] = id
		container.Readers = append(container.Readers, id)
		config.Applications = append(config.Applications, azure.Application{ClientID: id, Credentials: []azure.FederatedCredential{
			{Name: m.id + "-" + fixtures.ServiceAccount, Issuer: m.issuer, Subject: fixtures.Subject},
		}})
	}
	config.Containers = []azure.Container{container}
	handler, err := azure.New(config)
	if err != nil {
		return err
	}
	server.Serve(handler)
	tokenProxy.Serve(handler.TokenProxy())
	l.parties = append(l.parties, party{name: "azure", cache: sts.Azure().Cache, keys: handler.Core().Cached})
	l.hosts = append(l.hosts, proxy.Host{Pattern: "login.microsoftonline.com", Handler: handler}, proxy.Host{Pattern: "*.blob.core.windows.net", Handler: handler})
	return nil
}

// startSTACKIT starts STACKIT's identity provider, with a service account for each cluster.
func (l *Lab) startSTACKIT(u *undo) error {
	server, err := l.listen(u, "stackit", 0)
	if err != nil {
		return err
	}
	l.info.STACKIT = STACKITInfo{
		URL: server.URL(), TokenURL: server.URL() + "/oauth/v2/token", Audience: stackit.Audience, Project: fixtures.STACKITProject, Accounts: map[string]string{},
	}
	config := stackit.Config{URL: server.URL(), Client: l.client, Clock: l.Clock, Trace: l.Trace}
	project := stackit.Project{ID: fixtures.STACKITProject, Name: fixtures.Namespace}
	for _, m := range l.members {
		email := fixtures.STACKITAccount(m.id)
		l.info.STACKIT.Accounts[m.id] = email
		project.Readers = append(project.Readers, email)
		config.Accounts = append(config.Accounts, stackit.ServiceAccount{Email: email, Providers: []stackit.Provider{{
			Name: m.id, Issuer: m.issuer,
			Assertions: []stackit.Assertion{
				{Item: "aud", Operator: "equals", Value: stackit.Audience}, {Item: "sub", Operator: "equals", Value: fixtures.Subject},
			},
		}}})
	}
	config.Projects = []stackit.Project{project}
	handler, err := stackit.New(config)
	if err != nil {
		return err
	}
	server.Serve(handler)
	l.parties = append(l.parties, party{name: "stackit", cache: sts.STACKIT().Cache, keys: handler.Core().Cached})
	for _, host := range []string{"accounts.stackit.cloud", "resource-manager.api.stackit.cloud"} {
		l.hosts = append(l.hosts, proxy.Host{Pattern: host, Handler: handler})
	}
	return nil
}

// startProxy starts the proxy under which unmodified applications with
// production settings reach the lab, and nobody else.
func (l *Lab) startProxy(u *undo) error {
	var err error
	l.proxy, err = proxy.New(proxy.Config{CA: l.ca, Hosts: l.hosts, Trace: l.Trace, Log: l.spec.Log})
	if err != nil {
		return err
	}
	u.add("proxy", l.proxy.Close)
	if err := l.proxy.Listen("127.0.0.1:0"); err != nil {
		return err
	}
	l.info.Proxy = l.proxy.URL()
	return nil
}
