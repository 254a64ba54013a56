package lab

import (
	"context"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/oidclab/oidclab/fixtures"
	"github.com/oidclab/oidclab/lab/cluster"
	"github.com/oidclab/oidclab/lab/exchange"
)

// trusted are the issuers of all other clusters, whose tokens m takes.
func (l *Lab) trusted(m *member) []cluster.TrustedIssuer {
	var issuers []cluster.TrustedIssuer
	for _, other := range l.others(m) {
		issuers = append(issuers, cluster.TrustedIssuer{
			URL: other.issuer, CA: l.ca.CertPEM(), Audience: fixtures.ClusterAudience(m.id), Prefix: other.id + ":",
		})
	}
	return issuers
}

// awaitTrustInEachOther lets the trusted workload of every other cluster read
// one ConfigMap of each, and waits until it can.
func (l *Lab) awaitTrustInEachOther(ctx context.Context, _ *undo) (string, error) {
	for _, m := range l.members {
		if err := m.greet(ctx, l.others(m)); err != nil {
			return "", err
		}
	}
	for _, m := range l.members {
		for _, other := range l.others(m) {
			if err := l.awaitTrust(ctx, m, other); err != nil {
				return "", err
			}
		}
	}
	return "", nil
}

func (l *Lab) others(m *member) []*member {
	return slices.DeleteFunc(slices.Clone(l.members), func(other *member) bool { return other == m })
}

// greet makes the ConfigMap, and lets the workloads of others read it.
func (m *member) greet(ctx context.Context, others []*member) error {
	client := m.cluster.API().Kubernetes()
	meta := metav1.ObjectMeta{Name: fixtures.GreetingConfigMap, Namespace: fixtures.Namespace}
	if _, err := client.CoreV1().ConfigMaps(fixtures.Namespace).Create(ctx, &corev1.ConfigMap{
		ObjectMeta: meta, Data: map[string]string{"message": fixtures.Greeting},
	}, metav1.CreateOptions{}); err != nil {
		return err
	}
	if _, err := client.RbacV1().Roles(fixtures.Namespace).Create(ctx, &rbacv1.Role{
		ObjectMeta: meta,
		Rules:      []rbacv1.PolicyRule{{Verbs: []string{"get"}, APIGroups: []string{""}, Resources: []string{"configmaps"}, ResourceNames: []string{fixtures.GreetingConfigMap}}},
	}, metav1.CreateOptions{}); err != nil {
		return err
	}
	binding := &rbacv1.RoleBinding{
		ObjectMeta: meta,
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: fixtures.GreetingConfigMap},
	}
	for _, other := range others {
		binding.Subjects = append(binding.Subjects, rbacv1.Subject{Kind: rbacv1.UserKind, APIGroup: rbacv1.GroupName, Name: other.id + ":" + fixtures.Subject})
	}
	_, err := client.RbacV1().RoleBindings(fixtures.Namespace).Create(ctx, binding, metav1.CreateOptions{})
	return err
}

// awaitTrust waits until m takes a token of the other: until its API server has
// fetched the other's discovery document.
func (l *Lab) awaitTrust(ctx context.Context, m, other *member) error {
	token, err := l.Mint(ctx, MintRequest{Cluster: other.id, Audiences: []string{fixtures.ClusterAudience(m.id)}})
	if err != nil {
		return err
	}
	config := m.cluster.API().Config()
	target := exchange.KubernetesTarget{Server: config.Host, CA: config.CAData, Namespace: fixtures.Namespace, ConfigMap: fixtures.GreetingConfigMap}
	for {
		_, err := exchange.Kubernetes(ctx, target, token)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("cluster %s does not take the tokens of %s: %w: %w", m.id, other.id, ctx.Err(), err)
		case <-time.After(50 * time.Millisecond):
		}
	}
}
