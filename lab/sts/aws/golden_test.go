package aws

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
	a := newAccount(t)
	a.Clock.Freeze(time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC))
	a.Golden(t, strings.TrimSuffix(a.url, "/"), *update, map[string]string{
		"token":                      a.token(t, nil),
		"token for another audience": a.token(t, map[string]any{"aud": "vault"}),
		"token of another subject":   a.token(t, map[string]any{"sub": "system:serviceaccount:demo:other"}),
		"expired token":              a.token(t, map[string]any{"exp": a.Clock.Now().Add(-time.Hour).Unix()}),
		"signature":                  headers(a.signed(t, a.post(t, assumeForm(a.token(t, nil))), nil)),
	},
		ststest.Replacement{Pattern: `[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}`, Name: "{{request id}}"},
		ststest.Replacement{Pattern: `ASIAOIDCLAB[A-Z2-7]{9}<`, Name: "{{access key id}}<"},
		ststest.Replacement{Pattern: `<SecretAccessKey>[A-Za-z0-9+/]{40}<`, Name: "<SecretAccessKey>{{secret}}<"},
		ststest.Replacement{Pattern: `<SessionToken>[A-Za-z0-9+/]{256}<`, Name: "<SessionToken>{{session token}}<"},
		ststest.Replacement{Pattern: regexp.QuoteMeta(a.issuer.URL), Name: "{{issuer}}"},
	)
}
