package lab

import (
	"context"
	"path/filepath"
	"time"

	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/oidclab/oidclab/fixtures"
	"github.com/oidclab/oidclab/lab/cluster"
	"github.com/oidclab/oidclab/lab/cluster/kind"
	"github.com/oidclab/oidclab/lab/vault"
)

// reviewerLife is the life of the token that Vault reviews others with: the
// longest that the signer agrees to.
const reviewerLife = 24 * time.Hour

func (l *Lab) startVault(ctx context.Context, u *undo) (string, error) {
	config := vault.Config{Program: l.spec.Vault, Address: l.address, Dir: filepath.Join(l.spec.Dir, "vault"), CA: l.ca, Log: l.spec.Log}
	if l.spec.VaultImage != "" {
		config.Container = &vault.Container{
			Image: l.spec.VaultImage, Network: l.spec.Network, Labels: map[string]string{kind.Label: l.spec.Network},
		}
	}
	server, err := vault.Start(ctx, config)
	if err != nil {
		return "", err
	}
	u.add("vault", server.Stop)
	l.vault = server
	l.info.Vault = &VaultInfo{
		Address: server.URL(), Audience: fixtures.VaultAudience, Role: vault.Role, BareRole: vault.BareRole,
		Secret: vault.SecretPath, Mounts: map[string]AuthMounts{},
	}
	return server.URL(), nil
}

func (l *Lab) configureVault(ctx context.Context, _ *undo) (string, error) {
	setup := vault.Setup{Audience: fixtures.VaultAudience, Namespace: fixtures.Namespace, ServiceAccount: fixtures.ServiceAccount}
	for _, m := range l.members {
		known, err := l.knownToVault(ctx, m)
		if err != nil {
			return "", err
		}
		setup.Clusters = append(setup.Clusters, known)
		l.info.Vault.Mounts[m.id] = AuthMounts{
			JWT: vault.JWTMount(m.id), JWKSURL: vault.JWKSURLMount(m.id), Pinned: vault.PinnedMount(m.id), NoIssuer: vault.NoIssuerMount(m.id),
			Kubernetes: vault.KubernetesMount(m.id),
		}
	}
	return "", l.vault.Configure(ctx, setup)
}

// knownToVault returns a cluster as Vault is to know it, with a new token to
// review others with.
func (l *Lab) knownToVault(ctx context.Context, m *member) (vault.Cluster, error) {
	reviewer, err := reviewerToken(ctx, m.cluster.API())
	if err != nil {
		return vault.Cluster{}, err
	}
	files, err := m.keys.Files()
	if err != nil {
		return vault.Cluster{}, err
	}
	var publicKeys []string
	for _, key := range files.PublicKeys {
		publicKeys = append(publicKeys, string(key))
	}
	config := m.cluster.API().Config()
	return vault.Cluster{
		ID: m.id, Issuer: m.issuer, JWKSURI: m.jwksURI, PublicKeys: publicKeys, IssuerCA: l.ca.CertPEM(), Server: config.Host, ServerCA: config.CAData, ReviewerToken: reviewer,
	}, nil
}

// renewReviewer gives Vault a token of the key that signs now: without one,
// Vault can review nobody once the key of its former token is removed.
func (l *Lab) renewReviewer(ctx context.Context, m *member) error {
	if l.vault == nil {
		return nil
	}
	known, err := l.knownToVault(ctx, m)
	if err != nil {
		return err
	}
	return l.vault.SetReviewer(ctx, known)
}

// reviewerToken returns a token of a service account that may create
// TokenReviews and nothing else.
func reviewerToken(ctx context.Context, api *cluster.API) (string, error) {
	if err := api.EnsureServiceAccount(ctx, fixtures.Namespace, fixtures.VaultReviewer); err != nil {
		return "", err
	}
	_, err := api.Kubernetes().RbacV1().ClusterRoleBindings().Create(ctx, &rbacv1.ClusterRoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: fixtures.VaultReviewerBinding},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: fixtures.VaultReviewerRole},
		Subjects:   []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Namespace: fixtures.Namespace, Name: fixtures.VaultReviewer}},
	}, metav1.CreateOptions{})
	if err != nil && !apierrors.IsAlreadyExists(err) {
		return "", err
	}
	return api.Token(ctx, cluster.TokenRequest{Namespace: fixtures.Namespace, ServiceAccount: fixtures.VaultReviewer, Expiration: reviewerLife})
}
