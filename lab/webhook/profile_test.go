package webhook

import (
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// enabled are annotations with which each webhook injects.
var enabled = map[string]map[string]string{
	"stackit": {STACKITEmail: "app@sa.stackit.cloud"},
	"aws":     {AWSRoleARN: "arn:aws:iam::111122223333:role/app"},
	"azure":   {AzureClientID: "client"},
}

// injected is what a pod got of a webhook.
type injected struct {
	Audience   string
	Expiration int64
	File       string              // in the container main
	Env        map[string][]string // NAME=value by container
}

func injectedBy(profile Profile, pod *corev1.Pod) injected {
	got := injected{Env: map[string][]string{}}
	var token *corev1.ServiceAccountTokenProjection
	var name string
	for _, v := range pod.Spec.Volumes {
		if v.Projected != nil && len(v.Projected.Sources) == 1 && v.Projected.Sources[0].ServiceAccountToken != nil {
			name, token = v.Name, v.Projected.Sources[0].ServiceAccountToken
			got.Audience, got.Expiration = token.Audience, *token.ExpirationSeconds
		}
	}
	for _, c := range slices.Concat(pod.Spec.Containers, pod.Spec.InitContainers) {
		for _, v := range c.Env {
			got.Env[c.Name] = append(got.Env[c.Name], v.Name+"="+v.Value)
		}
		for _, m := range c.VolumeMounts {
			if token != nil && m.Name == name && m.ReadOnly && c.Name == "main" {
				got.File = m.MountPath + "/" + token.Path
			}
		}
	}
	return got
}

// everywhere is an environment that all containers have.
func everywhere(env ...string) map[string][]string {
	return map[string][]string{"main": env, "side": env, "init": env}
}

const (
	stackitFile = "/var/run/secrets/stackit.cloud/serviceaccount/token"
	stackitEnv  = "STACKIT_SERVICE_ACCOUNT_EMAIL=app@sa.stackit.cloud"
	awsFile     = "/var/run/secrets/eks.amazonaws.com/serviceaccount/token"
	azureFile   = "/var/run/secrets/azure/wi/token/azure-identity-token"
)

var (
	awsEnv = []string{
		"AWS_DEFAULT_REGION=us-east-1", "AWS_REGION=us-east-1",
		"AWS_ROLE_ARN=arn:aws:iam::111122223333:role/app", "AWS_WEB_IDENTITY_TOKEN_FILE=" + awsFile,
	}
	azureEnv = []string{
		"AZURE_CLIENT_ID=client", "AZURE_TENANT_ID=tenant", "AZURE_FEDERATED_TOKEN_FILE=" + azureFile, "AZURE_AUTHORITY_HOST=https://login.microsoftonline.com/",
	}
	stackitDefault = injected{"sts.accounts.stackit.cloud", 600, stackitFile, everywhere(stackitEnv)}
	awsDefault     = injected{"sts.amazonaws.com", 86400, awsFile, everywhere(awsEnv...)}
	azureDefault   = injected{"api://AzureADTokenExchange", 3600, azureFile, everywhere(azureEnv...)}
	nothing        = injected{Env: map[string][]string{}}
)

// with returns a changed copy.
func (i injected) with(change func(*injected)) injected {
	i.Env = maps.Clone(i.Env)
	change(&i)
	return i
}

// TestAnnotations is every annotation and label, by profile.
func TestAnnotations(t *testing.T) {
	expiring := func(base injected, seconds int64) injected {
		return base.with(func(i *injected) { i.Expiration = seconds })
	}
	for _, c := range []struct {
		name    string // the profile, and more
		account map[string]string
		pod     map[string]string // annotations
		labels  map[string]string
		want    injected
		refused string // in full
	}{
		{name: "stackit defaults", want: stackitDefault},
		{name: "stackit no e-mail", account: map[string]string{STACKITEmail: ""}, want: nothing},
		{name: "stackit bad e-mail", account: map[string]string{STACKITEmail: "app"}, refused: `invalid "workload-identity.stackit.cloud/service-account-email": mail: missing '@' or angle-addr`},
		{name: "stackit audience", account: map[string]string{STACKITAudience: "other"}, want: stackitDefault.with(func(i *injected) { i.Audience = "other" })},
		{name: "stackit empty audience", account: map[string]string{STACKITAudience: ""}, want: stackitDefault},
		{name: "stackit expiration", account: map[string]string{STACKITExpiration: "7200"}, want: expiring(stackitDefault, 7200)},
		{name: "stackit expiration below 600", account: map[string]string{STACKITExpiration: "300"}, want: expiring(stackitDefault, 300)},
		{name: "stackit bad expiration", account: map[string]string{STACKITExpiration: "10m"}, refused: `invalid "workload-identity.stackit.cloud/service-account-token-expiration-seconds": strconv.ParseInt: parsing "10m": invalid syntax`},
		{name: "stackit token file", account: map[string]string{STACKITFederatedTokenFile: "/run/id/jwt"}, want: stackitDefault.with(func(i *injected) {
			i.File, i.Env = "/run/id/jwt", everywhere(stackitEnv, "STACKIT_FEDERATED_TOKEN_FILE=/run/id/jwt")
		})},
		{name: "stackit endpoint", account: map[string]string{STACKITIDPTokenEndpoint: "https://idp.example/token"}, want: stackitDefault.with(func(i *injected) {
			i.Env = everywhere(stackitEnv, "STACKIT_IDP_TOKEN_ENDPOINT=https://idp.example/token")
		})},
		{name: "stackit bad endpoint", account: map[string]string{STACKITIDPTokenEndpoint: "idp"}, refused: `invalid "workload-identity.stackit.cloud/idp-token-endpoint": parse "idp": invalid URI for request`},
		{name: "stackit IdP token expiration", account: map[string]string{STACKITIDPTokenExpiration: "900"}, want: stackitDefault.with(func(i *injected) {
			i.Env = everywhere(stackitEnv, "STACKIT_IDP_TOKEN_EXPIRATION_SECONDS=900")
		})},
		{name: "stackit bad IdP token expiration", account: map[string]string{STACKITIDPTokenExpiration: "x"}, refused: `invalid "workload-identity.stackit.cloud/idp-token-expiration-seconds": strconv.ParseInt: parsing "x": invalid syntax`},
		{name: "stackit two mistakes", account: map[string]string{STACKITEmail: "app", STACKITExpiration: "x"}, refused: `invalid "workload-identity.stackit.cloud/service-account-email": mail: missing '@' or angle-addr` + "\n" +
			`invalid "workload-identity.stackit.cloud/service-account-token-expiration-seconds": strconv.ParseInt: parsing "x": invalid syntax`},
		{name: "stackit skipped by account", account: map[string]string{STACKITSkip: "true"}, want: nothing},
		{name: "stackit not skipped by account", account: map[string]string{STACKITSkip: "false"}, want: stackitDefault},
		{name: "stackit skipped by annotation", pod: map[string]string{STACKITSkip: "true"}, want: nothing},
		{name: "stackit not skipped by annotation", pod: map[string]string{STACKITSkip: "1"}, want: stackitDefault},
		{name: "stackit skipped by label", labels: map[string]string{STACKITSkip: "true"}, want: nothing},
		{name: "stackit label that only the API server heeds", labels: map[string]string{STACKITSkip: "false"}, want: stackitDefault},

		{name: "aws defaults", want: awsDefault},
		{name: "aws no role", account: map[string]string{AWSRoleARN: ""}, want: nothing},
		{name: "aws audience", account: map[string]string{AWSAudience: "other"}, want: awsDefault.with(func(i *injected) { i.Audience = "other" })},
		{name: "aws empty audience", account: map[string]string{AWSAudience: ""}, want: awsDefault.with(func(i *injected) { i.Audience = "" })},
		{name: "aws expiration", account: map[string]string{AWSExpiration: "7200"}, want: expiring(awsDefault, 7200)},
		{name: "aws expiration below 600", account: map[string]string{AWSExpiration: "300"}, want: expiring(awsDefault, 600)},
		{name: "aws bad expiration", account: map[string]string{AWSExpiration: "10m"}, want: awsDefault},
		{name: "aws expiration of the pod", account: map[string]string{AWSExpiration: "7200"}, pod: map[string]string{AWSExpiration: "900"}, want: expiring(awsDefault, 900)},
		{name: "aws expiration of the pod below 600", pod: map[string]string{AWSExpiration: "1"}, want: expiring(awsDefault, 600)},
		{name: "aws bad expiration of the pod", account: map[string]string{AWSExpiration: "7200"}, pod: map[string]string{AWSExpiration: "x"}, want: expiring(awsDefault, 7200)},
		{name: "aws regional endpoints", account: map[string]string{AWSSTSRegionalEndpoints: "true"}, want: awsDefault.with(func(i *injected) {
			i.Env = everywhere(append([]string{"AWS_STS_REGIONAL_ENDPOINTS=regional"}, awsEnv...)...)
		})},
		{name: "aws bad regional endpoints", account: map[string]string{AWSSTSRegionalEndpoints: "regional"}, want: awsDefault},
		{name: "aws skipped containers", pod: map[string]string{AWSSkipContainers: `side,"init"`}, want: awsDefault.with(func(i *injected) { delete(i.Env, "side"); delete(i.Env, "init") })},
		{name: "aws skipped containers with a space", pod: map[string]string{AWSSkipContainers: `main, side`}, want: awsDefault.with(func(i *injected) { delete(i.Env, "main"); i.File = "" })},
		{name: "aws bad skipped containers", pod: map[string]string{AWSSkipContainers: `side,"`}, want: awsDefault},
		{name: "aws label that only the API server heeds", labels: map[string]string{AWSSkip: "true"}, want: awsDefault},

		{name: "azure defaults", want: azureDefault},
		{name: "azure no client id", account: map[string]string{AzureClientID: ""}, want: azureDefault.with(func(i *injected) { i.Env = everywhere(azureEnv[1:]...) })},
		{name: "azure tenant", account: map[string]string{AzureTenantID: "other"}, want: azureDefault.with(func(i *injected) {
			i.Env = everywhere(azureEnv[0], "AZURE_TENANT_ID=other", azureEnv[2], azureEnv[3])
		})},
		{name: "azure empty tenant", account: map[string]string{AzureTenantID: ""}, want: azureDefault.with(func(i *injected) { i.Env = everywhere(azureEnv[0], azureEnv[2], azureEnv[3]) })},
		{name: "azure expiration", account: map[string]string{AzureExpiration: "86400"}, want: expiring(azureDefault, 86400)},
		{name: "azure expiration of the pod", account: map[string]string{AzureExpiration: "86400"}, pod: map[string]string{AzureExpiration: "7200"}, want: expiring(azureDefault, 7200)},
		{name: "azure empty expiration of the pod", account: map[string]string{AzureExpiration: "86400"}, pod: map[string]string{AzureExpiration: ""}, want: expiring(azureDefault, 86400)},
		{name: "azure expiration below 3600", account: map[string]string{AzureExpiration: "3599"}, refused: "token expiration 3599 not valid. Expected value to be between 3600 and 86400"},
		{name: "azure expiration above 86400", pod: map[string]string{AzureExpiration: "86401"}, refused: "token expiration 86401 not valid. Expected value to be between 3600 and 86400"},
		{name: "azure bad expiration", pod: map[string]string{AzureExpiration: "1h"}, refused: `strconv.ParseInt: parsing "1h": invalid syntax`},
		{name: "azure skipped containers", pod: map[string]string{AzureSkipContainers: "side; init;"}, want: azureDefault.with(func(i *injected) { delete(i.Env, "side"); delete(i.Env, "init") })},
		{name: "azure skipped containers with a comma", pod: map[string]string{AzureSkipContainers: "side,init"}, want: azureDefault},
		{name: "azure proxy sidecar", pod: map[string]string{AzureProxySidecar: "true"}, refused: "the lab does not inject Azure's proxy sidecar: remove the annotation azure.workload.identity/inject-proxy-sidecar"},
	} {
		t.Run(c.name, func(t *testing.T) {
			name, _, _ := strings.Cut(c.name, " ")
			profile := profiles()[name]
			annotations := maps.Clone(enabled[name])
			maps.Copy(annotations, c.account)
			response, got := review(t, Config{Profile: profile, Accounts: app(annotations)}, newPod(func(pod *corev1.Pod) {
				pod.Annotations, pod.Labels = c.pod, c.labels
			}))
			if c.refused != "" {
				if response.Allowed || response.Result.Message != c.refused {
					t.Errorf("allowed %t, result %+v, want %q", response.Allowed, response.Result, c.refused)
				}
				return
			}
			if !response.Allowed {
				t.Fatalf("refused: %s", response.Result.Message)
			}
			if diff := cmp.Diff(c.want, injectedBy(profile, got)); diff != "" {
				t.Errorf("injected (-want +got):\n%s", diff)
			}
		})
	}
}

// TestConflicts is what becomes of what a pod has already.
func TestConflicts(t *testing.T) {
	azureVolumeOfWeb := azureVolume(newPod())
	volume := func(name string) func(*corev1.Pod) {
		return func(pod *corev1.Pod) {
			pod.Spec.Volumes = []corev1.Volume{{Name: "first"}, {Name: name}}
		}
	}
	mount := func(name string) func(*corev1.Pod) {
		return func(pod *corev1.Pod) {
			pod.Spec.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "first", MountPath: "/first"}, {Name: name, MountPath: "/own"}}
		}
	}
	env := func(names ...string) func(*corev1.Pod) {
		return func(pod *corev1.Pod) {
			for _, name := range names {
				pod.Spec.Containers[0].Env = append(pod.Spec.Containers[0].Env, corev1.EnvVar{Name: name, Value: "own"})
			}
		}
	}
	inInit := func(pod *corev1.Pod) {
		pod.Spec.InitContainers[0].Env = []corev1.EnvVar{{Name: "STACKIT_SERVICE_ACCOUNT_EMAIL"}}
	}
	kept := func(i injected, env ...string) injected {
		return i.with(func(i *injected) { i.Env["main"] = env })
	}
	for _, c := range []struct {
		name    string
		change  func(*corev1.Pod)
		want    injected
		refused string
		mount   string // path of the profile's mount in main, if it is not as usual
	}{
		{name: "stackit volume", change: volume(stackitVolume), refused: `volume with name "stackit-workload-identity" already exists in pod spec; please remove it to allow the webhook to inject the projected service account token volume`},
		{name: "stackit mount", change: mount(stackitVolume), refused: `failed to mutate container "main": volumeMount with name "stackit-workload-identity" already exists`},
		{name: "stackit env", change: env("STACKIT_SERVICE_ACCOUNT_EMAIL"), refused: `failed to mutate container "main": env var with name "STACKIT_SERVICE_ACCOUNT_EMAIL" already exists`},
		{name: "stackit env of an init container", change: inInit, refused: `failed to mutate init container "init": env var with name "STACKIT_SERVICE_ACCOUNT_EMAIL" already exists`},
		{name: "stackit env that it does not inject", change: env("STACKIT_IDP_TOKEN_ENDPOINT"), want: kept(stackitDefault, "STACKIT_IDP_TOKEN_ENDPOINT=own", stackitEnv)},

		{name: "aws volume", change: volume(awsVolume), want: injected{Env: awsDefault.Env}},
		{name: "aws mount", change: mount(awsVolume), want: awsDefault.with(func(i *injected) { i.File = "" }), mount: "/own"},
		{name: "aws role", change: env("AWS_ROLE_ARN"), want: kept(awsDefault, "AWS_ROLE_ARN=own", awsEnv[0], awsEnv[1])},
		{name: "aws token file", change: env("AWS_WEB_IDENTITY_TOKEN_FILE"), want: kept(awsDefault, "AWS_WEB_IDENTITY_TOKEN_FILE=own", awsEnv[0], awsEnv[1])},
		{name: "aws region", change: env("AWS_REGION"), want: kept(awsDefault, "AWS_REGION=own", awsEnv[2], awsEnv[3])},
		{name: "aws all of it", change: env("AWS_ROLE_ARN", "AWS_REGION", "AWS_STS_REGIONAL_ENDPOINTS"), want: kept(awsDefault, "AWS_ROLE_ARN=own", "AWS_REGION=own", "AWS_STS_REGIONAL_ENDPOINTS=own").
			with(func(i *injected) { i.File = "" })},

		{name: "azure volume", change: volume(azureVolumeOfWeb), want: azureDefault},
		{name: "azure mount", change: mount(azureVolumeOfWeb), want: azureDefault},
		{name: "azure env", change: env("AZURE_CLIENT_ID"), want: kept(azureDefault, "AZURE_CLIENT_ID=own", azureEnv[1], azureEnv[2], azureEnv[3])},
	} {
		t.Run(c.name, func(t *testing.T) {
			name, _, _ := strings.Cut(c.name, " ")
			profile := profiles()[name]
			config := Config{Profile: profile, Accounts: app(enabled[name])}
			if response, _ := review(t, config, newPod()); !response.Allowed || len(response.Patch) == 0 {
				t.Fatalf("control: %+v", response)
			}
			response, got := review(t, config, newPod(c.change))
			if c.refused != "" {
				if response.Allowed || response.Result.Message != c.refused || response.Result.Code != 403 || response.Result.Reason != metav1.StatusReasonForbidden {
					t.Errorf("allowed %t, result %+v", response.Allowed, response.Result)
				}
				return
			}
			if diff := cmp.Diff(c.want, injectedBy(profile, got)); diff != "" {
				t.Errorf("injected (-want +got):\n%s", diff)
			}
			if c.mount != "" && got.Spec.Containers[0].VolumeMounts[1].MountPath != c.mount {
				t.Errorf("mounts %v", got.Spec.Containers[0].VolumeMounts)
			}
		})
	}
}

