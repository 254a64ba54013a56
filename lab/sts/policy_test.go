package sts

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/oidclab/oidclab/lab/clock"
)

func TestStringLike(t *testing.T) {
	for _, tt := range []struct {
		pattern, s string
		want       bool
	}{
		{"", "", true},
		{"", "a", false},
		{"a", "a", true},
		{"a", "b", false},
		{"a", "ab", false},
		{"b", "ab", false},
		{"A", "a", false},
		{"*", "", true},
		{"*", "anything", true},
		{"**", "anything", true},
		{"?", "", false},
		{"?", "a", true},
		{"?", "ä", true},
		{"?", "ab", false},
		{"a*", "abc", true},
		{"a*", "ba", false},
		{"*c", "abc", true},
		{"*c", "abcd", false},
		{"a*c", "abbbc", true},
		{"a*c", "ac", true},
		{"a*b*c", "a-b-b-c", true},
		{"a*b*c", "a-c-b", false},
		{"*a?", "aaab", true},
		{"*a?b", "ab", false},
		{"*a?b", "aaxb", true},
		{"a.c", "abc", false},
		{"a|b", "a", false},
		{"repo:a|repo:b", "repo:a-evil", false},
		{"^a$", "a", false},
		{"[a]", "a", false},
		{"a\nb*", "a\nbc", true},
		{"system:serviceaccount:shop:*", "system:serviceaccount:shop:cart", true},
		{"system:serviceaccount:shop:*", "system:serviceaccount:shop-evil:cart", false},
		{"system:serviceaccount:shop:*", "xsystem:serviceaccount:shop:cart", false},
		{"system:serviceaccount:*:cart", "system:serviceaccount:shop:cart:x", false},
	} {
		if got := stringLike(tt.pattern, tt.s); got != tt.want {
			t.Errorf("%q matches %q: %v, want %v", tt.pattern, tt.s, got, tt.want)
		}
	}
}

// BenchmarkStringLikeWorst is the pattern that takes a backtracking matcher years.
func BenchmarkStringLikeWorst(b *testing.B) {
	pattern, s := strings.Repeat("a*", 500)+"b", strings.Repeat("a", 5_000)
	for b.Loop() {
		if stringLike(pattern, s) {
			b.Fatal("matched")
		}
	}
}

func TestTrust(t *testing.T) {
	const other = "https://other.example"
	sub := func(operator Operator, values ...string) Condition { return Condition{operator, "sub", values} }
	claim := func(operator Operator, claim string, values ...string) Condition {
		return Condition{operator, claim, values}
	}
	group := func(f *forged) { with(f.claims, "groups", []any{"blue", 7, "green"}) }
	for _, tt := range []struct {
		name   string
		trust  func(issuer string) []Statement
		check  Check
		reason Reason
		change func(*forged)
	}{
		{name: "equal", trust: one(sub(StringEquals, subject))},
		{name: "any of the values", trust: one(sub(StringEquals, "x", subject))},
		{name: "no pattern in StringEquals", trust: one(sub(StringEquals, "system:*")), check: CheckSubject, reason: SubjectMismatch},
		{name: "like", trust: one(sub(StringLike, "system:serviceaccount:shop:*"))},
		{name: "like, other namespace", trust: one(sub(StringLike, "system:serviceaccount:shop2:*")), check: CheckSubject, reason: SubjectMismatch},
		{name: "both subject conditions", trust: one(sub(StringLike, "system:*"), sub(StringLike, "*:cart"))},
		{name: "one of two subject conditions", trust: one(sub(StringLike, "system:*"), sub(StringLike, "*:till")), check: CheckSubject, reason: SubjectMismatch},

		{name: "audience", trust: one(sub(StringEquals, subject), claim(StringEquals, "aud", audience))},
		{name: "audience of another role", trust: one(sub(StringEquals, subject), claim(StringEquals, "aud", "lab-2")), check: CheckConditions, reason: ConditionMismatch},
		{name: "a claim with several values", trust: one(sub(StringEquals, subject), claim(StringEquals, "groups", "green")), change: group},
		{name: "a claim without that value", trust: one(sub(StringEquals, subject), claim(StringEquals, "groups", "red")), change: group, check: CheckConditions, reason: ConditionMismatch},
		{name: "numbers are not texts", trust: one(sub(StringEquals, subject), claim(StringEquals, "groups", "7")), change: group, check: CheckConditions, reason: ConditionMismatch},
		{name: "an absent claim", trust: one(sub(StringEquals, subject), claim(StringLike, "groups", "*")), check: CheckConditions, reason: ConditionMismatch},
		{name: "a claim that is an object", trust: one(sub(StringEquals, subject), claim(StringLike, "kubernetes.io", "*")), check: CheckConditions, reason: ConditionMismatch},

		{name: "the second statement", trust: func(issuer string) []Statement {
			return []Statement{{issuer, []Condition{sub(StringEquals, "x")}}, {issuer, []Condition{sub(StringEquals, subject)}}}
		}},
		{name: "no statement as a whole", trust: func(issuer string) []Statement {
			return []Statement{
				{issuer, []Condition{sub(StringEquals, subject), claim(StringEquals, "aud", "lab-2")}},
				{issuer, []Condition{sub(StringEquals, "x"), claim(StringEquals, "aud", audience)}},
			}
		}, check: CheckConditions, reason: ConditionMismatch},
		{name: "only another issuer", trust: func(string) []Statement { return []Statement{{other, []Condition{sub(StringEquals, subject)}}} },
			check: CheckRole, reason: IssuerNotTrusted},
		{name: "the subject is another issuer's", trust: func(issuer string) []Statement {
			return []Statement{{other, []Condition{sub(StringEquals, subject)}}, {issuer, []Condition{sub(StringEquals, "x")}}}
		}, check: CheckSubject, reason: SubjectMismatch},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := newParty(t, Strict(), func(c *Config) {
				issuer := c.Issuers[0].URL
				c.Issuers = append(c.Issuers, Issuer{URL: other, Audiences: []string{audience}})
				c.Roles = append(c.Roles, Role{"tested", tt.trust(issuer)})
			})
			change := func(f *forged) {
				f.role = "tested"
				if tt.change != nil {
					tt.change(f)
				}
			}
			if tt.reason == "" {
				b.accepts(tt.name, change)
				return
			}
			if r := b.refuses(tt.name, tt.check, tt.reason, change); r.Want == "" || r.Got == "" && tt.change != nil {
				t.Errorf("a refusal without what was wanted and found: %v", r)
			}
			b.accepts("control", nil)
		})
	}
}

