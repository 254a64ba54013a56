package cli

import (
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/term"

	"github.com/oidclab/oidclab/lab"
)

// This is the only file that knows about terminals. Its rules:
//
//   - one line for each step that has ended, with its time: ✓ or ✗;
//   - on a terminal, and only there, one more line that tells what is under way;
//   - everything goes to stderr; colours are not used.
type progress struct {
	out      io.Writer
	terminal bool

	mu      sync.Mutex
	running []lab.StepEvent // the last of each step that is not done
	shown   bool            // the line of what is under way is on the screen
}

func newProgress(out io.Writer) *progress {
	file, ok := out.(*os.File)
	return &progress{out: out, terminal: ok && term.IsTerminal(int(file.Fd())) && os.Getenv("TERM") != "dumb"}
}

// observe shows a step event.
func (p *progress) observe(e lab.StepEvent) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.erase()
	p.running = slices.DeleteFunc(p.running, func(r lab.StepEvent) bool { return r.Name == e.Name })
	if !e.Done {
		p.running = append(p.running, e)
	} else {
		mark := "✓"
		if e.Error != "" {
			mark = "✗"
		}
		line := fmt.Sprintf(" %s %-30s %5.1fs  %s", mark, e.Name, e.Elapsed.Seconds(), e.Detail)
		fmt.Fprintln(p.out, strings.TrimRight(line, " "))
	}
	if p.terminal && len(p.running) > 0 {
		var steps []string
		for _, r := range p.running {
			if r.Detail != "" {
				r.Name += " (" + r.Detail + ")"
			}
			steps = append(steps, r.Name)
		}
		fmt.Fprintf(p.out, " … %s", strings.Join(steps, ", "))
		p.shown = true
	}
}

// end removes the line of what is under way.
func (p *progress) end() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.erase()
}

func (p *progress) erase() {
	if p.shown {
		fmt.Fprint(p.out, "\r\x1b[K")
		p.shown = false
	}
}

// rounded shows a duration as people say it.
func rounded(d time.Duration) string {
	if d >= time.Second || d <= -time.Second {
		return d.Round(time.Second).String()
	}
	return d.Round(time.Millisecond).String()
}
