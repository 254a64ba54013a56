package e2e

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/oidclab/oidclab/fixtures"
	"github.com/oidclab/oidclab/fixtures/manifests"
	"github.com/oidclab/oidclab/lab"
)

// upWithPods brings up a lab whose node runs pods as processes of this machine.
func (u *user) upWithPods(t *testing.T) (lab.Info, kubernetes.Interface) {
	t.Helper()
	info := u.up(t, "--name", labName, "--engine", "embedded", "--vault", "none")
	if why := info.Absent[lab.Pods]; why != "" {
		t.Skip("needs pods: ", why)
	}
	return info, kubernetesClient(t, info.Clusters[0])
}

// sleeper is a pod that sleeps, with a token, until it is told to end.
func sleeper(name string) *corev1.Pod {
	seconds, grace := int64(600), int64(30)
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: fixtures.Namespace},
		Spec: corev1.PodSpec{
			ServiceAccountName: fixtures.ServiceAccount, TerminationGracePeriodSeconds: &grace,
			Containers: []corev1.Container{{
				Name: "main", Image: "none.invalid/none",
				Command:      []string{"sh", "-c", "trap 'echo told; exit 0' TERM; setsid sleep 1000 & echo started; while :; do sleep 0.1; done"},
				VolumeMounts: []corev1.VolumeMount{{Name: "token", MountPath: "/var/run/secrets/tokens"}},
			}},
			Volumes: []corev1.Volume{{Name: "token", VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{
				Sources: []corev1.VolumeProjection{{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{Path: "token", Audience: "vault", ExpirationSeconds: &seconds}}},
			}}}},
		},
	}
}

// inPod returns the processes of a pod: those with its name as their host name.
func inPod(name string) []int {
	files, err := filepath.Glob("/proc/[0-9]*/environ")
	if err != nil {
		return nil
	}
	var pids []int
	for _, file := range files {
		environ, err := os.ReadFile(file)
		if err == nil && slices.Contains(strings.Split(string(environ), "\x00"), "HOSTNAME="+name) {
			pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(file)))
			pids = append(pids, pid)
		}
	}
	return pids
}

func gone(name string) func() error {
	return func() error {
		if left := inPod(name); len(left) > 0 {
			return fmt.Errorf("pod %s has processes %v", name, left)
		}
		return nil
	}
}

