package aws

import (
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/oidclab/oidclab/lab/sts/internal/ststest"
)

// TestSessionPolicies looks at what a session may still do of what its role may.
func TestSessionPolicies(t *testing.T) {
	a := newAccount(t)
	const user = "User: arn:aws:sts::123456789012:assumed-role/demo/session is not authorized to perform: s3:GetObject on resource: "
	policy := func(statement string) url.Values {
		return url.Values{"Policy": {`{"Version":"2012-10-17","Statement":` + statement + `}`}}
	}
	arn := func(name string) url.Values {
		return url.Values{"PolicyArns.member.1.arn": {"arn:aws:iam::aws:policy/" + name}}
	}
	both := policy(`{"Effect":"Allow","Action":"s3:PutObject","Resource":"*"}`)
	maps.Copy(both, arn("AmazonS3ReadOnlyAccess"))
	for _, test := range []struct {
		name    string
		session url.Values
		path    string
		status  int
		message string
	}{
		{"control without one", nil, "/demo/greeting", 200, ""},
		{"of everything", policy(`{"Effect":"Allow","Action":"*","Resource":"*"}`), "/demo/greeting", 200, ""},
		{"in another case", policy(`{"Effect":"Allow","Action":"S3:getobject","Resource":"arn:aws:s3:::demo/greet?ng"}`), "/demo/greeting", 200, ""},
		{"managed", arn("AmazonS3ReadOnlyAccess"), "/demo/greeting", 200, ""},
		{"one of two is enough", both, "/demo/greeting", 200, ""},
		{"of another action", policy(`{"Effect":"Allow","Action":"s3:PutObject","Resource":"*"}`), "/demo/greeting", 403, user + `"arn:aws:s3:::demo/greeting" because no session policy allows the s3:GetObject action`},
		{"of another object", policy(`{"Effect":"Allow","Action":"s3:*","Resource":"arn:aws:s3:::demo/greet"}`), "/demo/greeting", 403, user + `"arn:aws:s3:::demo/greeting" because no session policy allows the s3:GetObject action`},
		{"deny", policy(`[{"Effect":"Allow","Action":"*","Resource":"*"},{"Effect":"Deny","Action":"s3:Get*","Resource":"*"}]`), "/demo/greeting", 403, user + `"arn:aws:s3:::demo/greeting" with an explicit deny in a session policy`},
		{"managed deny", arn("AWSDenyAll"), "/demo/greeting", 403, user + `"arn:aws:s3:::demo/greeting" with an explicit deny in a session policy`},
		{"no more than the role", arn("AdministratorAccess"), "/demo/secret", 403, user + `"arn:aws:s3:::demo/secret" with an explicit deny in an identity-based policy`},
		{"about listing, which the role may", policy(`{"Effect":"Allow","Action":"s3:GetObject","Resource":"*"}`), "/demo/nothing", 403,
			`User: arn:aws:sts::123456789012:assumed-role/demo/session is not authorized to perform: s3:ListBucket on resource: "arn:aws:s3:::demo" because no session policy allows the s3:ListBucket action`},
	} {
		t.Run(test.name, func(t *testing.T) {
			got := a.getObject(t, a.assume(t, test.session), func(c *call) { c.request.URL.Path = test.path }, nil)
			if got.status != test.status || got.Message != test.message {
				t.Errorf("got %d %s\nwant %d %s", got.status, got.Message, test.status, test.message)
			}
		})
	}
	// Who somebody is may be asked whatever the policies say.
	if got := a.whoAmI(t, a.assume(t, arn("AWSDenyAll")), nil); got.status != http.StatusOK {
		t.Errorf("GetCallerIdentity: %d %s", got.status, got.body)
	}
}

func TestPolicyRefused(t *testing.T) {
	const good = `{"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": ["s3:GetObject"], "Resource": "arn:aws:s3:::demo/*", "Condition": {"StringLike": {"aws:PrincipalTag/Team": "b*"}}}]}`
	if _, err := parsePermissions([]byte(good)); err != nil {
		t.Fatalf("control: %v", err)
	}
	for name, test := range map[string]struct{ old, new, want string }{
		"version":         {"2012", "2013", "valid version"},
		"principal":       {`"Effect"`, `"Principal": "*", "Effect"`, `unknown field "Principal"`},
		"NotAction":       {`"Action"`, `"NotAction"`, `unknown field "NotAction"`},
		"NotResource":     {`"Resource"`, `"NotResource"`, `unknown field "NotResource"`},
		"effect":          {`"Allow"`, `"allow"`, "invalid effect"},
		"no action":       {`["s3:GetObject"]`, `[]`, "missing required field Action"},
		"action":          {`"s3:GetObject"`, `"GetObject"`, "of the form SERVICE:NAME"},
		"no resource":     {`"Resource": "arn:aws:s3:::demo/*",`, ``, "missing required field Resource"},
		"resource":        {`"arn:aws:s3:::demo/*"`, `"demo"`, "an ARN"},
		"policy variable": {`demo/*`, `${aws:PrincipalTag/Team}/*`, "policy variables"},
		"variable value":  {`"b*"`, `"${aws:username}"`, "policy variables"},
		"operator":        {"StringLike", "StringNotLike", "is not evaluated here"},
		"condition key":   {"aws:PrincipalTag/Team", "aws:SourceIp", "is not evaluated here"},
		"no values":       {`"b*"`, `[]`, "with values"},
	} {
		document := strings.Replace(good, test.old, test.new, 1)
		if document == good {
			t.Errorf("%s: the test changes nothing", name)
		}
		if _, err := parsePermissions([]byte(document)); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: error %v; want one with %q", name, err, test.want)
		}
	}
}

