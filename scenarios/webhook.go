package scenarios

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"path"
	"slices"
	"strings"
	"time"

	. "github.com/onsi/gomega"
	admissionv1 "k8s.io/api/admission/v1"
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/oidclab/oidclab/fixtures"
	"github.com/oidclab/oidclab/lab"
	"github.com/oidclab/oidclab/lab/exchange"
	"github.com/oidclab/oidclab/lab/webhook"
)

// closedURL is where nobody listens.
const closedURL = "https://127.0.0.1:1/"

// vendor is a profile of the pod identity webhook, as its documents say.
type vendor struct {
	name       string
	defaults   injectedToken
	expiration string // annotation of the service account
	audience   string // likewise; empty if there is none
	volume     string // empty if it depends on the pod's name
	exchange   func(ctx context.Context, s *Session, env map[string]string, token string) error
}

// injectedToken is the token that a webhook has a kubelet put into a pod.
type injectedToken struct {
	Audience string
	Seconds  int64  // of its life
	File     string // in the container
}

var vendors = []vendor{
	{
		name: "aws", expiration: webhook.AWSExpiration, audience: webhook.AWSAudience, volume: "aws-iam-token", exchange: exchangeAWSByEnv,
		defaults: injectedToken{"sts.amazonaws.com", 86400, "/var/run/secrets/eks.amazonaws.com/serviceaccount/token"},
	},
	{
		name: "azure", expiration: webhook.AzureExpiration, exchange: exchangeAzureByEnv,
		defaults: injectedToken{"api://AzureADTokenExchange", 3600, "/var/run/secrets/azure/wi/token/azure-identity-token"},
	},
	{
		name: "stackit", expiration: webhook.STACKITExpiration, audience: webhook.STACKITAudience, volume: "stackit-workload-identity", exchange: exchangeSTACKITByEnv,
		defaults: injectedToken{"sts.accounts.stackit.cloud", 600, "/var/run/secrets/stackit.cloud/serviceaccount/token"},
	},
}

// webhooks are what becomes of new pods.
func webhooks() []Scenario {
	var list []Scenario
	add := func(name string, run func(ctx context.Context, s *Session), labels ...string) {
		list = append(list, Scenario{Name: "webhook: " + name, Labels: append([]string{"webhook"}, labels...), Run: run})
	}
	for _, v := range vendors {
		add("a pod gets token and environment, and "+v.name+" takes them", func(ctx context.Context, s *Session) { injectedIdentity(ctx, s, v) }, v.name)
		add("annotations change the token of "+v.name, func(ctx context.Context, s *Session) { annotatedToken(ctx, s, v) }, v.name)
	}
	add("all vendors for one pod", allVendors, "aws", "azure", "stackit")
	add("an expiration below 600 s is raised by aws, and refused by azure and, for stackit, by the API server", expirationBelow600, "aws", "azure", "stackit")
	add("a volume of the same name is kept by aws, replaced by azure and refused by stackit", conflictingVolume, "aws", "azure", "stackit")
	add("the skip label of a pod skips it, whatever its value", skippedPod, "aws", "azure", "stackit")
	add("the skip label of a namespace skips its pods, whatever its value", skippedNamespace, "aws", "stackit")
	add("a service account that comes, or is annotated, after the pod", lateServiceAccount, "aws", "azure", "stackit")
	add("down, it stops pods with failurePolicy Fail, and they go without identity with Ignore", webhookDown, "aws", "stackit")
	return list
}

func (s *Session) webhookProfile(name string) lab.WebhookProfile {
	i := slices.IndexFunc(s.Info.Webhook.Profiles, func(p lab.WebhookProfile) bool { return p.Name == name })
	s.Expect(i).NotTo(Equal(-1), "the lab's webhook has no profile %s", name)
	return s.Info.Webhook.Profiles[i]
}

// annotations are those that give a service account the identity which the
// vendor trusts, and more.
func (s *Session) annotations(v vendor, more map[string]string) map[string]string {
	annotations := maps.Clone(s.webhookProfile(v.name).Annotations[s.Cluster().ID])
	maps.Copy(annotations, more)
	return annotations
}