// A pod that was injected and meets the webhook again (reinvocation) does not
// change.
func TestReinvocation(t *testing.T) {
	config := Config{Profile: profiles()["azure"], Accounts: app(enabled["azure"])}
	_, once := review(t, config, newPod())
	response, _ := review(t, config, once)
	if !response.Allowed || len(response.Patch) > 0 {
		t.Errorf("got %+v", response)
	}
}

func TestAzureVolumeOfAPodWithoutName(t *testing.T) {
	config := Config{Profile: profiles()["azure"], Accounts: app(enabled["azure"])}
	names := map[string]bool{}
	for _, change := range []func(*corev1.Pod){
		func(*corev1.Pod) {},
		func(pod *corev1.Pod) { pod.Name = "other" },
		func(pod *corev1.Pod) { pod.Name, pod.GenerateName = "", "web-" },
	} {
		_, got := review(t, config, newPod(change))
		name := got.Spec.Volumes[0].Name
		if len(name) != 63 || !strings.HasPrefix(name, "azure-workload-identity-reserved-") || names[name] {
			t.Errorf("volume %q of %v", name, names)
		}
		names[name] = true
	}
}

func TestDefaultServiceAccount(t *testing.T) {
	accounts := accounts{"default": {ObjectMeta: metav1.ObjectMeta{Annotations: enabled["stackit"]}}}
	_, got := review(t, Config{Profile: STACKIT(), Accounts: accounts}, newPod(func(pod *corev1.Pod) { pod.Spec.ServiceAccountName = "" }))
	if diff := cmp.Diff(stackitDefault, injectedBy(STACKIT(), got)); diff != "" {
		t.Errorf("injected (-want +got):\n%s", diff)
	}
}

