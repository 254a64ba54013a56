package gcp

import (
	"encoding/json"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/oidclab/oidclab/lab/sts"
)

// claims of a token as the core hands them on.
func decodedClaims() map[string]any {
	return map[string]any{
		"iss": "https://issuer.example", "sub": testSubject, "aud": []any{"a", "b"},
		"iat": json.Number("1767323045"), "exp": json.Number("1767326645"),
		"kubernetes.io": map[string]any{"namespace": "demo", "serviceaccount": map[string]any{"name": "app"}},
		"huge":          json.Number("1e999"), "admin": true, "nothing": nil,
		"long": strings.Repeat("a", 1500), "short": strings.Repeat("a", 150),
	}
}

func TestMapping(t *testing.T) {
	for expression, want := range map[string]string{
		"assertion.sub":                                                                      testSubject,
		`"cluster-1::" + assertion.sub`:                                                      "cluster-1::" + testSubject,
		"assertion['kubernetes.io']['namespace']":                                            "demo",
		"assertion['kubernetes.io'].serviceaccount.name":                                     "app",
		`assertion.sub.extract("system:serviceaccount:{namespace}:")`:                        "demo",
		`assertion.sub.split(":")[3]`:                                                        "app",
		`assertion.aud.exists(a, a == "b") ? "yes" : "no"`:                                   "yes",
		`has(assertion.email) ? assertion.email : "none"`:                                    "none",
		`assertion.iat == 1767323045 && assertion.exp > assertion.iat ? "number" : "string"`: "number",
		`assertion.nothing == null ? "null" : "?"`:                                           "null",
		`assertion.admin ? "admin" : "user"`:                                                 "admin",
		`assertion.huge == assertion.huge ? "number" : "not a number"`:                       "not a number",
		`string(int(assertion.iat))`:                                                         "1767323045",
	} {
		m, err := newMapping(map[string]string{"google.subject": expression}, "")
		if err != nil {
			t.Errorf("%s: %v", expression, err)
			continue
		}
		got, refusal := m.evaluate(decodedClaims())
		if refusal != nil || got.subject != want {
			t.Errorf("%s: got %+v, %v, want %s", expression, got, refusal, want)
		}
	}
}

func TestMappingRefuses(t *testing.T) {
	groups := func(n int) map[string]string {
		return map[string]string{"google.subject": `"s"`, "google.groups": fmt.Sprintf(`%q.split("")`, strings.Repeat("a", n))}
	}
	for name, test := range map[string]struct {
		mapping map[string]string
		check   sts.Check // empty if accepted
		text    string
	}{
		"control":              {map[string]string{"google.subject": "assertion.sub"}, "", ""},
		"empty subject":        {map[string]string{"google.subject": `assertion.sub.extract("nobody:{x}")`}, sts.CheckSubject, "must not be empty"},
		"subject a boolean":    {map[string]string{"google.subject": "assertion.admin"}, sts.CheckSubject, "'google.subject' must be of type STRING."},
		"subject a list":       {map[string]string{"google.subject": "assertion.aud"}, sts.CheckSubject, "'google.subject' must be of type STRING."},
		"subject's claim lost": {map[string]string{"google.subject": "assertion.email"}, sts.CheckSubject, "could not be evaluated"},
		"groups a string":      {map[string]string{"google.subject": "assertion.sub", "google.groups": "assertion.sub"}, sts.CheckConditions, "STRING_LIST"},
		"groups of numbers":    {map[string]string{"google.subject": "assertion.sub", "google.groups": "[assertion.iat]"}, sts.CheckConditions, "STRING_LIST"},
		"400 groups":           {groups(400), "", ""},
		"401 groups":           {groups(401), sts.CheckConditions, "400 groups"},
		"attribute a list":     {map[string]string{"google.subject": "assertion.sub", "attribute.a": "assertion.aud"}, sts.CheckConditions, "'attribute.a' must be of type STRING."},
		"index out of bounds":  {map[string]string{"google.subject": "assertion.sub", "attribute.a": "assertion.aud[2]"}, sts.CheckConditions, "could not be evaluated"},
	} {
		m, err := newMapping(test.mapping, "")
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		_, refusal := m.evaluate(decodedClaims())
		switch {
		case test.check == "" && refusal != nil:
			t.Errorf("%s: %v", name, refusal)
		case test.check != "" && (refusal == nil || refusal.Check != test.check || !strings.Contains(refusal.Err.Error(), test.text)):
			t.Errorf("%s: refusal %v, want check %s with %q", name, refusal, test.check, test.text)
		}
	}

	claims := decodedClaims()
	for n, want := range map[int]bool{8191 - 1: true, 8191: true, 8192: false} { // one byte is the subject's
		claims["long"] = strings.Repeat("a", n)
		m, err := newMapping(map[string]string{"google.subject": `"s"`, "attribute.a": "assertion.long"}, "")
		if err != nil {
			t.Fatal(err)
		}
		if _, refusal := m.evaluate(claims); (refusal == nil) != want {
			t.Errorf("%d bytes beside the subject: %v", n, refusal)
		}
	}
}

