package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/oidclab/oidclab/fixtures"
	"github.com/oidclab/oidclab/lab/cluster"
	"github.com/oidclab/oidclab/lab/cluster/embedded"
	"github.com/oidclab/oidclab/lab/problem"
)

func (m *member) startCluster(l *Lab) func(context.Context, *undo) (string, error) {
	return func(ctx context.Context, u *undo) (string, error) {
		started, err := l.startEngine(ctx, m)
		if err != nil {
			return "", err
		}
		m.cluster = started
		u.add("cluster "+m.id, started.Close)
		if err := m.checkKeys(ctx); err != nil {
			return "", err
		}
		if err := l.furnish(ctx, m); err != nil {
			return "", err
		}
		kubeconfig := filepath.Join(m.dir, "kubeconfig")
		if err := os.WriteFile(kubeconfig, started.Kubeconfig(), 0o600); err != nil {
			return "", err
		}
		l.front.Publish(m.id, documents{started.API()})
		return m.issuer, nil
	}
}

// furnish makes what scenarios and users find in every cluster.
func (l *Lab) furnish(ctx context.Context, m *member) error {
	for _, account := range []string{fixtures.ServiceAccount, fixtures.OtherServiceAccount} {
		if err := m.cluster.API().EnsureServiceAccount(ctx, fixtures.Namespace, account); err != nil {
			return err
		}
	}
	// What pods verify the lab's servers with.
	return m.cluster.API().EnsureConfigMap(ctx, fixtures.Namespace, fixtures.CAConfigMap, map[string]string{fixtures.CAKey: string(l.ca.CertPEM())})
}

// checkKeys reads back that the cluster publishes the keys that the lab has for it.
func (m *member) checkKeys(ctx context.Context) error {
	inSet, _ := m.keys.InKeySet()
	var ids []string
	for _, k := range inSet {
		ids = append(ids, k.ID)
	}
	return m.cluster.API().CheckKeys(ctx, ids)
}

// startEngine starts a cluster on the lab's engine.
func (l *Lab) startEngine(ctx context.Context, m *member) (cluster.Cluster, error) {
	identity, err := l.newIdentity(m)
	if err != nil {
		return nil, err
	}
	var started cluster.Cluster
	if l.spec.Engine == Kind {
		started, err = l.startKind(ctx, m, identity)
	} else {
		started, err = embedded.Start(ctx, embedded.Config{Identity: identity, Dir: m.dir, Trusts: l.trusted(m), Command: l.spec.Command})
	}
	if err != nil {
		return nil, err // and not a nil pointer in started
	}
	return started, nil
}

// documents makes a cluster the source of what the front publishes.
type documents struct{ api *cluster.API }

func (d documents) Discovery(ctx context.Context) ([]byte, time.Duration, error) {
	document, err := d.api.Discovery(ctx)
	return document.Body, maxAge(document.Header), err
}

func (d documents) JWKS(ctx context.Context) ([]byte, time.Duration, error) {
	document, err := d.api.JWKS(ctx)
	return document.Body, maxAge(document.Header), err
}

// maxAge returns the max-age directive of Cache-Control, RFC 9111 section
// 5.2.2.1, or 0.
func maxAge(header http.Header) time.Duration {
	for directive := range strings.SplitSeq(header.Get("Cache-Control"), ",") {
		if value, ok := strings.CutPrefix(strings.TrimSpace(directive), "max-age="); ok {
			if seconds, err := strconv.Atoi(value); err == nil && seconds > 0 {
				return time.Duration(seconds) * time.Second
			}
		}
	}
	return 0
}

// awaitReady fetches what every relying party will: each cluster's documents
// from the front. Then it says where everything is.
func (l *Lab) awaitReady(ctx context.Context, _ *undo) (string, error) {
	if err := l.front.Ready(ctx); err != nil {
		return "", err
	}
	for _, m := range l.members {
		l.info.Clusters = append(l.info.Clusters, ClusterInfo{
			ID: m.id, Issuer: m.issuer, JWKSURI: m.jwksURI, Server: m.cluster.API().Config().Host, Kubeconfig: filepath.Join(m.dir, "kubeconfig"),
			Audience: fixtures.ClusterAudience(m.id),
		})
		if _, err := l.get(ctx, l.front.DiscoveryURL(m.id)); err != nil {
			return "", err
		}
		if _, err := l.get(ctx, m.jwksURI); err != nil {
			return "", err
		}
	}
	return "", nil
}

// get fetches a document from one of the lab's servers, as a stranger would.
func (l *Lab) get(ctx context.Context, url string) (_ []byte, err error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	response, err := l.client.Do(request)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, response.Body.Close()) }()
	body, err := io.ReadAll(io.LimitReader(response.Body, maxDocument))
	if err != nil {
		return nil, fmt.Errorf("GET %s: %w", url, err)
	}
	if response.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("GET %s: %s", url, response.Status)
	}
	return body, nil
}

func (l *Lab) member(id string) (*member, error) {
	if id == "" {
		id = clusterID(0)
	}
	for _, m := range l.members {
		if m.id == id {
			return m, nil
		}
	}
	return nil, problem.New(problem.Usage, "oidclab status", "this lab has no cluster %q", id)
}
