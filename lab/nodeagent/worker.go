package nodeagent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/oidclab/oidclab/lab/nodeagent/sandbox"
)

// How kubelet backs off from a container that ends again and again: not for the
// first restart, then 10 s, twice that for each, at most 5 min.
const (
	firstBackoff  = 10 * time.Second
	maxBackoff    = 5 * time.Minute
	steadyAfter   = 10 * time.Minute // a run of this length starts the backoff anew
	configRetry   = 10 * time.Second // until a container is tried again that could not be made
	exitStart     = 128              // exit code of a container whose command could not be started
	exitUnknown   = 137              // and of one whose exit nobody saw
	reasonUnknown = "ContainerStatusUnknown"
)

// worker runs one pod.
type worker struct {
	agent  *agent
	dir    string
	ctx    context.Context // ends when the pod is gone from the API, or the agent ends
	cancel context.CancelFunc

	deleting   chan struct{} // closed when the pod is being deleted
	deleteOnce sync.Once
	changed    chan struct{} // has a value when the status has changed

	mu         sync.Mutex
	pod        *corev1.Pod // as the API had it last
	containers map[string]*container
	started    metav1.Time
}

// container is a container of the pod.
type container struct {
	spec   *corev1.Container
	init   bool
	status corev1.ContainerStatus
	ended  chan struct{} // of its last run; closed when that has ended
}

func (a *agent) newWorker(ctx context.Context, pod *corev1.Pod) *worker {
	w := &worker{
		agent: a, dir: filepath.Join(a.dir, dirName(pod)), deleting: make(chan struct{}), changed: make(chan struct{}, 1),
		pod: pod, containers: map[string]*container{}, started: metav1.Now(),
	}
	w.ctx, w.cancel = context.WithCancel(ctx)
	if pod.Status.StartTime != nil {
		w.started = *pod.Status.StartTime
	}
	for i := range pod.Spec.InitContainers {
		w.add(&pod.Spec.InitContainers[i], true, pod.Status.InitContainerStatuses)
	}
	for i := range pod.Spec.Containers {
		w.add(&pod.Spec.Containers[i], false, pod.Status.ContainerStatuses)
	}
	w.update(pod)
	return w
}

// add adds a container with what an agent before this one knew of it.
func (w *worker) add(spec *corev1.Container, init bool, known []corev1.ContainerStatus) {
	c := &container{spec: spec, init: init, ended: make(chan struct{})}
	close(c.ended)
	c.status = corev1.ContainerStatus{Name: spec.Name, Image: spec.Image, State: w.waiting()}
	for _, status := range known {
		if status.Name != spec.Name {
			continue
		}
		c.status = status
		if status.State.Running != nil { // it died with that agent
			c.status.State = corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{
				ExitCode: exitUnknown, Reason: reasonUnknown, Message: "the node agent was restarted",
				StartedAt: status.State.Running.StartedAt, FinishedAt: metav1.Now(), ContainerID: status.ContainerID,
			}}
			c.status.Ready = false
		}
	}
	w.containers[spec.Name] = c
}

func (w *worker) waiting() corev1.ContainerState {
	reason := "ContainerCreating"
	if len(w.pod.Spec.InitContainers) > 0 {
		reason = "PodInitializing"
	}
	return corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: reason}}
}

func (w *worker) latest() *corev1.Pod {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.pod
}

// update tells what the API has of the pod now.
func (w *worker) update(pod *corev1.Pod) {
	w.mu.Lock()
	w.pod = pod
	w.mu.Unlock()
	if pod.DeletionTimestamp != nil {
		w.deleteOnce.Do(func() { close(w.deleting) })
	}
}

// run is the pod's life.
func (w *worker) run() {
	reporting, stopReporting := context.WithCancel(w.ctx)
	var reporter sync.WaitGroup
	reporter.Go(func() { w.report(reporting) })
	if phase := w.latest().Status.Phase; phase != corev1.PodSucceeded && phase != corev1.PodFailed {
		w.work()
	}
	select {
	case <-w.deleting:
	case <-w.ctx.Done():
	}
	stopReporting()
	reporter.Wait()
	w.finish()
}

