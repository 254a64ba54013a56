package aws

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"
)

var update = flag.Bool("update", false, "rewrite the responses in testdata")

// TestGolden sends the requests in testdata and compares the answers. A
// request is a method and a target, perhaps a line that has it signed, and a
// body of one parameter a line; {{...}} are values that differ from run to run.
func TestGolden(t *testing.T) {
	a := newAccount(t)
	a.Clock.Freeze(time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC))
	credentials := a.post(t, assumeForm(a.token(t, nil)))
	insert := strings.NewReplacer(
		"{{token}}", a.token(t, nil),
		"{{token for another audience}}", a.token(t, map[string]any{"aud": "vault"}),
		"{{token of another subject}}", a.token(t, map[string]any{"sub": "system:serviceaccount:demo:other"}),
		"{{expired token}}", a.token(t, map[string]any{"exp": a.Clock.Now().Add(-time.Hour).Unix()}),
	)
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no files: %v", err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			archive, err := txtar.ParseFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if len(archive.Files) != 2 || archive.Files[0].Name != "request" || archive.Files[1].Name != "response" {
				t.Fatal("want the sections request and response")
			}
			head, body, _ := strings.Cut(insert.Replace(string(archive.Files[0].Data)), "\n\n")
			method, target, _ := strings.Cut(strings.Split(head, "\n")[0], " ")
			body = strings.ReplaceAll(strings.TrimSpace(body), "\n", "&")
			request := a.request(t, method, strings.TrimSuffix(a.url, "/")+target, body)
			if strings.Contains(head, "{{signature}}") {
				request = a.signed(t, credentials, func(c *call) { c.request, c.body = request, body })
			}
			got := normalised(a, a.do(t, request))
			if *update {
				archive.Files[1].Data = []byte(got)
				if err := os.WriteFile(file, txtar.Format(archive), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if diff := cmp.Diff(string(archive.Files[1].Data), got); diff != "" {
				t.Errorf("response (-want +got):\n%s", diff)
			}
		})
	}
}

// normalised writes an answer as text, without what differs from run to run.
func normalised(a *account, got answer) string {
	text := fmt.Sprintf("HTTP %d\n", got.status)
	for _, name := range []string{"Allow", "Cache-Control", "Content-Type", "Date", "X-Amzn-Requestid"} {
		if value := got.header.Get(name); value != "" {
			text += name + ": " + value + "\n"
		}
	}
	text += "\n" + got.body
	for _, random := range []struct{ pattern, name string }{
		{`[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}`, "{{request id}}"},
		{`ASIAOIDCLAB[A-Z2-7]{9}<`, "{{access key id}}<"},
		{`<SecretAccessKey>[A-Za-z0-9+/]{40}<`, "<SecretAccessKey>{{secret}}<"},
		{`<SessionToken>[A-Za-z0-9+/]{256}<`, "<SessionToken>{{session token}}<"},
		{regexp.QuoteMeta(a.issuer.URL), "{{issuer}}"},
	} {
		text = regexp.MustCompile(random.pattern).ReplaceAllLiteralString(text, random.name)
	}
	return text
}
