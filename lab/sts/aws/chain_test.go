package aws

import (
	"context"
	"encoding/xml"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	awssdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials/stscreds"
	sdksts "github.com/aws/aws-sdk-go-v2/service/sts"
)

// chain asks for the role chained with the credentials of another session.
func (a *account) chain(t testing.TB, credentials answer, changes url.Values) answer {
	t.Helper()
	form := url.Values{"Action": {"AssumeRole"}, "Version": {version}, "RoleArn": {RoleARN(testAccount, "chained")}, "RoleSessionName": {"second"}}
	for name, values := range changes {
		form[name] = values
	}
	got := a.do(t, a.signed(t, credentials, func(c *call) { c.setForm(t, form) }))
	// Credentials are under another name than those for web identities.
	if err := xml.Unmarshal([]byte(strings.ReplaceAll(got.body, "AssumeRoleResult", "AssumeRoleWithWebIdentityResult")), &got); err != nil {
		t.Fatal(err)
	}
	return got
}

func TestRoleChaining(t *testing.T) {
	a := newAccount(t)
	denied := func(role, action string) string {
		return "User: arn:aws:sts::123456789012:assumed-role/" + role + "/session is not authorized to perform: " + action + " on resource: "
	}
	const chained = "arn:aws:iam::123456789012:role/chained"
	tagged := url.Values{"RoleArn": {RoleARN(testAccount, "tagged")}}
	for _, test := range []struct {
		name    string
		claims  map[string]any // of the first session's token
		first   url.Values     // changes to the first request
		second  url.Values
		status  int
		code    string
		message string
	}{
		{"control", nil, nil, nil, 200, "", ""},
		{"an hour", nil, nil, url.Values{"DurationSeconds": {"3600"}}, 200, "", ""},
		{"more than an hour", nil, nil, url.Values{"DurationSeconds": {"3601"}}, 400, "ValidationError", "The requested DurationSeconds exceeds the 1 hour session limit for roles assumed by role chaining"},
		{"short", nil, nil, url.Values{"DurationSeconds": {"899"}}, 400, "ValidationError", "1 validation error detected: Value '899' at 'durationSeconds' failed to satisfy constraint: Member must have value greater than or equal to 900"},
		{"role that does not trust", nil, nil, url.Values{"RoleArn": {testRole}}, 403, "AccessDenied", denied("demo", "sts:AssumeRole") + testRole},
		{"unknown role", nil, nil, url.Values{"RoleArn": {chained + "2"}}, 403, "AccessDenied", denied("demo", "sts:AssumeRole") + chained + "2"},
		{"tags that are not transitive", nestedTags(map[string]any{"Team": "blue"}), tagged, nil, 200, "", ""},
		{"transitive tags", nestedTags(map[string]any{"Team": "blue"}, "Team"), tagged, nil, 200, "", ""},
		{"session policy without the action", nil, url.Values{"Policy": {`{"Statement":{"Effect":"Allow","Action":"s3:*","Resource":"*"}}`}}, nil, 403, "AccessDenied", denied("demo", "sts:AssumeRole") + chained},
		{"session policy with the action", nil, url.Values{"Policy": {`{"Statement":{"Effect":"Allow","Action":"sts:AssumeRole","Resource":"*"}}`}}, nil, 200, "", ""},
		{"tag in the request", nil, nil, url.Values{"Tags.member.1.Key": {"Team"}}, 400, "ValidationError", "The parameter Tags is not evaluated here"},
	} {
		t.Run(test.name, func(t *testing.T) {
			form := assumeForm(a.token(t, test.claims))
			for name, values := range test.first {
				form[name] = values
			}
			got := a.chain(t, a.post(t, form), test.second)
			if test.status != http.StatusOK {
				wantError(t, got, test.status, test.code, test.message)
			} else if got.status != http.StatusOK || !strings.Contains(got.body, "<Arn>arn:aws:sts::123456789012:assumed-role/chained/second</Arn>") {
				t.Errorf("got %d %s", got.status, got.body)
			}
		})
	}
	if got := a.do(t, a.signed(t, a.assume(t, nil), func(c *call) {
		c.setForm(t, url.Values{"Action": {"AssumeRole"}, "Version": {version}, "RoleArn": {chained}, "RoleSessionName": {"second"}})
		c.credentials.SecretAccessKey = "x"
	})); got.Code != "SignatureDoesNotMatch" {
		t.Errorf("wrong secret: %d %s", got.status, got.body)
	}
}

// TestTransitiveTags looks at what of the first session the second may do.
func TestTransitiveTags(t *testing.T) {
	a := newAccount(t)
	for _, test := range []struct {
		transitive []string
		status     int
	}{{[]string{"Team"}, 200}, {nil, 403}} {
		claims := nestedTags(map[string]any{"Team": "blue"}, test.transitive...)
		claims[claimNamespace+"source_identity"] = "alice"
		form := assumeForm(a.token(t, claims))
		form.Set("RoleArn", RoleARN(testAccount, "tagged"))
		second := a.chain(t, a.post(t, form), nil)
		if !strings.Contains(second.body, "<SourceIdentity>alice</SourceIdentity>") {
			t.Errorf("no source identity in %s", second.body)
		}
		if got := a.getObject(t, second, nil, nil); got.status != test.status {
			t.Errorf("transitive %q: %d %s", test.transitive, got.status, got.body)
		}
	}
}

// TestSDKChains uses the SDK's own provider of chained credentials.
func TestSDKChains(t *testing.T) {
	a := newAccount(t)
	client, _ := a.counted(t)
	first := stscreds.NewWebIdentityRoleProvider(client, testRole, tokenFrom(a.token(t, nil)))
	signed := sdksts.New(client.Options(), func(o *sdksts.Options) { o.Credentials = first })
	second := stscreds.NewAssumeRoleProvider(signed, RoleARN(testAccount, "chained"), func(o *stscreds.AssumeRoleOptions) { o.RoleSessionName = "second" })
	identity, err := sdksts.New(client.Options(), func(o *sdksts.Options) {
		o.Credentials = awssdk.CredentialsProviderFunc(func(ctx context.Context) (awssdk.Credentials, error) { return second.Retrieve(ctx) })
	}).GetCallerIdentity(t.Context(), nil)
	if err != nil || awssdk.ToString(identity.Arn) != "arn:aws:sts::123456789012:assumed-role/chained/second" {
		t.Errorf("%+v, %v", identity, err)
	}
	a.Clock.Advance(time.Hour)
	if _, err := second.Retrieve(t.Context()); err == nil {
		t.Error("the first session is over, and a second was had")
	}
}
