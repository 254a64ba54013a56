package proc

import (
	"io"
	"os"
	"strings"
)

const (
	tailBytes = 4096
	tailLines = 10
)

// logTail returns the last lines of the log, ready to be appended to an error.
func (p *Process) logTail() string {
	file, err := os.Open(p.spec.LogFile)
	if err != nil {
		return ""
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return ""
	}
	tail, err := io.ReadAll(io.NewSectionReader(file, max(0, info.Size()-tailBytes), tailBytes))
	if err != nil {
		return ""
	}
	text := strings.TrimSpace(string(tail))
	if text == "" {
		return "; its log " + p.spec.LogFile + " is empty"
	}
	lines := strings.Split(text, "\n")
	lines = lines[max(0, len(lines)-tailLines):]
	return "; the end of its log " + p.spec.LogFile + ":\n  " + strings.Join(lines, "\n  ")
}
