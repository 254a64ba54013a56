package cluster

import (
	"context"
	"errors"
	"fmt"
	"io"

	corev1 "k8s.io/api/core/v1"
)

// maxLog bounds what PodLog returns.
const maxLog = 4 << 20

// PodLog returns what a container has written so far. The empty name means the
// pod's only container.
func (a *API) PodLog(ctx context.Context, namespace, pod, container string) (_ []byte, err error) {
	stream, err := a.PodLogStream(ctx, namespace, pod, container, false)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, stream.Close()) }()
	return io.ReadAll(io.LimitReader(stream, maxLog))
}

// PodLogStream returns a reader of what a container has written and, if it is to
// be followed, will write. It ends with the container or with ctx.
func (a *API) PodLogStream(ctx context.Context, namespace, pod, container string, follow bool) (io.ReadCloser, error) {
	stream, err := a.kubernetes.CoreV1().Pods(namespace).GetLogs(pod, &corev1.PodLogOptions{Container: container, Follow: follow}).Stream(ctx)
	if err != nil {
		return nil, fmt.Errorf("cluster: log of pod %s/%s: %w", namespace, pod, err)
	}
	return stream, nil
}
