// Package clustertest is the conformance suite of clusters: what holds for every
// engine and for both ways to sign, by the external signer and with key files.
package clustertest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/oidclab/oidclab/lab/clock"
	"github.com/oidclab/oidclab/lab/cluster"
	"github.com/oidclab/oidclab/lab/cluster/signer"
	"github.com/oidclab/oidclab/lab/keys"
	"github.com/oidclab/oidclab/lab/trace"
)

const (
	// startTimeout bounds a start on a busy machine.
	startTimeout = 2 * time.Minute
	// settle bounds what the API server does in its own time: it keeps the
	// outcome of a token's authentication for 10 s.
	settle = 45 * time.Second

	namespace = "demo"
	account   = "app"
	audience  = "sts.example"
)

// Engine is how the suite gets clusters, and how it hurts them.
type Engine struct {
	// Start starts a cluster whose files go to dir.
	Start func(ctx context.Context, identity cluster.Identity, dir string) (cluster.Cluster, error)
	// Kill kills a component ("etcd" or "kube-apiserver") with SIGKILL.
	Kill func(c cluster.Cluster, component string) error
	// Leftovers returns what still runs of all clusters.
	Leftovers func() ([]string, error)
	// NoExternalSigner says why clusters of this engine cannot have an external
	// signer on this machine; empty if they can.
	NoExternalSigner string
}

// Run runs the suite. It starts two clusters, one for each way to sign, and
// gives up the start of a third.
func Run(t *testing.T, engine Engine) {
	static := newFixture(t, engine, "static", staticKeys)
	all := []*fixture{static}
	t.Run("external signer", func(t *testing.T) {
		if engine.NoExternalSigner != "" {
			t.Skip("external signer: " + engine.NoExternalSigner)
		}
	})
	way := externalSigner
	if engine.NoExternalSigner != "" {
		way = staticKeys
	}
	other := newFixture(t, engine, "other", way)
	if engine.NoExternalSigner == "" {
		all = append(all, other)
	}
	for _, f := range all {
		t.Run(f.Identity().ID, func(t *testing.T) { f.run(t) })
	}
	t.Run("side by side", func(t *testing.T) { testSideBySide(t, static, other) })
	t.Run("close", other.testClose)
	t.Run("close during a restart", static.testCloseDuringRestart)
	t.Run("start given up", func(t *testing.T) { testStartGivenUp(t, engine) })
	if left, err := engine.Leftovers(); err != nil || len(left) != 0 {
		t.Errorf("left behind after Close: %v (%v)", left, err)
	}
}

// run runs what holds for a cluster alone.
func (f *fixture) run(t *testing.T) {
	for _, test := range []struct {
		name string
		run  func(*fixture, *testing.T)
	}{
		{"issuer", (*fixture).testIssuer},
		{"keys", (*fixture).testKeys},
		{"anonymous callers", (*fixture).testAnonymous},
		{"kubeconfig", (*fixture).testKubeconfig},
		{"namespace", (*fixture).testNamespace},
		{"token of a service account", (*fixture).testServiceAccountToken},
		{"token of a pod", (*fixture).testPodToken},
		{"token of a node", (*fixture).testNodeToken},
		{"audiences", (*fixture).testAudiences},
		{"expiration", (*fixture).testExpiration},
		{"token review", (*fixture).testTokenReview},
		{"authorization", (*fixture).testAuthorization},
		{"deleted objects", (*fixture).testDeleted},
		{"rotation", (*fixture).testRotation},
		{"issuers", (*fixture).testIssuers},
		{"identity that cannot be served", (*fixture).testBadIdentity},
		{"recreation", (*fixture).testRecreation},
		{"API server killed", func(f *fixture, t *testing.T) { f.testKilled(t, "kube-apiserver") }},
		{"etcd killed", func(f *fixture, t *testing.T) { f.testKilled(t, "etcd") }},
	} {
		t.Run(test.name, func(t *testing.T) { test.run(f, t) })
	}
}

// fixture is a cluster and its keys.
type fixture struct {
	cluster.Cluster
	engine Engine
	keys   *keys.Set
	trace  *trace.Log // of the external signer; nil without one
}

// signing makes a fixture's keys and says in the identity who signs with them.
type signing func(t *testing.T, f *fixture, dir string, identity *cluster.Identity)

