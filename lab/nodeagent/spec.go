package nodeagent

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/kubernetes/pkg/fieldpath"
	"k8s.io/kubernetes/third_party/forked/golang/expansion"

	"github.com/oidclab/oidclab/fixtures/manifests"
	"github.com/oidclab/oidclab/lab/nodeagent/sandbox"
)

// configError says that a container cannot be made as its pod wants it. The
// reason is kubelet's.
type configError struct {
	reason string
	error
}

func refuse(reason, format string, args ...any) error {
	return configError{reason, fmt.Errorf(format, args...)}
}

// Reasons of a configError, as kubelet gives them.
const (
	createContainerConfigError = "CreateContainerConfigError"
	createContainerError       = "CreateContainerError"
)

// image is what is known of an image.
type image struct {
	entrypoint []string
	binds      []sandbox.Bind
	uid, gid   int
}

// The workload image, as package images makes it.
const (
	workloadEntrypoint = "/oidclab"
	workloadUser       = 65532
)

// imageOf returns what is known of a container's image: nothing, unless it is the
// workload image in any version.
func imageOf(name, program string) image {
	repository, _, _ := strings.Cut(strings.TrimPrefix(name, "docker.io/"), ":")
	if workload, _, _ := strings.Cut(manifests.Image, ":"); repository != workload {
		return image{}
	}
	return image{
		entrypoint: []string{workloadEntrypoint},
		binds:      []sandbox.Bind{{Source: program, Target: workloadEntrypoint, ReadOnly: true}},
		uid:        workloadUser, gid: workloadUser,
	}
}

// maker makes sandboxes of containers.
type maker struct {
	client  kubernetes.Interface // with the rights of a node
	program string               // the oidclab binary
	server  [2]string            // host and port of the Kubernetes API
}

// sandbox returns what a container needs. Volumes of the pod are below its
// directory by name, and root is an empty directory.
func (m maker) sandbox(ctx context.Context, pod *corev1.Pod, c *corev1.Container, volumeDir, root string) (sandbox.Spec, error) {
	img := imageOf(c.Image, m.program)
	user, err := identify(pod, c, img)
	if err != nil {
		return sandbox.Spec{}, err
	}
	environment, err := m.environment(ctx, pod, c)
	if err != nil {
		return sandbox.Spec{}, err
	}
	command, err := commandOf(c, img, environment)
	if err != nil {
		return sandbox.Spec{}, err
	}
	binds, err := mounts(pod, c, volumeDir, environment)
	if err != nil {
		return sandbox.Spec{}, err
	}
	s := sandbox.Spec{
		Dir: root, Hostname: hostname(pod), Mounts: append(img.binds, binds...), WorkingDir: "/", Args: command,
		UserNamespace: sandbox.NeedsUserNamespace(), UID: user.uid, GID: user.gid, Groups: user.groups, Capabilities: defaultCapabilities(),
	}
	if c.WorkingDir != "" {
		s.WorkingDir = c.WorkingDir
	}
	if sc := c.SecurityContext; sc != nil {
		s.ReadOnlyRoot = sc.ReadOnlyRootFilesystem != nil && *sc.ReadOnlyRootFilesystem
		s.NoNewPrivileges = sc.AllowPrivilegeEscalation != nil && !*sc.AllowPrivilegeEscalation
		if sc.Capabilities != nil && slices.Contains(sc.Capabilities.Drop, "ALL") {
			s.Capabilities = nil
		}
	}
	for _, name := range slices.Sorted(maps.Keys(environment)) {
		s.Env = append(s.Env, name+"="+environment[name])
	}
	return s, nil
}

// defaultCapabilities are those that container runtimes leave to root.
func defaultCapabilities() []uintptr {
	return []uintptr{
		unix.CAP_CHOWN, unix.CAP_DAC_OVERRIDE, unix.CAP_FSETID, unix.CAP_FOWNER, unix.CAP_MKNOD, unix.CAP_NET_RAW, unix.CAP_SETGID,
		unix.CAP_SETUID, unix.CAP_SETFCAP, unix.CAP_SETPCAP, unix.CAP_NET_BIND_SERVICE, unix.CAP_SYS_CHROOT, unix.CAP_KILL, unix.CAP_AUDIT_WRITE,
	}
}

func hostname(pod *corev1.Pod) string {
	name := pod.Name
	if pod.Spec.Hostname != "" {
		name = pod.Spec.Hostname
	}
	return strings.TrimRight(name[:min(len(name), 63)], "-.") // as kubelet does
}

