package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
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
	// Unlike the SDK for Go, that of AWS does not try a refused token again.
	awsAccount := refusal{"AccessDenied", "Not authorized to perform sts:AssumeRoleWithWebIdentity"}
	awsAudience := refusal{"InvalidIdentityTokenException", "could not be validated"}
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
	install := exec.Command(npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--engine-strict", "--prefer-offline", "--fetch-retries=1")
	install.Dir = dir
	output, err := install.CombinedOutput()
	if err == nil {
		return node, filepath.Join(dir, "application.mjs")
	}
	why := strings.TrimSpace(string(output))
	switch code := npmCode(why); code {
	case "EUSAGE", "EINTEGRITY", "EJSONPARSE": // what is wrong is the lock
		t.Fatalf("npm ci: %v: %s", err, why)
	default:
		lacking(t, "the libraries of testdata/javascript by npm", why)
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
