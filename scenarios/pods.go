package scenarios

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	. "github.com/onsi/gomega"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/oidclab/oidclab/fixtures"
	"github.com/oidclab/oidclab/lab"
	"github.com/oidclab/oidclab/lab/probe"
	"github.com/oidclab/oidclab/lab/workload"
)

// How long a pod may take to end, services to be reached, and a kubelet to notice
// that a token is old: it looks once a minute or so.
const (
	podTimeout      = time.Minute
	servicesTimeout = 3 * time.Minute
	refreshTimeout  = 11 * time.Minute
)

// pods are workloads as their users run them: nothing but a manifest, an image
// and the vendor's SDK.
func pods() []Scenario {
	var list []Scenario
	add := func(name string, needs []Need, run func(ctx context.Context, s *Session), labels ...string) {
		list = append(list, Scenario{Name: "pods: " + name, Labels: append([]string{"pods"}, labels...), Needs: append([]Need{Pods}, needs...), Run: run})
	}
	for _, party := range workload.Parties() {
		var needs []Need
		switch party {
		case "vault":
			needs = append(needs, Vault)
		case "oci":
			needs = append(needs, OKE)
		}
		add("a Job exchanges its token at "+party+", and one of another service account does not", needs, func(ctx context.Context, s *Session) { jobExchanges(ctx, s, party) }, party)
	}
	for _, v := range vendors {
		add("the webhook alone lets a pod exchange its token at "+v.name, nil, func(ctx context.Context, s *Session) { injectedPod(ctx, s, v) }, v.name, "webhook")
	}
	add("the default service account is nobody's friend", nil, defaultAccount, "generic")
	add("a token file of mode 0400 is not for another user, until fsGroup says so", []Need{PodUsers}, unreadableToken, "generic")
	add("runAsNonRoot stops a pod that would run as root", nil, rootRefused)
	add("a projected token that lives for less than 600 s is refused", nil, projectedTooShort)
	add("the token of a pod that was deleted is refused by who asks the cluster", nil, runningPodDeleted, "revocation")
	list = append(list, Scenario{
		Name: "pods: automountServiceAccountToken: false keeps the cluster's own token out", Labels: []string{"pods"},
		Needs: []Need{Pods}, Timeout: servicesTimeout + 2*podTimeout, Run: noAutomount,
	}, Scenario{
		Name: "pods: the token file is renewed at 80 % of 600 s, and the pod goes on", Labels: []string{"pods", "generic", Slow},
		Needs: []Need{Pods}, Timeout: refreshTimeout + podTimeout, Run: tokenRefreshed,
	})
	return list
}

// job returns a party's Job manifest, of a name of its own.
func (s *Session) job(ctx context.Context, party, account string) *batchv1.Job {
	manifest := workload.Manifest{Kind: "job", Party: party, Namespace: fixtures.Namespace, ServiceAccount: account}
	objects, err := manifest.Objects(ctx, s.Info, s.Cluster())
	s.Must(err)
	var job *batchv1.Job
	for _, object := range objects {
		switch object := object.(type) {
		case *corev1.ConfigMap:
			s.Must(s.Kubernetes(s.Cluster()).EnsureConfigMap(ctx, object.Namespace, object.Name, object.Data))
		case *batchv1.Job:
			job = object
		}
	}
	job.Name = s.Name + "-" + account
	return job
}

// runJob runs a Job to its end and returns what its pod printed.
func (s *Session) runJob(ctx context.Context, job *batchv1.Job) (probe.Result, *corev1.Pod) {
	jobs := s.Kubernetes(s.Cluster()).Kubernetes().BatchV1().Jobs(job.Namespace)
	made, err := jobs.Create(ctx, job, metav1.CreateOptions{})
	s.Must(err)
	s.Cleanup(func(ctx context.Context) {
		background := metav1.DeletePropagationBackground
		_ = jobs.Delete(ctx, made.Name, metav1.DeleteOptions{PropagationPolicy: &background})
	})
	pod := s.awaitPod(ctx, job.Namespace, "job-name="+made.Name, ended)
	return s.probed(ctx, pod), pod
}

