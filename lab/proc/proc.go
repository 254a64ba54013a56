// Package proc runs child processes that never outlive whoever started them.
//
// A process is ready when its probe says so, not when it has been started. One
// that ends unexpectedly is started again, if asked for. Children die with
// their supervisor, however it dies: the kernel kills a child when the thread
// that started it ends (prctl(2) PR_SET_PDEATHSIG), and a child that calls
// [WatchLifeline] also sees the end of a pipe. Linux only.
package proc

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"syscall"
	"time"
)

const (
	probeInterval = 20 * time.Millisecond // between two readiness probes
	probeTimeout  = 2 * time.Second       // of one probe
	firstBackoff  = 100 * time.Millisecond
	maxBackoff    = 5 * time.Second
	steadyAfter   = 10 * time.Second // a run of this length starts the backoff anew
	killTimeout   = 5 * time.Second  // for a process to be gone after SIGKILL
)

// Restart says what happens after an unexpected exit.
type Restart int

// The policies.
const (
	Never  Restart = iota
	Always         // after 100 ms, twice that for each exit in a row, at most 5 s
)

// Spec describes a child process. It runs in a process group of its own.
type Spec struct {
	Name       string   // in errors and status
	Path       string   // of the program
	Args       []string // without the program's name
	Env        []string // all of the environment: nothing is inherited
	Dir        string   // working directory; "" means that of the supervisor
	ExtraFiles []*os.File
	LogFile    string                      // gets stdout and stderr, appended; created with mode 0600
	Ready      func(context.Context) error // nil when ready, otherwise the reason why not; nil means ready at once
	Restart    Restart
	StopGrace  time.Duration // from SIGTERM to SIGKILL; 0 means 5 s
}

// State is what a process is doing.
type State string

// The states.
const (
	Starting   State = "starting"   // started for the first time, not ready yet
	Running    State = "running"    // ready
	Restarting State = "restarting" // ended unexpectedly; waiting for its next start, or not ready again yet
	Stopped    State = "stopped"    // not running, and will not be started again
)

// Status is the state of a process at one moment.
type Status struct {
	Name     string `json:"name"`
	State    State  `json:"state"`
	PID      int    `json:"pid,omitempty"` // 0 while it is not running
	Restarts int    `json:"restarts"`
	LastExit string `json:"lastExit,omitempty"` // of the previous run, for instance "signal: killed"
	Reason   string `json:"reason,omitempty"`   // why it is not ready
}

// Process is a supervised child process.
type Process struct {
	spec     Spec
	stop     chan struct{} // closed by the first Stop
	kill     chan struct{} // closed when a Stop has run out of time
	done     chan struct{} // closed when the supervision has ended
	stopOnce sync.Once
	killOnce sync.Once

	mu      sync.Mutex
	status  Status
	changed chan struct{} // closed at the next change of status
}

// Start starts a process and waits until it is ready. The context bounds the
// start only; a started process runs until Stop. If the process exits first, or
// the context ends, Start stops it and returns an error with the exit status or
// the last reason, and the last lines of its log.
func Start(ctx context.Context, spec Spec) (*Process, error) {
	if spec.StopGrace == 0 {
		spec.StopGrace = 5 * time.Second
	}
	if spec.Ready == nil {
		spec.Ready = func(context.Context) error { return nil }
	}
	p := &Process{
		spec:    spec,
		stop:    make(chan struct{}),
		kill:    make(chan struct{}),
		done:    make(chan struct{}),
		status:  Status{Name: spec.Name, State: Starting},
		changed: make(chan struct{}),
	}
	go p.supervise()
	if err := p.awaitFirstRun(ctx); err != nil {
		// The caller's context may be over; what was started must still be stopped.
		return nil, errors.Join(err, p.Stop(context.WithoutCancel(ctx)))
	}
	return p, nil
}

func (p *Process) awaitFirstRun(ctx context.Context) error {
	for {
		status, changed := p.watch()
		switch status.State {
		case Running:
			return nil
		case Restarting, Stopped:
			return fmt.Errorf("%s: exited before it was ready: %s%s", p.spec.Name, status.LastExit, p.logTail())
		}
		select {
		case <-changed:
		case <-ctx.Done():
			status := p.Status()
			return fmt.Errorf("%s: not ready: %s (%w)%s", p.spec.Name, status.Reason, context.Cause(ctx), p.logTail())
		}
	}
}

// Status returns the state of the process.
func (p *Process) Status() Status {
	status, _ := p.watch()
	return status
}

