// Package cluster is what the lab knows of a Kubernetes cluster: an identity
// that makes it an OIDC issuer, and an API. Engines (packages embedded, kind,
// existing) provide clusters; one conformance suite (package clustertest) holds
// for all of them.
package cluster

import (
	"context"
)

// Identity is the whole contact between the OIDC world and a cluster.
type Identity struct {
	ID           string // names the cluster within the lab
	Issuer       string // the iss claim: https, no query, no fragment (--service-account-issuer)
	JWKSURI      string // where the key set is published (--service-account-jwks-uri)
	SignerSocket string // Unix socket of the external signer (--service-account-signing-endpoint)
}

// Cluster is a running cluster. The context of its start does not bound its
// life; Close does.
type Cluster interface {
	// Identity returns what the cluster was started with.
	Identity() Identity
	// API returns the cluster's API, as an administrator.
	API() *API
	// Kubeconfig returns a self-contained kubeconfig of an administrator.
	Kubeconfig() []byte
	// Healthy returns nil if the cluster serves, and otherwise why it does not.
	Healthy(ctx context.Context) error
	// Close ends the cluster and all that belongs to it. It may be called at
	// any time, and again.
	Close(ctx context.Context) error
}
