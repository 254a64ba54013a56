package lab

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

type record struct {
	mu    sync.Mutex
	lines []string
}

func (r *record) add(line string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.lines = append(r.lines, line)
}

func (r *record) cleanup(name string, err error) func(context.Context) error {
	return func(ctx context.Context) error {
		if ctx.Err() != nil {
			name += " on a dead context"
		}
		r.add(name)
		return err
	}
}

func TestPlanStartsInOrderOfNeedAndUndoesInReverse(t *testing.T) {
	var p plan
	var u undo
	var r record
	acquire := func(name string) func(context.Context, *undo) (string, error) {
		return func(_ context.Context, u *undo) (string, error) {
			r.add("start " + name)
			u.add(name, r.cleanup("stop "+name, nil))
			return "", nil
		}
	}
	ca := p.step("ca", acquire("ca"))
	front := p.step("front", acquire("front"), ca)
	p.step("cluster", acquire("cluster"), front)
	var events []StepEvent
	if err := p.up(t.Context(), &u, oneAtATime(func(e StepEvent) { events = append(events, e) })); err != nil {
		t.Fatal(err)
	}
	if err := u.all(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := u.all(t.Context()); err != nil {
		t.Fatal(err)
	}
	want := []string{"start ca", "start front", "start cluster", "stop cluster", "stop front", "stop ca"}
	if !slices.Equal(r.lines, want) {
		t.Errorf("got %q", r.lines)
	}
	if len(events) != 6 {
		t.Errorf("%d events: %+v", len(events), events)
	}
}

func TestPlanStartsIndependentStepsTogether(t *testing.T) {
	var p plan
	var u undo
	meet := make(chan struct{})
	p.step("a", func(ctx context.Context, _ *undo) (string, error) {
		select {
		case meet <- struct{}{}:
			return "", nil
		case <-ctx.Done():
			return "", ctx.Err()
		}
	})
	p.step("b", func(ctx context.Context, _ *undo) (string, error) {
		select {
		case <-meet:
			return "", nil
		case <-ctx.Done():
			return "", ctx.Err()
		}
	})
	if err := p.up(t.Context(), &u, func(StepEvent) {}); err != nil {
		t.Fatal(err)
	}
}

func TestAFailedStepCancelsSiblingsUndoesAllAndIsReportedOnce(t *testing.T) {
	var p plan
	var u undo
	var r record
	first := p.step("first", func(_ context.Context, u *undo) (string, error) {
		u.add("first", r.cleanup("stop first", errors.New("stuck")))
		return "", nil
	})
	siblingRuns := make(chan struct{})
	p.step("sibling", func(ctx context.Context, u *undo) (string, error) {
		u.add("sibling", r.cleanup("stop sibling", nil))
		close(siblingRuns)
		<-ctx.Done()
		return "", ctx.Err()
	}, first)
	failing := p.step("failing", func(_ context.Context, u *undo) (string, error) {
		<-siblingRuns
		u.add("half of failing", r.cleanup("stop half of failing", nil))
		return "", errors.New("boom")
	}, first)
	p.step("later", func(context.Context, *undo) (string, error) {
		r.add("later started")
		return "", nil
	}, failing)

	err := p.up(t.Context(), &u, func(StepEvent) {})
	if err == nil || strings.Count(err.Error(), "boom") != 1 || !strings.HasPrefix(err.Error(), "failing: boom") {
		t.Errorf("got %v", err)
	}
	if strings.Contains(err.Error(), "context canceled") || !strings.Contains(err.Error(), "stopping first: stuck") {
		t.Errorf("got %v", err)
	}
	want := []string{"stop half of failing", "stop sibling", "stop first"}
	if !slices.Equal(r.lines, want) {
		t.Errorf("got %q", r.lines)
	}
}

func TestAnInterruptedPlanUndoesOnALiveContext(t *testing.T) {
	var p plan
	var u undo
	var r record
	ctx, cancel := context.WithCancelCause(t.Context())
	interrupted := errors.New("interrupted")
	p.step("slow", func(ctx context.Context, u *undo) (string, error) {
		u.add("slow", r.cleanup("stop slow", nil))
		cancel(interrupted)
		<-ctx.Done()
		return "", ctx.Err()
	})
	if err := p.up(ctx, &u, func(StepEvent) {}); !errors.Is(err, interrupted) {
		t.Errorf("got %v", err)
	}
	if !slices.Equal(r.lines, []string{"stop slow"}) {
		t.Errorf("got %q", r.lines)
	}
}

func TestATimeoutSaysWhatWasWaitedFor(t *testing.T) {
	var p plan
	var u undo
	outOfTime := errors.New("not ready within 1ms")
	ctx, cancel := context.WithTimeoutCause(t.Context(), time.Millisecond, outOfTime)
	defer cancel()
	p.step("cluster", func(ctx context.Context, _ *undo) (string, error) {
		<-ctx.Done()
		return "", fmt.Errorf("etcd does not answer: %w", ctx.Err())
	})
	err := p.up(ctx, &u, func(StepEvent) {})
	if !errors.Is(err, outOfTime) || !strings.Contains(err.Error(), "cluster: etcd does not answer") {
		t.Errorf("got %v", err)
	}
}