// Stop ends the process: SIGTERM to its group, and SIGKILL after the grace or
// when the context ends. It returns when the process is gone, whichever state
// it was in, and may be called again and concurrently.
func (p *Process) Stop(ctx context.Context) error {
	p.stopOnce.Do(func() { close(p.stop) })
	select {
	case <-p.done:
		return nil
	case <-ctx.Done():
	}
	p.killOnce.Do(func() { close(p.kill) })
	select {
	case <-p.done:
		return nil
	case <-time.After(killTimeout):
		return fmt.Errorf("%s: process %d is still there %s after SIGKILL", p.spec.Name, p.Status().PID, killTimeout)
	}
}

// supervise runs the process until it has ended for good. It keeps one thread
// to itself for as long as there can be a child: the kernel sends the parent
// death signal when the thread that started the child ends.
func (p *Process) supervise() {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	defer close(p.done)
	backoff := firstBackoff
	for {
		started := time.Now()
		exit := p.run()
		next := Restarting
		if p.stopping() || p.spec.Restart == Never {
			next = Stopped
		}
		p.update(func(s *Status) {
			s.State, s.PID, s.LastExit, s.Reason = next, 0, exit, "exited: "+exit
		})
		if next == Stopped {
			return
		}
		if time.Since(started) > steadyAfter {
			backoff = firstBackoff
		}
		select {
		case <-time.After(backoff):
		case <-p.stop:
			p.update(func(s *Status) { s.State = Stopped })
			return
		}
		backoff = min(2*backoff, maxBackoff)
		p.update(func(s *Status) { s.Restarts++ })
	}
}

// run runs the process once and returns how it ended.
func (p *Process) run() (exit string) {
	log, err := os.OpenFile(p.spec.LogFile, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err.Error()
	}
	defer log.Close()
	lifeline, keep, err := os.Pipe()
	if err != nil {
		return err.Error()
	}
	defer keep.Close() // the child sees the end of the pipe when the supervisor is gone
	defer lifeline.Close()

	cmd := exec.Command(p.spec.Path, p.spec.Args...)
	cmd.Env = append([]string{}, p.spec.Env...) // never nil, which would mean the supervisor's own
	cmd.Dir = p.spec.Dir
	cmd.Stdout, cmd.Stderr = log, log
	cmd.ExtraFiles = append([]*os.File{lifeline}, p.spec.ExtraFiles...)
	cmd.SysProcAttr = attributes()
	if err := cmd.Start(); err != nil {
		return err.Error()
	}
	p.update(func(s *Status) { s.PID, s.Reason = cmd.Process.Pid, "started" })

	exited := make(chan struct{})
	var helpers sync.WaitGroup
	helpers.Go(func() { p.probe(exited) })
	helpers.Go(func() { p.terminate(cmd.Process.Pid, exited) })
	awaitExit(cmd.Process.Pid)
	close(exited)
	helpers.Wait()
	// The child is dead but not yet reaped, so its group's number is still its
	// own: whatever it left behind goes now.
	_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
	if err := cmd.Wait(); err != nil && cmd.ProcessState == nil {
		return err.Error()
	}
	return cmd.ProcessState.String()
}

// probe asks whether the process is ready, until it is or has exited.
func (p *Process) probe(exited <-chan struct{}) {
	ctx, cancel := context.WithCancel(context.Background())
	var watcher sync.WaitGroup
	defer watcher.Wait()
	defer cancel()
	watcher.Go(func() {
		select {
		case <-exited:
			cancel()
		case <-ctx.Done():
		}
	})
	for {
		attempt, stop := context.WithTimeout(ctx, probeTimeout)
		err := p.spec.Ready(attempt)
		stop()
		if ctx.Err() != nil {
			return
		}
		if err == nil {
			p.update(func(s *Status) { s.State, s.Reason = Running, "" })
			return
		}
		p.update(func(s *Status) { s.Reason = err.Error() })
		select {
		case <-time.After(probeInterval):
		case <-exited:
			return
		}
	}
}

// terminate waits for Stop and signals the process group.
func (p *Process) terminate(pid int, exited <-chan struct{}) {
	select {
	case <-p.stop:
	case <-exited:
		return
	}
	_ = syscall.Kill(-pid, syscall.SIGTERM) // fails only if the process has just exited
	select {
	case <-exited:
		return
	case <-p.kill:
	case <-time.After(p.spec.StopGrace):
	}
	_ = syscall.Kill(-pid, syscall.SIGKILL)
}

func (p *Process) stopping() bool {
	select {
	case <-p.stop:
		return true
	default:
		return false
	}
}

func (p *Process) watch() (Status, <-chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.status, p.changed
}

func (p *Process) update(change func(*Status)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	change(&p.status)
	close(p.changed)
	p.changed = make(chan struct{})
}