// runPod runs a pod to its end and returns what it printed.
func (s *Session) runPod(ctx context.Context, pod *corev1.Pod) probe.Result {
	s.startPod(ctx, pod)
	return s.probed(ctx, s.awaitPod(ctx, pod.Namespace, "scenario="+pod.Name, ended))
}

// startPod makes a pod, until the scenario ends.
func (s *Session) startPod(ctx context.Context, pod *corev1.Pod) {
	api := s.Kubernetes(s.Cluster())
	_, err := api.Kubernetes().CoreV1().Pods(pod.Namespace).Create(ctx, pod, metav1.CreateOptions{})
	s.Must(err)
	s.Cleanup(func(ctx context.Context) { _ = api.DeletePod(ctx, pod.Namespace, pod.Name) })
}

// podOf returns the pod of a Job by itself, as changed.
func (s *Session) podOf(job *batchv1.Job, suffix string, change func(*corev1.PodSpec)) *corev1.Pod {
	name := s.Name + "-" + suffix
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: job.Namespace, Labels: map[string]string{"scenario": name}}}
	job.Spec.Template.Spec.DeepCopyInto(&pod.Spec)
	if change != nil {
		change(&pod.Spec)
	}
	return pod
}

// ended says why a pod has not ended.
func ended(pod *corev1.Pod) error {
	if pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed {
		return nil
	}
	return fmt.Errorf("pod %s is %s: %s", pod.Name, pod.Status.Phase, waitingReasons(pod))
}

func running(pod *corev1.Pod) error {
	if pod.Status.Phase == corev1.PodRunning {
		return nil
	}
	return fmt.Errorf("pod %s is %s: %s", pod.Name, pod.Status.Phase, waitingReasons(pod))
}

func waitingReasons(pod *corev1.Pod) string {
	var reasons []string
	for _, status := range slices.Concat(pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses) {
		if waiting := status.State.Waiting; waiting != nil {
			reasons = append(reasons, waiting.Reason+" "+waiting.Message)
		}
	}
	return strings.Join(reasons, "; ")
}

// awaitPod waits for the only pod with a label to be as check wants it.
func (s *Session) awaitPod(ctx context.Context, namespace, label string, check func(*corev1.Pod) error) *corev1.Pod {
	var found *corev1.Pod
	s.Eventually(ctx, func(ctx context.Context) error {
		list, err := s.Kubernetes(s.Cluster()).Kubernetes().CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{LabelSelector: label})
		if err != nil {
			return err
		}
		if len(list.Items) != 1 {
			return fmt.Errorf("%d pods with %s", len(list.Items), label)
		}
		found = &list.Items[0]
		return check(found)
	}).WithTimeout(podTimeout).Should(Succeed())
	return found
}

// probed returns the last line that a pod printed.
func (s *Session) probed(ctx context.Context, pod *corev1.Pod) probe.Result {
	results := s.allProbed(ctx, pod)
	s.Expect(results).NotTo(BeEmpty(), "pod %s printed nothing: %+v", pod.Name, pod.Status.ContainerStatuses)
	return results[len(results)-1]
}

func (s *Session) allProbed(ctx context.Context, pod *corev1.Pod) []probe.Result {
	log, err := s.Kubernetes(s.Cluster()).PodLog(ctx, pod.Namespace, pod.Name, "")
	s.Must(err)
	var results []probe.Result
	for line := range bytes.Lines(log) {
		if line[0] != '{' { // an SDK said something on stderr
			continue
		}
		var result probe.Result
		s.Must(json.Unmarshal(line, &result), "pod %s printed: %s", pod.Name, line)
		results = append(results, result)
	}
	return results
}

// exchanged demands that a probe was accepted as the trusted workload.
func (s *Session) exchanged(result probe.Result, why string) {
	s.expect.ExpectWithOffset(1, result.Error).To(BeEmpty(), why)
	s.expect.ExpectWithOffset(1, result.Identity).NotTo(BeEmpty(), why)
	s.expect.ExpectWithOffset(1, result.Token).NotTo(BeNil(), why)
	s.expect.ExpectWithOffset(1, result.Token.Subject).To(Equal(fixtures.Subject), why)
	s.expect.ExpectWithOffset(1, result.Token.Issuer).To(Equal(s.Cluster().Issuer), why)
}

