package nodeagent

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/kubernetes/pkg/fieldpath"
	"k8s.io/kubernetes/pkg/kubelet/token"
	"k8s.io/kubernetes/pkg/volume"
	"k8s.io/kubernetes/pkg/volume/configmap"
	"k8s.io/kubernetes/pkg/volume/secret"
	volumeutil "k8s.io/kubernetes/pkg/volume/util"

	"github.com/oidclab/oidclab/lab/nodeagent/sandbox"
)

// payload is what a volume holds, by path.
type payload = map[string]volumeutil.FileProjection

// volumes keeps the volumes of pods as kubelet does.
type volumes struct {
	client kubernetes.Interface // with the rights of a node
	tokens *token.Manager
}

// write writes all volumes of a pod below dir, each to a directory of its name.
// Written again, a volume changes at once and as a whole, and only if its content
// has changed.
func (v *volumes) write(ctx context.Context, pod *corev1.Pod, dir string) error {
	for _, spec := range pod.Spec.Volumes {
		target := filepath.Join(dir, spec.Name)
		if err := os.MkdirAll(target, 0o755); err != nil {
			return err
		}
		if err := v.writeOne(ctx, pod, spec, target); err != nil {
			return fmt.Errorf("MountVolume.SetUp failed for volume %q: %w", spec.Name, err)
		}
	}
	return nil
}

func (v *volumes) writeOne(ctx context.Context, pod *corev1.Pod, spec corev1.Volume, target string) error {
	content := payload{}
	var err error
	switch {
	case spec.EmptyDir != nil:
		// As in kubelet, everybody may write.
		return errors.Join(os.Chmod(target, 0o777|os.ModeSetgid), own(target, pod, false))
	case spec.Projected != nil:
		for _, source := range spec.Projected.Sources {
			more, sourceErr := v.projection(ctx, pod, source, spec.Projected.DefaultMode)
			maps.Copy(content, more)
			err = errors.Join(err, sourceErr)
		}
	case spec.ConfigMap != nil:
		content, err = v.configMap(ctx, pod.Namespace, spec.ConfigMap.Name, spec.ConfigMap.Items, spec.ConfigMap.DefaultMode, optional(spec.ConfigMap.Optional))
	case spec.Secret != nil:
		content, err = v.secret(ctx, pod.Namespace, spec.Secret.SecretName, spec.Secret.Items, spec.Secret.DefaultMode, optional(spec.Secret.Optional))
	case spec.DownwardAPI != nil:
		content, err = downwardAPI(pod, spec.DownwardAPI.Items, spec.DownwardAPI.DefaultMode)
	default:
		err = errors.New("the node agent has emptyDir, projected, configMap, secret and downwardAPI volumes only")
	}
	if err != nil {
		return err
	}
	writer, err := volumeutil.NewAtomicWriter(target, pod.Namespace+"/"+pod.Name)
	if err != nil {
		return err
	}
	return writer.Write(content, func(string) error { return own(target, pod, true) })
}

func (v *volumes) projection(ctx context.Context, pod *corev1.Pod, source corev1.VolumeProjection, mode *int32) (payload, error) {
	switch {
	case source.ServiceAccountToken != nil:
		return v.token(pod, source.ServiceAccountToken, *mode)
	case source.ConfigMap != nil:
		return v.configMap(ctx, pod.Namespace, source.ConfigMap.Name, source.ConfigMap.Items, mode, optional(source.ConfigMap.Optional))
	case source.Secret != nil:
		return v.secret(ctx, pod.Namespace, source.Secret.Name, source.Secret.Items, mode, optional(source.Secret.Optional))
	case source.DownwardAPI != nil:
		return downwardAPI(pod, source.DownwardAPI.Items, mode)
	}
	return nil, errors.New("the node agent projects serviceAccountToken, configMap, secret and downwardAPI only")
}

// token asks as kubelet's projected volume does
// (pkg/volume/projected, collectData).
func (v *volumes) token(pod *corev1.Pod, source *corev1.ServiceAccountTokenProjection, mode int32) (payload, error) {
	user := volumeutil.FsUserFrom(pod)
	if user != nil || fsGroup(pod) != nil {
		mode = 0o600 // with a group, own makes it 0640
	}
	var audiences []string
	if source.Audience != "" {
		audiences = []string{source.Audience}
	}
	granted, err := v.tokens.GetServiceAccountToken(pod.Namespace, pod.Spec.ServiceAccountName, &authenticationv1.TokenRequest{
		Spec: authenticationv1.TokenRequestSpec{
			Audiences:         audiences,
			ExpirationSeconds: source.ExpirationSeconds,
			BoundObjectRef:    &authenticationv1.BoundObjectReference{APIVersion: "v1", Kind: "Pod", Name: pod.Name, UID: pod.UID},
		},
	})
	if err != nil {
		return nil, err
	}
	if sandbox.NeedsUserNamespace() {
		user = nil // files are the agent's, which the container's user namespace maps to its user
	}
	return payload{source.Path: {Data: []byte(granted.Status.Token), Mode: mode, FsUser: user}}, nil
}

func (v *volumes) configMap(ctx context.Context, namespace, name string, items []corev1.KeyToPath, mode *int32, optional bool) (payload, error) {
	object, err := v.client.CoreV1().ConfigMaps(namespace).Get(ctx, name, metav1.GetOptions{})
	if optional && apierrors.IsNotFound(err) {
		object, err = &corev1.ConfigMap{}, nil
	}
	if err != nil {
		return nil, err
	}
	return configmap.MakePayload(items, object, mode, optional)
}

func (v *volumes) secret(ctx context.Context, namespace, name string, items []corev1.KeyToPath, mode *int32, optional bool) (payload, error) {
	object, err := v.client.CoreV1().Secrets(namespace).Get(ctx, name, metav1.GetOptions{})
	if optional && apierrors.IsNotFound(err) {
		object, err = &corev1.Secret{}, nil
	}
	if err != nil {
		return nil, err
	}
	return secret.MakePayload(items, object, mode, optional)
}

func downwardAPI(pod *corev1.Pod, items []corev1.DownwardAPIVolumeFile, mode *int32) (payload, error) {
	content := payload{}
	for _, item := range items {
		if item.FieldRef == nil {
			return nil, errors.New("the node agent has no resourceFieldRef: pods have the whole machine")
		}
		value, err := fieldpath.ExtractFieldPathAsString(pod, item.FieldRef.FieldPath)
		if err != nil {
			return nil, err
		}
		file := volumeutil.FileProjection{Data: []byte(value), Mode: *mode}
		if item.Mode != nil {
			file.Mode = *item.Mode
		}
		content[filepath.Clean(item.Path)] = file
	}
	return content, nil
}

func optional(value *bool) bool { return value != nil && *value }

// own gives a volume to the pod's fsGroup, if there is one.
func own(dir string, pod *corev1.Pod, readOnly bool) error {
	if sandbox.NeedsUserNamespace() {
		return nil // the container's user namespace maps the agent's group to its own
	}
	return volume.NewVolumeOwnership(attributes{readOnly: readOnly}, dir, fsGroup(pod), nil, nil).ChangePermissions()
}

func fsGroup(pod *corev1.Pod) *int64 {
	if pod.Spec.SecurityContext == nil {
		return nil
	}
	return pod.Spec.SecurityContext.FSGroup
}

// attributes is what the change of ownership asks of a volume.
type attributes struct {
	volume.Mounter
	readOnly bool
}

func (a attributes) GetAttributes() volume.Attributes { return volume.Attributes{ReadOnly: a.readOnly} }
