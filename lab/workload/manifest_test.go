package workload_test

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/oidclab/oidclab/fixtures/manifests"
	"github.com/oidclab/oidclab/lab"
	"github.com/oidclab/oidclab/lab/problem"
	"github.com/oidclab/oidclab/lab/workload"
)

// partyWants is what a pod's manifest says of a party.
var partyWants = map[string]struct {
	audience string
	args     []string
	files    []string // beside the root certificate
}{
	"aws":     {"sts.amazonaws.com", []string{"--resource=s3://demo/greeting"}, nil},
	"gcp":     {"//iam/two", []string{"--resource=https://gcp.lab/storage/v1/b/demo/o/greeting?alt=media"}, []string{"gcp.json"}},
	"azure":   {"api://exchange", []string{"--resource=https://azure.lab/demo/greeting", "--disable-instance-discovery"}, nil},
	"stackit": {"stackit", []string{"--resource=https://stackit.lab/v2/projects/project"}, nil},
	"oci":     {"api-two", []string{"--resource=https://oci.lab/n/axlab/b/demo/o/greeting"}, nil},
	"vault":   {"vault", []string{"--resource=secret/data/app"}, nil},
	"generic": {"oidclab", nil, nil},
}

// podOf returns the pod of a workload and the object's own name and namespace.
func podOf(t *testing.T, object runtime.Object) (pod corev1.PodTemplateSpec, kind, name, namespace string) {
	t.Helper()
	switch o := object.(type) {
	case *appsv1.Deployment:
		if !selects(o.Spec.Selector.MatchLabels, o.Spec.Template.Labels) {
			t.Errorf("the Deployment selects %v, and its pods have %v", o.Spec.Selector.MatchLabels, o.Spec.Template.Labels)
		}
		return o.Spec.Template, "deployment", o.Name, o.Namespace
	case *batchv1.Job:
		return o.Spec.Template, "job", o.Name, o.Namespace
	case *batchv1.CronJob:
		return o.Spec.JobTemplate.Spec.Template, "cronjob", o.Name, o.Namespace
	}
	t.Fatalf("%T is no workload", object)
	return
}

func selects(selector, labels map[string]string) bool {
	for key, value := range selector {
		if labels[key] != value {
			return false
		}
	}
	return len(selector) > 0
}

func TestManifests(t *testing.T) {
	info, cluster := world(t)
	info.WorkloadImage = "oidclab/workload:of-the-nodes"
	for _, kind := range workload.Kinds() {
		for _, party := range workload.Parties() {
			t.Run(kind+" for "+party, func(t *testing.T) {
				objects, err := workload.Manifest{Kind: kind, Party: party, Namespace: "shop", ServiceAccount: "till"}.Objects(t.Context(), info, cluster)
				if err != nil {
					t.Fatal(err)
				}
				text, err := json.Marshal(objects)
				if err != nil {
					t.Fatal(err)
				}
				if strings.Contains(string(text), secret) {
					t.Error("a token or a secret is in the manifest")
				}
				want := partyWants[party]
				pod, gotKind, name, namespace := podOf(t, objects[len(objects)-1])
				if gotKind != kind || name != "probe-"+party || namespace != "shop" {
					t.Errorf("it is %s %s in %s", gotKind, name, namespace)
				}
				checkConfigMaps(t, party, objects[:len(objects)-1], want.files)
				checkSecurity(t, pod.Spec)
				container := pod.Spec.Containers[0]
				if pod.Spec.ServiceAccountName != "till" || container.Image != "oidclab/workload:of-the-nodes" {
					t.Errorf("service account %s, image %s", pod.Spec.ServiceAccountName, container.Image)
				}
				if !slices.Contains(container.Args, party) || party != "generic" && slices.Contains(container.Args, "generic") || !containsAll(container.Args, want.args) {
					t.Errorf("args %q, want %s and %q", container.Args, party, want.args)
				}
				if from := container.EnvFrom; len(from) != 1 || from[0].ConfigMapRef.Name != "oidclab-"+party || from[0].SecretRef != nil || len(container.Env) != 0 {
					t.Errorf("the environment is from %+v and %+v", from, container.Env)
				}
				checkVolumes(t, party, want.audience, pod.Spec)
			})
		}
	}
}

func containsAll(list, wanted []string) bool {
	return !slices.ContainsFunc(wanted, func(w string) bool { return !slices.Contains(list, w) })
}

// podEnvironment returns the variables of the party in pods, which have no
// client's secret, and a home directory of their own.
func podEnvironment(party string) []string {
	if party == "oci" {
		return slices.Concat(okePod, roots)
	}
	return slices.DeleteFunc(slices.Clone(environments[party]), func(line string) bool { return strings.HasPrefix(line, "CLOUDSDK_CONFIG=") })
}

// checkConfigMaps wants the variables of the party, without those that must not
// be set, and the files that SDKs read beside.
func checkConfigMaps(t *testing.T, party string, objects []runtime.Object, files []string) {
	t.Helper()
	found := map[string]map[string]string{}
	for _, object := range objects {
		configMap, ok := object.(*corev1.ConfigMap)
		if !ok || configMap.Namespace != "shop" || configMap.Kind != "ConfigMap" || configMap.APIVersion != "v1" {
			t.Fatalf("%T %+v", object, object)
		}
		found[configMap.Name] = configMap.Data
	}
	names := map[string]bool{}
	for _, line := range podEnvironment(party) {
		if name, value, _ := strings.Cut(line, "="); value != "" {
			names[name] = true
		}
	}
	environment := found["oidclab-"+party]
	if len(environment) != len(names) {
		t.Errorf("%d variables, want %d", len(environment), len(names))
	}
	for name, value := range environment {
		path := strings.Contains(name, "_FILE") || strings.HasSuffix(name, "_CA_BUNDLE") || strings.HasSuffix(name, "_CERTS") || strings.HasSuffix(name, "_CERT_PATH") || name == "GOOGLE_APPLICATION_CREDENTIALS" || name == "SSL_CERT_FILE" || name == "VAULT_CACERT"
		if !names[name] || path && value != manifests.TokenPath && !strings.HasPrefix(value, manifests.FilesPath+"/") {
			t.Errorf("%s=%s", name, value)
		}
	}
	held := found["oidclab-"+party+"-files"]
	if len(held) != len(files) || len(found) > 2 {
		t.Errorf("the files are %v, want %v", held, files)
	}
	for _, name := range files {
		if !strings.Contains(held[name], manifests.TokenPath) {
			t.Errorf("%s does not name the token's file: %s", name, held[name])
		}
	}
}