type user struct {
	uid, gid int
	groups   []int
}

// identify returns who a container is, by kubelet's rules
// (pkg/kubelet/kuberuntime, verifyRunAsNonRoot).
func identify(pod *corev1.Pod, c *corev1.Container, img image) (user, error) {
	u := user{uid: img.uid, gid: img.gid}
	nonRoot, chosen := false, false
	apply := func(uid, gid *int64, nonRootWanted *bool) {
		if uid != nil {
			u.uid, chosen = int(*uid), true
			if gid == nil && int(*uid) != img.uid {
				u.gid = 0
			}
		}
		if gid != nil {
			u.gid = int(*gid)
		}
		if nonRootWanted != nil {
			nonRoot = *nonRootWanted
		}
	}
	if sc := pod.Spec.SecurityContext; sc != nil {
		apply(sc.RunAsUser, sc.RunAsGroup, sc.RunAsNonRoot)
		for _, group := range sc.SupplementalGroups {
			u.groups = append(u.groups, int(group))
		}
		if sc.FSGroup != nil {
			u.groups = append(u.groups, int(*sc.FSGroup))
		}
	}
	if sc := c.SecurityContext; sc != nil {
		if sc.Privileged != nil && *sc.Privileged {
			return u, refuse(createContainerError, "the node agent runs no privileged containers")
		}
		gid := sc.RunAsGroup
		if gid == nil && pod.Spec.SecurityContext != nil {
			gid = pod.Spec.SecurityContext.RunAsGroup
		}
		apply(sc.RunAsUser, gid, sc.RunAsNonRoot)
	}
	switch {
	case nonRoot && u.uid == 0 && chosen:
		return u, refuse(createContainerConfigError, "container's runAsUser breaks non-root policy (pod: %q, container: %s)", describe(pod), c.Name)
	case nonRoot && u.uid == 0:
		return u, refuse(createContainerConfigError, "container has runAsNonRoot and image will run as root (pod: %q, container: %s)", describe(pod), c.Name)
	}
	return u, nil
}

// describe names a pod as kubelet's messages do.
func describe(pod *corev1.Pod) string {
	return fmt.Sprintf("%s_%s(%s)", pod.Name, pod.Namespace, pod.UID)
}

// commandOf returns the container's command, with $(NAME) replaced.
func commandOf(c *corev1.Container, img image, environment map[string]string) ([]string, error) {
	command := c.Command
	if len(command) == 0 {
		command = img.entrypoint
	}
	if len(command) == 0 {
		return nil, refuse(createContainerError, "the container has no command, and the node agent does not know that of image %q: "+
			"it runs programs of this machine, and the workload image %s; set command, or use the kind engine", c.Image, manifests.Image)
	}
	var expanded []string
	for _, arg := range append(slices.Clone(command), c.Args...) {
		expanded = append(expanded, expansion.Expand(arg, expansion.MappingFuncFor(environment)))
	}
	return expanded, nil
}

// mounts returns what a container sees of the volumes.
func mounts(pod *corev1.Pod, c *corev1.Container, volumeDir string, environment map[string]string) ([]sandbox.Bind, error) {
	var binds []sandbox.Bind
	for _, mount := range c.VolumeMounts {
		sub := mount.SubPath
		if mount.SubPathExpr != "" {
			sub = expansion.Expand(mount.SubPathExpr, expansion.MappingFuncFor(environment))
		}
		source := filepath.Join(volumeDir, mount.Name)
		if sub != "" {
			if !filepath.IsLocal(sub) {
				return nil, refuse(createContainerConfigError, "the subPath %q of volume mount %q leaves the volume", sub, mount.Name)
			}
			// What it points to now: as with kubelet, a subPath is not updated.
			resolved, err := filepath.EvalSymlinks(filepath.Join(source, sub))
			if err != nil {
				return nil, refuse(createContainerConfigError, "failed to prepare subPath for volumeMount %q of container %q: %w", mount.Name, c.Name, err)
			}
			source = resolved
		}
		binds = append(binds, sandbox.Bind{Source: source, Target: mount.MountPath, ReadOnly: mount.ReadOnly})
	}
	return binds, nil
}

