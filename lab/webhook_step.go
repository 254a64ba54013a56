package lab

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"path"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/tools/cache"

	"github.com/oidclab/oidclab/fixtures"
	"github.com/oidclab/oidclab/lab/webhook"
)

// caMountPath is where containers have the ConfigMap with the lab's CA, if the
// webhook injects into them.
const caMountPath = "/var/run/secrets/oidclab.dev"

// How long one ConfigMap may take, and how often all are looked at again.
const (
	publishTimeout = 10 * time.Second
	publishAgain   = time.Minute
)

// startWebhook starts the pod identity webhook, with all vendors' profiles, has
// every cluster ask it about new pods, and waits until they do.
func (l *Lab) startWebhook(ctx context.Context, u *undo) (string, error) {
	server, err := l.listen(u, "webhook", 0)
	if err != nil {
		return "", err
	}
	profiles := []webhook.Profile{
		webhook.AWS(webhook.AWSSettings{Region: l.info.AWS.Region}),
		webhook.Azure(webhook.AzureSettings{TenantID: l.info.Azure.Tenant, AuthorityHost: l.info.Azure.Authority + "/"}),
		webhook.STACKIT(),
	}
	l.info.Webhook = WebhookInfo{URL: server.URL(), CAFile: path.Join(caMountPath, fixtures.CAKey)}
	var names []string
	for _, p := range profiles {
		names = append(names, p.Name)
		info := WebhookProfile{
			Name: p.Name, Configuration: "oidclab-" + p.Name, TokenFile: p.TokenFile, Audience: p.Audience, PodLabels: p.PodLabels,
			URLs: map[string]string{}, Annotations: map[string]map[string]string{},
		}
		for _, m := range l.members {
			info.URLs[m.id] = server.URL() + "/" + m.id + p.Path
			info.Annotations[m.id] = l.webhookAnnotations(p, m)
		}
		l.info.Webhook.Profiles = append(l.info.Webhook.Profiles, info)
	}
	handler := http.NewServeMux()
	asked := map[*member][]*questioned{}
	for _, m := range l.members {
		for _, p := range profiles {
			q := &questioned{Handler: webhook.New(webhook.Config{
				Profile: p, Accounts: accountsOf{m}, Extra: l.webhookExtra(p), Log: l.spec.Log.With("cluster", m.id),
			})}
			asked[m] = append(asked[m], q)
			handler.Handle("/"+m.id+p.Path, q)
		}
	}
	server.WithoutHTTP2() // API servers keep connections, and HTTP/2 takes a second to end one
	server.Serve(handler)
	for _, m := range l.members {
		for i, p := range profiles {
			info := l.info.Webhook.Profiles[i]
			if err := m.register(ctx, p, info.Configuration, info.URLs[m.id], l.ca.CertPEM()); err != nil {
				return "", err
			}
		}
	}
	for _, m := range l.members {
		l.publishCA(m, u)
		if err := m.awaitQuestions(ctx, names, asked[m]); err != nil {
			return "", err
		}
	}
	return strings.Join(names, " "), nil
}

// webhookAnnotations are those with which a service account gets the identity
// that the lab's relying parties trust.
func (l *Lab) webhookAnnotations(p webhook.Profile, m *member) map[string]string {
	switch p.Name {
	case "aws":
		annotations := map[string]string{webhook.AWSRoleARN: l.info.AWS.Roles[m.id]}
		if l.info.AWS.Audience != p.Audience {
			annotations[webhook.AWSAudience] = l.info.AWS.Audience
		}
		return annotations
	case "azure":
		return map[string]string{webhook.AzureClientID: l.info.Azure.ClientIDs[m.id]}
	case "stackit":
		return map[string]string{webhook.STACKITEmail: l.info.STACKIT.Accounts[m.id]}
	}
	return nil
}

// webhookExtra is what a pod needs, beside what the vendor's webhook injects, to
// reach the lab instead of the vendor.
func (l *Lab) webhookExtra(p webhook.Profile) webhook.Extra {
	file := l.info.Webhook.CAFile
	var env []corev1.EnvVar
	switch p.Name {
	case "aws":
		env = []corev1.EnvVar{{Name: "AWS_ENDPOINT_URL_STS", Value: l.info.AWS.Endpoint}, {Name: "AWS_ENDPOINT_URL_S3", Value: l.info.AWS.S3}, {Name: "AWS_CA_BUNDLE", Value: file}}
	case "stackit":
		env = []corev1.EnvVar{{Name: "STACKIT_IDP_TOKEN_ENDPOINT", Value: l.info.STACKIT.TokenURL}}
	}
	for _, name := range []string{"SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "NODE_EXTRA_CA_CERTS"} {
		env = append(env, corev1.EnvVar{Name: name, Value: file})
	}
	ca := corev1.Volume{Name: fixtures.CAConfigMap, VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{
		LocalObjectReference: corev1.LocalObjectReference{Name: fixtures.CAConfigMap},
	}}}
	return webhook.Extra{Env: env, Volume: &ca, MountPath: caMountPath}
}

