package gcp

import (
	"flag"
	"regexp"
	"testing"
	"time"

	"github.com/oidclab/oidclab/lab/clock"
	"github.com/oidclab/oidclab/lab/sts/internal/ststest"
)

var update = flag.Bool("update", false, "rewrite the responses in testdata")

func TestGolden(t *testing.T) {
	p := newProject(t, func(c *Config) { c.Clock.(*clock.Lab).Freeze(time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)) })
	p.Golden(t, p.url, *update, map[string]string{
		"token":                           p.token(t, nil),
		"token for another audience":      p.token(t, map[string]any{"aud": "vault"}),
		"token of another namespace":      p.token(t, map[string]any{"aud": "gcp", "kubernetes.io": map[string]any{"namespace": "other"}}),
		"token of yesterday":              p.token(t, map[string]any{"iat": p.Clock.Now().Add(-24 * time.Hour).Unix()}),
		"access token":                    p.federated(t, nil),
		"access token of another subject": p.federated(t, map[string]any{"sub": "system:serviceaccount:demo:other"}),
	},
		ststest.Replacement{Pattern: `ya29\.oidclab-[A-Z2-7]{26}-[A-Z2-7]{26}`, Name: "{{new access token}}"},
		ststest.Replacement{Pattern: regexp.QuoteMeta(p.issuer.URL), Name: "{{issuer}}"},
		ststest.Replacement{Pattern: regexp.QuoteMeta(p.url), Name: "{{gcp}}"},
	)
}
