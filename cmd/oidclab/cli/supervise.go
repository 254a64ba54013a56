package cli

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/oidclab/oidclab/lab"
	"github.com/oidclab/oidclab/lab/control"
	"github.com/oidclab/oidclab/lab/problem"
)

// downTimeout bounds how long a supervisor takes to end.
const downTimeout = 20 * time.Second

// lockFD is where a supervisor finds the lock that `up` took for it.
const lockFD = 3

// superviseRequest is what `up` writes to the supervisor's stdin, as one line
// of JSON. Then it keeps stdin open until the lab is ready: the end of stdin
// before that means that `up` is gone, and the lab is not wanted any more.
type superviseRequest struct {
	Spec    lab.Spec      `json:"spec"`
	Timeout time.Duration `json:"timeout"`
	Keep    bool          `json:"keep"`
}

// superviseEvent is what the supervisor writes to its stdout, a line each: steps,
// then either Ready or a problem, then nothing more.
type superviseEvent struct {
	Step    *lab.StepEvent   `json:"step,omitempty"`
	Ready   *lab.Info        `json:"ready,omitempty"`
	Problem *problem.Problem `json:"problem,omitempty"`
}

func (a *app) superviseCommand() *cobra.Command {
	return &cobra.Command{
		Use: superviseCommand, Hidden: true, Args: exactly(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			dir, err := a.state()
			if err != nil {
				return err
			}
			return superviseInBackground(cmd.Context(), dir, a.Streams)
		},
	}
}