// newNamespace makes a namespace, until the scenario ends.
func (s *Session) newNamespace(ctx context.Context, labels map[string]string) string {
	client := s.Kubernetes(s.Cluster()).Kubernetes().CoreV1().Namespaces()
	made, err := client.Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: s.Name + "-", Labels: labels}}, metav1.CreateOptions{})
	s.Must(err)
	s.Cleanup(func(ctx context.Context) { _ = client.Delete(ctx, made.Name, metav1.DeleteOptions{}) })
	return made.Name
}

// newServiceAccount makes a service account.
func (s *Session) newServiceAccount(ctx context.Context, namespace, name string, annotations map[string]string) {
	_, err := s.Kubernetes(s.Cluster()).Kubernetes().CoreV1().ServiceAccounts(namespace).Create(ctx, &corev1.ServiceAccount{
		ObjectMeta: metav1.ObjectMeta{Name: name, Annotations: annotations},
	}, metav1.CreateOptions{})
	s.Must(err)
}

// annotate gives a service account these annotations, and no others.
func (s *Session) annotate(ctx context.Context, namespace, name string, annotations map[string]string) {
	client := s.Kubernetes(s.Cluster()).Kubernetes().CoreV1().ServiceAccounts(namespace)
	account, err := client.Get(ctx, name, metav1.GetOptions{})
	s.Must(err)
	account.Annotations = annotations
	_, err = client.Update(ctx, account, metav1.UpdateOptions{})
	s.Must(err)
}

// create makes a pod that nothing runs, until the scenario ends, and returns it
// as it was admitted.
func (s *Session) create(ctx context.Context, namespace, account string, changes ...func(*corev1.Pod)) (*corev1.Pod, error) {
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{GenerateName: s.Name + "-"},
		Spec: corev1.PodSpec{
			ServiceAccountName: account,
			InitContainers:     []corev1.Container{{Name: "init", Image: "none.invalid/workload"}},
			Containers:         []corev1.Container{{Name: "main", Image: "none.invalid/workload"}, {Name: "side", Image: "none.invalid/workload"}},
			SchedulingGates:    []corev1.PodSchedulingGate{{Name: "oidclab.dev/api-only"}},
		},
	}
	for _, change := range changes {
		change(pod)
	}
	api := s.Kubernetes(s.Cluster())
	admitted, err := api.Kubernetes().CoreV1().Pods(namespace).Create(ctx, pod, metav1.CreateOptions{})
	if err == nil {
		s.Cleanup(func(ctx context.Context) { _ = api.DeletePod(ctx, namespace, admitted.Name) })
	}
	return admitted, err
}

// created is create, and the pod must be admitted.
func (s *Session) created(ctx context.Context, namespace, account string, changes ...func(*corev1.Pod)) *corev1.Pod {
	pod, err := s.create(ctx, namespace, account, changes...)
	s.Must(err)
	return pod
}

// enabled makes a pod one that the vendor's webhook is asked about.
func (s *Session) enabled(v vendor) func(*corev1.Pod) {
	return labelled(s.webhookProfile(v.name).PodLabels)
}

func labelled(labels map[string]string) func(*corev1.Pod) {
	return func(pod *corev1.Pod) {
		if pod.Labels == nil {
			pod.Labels = map[string]string{}
		}
		maps.Copy(pod.Labels, labels)
	}
}

// tokens are the injected tokens of a container: those for an audience.
func injectedTokens(pod *corev1.Pod, c corev1.Container) []injectedToken {
	var tokens []injectedToken
	for _, volume := range pod.Spec.Volumes {
		if volume.Projected == nil {
			continue
		}
		for _, mount := range c.VolumeMounts {
			token := volume.Projected.Sources[0].ServiceAccountToken
			if mount.Name == volume.Name && token != nil && token.Audience != "" {
				tokens = append(tokens, injectedToken{token.Audience, *token.ExpirationSeconds, path.Join(mount.MountPath, token.Path)})
			}
		}
	}
	return tokens
}

// injected demands that every container of the pod has exactly these tokens.
func (s *Session) injected(pod *corev1.Pod, why string, want ...injectedToken) {
	for _, c := range slices.Concat(pod.Spec.InitContainers, pod.Spec.Containers) {
		s.expect.ExpectWithOffset(1, injectedTokens(pod, c)).To(ConsistOf(want), "%s: container %s", why, c.Name)
		if len(want) == 0 {
			s.expect.ExpectWithOffset(1, c.Env).To(BeEmpty(), "%s: container %s", why, c.Name)
		}
	}
}

