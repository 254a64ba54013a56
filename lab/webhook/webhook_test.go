package webhook

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"
	jsonpatch "gopkg.in/evanphx/json-patch.v4"
	admissionv1 "k8s.io/api/admission/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

var update = flag.Bool("update", false, "rewrite the responses in testdata")

// profiles are those of an installation with settings.
func profiles() map[string]Profile {
	return map[string]Profile{
		"stackit": STACKIT(),
		"aws":     AWS(AWSSettings{Region: "us-east-1"}),
		"azure":   Azure(AzureSettings{TenantID: "tenant", AuthorityHost: "https://login.microsoftonline.com/"}),
	}
}

// accounts are the service accounts of namespace demo.
type accounts map[string]*corev1.ServiceAccount

func (a accounts) ServiceAccount(_ context.Context, namespace, name string) (*corev1.ServiceAccount, error) {
	if account := a[name]; account != nil && namespace == "demo" {
		return account, nil
	}
	return nil, apierrors.NewNotFound(schema.GroupResource{Resource: "serviceaccounts"}, name)
}

// app is the service accounts, of which there is one, called app.
func app(annotations map[string]string) accounts {
	return accounts{"app": {ObjectMeta: metav1.ObjectMeta{Name: "app", Namespace: "demo", Annotations: annotations}}}
}

// broken is where no service account can be looked up.
type broken struct{}

func (broken) ServiceAccount(context.Context, string, string) (*corev1.ServiceAccount, error) {
	return nil, errors.New("connection refused")
}

// newPod is a pod of service account app with two containers and an init
// container.
func newPod(changes ...func(*corev1.Pod)) *corev1.Pod {
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "web"},
		Spec: corev1.PodSpec{
			ServiceAccountName: "app",
			Containers:         []corev1.Container{{Name: "main"}, {Name: "side"}},
			InitContainers:     []corev1.Container{{Name: "init"}},
		},
	}
	for _, change := range changes {
		change(pod)
	}
	return pod
}

