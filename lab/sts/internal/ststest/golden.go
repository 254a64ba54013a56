package ststest

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"
)

// Replacement names what differs from run to run in an answer.
type Replacement struct{ Pattern, Name string }

// Golden sends the requests in testdata to the server at base and compares the
// answers, or rewrites them if update is set. A request is a method and a
// target, its headers, and a body: JSON, or one parameter of a form a line.
// {{name}} in it is inserted[name].
func (l *Lab) Golden(t *testing.T, base string, update bool, inserted map[string]string, replacements ...Replacement) {
	t.Helper()
	var pairs []string
	for name, value := range inserted {
		pairs = append(pairs, "{{"+name+"}}", value)
	}
	insert := strings.NewReplacer(pairs...)
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
			got := l.answerTo(t, base, insert.Replace(string(archive.Files[0].Data)))
			for _, r := range replacements {
				got = regexp.MustCompile(r.Pattern).ReplaceAllLiteralString(got, r.Name)
			}
			if update {
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

// answerTo sends a request that is written as text, and returns the answer as
// text: status, headers in alphabetical order, body.
func (l *Lab) answerTo(t *testing.T, base, text string) string {
	t.Helper()
	head, body, _ := strings.Cut(text, "\n\n")
	lines := strings.Split(strings.TrimSpace(head), "\n")
	method, target, _ := strings.Cut(lines[0], " ")
	body = strings.TrimSpace(body)
	json := strings.HasPrefix(body, "{")
	if !json {
		body = strings.ReplaceAll(body, "\n", "&")
	}
	request := Request(t, method, base+target, body)
	if json {
		request.Header.Set("Content-Type", "application/json")
	}
	for _, line := range lines[1:] {
		name, value, _ := strings.Cut(line, ": ")
		request.Header.Set(name, value)
	}
	status, header, content := l.Do(t, request)
	var headers []string
	for name := range header {
		if name != "Content-Length" { // the answer's random parts may differ in length
			headers = append(headers, name+": "+header.Get(name)+"\n")
		}
	}
	slices.Sort(headers)
	return fmt.Sprintf("HTTP %d\n%s\n%s", status, strings.Join(headers, ""), strings.TrimSuffix(string(content), "\n")+"\n")
}