// superviseInBackground is the life of a background supervisor.
func superviseInBackground(ctx context.Context, dir stateDir, streams Streams) (err error) {
	lock := os.NewFile(lockFD, dir.lockFile())
	if !dir.lockedBy(lock) {
		return problem.New(problem.Usage, "oidclab up", "%s is started by `up` only", superviseCommand)
	}
	syscall.CloseOnExec(lockFD) // children must not keep the lab locked
	defer func() { _ = lock.Close() }()
	signal.Ignore(syscall.SIGPIPE) // `up`, which reads our stdout, may have been killed

	events := json.NewEncoder(streams.Out)
	defer func() {
		if err != nil {
			_ = events.Encode(superviseEvent{Problem: problem.Of(err)})
		}
	}()
	stdin := bufio.NewReader(streams.In)
	request, err := readRequest(stdin)
	if err == nil {
		err = dir.setOwner(lock)
	}
	if err != nil {
		return errors.Join(err, dir.remove())
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var decided sync.Once // a start is abandoned or announced, never both
	go func() {
		_, _ = io.Copy(io.Discard, stdin)
		decided.Do(cancel)
	}()
	s := supervisor{
		dir: dir, request: request, log: newLog(streams.Err),
		observe: func(e lab.StepEvent) { _ = events.Encode(superviseEvent{Step: &e}) },
		ready: func(info lab.Info) {
			decided.Do(func() {
				_ = events.Encode(superviseEvent{Ready: &info})
				// Whoever reads our output waits for its end. Logs go on to stderr.
				if file, ok := streams.Out.(*os.File); ok {
					_ = file.Close()
				}
			})
		},
	}
	return s.run(ctx)
}

func readRequest(stdin *bufio.Reader) (request superviseRequest, err error) {
	line, err := stdin.ReadBytes('\n')
	if err == nil {
		err = json.Unmarshal(line, &request)
	}
	if err != nil {
		return request, fmt.Errorf("the request of `up`: %w", err)
	}
	return request, nil
}

// supervisor brings up a lab, answers for it, and takes it down. Who runs it
// holds the lock of the directory.
type supervisor struct {
	dir     stateDir
	request superviseRequest
	log     *slog.Logger
	observe func(lab.StepEvent)
	ready   func(lab.Info)
}

// run returns nil after a lab that was ready has gone down. It leaves nothing
// behind, but for the files of a lab that did not come up and shall be kept.
func (s supervisor) run(ctx context.Context) (err error) {
	if err := os.MkdirAll(string(s.dir), 0o700); err != nil {
		return environment(err)
	}
	up := false
	defer func() {
		// What is left of a lab that went down badly; without this, nobody would know of it.
		if reapErr := s.dir.reap(context.WithoutCancel(ctx)); reapErr != nil {
			err = errors.Join(err, reapErr)
			return
		}
		if !up && s.request.Keep {
			return
		}
		if removeErr := s.dir.remove(); removeErr != nil {
			err = errors.Join(err, environment(removeErr))
		}
	}()
	start, cancel := context.WithTimeoutCause(ctx, s.request.Timeout,
		problem.New(problem.Timeout, "allow more with --timeout; --keep keeps the logs", "the lab was not ready within %s", s.request.Timeout))
	defer cancel()
	spec := s.request.Spec
	spec.Log = s.log
	l, err := lab.Up(start, spec, s.observe)
	if err != nil {
		return environment(err)
	}
	up = true
	defer func() {
		down, cancel := context.WithTimeout(context.WithoutCancel(ctx), downTimeout)
		defer cancel()
		err = errors.Join(err, l.Down(down))
		s.log.Info("down")
	}()
	return s.answer(ctx, l)
}

// answer serves the control socket until ctx ends or a client asks for the end.
func (s supervisor) answer(ctx context.Context, l *lab.Lab) (err error) {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	listener, err := net.Listen("unix", s.dir.controlSocket())
	if err != nil {
		return environment(fmt.Errorf("the control socket: %w", err))
	}
	server := &http.Server{Handler: control.Handler(l, stop), ErrorLog: slog.NewLogLogger(s.log.Handler(), slog.LevelWarn)}
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	defer func() {
		// Followers of the trace never end by themselves.
		finish, cancel := context.WithTimeout(context.WithoutCancel(ctx), 200*time.Millisecond)
		defer cancel()
		if server.Shutdown(finish) != nil {
			_ = server.Close()
		}
	}()
	if err := s.dir.writeInfo(l.Info()); err != nil {
		return err
	}
	s.log.Info("ready", "front", l.Info().Front)
	s.ready(l.Info())
	select {
	case <-ctx.Done():
		return nil
	case err := <-served:
		return fmt.Errorf("the control socket: %w", err)
	}
}

func newLog(out io.Writer) *slog.Logger {
	return slog.New(slog.NewTextHandler(out, nil))
}

// startSupervisor runs a supervisor in the background and shows its progress
// until it is ready or has failed. The lock passes to it.
func startSupervisor(ctx context.Context, dir stateDir, lock *os.File, request superviseRequest, observe func(lab.StepEvent)) (_ lab.Info, err error) {
	started := false
	defer func() {
		if !started {
			err = errors.Join(err, dir.remove())
		}
		_ = lock.Close()
	}()
	executable, err := os.Executable()
	if err != nil {
		return lab.Info{}, err
	}
	if err := os.MkdirAll(filepath.Dir(dir.supervisorLog()), 0o700); err != nil {
		return lab.Info{}, environment(err)
	}
	log, err := os.OpenFile(dir.supervisorLog(), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return lab.Info{}, environment(err)
	}
	defer func() { _ = log.Close() }()

	// Not CommandContext: a cancelled `up` asks for an orderly end by closing stdin.
	command := exec.Command(executable, superviseCommand, "--name", dir.name())
	command.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	// What `env --for vault` printed for a lab before this one would break Vault's client in the supervisor.
	command.Env = slices.DeleteFunc(os.Environ(), func(entry string) bool { return strings.HasPrefix(entry, "VAULT_") })
	// testcontainers-go's reaper needs an image of its own; `oidclab down` reaps.
	command.Env = append(command.Env, "TESTCONTAINERS_RYUK_DISABLED=true")
	command.Stderr = log
	command.ExtraFiles = []*os.File{lock}
	stdin, err := command.StdinPipe()
	if err != nil {
		return lab.Info{}, err
	}
	stdout, err := command.StdoutPipe()
	if err != nil {
		return lab.Info{}, err
	}
	if err := command.Start(); err != nil {
		return lab.Info{}, err
	}
	started = true
	_ = lock.Close() // the supervisor's descriptor of the same open file holds it now
	stopWatching := context.AfterFunc(ctx, func() { _ = stdin.Close() })
	defer stopWatching()
	if err := json.NewEncoder(stdin).Encode(request); err != nil && ctx.Err() == nil {
		return lab.Info{}, err
	}
	decoder := json.NewDecoder(stdout)
	for {
		var event superviseEvent
		if err := decoder.Decode(&event); err != nil {
			_ = stdin.Close()
			state := command.Wait()
			if ctx.Err() != nil {
				return lab.Info{}, context.Canceled
			}
			return lab.Info{}, problem.New(problem.Internal, "oidclab up --foreground shows why", "the supervisor ended before the lab was ready: %v", state)
		}
		switch {
		case event.Step != nil:
			observe(*event.Step)
		case event.Ready != nil:
			return *event.Ready, nil
		case event.Problem != nil:
			_ = stdin.Close()
			_ = command.Wait() // it removes what is left before it ends
			if ctx.Err() != nil {
				return lab.Info{}, context.Canceled
			}
			return lab.Info{}, event.Problem
		}
	}
}
