package problem_test

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/oidclab/oidclab/lab/problem"
)

func TestOf(t *testing.T) {
	conflict := problem.New(problem.Conflict, "oidclab down", "port %d is taken", 8443)
	for _, test := range []struct {
		err  error
		kind problem.Kind
		what string
		next string
	}{
		{conflict, problem.Conflict, "port 8443 is taken", "oidclab down"},
		{fmt.Errorf("front: %w", conflict), problem.Conflict, "front: port 8443 is taken", "oidclab down"},
		{errors.New("boom"), problem.Internal, "boom", ""},
		{fmt.Errorf("etcd: %w", context.DeadlineExceeded), problem.Timeout, "etcd: context deadline exceeded", "allow more time with --timeout, or look at: oidclab logs"},
		{context.Canceled, problem.Interrupted, "interrupted", ""},
	} {
		got := problem.Of(test.err)
		if got.Kind != test.kind || got.What != test.what || got.Next != test.next {
			t.Errorf("%v: got %+v", test.err, got)
		}
	}
	if problem.Of(nil) != nil {
		t.Error("no error is a problem")
	}
	if cause := errors.New("cause"); !errors.Is(problem.New(problem.Internal, "", "x: %w", cause), cause) {
		t.Error("the cause is lost")
	}
}
