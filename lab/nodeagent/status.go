package nodeagent

import (
	"context"
	"encoding/json"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// set changes the status of a container.
func (w *worker) set(c *container, change func(*corev1.ContainerStatus)) {
	w.mu.Lock()
	change(&c.status)
	started := c.status.State.Running != nil || c.init && c.status.State.Terminated != nil
	c.status.Started = &started
	w.mu.Unlock()
	w.tell()
}

// setAll puts all containers into one state.
func (w *worker) setAll(state corev1.ContainerState) {
	for _, c := range w.containers {
		w.set(c, func(s *corev1.ContainerStatus) { s.State = state })
	}
}

// setWaiting says what containers wait for that have not started.
func (w *worker) setWaiting(message string) {
	for _, c := range w.containers {
		w.set(c, func(s *corev1.ContainerStatus) {
			if waiting := s.State.Waiting; waiting != nil {
				s.State = waitingFor(waiting.Reason, message)
			}
		})
	}
}

func (w *worker) tell() {
	select {
	case w.changed <- struct{}{}:
	default: // it is told already
	}
}

// report keeps the status in the API up to date until ctx ends.
func (w *worker) report(ctx context.Context) {
	w.tell()
	for {
		select {
		case <-ctx.Done():
			return
		case <-w.changed:
		}
		if err := w.push(ctx); err != nil && ctx.Err() == nil {
			w.agent.log.Warn("the status of a pod", "pod", describe(w.latest()), "error", err)
			select {
			case <-ctx.Done():
				return
			case <-time.After(retryDelay):
				w.tell()
			}
		}
	}
}

// push writes the status to the API. A pod that is gone has none.
func (w *worker) push(ctx context.Context) error {
	pod := w.latest()
	patch, err := json.Marshal(map[string]any{
		"metadata": map[string]any{"uid": pod.UID}, // of no other pod of that name
		"status":   w.status(),
	})
	if err != nil {
		return err
	}
	_, err = w.agent.client.CoreV1().Pods(pod.Namespace).Patch(ctx, pod.Name, types.StrategicMergePatchType, patch, metav1.PatchOptions{}, "status")
	if apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
		return nil
	}
	return err
}

// status returns the pod's status as kubelet would write it.
func (w *worker) status() corev1.PodStatus {
	w.mu.Lock()
	defer w.mu.Unlock()
	status := corev1.PodStatus{
		HostIP: nodeAddress, HostIPs: []corev1.HostIP{{IP: nodeAddress}}, PodIP: nodeAddress, PodIPs: []corev1.PodIP{{IP: nodeAddress}},
		StartTime: &w.started,
	}
	initialized := true
	for _, spec := range w.pod.Spec.InitContainers {
		s := w.containers[spec.Name].status
		status.InitContainerStatuses = append(status.InitContainerStatuses, s)
		initialized = initialized && s.State.Terminated != nil && s.State.Terminated.ExitCode == 0
	}
	ready := true
	for _, spec := range w.pod.Spec.Containers {
		s := w.containers[spec.Name].status
		status.ContainerStatuses = append(status.ContainerStatuses, s)
		ready = ready && s.Ready
	}
	status.Phase = phase(w.pod, status, initialized)
	reason := ""
	if !ready {
		reason = "ContainersNotReady"
		if status.Phase == corev1.PodSucceeded {
			reason = "PodCompleted"
		}
	}
	status.Conditions = []corev1.PodCondition{
		w.condition(corev1.PodInitialized, initialized, ""),
		w.condition(corev1.ContainersReady, ready, reason),
		w.condition(corev1.PodReady, ready, reason),
	}
	return status
}

// condition keeps the time of the last change.
func (w *worker) condition(kind corev1.PodConditionType, holds bool, reason string) corev1.PodCondition {
	c := corev1.PodCondition{Type: kind, Status: corev1.ConditionFalse, Reason: reason, LastTransitionTime: metav1.Now()}
	if holds {
		c.Status = corev1.ConditionTrue
	}
	for _, before := range w.pod.Status.Conditions {
		if before.Type == kind && before.Status == c.Status {
			c.LastTransitionTime = before.LastTransitionTime
		}
	}
	return c
}

// phase is kubelet's (pkg/kubelet, getPhase).
func phase(pod *corev1.Pod, status corev1.PodStatus, initialized bool) corev1.PodPhase {
	never := pod.Spec.RestartPolicy == corev1.RestartPolicyNever
	if !initialized {
		for _, s := range status.InitContainerStatuses {
			if never && s.State.Terminated != nil && s.State.Terminated.ExitCode != 0 {
				return corev1.PodFailed
			}
		}
		return corev1.PodPending
	}
	var running, waiting, succeeded, failed int
	for _, s := range status.ContainerStatuses {
		switch {
		case s.State.Running != nil:
			running++
		case s.State.Terminated != nil && s.State.Terminated.ExitCode == 0:
			succeeded++
		case s.State.Terminated != nil:
			failed++
		case s.LastTerminationState.Terminated != nil: // it is being restarted
			running++
		default:
			waiting++
		}
	}
	switch {
	case waiting > 0:
		return corev1.PodPending
	case running > 0 || pod.Spec.RestartPolicy == corev1.RestartPolicyAlways:
		return corev1.PodRunning
	case failed == 0:
		return corev1.PodSucceeded
	case never:
		return corev1.PodFailed
	}
	return corev1.PodRunning
}
