package vault

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/vault/api"
)

// What Configure makes, the same in every auth method.
const (
	Role       = "demo"                      // may read the secret
	BareRole   = "no-secrets"                // may log in, and nothing else
	SecretPath = "secret/data/demo/greeting" // of the API, KV version 2

	// ClaimsRole of the JWT auth methods binds claims, by JSON pointer and with
	// globs, where Role binds the subject.
	ClaimsRole = "demo-by-claims"
	// NoAudienceRole of the Kubernetes auth methods is what a role without audience
	// is: it takes tokens for any audience. It may log in, and nothing else.
	NoAudienceRole = "no-audience"

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

// JWKSURLMount returns the path of an auth method like JWTMount, below auth/, that
// is told where the keys are and reads no discovery document.
func JWKSURLMount(clusterID string) string { return JWTMount(clusterID) + "-jwks-url" }

// PinnedMount returns the path of an auth method like JWTMount, below auth/, whose
// keys are those that the cluster had when Vault was configured, for ever.
func PinnedMount(clusterID string) string { return JWTMount(clusterID) + "-pinned" }

// NoIssuerMount returns the path of an auth method like JWTMount, below auth/,
// without bound_issuer: what it knows of the issuer is used to find keys, and
// compared with no token. It has BareRole only.
func NoIssuerMount(clusterID string) string { return JWTMount(clusterID) + "-no-issuer" }

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
	JWKSURI       string
	PublicKeys    []string // PEM, PKIX
	IssuerCA      []byte   // PEM, of the issuer's HTTPS server
	Server        string   // of the Kubernetes API
	ServerCA      []byte   // PEM, of the Kubernetes API
	ReviewerToken string   // of a service account that may create TokenReviews
}

// Configure makes, in a Vault just started, a KV version 2 store with one
// secret, a policy that may read it and one that may not, and for each cluster
// JWT and Kubernetes auth methods, with roles.
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
			missing("the JWKS URI of cluster "+c.ID, c.JWKSURI),
			missing("a public key of cluster "+c.ID, strings.Join(c.PublicKeys, "")),
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

// jwtAuth verifies tokens offline, with keys that it has in each way in which
// Vault can have some.
func (c Cluster) jwtAuth(s Setup) []write {
	subject := map[string]any{"bound_subject": "system:serviceaccount:" + s.Namespace + ":" + s.ServiceAccount}
	claims := map[string]any{
		"bound_claims": map[string]any{
			"/kubernetes.io/namespace":           s.Namespace,
			"/kubernetes.io/serviceaccount/name": s.ServiceAccount,
			"sub":                                "system:serviceaccount:*",
		},
		"bound_claims_type": "glob",
	}
	role := func(mount, name, policy string, binding map[string]any) write {
		body := map[string]any{
			"role_type":         "jwt", // the default is oidc, a login by browser
			"user_claim":        "sub",
			"bound_audiences":   []string{s.Audience},
			"clock_skew_leeway": int(ClockSkew.Seconds()),
			"token_policies":    []string{policy},
			"token_ttl":         int(tokenTTL.Seconds()),
			"token_max_ttl":     int(tokenTTL.Seconds()),
		}
		maps.Copy(body, binding)
		return write{"auth/" + mount + "/role/" + name, body}
	}
	method := func(mount, issuer string, keys map[string]any) []write {
		config := map[string]any{
			// What an API server can sign with.
			"jwt_supported_algs": []string{"RS256", "ES256", "ES384", "ES512"},
		}
		if issuer != "" {
			config["bound_issuer"] = issuer
		}
		maps.Copy(config, keys)
		return []write{
			{"sys/auth/" + mount, map[string]any{"type": "jwt"}},
			{"auth/" + mount + "/config", config},
			role(mount, BareRole, barePolicy, subject),
		}
	}
	discovery := map[string]any{"oidc_discovery_url": c.Issuer, "oidc_discovery_ca_pem": string(c.IssuerCA)}
	return slices.Concat(
		method(JWTMount(c.ID), c.Issuer, discovery),
		[]write{
			role(JWTMount(c.ID), Role, readerPolicy, subject),
			role(JWTMount(c.ID), ClaimsRole, readerPolicy, claims),
		},
		method(JWKSURLMount(c.ID), c.Issuer, map[string]any{"jwks_url": c.JWKSURI, "jwks_ca_pem": string(c.IssuerCA)}),
		[]write{role(JWKSURLMount(c.ID), Role, readerPolicy, subject)},
		method(PinnedMount(c.ID), c.Issuer, map[string]any{"jwt_validation_pubkeys": c.PublicKeys}),
		[]write{role(PinnedMount(c.ID), Role, readerPolicy, subject)},
		method(NoIssuerMount(c.ID), "", discovery),
	)
}

// kubernetesAuth has the cluster judge tokens, by TokenReview.
func (c Cluster) kubernetesAuth(s Setup) []write {
	mount := KubernetesMount(c.ID)
	role := func(name, policy string, audience map[string]any) write {
		body := map[string]any{
			"bound_service_account_names":      []string{s.ServiceAccount},
			"bound_service_account_namespaces": []string{s.Namespace},
			"alias_name_source":                "serviceaccount_uid",
			"token_policies":                   []string{policy},
			"token_ttl":                        int(tokenTTL.Seconds()),
			"token_max_ttl":                    int(tokenTTL.Seconds()),
		}
		maps.Copy(body, audience)
		return write{"auth/" + mount + "/role/" + name, body}
	}
	bound := map[string]any{"audience": s.Audience}
	return []write{
		{"sys/auth/" + mount, map[string]any{"type": "kubernetes"}},
		c.kubernetesConfig(),
		role(Role, readerPolicy, bound),
		role(BareRole, barePolicy, bound),
		role(NoAudienceRole, barePolicy, nil),
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