func environment(c corev1.Container) map[string]string {
	env := map[string]string{}
	for _, v := range c.Env {
		env[v.Name] = v.Value
	}
	return env
}

// injectedIdentity goes all the way, with what is in the pod and nothing else:
// the token that a kubelet would request for it, and its environment.
func injectedIdentity(ctx context.Context, s *Session, v vendor) {
	before := s.created(ctx, fixtures.Namespace, fixtures.ServiceAccount)
	s.injected(before, "control: neither pod nor service account ask for it")

	s.annotate(ctx, fixtures.Namespace, fixtures.ServiceAccount, s.annotations(v, nil))
	s.Cleanup(func(ctx context.Context) { s.annotate(ctx, fixtures.Namespace, fixtures.ServiceAccount, nil) })
	pod := s.created(ctx, fixtures.Namespace, fixtures.ServiceAccount, s.enabled(v))
	s.injected(pod, "the defaults", v.defaults)
	token := s.Mint(ctx, lab.MintRequest{
		Audiences: []string{v.defaults.Audience}, Expiration: time.Duration(v.defaults.Seconds) * time.Second, Pod: pod.Name,
	})
	s.Must(v.exchange(ctx, s, environment(pod.Spec.Containers[0]), token))

	// What is the lab's, and not the vendor's, says so.
	s.Expect(environment(pod.Spec.Containers[0])).To(HaveKeyWithValue("SSL_CERT_FILE", s.Info.Webhook.CAFile))
	s.Expect(pod.Annotations[webhook.ExtraAnnotation+"-"+v.name]).To(ContainSubstring("SSL_CERT_FILE"))
}

func exchangeAWSByEnv(ctx context.Context, s *Session, env map[string]string, token string) error {
	s.Expect(env).To(HaveKeyWithValue("AWS_WEB_IDENTITY_TOKEN_FILE", "/var/run/secrets/eks.amazonaws.com/serviceaccount/token"))
	s.Expect(env).To(HaveKeyWithValue("AWS_DEFAULT_REGION", env["AWS_REGION"]))
	target := exchange.AWSTarget{
		Endpoint: env["AWS_ENDPOINT_URL_STS"], Region: env["AWS_REGION"], RoleARN: env["AWS_ROLE_ARN"], SessionName: "scenario", Client: s.Web,
	}
	result, err := exchange.AWS(ctx, target, token)
	if err != nil {
		return err
	}
	_, err = exchange.WhoAmI(ctx, target, result.Credentials)
	return err
}

func exchangeAzureByEnv(ctx context.Context, s *Session, env map[string]string, token string) error {
	s.Expect(env).To(HaveKeyWithValue("AZURE_FEDERATED_TOKEN_FILE", "/var/run/secrets/azure/wi/token/azure-identity-token"))
	authority := strings.TrimSuffix(env["AZURE_AUTHORITY_HOST"], "/")
	result, err := exchange.Azure(ctx, exchange.AzureTarget{
		Authority: authority, Tenant: env["AZURE_TENANT_ID"], ClientID: env["AZURE_CLIENT_ID"], Scope: fixtures.AzureScope, Client: s.Web,
	}, token)
	if err != nil {
		return err
	}
	_, err = exchange.ReadBlob(ctx, s.Web, authority, result.AccessToken, s.Info.Azure.Container, s.Info.Azure.Blob)
	return err
}

func exchangeSTACKITByEnv(ctx context.Context, s *Session, env map[string]string, token string) error {
	s.Expect(env).NotTo(HaveKey("STACKIT_FEDERATED_TOKEN_FILE"), "the SDK's default will do")
	result, err := exchange.STACKIT(ctx, exchange.STACKITTarget{TokenURL: env["STACKIT_IDP_TOKEN_ENDPOINT"], Email: env["STACKIT_SERVICE_ACCOUNT_EMAIL"], Client: s.Web}, token)
	if err != nil {
		return err
	}
	_, err = exchange.ReadProject(ctx, s.Web, s.Info.STACKIT.URL, result.AccessToken, s.Info.STACKIT.Project)
	return err
}