func checkSecurity(t *testing.T, pod corev1.PodSpec) {
	t.Helper()
	if pod.AutomountServiceAccountToken == nil || *pod.AutomountServiceAccountToken {
		t.Error("the token for the Kubernetes API is mounted")
	}
	if sc := pod.SecurityContext; sc == nil || sc.RunAsNonRoot == nil || !*sc.RunAsNonRoot || sc.FSGroup == nil {
		t.Errorf("security context of the pod: %+v", sc)
	}
	if sc := pod.Containers[0].SecurityContext; sc == nil || sc.AllowPrivilegeEscalation == nil || *sc.AllowPrivilegeEscalation || sc.Capabilities == nil || !slices.Contains(sc.Capabilities.Drop, "ALL") {
		t.Errorf("security context of the container: %+v", sc)
	}
}

// checkVolumes wants one projected token, for the party alone, where the
// environment says that it is.
func checkVolumes(t *testing.T, party, audience string, pod corev1.PodSpec) {
	t.Helper()
	mounts := map[string]string{}
	for _, mount := range pod.Containers[0].VolumeMounts {
		if !mount.ReadOnly {
			t.Errorf("volume %s can be written to", mount.Name)
		}
		mounts[mount.Name] = mount.MountPath
	}
	var tokens, configMaps []string
	for _, volume := range pod.Volumes {
		if volume.Projected == nil {
			t.Fatalf("volume %s is not projected", volume.Name)
		}
		for _, source := range volume.Projected.Sources {
			switch {
			case source.ServiceAccountToken != nil:
				token := source.ServiceAccountToken
				tokens = append(tokens, mounts[volume.Name]+"/"+token.Path)
				if token.ExpirationSeconds == nil {
					t.Fatal("a token without expirationSeconds")
				}
				if token.Audience != audience || *token.ExpirationSeconds != 3600 {
					t.Errorf("a token for %q, of %d seconds; want %q, 3600", token.Audience, *token.ExpirationSeconds, audience)
				}
			case source.ConfigMap != nil && mounts[volume.Name] == manifests.FilesPath:
				configMaps = append(configMaps, source.ConfigMap.Name)
			default:
				t.Errorf("volume %s has %+v", volume.Name, source)
			}
		}
	}
	if !slices.Equal(tokens, []string{manifests.TokenPath}) || !slices.Equal(configMaps, []string{"oidclab-ca", "oidclab-" + party + "-files"}) {
		t.Errorf("tokens %q, ConfigMaps %q", tokens, configMaps)
	}
}

// TestManifestImage wants the image of the recipes where the nodes have none.
func TestManifestImage(t *testing.T) {
	info, cluster := world(t)
	objects, err := workload.Manifest{Kind: "job", Party: "generic"}.Objects(t.Context(), info, cluster)
	if err != nil {
		t.Fatal(err)
	}
	pod, _, _, _ := podOf(t, objects[len(objects)-1])
	if got := pod.Spec.Containers[0].Image; got != manifests.Image {
		t.Errorf("image %s", got)
	}
}

func TestUnknownManifests(t *testing.T) {
	info, cluster := world(t)
	for _, test := range []struct {
		kind, party string
		want        string // in the error; empty if there is none
	}{
		{"job", "generic", ""},
		{"pod", "generic", `of a "pod", but of deployment, job, cronjob`},
		{"", "generic", `of a ""`},
		{"job", "ibm", `for "ibm", but for aws, `},
		{"job", "", `for ""`},
		{"job", workload.All, `for "all"`},           // one party a pod
		{"job", workload.Proxy, `for "proxy"`},       // pods do not have the proxy
		{"deployment", "kubernetes", `"kubernetes"`}, // a kubeconfig is no pod's
	} {
		objects, err := workload.Manifest{Kind: test.kind, Party: test.party}.Objects(t.Context(), info, cluster)
		switch {
		case test.want == "" && (err != nil || len(objects) == 0):
			t.Errorf("control: %d objects, %v", len(objects), err)
		case test.want != "" && (problemKind(err) != problem.Usage || !strings.Contains(err.Error(), test.want) || objects != nil):
			t.Errorf("%s for %s: %v", test.kind, test.party, err)
		}
	}
}

// TestManifestsOfAbsentParties wants the reason why a lab has no such party;
// TestManifests is the control.
func TestManifestsOfAbsentParties(t *testing.T) {
	info, cluster := world(t)
	info.Vault, info.OCI.PodHost = nil, ""
	info.Absent = map[string]string{"vault": "--vault none", lab.OKEPods: "port 12250 is taken"}
	for party, reason := range map[string]string{"vault": "--vault none", "oci": "port 12250 is taken"} {
		objects, err := workload.Manifest{Kind: "job", Party: party}.Objects(t.Context(), info, cluster)
		if problemKind(err) != problem.EnvironmentMissing || !strings.Contains(err.Error(), reason) || objects != nil {
			t.Errorf("%s: %v", party, err)
		}
	}
}