// resources are what parties show to the workload that they trust.
var resources = map[string]string{
	"aws": fixtures.ObjectContent, "gcp": fixtures.ObjectContent, "azure": fixtures.ObjectContent, "stackit": fixtures.STACKITProject,
	"oci": fixtures.ObjectContent, "generic": fixtures.Subject,
}

// strangers are how parties refuse a service account that nobody trusts.
var strangers = map[string]string{
	"aws": "AccessDenied", "gcp": "IAM_PERMISSION_DENIED", "azure": "AADSTS700213", "stackit": "does not satisfy the assertions",
	"oci": "BucketNotFound", "vault": "invalid subject (sub) claim", "generic": "invalid_target",
}

func jobExchanges(ctx context.Context, s *Session, party string) {
	result, pod := s.runJob(ctx, s.job(ctx, party, fixtures.ServiceAccount))
	s.exchanged(result, party)
	s.Expect(result.Content).To(ContainSubstring(resources[party]))
	s.Expect(result.Token.Pod).To(Equal(pod.Name), "the token is bound to the pod")
	s.Expect(pod.Status.Phase).To(Equal(corev1.PodSucceeded))

	result, pod = s.runJob(ctx, s.job(ctx, party, fixtures.OtherServiceAccount))
	s.Expect(result.Error).To(ContainSubstring(strangers[party]))
	s.Expect(pod.Status.ContainerStatuses[0].State.Terminated.ExitCode).To(Equal(int32(6)))
}

// injectedPod runs a pod that has nothing but what the webhook injects.
func injectedPod(ctx context.Context, s *Session, v vendor) {
	bare := func(suffix string) *corev1.Pod {
		pod := s.podOf(s.job(ctx, v.name, fixtures.ServiceAccount), suffix, func(spec *corev1.PodSpec) {
			spec.Volumes, spec.Containers[0].VolumeMounts, spec.Containers[0].EnvFrom = nil, nil, nil
			spec.Containers[0].Env = []corev1.EnvVar{{Name: "AWS_EC2_METADATA_DISABLED", Value: "true"}} // or the SDK asks the machine's cloud
		})
		s.enabled(v)(pod)
		return pod
	}
	if v.name != "azure" { // whose webhook goes by the pod's label alone
		s.Expect(s.runPod(ctx, bare("bare")).Error).NotTo(BeEmpty(), "control: nothing is injected without the annotation")
	}
	s.annotate(ctx, fixtures.Namespace, fixtures.ServiceAccount, s.annotations(v, nil))
	s.Cleanup(func(ctx context.Context) { s.annotate(ctx, fixtures.Namespace, fixtures.ServiceAccount, nil) })
	result := s.runPod(ctx, bare("injected"))
	s.exchanged(result, v.name)
	s.Expect(result.Token.Audience).To(Equal([]string{v.defaults.Audience}))
	s.Expect(result.Token.Expiry.Sub(result.Token.IssuedAt)).To(Equal(time.Duration(v.defaults.Seconds) * time.Second))
}

func defaultAccount(ctx context.Context, s *Session) {
	result, _ := s.runJob(ctx, s.job(ctx, "generic", fixtures.ServiceAccount))
	s.exchanged(result, "control: the trusted service account")
	result, _ = s.runJob(ctx, s.job(ctx, "generic", "default"))
	s.Expect(result.Token.Subject).To(Equal("system:serviceaccount:" + fixtures.Namespace + ":default"))
	s.Expect(result.Error).To(ContainSubstring(strangers["generic"]))
}

func noAutomount(ctx context.Context, s *Session) {
	asksCluster := func(automount bool) func(*corev1.PodSpec) {
		return func(spec *corev1.PodSpec) {
			spec.AutomountServiceAccountToken = &automount
			spec.Containers[0].Args = []string{"probe", "kubernetes"}
		}
	}
	s.awaitServices(ctx)
	job := s.job(ctx, "generic", fixtures.ServiceAccount)
	result := s.runPod(ctx, s.podOf(job, "mounted", asksCluster(true)))
	s.exchanged(result, "control: mounted")
	s.Expect(result.Identity).To(Equal(fixtures.Subject))
	result = s.runPod(ctx, s.podOf(job, "not-mounted", asksCluster(false)))
	s.Expect(result.Error).To(ContainSubstring("/var/run/secrets/kubernetes.io/serviceaccount/token: no such file or directory"))
	s.Expect(result.Token).To(BeNil())
}

