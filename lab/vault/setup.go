package vault

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/hashicorp/vault/api"
)

// What Configure makes, the same in every auth method.
const (
	Role       = "demo"                      // may read the secret
	BareRole   = "no-secrets"                // may log in, and nothing else
	SecretPath = "secret/data/demo/greeting" // of the API, KV version 2

	readerPolicy = "demo-reader"
	barePolicy   = "demo-none"
	greeting     = "Hello from Vault"
)

// ClockSkew is the leeway of the JWT auth roles on exp, nbf and iat, set in the
// role although it is Vault's default. The Kubernetes auth method has the same
// one built in.
const ClockSkew = 60 * time.Second

// tokenTTL is how long a login is good for; it cannot be renewed beyond.
const tokenTTL = 15 * time.Minute

// upgradePause is between two attempts to write to a new KV store.
const upgradePause = 20 * time.Millisecond

// JWTMount returns the path of a cluster's JWT auth method, below auth/.
func JWTMount(clusterID string) string { return "jwt-" + clusterID }

// KubernetesMount returns the path of a cluster's Kubernetes auth method, below auth/.
func KubernetesMount(clusterID string) string { return "kubernetes-" + clusterID }

// Setup says who may log in to Vault. All fields are needed.
type Setup struct {
	Audience       string // of the tokens
	Namespace      string // of the workload
	ServiceAccount string // of the workload
	Clusters       []Cluster
}

// Cluster is a cluster whose tokens Vault takes. All fields are needed.
type Cluster struct {
	ID            string
	Issuer        string // its discovery document must be there already: Vault fetches it at once
	IssuerCA      []byte // PEM, of the issuer's HTTPS server
	Server        string // of the Kubernetes API
	ServerCA      []byte // PEM, of the Kubernetes API
	ReviewerToken string // of a service account that may create TokenReviews
}

// Configure makes, in a Vault just started, a KV version 2 store with one
// secret, a policy that may read it and one that may not, and for each cluster
// a JWT and a Kubernetes auth method with the roles Role and BareRole.
func (s *Server) Configure(ctx context.Context, setup Setup) error {
	if err := configure(ctx, s.root, setup); err != nil {
		return fmt.Errorf("%w; there may be more in Vault's log %s", err, s.logFile)
	}
	return nil
}

// SetReviewer replaces the token with which a cluster's Kubernetes auth method
// has others reviewed.
func (s *Server) SetReviewer(ctx context.Context, c Cluster) error {
	return c.kubernetesConfig().to(ctx, s.root)
}

func configure(ctx context.Context, client *api.Client, setup Setup) error {
	if err := setup.validate(); err != nil {
		return err
	}
	for _, w := range setup.writes() {
		if err := w.to(ctx, client); err != nil {
			return fmt.Errorf("vault: write %s: %w", w.path, err)
		}
	}
	return nil
}

// validate refuses a setup with a hole. Vault itself would take some of them,
// and then bind nothing: without bound_issuer, a token of any issuer is accepted.
func (s Setup) validate() error {
	missing := func(name, value string) error {
		if value == "" {
			return fmt.Errorf("vault: setup: %s is missing", name)
		}
		return nil
	}
	errs := []error{
		missing("the audience", s.Audience),
		missing("the namespace", s.Namespace),
		missing("the service account", s.ServiceAccount),
	}
	for _, c := range s.Clusters {
		errs = append(errs,
			missing("the id of a cluster", c.ID),
			missing("the issuer of cluster "+c.ID, c.Issuer),
			missing("the issuer's CA of cluster "+c.ID, string(c.IssuerCA)),
			missing("the server of cluster "+c.ID, c.Server),
			missing("the server's CA of cluster "+c.ID, string(c.ServerCA)),
			missing("the reviewer token of cluster "+c.ID, c.ReviewerToken),
		)
	}
	return errors.Join(errs...)
}

// write is one call of Vault's API: PUT /v1/path.
type write struct {
	path string
	body map[string]any
}

