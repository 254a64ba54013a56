package lab

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

// undoTimeout bounds each clean-up: longer than any component's own grace.
const undoTimeout = 15 * time.Second

// StepEvent tells that a step began, is at something, or ended.
type StepEvent struct {
	Name    string        `json:"name"`
	Done    bool          `json:"done"`
	Elapsed time.Duration `json:"elapsedNanoseconds,omitempty"` // once it is done
	Detail  string        `json:"detail,omitempty"`             // for instance a URL; before it is done, what the step is at
	Error   string        `json:"error,omitempty"`
}

// plan is a set of steps, each of which starts as soon as those it needs are
// done. A step can only need steps that were declared before, so there are no
// cycles, and undoing newest first is always in the order of dependency.
type plan struct {
	steps []*step
}

type step struct {
	name  string
	start func(context.Context, *undo) (detail string, err error)
	needs []*step
	done  chan struct{} // closed when the step has ended
	err   error
}

func (p *plan) step(name string, start func(context.Context, *undo) (string, error), needs ...*step) *step {
	s := &step{name: name, start: start, needs: needs, done: make(chan struct{})}
	p.steps = append(p.steps, s)
	return s
}

// up starts every step. If one fails, the others are cancelled and waited for
// and everything acquired is undone before up returns the first cause.
// ctx bounds the start only. observe may be called by several goroutines.
func (p *plan) up(outer context.Context, u *undo, observe func(StepEvent)) error {
	ctx, cancel := context.WithCancelCause(outer)
	defer cancel(nil)
	var group sync.WaitGroup
	for _, s := range p.steps {
		group.Go(func() {
			defer close(s.done)
			for _, need := range s.needs {
				<-need.done
				if need.err != nil {
					s.err = need.err
					return
				}
			}
			if s.err = context.Cause(ctx); s.err != nil {
				return
			}
			began := time.Now()
			observe(StepEvent{Name: s.name})
			detail, err := s.start(ctx, u)
			event := StepEvent{Name: s.name, Done: true, Elapsed: time.Since(began), Detail: detail}
			if err != nil {
				if cause := context.Cause(ctx); cause != nil && errors.Is(err, context.Canceled) {
					s.err = cause // a sibling failed first, or the caller gave up
				} else {
					s.err = fmt.Errorf("%s: %w", s.name, err)
				}
				event.Error = s.err.Error()
				cancel(s.err)
			}
			observe(event)
		})
	}
	group.Wait()
	err := context.Cause(ctx)
	if err == nil {
		return nil
	}
	// Out of time: what was waited for says more than that.
	if outer.Err() != nil && !errors.Is(err, context.Canceled) {
		for _, s := range p.steps {
			if s.err != nil && s.err != err {
				err = fmt.Errorf("%w: %w", err, s.err)
				break
			}
		}
	}
	if undoErr := u.all(context.WithoutCancel(ctx)); undoErr != nil {
		return errors.Join(err, undoErr)
	}
	return err
}

// oneAtATime returns an observer that may be called by several goroutines.
func oneAtATime(observe func(StepEvent)) func(StepEvent) {
	var mu sync.Mutex
	return func(e StepEvent) {
		mu.Lock()
		defer mu.Unlock()
		observe(e)
	}
}

// undo is a stack of clean-ups.
type undo struct {
	mu    sync.Mutex
	stack []cleanup
}

type cleanup struct {
	name string
	run  func(context.Context) error
}

// add registers a clean-up. Call it right after acquiring the resource, before
// anything that can fail.
func (u *undo) add(name string, run func(context.Context) error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.stack = append(u.stack, cleanup{name, run})
}

// all runs every clean-up, newest first, whatever the others return, and joins
// their errors. A second call finds nothing left to do.
func (u *undo) all(ctx context.Context) error {
	u.mu.Lock()
	stack := u.stack
	u.stack = nil
	u.mu.Unlock()
	var errs []error
	for i := len(stack) - 1; i >= 0; i-- {
		ctx, cancel := context.WithTimeout(ctx, undoTimeout)
		if err := stack[i].run(ctx); err != nil {
			errs = append(errs, fmt.Errorf("stopping %s: %w", stack[i].name, err))
		}
		cancel()
	}
	return errors.Join(errs...)
}
