// Package problem is the vocabulary of what can go wrong for a user of the
// lab. A [Problem] says what, why and the next command; its kind fixes the exit
// code of the command line.
package problem

import (
	"context"
	"errors"
	"fmt"
)

// Kind is a class of problems. Its number is the exit code.
type Kind int

// The kinds.
const (
	Internal           Kind = 1
	Usage              Kind = 2
	NotRunning         Kind = 3
	NotReady           Kind = 4
	ScenariosFailed    Kind = 5
	Refused            Kind = 6 // a token was not accepted
	BadConfig          Kind = 7
	EnvironmentMissing Kind = 8
	Conflict           Kind = 9
	Timeout            Kind = 10
	Interrupted        Kind = 130
)

// Problem is an error for a person.
type Problem struct {
	Kind Kind   `json:"kind"`
	What string `json:"what"`           // what could not be done, and why
	Next string `json:"next,omitempty"` // the next command or step
	Err  error  `json:"-"`
}

// New returns a problem. The next step may be empty.
func New(kind Kind, next, format string, args ...any) *Problem {
	err := fmt.Errorf(format, args...)
	return &Problem{Kind: kind, What: err.Error(), Next: next, Err: errors.Unwrap(err)}
}

func (p *Problem) Error() string { return p.What }

// Unwrap returns the cause, if there is one.
func (p *Problem) Unwrap() error { return p.Err }

// Of returns err as a problem: itself if it is one, and otherwise by its cause.
// The text is err's, so that nothing wrapped around a problem is lost.
func Of(err error) *Problem {
	var p *Problem
	switch {
	case err == nil:
		return nil
	case errors.As(err, &p):
		return &Problem{Kind: p.Kind, What: err.Error(), Next: p.Next, Err: err}
	case errors.Is(err, context.DeadlineExceeded):
		return &Problem{Kind: Timeout, What: err.Error(), Next: "allow more time with --timeout, or look at: oidclab logs", Err: err}
	case errors.Is(err, context.Canceled):
		return &Problem{Kind: Interrupted, What: "interrupted", Err: err}
	}
	return &Problem{Kind: Internal, What: err.Error(), Err: err}
}
