package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/oidclab/oidclab/lab"
	"github.com/oidclab/oidclab/lab/cluster"
	"github.com/oidclab/oidclab/scenarios"
)

// TestStaticSigner rotates the key files of an API server phase by phase, and
// kills it between the phases: what was decided stays so.
func TestStaticSigner(t *testing.T) {
	t.Parallel()
	u := newUser(t)
	info := u.up(t, "--name", labName, "--vault", "none", "--engine", "embedded", "--signer", "static")
	if info.Signer != lab.Static {
		t.Fatalf("the signer is %q", info.Signer)
	}
	u.run(t, "up", "--name", labName, "--signer", "external").want(t, 9, "is up with the static signer")
	u.run(t, "keys", "rotate", "--name", labName, "--signer", "external").want(t, 9, "the signer of this lab is static")
	keys := u.keys(t, "signing")
	if bound := time.Until(keys[0].LastExpiry); bound > cluster.MaxTokenLife || bound < cluster.MaxTokenLife-time.Minute {
		t.Errorf("the last expiry is in %s, want the longest life of a token", bound)
	}
	closedToOthers(t, filepath.Join(u.dir(labName), "clusters", "c1", "sa*"))

	old := u.run(t, "token", "mint", "--name", labName, "--audience", "oidclab").want(t, 0).stdout
	verify := func(phase, token string, code int, texts ...string) {
		t.Helper()
		if r := u.feed(t, token, "token", "verify", "--name", labName, "--audience", "oidclab"); r.code != code {
			t.Errorf("%s: want exit %d: %s", phase, code, r)
		} else {
			r.want(t, code, texts...)
		}
	}
	for _, phase := range []struct {
		name string
		want []string // states, oldest key first
		code int      // of verifying the old token
	}{
		{"publish", []string{"signing", "published"}, 0},
		{"sign", []string{"retired", "signing"}, 0},
		{"remove", []string{"removed", "signing"}, 6},
	} {
		u.run(t, "keys", "rotate", "--name", labName, "--phase", phase.name).want(t, 0)
		u.keys(t, phase.want...)
		verify(phase.name, old, phase.code)
		u.killAPIServer(t)
		u.keys(t, phase.want...)
		verify(phase.name+" and a crash", old, phase.code)
		fresh := u.run(t, "token", "mint", "--name", labName, "--audience", "oidclab").want(t, 0).stdout
		verify(phase.name+": a new token", fresh, 0)
		u.feed(t, fresh, "exchange", "generic", "--name", labName, "--token", "-").want(t, 0)
	}
	plan := u.run(t, "keys", "rotate", "--name", labName, "--advance-clock").want(t, 0).stdout
	if !strings.Contains(plan, "nobody saw what it signed, but the API server issues no token for longer than 24h0m0s") {
		t.Errorf("the plan does not say why it waits: %s", plan)
	}
	u.run(t, "down", "--name", labName).want(t, 0)
}

// keys returns the lab's keys, which must be in the given states.
func (u *user) keys(t *testing.T, states ...string) []lab.KeyInfo {
	t.Helper()
	r := u.run(t, "keys", "list", "--name", labName, "-o", "json").want(t, 0)
	var keys []lab.KeyInfo
	decode(t, r, &keys)
	var got []string
	for _, key := range keys {
		got = append(got, string(key.State))
		if key.Signer != lab.Static {
			t.Errorf("key %s: the signer is %q", key.ID, key.Signer)
		}
	}
	if fmt.Sprint(got) != fmt.Sprint(states) {
		t.Fatalf("got keys %v, want %v", got, states)
	}
	return keys
}

// killAPIServer kills the API server, and waits until it is back.
func (u *user) killAPIServer(t *testing.T) {
	t.Helper()
	killed, err := u.process("kube-apiserver")
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(killed, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	mustAwait(t, recoveryLimit, "recovery", func() error {
		if pid, err := u.process("kube-apiserver"); err != nil || pid == killed {
			return fmt.Errorf("no new API server yet: %v", err)
		}
		if _, r := u.status(t, "--name", labName); r.code != 0 {
			return errors.New(r.String())
		}
		return nil
	})
}

// closedToOthers demands that files are there, and for their owner only.
func closedToOthers(t *testing.T, pattern string) {
	t.Helper()
	files, err := filepath.Glob(pattern)
	if err != nil || len(files) == 0 {
		t.Fatalf("no files %s (%v)", pattern, err)
	}
	for _, file := range files {
		info, err := os.Stat(file)
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %#o", file, info.Mode().Perm())
		}
	}
}

// TestStaticSignerScenarios runs the scenarios of rotation once more, with API
// servers that sign by themselves.
func TestStaticSignerScenarios(t *testing.T) {
	t.Parallel()
	u := newUser(t)
	u.up(t, "--name", labName, "--engine", "embedded", "--signer", "static", "--clusters", "2")
	run := u.start(t, "", "scenarios", "run", "--name", labName, "--label-filter", "rotation && !vault", "-o", "json").wait(t, 5*time.Minute)
	var summary scenarios.Summary
	if err := json.Unmarshal([]byte(run.stdout), &summary); err != nil {
		t.Fatalf("%v: %s", err, run)
	}
	for _, result := range summary.Results {
		if result.State != "passed" {
			t.Errorf("%s: %s: %s\nat %s\n%s", result.Name, result.State, result.Reason, result.Location, journeys(result.Journeys))
		}
	}
	if summary.Passed < 7 {
		t.Errorf("%d scenarios passed only", summary.Passed)
	}
	run.want(t, 0)
	u.run(t, "down", "--name", labName).want(t, 0)
}