// publishCA keeps the ConfigMap with the lab's CA in every namespace, as a
// cluster does with its own (kube-root-ca.crt): pods do not start without it.
func (l *Lab) publishCA(m *member, u *undo) {
	data := map[string]string{fixtures.CAKey: string(l.ca.CertPEM())}
	watching, stop := context.WithCancel(context.Background())
	publish := func(object any) {
		namespace := object.(*corev1.Namespace)
		if namespace.Status.Phase == corev1.NamespaceTerminating {
			return
		}
		ctx, cancel := context.WithTimeout(watching, publishTimeout)
		defer cancel()
		if err := m.cluster.API().EnsureConfigMap(ctx, namespace.Name, fixtures.CAConfigMap, data); err != nil && watching.Err() == nil {
			l.spec.Log.Warn("the lab's CA is not in a namespace", "cluster", m.id, "namespace", namespace.Name, "why", err)
		}
	}
	watch := func() { // until it is to begin again
		informing, cancel := context.WithCancel(watching)
		factory := informers.NewSharedInformerFactory(m.cluster.API().Kubernetes(), publishAgain)
		// It fails on an informer that was stopped only.
		_, _ = factory.Core().V1().Namespaces().Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{
			AddFunc:    publish,
			UpdateFunc: func(_, now any) { publish(now) },
		})
		factory.Start(informing.Done())
		select {
		case <-m.anew:
		case <-watching.Done():
		}
		cancel()
		factory.Shutdown()
	}
	var watches sync.WaitGroup
	watches.Go(func() {
		for watching.Err() == nil {
			watch()
		}
	})
	u.add("CA in the namespaces of "+m.id, func(context.Context) error {
		stop()
		watches.Wait()
		return nil
	})
}

// accountsOf looks service accounts up in a cluster.
type accountsOf struct{ m *member }

func (a accountsOf) ServiceAccount(ctx context.Context, namespace, name string) (*corev1.ServiceAccount, error) {
	return a.m.cluster.API().Kubernetes().CoreV1().ServiceAccounts(namespace).Get(ctx, name, metav1.GetOptions{})
}

// register has the cluster's API server ask a webhook.
func (m *member) register(ctx context.Context, p webhook.Profile, name, url string, ca []byte) error {
	configuration, err := json.Marshal(p.Configuration(name, url, ca))
	if err != nil {
		return err
	}
	force := true
	_, err = m.cluster.API().Kubernetes().AdmissionregistrationV1().MutatingWebhookConfigurations().
		Patch(ctx, name, types.ApplyPatchType, configuration, metav1.PatchOptions{FieldManager: "oidclab", Force: &force})
	if err != nil {
		return fmt.Errorf("cluster %s: webhook %s: %w", m.id, name, err)
	}
	return nil
}

// checkWebhook returns nil if the API server asks the lab's webhooks.
func (l *Lab) checkWebhook(ctx context.Context, m *member) error {
	configurations := m.cluster.API().Kubernetes().AdmissionregistrationV1().MutatingWebhookConfigurations()
	for _, p := range l.info.Webhook.Profiles {
		configuration, err := configurations.Get(ctx, p.Configuration, metav1.GetOptions{})
		if err != nil {
			return fmt.Errorf("cluster %s: %w", m.id, err)
		}
		if !slices.ContainsFunc(configuration.Webhooks, func(w admissionregistrationv1.MutatingWebhook) bool {
			return w.ClientConfig.URL != nil && *w.ClientConfig.URL == p.URLs[m.id]
		}) {
			return fmt.Errorf("cluster %s: %s does not lead to the lab's webhook, which is %s", m.id, p.Configuration, p.URLs[m.id])
		}
	}
	return nil
}

// questioned is a handler that knows whether it got a request.
type questioned struct {
	http.Handler
	asked atomic.Bool
}

func (q *questioned) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	q.asked.Store(true)
	q.Handler.ServeHTTP(w, r)
}

// awaitQuestions proposes a pod until the API server has asked each webhook
// about it. Nothing of that is kept.
func (m *member) awaitQuestions(ctx context.Context, names []string, handlers []*questioned) error {
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "oidclab-webhook", Labels: map[string]string{webhook.AzureUse: "true"}},
		Spec:       corev1.PodSpec{ServiceAccountName: fixtures.ServiceAccount, Containers: []corev1.Container{{Name: "none", Image: "none.invalid/none"}}},
	}
	propose := func() error {
		_, err := m.cluster.API().Kubernetes().CoreV1().Pods(fixtures.Namespace).Create(ctx, pod, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
		return err
	}
	err := propose()
	for i, handler := range handlers {
		for !handler.asked.Load() {
			select {
			case <-ctx.Done():
				return fmt.Errorf("the API server of cluster %s does not ask the webhook %s: %w: %w", m.id, names[i], ctx.Err(), err)
			case <-time.After(10 * time.Millisecond):
			}
			err = propose()
		}
	}
	return nil
}
