package webhook

import (
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// operation is one step of a JSON patch, RFC 6902.
type operation struct {
	Op    string `json:"op"`
	Path  string `json:"path"`
	Value any    `json:"value"`
}

// editor changes a pod, and records how. It adds and replaces single elements,
// so that fields it does not know survive.
type editor struct {
	pod   *corev1.Pod
	patch []operation
}

func (e *editor) inject(wanted *injection, rule conflictRule) error {
	if err := e.addVolume(wanted.volume, rule); err != nil {
		return err
	}
	mount := corev1.VolumeMount{Name: wanted.volume.Name, MountPath: wanted.mountPath, ReadOnly: true}
	return e.eachContainer(wanted.skip, func(path string, c *corev1.Container) error {
		if err := e.addMount(path, c, mount, rule); err != nil {
			return err
		}
		for _, group := range wanted.env {
			if rule != refuseConflicts && has(c, group) {
				continue
			}
			for _, v := range group {
				if has(c, []corev1.EnvVar{v}) {
					return deny("env var with name %q already exists", v.Name)
				}
				c.Env = push(e, path+"/env", c.Env, v)
			}
		}
		return nil
	})
}

// injectExtra adds what is not the vendor's, and says in an annotation what
// that is.
func (e *editor) injectExtra(extra Extra, profile string, skip func(*corev1.Container) bool) {
	var names []string
	for _, v := range extra.Env {
		names = append(names, v.Name)
	}
	if extra.Volume != nil {
		names = append(names, extra.Volume.Name)
		_ = e.addVolume(*extra.Volume, keepExisting) // never refuses
	}
	if len(names) == 0 {
		return
	}
	_ = e.eachContainer(skip, func(path string, c *corev1.Container) error {
		if extra.Volume != nil && !slices.ContainsFunc(c.VolumeMounts, func(m corev1.VolumeMount) bool { return m.MountPath == extra.MountPath }) {
			_ = e.addMount(path, c, corev1.VolumeMount{Name: extra.Volume.Name, MountPath: extra.MountPath, ReadOnly: true}, keepExisting)
		}
		for _, v := range extra.Env {
			if !has(c, []corev1.EnvVar{v}) {
				c.Env = push(e, path+"/env", c.Env, v)
			}
		}
		return nil
	})
	e.annotate(ExtraAnnotation+"-"+profile, strings.Join(names, " "))
}

func (e *editor) addVolume(volume corev1.Volume, rule conflictRule) error {
	i := slices.IndexFunc(e.pod.Spec.Volumes, func(v corev1.Volume) bool { return v.Name == volume.Name })
	switch {
	case i < 0:
		e.pod.Spec.Volumes = push(e, "/spec/volumes", e.pod.Spec.Volumes, volume)
	case rule == refuseConflicts:
		return deny("volume with name %q already exists in pod spec; please remove it to allow the webhook to inject the projected service account token volume", volume.Name)
	case rule == replaceVolumeOnly:
		replace(e, "/spec/volumes", e.pod.Spec.Volumes, i, volume)
	}
	return nil
}

func (e *editor) addMount(path string, c *corev1.Container, mount corev1.VolumeMount, rule conflictRule) error {
	i := slices.IndexFunc(c.VolumeMounts, func(m corev1.VolumeMount) bool { return m.Name == mount.Name })
	switch {
	case i < 0:
		c.VolumeMounts = push(e, path+"/volumeMounts", c.VolumeMounts, mount)
	case rule == refuseConflicts:
		return deny("volumeMount with name %q already exists", mount.Name)
	case rule == replaceVolumeOnly:
		replace(e, path+"/volumeMounts", c.VolumeMounts, i, mount)
	}
	return nil
}

// eachContainer edits containers and init containers, but not ephemeral ones,
// which no webhook for new pods ever meets.
func (e *editor) eachContainer(skip func(*corev1.Container) bool, edit func(path string, c *corev1.Container) error) error {
	for _, kind := range []struct {
		path, name string
		list       []corev1.Container
	}{
		{"/spec/containers", "container", e.pod.Spec.Containers},
		{"/spec/initContainers", "init container", e.pod.Spec.InitContainers},
	} {
		for i := range kind.list {
			c := &kind.list[i]
			if skip != nil && skip(c) {
				continue
			}
			if err := edit(fmt.Sprintf("%s/%d", kind.path, i), c); err != nil {
				return deny("failed to mutate %s %q: %s", kind.name, c.Name, err)
			}
		}
	}
	return nil
}

func (e *editor) annotate(name, value string) {
	if len(e.pod.Annotations) == 0 {
		e.pod.Annotations = map[string]string{name: value}
		e.record("add", "/metadata/annotations", maps.Clone(e.pod.Annotations))
		return
	}
	e.pod.Annotations[name] = value
	e.record("add", "/metadata/annotations/"+strings.NewReplacer("~", "~0", "/", "~1").Replace(name), value)
}

func (e *editor) record(op, path string, value any) {
	e.patch = append(e.patch, operation{op, path, value})
}

// push appends to a list of the pod. Adding to a list that is not there would
// fail.
func push[T any](e *editor, path string, list []T, item T) []T {
	if len(list) == 0 {
		e.record("add", path, []T{item})
	} else {
		e.record("add", path+"/-", item)
	}
	return append(list, item)
}

func replace[T any](e *editor, path string, list []T, i int, item T) {
	if !reflect.DeepEqual(list[i], item) {
		list[i] = item
		e.record("replace", fmt.Sprintf("%s/%d", path, i), item)
	}
}

// has says whether a container has one of the variables.
func has(c *corev1.Container, group []corev1.EnvVar) bool {
	return slices.ContainsFunc(c.Env, func(have corev1.EnvVar) bool {
		return slices.ContainsFunc(group, func(v corev1.EnvVar) bool { return v.Name == have.Name })
	})
}
