package cli

import (
	"fmt"
	"io"
	"os"
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
	running []string
	shown   bool // the line of what is under way is on the screen
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
	if !e.Done {
		p.running = append(p.running, e.Name)
	} else {
		for i, name := range p.running {
			if name == e.Name {
				p.running = append(p.running[:i], p.running[i+1:]...)
				break
			}
		}
		mark := "✓"
		if e.Error != "" {
			mark = "✗"
		}
		line := fmt.Sprintf(" %s %-30s %5.1fs  %s", mark, e.Name, e.Elapsed.Seconds(), e.Detail)
		fmt.Fprintln(p.out, strings.TrimRight(line, " "))
	}
	if p.terminal && len(p.running) > 0 {
		fmt.Fprintf(p.out, " … %s", strings.Join(p.running, ", "))
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