func externalSigner(t *testing.T, f *fixture, dir string, identity *cluster.Identity) {
	var err error
	if f.keys, err = keys.New(clock.System{}, keys.RS256); err != nil {
		t.Fatal(err)
	}
	f.trace = trace.New()
	identity.SignerSocket = filepath.Join(dir, "signer.sock")
	s, err := signer.Start(signer.Config{Socket: identity.SignerSocket, Keys: f.keys, Trace: f.trace})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Stop)
}

func staticKeys(t *testing.T, f *fixture, _ string, identity *cluster.Identity) {
	var err error
	f.keys, err = keys.NewStatic(clock.System{}, keys.RS256, cluster.MaxTokenLife, func(files keys.Files) error {
		changed := f.Identity()
		changed.KeyFiles = &files
		return f.reconfigure(changed)
	})
	if err != nil {
		t.Fatal(err)
	}
	files, err := f.keys.Files()
	if err != nil {
		t.Fatal(err)
	}
	identity.KeyFiles = &files
}

func newFixture(t *testing.T, engine Engine, id string, sign signing) *fixture {
	t.Helper()
	dir := shortDir(t)
	f := &fixture{engine: engine}
	identity := newIdentity(id)
	sign(t, f, dir, &identity)
	ctx, cancel := context.WithTimeout(t.Context(), startTimeout)
	defer cancel()
	var err error
	if f.Cluster, err = engine.Start(ctx, identity, filepath.Join(dir, id)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.close(t) })
	if err := f.API().EnsureServiceAccount(t.Context(), namespace, account); err != nil {
		t.Fatal(err)
	}
	return f
}

func newIdentity(id string) cluster.Identity {
	issuer := "https://issuer.example/c/" + id
	return cluster.Identity{ID: id, Issuer: issuer, JWKSURI: issuer + "/openid/v1/jwks"}
}

// shortDir returns a directory with a shorter path than t.TempDir, for the
// sockets' sake.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "cluster")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// reconfigure restarts the API server with another identity.
func (f *fixture) reconfigure(identity cluster.Identity) error {
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	return f.Reconfigure(ctx, identity)
}

func (f *fixture) close(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), settle)
	defer cancel()
	if err := f.Close(ctx); err != nil {
		t.Error(err)
	}
}