// work returns when no container runs, or will run again.
func (w *worker) work() {
	for _, c := range w.containers {
		if c.init && c.spec.RestartPolicy != nil {
			w.setAll(waitingFor(createContainerConfigError, "the node agent has no restartable init containers"))
			return
		}
	}
	if !w.awaitVolumes() {
		return
	}
	stop := make(chan struct{})
	var refresher sync.WaitGroup
	refresher.Go(func() { w.refreshVolumes(stop) })
	defer refresher.Wait()
	defer close(stop)

	policy := w.latest().Spec.RestartPolicy
	for _, spec := range w.latest().Spec.InitContainers {
		initPolicy := policy
		if policy == corev1.RestartPolicyAlways {
			initPolicy = corev1.RestartPolicyOnFailure
		}
		if !w.runContainer(w.containers[spec.Name], initPolicy) {
			return
		}
	}
	var group sync.WaitGroup
	for _, spec := range w.latest().Spec.Containers {
		group.Go(func() { w.runContainer(w.containers[spec.Name], policy) })
	}
	group.Wait()
}

// awaitVolumes returns false if the pod ends before it has its volumes.
func (w *worker) awaitVolumes() bool {
	for delay := retryDelay; ; delay = min(2*delay, maxRetry) {
		err := w.writeVolumes()
		if err == nil {
			return true
		}
		w.setWaiting(err.Error())
		if !w.pause(delay) {
			return false
		}
	}
}

func (w *worker) writeVolumes() error {
	return w.agent.volumes.write(w.ctx, w.latest(), filepath.Join(w.dir, "volumes"))
}

// refreshVolumes renews what has changed: tokens above all, at 80 % of their life.
func (w *worker) refreshVolumes(stop <-chan struct{}) {
	ticker := time.NewTicker(syncInterval)
	defer ticker.Stop()
	for {
		select {
		case <-stop:
			return
		case <-w.ctx.Done():
			return
		case <-ticker.C:
		}
		if err := w.writeVolumes(); err != nil && w.ctx.Err() == nil {
			w.agent.log.Error("volumes were not renewed", "pod", describe(w.latest()), "error", err)
		}
	}
}

// pause returns false if the pod ends meanwhile.
func (w *worker) pause(delay time.Duration) bool {
	timer := time.NewTimer(delay)
	defer timer.Stop()
	select {
	case <-w.ctx.Done():
		return false
	case <-w.deleting:
		return false
	case <-timer.C:
		return true
	}
}

// runContainer runs a container, again and again if the policy says so, and
// returns whether it ended well. One that has ended for good under an agent
// before this one is not run again.
func (w *worker) runContainer(c *container, policy corev1.RestartPolicy) bool {
	backoff := time.Duration(0)
	for {
		if ended := w.terminated(c); ended != nil {
			again := policy == corev1.RestartPolicyAlways || policy == corev1.RestartPolicyOnFailure && ended.ExitCode != 0
			if !again {
				return ended.ExitCode == 0
			}
			if ended.FinishedAt.Sub(ended.StartedAt.Time) > steadyAfter {
				backoff = 0
			}
			if backoff > 0 {
				message := fmt.Sprintf("back-off %s restarting failed container=%s pod=%s", backoff, c.spec.Name, describe(w.latest()))
				w.set(c, func(s *corev1.ContainerStatus) {
					s.LastTerminationState = corev1.ContainerState{Terminated: ended}
					s.State = waitingFor("CrashLoopBackOff", message)
				})
			}
			if !w.pause(backoff) {
				return false
			}
			backoff = min(max(2*backoff, firstBackoff), maxBackoff)
			w.set(c, func(s *corev1.ContainerStatus) {
				s.RestartCount++
				s.LastTerminationState = corev1.ContainerState{Terminated: ended}
				s.State = w.waiting()
			})
		}
		if err := w.runOnce(c); err != nil {
			w.set(c, func(s *corev1.ContainerStatus) { s.State = waitingFor(reasonOf(err)) })
			if !w.pause(configRetry) {
				return false
			}
			continue
		}
		select {
		case <-w.ctx.Done():
			return false
		case <-w.deleting:
			return false
		default:
		}
	}
}

func waitingFor(reason, message string) corev1.ContainerState {
	return corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: reason, Message: message}}
}