// doubled returns an expression whose value is a list of 2^n elements.
func doubled(n int) string {
	expression := `"a"`
	for range n {
		expression = "[" + expression + "].map(x,[x,x])[0]"
	}
	return expression
}

func TestConditionIsTheLastWord(t *testing.T) {
	mapping := map[string]string{
		"google.subject": "assertion.sub", "google.groups": "assertion.aud", "attribute.namespace": "assertion['kubernetes.io'].namespace",
	}
	for condition, got := range map[string]string{ // "" if accepted
		"true":                 "",
		`"b" in google.groups`: "",
		`google.groups.filter(g, g != "a").exists(g, g == "b")`:      "",
		`attribute.namespace == "demo"`:                              "",
		`google.subject == assertion.sub && !("email" in assertion)`: "",
		"assertion.admin":            "",
		"false":                      "false",
		`"c" in google.groups`:       "false",
		"assertion.sub":              "a string",
		"assertion.nothing":          "a null_type",
		`assertion.email == "a@b"`:   "no such key: email",
		`attribute.cluster == "x"`:   "no such key: cluster",
		`assertion.aud.matches("a")`: "no such overload: matches",
		`assertion.aud[5] == "x"`:    "index out of bounds: 5",
		`int(assertion.sub) == 1`:    "type conversion error from 'string' to 'int'",
		`assertion.long.split("").all(a, assertion.long.split("").all(b, true))`: "operation cancelled: actual cost limit exceeded",
	} {
		m, err := newMapping(mapping, condition)
		if err != nil {
			t.Errorf("%s: %v", condition, err)
			continue
		}
		_, refusal := m.evaluate(decodedClaims())
		switch {
		case refusal == nil:
			if got != "" {
				t.Errorf("%s: accepted", condition)
			}
		case refusal.Reason != sts.ConditionMismatch || refusal.Check != sts.CheckConditions || got == "" || !strings.Contains(refusal.Got, got) || refusal.Err != nil:
			t.Errorf("%s: %v, want one that got %q", condition, refusal, got)
		}
	}
}

// TestCostIsShared has expressions that are cheap enough one by one.
func TestCostIsShared(t *testing.T) {
	costs := `assertion.short.split("").map(a, assertion.short.split("").map(b, b)) == [] ? "x" : "y"`
	mapping := map[string]string{"google.subject": "assertion.sub", "attribute.a": costs}
	control, err := newMapping(mapping, "")
	if err != nil {
		t.Fatal(err)
	}
	if _, refusal := control.evaluate(decodedClaims()); refusal != nil {
		t.Fatalf("control: %v", refusal)
	}
	for i := range 20 {
		mapping[fmt.Sprintf("attribute.b%d", i)] = costs
	}
	m, err := newMapping(mapping, "")
	if err != nil {
		t.Fatal(err)
	}
	if _, refusal := m.evaluate(decodedClaims()); refusal == nil || !strings.Contains(refusal.Got, "together") {
		t.Errorf("refusal %v", refusal)
	}
}

