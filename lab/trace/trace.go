// Package trace records the journey of tokens through the lab.
//
// Every station (signer, key fetch, each check, grant, use) writes one [Event],
// keyed by a hash of the token. The token itself, its signature, and any
// secret made from it are never written: a log can be shown to anybody.
package trace

import (
	"crypto/sha256"
	"encoding/hex"
	"iter"
	"slices"
	"sync"
	"time"
)

// JourneyOf returns the identity of a token's journey: the first 12 hex digits
// of the SHA-256 of the compact token.
func JourneyOf(token string) string {
	sum := sha256.Sum256([]byte(token))
	return hex.EncodeToString(sum[:6])
}

// Outcome says how an event ended.
type Outcome string

// The outcomes.
const (
	OK      Outcome = "ok"
	Refused Outcome = "refused" // a check said no
	Failed  Outcome = "failed"  // something did not work
)

// Event is what one station did with one token.
type Event struct {
	Seq     int64     `json:"seq"`
	Time    time.Time `json:"time"`    // system time, not lab time
	Journey string    `json:"journey"` // see JourneyOf
	Station string    `json:"station"` // "signer", "aws", "generic", "vault", "resource", ...
	Step    string    `json:"step"`    // "mint", "discovery", "jwks", "check", "grant", "use"
	Name    string    `json:"name"`    // the check, key id, role or resource
	Outcome Outcome   `json:"outcome"`
	Reason  string    `json:"reason,omitempty"` // of a refusal
	Want    string    `json:"want,omitempty"`
	Got     string    `json:"got,omitempty"`
	Detail  string    `json:"detail,omitempty"`
}

// capacity is the number of events a Log keeps; older ones are overwritten.
const capacity = 20_000

// Log is an append-only, bounded record. Readers hold a position, so a slow
// reader can neither block a writer nor lose an event that is still kept.
// A nil *Log drops everything. It is safe for concurrent use.
type Log struct {
	mu     sync.Mutex
	next   int64
	events []Event       // the event with sequence number seq is at (seq-1) % capacity
	more   chan struct{} // closed when an event is added; nil while no reader waits
}

// New returns an empty log.
func New() *Log { return &Log{next: 1} }

// Add appends e, filling in Seq and, if it is zero, Time.
func (l *Log) Add(e Event) {
	if l == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	e.Seq = l.next
	l.next++
	if e.Time.IsZero() {
		e.Time = time.Now()
	}
	if len(l.events) < capacity {
		l.events = append(l.events, e)
	} else {
		l.events[(e.Seq-1)%capacity] = e
	}
	if l.more != nil {
		close(l.more)
		l.more = nil
	}
}

// Since returns the events after position seq (0 for all) and a channel that is
// closed when there are more.
func (l *Log) Since(seq int64) ([]Event, <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.more == nil {
		l.more = make(chan struct{})
	}
	return slices.Collect(l.after(seq)), l.more
}

// Journey returns the events of one journey, oldest first.
func (l *Log) Journey(id string) []Event {
	l.mu.Lock()
	defer l.mu.Unlock()
	var events []Event
	for e := range l.after(0) {
		if e.Journey == id {
			events = append(events, e)
		}
	}
	return events
}

// after returns the events after position seq that are kept, oldest first. The
// lock must be held while they are read.
func (l *Log) after(seq int64) iter.Seq[Event] {
	return func(yield func(Event) bool) {
		for s := max(seq+1, l.next-int64(len(l.events))); s < l.next; s++ {
			if !yield(l.events[(s-1)%capacity]) {
				return
			}
		}
	}
}
