package e2e

import (
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/oidclab/oidclab/fixtures"
	"github.com/oidclab/oidclab/lab"
)

const gcloudObject = "gs://" + fixtures.Bucket + "/" + fixtures.Object

// TestGcloud runs Google's command line, of which Debian has no package. It
// goes nowhere but to the lab.
func TestGcloud(t *testing.T) {
	t.Parallel()
	path, err := exec.LookPath("gcloud")
	if err != nil {
		t.Skipf("needs the gcloud command on PATH: %v", err)
	}
	u := newUser(t)
	info := u.up(t, "--name", labName)
	outside := newOutside(t)
	for party, proxies := range map[string][]string{"gcp": outside.environment(), "proxy": nil} {
		t.Run(party, func(t *testing.T) {
			settings := []string{"PATH=" + os.Getenv("PATH"), "HOME=" + t.TempDir(), "CLOUDSDK_CORE_DISABLE_PROMPTS=true"}
			gcloud{path, party, append(settings, proxies...)}.check(t, u, info)
		})
	}
	if hosts := outside.asked(); len(hosts) > 0 {
		t.Errorf("without the lab's proxy it asks for %q", hosts)
	}
	if status, _ := u.status(t, "--name", labName); len(status.Egress) > 0 {
		t.Errorf("by the lab's proxy it asks for %+v", status.Egress)
	}
}

// gcloud is the command, with settings beside what `env` prints for a party.
type gcloud struct {
	path     string
	party    string
	settings []string
}

// check runs the command without a login and with one: as the trusted service
// account, as one that nobody trusts, and with a token that is for somebody else.
func (g gcloud) check(t *testing.T, u *user, info lab.Info) {
	t.Helper()
	environment := append(environmentOf(t, u, g.party), g.settings...)
	g.reads(t, environment)
	if got, err := g.run(t, environment, "storage", "ls", "gs://"+fixtures.Bucket); err != nil || strings.TrimSpace(got) != gcloudObject {
		t.Errorf("it lists %q: %v", got, err)
	}
	file := filepath.Join(t.TempDir(), fixtures.Object)
	if _, err := g.run(t, environment, "storage", "cp", gcloudObject, file); err != nil {
		t.Error(err)
	} else if got, err := os.ReadFile(file); string(got) != fixtures.ObjectContent {
		t.Errorf("it copied %q: %v", got, err)
	}
	token, err := g.run(t, environment, "auth", "print-access-token")
	if err != nil {
		t.Fatal(err)
	}
	if got, err := fetch(t.Context(), httpsClient(t, info), info.GCP.URL+gcpObject, strings.TrimSpace(token)); err != nil || got != fixtures.ObjectContent {
		t.Errorf("with its access token there is %q: %v", got, err)
	}

	loggedIn := append(slices.DeleteFunc(slices.Clone(environment), func(variable string) bool {
		return strings.HasPrefix(variable, "CLOUDSDK_AUTH_CREDENTIAL_FILE_OVERRIDE=")
	}), "CLOUDSDK_CONFIG="+t.TempDir())
	if got, err := g.run(t, loggedIn, "storage", "cat", gcloudObject); err == nil || !strings.Contains(err.Error(), "You do not currently have an active account selected") {
		t.Errorf("without a credential it reads %q: %v", got, err)
	}
	if _, err := g.run(t, loggedIn, "auth", "login", "--cred-file="+variableOf(t, environment, "GOOGLE_APPLICATION_CREDENTIALS")); err != nil {
		t.Error(err)
	}
	g.reads(t, loggedIn)

	for account, refusal := range map[string]string{fixtures.ServiceAccount: "", fixtures.OtherServiceAccount: "IAM_PERMISSION_DENIED"} {
		command := exec.Command(binary, "run", "--name", labName, "--serviceaccount", account, "--for", g.party, "--", g.path, "storage", "cat", gcloudObject)
		command.Env = append(u.env(), g.settings...)
		switch got, err := ask(command); {
		case refusal == "" && (err != nil || got != fixtures.ObjectContent):
			t.Errorf("%s reads %q: %v", account, got, err)
		case refusal != "" && (err == nil || !strings.Contains(err.Error(), refusal)):
			t.Errorf("%s, whom nobody trusts, reads %q: %v; want %s", account, got, err, refusal)
		}
	}

	for audience, refusal := range map[string]string{info.GCP.Audiences["c1"]: "", "somebody-else": "The audience in ID Token does not match the expected audience."} {
		changed := append(withToken(t, environment, strings.TrimSpace(u.run(t, "token", "mint", "--name", labName,
			"--namespace", fixtures.Namespace, "--serviceaccount", fixtures.ServiceAccount, "--audience", audience).want(t, 0).stdout)), "CLOUDSDK_CONFIG="+t.TempDir())
		if refusal == "" {
			g.reads(t, changed)
		} else if got, err := g.run(t, changed, "storage", "cat", gcloudObject); err == nil || !strings.Contains(err.Error(), refusal) {
			t.Errorf("with a token for %s it reads %q: %v", audience, got, err)
		}
	}
}

// reads wants the command to read the lab's object.
func (g gcloud) reads(t *testing.T, environment []string) {
	t.Helper()
	if got, err := g.run(t, environment, "storage", "cat", gcloudObject); err != nil || got != fixtures.ObjectContent {
		t.Errorf("it reads %q: %v", got, err)
	}
}

func (g gcloud) run(t *testing.T, environment []string, arguments ...string) (string, error) {
	t.Helper()
	command := exec.Command(g.path, arguments...)
	command.Env = environment
	got, err := ask(command)
	if err != nil && (strings.Contains(err.Error(), "eyJ") || strings.Contains(err.Error(), "ya29.")) {
		t.Fatalf("gcloud %q prints a token", arguments)
	}
	return got, err
}

// variableOf returns the value of an environment variable.
func variableOf(t *testing.T, environment []string, name string) string {
	t.Helper()
	for _, variable := range environment {
		if value, ok := strings.CutPrefix(variable, name+"="); ok {
			return value
		}
	}
	t.Fatalf("there is no %s", name)
	return ""
}

// outside is a proxy to everything but the lab. It leads nowhere, and remembers
// who was asked for.
type outside struct {
	url   string
	mu    sync.Mutex
	hosts []string
}

func newOutside(t *testing.T) *outside {
	o := &outside{}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		o.mu.Lock()
		o.hosts = append(o.hosts, r.Host)
		o.mu.Unlock()
		http.Error(w, "there is nothing outside", http.StatusForbidden)
	}))
	t.Cleanup(server.Close)
	o.url = server.URL
	return o
}

func (o *outside) environment() []string {
	return []string{
		"HTTPS_PROXY=" + o.url, "https_proxy=" + o.url, "HTTP_PROXY=" + o.url, "http_proxy=" + o.url,
		"NO_PROXY=127.0.0.1", "no_proxy=127.0.0.1",
	}
}

func (o *outside) asked() []string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return slices.Clone(o.hosts)
}