// TestExtra: what the lab adds is beside what the vendor does, listed, and
// never instead of what the pod has.
func TestExtra(t *testing.T) {
	extra := Extra{
		Env:       []corev1.EnvVar{{Name: "SSL_CERT_FILE", Value: "/lab/ca.crt"}, {Name: "STACKIT_IDP_TOKEN_ENDPOINT", Value: "https://lab/token"}},
		Volume:    &corev1.Volume{Name: "lab"},
		MountPath: "/lab",
	}
	config := Config{Profile: STACKIT(), Accounts: app(enabled["stackit"]), Extra: extra}
	_, got := review(t, config, newPod(func(pod *corev1.Pod) {
		pod.Annotations = map[string]string{"a/b~c": "d"}
		pod.Spec.Containers[0].Env = []corev1.EnvVar{{Name: "SSL_CERT_FILE", Value: "own"}}
	}))
	want := stackitDefault.with(func(i *injected) {
		i.Env = everywhere(stackitEnv, "SSL_CERT_FILE=/lab/ca.crt", "STACKIT_IDP_TOKEN_ENDPOINT=https://lab/token")
		i.Env["main"] = []string{"SSL_CERT_FILE=own", stackitEnv, "STACKIT_IDP_TOKEN_ENDPOINT=https://lab/token"}
	})
	if diff := cmp.Diff(want, injectedBy(config.Profile, got)); diff != "" {
		t.Errorf("injected (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(map[string]string{"a/b~c": "d", "oidclab.dev/extra-stackit": "SSL_CERT_FILE STACKIT_IDP_TOKEN_ENDPOINT lab"}, got.Annotations); diff != "" {
		t.Errorf("annotations (-want +got):\n%s", diff)
	}
	for _, c := range slices.Concat(got.Spec.Containers, got.Spec.InitContainers) {
		if !slices.Contains(c.VolumeMounts, corev1.VolumeMount{Name: "lab", MountPath: "/lab", ReadOnly: true}) {
			t.Errorf("%s has the mounts %v", c.Name, c.VolumeMounts)
		}
	}

	t.Run("the annotation of the service account wins", func(t *testing.T) {
		annotations := maps.Clone(enabled["stackit"])
		annotations[STACKITIDPTokenEndpoint] = "https://other/token"
		_, got := review(t, Config{Profile: STACKIT(), Accounts: app(annotations), Extra: extra}, newPod())
		if env := injectedBy(STACKIT(), got).Env["main"]; !slices.Equal(env, []string{stackitEnv, "STACKIT_IDP_TOKEN_ENDPOINT=https://other/token", "SSL_CERT_FILE=/lab/ca.crt"}) {
			t.Errorf("got %v", env)
		}
	})
	t.Run("nothing where nothing is injected", func(t *testing.T) {
		response, _ := review(t, Config{Profile: STACKIT(), Accounts: app(nil), Extra: extra}, newPod())
		if !response.Allowed || len(response.Patch) > 0 {
			t.Errorf("got %s", response.Patch)
		}
	})
	t.Run("nothing for a container that is skipped", func(t *testing.T) {
		config := Config{Profile: profiles()["aws"], Accounts: app(enabled["aws"]), Extra: extra}
		_, got := review(t, config, newPod(func(pod *corev1.Pod) { pod.Annotations = map[string]string{AWSSkipContainers: "side"} }))
		if side := got.Spec.Containers[1]; len(side.Env)+len(side.VolumeMounts) > 0 {
			t.Errorf("got %+v", side)
		}
	})
	t.Run("once for several profiles", func(t *testing.T) {
		pod := newPod()
		for _, name := range []string{"aws", "azure", "stackit"} {
			_, pod = review(t, Config{Profile: profiles()[name], Accounts: app(enabled[name]), Extra: extra}, pod)
		}
		want := slices.Concat(awsEnv, []string{"SSL_CERT_FILE=/lab/ca.crt", "STACKIT_IDP_TOKEN_ENDPOINT=https://lab/token"}, azureEnv, []string{stackitEnv})
		if diff := cmp.Diff(everywhere(want...), injectedBy(config.Profile, pod).Env); diff != "" {
			t.Errorf("environment (-want +got):\n%s", diff)
		}
		if len(pod.Spec.Volumes) != 4 || len(pod.Spec.Containers[0].VolumeMounts) != 4 || len(pod.Annotations) != 3 {
			t.Errorf("volumes %v, mounts %v, annotations %v", pod.Spec.Volumes, pod.Spec.Containers[0].VolumeMounts, pod.Annotations)
		}
	})
}
