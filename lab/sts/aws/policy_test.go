package aws

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/oidclab/oidclab/lab/sts"
)

const (
	testIssuer   = "https://issuer.example:8443/c/a"
	testProvider = "arn:aws:iam::123456789012:oidc-provider/issuer.example:8443/c/a"
	goodPolicy   = `{
		"Version": "2012-10-17",
		"Statement": [{
			"Effect": "Allow",
			"Principal": {"Federated": "arn:aws:iam::123456789012:oidc-provider/issuer.example:8443/c/a"},
			"Action": "sts:AssumeRoleWithWebIdentity",
			"Condition": {
				"StringEquals": {"issuer.example:8443/c/a:aud": "sts.amazonaws.com"},
				"StringLike": {"issuer.example:8443/c/a:sub": ["system:serviceaccount:team-*:app", "system:serviceaccount:demo:?"]}
			}
		}]
	}`
)

func providers() map[string]string { return map[string]string{testProvider: testIssuer} }

func TestTrustPolicy(t *testing.T) {
	want := []sts.Statement{{Issuer: testIssuer, Conditions: []sts.Condition{
		{Operator: sts.StringLike, Claim: "sub", Values: []string{"system:serviceaccount:team-*:app", "system:serviceaccount:demo:?"}},
		{Operator: sts.StringEquals, Claim: "aud", Values: []string{"sts.amazonaws.com"}},
	}}}
	for name, change := range map[string]*strings.Replacer{
		"as it is":               strings.NewReplacer(),
		"one statement":          strings.NewReplacer("[{", "{", "}]", "}"),
		"actions in an array":    strings.NewReplacer(`"sts:AssumeRoleWithWebIdentity"`, `["sts:AssumeRoleWithWebIdentity", "sts:TagSession"]`),
		"id and statement id":    strings.NewReplacer(`"Version"`, `"Id": "x", "Version"`, `"Effect"`, `"Sid": "y", "Effect"`),
		"white space":            strings.NewReplacer("[{", strings.Repeat(" ", 4096)+"[{"),
		"no version":             strings.NewReplacer(`"Version": "2012-10-17",`, ""),
		"principal in an array":  strings.NewReplacer(`"arn:aws:iam::123456789012:oidc-provider/issuer.example:8443/c/a"`, `["arn:aws:iam::123456789012:oidc-provider/issuer.example:8443/c/a"]`),
		"array with one element": strings.NewReplacer(`"sts.amazonaws.com"`, `["sts.amazonaws.com"]`),
	} {
		t.Run(name, func(t *testing.T) {
			got, err := parseTrustPolicy([]byte(change.Replace(goodPolicy)), providers())
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want, got.webIdentities[webIdentityAction]); diff != "" {
				t.Errorf("statements (-want +got):\n%s", diff)
			}
		})
	}
}

// TestTrustPolicyOperators takes those of the core.
func TestTrustPolicyOperators(t *testing.T) {
	for _, operator := range []sts.Operator{"StringNotEquals", "StringLikeIfExists", "ForAnyValue:StringEquals", "ForAllValues:StringNotLike"} {
		got, err := parseTrustPolicy([]byte(strings.Replace(goodPolicy, "StringEquals", string(operator), 1)), providers())
		if err != nil || got.webIdentities[webIdentityAction][0].Conditions[1].Operator != operator {
			t.Errorf("%s: %v, %v", operator, got, err)
		}
	}
}

