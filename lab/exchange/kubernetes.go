package exchange

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
)

const kubernetesParty = "kubernetes"

// KubernetesTarget is a ConfigMap of a cluster that takes tokens of another
// issuer (structured authentication, KEP-3331).
type KubernetesTarget struct {
	Server    string // of the API
	CA        []byte // PEM
	Namespace string
	ConfigMap string
}

// Kubernetes reads a ConfigMap with a token as bearer: there is nothing to
// exchange, the token itself is the credential. Status 401 means that the
// cluster does not take the token, 403 that its user may not read.
func Kubernetes(ctx context.Context, target KubernetesTarget, token string) (map[string]string, error) {
	if err := secure(kubernetesParty, target.Server); err != nil {
		return nil, err
	}
	config := &rest.Config{
		Host: target.Server, BearerToken: token, Timeout: requestTimeout, QPS: -1,
		TLSClientConfig: rest.TLSClientConfig{CAData: target.CA},
		Proxy:           http.ProxyURL(nil),
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("kubernetes: %w", err)
	}
	found, err := client.CoreV1().ConfigMaps(target.Namespace).Get(ctx, target.ConfigMap, metav1.GetOptions{})
	var status apierrors.APIStatus
	if errors.As(err, &status) {
		return nil, answered(kubernetesParty, int(status.Status().Code), string(status.Status().Reason), status.Status().Message, token)
	}
	if err != nil {
		return nil, fmt.Errorf("kubernetes: %w", err)
	}
	return found.Data, nil
}