func (w *worker) terminated(c *container) *corev1.ContainerStateTerminated {
	w.mu.Lock()
	defer w.mu.Unlock()
	return c.status.State.Terminated.DeepCopy()
}

// runOnce runs a container to its end. The error says why it could not be made.
func (w *worker) runOnce(c *container) error {
	pod := w.latest()
	run := strconv.Itoa(int(c.status.RestartCount)) // only this goroutine changes it
	root := filepath.Join(w.dir, "roots", c.spec.Name, run)
	logFile := w.logFile(c.spec.Name, c.status.RestartCount)
	for _, dir := range []string{root, filepath.Dir(logFile)} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	spec, err := w.agent.maker.sandbox(w.ctx, pod, c.spec, filepath.Join(w.dir, "volumes"), root)
	if err != nil {
		return err
	}
	began := metav1.Now()
	process, err := sandbox.Start(w.agent.command, spec, logFile)
	var failed sandbox.StartError
	if errors.As(err, &failed) {
		w.set(c, func(s *corev1.ContainerStatus) {
			s.State = corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{
				ExitCode: exitStart, Reason: "StartError", Message: failed.Error(), StartedAt: began, FinishedAt: metav1.Now(),
			}}
		})
		return nil
	}
	if err != nil {
		return err
	}
	id := "oidclab://" + string(pod.UID) + "/" + c.spec.Name + "/" + run
	w.set(c, func(s *corev1.ContainerStatus) {
		c.ended = make(chan struct{})
		s.State = corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: metav1.NewTime(process.Started)}}
		s.ContainerID, s.ImageID, s.Ready = id, c.spec.Image, !c.init
	})
	w.await(process)
	code, signal := process.Exit()
	w.set(c, func(s *corev1.ContainerStatus) {
		close(c.ended)
		s.Ready = c.init && code == 0
		s.State = corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{
			ExitCode: code, Signal: signal, Reason: exitReason(code), ContainerID: id,
			StartedAt: metav1.NewTime(process.Started), FinishedAt: metav1.Now(),
		}}
	})
	return os.RemoveAll(root)
}

func exitReason(code int32) string {
	if code == 0 {
		return "Completed"
	}
	return "Error"
}

// await returns when the process has ended: by itself, or because the pod does.
func (w *worker) await(process *sandbox.Process) {
	select {
	case <-process.Exited():
		return
	case <-w.ctx.Done():
	case <-w.deleting:
		process.Signal(syscall.SIGTERM)
		grace := time.NewTimer(w.grace())
		defer grace.Stop()
		select {
		case <-process.Exited():
			return
		case <-grace.C:
		case <-w.ctx.Done():
		}
	}
	process.Signal(syscall.SIGKILL)
	<-process.Exited()
}

// grace is how long a pod that is being deleted may take.
func (w *worker) grace() time.Duration {
	if seconds := w.latest().DeletionGracePeriodSeconds; seconds != nil {
		return time.Duration(*seconds) * time.Second
	}
	return 0
}

// finish removes what is left of a pod, here and in the API.
func (w *worker) finish() {
	select {
	case <-w.deleting:
		ending, cancel := context.WithTimeout(context.WithoutCancel(w.ctx), stopTimeout)
		defer cancel()
		if w.ctx.Err() == nil {
			w.deleteFromAPI(ending)
		}
	default:
	}
	if err := os.RemoveAll(w.dir); err != nil {
		w.agent.log.Error("removing a pod's files", "pod", describe(w.latest()), "error", err)
	}
}

func (w *worker) deleteFromAPI(ctx context.Context) {
	pod := w.latest()
	if err := w.push(ctx); err != nil {
		w.agent.log.Warn("the last status of a pod", "pod", describe(pod), "error", err)
	}
	now := int64(0)
	_ = w.agent.persist(ctx, "deleting pod "+describe(pod), func(ctx context.Context) error {
		err := w.agent.client.CoreV1().Pods(pod.Namespace).Delete(ctx, pod.Name, metav1.DeleteOptions{
			GracePeriodSeconds: &now, Preconditions: &metav1.Preconditions{UID: &pod.UID},
		})
		if apierrors.IsNotFound(err) || apierrors.IsConflict(err) { // another pod of that name
			return nil
		}
		return err
	})
}