// environment returns a container's variables.
func (m maker) environment(ctx context.Context, pod *corev1.Pod, c *corev1.Container) (map[string]string, error) {
	environment := map[string]string{
		"PATH":                    "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		"HOSTNAME":                hostname(pod),
		"KUBERNETES_SERVICE_HOST": m.server[0], // directly: there is no service network
		"KUBERNETES_SERVICE_PORT": m.server[1],
	}
	for _, from := range c.EnvFrom {
		values, err := m.envFrom(ctx, pod.Namespace, from)
		if err != nil {
			return nil, err
		}
		for name, value := range values {
			environment[from.Prefix+name] = value
		}
	}
	for _, variable := range c.Env {
		if variable.ValueFrom == nil {
			environment[variable.Name] = expansion.Expand(variable.Value, expansion.MappingFuncFor(environment))
			continue
		}
		value, found, err := m.valueFrom(ctx, pod, variable.ValueFrom)
		if err != nil {
			return nil, err
		}
		if found {
			environment[variable.Name] = value
		}
	}
	return environment, nil
}

func (m maker) envFrom(ctx context.Context, namespace string, from corev1.EnvFromSource) (map[string]string, error) {
	switch {
	case from.ConfigMapRef != nil:
		object, err := m.client.CoreV1().ConfigMaps(namespace).Get(ctx, from.ConfigMapRef.Name, metav1.GetOptions{})
		if missing(err, from.ConfigMapRef.Optional) {
			return nil, nil
		}
		if err != nil {
			return nil, refuse(createContainerConfigError, "%w", err)
		}
		return object.Data, nil
	case from.SecretRef != nil:
		object, err := m.client.CoreV1().Secrets(namespace).Get(ctx, from.SecretRef.Name, metav1.GetOptions{})
		if missing(err, from.SecretRef.Optional) {
			return nil, nil
		}
		if err != nil {
			return nil, refuse(createContainerConfigError, "%w", err)
		}
		return text(object.Data), nil
	}
	return nil, nil
}

func text(data map[string][]byte) map[string]string {
	values := map[string]string{}
	for name, value := range data {
		values[name] = string(value)
	}
	return values
}

func missing(err error, isOptional *bool) bool {
	return apierrors.IsNotFound(err) && optional(isOptional)
}

func (m maker) valueFrom(ctx context.Context, pod *corev1.Pod, from *corev1.EnvVarSource) (value string, found bool, err error) {
	switch {
	case from.FieldRef != nil:
		value, err := fieldValue(pod, from.FieldRef.FieldPath)
		if err != nil {
			return "", false, refuse(createContainerConfigError, "%w", err)
		}
		return value, true, nil
	case from.ConfigMapKeyRef != nil:
		ref := from.ConfigMapKeyRef
		values, err := m.envFrom(ctx, pod.Namespace, corev1.EnvFromSource{ConfigMapRef: &corev1.ConfigMapEnvSource{LocalObjectReference: ref.LocalObjectReference, Optional: ref.Optional}})
		return keyOf("configmap", pod.Namespace, ref.Name, ref.Key, values, ref.Optional, err)
	case from.SecretKeyRef != nil:
		ref := from.SecretKeyRef
		values, err := m.envFrom(ctx, pod.Namespace, corev1.EnvFromSource{SecretRef: &corev1.SecretEnvSource{LocalObjectReference: ref.LocalObjectReference, Optional: ref.Optional}})
		return keyOf("secret", pod.Namespace, ref.Name, ref.Key, values, ref.Optional, err)
	}
	return "", false, refuse(createContainerConfigError, "the node agent takes variables from fields, ConfigMaps and Secrets only")
}

func keyOf(kind, namespace, name, key string, values map[string]string, isOptional *bool, err error) (string, bool, error) {
	if err != nil {
		return "", false, err
	}
	value, found := values[key]
	if !found && !optional(isOptional) {
		return "", false, refuse(createContainerConfigError, "couldn't find key %v in %s %v/%v", key, kind, namespace, name)
	}
	return value, found, nil
}

// fieldValue returns a field that kubelet gives to the environment.
func fieldValue(pod *corev1.Pod, path string) (string, error) {
	switch path {
	case "spec.nodeName":
		return pod.Spec.NodeName, nil
	case "spec.serviceAccountName":
		return pod.Spec.ServiceAccountName, nil
	case "status.hostIP", "status.podIP", "status.hostIPs", "status.podIPs":
		return nodeAddress, nil
	}
	return fieldpath.ExtractFieldPathAsString(pod, path)
}

// reasonOf returns the reason and message of an error for a container's status.
func reasonOf(err error) (reason, message string) {
	var config configError
	if errors.As(err, &config) {
		return config.reason, config.Error()
	}
	return createContainerError, err.Error()
}
