package e2e

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/oidclab/oidclab/fixtures"
)

// TestPython runs the SDKs of AWS, Google and Microsoft for Python, as far as
// this machine has them.
func TestPython(t *testing.T) {
	t.Parallel()
	u := newUser(t)
	info := u.up(t, "--name", labName)
	lab, production := inLab(info), inProduction()
	boto3 := library{"import boto3", "boto3 (python3-boto3)", true}
	// Older ones would send the token to the real AWS. That of Debian 12 is.
	boto3WithEndpoints := library{"from botocore.configprovider import ConfiguredEndpointProvider; import boto3", "boto3 1.28 or newer, which reads AWS_ENDPOINT_URL_STS", false}
	google := library{"import google.auth.identity_pool, requests", "google-auth 1.27 or newer, which knows external accounts", false} // Debian 12 has 1.5
	msal := library{"import msal, requests", "msal (python3-msal)", true}
	awsAccount := refusal{"ClientError", "(AccessDenied) when calling the AssumeRoleWithWebIdentity operation: Not authorized"}
	awsAudience := refusal{"InvalidIdentityTokenException", "(InvalidIdentityToken) when calling the AssumeRoleWithWebIdentity operation"}
	gcpAccount := refusal{"RefreshError", "IAM_PERMISSION_DENIED"}
	gcpAudience := refusal{"OAuthError", "invalid_grant: The audience in ID Token does not match the expected audience."}
	azureAccount, azureAudience := refusal{"RuntimeError", "AADSTS700213"}, refusal{"RuntimeError", "AADSTS700212"}
	for _, test := range []struct {
		library           library
		party, sdk, url   string
		identity          string
		account, audience refusal
	}{
		{boto3WithEndpoints, "aws", "aws", lab.aws, assumed(info), awsAccount, awsAudience},
		{google, "gcp", "gcp", lab.gcp, fixtures.GCPServiceAccount, gcpAccount, gcpAudience},
		{msal, "azure", "azure", lab.azure, info.Azure.ClientIDs["c1"], azureAccount, azureAudience},
		{boto3, "proxy", "aws", production.aws, assumed(info), awsAccount, awsAudience},
		{google, "proxy", "gcp", production.gcp, fixtures.GCPServiceAccount, gcpAccount, gcpAudience},
		{msal, "proxy", "azure", production.azure, info.Azure.ClientIDs["c1"], azureAccount, azureAudience},
	} {
		t.Run(test.sdk+" for "+test.party, func(t *testing.T) {
			program := []string{python(t, test.library), filepath.Join("testdata", "python", "application.py"), test.sdk, test.url}
			sdkScript{program, test.party}.check(t, u, test.identity, test.account, test.audience)
		})
	}
}

// library is what an application needs of Python.
type library struct {
	imports  string // the statement that fails without it
	name     string
	packaged bool // by every Debian from 12 on
}

// python returns an interpreter that has the library: the user's own or, for
// Debian's packages, Debian's.
func python(t testing.TB, needed library) string {
	t.Helper()
	var missing []string
	for _, name := range []string{"python3", "/usr/bin/python3"} {
		var stderr strings.Builder
		command := exec.Command(name, "-c", needed.imports+"; import sys; print(sys.executable)")
		command.Stderr = &stderr
		path, err := command.Output()
		if err == nil {
			return strings.TrimSpace(string(path))
		}
		traceback := strings.TrimSpace(stderr.String())
		missing = append(missing, fmt.Sprintf("%s: %v: %s", name, err, traceback[strings.LastIndex(traceback, "\n")+1:]))
	}
	if !needed.packaged {
		t.Skipf("needs Python's %s: %s", needed.name, strings.Join(missing, "; "))
	}
	lacking(t, "Python's "+needed.name, strings.Join(missing, "; "))
	return ""
}