const tagsClaim = "https://aws.amazon.com/tags"

func nestedTags(tags map[string]any, transitive ...string) map[string]any {
	return map[string]any{tagsClaim: map[string]any{"principal_tags": tags, "transitive_tag_keys": transitive}}
}

// TestSessionTags looks at tokens whose issuer says more about the session.
func TestSessionTags(t *testing.T) {
	a := newAccount(t)
	many := func(n int) map[string]any {
		tags := map[string]any{}
		for i := range n {
			tags[fmt.Sprint("key", i)] = []string{"value"}
		}
		return tags
	}
	const (
		tagged   = "arn:aws:iam::123456789012:role/tagged"
		untagged = "because no identity-based policy allows"
	)
	for _, test := range []struct {
		name   string
		claims map[string]any
		role   string
		status int
		want   string // in the error, or in the answer of S3
	}{
		{"control without tags", nil, tagged, 200, untagged},
		{"nested", nestedTags(map[string]any{"Team": []string{"blue"}}, "Team"), tagged, 200, "hello"},
		{"flat", map[string]any{tagsClaim + "/principal_tags/Team": "green", tagsClaim + "/transitive_tag_keys": []string{"Team"}}, tagged, 200, "hello"},
		{"key in another case", nestedTags(map[string]any{"team": []string{"blue"}}), tagged, 200, "hello"},
		{"another value", nestedTags(map[string]any{"Team": []string{"red"}}), tagged, 200, untagged},
		{"fifty", nestedTags(many(50)), tagged, 200, untagged},
		{"role that does not allow tags", nestedTags(map[string]any{"Team": []string{"blue"}}), testRole, 403, "Not authorized to perform sts:TagSession"},
		{"source identity", map[string]any{claimNamespace + "source_identity": "alice"}, tagged, 200, untagged},
		{"role that does not allow a source identity", map[string]any{claimNamespace + "source_identity": "alice"}, testRole, 403, "Not authorized to perform sts:SetSourceIdentity"},
		{"source identity with a blank", map[string]any{claimNamespace + "source_identity": "a b"}, tagged, 400, couldNotValidate},
		{"role and an action", nil, tagged + " " + tagAction, 403, "Not authorized to perform sts:AssumeRoleWithWebIdentity"},
		{"an action and role", nil, tagAction + " " + tagged, 400, "Request ARN is invalid"},
		{"no object", map[string]any{tagsClaim: "Team"}, tagged, 400, couldNotValidate},
		{"tags that are no object", map[string]any{tagsClaim: map[string]any{"principal_tags": "Team"}}, tagged, 400, couldNotValidate},
		{"two values", nestedTags(map[string]any{"Team": []string{"blue", "red"}}), tagged, 400, couldNotValidate},
		{"value that is no text", nestedTags(map[string]any{"Team": []any{1}}), tagged, 400, couldNotValidate},
		{"transitive key without a tag", nestedTags(map[string]any{"Team": []string{"blue"}}, "Project"), tagged, 400, couldNotValidate},
		{"fifty-one", nestedTags(many(51)), tagged, 400, couldNotValidate},
		{"same key in two cases", nestedTags(map[string]any{"Team": []string{"blue"}, "team": []string{"blue"}}), tagged, 400, couldNotValidate},
		{"key of AWS", nestedTags(map[string]any{"aws:x": []string{"blue"}}), tagged, 400, couldNotValidate},
		{"long key", nestedTags(map[string]any{strings.Repeat("k", 129): []string{"blue"}}), tagged, 400, couldNotValidate},
		{"long value", nestedTags(map[string]any{"Team": []string{strings.Repeat("v", 257)}}), tagged, 400, couldNotValidate},
		{"control character", nestedTags(map[string]any{"Team": []string{"a\nb"}}), tagged, 400, couldNotValidate},
	} {
		t.Run(test.name, func(t *testing.T) {
			form := assumeForm(a.token(t, test.claims))
			form.Set("RoleArn", test.role)
			got := a.post(t, form)
			if got.status != test.status || got.status != http.StatusOK && got.Message != test.want {
				t.Fatalf("got %d %s, want %d %s", got.status, got.body, test.status, test.want)
			}
			if got.status == http.StatusOK {
				if read := a.getObject(t, got, nil, nil); !strings.Contains(read.body, test.want) {
					t.Errorf("S3 says %s; want %q", read.body, test.want)
				}
			}
		})
	}
	form := assumeForm(a.token(t, map[string]any{claimNamespace + "source_identity": "alice"}))
	form.Set("RoleArn", tagged)
	if got := a.post(t, form); !strings.Contains(got.body, "<SourceIdentity>alice</SourceIdentity>") {
		t.Errorf("no source identity in %s", got.body)
	}
}