// writes returns what makes the setup, in order. A new KV store needs a moment,
// so its secret comes last.
func (s Setup) writes() []write {
	list := []write{
		{"sys/mounts/secret", map[string]any{"type": "kv", "options": map[string]string{"version": "2"}}},
		{"sys/policies/acl/" + readerPolicy, map[string]any{"policy": `path "secret/data/demo/*" { capabilities = ["read"] }`}},
		{"sys/policies/acl/" + barePolicy, map[string]any{"policy": `path "secret/*" { capabilities = ["deny"] }`}},
	}
	for _, c := range s.Clusters {
		list = append(list, c.jwtAuth(s)...)
		list = append(list, c.kubernetesAuth(s)...)
	}
	return append(list, write{SecretPath, map[string]any{"data": map[string]string{"message": greeting}}})
}

// jwtAuth verifies tokens offline, with the keys of the issuer's discovery document.
func (c Cluster) jwtAuth(s Setup) []write {
	mount := JWTMount(c.ID)
	role := func(name, policy string) write {
		return write{"auth/" + mount + "/role/" + name, map[string]any{
			"role_type":         "jwt", // the default is oidc, a login by browser
			"user_claim":        "sub",
			"bound_audiences":   []string{s.Audience},
			"bound_subject":     "system:serviceaccount:" + s.Namespace + ":" + s.ServiceAccount,
			"clock_skew_leeway": int(ClockSkew.Seconds()),
			"token_policies":    []string{policy},
			"token_ttl":         int(tokenTTL.Seconds()),
			"token_max_ttl":     int(tokenTTL.Seconds()),
		}}
	}
	return []write{
		{"sys/auth/" + mount, map[string]any{"type": "jwt"}},
		{"auth/" + mount + "/config", map[string]any{
			"oidc_discovery_url":    c.Issuer,
			"oidc_discovery_ca_pem": string(c.IssuerCA),
			"bound_issuer":          c.Issuer,
			// What an API server can sign with.
			"jwt_supported_algs": []string{"RS256", "ES256", "ES384", "ES512"},
		}},
		role(Role, readerPolicy),
		role(BareRole, barePolicy),
	}
}

// kubernetesAuth has the cluster judge tokens, by TokenReview.
func (c Cluster) kubernetesAuth(s Setup) []write {
	mount := KubernetesMount(c.ID)
	role := func(name, policy string) write {
		return write{"auth/" + mount + "/role/" + name, map[string]any{
			"bound_service_account_names":      []string{s.ServiceAccount},
			"bound_service_account_namespaces": []string{s.Namespace},
			"audience":                         s.Audience,
			"alias_name_source":                "serviceaccount_uid",
			"token_policies":                   []string{policy},
			"token_ttl":                        int(tokenTTL.Seconds()),
			"token_max_ttl":                    int(tokenTTL.Seconds()),
		}}
	}
	return []write{
		{"sys/auth/" + mount, map[string]any{"type": "kubernetes"}},
		c.kubernetesConfig(),
		role(Role, readerPolicy),
		role(BareRole, barePolicy),
	}
}

func (c Cluster) kubernetesConfig() write {
	return write{"auth/" + KubernetesMount(c.ID) + "/config", map[string]any{
		"kubernetes_host":      c.Server,
		"kubernetes_ca_cert":   string(c.ServerCA),
		"token_reviewer_jwt":   c.ReviewerToken,
		"disable_local_ca_jwt": true, // Vault is not in a pod
		// The cluster knows its issuers best, and Vault's own check of them is deprecated.
		"disable_iss_validation": true,
	}}
}

// to performs the write. While Vault prepares a new KV store, it is repeated.
func (w write) to(ctx context.Context, client *api.Client) error {
	for {
		answer, err := client.Logical().WriteWithContext(ctx, w.path, w.body)
		if err == nil {
			return ignored(answer)
		}
		if err = plain(err); !strings.Contains(err.Error(), "from non-versioned to versioned data") {
			return err
		}
		select {
		case <-time.After(upgradePause):
		case <-ctx.Done():
			return fmt.Errorf("%w; last answer: %w", context.Cause(ctx), err)
		}
	}
}

// ignored makes an error of Vault's warning that it does not know a parameter:
// a binding that is not understood binds nothing.
func ignored(answer *api.Secret) error {
	if answer == nil {
		return nil
	}
	for _, warning := range answer.Warnings {
		if strings.Contains(warning, "ignored these unrecognized parameters") {
			return errors.New(warning)
		}
	}
	return nil
}
