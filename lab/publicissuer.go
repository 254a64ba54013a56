package lab

import (
	"context"
	"fmt"
	"slices"

	"github.com/oidclab/oidclab/lab/cluster"
	"github.com/oidclab/oidclab/lab/problem"
)

// inClusterIssuer is the issuer of clusters whose owner did not choose one: a
// name that nobody can reach, kubeadm's default.
const inClusterIssuer = "https://kubernetes.default.svc.cluster.local"

// SetPublicIssuer restarts a cluster's API server with or without its public
// issuer, and returns the issuer that it has now. Without it the cluster is as
// before its owner turned OIDC discovery on: it issues in the name of its
// in-cluster issuer, and the front publishes nothing of it. Either way its API
// server goes on to take the tokens of both issuers, as it must when workloads
// hold tokens of the former one (kubernetes/kubernetes#107031).
func (l *Lab) SetPublicIssuer(ctx context.Context, id string, public bool) (string, error) {
	m, err := l.member(id)
	if err != nil {
		return "", err
	}
	m.rotating.Lock() // a rotation restarts the API server too, and waits for the front
	defer m.rotating.Unlock()
	if former := m.cluster.Identity().Issuer; (former == m.issuer) == public {
		return former, nil
	}
	if r := m.rotation; !public && r != nil && (r.Phase == "published" || r.Phase == "signing") {
		return "", problem.New(problem.Conflict, "oidclab keys rotate --abandon", "cluster %s is in a rotation to key %s, which consumers follow at its public issuer", m.id, r.NewKey)
	}
	if !public {
		l.front.Withdraw(m.id)
	}
	err = m.reconfigure(ctx, func(identity *cluster.Identity) {
		accepted := append([]string{identity.Issuer}, identity.AcceptedIssuers...)
		identity.Issuer, identity.JWKSURI = m.issuer, m.jwksURI
		if !public {
			identity.Issuer, identity.JWKSURI = inClusterIssuer, inClusterIssuer+"/openid/v1/jwks"
		}
		identity.AcceptedIssuers = slices.DeleteFunc(accepted, func(issuer string) bool { return issuer == identity.Issuer })
	})
	now := m.cluster.Identity().Issuer
	if now == m.issuer {
		l.front.Publish(m.id, documents{m.cluster.API()})
	}
	if err != nil {
		return "", err
	}
	if public {
		if _, err := l.get(ctx, m.jwksURI); err != nil {
			return "", fmt.Errorf("cluster %s has its public issuer again, but: %w", m.id, err)
		}
	}
	return now, nil
}
