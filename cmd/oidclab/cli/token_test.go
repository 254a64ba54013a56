package cli

import (
	"encoding/base64"
	"encoding/json"
	"reflect"
	"strings"
	"testing"

	"github.com/oidclab/oidclab/lab/problem"
	"github.com/oidclab/oidclab/lab/sts"
)

func TestAssignments(t *testing.T) {
	for text, want := range map[string]any{
		"sub=system:serviceaccount:a:b": "system:serviceaccount:a:b",
		"exp=1e3":                       json.Number("1e3"),
		"exp=12345678901234567890":      json.Number("12345678901234567890"),
		"exp=null":                      nil,
		"flag=true":                     true,
		`quoted="null"`:                 "null",
		`aud=["a","b"]`:                 []any{"a", "b"},
		`nested={"a":{"b":1}}`:          map[string]any{"a": map[string]any{"b": json.Number("1")}},
		"empty=":                        "",
		"sum=a=b":                       "a=b",
		"two=1 2":                       "1 2",
		"broken={":                      "{",
		"url=https://x.example/?a=b":    "https://x.example/?a=b",
	} {
		values, err := assignments("--claim", []string{text})
		name, _, _ := strings.Cut(text, "=")
		got, ok := values[name]
		if err != nil || !ok || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %#v, %v; want %#v", text, values, err, want)
		}
	}
	for _, text := range []string{"", "sub", "=", "=value"} {
		if _, err := assignments("--claim", []string{text}); kindOf(err) != problem.Usage || !strings.Contains(err.Error(), "--claim") {
			t.Errorf("%q: %v, want a usage problem", text, err)
		}
	}
	values, err := assignments("--header", []string{"a=1", "b=2", "a=3"})
	if want := map[string]any{"a": json.Number("3"), "b": json.Number("2")}; err != nil || !reflect.DeepEqual(values, want) {
		t.Errorf("got %v, %v; want %v", values, err, want)
	}
}

func encoded(s string) string { return base64.RawURLEncoding.EncodeToString([]byte(s)) }

func TestDecodeToken(t *testing.T) {
	const header, claims = `{"alg":"none"}`, `{"sub": "a","sub":"b","n":12345678901234567890}`
	token := encoded(header) + "." + encoded(claims) + "."
	gotHeader, gotClaims, err := decodeToken(token + "not even base64 !")
	if err != nil || string(gotHeader) != header || string(gotClaims) != claims {
		t.Errorf("got %s, %s, %v: want what the token says, byte for byte", gotHeader, gotClaims, err)
	}
	for name, token := range map[string]string{
		"empty":              "",
		"a word":             "token",
		"two parts":          encoded(header) + "." + encoded(claims),
		"four parts":         token + ".",
		"not base64":         "{}." + encoded(claims) + ".",
		"padded base64":      base64.URLEncoding.EncodeToString([]byte(`{"a":1}`)) + "." + encoded(claims) + ".",
		"header is not JSON": encoded("header") + "." + encoded(claims) + ".",
		"claims are not":     encoded(header) + "." + encoded("{") + ".",
	} {
		if h, c, err := decodeToken(token); err == nil {
			t.Errorf("%s: decoded to %s, %s", name, h, c)
		} else if strings.Contains(err.Error(), encoded(claims)) {
			t.Errorf("%s: the error holds the token: %v", name, err)
		}
	}
}

func TestReadToken(t *testing.T) {
	read := func(stdin string, args ...string) (string, error) {
		a := &app{Streams: Streams{In: strings.NewReader(stdin)}}
		return a.readToken(args)
	}
	for _, c := range []struct {
		name, stdin string
		args        []string
		want        string
	}{
		{"argument", "stdin", []string{"token"}, "token"},
		{"dash", "token", []string{"-"}, "token"},
		{"stdin", "token", nil, "token"},
		{"newline of a shell", "token\n", nil, "token"},
		{"newline of Windows", "token\r\n", nil, "token"},
		{"one newline only", "token\n\n", nil, "token\n"},
		{"blanks belong to it", " token ", nil, " token "},
		{"the longest", strings.Repeat("a", maxTokenInput), nil, strings.Repeat("a", maxTokenInput)},
	} {
		if got, err := read(c.stdin, c.args...); err != nil || got != c.want {
			t.Errorf("%s: %.20q, %v; want %.20q", c.name, got, err, c.want)
		}
	}
	for name, stdin := range map[string]string{"empty": "", "a newline": "\n", "too long": strings.Repeat("a", maxTokenInput+1)} {
		if got, err := read(stdin); kindOf(err) != problem.Usage {
			t.Errorf("%s: %.20q, %v; want a usage problem", name, got, err)
		}
	}
}

// TestSideBySide has two profiles that agree on one check and not on the other.
func TestSideBySide(t *testing.T) {
	passed := sts.Result{Check: sts.CheckSize, Outcome: "passed", Want: "at most 9 bytes", Got: "5 bytes"}
	verdict := func(results ...sts.Result) sts.Verdict { return sts.Verdict{Results: results} }
	refused := verdict(passed, sts.Result{Check: sts.CheckTimes, Outcome: "refused", Want: "a later exp", Got: "an early one", Detail: "wait"})
	refused.Refusal = &sts.Refusal{Hint: "get a new token"}
	var out strings.Builder
	a := &app{Streams: Streams{Out: &out}}
	if err := a.showSideBySide([]judgement{
		{"strict", refused},
		{"aws", verdict(passed, sts.Result{Check: sts.CheckTimes, Outcome: "passed", Want: "a later exp", Got: "one within the skew"})},
	}); err != nil {
		t.Fatal(err)
	}
	const want = `CHECK    strict   aws
size     ✓        ✓
times    ✗        ✓
verdict  REFUSED  accepted

size
  ✓ strict, aws  found 5 bytes, wanted at most 9 bytes
times
  ✗ strict  wanted a later exp, found an early one
  ✓ aws     found one within the skew, wanted a later exp
hint: get a new token
`
	if out.String() != want {
		t.Errorf("got\n%s\nwant\n%s", out.String(), want)
	}
}