func TestTrustPolicyRefused(t *testing.T) {
	if _, err := parseTrustPolicy([]byte(goodPolicy), providers()); err != nil {
		t.Fatalf("control: %v", err)
	}
	for name, test := range map[string]struct{ old, new, want string }{
		"not JSON":                     {goodPolicy, `{`, "syntax errors in policy"},
		"empty":                        {goodPolicy, ``, "syntax errors in policy"},
		"null":                         {goodPolicy, `null`, "missing required field Statement"},
		"data after it":                {goodPolicy, goodPolicy + `{}`, "syntax errors in policy"},
		"too long":                     {`"Version"`, `"Id": "` + strings.Repeat("x", 4096) + `", "Version"`, "the limit is 4096"},
		"unknown version":              {"2012-10-17", "2013-10-17", "valid version string"},
		"unknown element":              {`"Effect"`, `"Resource": "*", "Effect"`, `unknown field "Resource"`},
		"unknown top element":          {`"Version"`, `"version": "", "Version"`, `unknown field "version"`},
		"duplicate element":            {`"Effect"`, `"Effect": "Deny", "Effect"`, `duplicate field "Effect"`},
		"duplicate condition operator": {`"StringEquals"`, `"StringEquals": {}, "StringEquals"`, `duplicate field`},
		"duplicate condition key":      {`"issuer.example:8443/c/a:aud"`, `"issuer.example:8443/c/a:aud": "x", "issuer.example:8443/c/a:aud"`, `duplicate field`},
		"NotPrincipal":                 {`"Principal"`, `"NotPrincipal"`, `unknown field "NotPrincipal"`},
		"NotAction":                    {`"Action"`, `"NotAction"`, `unknown field "NotAction"`},
		"no statement":                 {goodPolicy, `{"Statement": []}`, "missing required field Statement"},
		"no effect":                    {`"Effect": "Allow",`, ``, "missing required field Effect"},
		"effect Deny":                  {`"Allow"`, `"Deny"`, "effect Deny is not evaluated"},
		"effect in another case":       {`"Allow"`, `"allow"`, "invalid effect"},
		"no action":                    {`"Action": "sts:AssumeRoleWithWebIdentity",`, ``, "missing required field Action"},
		"empty actions":                {`"sts:AssumeRoleWithWebIdentity"`, `[]`, "missing required field Action"},
		"wildcard action":              {`"sts:AssumeRoleWithWebIdentity"`, `"sts:*"`, "wildcards are not evaluated"},
		"other action":                 {`"sts:AssumeRoleWithWebIdentity"`, `"sts:AssumeRole"`, "does not apply to web identities"},
		"web identity of a role":       {`"Federated": "arn:aws:iam::123456789012:oidc-provider/issuer.example:8443/c/a"`, `"AWS": "arn:aws:iam::123456789012:role/demo"`, "does not apply to sessions of roles"},
		"tags alone":                   {`"sts:AssumeRoleWithWebIdentity"`, `"sts:TagSession"`, "does not allow sts:AssumeRoleWithWebIdentity"},
		"action of a wrong type":       {`"sts:AssumeRoleWithWebIdentity"`, `[null]`, "neither a string nor an array of strings"},
		"no principal":                 {`"Principal": {"Federated": "arn:aws:iam::123456789012:oidc-provider/issuer.example:8443/c/a"},`, ``, "missing required field Principal"},
		"wildcard principal":           {`{"Federated": "arn:aws:iam::123456789012:oidc-provider/issuer.example:8443/c/a"}`, `"*"`, "a wildcard would trust everybody"},
		"wildcard provider":            {`"arn:aws:iam::123456789012:oidc-provider/issuer.example:8443/c/a"`, `"*"`, "has a wildcard"},
		"AWS and federated principal":  {`"Federated"`, `"AWS": "arn:aws:iam::123456789012:role/demo", "Federated"`, `unknown field "Federated"`},
		"two providers":                {`"arn:aws:iam::123456789012:oidc-provider/issuer.example:8443/c/a"`, `["a", "b"]`, "2 federated providers"},
		"provider of another account":  {"123456789012", "210987654321", "has no OIDC provider"},
		"provider that is not there":   {"oidc-provider/issuer.example:8443/c/a", "oidc-provider/issuer.example:8443/c/b", "has no OIDC provider"},
		"provider with a scheme":       {"oidc-provider/issuer", "oidc-provider/https://issuer", "has no OIDC provider"},
		"unknown operator":             {"StringEquals", "NumericEquals", `condition operator "NumericEquals" is not supported`},
		"operator in another case":     {"StringEquals", "stringEquals", `condition operator "stringEquals" is not supported`},
		"unknown set operator":         {"StringEquals", "ForSomeValue:StringEquals", "only ForAnyValue: and ForAllValues:"},
		"key of another issuer":        {"c/a:aud", "c/b:aud", "can never match"},
		"key with a scheme":            {`{"issuer.example:8443/c/a:aud"`, `{"https://issuer.example:8443/c/a:aud"`, "can never match"},
		"key of another claim":         {"c/a:aud", "c/a:email", "can never match"},
		"no values":                    {`"sts.amazonaws.com"`, `[]`, "has no values"},
		"value of a wrong type":        {`"sts.amazonaws.com"`, `1`, "neither a string nor an array of strings"},
		"policy variable":              {`"sts.amazonaws.com"`, `"${aws:username}"`, "policy variables"},
	} {
		t.Run(name, func(t *testing.T) {
			document := strings.Replace(goodPolicy, test.old, test.new, 1)
			if document == goodPolicy {
				t.Fatal("the test changes nothing")
			}
			_, err := parseTrustPolicy([]byte(document), providers())
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("error %v; want one with %q", err, test.want)
			}
		})
	}
}

func FuzzTrustPolicy(f *testing.F) {
	f.Add([]byte(goodPolicy))
	f.Add([]byte(`{"Statement":{"Effect":"Allow","Principal":{"Federated":["a"]},"Action":["sts:AssumeRoleWithWebIdentity"]}}`))
	f.Add([]byte(`{"Version":"2008-10-17","Statement":[null]}`))
	f.Fuzz(func(t *testing.T, document []byte) {
		trust, err := parseTrustPolicy(document, providers())
		if err != nil {
			return
		}
		if !json.Valid(document) || len(trust.webIdentities)+len(trust.roles) == 0 {
			t.Fatalf("accepted %q as %v", document, trust)
		}
		for action, statements := range trust.webIdentities {
			for _, s := range statements {
				if s.Issuer != testIssuer {
					t.Fatalf("trusts issuer %q with %s", s.Issuer, action)
				}
			}
		}
	})
}
