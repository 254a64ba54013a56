package stackit

import (
	"flag"
	"regexp"
	"testing"
	"time"

	"github.com/oidclab/oidclab/lab/sts/internal/ststest"
)

var update = flag.Bool("update", false, "rewrite the responses in testdata")

func TestGolden(t *testing.T) {
	p := newProvider(t)
	p.Clock.Freeze(time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC))
	p.Golden(t, p.url, *update, map[string]string{
		"token":                      p.token(t, nil),
		"token for another audience": p.token(t, map[string]any{"aud": "vault"}),
		"token of another subject":   p.token(t, map[string]any{"sub": otherSubject}),
		"token with a slash":         p.token(t, map[string]any{"iss": p.issuer.URL + "/"}),
		"expired token":              p.token(t, map[string]any{"exp": p.Clock.Now().Add(-time.Hour).Unix()}),
		"access token":               p.post(t, tokenForm(p.token(t, nil))).AccessToken,
	},
		ststest.Replacement{Pattern: `"access_token":"[\w.-]+"`, Name: `"access_token":"{{access token}}"`},
		ststest.Replacement{Pattern: `"(x|y|kid)":"[\w-]+"`, Name: `"{{key}}"`},
		ststest.Replacement{Pattern: regexp.QuoteMeta(p.url), Name: "{{stackit}}"},
	)
}
