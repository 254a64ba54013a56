package azure

import (
	"flag"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/oidclab/oidclab/lab/sts/internal/ststest"
)

var update = flag.Bool("update", false, "rewrite the responses in testdata")

func TestGolden(t *testing.T) {
	d := newDirectory(t)
	d.Clock.Freeze(time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC))
	access := d.post(t, tokenForm(d.token(t, nil))).AccessToken
	d.Golden(t, d.url, *update, map[string]string{
		"token":                      d.token(t, nil),
		"token for another audience": d.token(t, map[string]any{"aud": "vault"}),
		"token with another case":    d.token(t, map[string]any{"sub": "system:serviceaccount:demo:App"}),
		"token with a slash":         d.token(t, map[string]any{"iss": d.issuer.URL + "/"}),
		"expired token":              d.token(t, map[string]any{"exp": d.Clock.Now().Add(-time.Hour).Unix()}),
		"access token":               access,
		"access token of nobody":     access[:strings.LastIndex(access, ".")+1] + strings.Repeat("A", 86),
	},
		ststest.Replacement{Pattern: `"access_token":"[\w.-]+"`, Name: `"access_token":"{{access token}}"`},
		ststest.Replacement{Pattern: `X-Ms-Request-Id: \S+`, Name: "X-Ms-Request-Id: {{request id}}"},
		ststest.Replacement{Pattern: `RequestId:[0-9a-f-]+`, Name: "RequestId:{{request id}}"},
		ststest.Replacement{Pattern: `Trace ID: [0-9a-f-]+`, Name: "Trace ID: {{trace id}}"},
		ststest.Replacement{Pattern: `"trace_id":"[0-9a-f-]+"`, Name: `"trace_id":"{{trace id}}"`},
		ststest.Replacement{Pattern: `"(x|y|kid)":"[\w-]+"`, Name: `"{{key}}"`},
		ststest.Replacement{Pattern: regexp.QuoteMeta(d.url), Name: "{{azure}}"},
		ststest.Replacement{Pattern: regexp.QuoteMeta(d.url[len("https://"):]), Name: "{{azure host}}"},
		ststest.Replacement{Pattern: regexp.QuoteMeta(d.issuer.URL), Name: "{{issuer}}"},
	)
}
