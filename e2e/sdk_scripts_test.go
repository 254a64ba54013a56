package e2e

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/oidclab/oidclab/fixtures"
	"github.com/oidclab/oidclab/lab"
)

// requireSDKs, set to 1, makes a language or library that this machine lacks a
// failure instead of skips.
const requireSDKs = "OIDCLAB_REQUIRE_SDKS"

// lacking ends a test for want of something.
func lacking(t testing.TB, what string, why any) {
	t.Helper()
	if os.Getenv(requireSDKs) == "1" {
		t.Fatalf("%s=1: needs %s: %v", requireSDKs, what, why)
	}
	t.Skipf("needs %s (%s=1 makes this a failure): %v", what, requireSDKs, why)
}

// sdkScript is a program of testdata that uses a vendor's SDK, in a language
// other than the lab's. It prints one line of JSON, see answer.
type sdkScript struct {
	program []string
	party   string // of `env --for`
}

// answer is what an application prints.
type answer struct {
	Identity string // who it is to the relying party
	Content  string // of the resource
	Error    string // the SDK's class
	Message  string
}

// run runs the program with the given environment.
func (s sdkScript) run(t testing.TB, command *exec.Cmd) (got answer) {
	t.Helper()
	var stdout, stderr strings.Builder
	command.Stdout, command.Stderr = &stdout, &stderr
	err := command.Run()
	output := stdout.String() + stderr.String()
	if strings.Contains(output, "eyJ") { // {" in base64url
		t.Fatalf("%q prints a token", s.program)
	}
	if failure := json.Unmarshal([]byte(stdout.String()), &got); failure != nil || (err == nil) != (got.Error == "") {
		t.Fatalf("%q: %v: %s", s.program, err, output)
	}
	return got
}

// refusal is how an SDK shows one.
type refusal struct{ class, message string }

func (r refusal) check(t testing.TB, whom string, got answer) {
	t.Helper()
	if got.Error != r.class || !strings.Contains(got.Message, r.message) {
		t.Errorf("%s got %+v; want %s with %q", whom, got, r.class, r.message)
	}
}

// check runs the unmodified application with nothing in its environment but
// what `env` prints: as the trusted service account, as one that nobody trusts,
// and with a token that is for somebody else.
func (s sdkScript) check(t *testing.T, u *user, identity string, account, audience refusal) {
	t.Helper()
	environment := append(environmentOf(t, u, s.party), "HOME="+t.TempDir())

	trusted := exec.Command(s.program[0], s.program[1:]...)
	trusted.Env = environment
	if got := s.run(t, trusted); !strings.HasPrefix(got.Identity, identity) || identity == "" || got.Content != fixtures.ObjectContent {
		t.Errorf("got %+v; want identity %s, content %s", got, identity, fixtures.ObjectContent)
	}

	other := exec.Command(binary, "run", "--name", labName, "--serviceaccount", fixtures.OtherServiceAccount, "--for", s.party, "--")
	other.Args = append(other.Args, s.program...)
	other.Env = u.env()
	account.check(t, "a service account that nobody trusts", s.run(t, other))

	misdirected := exec.Command(s.program[0], s.program[1:]...)
	misdirected.Env = withToken(t, environment, strings.TrimSpace(u.run(t, "token", "mint", "--name", labName,
		"--namespace", fixtures.Namespace, "--serviceaccount", fixtures.ServiceAccount, "--audience", "somebody-else").want(t, 0).stdout))
	audience.check(t, "a token for somebody else", s.run(t, misdirected))
}

// withToken returns the environment with the token in place of the workload's.
func withToken(t testing.TB, environment []string, token string) []string {
	t.Helper()
	dir := t.TempDir()
	write := func(name string, content []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	file := write("token", []byte(token))
	changed := slices.Clone(environment)
	for i, variable := range changed {
		name, value, _ := strings.Cut(variable, "=")
		switch name {
		case "AWS_WEB_IDENTITY_TOKEN_FILE", "AZURE_FEDERATED_TOKEN_FILE":
			changed[i] = name + "=" + file
		case "GOOGLE_APPLICATION_CREDENTIALS", "CLOUDSDK_AUTH_CREDENTIAL_FILE_OVERRIDE":
			content, err := os.ReadFile(value)
			if err != nil {
				t.Fatal(err)
			}
			var credentials map[string]any
			if err := json.Unmarshal(content, &credentials); err != nil {
				t.Fatal(err)
			}
			credentials["credential_source"] = map[string]string{"file": file}
			if content, err = json.Marshal(credentials); err != nil {
				t.Fatal(err)
			}
			changed[i] = name + "=" + write("gcp.json", content)
		}
	}
	return changed
}

// resources are what applications read, by their party: in the lab, and by the
// vendors' host names.
type resources struct{ aws, gcp, azure string }

func inLab(info lab.Info) resources {
	return resources{awsObject, info.GCP.URL + gcpObject, info.Azure.Authority + azureBlob}
}

func inProduction() resources {
	return resources{awsObject, "https://storage.googleapis.com" + gcpObject, "https://demo.blob.core.windows.net" + azureBlob}
}

const (
	awsObject = "s3://" + fixtures.Bucket + "/" + fixtures.Object
	gcpObject = "/storage/v1/b/" + fixtures.Bucket + "/o/" + fixtures.Object + "?alt=media"
	azureBlob = "/" + fixtures.Bucket + "/" + fixtures.Object
)

// assumed returns the beginning of the ARN of sessions of the lab's role.
func assumed(info lab.Info) string {
	return strings.Replace(strings.Replace(info.AWS.Roles["c1"], ":iam:", ":sts:", 1), ":role/", ":assumed-role/", 1) + "/"
}
