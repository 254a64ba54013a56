package cli

import (
	"bytes"
	"encoding/json"
	"os/exec"
	"testing"

	"github.com/oidclab/oidclab/lab/workload"
)

// awkward are values that a shell would like to interpret.
var awkward = []string{
	"", "plain", "with blanks", "'", "''", "it's", `"`, `\`, `\'`, "$HOME", "$(exit 1)", "`exit 1`", "!", "*", "~", "#", "a;b", "a&b", "a\tb", "two\nlines", "ä€😀", "-n", "--",
}

// What `env -o shell` prints, a shell reads back unchanged.
func TestShellRoundTrip(t *testing.T) {
	for _, want := range awkward {
		var out bytes.Buffer
		a := &app{Streams: Streams{Out: &out}, output: "shell"}
		if err := a.showVariables([]workload.Variable{{Name: "VALUE", Value: want}}); err != nil {
			t.Fatal(err)
		}
		got, err := exec.Command("sh", "-c", out.String()+"printf %s \"$VALUE\"").Output()
		if err != nil || string(got) != want {
			t.Errorf("%q: printed as %s, read as %q, %v", want, out.String(), got, err)
		}
	}
}

func TestVariableFormats(t *testing.T) {
	for format, want := range map[string]string{
		"shell":  "export A='b c'\nexport D='$e'\n",
		"dotenv": "A=\"b c\"\nD=\"\\$e\"\n",
		"github": "A=b c\nD=$e\n",
	} {
		var out bytes.Buffer
		a := &app{Streams: Streams{Out: &out}, output: format}
		if err := a.showVariables([]workload.Variable{{Name: "A", Value: "b c"}, {Name: "D", Value: "$e"}}); err != nil || out.String() != want {
			t.Errorf("%s: %q, %v; want %q", format, out.String(), err, want)
		}
	}
	for _, value := range awkward {
		var out bytes.Buffer
		a := &app{Streams: Streams{Out: &out}, output: "json"}
		if err := a.showVariables([]workload.Variable{{Name: "A", Value: value}}); err != nil {
			t.Fatal(err)
		}
		got := map[string]string{}
		if err := json.Unmarshal(out.Bytes(), &got); err != nil || got["A"] != value {
			t.Errorf("%q: %s, %v", value, out.String(), err)
		}
	}
}
