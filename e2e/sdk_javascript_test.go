package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"testing"

	"github.com/oidclab/oidclab/fixtures"
)

// TestJavaScript runs the SDKs of AWS, Google and Microsoft for Node.js.
func TestJavaScript(t *testing.T) {
	t.Parallel()
	node, script := javaScript(t)
	u := newUser(t)
	info := u.up(t, "--name", labName)
	lab, production := inLab(info), inProduction()
	// Unlike AWS's SDK for Go, this one does not try a refused token again.
	awsAccount := refusal{"AccessDenied", "Not authorized to perform sts:AssumeRoleWithWebIdentity"}
	awsAudience := refusal{"InvalidIdentityTokenException", "could not be validated"}
	// Its class, GaxiosError, is not its name.
	gcpAccount := refusal{"Error", "Permission 'iam.serviceAccounts.getAccessToken' denied"}
	gcpAudience := refusal{"Error", "The audience in ID Token does not match the expected audience."}
	for _, test := range []struct {
		party             string
		args              []string
		identity          string
		account, audience refusal
	}{
		{"aws", []string{"aws", lab.aws}, assumed(info), awsAccount, awsAudience},
		{"gcp", []string{"gcp", lab.gcp}, fixtures.GCPServiceAccount, gcpAccount, gcpAudience},
		{"azure", []string{"azure", lab.azure}, info.Azure.ClientIDs["c1"], refusal{"AuthenticationRequiredError", "AADSTS700213"}, refusal{"AuthenticationRequiredError", "AADSTS700212"}},
		{"proxy", []string{"aws", production.aws}, assumed(info), awsAccount, awsAudience},
		{"proxy", []string{"gcp", production.gcp}, fixtures.GCPServiceAccount, gcpAccount, gcpAudience},
		// DefaultAzureCredential goes on after a refusal, and asks Entra once more.
		{"proxy", []string{"azure", production.azure, "default"}, info.Azure.ClientIDs["c1"], refusal{"AggregateAuthenticationError", "AADSTS700213"}, refusal{"AggregateAuthenticationError", "AADSTS700212"}},
	} {
		t.Run(test.args[0]+" for "+test.party, func(t *testing.T) {
			program := slices.Concat([]string{node, "--no-warnings", script}, test.args)
			sdkScript{program, test.party}.check(t, u, test.identity, test.account, test.audience)
		})
	}
}

// javaScript returns node, and the application with the libraries of its lock.
func javaScript(t testing.TB) (node, script string) {
	t.Helper()
	node, err := exec.LookPath("node")
	if err != nil {
		lacking(t, "node on PATH", err)
	}
	npm, err := exec.LookPath("npm")
	if err != nil {
		lacking(t, "npm on PATH", err)
	}
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS(filepath.Join("testdata", "javascript"))); err != nil {
		t.Fatal(err)
	}
	install := exec.Command(npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--engine-strict", "--prefer-offline", "--fetch-retry-mintimeout=1000")
	install.Dir = dir
	output, err := install.CombinedOutput()
	if err == nil {
		return node, filepath.Join(dir, "application.mjs")
	}
	t.Logf("npm ci: %v: %s", err, output)
	switch code := npmCode(string(output)); code {
	case "EUSAGE", "EINTEGRITY", "EJSONPARSE":
		t.Fatalf("npm ci: %s: package.json or its lock is wrong", code)
	default:
		lacking(t, "the libraries of testdata/javascript from npm's registry", "npm ci: "+code)
	}
	return "", ""
}

// npmCode returns the code of the error that npm has printed.
func npmCode(output string) string {
	if match := regexp.MustCompile(`(?m)^npm (?:ERR!|error) code (\S+)`).FindStringSubmatch(output); match != nil {
		return match[1]
	}
	return ""
}
