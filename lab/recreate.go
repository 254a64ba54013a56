package lab

import (
	"context"
	"fmt"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/oidclab/oidclab/lab/keys"
	"github.com/oidclab/oidclab/lab/problem"
)

// RecreateCluster makes a cluster anew under the same issuer URL, and returns its
// new signing key: no key and no object of the former one stays, but for objects
// that the lab makes itself. Relying parties are told nothing.
func (l *Lab) RecreateCluster(ctx context.Context, id string) (KeyInfo, error) {
	m, err := l.member(id)
	if err != nil {
		return KeyInfo{}, err
	}
	m.rotating.Lock()
	defer m.rotating.Unlock()
	if err := m.followed(); err != nil {
		return KeyInfo{}, err
	}
	former := m.keys.Current().ID
	if err := l.recreate(ctx, m); err != nil {
		return KeyInfo{}, problem.New(problem.NotReady, "oidclab cluster recreate, again, or oidclab logs", "cluster %s was not made anew: %w", m.id, err)
	}
	if err := l.awaitKey(ctx, m, former, false); err != nil {
		return KeyInfo{}, err
	}
	key := m.keys.Current()
	return l.keyInfo(key), l.awaitKey(ctx, m, key.ID, true)
}

func (l *Lab) recreate(ctx context.Context, m *member) error {
	ctx, cancel := context.WithTimeout(ctx, restartTimeout)
	defer cancel()
	webhooks, err := m.cluster.API().Kubernetes().AdmissionregistrationV1().MutatingWebhookConfigurations().List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	l.front.Withdraw(m.id)
	l.front.Announce(m.id) // requests wait until it is there again
	m.rotation = nil
	if err := m.recreate(ctx, l.spec.Signer); err != nil {
		return err
	}
	m.watchAnew()
	if err := l.furnish(ctx, m); err != nil {
		return err
	}
	for _, w := range webhooks.Items {
		w.ObjectMeta = metav1.ObjectMeta{Name: w.Name, Labels: w.Labels, Annotations: w.Annotations}
		if _, err := m.cluster.API().Kubernetes().AdmissionregistrationV1().MutatingWebhookConfigurations().Create(ctx, &w, metav1.CreateOptions{}); err != nil {
			return fmt.Errorf("webhook %s: %w", w.Name, err)
		}
	}
	if others := l.others(m); len(others) > 0 {
		if err := m.greet(ctx, others); err != nil {
			return err
		}
	}
	if err := l.renewReviewer(ctx, m); err != nil {
		return err
	}
	l.front.Publish(m.id, documents{m.cluster.API()})
	l.tokenFiles.expire(m.id)
	return nil
}

// recreate makes the cluster anew with keys that are new from its first token on:
// its pods would keep one of a former key until they renew it.
func (m *member) recreate(ctx context.Context, signer string) error {
	m.changing.Lock()
	defer m.changing.Unlock()
	identity := m.cluster.Identity()
	if signer == Static {
		_, err := m.keys.Replace(func(files keys.Files) error {
			identity.KeyFiles = &files
			return m.cluster.Recreate(ctx, identity)
		})
		return err
	}
	if _, err := m.keys.Replace(nil); err != nil {
		return err
	}
	return m.cluster.Recreate(ctx, identity)
}

// expire has the files with tokens of a cluster renewed at the next look.
func (f *tokenFiles) expire(cluster string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for path, file := range f.files {
		if file.request.Cluster == cluster {
			file.renewAt = time.Time{}
			f.files[path] = file
		}
	}
}