// TestExtract has the examples of the vendor's documentation.
func TestExtract(t *testing.T) {
	const name = "projects/_/buckets/acme-orders-aaa/data_lake/orders/order_date=2019-11-03/aef87g87ae0876"
	for template, want := range map[string]string{
		"/order_date={date}/":         "2019-11-03",
		"buckets/{name}/":             "acme-orders-aaa",
		"/orders/{empty}order_date":   "",
		"{start}/data_lake":           "projects/_/buckets/acme-orders-aaa",
		"orders/{end}":                "order_date=2019-11-03/aef87g87ae0876",
		"{all}":                       name,
		"/orders/{none}/order_date=":  "",
		"/orders/order_date=/{none}/": "",
		"no braces":                   "",
		"}{":                          "",
		"":                            "",
	} {
		if got := extract(name, template); got != want {
			t.Errorf("%s: %q, want %q", template, got, want)
		}
	}
}

func FuzzMapping(f *testing.F) {
	for _, seed := range []string{
		"assertion.sub", condition, `assertion.aud.all(a, a.extract("{x}") != "")`, `assertion.sub.split(":").map(x, x + x)`,
		doubled(2) + ` == ` + doubled(2), "true", `"\u0000"`, "assertion.aud.matches('(a+)+$')", "[[", "dyn([]) == dyn({})", "timestamp('x')", "x{y:1}", "-9223372036854775808 / -1 == 1",
	} {
		f.Add(seed, `{"sub":"a","aud":["a",{"b":[1,2.5,-1e999,null,true]}]}`)
	}
	f.Fuzz(func(t *testing.T, expression, data string) {
		claims := map[string]any{}
		decoder := json.NewDecoder(strings.NewReader(data))
		decoder.UseNumber()
		if decoder.Decode(&claims) != nil {
			return
		}
		if m, err := newMapping(map[string]string{"google.subject": expression, "google.groups": "[]"}, ""); err == nil {
			got, refusal := m.evaluate(claims)
			if refusal == nil && (got.subject == "" || len(got.subject) > maxSubject) {
				t.Fatalf("mapped to a subject of %d bytes", len(got.subject))
			}
		}
		if m, err := newMapping(map[string]string{"google.subject": `"a"`, "google.groups": expression}, ""); err == nil {
			if got, refusal := m.evaluate(claims); refusal == nil && len(got.groups) > maxGroups {
				t.Fatalf("mapped to %d groups", len(got.groups))
			}
		}
		if m, err := newMapping(map[string]string{"google.subject": `"a"`}, expression); err == nil {
			if _, refusal := m.evaluate(claims); refusal != nil && refusal.Reason != sts.ConditionMismatch {
				t.Fatalf("refused for %s", refusal.Reason)
			}
		}
	})
}

func FuzzExtract(f *testing.F) {
	f.Add("a/b/c", "a/{x}/")
	f.Add("", "{}")
	f.Fuzz(func(t *testing.T, s, template string) {
		if got := extract(s, template); !strings.Contains(s, got) {
			t.Fatalf("%q is no part of %q", got, s)
		}
	})
}

func FuzzExchange(f *testing.F) {
	f.Add(exchangeForm("token").Encode())
	f.Add("grant_type=" + grantType + "&scope=%00&audience=//iam.googleapis.com/")
	f.Fuzz(func(t *testing.T, body string) {
		form, err := url.ParseQuery(body)
		if err != nil {
			return
		}
		request, e := parseExchange(form)
		if e != nil {
			if e.status != 400 || e.Code == "" || e.Description == "" {
				t.Fatalf("refused with %d %s", e.status, e.Code)
			}
			return
		}
		if request.subjectToken == "" || !strings.HasPrefix(request.audience, iamService) {
			t.Fatalf("accepted %+v", request)
		}
	})
}

func FuzzAccessTokenRequest(f *testing.F) {
	f.Add([]byte(scopeBody))
	f.Add([]byte(`{"scope":["x"],"lifetime":"..s"}`))
	f.Add([]byte(`{"Scope":["x"],"lifetime":"1.5s"}{}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		request, wanted, e := parseAccessTokenRequest(body)
		if e != nil {
			if e.Code != 400 {
				t.Fatalf("refused with %d", e.Code)
			}
			return
		}
		if wanted < 1 || wanted > lifetime || len(request.Scope) == 0 || slices.Contains(request.Delegates, "a") {
			t.Fatalf("accepted %+v for %s", request, wanted)
		}
	})
}
