package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/oidclab/oidclab/lab/trace"
	"github.com/oidclab/oidclab/scenarios"
)

// requireVault, set to 1, makes a missing Vault a failure instead of skips.
const requireVault = "OIDCLAB_REQUIRE_VAULT"

// scenariosLimit bounds all scenarios, which one after the other take minutes.
const scenariosLimit = 10 * time.Minute

// TestScenarios runs every scenario against a lab with all that scenarios can
// need, as `oidclab scenarios run` does for its users. Each is a test of its own.
func TestScenarios(t *testing.T) {
	t.Parallel()
	if os.Getenv(requireVault) == "1" {
		if _, err := exec.LookPath("vault"); err != nil {
			t.Fatalf("%s=1: %v", requireVault, err)
		}
	}
	u := newUser(t)
	u.up(t, "--name", labName, "--clusters", "2")
	u.runScenarios(t)
	u.run(t, "down", "--name", labName).want(t, 0)
}

// TestScenariosOnKind is TestScenarios with clusters whose pods are containers.
func TestScenariosOnKind(t *testing.T) {
	t.Parallel()
	u := newUser(t)
	needKind(t, u)
	t.Cleanup(func() { u.start(t, "", "down", "--name", labName).wait(t, kindLimit).want(t, 0) })
	u.upKind(t, "--clusters", "2")
	traces := u.newInDocker(t)
	traces.there(t)
	u.runScenarios(t)
	u.start(t, "", "down", "--name", labName).wait(t, kindLimit).want(t, 0)
	traces.gone(t)
}

// runScenarios runs every scenario that is not slow against the lab.
func (u *user) runScenarios(t *testing.T) {
	t.Helper()
	junit := filepath.Join(t.TempDir(), "junit.xml")
	run := u.start(t, "", "scenarios", "run", "--name", labName, "-o", "json", "--junit", junit).wait(t, scenariosLimit)
	var summary scenarios.Summary
	if err := json.Unmarshal([]byte(run.stdout), &summary); err != nil {
		t.Fatalf("%v: %s", err, run)
	}
	var want int
	for _, scenario := range scenarios.All() {
		if !slices.Contains(scenario.Labels, scenarios.Slow) {
			want++
		}
	}
	if len(summary.Results) != want {
		t.Errorf("%d results of %d scenarios", len(summary.Results), want)
	}
	for _, result := range summary.Results {
		t.Run(result.Name, func(t *testing.T) {
			if result.State == "skipped" {
				t.Skip(result.Reason)
			}
			if result.Failed() {
				t.Errorf("%s: %s\nat %s\n%s", result.State, result.Reason, result.Location, journeys(result.Journeys))
			}
		})
	}
	if summary.Failed == 0 {
		run.want(t, 0)
	} else {
		run.want(t, 5)
	}
	report, err := os.ReadFile(junit)
	if err != nil || !strings.Contains(string(report), fmt.Sprintf("failures=\"%d\"", summary.Failed)) {
		t.Errorf("the JUnit report: %v", err)
	}
}

func journeys(all [][]trace.Event) string {
	var out strings.Builder
	for _, journey := range all {
		for _, e := range journey {
			fmt.Fprintf(&out, "%s %s %s %s %s %s wanted %s, found %s %s\n", e.Journey, e.Station, e.Step, e.Name, e.Outcome, e.Reason, e.Want, e.Got, e.Detail)
		}
	}
	return out.String()
}

// A selection that selects nothing, or is not understood, is a usage error; one
// that selects some runs those and no others.
func TestScenarioSelection(t *testing.T) {
	t.Parallel()
	u := newUser(t)
	u.up(t, "--name", "selection")
	u.run(t, "scenarios", "run", "--name", "selection", "--focus", "no such scenario").want(t, 2, "no scenario is selected")
	u.run(t, "scenarios", "run", "--name", "selection", "--label-filter", "aws &&").want(t, 2, "label filter")
	some := u.run(t, "scenarios", "run", "--name", "selection", "--label-filter", "expiry && aws").want(t, 0)
	if !strings.Contains(some.stdout, "expiry: to the second, by aws") || strings.Contains(some.stdout, "by generic") {
		t.Errorf("selected the wrong ones: %s", some)
	}
	u.run(t, "down", "--name", "selection").want(t, 0)
}