func annotatedToken(ctx context.Context, s *Session, v vendor) {
	namespace := s.newNamespace(ctx, nil)
	s.newServiceAccount(ctx, namespace, "default-token", s.annotations(v, nil))
	s.injected(s.created(ctx, namespace, "default-token", s.enabled(v)), "control: no annotation", v.defaults)

	want := v.defaults
	want.Seconds = 7200
	annotations := map[string]string{v.expiration: "7200"}
	if v.audience != "" {
		want.Audience = "other"
		annotations[v.audience] = "other"
	}
	s.newServiceAccount(ctx, namespace, "other-token", s.annotations(v, annotations))
	s.injected(s.created(ctx, namespace, "other-token", s.enabled(v)), "annotated", want)
}

func allVendors(ctx context.Context, s *Session) {
	namespace := s.newNamespace(ctx, nil)
	annotations := map[string]string{}
	var enable []func(*corev1.Pod)
	var want []injectedToken
	for _, v := range vendors {
		maps.Copy(annotations, s.annotations(v, nil))
		enable = append(enable, s.enabled(v))
		want = append(want, v.defaults)
	}
	s.newServiceAccount(ctx, namespace, "all", annotations)
	pod := s.created(ctx, namespace, "all", enable...)
	s.injected(pod, "all vendors", want...)
	env := environment(pod.Spec.Containers[0])
	for _, name := range []string{"AWS_ROLE_ARN", "AZURE_CLIENT_ID", "STACKIT_SERVICE_ACCOUNT_EMAIL"} {
		s.Expect(env).To(HaveKey(name))
	}
	var cas int
	for _, volume := range pod.Spec.Volumes {
		if volume.ConfigMap != nil && volume.ConfigMap.Name == fixtures.CAConfigMap {
			cas++
		}
	}
	s.Expect(cas).To(Equal(1), "the lab's CA is mounted once")
	s.Eventually(ctx, func(ctx context.Context) error {
		_, err := s.Kubernetes(s.Cluster()).Kubernetes().CoreV1().ConfigMaps(namespace).Get(ctx, fixtures.CAConfigMap, metav1.GetOptions{})
		return err
	}).Should(Succeed(), "the lab's CA is there to be mounted")
}

func expirationBelow600(ctx context.Context, s *Session) {
	namespace := s.newNamespace(ctx, nil)
	for _, v := range vendors {
		s.newServiceAccount(ctx, namespace, v.name, s.annotations(v, map[string]string{v.expiration: "300"}))
		s.newServiceAccount(ctx, namespace, v.name+"-control", s.annotations(v, nil))
		s.injected(s.created(ctx, namespace, v.name+"-control", s.enabled(v)), "control: the default of "+v.name, v.defaults)
		pod, err := s.create(ctx, namespace, v.name, s.enabled(v))
		switch v.name {
		case "aws":
			s.Must(err)
			raised := v.defaults
			raised.Seconds = 600
			s.injected(pod, "aws raises it", raised)
		case "azure":
			s.Expect(err).To(MatchError(And(
				ContainSubstring(`admission webhook "mutation.azure-workload-identity.io" denied the request`),
				ContainSubstring("token expiration 300 not valid. Expected value to be between 3600 and 86400"))))
		case "stackit": // its webhook lets it pass
			s.Expect(apierrors.IsInvalid(err)).To(BeTrue(), "got: %v", err)
			s.Expect(err).To(MatchError(ContainSubstring("may not specify a duration less than 10 minutes")))
		}
	}
}

func conflictingVolume(ctx context.Context, s *Session) {
	namespace := s.newNamespace(ctx, nil)
	for _, v := range vendors {
		s.newServiceAccount(ctx, namespace, v.name, s.annotations(v, nil))
		control := s.created(ctx, namespace, v.name, s.enabled(v))
		s.injected(control, "control: no other volume", v.defaults)
		// Azure's volume has a name that depends on the pod's.
		named := func(pod *corev1.Pod) { pod.Name, pod.GenerateName = control.Name+"-again", control.GenerateName }
		volume := v.volume
		if volume == "" {
			first := s.created(ctx, namespace, v.name, s.enabled(v), named)
			volume = first.Spec.Volumes[len(first.Spec.Volumes)-2].Name // the last is the lab's
			s.Must(s.Kubernetes(s.Cluster()).DeletePod(ctx, namespace, first.Name))
		}
		pod, err := s.create(ctx, namespace, v.name, s.enabled(v), named, func(pod *corev1.Pod) {
			pod.Spec.Volumes = []corev1.Volume{{Name: volume, VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}}}
		})
		switch v.name {
		case "aws":
			s.Must(err)
			s.Expect(pod.Spec.Volumes[0].EmptyDir).NotTo(BeNil(), "it is kept, so that there is no token")
			s.Expect(environment(pod.Spec.Containers[0])).To(HaveKey("AWS_ROLE_ARN"))
		case "azure":
			s.Must(err)
			s.injected(pod, "it is replaced", v.defaults)
		case "stackit":
			s.Expect(apierrors.IsForbidden(err)).To(BeTrue(), "got: %v", err)
			s.Expect(err).To(MatchError(ContainSubstring(`admission webhook "mpod.stackit.cloud" denied the request: volume with name "stackit-workload-identity" already exists in pod spec`)))
		}
	}
}