// createPod makes a pod and waits until it runs.
func createPod(t *testing.T, client kubernetes.Interface, pod *corev1.Pod) {
	t.Helper()
	if _, err := client.CoreV1().Pods(pod.Namespace).Create(t.Context(), pod, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	mustAwait(t, patience, "a pod", podRuns(t, client, pod.Name, 0))
}

// podRuns says why a pod does not run, having been restarted so many times, and
// has not said so.
func podRuns(t *testing.T, client kubernetes.Interface, name string, restarts int32) func() error {
	return func() error {
		pod, err := client.CoreV1().Pods(fixtures.Namespace).Get(t.Context(), name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		status := pod.Status.ContainerStatuses
		if pod.Status.Phase != corev1.PodRunning || status[0].RestartCount != restarts || status[0].State.Running == nil {
			return fmt.Errorf("pod %s: %s %+v", name, pod.Status.Phase, status)
		}
		if log, err := podLog(t, client, name); err != nil || !strings.Contains(log, "started") {
			return fmt.Errorf("its log: %q, %w", log, err)
		}
		return nil
	}
}

func podLog(t *testing.T, client kubernetes.Interface, name string) (string, error) {
	content, err := client.CoreV1().Pods(fixtures.Namespace).GetLogs(name, &corev1.PodLogOptions{}).DoRaw(t.Context())
	return string(content), err
}

// A pod is a process of this machine: it ends when it is told to, it comes back
// when its node does, and it never outlives the lab.
func TestPods(t *testing.T) {
	t.Parallel()
	u := newUser(t)
	_, client := u.upWithPods(t)
	pods := client.CoreV1().Pods(fixtures.Namespace)

	t.Run("told to end", func(t *testing.T) {
		const name = "told-to-end"
		createPod(t, client, sleeper(name))
		if len(inPod(name)) == 0 {
			t.Fatal("control: it has no processes")
		}
		follow, err := pods.GetLogs(name, &corev1.PodLogOptions{Follow: true}).Stream(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = follow.Close() }()
		if err := pods.Delete(t.Context(), name, metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		if log, err := io.ReadAll(follow); err != nil || !strings.HasSuffix(string(log), "told\n") {
			t.Errorf("the log that was followed: %q, %v", log, err)
		}
		mustAwait(t, cleanLimit, "the end", func() error {
			_, err := pods.Get(t.Context(), name, metav1.GetOptions{})
			if apierrors.IsNotFound(err) {
				return gone(name)()
			}
			return errors.Join(errors.New("the pod is in the API"), err)
		})
		left, err := filepath.Glob(filepath.Join(u.dir(labName), "clusters", "c1", "pods", "*"+name+"*"))
		if err != nil || len(left) > 0 {
			t.Errorf("left: %v, %v", left, err)
		}
	})
	t.Run("forced", func(t *testing.T) {
		const name = "forced"
		createPod(t, client, sleeper(name))
		now := int64(0)
		if err := pods.Delete(t.Context(), name, metav1.DeleteOptions{GracePeriodSeconds: &now}); err != nil {
			t.Fatal(err)
		}
		mustAwait(t, cleanLimit, "its processes", gone(name))
	})
	t.Run("node agent killed", func(t *testing.T) {
		const name = "node-killed"
		createPod(t, client, sleeper(name))
		before := inPod(name)
		agent, err := u.process("node-agent")
		if err != nil {
			t.Fatal(err)
		}
		if err := syscall.Kill(agent, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		mustAwait(t, patience, "the pod again", podRuns(t, client, name, 1))
		if now := inPod(name); slices.ContainsFunc(before, func(pid int) bool { return slices.Contains(now, pid) }) {
			t.Errorf("processes of its first life are there: %v, %v", before, now)
		}
		pod, err := pods.Get(t.Context(), name, metav1.GetOptions{})
		if err != nil || pod.Status.ContainerStatuses[0].LastTerminationState.Terminated.Reason != "ContainerStatusUnknown" {
			t.Errorf("its first life ended with %+v, %v", pod.Status.ContainerStatuses, err)
		}
	})
	t.Run("kubectl", func(t *testing.T) { testKubectl(t, u) })
	t.Run("supervisor killed", func(t *testing.T) {
		const name = "lab-killed"
		createPod(t, client, sleeper(name))
		status, _ := u.status(t, "--name", labName)
		if err := syscall.Kill(status.PID, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		mustAwait(t, 2*time.Second, "its processes", gone(name))
		u.run(t, "down", "--name", labName).want(t, 0)
	})
}

// testKubectl goes by the documents: manifests are for kubectl as they are.
func testKubectl(t *testing.T, u *user) {
	program, err := exec.LookPath("kubectl")
	if err != nil {
		t.Skip("needs kubectl on PATH")
	}
	var variables map[string]string
	decode(t, u.run(t, "env", "--name", labName, "--for", "kubernetes", "-o", "json").want(t, 0), &variables)
	kubectl := func(stdin string, args ...string) string {
		t.Helper()
		command := exec.Command(program, args...)
		command.Env = append(u.env(), "KUBECONFIG="+variables["KUBECONFIG"])
		command.Stdin = strings.NewReader(stdin)
		out, err := ask(command)
		if err != nil {
			t.Fatalf("kubectl %v: %v", args, err)
		}
		return out
	}
	kubectl(u.run(t, "manifests", "job", "--name", labName, "--for", "generic").want(t, 0).stdout, "apply", "-f", "-")
	kubectl("", "wait", "-n", "demo", "--for=condition=complete", "job/probe-generic", "--timeout=60s")
	if log := kubectl("", "logs", "-n", "demo", "job/probe-generic"); !strings.Contains(log, `"sub":"system:serviceaccount:demo:app"`) {
		t.Errorf("it printed %s", log)
	}
	kubectl(u.run(t, "manifests", "deployment", "--name", labName, "--for", "generic").want(t, 0).stdout, "apply", "-f", "-")
	kubectl("", "rollout", "status", "-n", "demo", "deployment/probe-generic", "--timeout=60s")
	kubectl("", "delete", "-n", "demo", "deployment/probe-generic", "job/probe-generic", "--timeout=60s")

	// The files themselves, once the ConfigMap is there.
	files, err := filepath.Glob(filepath.Join("..", "fixtures", "manifests", "*.yaml"))
	if err != nil || len(files) != 3 {
		t.Fatalf("manifests: %v, %v", files, err)
	}
	for _, file := range files {
		kubectl("", "apply", "-f", file)
	}
	kubectl("", "wait", "-n", "demo", "--for=condition=complete", "job/probe-generic", "--timeout=60s")
	if image := kubectl("", "get", "cronjob", "-n", "demo", "probe-generic", "-o", "jsonpath={.spec.jobTemplate.spec.template.spec.containers[0].image}"); image != manifests.Image {
		t.Errorf("the CronJob's image is %q", image)
	}
}
