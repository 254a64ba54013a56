package gcp

import (
	"bufio"
	"flag"
	"fmt"
	"net/textproto"
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
// request is a method and a target, perhaps an Authorization header, and a
// body: JSON, or one parameter of a form a line. {{...}} are values that differ
// from run to run.
func TestGolden(t *testing.T) {
	p := newProject(t)
	p.Clock.Freeze(time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC))
	federated := p.federated(t, nil)
	insert := strings.NewReplacer(
		"{{token}}", p.token(t, nil),
		"{{token for another audience}}", p.token(t, map[string]any{"aud": "vault"}),
		"{{token of another namespace}}", p.token(t, map[string]any{"aud": "gcp", "kubernetes.io": map[string]any{"namespace": "other"}}),
		"{{token of yesterday}}", p.token(t, map[string]any{"iat": p.Clock.Now().Add(-24 * time.Hour).Unix()}),
		"{{access token}}", federated,
		"{{access token of another subject}}", p.federated(t, map[string]any{"sub": "system:serviceaccount:demo:other"}),
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
			line, headers, _ := strings.Cut(head, "\n")
			method, target, _ := strings.Cut(line, " ")
			header, err := textproto.NewReader(bufio.NewReader(strings.NewReader(headers + "\n\n"))).ReadMIMEHeader()
			if err != nil {
				t.Fatal(err)
			}
			contentType := "application/json"
			if !strings.HasPrefix(body, "{") {
				contentType = formType
				body = strings.ReplaceAll(strings.TrimSpace(body), "\n", "&")
			}
			got := p.normalised(p.do(t, method, strings.TrimSpace(target), strings.TrimPrefix(header.Get("Authorization"), "Bearer "), contentType, body))
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
func (p *project) normalised(got answer) string {
	text := fmt.Sprintf("HTTP %d\n", got.status)
	for _, name := range []string{"Cache-Control", "Content-Type", "Date", "Www-Authenticate"} {
		if value := got.header.Get(name); value != "" {
			text += name + ": " + value + "\n"
		}
	}
	text += "\n" + strings.TrimSuffix(got.body, "\n") + "\n"
	text = regexp.MustCompile(`ya29\.oidclab-[A-Z2-7]{26}-[A-Z2-7]{26}`).ReplaceAllLiteralString(text, "{{new access token}}")
	return strings.ReplaceAll(text, p.issuer.URL, "{{issuer}}")
}