func skippedPod(ctx context.Context, s *Session) {
	namespace := s.newNamespace(ctx, nil)
	labels := map[string]string{"aws": webhook.AWSSkip, "stackit": webhook.STACKITSkip, "azure": webhook.AzureUse}
	for _, v := range vendors {
		s.newServiceAccount(ctx, namespace, v.name, s.annotations(v, nil))
		s.injected(s.created(ctx, namespace, v.name, s.enabled(v)), "control: not skipped by "+v.name, v.defaults)
		for _, value := range []string{"true", "false", ""} {
			if v.name == "azure" && value == "true" { // there the label asks for it
				continue
			}
			pod := s.created(ctx, namespace, v.name, labelled(map[string]string{labels[v.name]: value}))
			s.injected(pod, fmt.Sprintf("%s=%q", labels[v.name], value))
		}
	}
}

func skippedNamespace(ctx context.Context, s *Session) {
	control := s.newNamespace(ctx, nil)
	skipped := map[string]string{}
	for _, value := range []string{"true", "false"} {
		skipped[value] = s.newNamespace(ctx, map[string]string{webhook.STACKITSkip: value, webhook.AWSSkip: value})
	}
	for _, v := range vendors {
		for _, namespace := range []string{control, skipped["true"], skipped["false"]} {
			s.newServiceAccount(ctx, namespace, v.name, s.annotations(v, nil))
		}
		s.injected(s.created(ctx, control, v.name, s.enabled(v)), "control: no label", v.defaults)
		for value, namespace := range skipped {
			pod := s.created(ctx, namespace, v.name, s.enabled(v))
			if v.name == "stackit" {
				s.injected(pod, fmt.Sprintf("skipped by %q", value))
			} else {
				s.injected(pod, v.name+" knows no label of namespaces", v.defaults)
			}
		}
	}
}

func lateServiceAccount(ctx context.Context, s *Session) {
	namespace := s.newNamespace(ctx, nil)
	for _, v := range vendors {
		_, err := s.create(ctx, namespace, v.name, s.enabled(v))
		s.Expect(apierrors.IsForbidden(err)).To(BeTrue(), "the API server itself wants the service account first: %v", err)
		s.Expect(err).To(MatchError(ContainSubstring("error looking up service account")))
		// Its webhook would not have been asked. If it is, it says what the vendor's does.
		response := s.ask(ctx, v, namespace)
		switch v.name {
		case "aws":
			s.Expect(response.Allowed).To(BeTrue())
			s.Expect(response.Patch).To(BeEmpty(), "aws admits the pod without identity")
		case "azure":
			s.Expect(response.Allowed).To(BeFalse())
			s.Expect(response.Result.Code).To(Equal(int32(http.StatusBadRequest)))
		case "stackit":
			s.Expect(response.Allowed).To(BeFalse())
			s.Expect(response.Result.Code).To(Equal(int32(http.StatusNotFound)))
		}

		s.newServiceAccount(ctx, namespace, v.name, nil)
		early := s.created(ctx, namespace, v.name)
		s.annotate(ctx, namespace, v.name, s.annotations(v, nil))
		now, err := s.Kubernetes(s.Cluster()).Kubernetes().CoreV1().Pods(namespace).Get(ctx, early.Name, metav1.GetOptions{})
		s.Must(err)
		s.injected(now, "a pod stays as it was admitted")
		s.injected(s.created(ctx, namespace, v.name, s.enabled(v)), "control: a new pod", v.defaults)
	}
}

