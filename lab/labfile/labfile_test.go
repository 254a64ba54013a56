package labfile_test

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/oidclab/oidclab/lab/labfile"
	"github.com/oidclab/oidclab/lab/problem"
	"github.com/oidclab/oidclab/lab/sts"
)

func TestExample(t *testing.T) {
	f, err := labfile.Read(strings.NewReader(labfile.Example), "lab.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if f.Engine != "auto" || f.Image != "kindest/node:v1.37.0" || f.Clusters != 2 || f.IssuerStyle != "oke" || f.Signer != "external" || f.Port != 8443 || f.Vault != "none" || len(f.AWS.Roles) != 1 || len(f.Generic.Targets) != 1 {
		t.Errorf("read as %+v", f)
	}
	role := f.AWS.Roles[0]
	if role.Name != "readers" || role.MaxSessionDuration != 2*time.Hour || !json.Valid(role.TrustPolicy) || !strings.Contains(string(role.TrustPolicy), `"${issuer:c1}:sub":"system:serviceaccount:demo:*"`) {
		t.Errorf("role %+v: %s", role, role.TrustPolicy)
	}
	if want := `{"Statement":[{"Action":"s3:GetObject","Effect":"Allow","Resource":"arn:aws:s3:::demo/*"}],"Version":"2012-10-17"}`; string(role.Policy) != want {
		t.Errorf("policy %s, want %s", role.Policy, want)
	}
	trust := f.Generic.Targets[0].Trust[0]
	if trust.Cluster != "c2" || len(trust.Conditions) != 1 || trust.Conditions[0].Operator != sts.StringEquals {
		t.Errorf("trust %+v", trust)
	}
}

func TestWhatIsWrongIsNamed(t *testing.T) {
	const head = "apiVersion: oidclab.dev/v1alpha1\nkind: Lab\n"
	for _, test := range []struct{ name, text, want string }{
		{"unknown key", head + "spec:\n  cluster: 2\n", "line 4: field cluster not found"},
		{"duplicate key", head + "spec:\n  port: 1\n  port: 2\n", `line 5: mapping key "port" already defined at line 4`},
		{"two unknown keys", head + "spec:\n  cluster: 2\n  color: red\n", "line 4: field cluster not found; line 5: field color not found"},
		{"wrong type", head + "spec:\n  clusters: two\n", "line 4: cannot unmarshal"},
		{"bad duration", head + "spec:\n  aws:\n    roles:\n      - {name: x, maxSessionDuration: soon}\n", "line 6"},
		{"unknown key of a role", head + "spec:\n  aws:\n    roles:\n      - {name: x, permissions: {}}\n", "line 6: field permissions not found"},
		{"policy that is there twice", head + "spec:\n  aws:\n    roles:\n      - name: x\n        policy: {}\n        policy: {}\n", `line 8: mapping key "policy" already defined at line 7`},
		{"policy that is not JSON's", head + "spec:\n  aws:\n    roles:\n      - {name: x, policy: {1: y}}\n", `the policy of role "x"`},
		{"another version", "apiVersion: oidclab.dev/v9\nkind: Lab\n", `"oidclab.dev/v9"`},
		{"another kind", "apiVersion: oidclab.dev/v1alpha1\nkind: Cluster\n", `"Cluster"`},
		{"empty", "", "it is empty"},
		{"two documents", head + "---\n" + head, "more than one document"},
		{"not YAML", "\t{", "yaml:"},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, err := labfile.Read(strings.NewReader(test.text), "my.yaml")
			var p *problem.Problem
			if !errors.As(err, &p) || p.Kind != problem.BadConfig || !strings.Contains(p.What, test.want) || !strings.HasPrefix(p.What, "my.yaml: ") || strings.Contains(p.What, "struct") {
				t.Errorf("got %v", err)
			}
		})
	}
	if _, err := labfile.Read(strings.NewReader(head), "my.yaml"); err != nil {
		t.Errorf("control: %v", err)
	}
}

// TestRoleWithoutPolicy wants to see that a role has none of its own, not one
// that says null.
func TestRoleWithoutPolicy(t *testing.T) {
	f, err := labfile.Read(strings.NewReader("apiVersion: oidclab.dev/v1alpha1\nkind: Lab\nspec:\n  aws:\n    roles:\n      - {name: x, trustPolicy: {}}\n"), "my.yaml")
	if err != nil || len(f.AWS.Roles) != 1 || f.AWS.Roles[0].Policy != nil || string(f.AWS.Roles[0].TrustPolicy) != "{}" {
		t.Errorf("%v %+v", err, f.AWS.Roles)
	}
}