// one returns a policy of one statement.
func one(conditions ...Condition) func(string) []Statement {
	return func(issuer string) []Statement { return []Statement{{issuer, conditions}} }
}

// TestAuthorizedPartyIsTheAudienceOfConditions follows AWS IAM: aud means azp, oaud means aud.
func TestAuthorizedPartyIsTheAudienceOfConditions(t *testing.T) {
	role := func(name, claim, value string) func(*Config) {
		return func(c *Config) {
			c.Roles = append(c.Roles, Role{name, []Statement{{c.Issuers[0].URL, []Condition{
				{StringEquals, "sub", []string{subject}}, {StringEquals, claim, []string{value}}}}}})
		}
	}
	b := newParty(t, AWS(), role("aud-azp", "aud", audience), role("aud-aud", "aud", "x"), role("oaud", "oaud", "x"))
	as := func(role string) func(*forged) {
		return func(f *forged) {
			f.role = role
			with(f.claims, "aud", []string{"x", "y"})
			with(f.claims, "azp", audience)
		}
	}
	b.accepts("aud is azp", as("aud-azp"))
	b.refuses("aud is not aud", CheckConditions, ConditionMismatch, as("aud-aud"))
	b.accepts("oaud is aud", as("oaud"))
}

func TestNewRefuses(t *testing.T) {
	const issuer = "https://issuer.example/c/1"
	good := func() Config {
		return Config{
			Party: "test", Profile: Strict(), Client: &http.Client{}, Clock: clock.System{},
			Issuers: []Issuer{{URL: issuer, Audiences: []string{audience}}},
			Roles:   []Role{{roleName, []Statement{{issuer, []Condition{{StringEquals, "sub", []string{subject}}}}}}},
		}
	}
	if _, err := New(good()); err != nil {
		t.Fatal("control: ", err)
	}
	url := func(u string) func(*Config) { return func(c *Config) { c.Issuers[0].URL = u; c.Roles = nil } }
	condition := func(operator Operator, claim string, values ...string) func(*Config) {
		return func(c *Config) { c.Roles[0].Trust[0].Conditions[0] = Condition{operator, claim, values} }
	}
	for name, tt := range map[string]struct {
		change func(*Config)
		says   string
	}{
		"http":                 {url("http://issuer.example"), "https"},
		"scheme in capitals":   {url("HTTPS://issuer.example"), "https"},
		"no scheme":            {url("issuer.example"), "https"},
		"no host":              {url("https:///c/1"), "https"},
		"only a port":          {url("https://:8443"), "https"},
		"query":                {url("https://issuer.example/?a=b"), "query"},
		"empty query":          {url("https://issuer.example/?"), "query"},
		"fragment":             {url("https://issuer.example/#a"), "fragment"},
		"empty fragment":       {url("https://issuer.example/#"), "fragment"},
		"user":                 {url("https://me@issuer.example"), "user"},
		"not a URL":            {url("https://issuer.example/\x7f"), "issuer"},
		"no audience":          {func(c *Config) { c.Issuers[0].Audiences = nil }, "audience"},
		"empty audience":       {func(c *Config) { c.Issuers[0].Audiences = []string{audience, ""} }, "audience"},
		"issuer twice":         {func(c *Config) { c.Issuers = append(c.Issuers, c.Issuers[0]) }, "twice"},
		"uploaded non-JSON":    {func(c *Config) { c.Issuers[0].KeySet = []byte("keys") }, "uploaded key set"},
		"uploaded empty set":   {func(c *Config) { c.Issuers[0].KeySet = []byte(`{"keys":[]}`) }, "no keys"},
		"uploaded weak key":    {func(c *Config) { c.Issuers[0].KeySet = []byte(`{"keys":[{"kty":"oct","kid":"a","k":"AA"}]}`) }, "key a"},
		"no client":            {func(c *Config) { c.Client = nil }, "client"},
		"no clock":             {func(c *Config) { c.Clock = nil }, "clock"},
		"unregistered issuer":  {func(c *Config) { c.Roles[0].Trust[0].Issuer = issuer + "/" }, "not registered"},
		"no trust":             {func(c *Config) { c.Roles[0].Trust = nil }, "statement"},
		"no role name":         {func(c *Config) { c.Roles[0].Name = "" }, "name"},
		"role twice":           {func(c *Config) { c.Roles = append(c.Roles, c.Roles[0]) }, "twice"},
		"no condition":         {func(c *Config) { c.Roles[0].Trust[0].Conditions = nil }, "sub"},
		"no condition on sub":  {condition(StringEquals, "aud", audience), "sub"},
		"any sub":              {condition(StringLike, "sub", "x", "**"), "sub"},
		"no values":            {condition(StringEquals, "sub"), "values"},
		"empty value":          {condition(StringEquals, "sub", subject, ""), "values"},
		"no claim":             {condition(StringEquals, "", subject), "claim"},
		"unsupported operator": {condition("StringMatches", "sub", subject), "operator"},
		"second statement open": {func(c *Config) {
			c.Roles[0].Trust = append(c.Roles[0].Trust, Statement{issuer, nil})
		}, "statement 2"},

		"zero profile":             {func(c *Config) { c.Profile = Profile{} }, "algorithms"},
		"none":                     {func(c *Config) { c.Profile.Algorithms = []string{"RS256", "none"} }, "none"},
		"HS256":                    {func(c *Config) { c.Profile.Algorithms = []string{"HS256"} }, "HS256"},
		"no types":                 {func(c *Config) { c.Profile.Types = nil }, "types"},
		"types, and any":           {func(c *Config) { c.Profile.AnyType = true }, "types"},
		"age without iat":          {func(c *Config) { c.Profile.MaxAge, c.Profile.IgnoreIssuedAt = time.Hour, true }, "MaxAge"},
		"age of an implied life":   {func(c *Config) { c.Profile.MaxAge, c.Profile.ImpliedLife = time.Hour, time.Hour }, "MaxAge"},
		"implied life, iat unread": {func(c *Config) { c.Profile.ImpliedLife, c.Profile.IgnoreIssuedAt = time.Hour, true }, "ImpliedLife"},
		"negative implied life":    {func(c *Config) { c.Profile.ImpliedLife = -time.Second }, "negative"},
		"negative skew of nbf":     {func(c *Config) { c.Profile.NotBeforeSkew = -time.Second }, "negative"},
		"no token limit":           {func(c *Config) { c.Profile.MaxTokenBytes = 0 }, "bound"},
		"no body limit":            {func(c *Config) { c.Profile.Cache.MaxBodyBytes = 0 }, "bound"},
		"no time limit":            {func(c *Config) { c.Profile.Cache.FetchTimeout = 0 }, "bound"},
		"negative skew":            {func(c *Config) { c.Profile.Skew = -time.Second }, "negative"},
		"interval longer than TTL": {func(c *Config) { c.Profile.Cache.MinInterval = time.Hour }, "MinInterval"},
	} {
		cfg := good()
		tt.change(&cfg)
		core, err := New(cfg)
		if err == nil || core != nil || !strings.Contains(err.Error(), tt.says) {
			t.Errorf("%s: error %v, want one that says %q", name, err, tt.says)
		}
	}
}

func TestBuiltInProfiles(t *testing.T) {
	for _, p := range Profiles() {
		got, err := ProfileNamed(p.Name)
		if err != nil || got.Name != p.Name {
			t.Errorf("profile %s: %v %v", p.Name, got.Name, err)
		}
		b := newParty(t, p)
		b.accepts(p.Name, nil)
	}
	if _, err := ProfileNamed("nobody"); err == nil || !strings.Contains(err.Error(), "strict, aws, stackit, gcp") {
		t.Error(err)
	}
}