// ask asks a vendor's webhook, as an API server would, about a pod of the
// service account with the vendor's name.
func (s *Session) ask(ctx context.Context, v vendor, namespace string) *admissionv1.AdmissionResponse {
	pod, err := json.Marshal(corev1.Pod{Spec: corev1.PodSpec{ServiceAccountName: v.name, Containers: []corev1.Container{{Name: "main"}}}})
	s.Must(err)
	version := map[string]string{"aws": "v1beta1", "azure": "v1", "stackit": "v1"}[v.name]
	body, err := json.Marshal(admissionv1.AdmissionReview{
		TypeMeta: metav1.TypeMeta{APIVersion: admissionv1.GroupName + "/" + version, Kind: "AdmissionReview"},
		Request: &admissionv1.AdmissionRequest{
			UID: "scenario", Namespace: namespace, Operation: admissionv1.Create,
			Resource: metav1.GroupVersionResource{Version: "v1", Resource: "pods"}, Object: runtime.RawExtension{Raw: pod},
		},
	})
	s.Must(err)
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, s.webhookProfile(v.name).URLs[s.Cluster().ID], bytes.NewReader(body))
	s.Must(err)
	request.Header.Set("Content-Type", "application/json")
	response, err := s.Web.Do(request)
	s.Must(err)
	defer func() { _ = response.Body.Close() }()
	var review admissionv1.AdmissionReview
	s.Must(json.NewDecoder(response.Body).Decode(&review))
	s.Expect(review.Response).NotTo(BeNil())
	return review.Response
}

func webhookDown(ctx context.Context, s *Session) {
	namespace := s.newNamespace(ctx, nil)
	for _, v := range vendors {
		if v.name == "azure" { // as stackit
			continue
		}
		s.newServiceAccount(ctx, namespace, v.name, s.annotations(v, nil))
		s.injected(s.created(ctx, namespace, v.name), "control: "+v.name+" is up", v.defaults)
		restore := s.changeWebhook(ctx, v, func(w *admissionregistrationv1.MutatingWebhook) {
			url := closedURL
			fail := admissionregistrationv1.Fail
			w.ClientConfig.URL, w.FailurePolicy = &url, &fail
		})
		s.Eventually(ctx, func(ctx context.Context) error {
			_, err := s.create(ctx, namespace, v.name)
			if err == nil {
				return errors.New("the pod was admitted")
			}
			if !apierrors.IsInternalError(err) || !strings.Contains(err.Error(), "failed calling webhook") {
				return fmt.Errorf("refused for another reason: %w", err)
			}
			return nil
		}).Should(Succeed(), "%s is down, with failurePolicy Fail", v.name)

		s.changeWebhook(ctx, v, func(w *admissionregistrationv1.MutatingWebhook) {
			ignore := admissionregistrationv1.Ignore
			w.FailurePolicy = &ignore
		})
		var pod *corev1.Pod
		s.Eventually(ctx, func(ctx context.Context) (err error) {
			pod, err = s.create(ctx, namespace, v.name)
			return err
		}).Should(Succeed(), "%s is down, with failurePolicy Ignore", v.name)
		s.injected(pod, "down, with failurePolicy Ignore: no identity, and nobody is told")

		restore(ctx)
		s.Eventually(ctx, func(ctx context.Context) error {
			pod, err := s.create(ctx, namespace, v.name)
			if err == nil && len(injectedTokens(pod, pod.Spec.Containers[0])) == 0 {
				err = errors.New("the pod was admitted without identity")
			}
			return err
		}).Should(Succeed(), "%s is up again", v.name)
	}
}

// changeWebhook changes how the API server asks a vendor's webhook, until the
// scenario ends or the returned function is called.
func (s *Session) changeWebhook(ctx context.Context, v vendor, change func(*admissionregistrationv1.MutatingWebhook)) (restore func(context.Context)) {
	client := s.Kubernetes(s.Cluster()).Kubernetes().AdmissionregistrationV1().MutatingWebhookConfigurations()
	name := s.webhookProfile(v.name).Configuration
	configuration, err := client.Get(ctx, name, metav1.GetOptions{})
	s.Must(err)
	before := configuration.DeepCopy().Webhooks
	change(&configuration.Webhooks[0])
	_, err = client.Update(ctx, configuration, metav1.UpdateOptions{})
	s.Must(err)
	restore = func(ctx context.Context) {
		configuration, err := client.Get(ctx, name, metav1.GetOptions{})
		if err == nil {
			configuration.Webhooks = before
			_, err = client.Update(ctx, configuration, metav1.UpdateOptions{})
		}
		s.Must(err)
	}
	s.Cleanup(restore)
	return restore
}
