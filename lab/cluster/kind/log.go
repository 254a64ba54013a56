package kind

import (
	"fmt"
	"log/slog"
	"strings"

	kindlog "sigs.k8s.io/kind/pkg/log"
)

// kindLog is a log of kind that goes to the lab's.
type kindLog struct {
	log     *slog.Logger
	observe func(phase string) // may be nil
}

var _ kindlog.Logger = kindLog{}

func (l kindLog) Warn(message string)                  { l.log.Warn(tidied(message)) }
func (l kindLog) Warnf(format string, a ...any)        { l.Warn(fmt.Sprintf(format, a...)) }
func (l kindLog) Error(message string)                 { l.log.Error(tidied(message)) }
func (l kindLog) Errorf(format string, a ...any)       { l.Error(fmt.Sprintf(format, a...)) }
func (l kindLog) V(v kindlog.Level) kindlog.InfoLogger { return infoLog{l, v} }

// infoLog drops what kind says at higher levels: whole outputs of kubeadm.
type infoLog struct {
	kindLog
	level kindlog.Level
}

func (l infoLog) Enabled() bool { return l.level == 0 }

func (l infoLog) Info(message string) {
	if message = tidied(message); !l.Enabled() || message == "" {
		return
	}
	if phase, begins := strings.CutSuffix(message, "..."); begins && l.observe != nil {
		phase, _, _ = strings.Cut(phase, " (") // names that would not fit into a line
		l.observe(strings.TrimSpace(phase))
	}
	l.log.Info(message)
}

func (l infoLog) Infof(format string, a ...any) { l.Info(fmt.Sprintf(format, a...)) }

// tidied returns a message of kind without its layout for terminals.
func tidied(message string) string {
	return strings.TrimSpace(strings.Map(func(r rune) rune {
		if r > 0x2000 && r != '≤' { // bullets, ticks and emoji
			return -1
		}
		return r
	}, message))
}