// awaitServices waits until the cluster's DNS, if it has one, is reached and
// reaches the API server as a service: where the API server was restarted in the
// first seconds of a cluster, kube-proxy asks again at growing intervals.
func (s *Session) awaitServices(ctx context.Context) {
	s.Eventually(ctx, func(ctx context.Context) error {
		dns, err := s.Kubernetes(s.Cluster()).Kubernetes().AppsV1().Deployments(metav1.NamespaceSystem).Get(ctx, "coredns", metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			return nil
		}
		if err == nil && dns.Status.AvailableReplicas == 0 {
			err = fmt.Errorf("CoreDNS is not available\n%s", s.systemPods(ctx))
		}
		return err
	}).WithTimeout(servicesTimeout).WithPolling(time.Second).Should(Succeed())
}

// systemPods returns what the cluster's own pods are at, and say.
func (s *Session) systemPods(ctx context.Context) string {
	core := s.Kubernetes(s.Cluster()).Kubernetes().CoreV1().Pods(metav1.NamespaceSystem)
	list, err := core.List(ctx, ownPods)
	if err != nil {
		return err.Error()
	}
	var out strings.Builder
	for _, pod := range list.Items {
		fmt.Fprintf(&out, "%s is %s: %+v\n", pod.Name, pod.Status.Phase, pod.Status.ContainerStatuses)
		if logs, err := core.GetLogs(pod.Name, &corev1.PodLogOptions{TailLines: new(int64(3))}).DoRaw(ctx); err == nil {
			out.Write(logs)
		}
	}
	return out.String()
}

// ownPods selects the pods that a cluster runs for itself, but not those of
// kubelet's manifests, which have no tokens.
var ownPods = metav1.ListOptions{LabelSelector: "k8s-app"}

func unreadableToken(ctx context.Context, s *Session) {
	ownerOnly := func(spec *corev1.PodSpec) {
		mode := int32(0o400)
		for i := range spec.Volumes {
			if spec.Volumes[i].Name == "token" {
				spec.Volumes[i].Projected.DefaultMode = &mode
			}
		}
	}
	job := s.job(ctx, "generic", fixtures.ServiceAccount)
	s.exchanged(s.runPod(ctx, s.podOf(job, "group", ownerOnly)), "control: with fsGroup")
	result := s.runPod(ctx, s.podOf(job, "no-group", func(spec *corev1.PodSpec) {
		ownerOnly(spec)
		spec.SecurityContext.FSGroup = nil
	}))
	s.Expect(result.Error).To(ContainSubstring("permission denied"))
	s.exchanged(s.runPod(ctx, s.podOf(job, "user", func(spec *corev1.PodSpec) {
		ownerOnly(spec)
		user := int64(4711)
		spec.SecurityContext.FSGroup, spec.SecurityContext.RunAsUser = nil, &user
	})), "control: kubelet gives the file to the user of all containers")
}

func rootRefused(ctx context.Context, s *Session) {
	job := s.job(ctx, "generic", fixtures.ServiceAccount)
	s.exchanged(s.runPod(ctx, s.podOf(job, "user", nil)), "control: the image's user")
	root := int64(0)
	pod := s.podOf(job, "root", func(spec *corev1.PodSpec) { spec.SecurityContext.RunAsUser = &root })
	s.startPod(ctx, pod)
	refused := s.awaitPod(ctx, pod.Namespace, "scenario="+pod.Name, func(pod *corev1.Pod) error {
		if reasons := waitingReasons(pod); !strings.Contains(reasons, "CreateContainerConfigError") {
			return fmt.Errorf("it waits for %q", reasons)
		}
		return nil
	})
	s.Expect(waitingReasons(refused)).To(ContainSubstring("breaks non-root policy"))
}

