package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/oidclab/oidclab/lab"
	"github.com/oidclab/oidclab/lab/exchange"
	"github.com/oidclab/oidclab/lab/problem"
)

func TestReport(t *testing.T) {
	conflict := problem.New(problem.Conflict, "oidclab down", "lab %s is up", "x")
	for _, c := range []struct {
		name string
		err  error
		code int
		text string
	}{
		{"success", nil, 0, ""},
		{"said already", reported{problem.Refused}, 6, ""},
		{"said already, wrapped", fmt.Errorf("verify: %w", reported{problem.NotReady}), 4, ""},
		{"problem", conflict, 9, "oidclab: lab x is up\noidclab: next: oidclab down\n"},
		{"wrapped problem", fmt.Errorf("up: %w", conflict), 9, "oidclab: up: lab x is up\noidclab: next: oidclab down\n"},
		{"no next step", problem.New(problem.Usage, "", "no"), 2, "oidclab: no\n"},
		{"interrupted", fmt.Errorf("up: %w", context.Canceled), 130, "oidclab: interrupted\n"},
		{"out of time", context.DeadlineExceeded, 10, "oidclab: context deadline exceeded\noidclab: next: allow more time with --timeout, or look at: oidclab logs\n"},
		{"unexpected", errors.New("boom"), 1, "oidclab: boom\n"},
		{"a party's no", refusal("abc", &exchange.RefusedError{Party: "aws", Status: 403, Code: "AccessDenied", Message: "no"}), 6, "oidclab: aws refused (403 AccessDenied): no\noidclab: next: oidclab trace abc\n"},
		{"a party's failure", refusal("abc", errors.New("aws: status 500")), 1, "oidclab: aws: status 500\n"},
	} {
		var stderr bytes.Buffer
		a := &app{Streams: Streams{Err: &stderr}}
		if code := a.report(c.err); code != c.code || stderr.String() != c.text {
			t.Errorf("%s: exit %d and %q, want %d and %q", c.name, code, stderr.String(), c.code, c.text)
		}
	}
}

// Data goes to stdout, everything else to stderr.
func TestStreams(t *testing.T) {
	for _, c := range []struct {
		args           string
		code           int
		stdout, stderr string
	}{
		{"version -o json", 0, `"kubernetes"`, ""},
		{"--help", 0, "Exit codes", ""},
		{"nonsense", 2, "", `there is no verb "nonsense"`},
		{"token inspect a.b.c", 6, "", "not a JWT"},
		{"token inspect " + encoded(`{"alg":"none"}`) + "." + encoded(`{"sub":"a"}`) + ".", 0, "NOT VERIFIED", ""},
		{"up --clusters 0", 2, "", "without a cluster"},
	} {
		var stdout, stderr bytes.Buffer
		code := Run(t.Context(), strings.Fields(c.args), Streams{In: strings.NewReader(""), Out: &stdout, Err: &stderr})
		if code != c.code || !strings.Contains(stdout.String(), c.stdout) || !strings.Contains(stderr.String(), c.stderr) {
			t.Errorf("%s: exit %d, want %d; stdout %q, stderr %q", c.args, code, c.code, stdout.String(), stderr.String())
		}
		if (c.stdout == "") != (stdout.Len() == 0) || (c.stderr == "") != (stderr.Len() == 0) {
			t.Errorf("%s: stdout %q, stderr %q; want only one of them", c.args, stdout.String(), stderr.String())
		}
	}
}

// Without a terminal there is one line for each step that has ended, and no
// control character.
func TestProgressWithoutTerminal(t *testing.T) {
	var out bytes.Buffer
	p := newProgress(&out)
	for _, e := range []lab.StepEvent{
		{Name: "front"},
		{Name: "cluster c1"},
		{Name: "front", Done: true, Elapsed: 40 * time.Millisecond, Detail: "https://127.0.0.1:1"},
		{Name: "cluster c1", Done: true, Elapsed: 2340 * time.Millisecond, Error: "it broke"},
	} {
		p.observe(e)
	}
	p.end()
	want := " ✓ front                            0.0s  https://127.0.0.1:1\n ✗ cluster c1                       2.3s\n"
	if out.String() != want {
		t.Errorf("got\n%swant\n%s", out.String(), want)
	}
}

// On a terminal, one more line tells what is under way, and leaves no trace.
func TestProgressOnTerminal(t *testing.T) {
	var out bytes.Buffer
	p := &progress{out: &out, terminal: true}
	p.observe(lab.StepEvent{Name: "a"})
	p.observe(lab.StepEvent{Name: "b"})
	p.observe(lab.StepEvent{Name: "b", Detail: "half"})
	p.observe(lab.StepEvent{Name: "a", Done: true})
	p.end()
	const erase = "\r\x1b[K"
	want := " … a" + erase + " … a, b" + erase + " … a, b (half)" + erase + " ✓ a                                0.0s\n … b (half)" + erase
	if out.String() != want {
		t.Errorf("got %q, want %q", out.String(), want)
	}
}

func TestRounded(t *testing.T) {
	for d, want := range map[time.Duration]string{0: "+0s", 1400 * time.Millisecond: "+1s", -90 * time.Minute: "-1h30m0s", 1500 * time.Microsecond: "+2ms", -20 * time.Millisecond: "-20ms"} {
		if got := signed(d); got != want {
			t.Errorf("%s: %s, want %s", d, got, want)
		}
	}
}
