package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
)

// maxDocument bounds discovery document and key set.
const maxDocument = 1 << 20

// API is a cluster's API as the lab uses it. Make one with NewAPI.
type API struct {
	config     *rest.Config
	server     *url.URL
	http       *http.Client
	kubernetes *kubernetes.Clientset
}

// NewAPI returns an API that acts with the credentials of config. It does not
// talk to the cluster yet.
func NewAPI(config *rest.Config) (*API, error) {
	config = rest.CopyConfig(config)
	config.QPS = -1 // the lab is the only client; its own queue would only hide latencies
	server, _, err := rest.DefaultServerUrlFor(config)
	if err != nil {
		return nil, fmt.Errorf("cluster: %w", err)
	}
	client, err := rest.HTTPClientFor(config)
	if err != nil {
		return nil, fmt.Errorf("cluster: %w", err)
	}
	clientset, err := kubernetes.NewForConfigAndClient(config, client)
	if err != nil {
		return nil, fmt.Errorf("cluster: %w", err)
	}
	return &API{config: config, server: server, http: client, kubernetes: clientset}, nil
}

// Config returns a copy of the configuration, for other clients.
func (a *API) Config() *rest.Config { return rest.CopyConfig(a.config) }

// Kubernetes returns a client for everything that API has no method for.
func (a *API) Kubernetes() kubernetes.Interface { return a.kubernetes }

// TokenRequest asks for a service-account token.
type TokenRequest struct {
	Namespace      string
	ServiceAccount string
	Audiences      []string      // none means the API server's own
	Expiration     time.Duration // 0 means the API server's default, 1 h; it refuses less than 600 s
	Pod            string        // binds the token to this pod of the service account; "" binds to the service account only
	Node           string        // binds the token to this node instead of a pod (KEP-4193)
}

// Token has the API server issue a token (TokenRequest API,
// POST .../serviceaccounts/{name}/token). The account, and the pod or node if one
// is named, must exist.
func (a *API) Token(ctx context.Context, request TokenRequest) (string, error) {
	review := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{Audiences: request.Audiences}}
	if request.Expiration != 0 {
		seconds := int64(request.Expiration / time.Second)
		review.Spec.ExpirationSeconds = &seconds
	}
	switch {
	case request.Pod != "":
		review.Spec.BoundObjectRef = &authenticationv1.BoundObjectReference{Kind: "Pod", APIVersion: "v1", Name: request.Pod}
	case request.Node != "":
		review.Spec.BoundObjectRef = &authenticationv1.BoundObjectReference{Kind: "Node", APIVersion: "v1", Name: request.Node}
	}
	issued, err := a.kubernetes.CoreV1().ServiceAccounts(request.Namespace).
		CreateToken(ctx, request.ServiceAccount, review, metav1.CreateOptions{})
	if err != nil {
		return "", fmt.Errorf("cluster: token for %s/%s: %w", request.Namespace, request.ServiceAccount, err)
	}
	return issued.Status.Token, nil
}

// EnsureServiceAccount makes a service account, and its namespace, unless they
// exist.
func (a *API) EnsureServiceAccount(ctx context.Context, namespace, name string) error {
	core := a.kubernetes.CoreV1()
	account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: name}}
	_, err := core.ServiceAccounts(namespace).Create(ctx, account, metav1.CreateOptions{})
	if apierrors.IsNotFound(err) { // the namespace
		ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: namespace}}
		if _, err := core.Namespaces().Create(ctx, ns, metav1.CreateOptions{}); err != nil && !apierrors.IsAlreadyExists(err) {
			return fmt.Errorf("cluster: namespace %s: %w", namespace, err)
		}
		_, err = core.ServiceAccounts(namespace).Create(ctx, account, metav1.CreateOptions{})
	}
	if err != nil && !apierrors.IsAlreadyExists(err) {
		return fmt.Errorf("cluster: service account %s/%s: %w", namespace, name, err)
	}
	return nil
}

// EnsureConfigMap makes a ConfigMap in a namespace that exists, or gives it this
// data.
func (a *API) EnsureConfigMap(ctx context.Context, namespace, name string, data map[string]string) error {
	client := a.kubernetes.CoreV1().ConfigMaps(namespace)
	wanted := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name}, Data: data}
	_, err := client.Create(ctx, wanted, metav1.CreateOptions{})
	if apierrors.IsAlreadyExists(err) {
		_, err = client.Update(ctx, wanted, metav1.UpdateOptions{})
	}
	if err != nil {
		return fmt.Errorf("cluster: ConfigMap %s/%s: %w", namespace, name, err)
	}
	return nil
}

// CreatePod makes a pod of a service account that exists in the API only:
// nothing schedules or runs it. Tokens can be bound to it.
func (a *API) CreatePod(ctx context.Context, namespace, name, serviceAccount string) error {
	_, err := a.kubernetes.CoreV1().Pods(namespace).Create(ctx, &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: corev1.PodSpec{
			ServiceAccountName: serviceAccount,
			Containers:         []corev1.Container{{Name: "workload", Image: "none.invalid/workload"}},
			// Kept off every node, also where there are nodes and a scheduler.
			SchedulingGates: []corev1.PodSchedulingGate{{Name: "oidclab.dev/api-only"}},
		},
	}, metav1.CreateOptions{})
	if err != nil {
		return fmt.Errorf("cluster: pod %s/%s: %w", namespace, name, err)
	}
	return nil
}

