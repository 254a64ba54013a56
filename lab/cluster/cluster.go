// Package cluster is what the lab knows of a Kubernetes cluster: an identity
// that makes it an OIDC issuer, and an API. Engines (packages embedded, kind,
// existing) provide clusters; one conformance suite (package clustertest) holds
// for all of them.
package cluster

import (
	"context"
	"time"

	"github.com/oidclab/oidclab/lab/keys"
)

// MaxTokenLife is the longest life of a token of any cluster. The API server of
// a cluster with KeyFiles is told so (--service-account-max-token-expiration,
// and --service-account-extend-token-expiration=false, which would make some
// live a year): nobody sees it sign, so a bound is all there is to know.
const MaxTokenLife = 24 * time.Hour

// Identity is the whole contact between the OIDC world and a cluster. Tokens are
// signed either by the external signer at SignerSocket or, if KeyFiles is set,
// by the API server itself.
type Identity struct {
	ID              string      // names the cluster within the lab
	Issuer          string      // the iss claim: https, no query, no fragment (the first --service-account-issuer)
	AcceptedIssuers []string    // whose tokens the API server also takes, such as those of a former issuer (every further --service-account-issuer)
	JWKSURI         string      // where the key set is published (--service-account-jwks-uri)
	SignerSocket    string      // Unix socket of the external signer (--service-account-signing-endpoint); empty with KeyFiles
	KeyFiles        *keys.Files // written by the engine, mode 0600, to where its API server reads them
}

// Cluster is a running cluster. The context of its start does not bound its
// life; Close does.
type Cluster interface {
	// Identity returns what the cluster was started with, or reconfigured to.
	Identity() Identity
	// API returns the cluster's API, as an administrator.
	API() *API
	// Kubeconfig returns a self-contained kubeconfig of an administrator.
	Kubeconfig() []byte
	// Healthy returns nil if the cluster serves, and otherwise why it does not.
	Healthy(ctx context.Context) error
	// Reconfigure restarts the API server with an identity of the same ID, with
	// other key files or issuers, at the same address. It returns when the API
	// server serves that identity's discovery document and, with KeyFiles, key
	// set (API.CheckIdentity). After an error the cluster has its former identity
	// again; if not even that can be had, the error says so, and Reconfigure may
	// be called again.
	Reconfigure(ctx context.Context, identity Identity) error
	// Recreate makes the cluster anew with an identity of the same ID, at the same
	// address and with the same administrator: nothing of its objects stays.
	// After an error it may not serve; Recreate may be called again.
	Recreate(ctx context.Context, identity Identity) error
	// Close ends the cluster and all that belongs to it. It may be called at
	// any time, and again.
	Close(ctx context.Context) error
}