func TestPackedPolicy(t *testing.T) {
	a := newAccount(t)
	random := rand.New(rand.NewPCG(1, 2))
	tags := map[string]any{}
	for i := range 20 {
		var value strings.Builder
		for range 200 {
			value.WriteByte("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789+/"[random.IntN(64)])
		}
		tags[fmt.Sprint("key", i)] = []string{value.String()}
	}
	form := assumeForm(a.token(t, nestedTags(tags)))
	form.Set("RoleArn", "arn:aws:iam::123456789012:role/tagged")
	got := a.post(t, form)
	if got.status != 400 || got.Code != "PackedPolicyTooLarge" || !strings.HasPrefix(got.Message, "Packed policy consumes 1") || !strings.HasSuffix(got.Message, "% of allotted space, please use smaller policy.") {
		t.Errorf("got %d %s %s", got.status, got.Code, got.Message)
	}
	small := a.assume(t, url.Values{"Policy": {`{"Version":"2012-10-17","Statement":{"Effect":"Allow","Action":"*","Resource":"*"}}`}})
	if !strings.Contains(small.body, "<PackedPolicySize>5</PackedPolicySize>") {
		t.Errorf("control: %s", small.body)
	}
	if none := a.assume(t, nil); strings.Contains(none.body, "PackedPolicySize") {
		t.Errorf("without a policy: %s", none.body)
	}
}

// TestDisabledRegion comes for the vendor's host names, as under a proxy.
func TestDisabledRegion(t *testing.T) {
	a := newAccount(t)
	for _, test := range []struct {
		host   string
		status int
	}{{"sts.eu-central-1.amazonaws.com", 200}, {"sts.amazonaws.com", 200}, {"sts.ap-east-1.amazonaws.com", 403}, {"STS.AP-EAST-1.amazonaws.com:443", 403}} {
		request := ststest.Request(t, http.MethodPost, a.url, assumeForm(a.token(t, nil)).Encode())
		request.Host = test.host
		got := a.do(t, request)
		if got.status != test.status {
			t.Errorf("%s: %d %s", test.host, got.status, got.body)
		}
		if test.status != 200 {
			wantError(t, got, 403, "RegionDisabledException", "STS is not activated in this region for account:123456789012. Your account administrator can activate STS in this region using the IAM Console.")
		}
	}
	// GetCallerIdentity is answered there too (aws-sdk-go-v2#2846).
	credentials := a.assume(t, nil)
	if got := a.whoAmI(t, credentials, func(c *call) { c.request.Host = "sts.ap-east-1.amazonaws.com" }); got.status != http.StatusOK {
		t.Errorf("GetCallerIdentity: %d %s", got.status, got.body)
	}
}

// TestShortTokenLongSession: a session outlives the token it was made from.
func TestShortTokenLongSession(t *testing.T) {
	a := newAccount(t)
	form := assumeForm(a.token(t, map[string]any{"exp": a.Clock.Now().Add(time.Minute).Unix()}))
	form.Set("DurationSeconds", "7200")
	got := a.post(t, form)
	if want := a.Clock.Now().Add(2 * time.Hour).UTC().Format(time.RFC3339); got.Expiration != want {
		t.Fatalf("expires %q, want %s", got.Expiration, want)
	}
	a.Clock.Advance(2*time.Hour - time.Second)
	if got := a.whoAmI(t, got, nil); got.status != http.StatusOK {
		t.Errorf("%d %s", got.status, got.body)
	}
}

func FuzzSessionClaims(f *testing.F) {
	f.Add([]byte(`{"https://aws.amazon.com/tags":{"principal_tags":{"Team":["blue"]},"transitive_tag_keys":["Team"]}}`))
	f.Add([]byte(`{"https://aws.amazon.com/tags":null,"https://aws.amazon.com/tags/principal_tags/":[]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		var claims map[string]any
		if json.Unmarshal(data, &claims) != nil {
			return
		}
		got, e := readSessionClaims(claims)
		if e != nil {
			return
		}
		if len(got.tags) > maxTags || len(lowered(got.tags)) != len(got.tags) {
			t.Errorf("accepted tags %q", got.tags)
		}
		for _, key := range got.transitive {
			if _, ok := got.tags[key]; !ok {
				t.Errorf("transitive key %q has no tag", key)
			}
		}
	})
}