// DeletePod deletes a pod at once. One that does not exist is an error.
func (a *API) DeletePod(ctx context.Context, namespace, name string) error {
	now := int64(0)
	err := a.kubernetes.CoreV1().Pods(namespace).Delete(ctx, name, metav1.DeleteOptions{GracePeriodSeconds: &now})
	if err != nil {
		return fmt.Errorf("cluster: delete pod %s/%s: %w", namespace, name, err)
	}
	return nil
}

// TokenReview has the API server judge a token for the given audiences; none
// means its own. A token that it refuses is not an error: see
// Status.Authenticated and Status.Error.
func (a *API) TokenReview(ctx context.Context, token string, audiences ...string) (authenticationv1.TokenReviewStatus, error) {
	review, err := a.kubernetes.AuthenticationV1().TokenReviews().Create(ctx, &authenticationv1.TokenReview{
		Spec: authenticationv1.TokenReviewSpec{Token: token, Audiences: audiences},
	}, metav1.CreateOptions{})
	if err != nil {
		return authenticationv1.TokenReviewStatus{}, fmt.Errorf("cluster: token review: %w", err)
	}
	return review.Status, nil
}

// Document is a document as the API server served it.
type Document struct {
	Header http.Header
	Body   []byte
}

// Discovery fetches the discovery document (OpenID Connect Discovery 1.0
// section 4) from the API server.
func (a *API) Discovery(ctx context.Context) (Document, error) {
	return a.document(ctx, "/.well-known/openid-configuration")
}

// CheckIdentity reads back whose issuer the API server is, and with KeyFiles
// whether it publishes exactly those keys. One whose issuer is not an https URL,
// or has a query or fragment, starts without a discovery document and says so in
// its log only.
func (a *API) CheckIdentity(ctx context.Context, want Identity) error {
	document, err := a.Discovery(ctx)
	if err != nil {
		return fmt.Errorf("the API server does not serve issuer %s; use an https URL without query and fragment: %w", want.Issuer, err)
	}
	var got struct {
		Issuer  string `json:"issuer"`
		JWKSURI string `json:"jwks_uri"`
	}
	if err := json.Unmarshal(document.Body, &got); err != nil {
		return fmt.Errorf("cluster: discovery document: %w", err)
	}
	if got.Issuer != want.Issuer || got.JWKSURI != want.JWKSURI {
		return fmt.Errorf("cluster: the API server is issuer %q with keys at %q, not %q with keys at %q",
			got.Issuer, got.JWKSURI, want.Issuer, want.JWKSURI)
	}
	if want.KeyFiles == nil {
		return nil
	}
	return a.CheckKeys(ctx, want.KeyFiles.KeyIDs)
}

// CheckKeys reads back which keys the API server publishes.
func (a *API) CheckKeys(ctx context.Context, ids []string) error {
	published, err := a.keyIDs(ctx)
	if err != nil {
		return err
	}
	wanted := slices.Sorted(slices.Values(ids))
	if slices.Sort(published); !slices.Equal(published, wanted) {
		return fmt.Errorf("cluster: the API server publishes the keys %v, not %v", published, wanted)
	}
	return nil
}

func (a *API) keyIDs(ctx context.Context) ([]string, error) {
	document, err := a.JWKS(ctx)
	if err != nil {
		return nil, err
	}
	var set struct {
		Keys []struct {
			ID string `json:"kid"`
		} `json:"keys"`
	}
	if err := json.Unmarshal(document.Body, &set); err != nil {
		return nil, fmt.Errorf("cluster: key set: %w", err)
	}
	var ids []string
	for _, key := range set.Keys {
		ids = append(ids, key.ID)
	}
	return ids, nil
}

// JWKS fetches the key set (RFC 7517 section 5) from the API server.
func (a *API) JWKS(ctx context.Context) (Document, error) { return a.document(ctx, "/openid/v1/jwks") }

// Ready returns nil if /readyz of the API server answers 200, and otherwise why
// it does not.
func (a *API) Ready(ctx context.Context) error {
	_, err := a.document(ctx, "/readyz")
	return err
}

func (a *API) document(ctx context.Context, path string) (_ Document, err error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, a.server.JoinPath(path).String(), nil)
	if err != nil {
		return Document{}, fmt.Errorf("cluster: %w", err)
	}
	response, err := a.http.Do(request)
	if err != nil {
		return Document{}, fmt.Errorf("cluster: %w", err)
	}
	defer func() { err = errors.Join(err, response.Body.Close()) }()
	body, err := io.ReadAll(io.LimitReader(response.Body, maxDocument+1))
	if err != nil {
		return Document{}, fmt.Errorf("cluster: GET %s: %w", path, err)
	}
	if len(body) > maxDocument {
		return Document{}, fmt.Errorf("cluster: GET %s: the answer is longer than %d bytes", path, maxDocument)
	}
	if response.StatusCode != http.StatusOK {
		return Document{}, fmt.Errorf("cluster: GET %s: %s: %.1000s", path, response.Status, body)
	}
	return Document{Header: response.Header, Body: body}, nil
}
