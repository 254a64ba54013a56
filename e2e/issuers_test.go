package e2e

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/oidclab/oidclab/lab/issuer"
	"github.com/oidclab/oidclab/scenarios"
)

// TestIssuerStyles has every relying party take tokens of issuers in every style
// but the default one, which all other tests have.
func TestIssuerStyles(t *testing.T) {
	t.Parallel()
	u := newUser(t)
	for _, layout := range issuer.Layouts()[1:] {
		t.Run(layout.Name, func(t *testing.T) {
			info := u.up(t, "--name", layout.Name, "--issuer-style", layout.Name)
			if info.IssuerStyle != layout.Name {
				t.Errorf("the lab says that its style is %s", info.IssuerStyle)
			}
			run := u.start(t, "", "scenarios", "run", "--name", layout.Name, "--label-filter", "discovery || journey", "-o", "json").wait(t, 2*time.Minute)
			var summary scenarios.Summary
			if err := json.Unmarshal([]byte(run.stdout), &summary); err != nil {
				t.Fatalf("%v: %s", err, run)
			}
			for _, result := range summary.Results {
				if result.Failed() {
					t.Errorf("%s: %s", result.Name, result.Reason)
				}
			}
			if summary.Passed < 10 {
				t.Errorf("%d scenarios passed", summary.Passed)
			}
			u.run(t, "down", "--name", layout.Name).want(t, 0)
		})
	}
}