func (f *fixture) testIssuer(t *testing.T) {
	document, err := f.API().Discovery(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var discovery struct {
		Issuer  string `json:"issuer"`
		JWKSURI string `json:"jwks_uri"`
	}
	if err := json.Unmarshal(document.Body, &discovery); err != nil {
		t.Fatal(err)
	}
	if identity := f.Identity(); discovery.Issuer != identity.Issuer || discovery.JWKSURI != identity.JWKSURI {
		t.Errorf("got %+v, want %+v", discovery, identity)
	}
	if got := document.Header.Get("Content-Type"); got != "application/json" {
		t.Errorf("got content type %q", got)
	}
}

func (f *fixture) testKeys(t *testing.T) {
	document, err := f.API().JWKS(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if got := document.Header.Get("Content-Type"); got != "application/jwk-set+json" {
		t.Errorf("got content type %q", got)
	}
	if got, want := f.published(t), []string{f.keys.Current().ID}; !slices.Equal(got, want) {
		t.Errorf("got keys %v, want %v", got, want)
	}
	for _, member := range []string{`"d"`, `"p"`, `"q"`, `"k"`} {
		if strings.Contains(string(document.Body), member) {
			t.Errorf("the key set has the private member %s", member)
		}
	}
}

// published returns the key ids of the key set that the API server serves.
func (f *fixture) published(t *testing.T) []string {
	t.Helper()
	document, err := f.API().JWKS(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var set jose.JSONWebKeySet
	if err := json.Unmarshal(document.Body, &set); err != nil {
		t.Fatal(err)
	}
	var ids []string
	for _, key := range set.Keys {
		if !key.IsPublic() {
			t.Errorf("key %s is not public", key.KeyID)
		}
		ids = append(ids, key.KeyID)
	}
	return ids
}

func (f *fixture) testAnonymous(t *testing.T) {
	config := rest.AnonymousClientConfig(f.API().Config())
	client, err := rest.HTTPClientFor(config)
	if err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]int{
		"/readyz":                           http.StatusOK,
		"/livez":                            http.StatusOK,
		"/.well-known/openid-configuration": http.StatusUnauthorized,
		"/openid/v1/jwks":                   http.StatusUnauthorized,
		"/api/v1/namespaces":                http.StatusUnauthorized,
	} {
		request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, config.Host+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		response, err := client.Do(request)
		if err != nil {
			t.Fatal(err)
		}
		if err := response.Body.Close(); err != nil {
			t.Error(err)
		}
		if response.StatusCode != want {
			t.Errorf("%s: got %d, want %d", path, response.StatusCode, want)
		}
	}
}

func (f *fixture) testKubeconfig(t *testing.T) {
	config, err := clientcmd.RESTConfigFromKubeConfig(f.Kubeconfig())
	if err != nil {
		t.Fatal(err)
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := client.CoreV1().Secrets("").List(t.Context(), metav1.ListOptions{}); err != nil {
		t.Errorf("the administrator may not list secrets: %v", err)
	}
}

// testNamespace shows the controllers at work.
func (f *fixture) testNamespace(t *testing.T) {
	const name = "short-lived"
	if err := f.API().EnsureServiceAccount(t.Context(), name, account); err != nil {
		t.Fatal(err)
	}
	if err := f.API().EnsureServiceAccount(t.Context(), name, account); err != nil {
		t.Errorf("again: %v", err)
	}
	core := f.API().Kubernetes().CoreV1()
	eventually(t, func() error {
		_, err := core.ServiceAccounts(name).Get(t.Context(), "default", metav1.GetOptions{})
		return err
	})
	eventually(t, func() error {
		_, err := core.ConfigMaps(name).Get(t.Context(), "kube-root-ca.crt", metav1.GetOptions{})
		return err
	})
	if err := core.Namespaces().Delete(t.Context(), name, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() error {
		_, err := core.Namespaces().Get(t.Context(), name, metav1.GetOptions{})
		if !apierrors.IsNotFound(err) {
			return fmt.Errorf("the namespace is still there (%v)", err)
		}
		return nil
	})
}

// tokenClaims are the claims of a service-account token.
type tokenClaims struct {
	Issuer     string   `json:"iss"`
	Subject    string   `json:"sub"`
	Audience   []string `json:"aud"`
	Expiry     int64    `json:"exp"`
	IssuedAt   int64    `json:"iat"`
	NotBefore  int64    `json:"nbf"`
	ID         string   `json:"jti"`
	Kubernetes struct {
		Namespace      string
		ServiceAccount object
		Pod            *object
		Node           *object
	} `json:"kubernetes.io"`
}

type object struct{ Name, UID string }

// token has a token issued for the service account.
func (f *fixture) token(t *testing.T, change func(*cluster.TokenRequest)) string {
	t.Helper()
	request := cluster.TokenRequest{Namespace: namespace, ServiceAccount: account, Audiences: []string{audience}}
	if change != nil {
		change(&request)
	}
	token, err := f.API().Token(t.Context(), request)
	if err != nil {
		t.Fatal(err)
	}
	return token
}

// verify checks a token's signature with the set and returns key id and claims.
func (f *fixture) verify(t *testing.T, token string) (kid string, claims tokenClaims) {
	t.Helper()
	object, err := jose.ParseSignedCompact(token, []jose.SignatureAlgorithm{jose.RS256})
	if err != nil {
		t.Fatal(err)
	}
	set := f.keys.JWKS()
	payload, err := object.Verify(&set)
	if err != nil {
		t.Fatalf("the token is not signed by the cluster's keys: %v", err)
	}
	if err := json.Unmarshal(payload, &claims); err != nil {
		t.Fatal(err)
	}
	return object.Signatures[0].Protected.KeyID, claims
}

func (f *fixture) testServiceAccountToken(t *testing.T) {
	token := f.token(t, nil)
	kid, claims := f.verify(t, token)
	if kid != f.keys.Current().ID {
		t.Errorf("got kid %s, want that of the signing key", kid)
	}
	if want := "system:serviceaccount:" + namespace + ":" + account; claims.Subject != want || claims.Issuer != f.Identity().Issuer {
		t.Errorf("got sub %q of %q", claims.Subject, claims.Issuer)
	}
	if k := claims.Kubernetes; k.Namespace != namespace || k.ServiceAccount.Name != account || k.ServiceAccount.UID == "" || k.Pod != nil || k.Node != nil {
		t.Errorf("got kubernetes.io %+v", k)
	}
	if claims.ID == "" || claims.NotBefore != claims.IssuedAt || claims.Expiry-claims.IssuedAt != 3600 {
		t.Errorf("got claims %+v, want a jti and one hour of life", claims)
	}
	if f.trace == nil {
		return
	}
	if events := f.trace.Journey(trace.JourneyOf(token)); len(events) != 1 || events[0].Step != "mint" {
		t.Errorf("got events %+v, want that of the signer", events)
	}
}

func (f *fixture) testPodToken(t *testing.T) {
	if err := f.API().CreatePod(t.Context(), namespace, "bound", account); err != nil {
		t.Fatal(err)
	}
	_, claims := f.verify(t, f.token(t, func(r *cluster.TokenRequest) { r.Pod = "bound" }))
	if pod := claims.Kubernetes.Pod; pod == nil || pod.Name != "bound" || pod.UID == "" {
		t.Errorf("got pod %+v, want name and UID of the pod", pod)
	}
	_, err := f.API().Token(t.Context(), cluster.TokenRequest{Namespace: namespace, ServiceAccount: account, Pod: "none"})
	if !apierrors.IsNotFound(err) {
		t.Errorf("token of a pod that does not exist: got %v, want not found", err)
	}
	if err := f.API().DeletePod(t.Context(), namespace, "bound"); err != nil {
		t.Error(err)
	}
}

// testNodeToken has tokens of a pod that is bound to a node, and of the node
// alone. Neither does the pod run nor is there a machine behind the node.
func (f *fixture) testNodeToken(t *testing.T) {
	const name = "machine"
	core := f.API().Kubernetes().CoreV1()
	node, err := core.Nodes().Create(t.Context(), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := core.Pods(namespace).Create(t.Context(), &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "on-" + name},
		Spec: corev1.PodSpec{
			ServiceAccountName: account, NodeName: name,
			Containers: []corev1.Container{{Name: "workload", Image: "none.invalid/workload"}},
		},
	}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	ofPod := f.token(t, func(r *cluster.TokenRequest) { r.Pod = "on-" + name })
	ofNode := f.token(t, func(r *cluster.TokenRequest) { r.Node = name })
	_, claims := f.verify(t, ofPod)
	if pod := claims.Kubernetes.Pod; pod == nil || pod.Name != "on-"+name {
		t.Errorf("token of the pod: got pod %+v", pod)
	}
	if got := claims.Kubernetes.Node; got == nil || got.Name != name || got.UID != string(node.UID) {
		t.Errorf("token of the pod: got node %+v, want name and UID of the pod's node", got)
	}
	_, claims = f.verify(t, ofNode)
	if got := claims.Kubernetes; got.Pod != nil || got.Node == nil || got.Node.Name != name || got.Node.UID != string(node.UID) {
		t.Errorf("token of the node: got %+v, want name and UID of the node only", got)
	}
	status, err := f.API().TokenReview(t.Context(), ofNode, audience)
	if err != nil {
		t.Fatal(err)
	}
	if got := status.User.Extra["authentication.kubernetes.io/node-name"]; !status.Authenticated || !slices.Equal(got, []string{name}) {
		t.Errorf("review of the token of the node: got %+v, want it accepted for %s", status, name)
	}
	if _, err := f.API().Token(t.Context(), cluster.TokenRequest{Namespace: namespace, ServiceAccount: account, Node: "none"}); !apierrors.IsNotFound(err) {
		t.Errorf("token of a node that does not exist: got %v, want not found", err)
	}
	kept := f.token(t, nil)
	if err := core.Nodes().Delete(t.Context(), name, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	f.refused(t, ofNode)
	if err := f.reviewed(t, kept, audience); err != nil {
		t.Errorf("control: a token that is bound to no node: %v", err)
	}
	if err := f.API().DeletePod(t.Context(), namespace, "on-"+name); err != nil && !apierrors.IsNotFound(err) {
		t.Error(err) // not found: the cluster collects pods of nodes that are gone
	}
}

func (f *fixture) testAudiences(t *testing.T) {
	for _, want := range [][]string{{audience}, {"one", "two"}} {
		_, claims := f.verify(t, f.token(t, func(r *cluster.TokenRequest) { r.Audiences = want }))
		if !slices.Equal(claims.Audience, want) {
			t.Errorf("got aud %v, want %v", claims.Audience, want)
		}
	}
	_, claims := f.verify(t, f.token(t, func(r *cluster.TokenRequest) { r.Audiences = nil }))
	if want := []string{f.Identity().Issuer}; !slices.Equal(claims.Audience, want) {
		t.Errorf("without a request: got aud %v, want the API server's own, %v", claims.Audience, want)
	}
}

func (f *fixture) testExpiration(t *testing.T) {
	const least = 600 * time.Second
	_, claims := f.verify(t, f.token(t, func(r *cluster.TokenRequest) { r.Expiration = least }))
	if got := time.Duration(claims.Expiry-claims.IssuedAt) * time.Second; got != least {
		t.Errorf("got a life of %s, want %s", got, least)
	}
	_, err := f.API().Token(t.Context(), cluster.TokenRequest{
		Namespace: namespace, ServiceAccount: account, Expiration: least - time.Second,
	})
	if !apierrors.IsInvalid(err) {
		t.Errorf("one second less: got %v, want it invalid", err)
	}
	const pod = "mounts-a-token"
	if err := f.API().CreatePod(t.Context(), namespace, pod, account); err != nil {
		t.Fatal(err)
	}
	for name, request := range map[string]cluster.TokenRequest{
		"two days": {Audiences: []string{audience}, Expiration: 2 * cluster.MaxTokenLife},
		// What kubelet asks for in the name of every pod. By default the API server
		// makes it a year (storage/token.go in pkg/registry/core/serviceaccount).
		"a pod's own token": {Expiration: 3607 * time.Second, Pod: pod},
	} {
		_, claims := f.verify(t, f.token(t, func(r *cluster.TokenRequest) {
			r.Audiences, r.Expiration, r.Pod = request.Audiences, request.Expiration, request.Pod
		}))
		if got := time.Duration(claims.Expiry-claims.IssuedAt) * time.Second; got > cluster.MaxTokenLife {
			t.Errorf("%s: got a life of %s, want at most %s", name, got, cluster.MaxTokenLife)
		}
	}
	if err := f.API().DeletePod(t.Context(), namespace, pod); err != nil {
		t.Error(err)
	}
}

// reviewed returns nil if a token review accepts the token.
func (f *fixture) reviewed(t *testing.T, token string, audiences ...string) error {
	t.Helper()
	status, err := f.API().TokenReview(t.Context(), token, audiences...)
	if err != nil {
		t.Fatal(err)
	}
	if !status.Authenticated {
		return errors.New("refused: " + status.Error)
	}
	return nil
}

// refused waits until a token review refuses the token.
func (f *fixture) refused(t *testing.T, token string) {
	t.Helper()
	eventually(t, func() error {
		if f.reviewed(t, token, audience) == nil {
			return errors.New("a token review still accepts the token")
		}
		return nil
	})
}

func (f *fixture) testTokenReview(t *testing.T) {
	token := f.token(t, nil)
	status, err := f.API().TokenReview(t.Context(), token, audience, "other")
	if err != nil {
		t.Fatal(err)
	}
	if !status.Authenticated || status.User.Username != "system:serviceaccount:"+namespace+":"+account || !slices.Equal(status.Audiences, []string{audience}) {
		t.Errorf("got %+v, want the service account for the audience both have", status)
	}
	foreign, err := keys.Generate(keys.RS256)
	if err != nil {
		t.Fatal(err)
	}
	claims, err := keys.Claims(token)
	if err != nil {
		t.Fatal(err)
	}
	control, err := f.keys.Forge(keys.Forgery{Claims: claims})
	if err != nil {
		t.Fatal(err)
	}
	if err := f.reviewed(t, control, audience); err != nil {
		t.Errorf("control: the same claims under the true key: %v", err)
	}
	forged, err := f.keys.Forge(keys.Forgery{Claims: claims, Key: foreign})
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct{ token, audience string }{
		"garbage":        {"garbage", audience},
		"foreign key":    {forged, audience},
		"wrong audience": {token, "other"},
		"own audience":   {token, ""},
	} {
		var audiences []string
		if c.audience != "" {
			audiences = []string{c.audience}
		}
		if f.reviewed(t, c.token, audiences...) == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func (f *fixture) testAuthorization(t *testing.T) {
	config := rest.AnonymousClientConfig(f.API().Config())
	config.BearerToken = f.token(t, func(r *cluster.TokenRequest) { r.Audiences = nil })
	api, err := cluster.NewAPI(config)
	if err != nil {
		t.Fatal(err)
	}
	// Any service account may read the discovery document (RBAC role
	// system:service-account-issuer-discovery), and no more than that.
	if _, err := api.Discovery(t.Context()); err != nil {
		t.Errorf("discovery as a service account: %v", err)
	}
	_, err = api.Kubernetes().CoreV1().Secrets(namespace).List(t.Context(), metav1.ListOptions{})
	if !apierrors.IsForbidden(err) {
		t.Errorf("secrets as a service account: got %v, want forbidden", err)
	}
}

// testDeleted deletes what tokens are bound to, and makes it anew under the same
// name: a token is bound to the object, by its UID.
func (f *fixture) testDeleted(t *testing.T) {
	const dismissed = "dismissed"
	if err := f.API().EnsureServiceAccount(t.Context(), namespace, dismissed); err != nil {
		t.Fatal(err)
	}
	for _, pod := range []string{"deleted", "replaced", "kept"} {
		if err := f.API().CreatePod(t.Context(), namespace, pod, account); err != nil {
			t.Fatal(err)
		}
	}
	ofPod := func(name string) string { return f.token(t, func(r *cluster.TokenRequest) { r.Pod = name }) }
	kept := ofPod("kept")
	gone := map[string]string{
		"deleted pod":     ofPod("deleted"),
		"replaced pod":    ofPod("replaced"),
		"service account": f.token(t, func(r *cluster.TokenRequest) { r.ServiceAccount = dismissed }),
	}
	for name, token := range gone {
		if err := f.reviewed(t, token, audience); err != nil {
			t.Fatalf("%s: before the deletion: %v", name, err)
		}
	}
	for _, pod := range []string{"deleted", "replaced"} {
		if err := f.API().DeletePod(t.Context(), namespace, pod); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.API().CreatePod(t.Context(), namespace, "replaced", account); err != nil {
		t.Fatal(err)
	}
	if err := f.API().Kubernetes().CoreV1().ServiceAccounts(namespace).Delete(t.Context(), dismissed, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := f.API().EnsureServiceAccount(t.Context(), namespace, dismissed); err != nil {
		t.Fatal(err)
	}
	for _, token := range gone {
		f.refused(t, token)
	}
	for name, token := range map[string]string{
		"the other pod": kept, "the new pod": ofPod("replaced"),
		"the new service account": f.token(t, func(r *cluster.TokenRequest) { r.ServiceAccount = dismissed }),
	} {
		if err := f.reviewed(t, token, audience); err != nil {
			t.Errorf("control: the token of %s: %v", name, err)
		}
	}
}

// testRotation replaces the signing key: while the API server runs, or by
// restarts of it.
func (f *fixture) testRotation(t *testing.T) {
	old := f.keys.Current()
	before := f.token(t, nil)
	next, err := f.keys.Publish()
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, func() error {
		if got := f.published(t); !slices.Contains(got, next.ID) || !slices.Contains(got, old.ID) {
			return fmt.Errorf("the API server publishes %v, not also %s", got, next.ID)
		}
		return nil
	})
	if kid, _ := f.verify(t, f.token(t, nil)); kid != old.ID {
		t.Errorf("after publishing: got kid %s, want the old key to sign", kid)
	}
	if _, err := f.keys.SignWith(next.ID); err != nil {
		t.Fatal(err)
	}
	after := f.token(t, nil)
	if kid, _ := f.verify(t, after); kid != next.ID {
		t.Errorf("got kid %s, want the new key to sign at once", kid)
	}
	for name, token := range map[string]string{"before": before, "after": after} {
		if err := f.reviewed(t, token, audience); err != nil {
			t.Errorf("token from %s the rotation: %v", name, err)
		}
	}
	if _, err := f.keys.Remove(old.ID); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() error {
		if got := f.published(t); !slices.Equal(got, []string{next.ID}) {
			return fmt.Errorf("the API server publishes %v, not only %s", got, next.ID)
		}
		return nil
	})
	f.refused(t, before)
	if err := f.reviewed(t, after, audience); err != nil {
		t.Errorf("control: the token of the new key: %v", err)
	}
}

// testIssuers gives a running cluster another issuer, with the former one
// accepted, and takes it away again.
func (f *fixture) testIssuers(t *testing.T) {
	former := f.Identity()
	old, own := f.token(t, nil), f.token(t, func(r *cluster.TokenRequest) { r.Audiences = nil })
	later := former
	later.Issuer += "/later"
	later.JWKSURI = later.Issuer + "/openid/v1/jwks"
	later.AcceptedIssuers = []string{former.Issuer}
	if err := f.reconfigure(later); err != nil {
		t.Fatal(err)
	}
	f.testIssuer(t)
	fresh := f.token(t, nil)
	if _, claims := f.verify(t, fresh); claims.Issuer != later.Issuer {
		t.Errorf("got a token of %s, want the new issuer to issue", claims.Issuer)
	}
	if err := f.reviewed(t, fresh, audience); err != nil {
		t.Errorf("token of the new issuer: %v", err)
	}
	if err := f.reviewed(t, old, audience); err != nil {
		t.Errorf("token of the former issuer, which is accepted: %v", err)
	}
	if err := f.reviewed(t, own, former.Issuer); err != nil {
		t.Errorf("token for the API server under its former name: %v", err)
	}
	if err := f.reconfigure(former); err != nil {
		t.Fatal(err)
	}
	f.testIssuer(t)
	f.refused(t, fresh)
	if err := f.reviewed(t, old, audience); err != nil {
		t.Errorf("control: %v", err)
	}
}

// testBadIdentity asks for an identity that cannot be served, and expects the
// former one to be served on.
func (f *fixture) testBadIdentity(t *testing.T) {
	token := f.token(t, nil)
	bad := f.Identity()
	bad.Issuer = "http://issuer.example"
	ctx, cancel := context.WithTimeout(t.Context(), settle)
	defer cancel()
	if err := f.Reconfigure(ctx, bad); err == nil || !strings.Contains(err.Error(), "use an https URL") {
		t.Errorf("got %v, want the cause and the next step", err)
	}
	other := f.Identity()
	other.ID = "another"
	if f.reconfigure(other) == nil {
		t.Error("a cluster became another")
	}
	if err := f.Healthy(t.Context()); err != nil {
		t.Error(err)
	}
	f.testIssuer(t)
	if err := f.reviewed(t, token, audience); err != nil {
		t.Errorf("token from before: %v", err)
	}
	f.verify(t, f.token(t, nil))
}

// testRecreation makes the cluster anew with other keys, and expects nothing of it
// to be left but its address, its issuer and its administrator.
func (f *fixture) testRecreation(t *testing.T) {
	host, old, former := f.API().Config().Host, f.token(t, nil), f.keys.Current().ID
	ctx, cancel := context.WithTimeout(t.Context(), startTimeout)
	defer cancel()
	identity := f.Identity()
	other := identity
	other.ID = "another"
	if f.Recreate(ctx, other) == nil {
		t.Fatal("a cluster became another")
	}
	var err error
	if identity.KeyFiles == nil {
		if _, err = f.keys.Replace(nil); err == nil {
			err = f.Recreate(ctx, identity)
		}
	} else {
		_, err = f.keys.Replace(func(files keys.Files) error {
			identity.KeyFiles = &files
			return f.Recreate(ctx, identity)
		})
	}
	if err != nil {
		t.Fatal(err)
	}
	if got := f.published(t); slices.Contains(got, former) || !slices.Contains(got, f.keys.Current().ID) {
		t.Errorf("publishes %v, want %s and not %s", got, f.keys.Current().ID, former)
	}
	if err := f.Healthy(t.Context()); err != nil {
		t.Error(err)
	}
	f.testIssuer(t)
	if _, err := f.API().Kubernetes().CoreV1().Namespaces().Get(t.Context(), namespace, metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("the namespace is still there (%v)", err)
	}
	if err := f.API().EnsureServiceAccount(t.Context(), namespace, account); err != nil {
		t.Fatal(err)
	}
	f.refused(t, old)
	fresh := f.token(t, nil)
	f.verify(t, fresh)
	if err := f.reviewed(t, fresh, audience); err != nil {
		t.Errorf("control: a token of the new account: %v", err)
	}
	if got := f.API().Config().Host; got != host {
		t.Errorf("the API server moved from %s to %s", host, got)
	}
}

// testKilled kills a component and expects it back with its data.
func (f *fixture) testKilled(t *testing.T, component string) {
	host, token := f.API().Config().Host, f.token(t, nil)
	if err := f.engine.Kill(f.Cluster, component); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() error {
		if f.Healthy(t.Context()) == nil {
			return errors.New("the cluster says that it is healthy")
		}
		return nil
	})
	eventually(t, func() error { return f.Healthy(t.Context()) })
	if err := f.reviewed(t, token, audience); err != nil {
		t.Errorf("token from before: %v", err)
	}
	f.verify(t, f.token(t, nil)) // the service account is still there
	if got := f.API().Config().Host; got != host {
		t.Errorf("the API server moved from %s to %s", host, got)
	}
}

func testSideBySide(t *testing.T, first, second *fixture) {
	token := second.token(t, nil)
	if err := second.reviewed(t, token, audience); err != nil {
		t.Errorf("control: its own token: %v", err)
	}
	if first.reviewed(t, token, audience) == nil {
		t.Error("a cluster accepts the token of another")
	}
	if first.API().Config().Host == second.API().Config().Host {
		t.Error("both clusters have the same address")
	}
	stranger := second.API().Config()
	stranger.Host = first.API().Config().Host
	stranger.CAData = first.API().Config().CAData
	api, err := cluster.NewAPI(stranger)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := api.Discovery(t.Context()); err == nil {
		t.Error("a cluster accepts the administrator of another")
	}
}

func (f *fixture) testClose(t *testing.T) {
	var closes sync.WaitGroup
	for range 2 {
		closes.Go(func() { f.close(t) })
	}
	closes.Wait()
	f.close(t)
	if f.Healthy(t.Context()) == nil {
		t.Error("a closed cluster says that it is healthy")
	}
}

// testCloseDuringRestart closes a cluster while its API server restarts. It
// expects both to end soon, the restart with an error.
func (f *fixture) testCloseDuringRestart(t *testing.T) {
	if err := f.Healthy(t.Context()); err != nil {
		t.Fatalf("after the other has gone: %v", err)
	}
	changed := f.Identity()
	changed.AcceptedIssuers = []string{"https://former.example"}
	restarted := make(chan error, 1)
	go func() { restarted <- f.reconfigure(changed) }()
	eventually(t, func() error {
		if f.Healthy(t.Context()) == nil {
			return errors.New("the API server does not restart")
		}
		return nil
	})
	f.testClose(t)
	select {
	case err := <-restarted:
		if err == nil {
			t.Error("the restart went well")
		}
	case <-time.After(settle):
		t.Error("the restart goes on")
	}
	if f.reconfigure(changed) == nil {
		t.Error("a closed cluster was reconfigured")
	}
}

// testStartGivenUp cancels a start when it is under way.
func testStartGivenUp(t *testing.T, engine Engine) {
	f := &fixture{engine: engine}
	dir, identity := shortDir(t), newIdentity("third")
	staticKeys(t, f, dir, &identity)
	enough := errors.New("enough")
	ctx, cancel := context.WithTimeoutCause(t.Context(), time.Second, enough)
	defer cancel()
	started, err := engine.Start(ctx, identity, filepath.Join(dir, "third"))
	if err == nil {
		t.Fatal("started all the same (close: ", started.Close(context.Background()), ")")
	}
	if !strings.Contains(err.Error(), "third") || !strings.Contains(err.Error(), enough.Error()) {
		t.Errorf("got %v, want cluster and cause", err)
	}
}

// eventually waits until a condition returns nil.
func eventually(t *testing.T, condition func() error) {
	t.Helper()
	end := time.After(settle)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := condition()
		if err == nil {
			return
		}
		select {
		case <-tick.C:
		case <-end:
			t.Fatalf("after %s: %v", settle, err)
		}
	}
}