// review asks a webhook, and returns its answer and the pod that comes of it.
func review(t testing.TB, config Config, pod *corev1.Pod) (*admissionv1.AdmissionResponse, *corev1.Pod) {
	t.Helper()
	raw, err := json.Marshal(pod)
	if err != nil {
		t.Fatal(err)
	}
	version := config.Profile.ReviewVersions[0]
	body, err := json.Marshal(admissionv1.AdmissionReview{
		TypeMeta: metav1.TypeMeta{APIVersion: "admission.k8s.io/" + version, Kind: "AdmissionReview"},
		Request: &admissionv1.AdmissionRequest{
			UID: "request-1", Namespace: "demo", Operation: admissionv1.Create,
			Resource: metav1.GroupVersionResource{Version: "v1", Resource: "pods"}, Object: runtime.RawExtension{Raw: raw},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	status, content := post(t, config, "application/json", body)
	if status != http.StatusOK {
		t.Fatalf("HTTP %d: %s", status, content)
	}
	var answer admissionv1.AdmissionReview
	if err := json.Unmarshal(content, &answer); err != nil {
		t.Fatal(err)
	}
	if answer.APIVersion != "admission.k8s.io/"+version || answer.Kind != "AdmissionReview" || answer.Response.UID != "request-1" {
		t.Fatalf("not an answer to the request: %s", content)
	}
	return answer.Response, apply(t, raw, answer.Response)
}

// apply does what an API server does with a patch.
func apply(t testing.TB, raw []byte, response *admissionv1.AdmissionResponse) *corev1.Pod {
	t.Helper()
	if len(response.Patch) > 0 {
		if !response.Allowed || response.PatchType == nil || *response.PatchType != admissionv1.PatchTypeJSONPatch {
			t.Fatalf("a patch, but allowed %t and type %v", response.Allowed, response.PatchType)
		}
		patch, err := jsonpatch.DecodePatch(response.Patch)
		if err != nil {
			t.Fatal(err)
		}
		if raw, err = patch.Apply(raw); err != nil {
			t.Fatalf("%v\n%s", err, response.Patch)
		}
	}
	pod := new(corev1.Pod)
	if err := unmarshal(raw, pod); err != nil {
		t.Fatal(err)
	}
	return pod
}

func post(t testing.TB, config Config, contentType string, body []byte) (int, []byte) {
	t.Helper()
	request := httptest.NewRequest(http.MethodPost, config.Profile.Path, bytes.NewReader(body))
	request.Header.Set("Content-Type", contentType)
	recorder := httptest.NewRecorder()
	New(config).ServeHTTP(recorder, request)
	return recorder.Code, recorder.Body.Bytes()
}

// TestGolden sends the requests in testdata, whose names begin with a
// profile's, and compares the answers. The patch of an answer is shown as JSON.
func TestGolden(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(files) < 6 {
		t.Fatalf("%d files: %v", len(files), err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			archive, err := txtar.ParseFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if len(archive.Files) != 3 || archive.Files[0].Name != "serviceaccount" || archive.Files[1].Name != "request" || archive.Files[2].Name != "response" {
				t.Fatal("want the sections serviceaccount, request and response")
			}
			name, _, _ := strings.Cut(filepath.Base(file), "-")
			account := new(corev1.ServiceAccount)
			if err := unmarshal(archive.Files[0].Data, account); err != nil {
				t.Fatal(err)
			}
			config := Config{Profile: profiles()[name], Accounts: accounts{account.Name: account}}
			status, content := post(t, config, "application/json", archive.Files[1].Data)
			got := fmt.Sprintf("HTTP %d\n%s", status, readable(t, content))
			if *update {
				archive.Files[2].Data = []byte(got)
				if err := os.WriteFile(file, txtar.Format(archive), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if diff := cmp.Diff(string(archive.Files[2].Data), got); diff != "" {
				t.Errorf("response (-want +got):\n%s", diff)
			}
		})
	}
}

func readable(t *testing.T, content []byte) string {
	var answer admissionv1.AdmissionReview
	if err := json.Unmarshal(content, &answer); err != nil {
		t.Fatalf("%v: %s", err, content)
	}
	var generic map[string]any
	if err := json.Unmarshal(content, &generic); err != nil {
		t.Fatal(err)
	}
	if len(answer.Response.Patch) > 0 {
		generic["response"].(map[string]any)["patch"] = json.RawMessage(answer.Response.Patch)
	}
	shown, err := json.MarshalIndent(generic, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	return string(shown) + "\n"
}

// Requests that are no reviews of pods. The control is every other test.
func TestNotAReviewOfAPod(t *testing.T) {
	config := Config{Profile: STACKIT(), Accounts: app(nil)}
	const good = `{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","request":{"uid":"u","namespace":"demo","resource":{"group":"","version":"v1","resource":"pods"},"object":{"spec":{"serviceAccountName":"app"}}}}`
	if status, body := post(t, config, "application/json; charset=utf-8", []byte(good)); status != 200 || !strings.Contains(string(body), `"allowed":true`) {
		t.Fatalf("control: HTTP %d: %s", status, body)
	}
	for _, c := range []struct {
		name, contentType, body string
		status                  int
		text                    string
	}{
		{"content type", "text/plain", good, 415, "application/json"},
		{"not JSON", "application/json", "{", 400, "not an AdmissionReview"},
		{"empty", "application/json", "", 400, "not an AdmissionReview"},
		{"too long", "application/json", strings.Repeat(" ", maxReview+1), 413, "too large"},
		{"duplicate field", "application/json", strings.Replace(good, `"uid":"u"`, `"uid":"u","uid":"v"`, 1), 400, "duplicate field"},
		{"another kind", "application/json", strings.Replace(good, `"AdmissionReview"`, `"TokenReview"`, 1), 400, "TokenReview"},
		{"another group", "application/json", strings.Replace(good, "admission.k8s.io", "authentication.k8s.io", 1), 400, "authentication.k8s.io"},
		{"another version", "application/json", strings.Replace(good, "admission.k8s.io/v1", "admission.k8s.io/v1beta1", 1), 400, "v1beta1"},
		{"no request", "application/json", `{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview"}`, 400, "no request"},
		{"no uid", "application/json", strings.Replace(good, `"uid":"u",`, "", 1), 400, "no request with a uid"},
		{"another resource", "application/json", strings.Replace(good, `"pods"`, `"secrets"`, 1), 200, "this webhook is for pods"},
		{"a subresource", "application/json", strings.Replace(good, `"namespace"`, `"subResource":"ephemeralcontainers","namespace"`, 1), 200, "this webhook is for pods"},
		{"another case", "application/json", strings.Replace(good, `"spec"`, `"Spec"`, 1), 200, `serviceaccounts \"default\" not found`},
		{"no pod", "application/json", strings.Replace(good, `{"serviceAccountName":"app"}`, `[]`, 1), 200, "not a pod"},
	} {
		t.Run(c.name, func(t *testing.T) {
			status, body := post(t, config, c.contentType, []byte(c.body))
			if status != c.status || !strings.Contains(string(body), c.text) || strings.Contains(string(body), `"allowed":true`) {
				t.Errorf("HTTP %d: %s", status, body)
			}
		})
	}
	recorder := httptest.NewRecorder()
	New(config).ServeHTTP(recorder, httptest.NewRequest(http.MethodGet, "/", nil))
	if recorder.Code != http.StatusMethodNotAllowed {
		t.Errorf("GET: HTTP %d", recorder.Code)
	}
}

// A service account that is not there, and one that cannot be looked up.
func TestWithoutServiceAccount(t *testing.T) {
	for _, c := range []struct {
		profile string
		allowed bool
		code    int32
		text    string
	}{
		{"stackit", false, 404, `serviceaccounts "app" not found`},
		{"aws", true, 0, ""},
		{"azure", false, 400, `serviceaccounts "app" not found`},
	} {
		t.Run(c.profile, func(t *testing.T) {
			config := Config{Profile: profiles()[c.profile], Accounts: accounts{}}
			response, _ := review(t, config, newPod())
			if response.Allowed != c.allowed || len(response.Patch) > 0 {
				t.Fatalf("allowed %t, patch %s", response.Allowed, response.Patch)
			}
			if !c.allowed && (response.Result.Code != c.code || response.Result.Message != c.text) {
				t.Errorf("refused with %d %q", response.Result.Code, response.Result.Message)
			}
		})
	}
	t.Run("stackit, broken", func(t *testing.T) {
		response, _ := review(t, Config{Profile: STACKIT(), Accounts: broken{}}, newPod())
		if want := "failed to fetch ServiceAccount demo/app: connection refused"; response.Allowed || response.Result.Message != want || response.Result.Code != 403 {
			t.Errorf("got %+v", response)
		}
	})
	t.Run("aws, broken", func(t *testing.T) {
		body := `{"apiVersion":"admission.k8s.io/v1beta1","kind":"AdmissionReview","request":{"uid":"u","resource":{"version":"v1","resource":"pods"},"object":{}}}`
		status, content := post(t, Config{Profile: AWS(AWSSettings{}), Accounts: broken{}}, "application/json", []byte(body))
		if status != http.StatusInternalServerError {
			t.Errorf("HTTP %d: %s", status, content)
		}
	})
}

func FuzzBody(f *testing.F) {
	f.Add([]byte(`{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","request":{"uid":"u","namespace":"demo","resource":{"version":"v1","resource":"pods"},"object":{"metadata":{"labels":{"a":"b"}},"spec":{"containers":[{"env":[{"name":"A"}]}]}}}}`))
	f.Add([]byte(`{"apiVersion":"admission.k8s.io/v1beta1","kind":"AdmissionReview","request":{"uid":"u","object":null}}`))
	f.Add([]byte(`{"request":{"object":{"spec":{"containers":[null]}}}}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		for _, profile := range profiles() {
			status, content := post(t, Config{Profile: profile, Accounts: allAnnotated{}}, "application/json", body)
			if status == http.StatusBadRequest {
				continue
			}
			var asked, answered admissionv1.AdmissionReview
			if err := json.Unmarshal(content, &answered); status != http.StatusOK || err != nil {
				t.Fatalf("HTTP %d: %s", status, content)
			}
			if err := unmarshal(body, &asked); err != nil || asked.Request.UID != answered.Response.UID {
				t.Fatalf("%v: asked with uid %q, answered %s", err, asked.Request.UID, content)
			}
			if !answered.Response.Allowed && answered.Response.Result == nil {
				t.Fatalf("refused without a reason: %s", content)
			}
		}
	})
}

// FuzzAnnotations: whatever is annotated, a patch applies to its pod.
func FuzzAnnotations(f *testing.F) {
	f.Add("a@b", "600", "main", "/x/y", "STACKIT_SERVICE_ACCOUNT_EMAIL")
	f.Add("<a@b>", "-1", "\"", ".", "AWS_REGION")
	f.Fuzz(func(t *testing.T, identity, expiration, containers, file, variable string) {
		account := map[string]string{
			STACKITEmail: identity, STACKITExpiration: expiration, STACKITFederatedTokenFile: file,
			AWSRoleARN: identity, AWSExpiration: expiration, AWSAudience: file,
			AzureClientID: identity, AzureExpiration: expiration,
		}
		for name, profile := range profiles() {
			pod := newPod(func(pod *corev1.Pod) {
				pod.Annotations = map[string]string{AWSSkipContainers: containers, AzureSkipContainers: containers}
				pod.Spec.Containers[0].Env = []corev1.EnvVar{{Name: variable}}
				pod.Spec.Volumes = []corev1.Volume{{Name: variable}}
			})
			response, got := review(t, Config{Profile: profile, Accounts: app(account), Extra: Extra{Env: []corev1.EnvVar{{Name: variable}}}}, pod)
			if response.Allowed && len(got.Spec.Containers) != 2 {
				t.Fatalf("%s: %s", name, response.Patch)
			}
		}
	})
}

// allAnnotated is where every service account has an identity at every vendor.
type allAnnotated struct{}

func (allAnnotated) ServiceAccount(context.Context, string, string) (*corev1.ServiceAccount, error) {
	return &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Annotations: map[string]string{
		STACKITEmail: "app@sa.stackit.cloud", AWSRoleARN: "arn:aws:iam::111122223333:role/app", AzureClientID: "client",
	}}}, nil
}