func projectedTooShort(ctx context.Context, s *Session) {
	lives := func(seconds int64) func(*corev1.Pod) {
		return func(pod *corev1.Pod) {
			pod.Spec.Volumes = []corev1.Volume{{Name: "token", VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{
				Sources: []corev1.VolumeProjection{{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{Path: "token", ExpirationSeconds: &seconds}}},
			}}}}
		}
	}
	s.created(ctx, fixtures.Namespace, fixtures.ServiceAccount, lives(600))
	_, err := s.create(ctx, fixtures.Namespace, fixtures.ServiceAccount, lives(599))
	s.Expect(apierrors.IsInvalid(err)).To(BeTrue(), "got: %v", err)
	s.Expect(err).To(MatchError(ContainSubstring("may not specify a duration less than 10 minutes")))
}

// watching has a pod exchange its token every other second until it is stopped.
func watching(spec *corev1.PodSpec) {
	spec.Containers[0].Args = append(spec.Containers[0].Args, "--watch", "--interval=2s")
}

func runningPodDeleted(ctx context.Context, s *Session) {
	pod := s.podOf(s.job(ctx, "generic", fixtures.ServiceAccount), "running", watching)
	s.startPod(ctx, pod)
	s.awaitPod(ctx, pod.Namespace, "scenario="+pod.Name, running)
	token := s.Mint(ctx, lab.MintRequest{Audiences: []string{fixtures.GenericAudience}, Pod: pod.Name})
	api := s.Kubernetes(s.Cluster())
	review, err := api.TokenReview(ctx, token, fixtures.GenericAudience)
	s.Must(err)
	s.Expect(review.Authenticated).To(BeTrue(), "control: the pod runs: %s", review.Error)

	s.Must(api.Kubernetes().CoreV1().Pods(pod.Namespace).Delete(ctx, pod.Name, metav1.DeleteOptions{}))
	s.Eventually(ctx, func(ctx context.Context) error {
		_, err := api.Kubernetes().CoreV1().Pods(pod.Namespace).Get(ctx, pod.Name, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			return nil
		}
		return errors.Join(errors.New("the pod is still there"), err)
	}).WithTimeout(podTimeout).Should(Succeed(), "it ends when it is told to")
	s.Eventually(ctx, func(ctx context.Context) error {
		review, err := api.TokenReview(ctx, token, fixtures.GenericAudience)
		if err == nil && review.Authenticated {
			err = errors.New("TokenReview still takes the token")
		}
		return err
	}).Should(Succeed())
	s.Accepted(ctx, genericParty, token, "it verifies offline")
}

// tokenRefreshed waits in real time: nobody can tell a kubelet another.
func tokenRefreshed(ctx context.Context, s *Session) {
	const life = 600 * time.Second
	pod := s.podOf(s.job(ctx, "generic", fixtures.ServiceAccount), "watching", func(spec *corev1.PodSpec) {
		watching(spec)
		for _, volume := range spec.Volumes {
			if volume.Name == "token" {
				*volume.Projected.Sources[0].ServiceAccountToken.ExpirationSeconds = int64(life / time.Second)
			}
		}
	})
	s.startPod(ctx, pod)
	s.awaitPod(ctx, pod.Namespace, "scenario="+pod.Name, running)
	var results []probe.Result
	s.Eventually(ctx, func(ctx context.Context) error {
		results = s.allProbed(ctx, pod)
		if len(results) > 0 && !results[len(results)-1].Token.IssuedAt.Equal(results[0].Token.IssuedAt) {
			return nil
		}
		return fmt.Errorf("%d probes with the first token", len(results))
	}).WithTimeout(refreshTimeout).WithPolling(5 * time.Second).Should(Succeed())
	for _, result := range results {
		s.exchanged(result, "all the time")
	}
	first, second := results[0].Token, results[len(results)-1].Token
	s.Expect(first.Expiry.Sub(first.IssuedAt)).To(Equal(life))
	age := second.IssuedAt.Sub(first.IssuedAt)
	s.Expect(age).To(BeNumerically(">=", life*8/10-15*time.Second), "not before 80 %% of its life, less the jitter")
	s.Expect(age).To(BeNumerically("<", life), "before it expires")
}

// podsRunAsRoot says whether the users of pods are what their pods ask for.
func podsRunAsRoot(info lab.Info) bool { return info.Engine != lab.Embedded || os.Geteuid() == 0 }
