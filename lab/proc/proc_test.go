package proc_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/oidclab/oidclab/lab/proc"
)

// deadline is how long a test waits for a condition.
const deadline = 20 * time.Second

// TestMain runs the test binary as one of the children, if so asked.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 {
		if child, ok := children[os.Args[1]]; ok {
			child(os.Args[2:])
			return
		}
	}
	os.Exit(m.Run())
}

var children = map[string]func(args []string){
	"wait": func([]string) { forever() },
	"environment": func([]string) {
		fmt.Println("environment:", os.Environ())
		forever()
	},
	"stubborn": func(args []string) {
		signal.Ignore(syscall.SIGTERM)
		touch(args[0])
		forever()
	},
	"exit": func(args []string) {
		for i := range 20 {
			fmt.Println("line", i)
		}
		fmt.Fprintln(os.Stderr, "cannot go on")
		status, _ := strconv.Atoi(args[0])
		os.Exit(status)
	},
	// once runs the first time, and exits at once ever after.
	"once": func(args []string) {
		if _, err := os.Stat(args[0]); err == nil {
			os.Exit(7)
		}
		touch(args[0])
		forever()
	},
	"parent": func(args []string) {
		grandchild := exec.Command(os.Args[0], "wait")
		if err := grandchild.Start(); err != nil {
			panic(err)
		}
		if err := os.WriteFile(args[0]+".new", []byte(strconv.Itoa(grandchild.Process.Pid)), 0o600); err != nil {
			panic(err)
		}
		if err := os.Rename(args[0]+".new", args[0]); err != nil {
			panic(err)
		}
		forever()
	},
	"extra": func([]string) {
		content, err := io.ReadAll(os.NewFile(proc.FirstExtraFD, "extra"))
		fmt.Println("extra:", string(content), err)
		forever()
	},
	"lifeline": func([]string) {
		if err := proc.WatchLifeline(proc.LifelineFD); err != nil {
			fmt.Println(err)
			os.Exit(3)
		}
		forever()
	},
	// supervisor starts a child and prints its process id.
	"supervisor": func(args []string) {
		process, err := proc.Start(context.Background(), proc.Spec{
			Name: "child", Path: os.Args[0], Args: args[1:], LogFile: args[0], Restart: proc.Always,
		})
		if err != nil {
			panic(err)
		}
		fmt.Println(process.Status().PID)
		forever()
	},
}

// forever waits for a signal to end the process.
func forever() {
	for {
		_ = syscall.Pause() // returns for each signal that does not end the process
	}
}

func touch(path string) {
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		panic(err)
	}
}

// spec returns a spec that runs one of the children.
func spec(t *testing.T, args ...string) proc.Spec {
	t.Helper()
	executable, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return proc.Spec{Name: args[0], Path: executable, Args: args, LogFile: filepath.Join(t.TempDir(), "log")}
}

// start starts a process, and checks in the end that it is gone.
func start(t *testing.T, s proc.Spec) *proc.Process {
	t.Helper()
	t.Cleanup(func() { goleak.VerifyNone(t) })
	ctx, cancel := context.WithTimeout(t.Context(), deadline)
	defer cancel()
	process, err := proc.Start(ctx, s)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stop(t, process) })
	return process
}

func stop(t *testing.T, process *proc.Process) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), deadline)
	defer cancel()
	pid := process.Status().PID
	if err := process.Stop(ctx); err != nil {
		t.Error(err)
	}
	if got := process.Status(); got.State != proc.Stopped || got.PID != 0 {
		t.Errorf("after Stop: got %+v", got)
	}
	if pid != 0 && alive(pid) {
		t.Errorf("process %d is still there", pid)
	}
}

func alive(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	_, after, _ := strings.Cut(string(stat), ") ")
	return !strings.HasPrefix(after, "Z") // a zombie has died
}

// eventually waits until a condition returns nil.
func eventually(t *testing.T, condition func() error) {
	t.Helper()
	end := time.After(deadline)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		err := condition()
		if err == nil {
			return
		}
		select {
		case <-tick.C:
		case <-end:
			t.Fatalf("after %s: %v", deadline, err)
		}
	}
}

func exists(path string) func(context.Context) error {
	return func(context.Context) error {
		_, err := os.Stat(path)
		return err
	}
}

func TestStartWaitsUntilReady(t *testing.T) {
	marker := filepath.Join(t.TempDir(), "ready")
	s := spec(t, "stubborn", marker)
	probes := 0
	s.Ready = func(ctx context.Context) error {
		if probes++; probes < 3 {
			return errors.New("not yet")
		}
		return exists(marker)(ctx)
	}
	s.StopGrace = time.Millisecond
	process := start(t, s)
	if probes < 3 {
		t.Errorf("ready after %d probes, want it to have waited", probes)
	}
	if got := process.Status(); got.State != proc.Running || !alive(got.PID) || got.Reason != "" {
		t.Errorf("got %+v, want a running process", got)
	}
	info, err := os.Stat(s.LogFile)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("log file: got mode %v (%v), want 0600", info.Mode(), err)
	}
}

func TestStartFails(t *testing.T) {
	defer goleak.VerifyNone(t)
	missing := spec(t, "wait")
	missing.Path = "/does/not/exist"
	noLog := spec(t, "wait")
	noLog.LogFile = filepath.Join(t.TempDir(), "none", "log")
	exits := spec(t, "exit", "3")
	exits.Ready = func(context.Context) error { return errors.New("nobody listens") }
	respawns := exits
	respawns.Restart = proc.Always
	never := spec(t, "wait")
	never.Ready = exits.Ready
	for name, c := range map[string]struct {
		spec proc.Spec
		want []string
	}{
		"program is missing":          {missing, []string{"wait", "no such file"}},
		"log cannot be written":       {noLog, []string{"no such file"}},
		"exits":                       {exits, []string{"exit", "exit status 3", "cannot go on", "line 19"}},
		"exits, and may be restarted": {respawns, []string{"exit status 3", "cannot go on"}},
		"is never ready":              {never, []string{"nobody listens", "deadline"}},
	} {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		process, err := proc.Start(ctx, c.spec)
		cancel()
		if err == nil {
			stop(t, process)
			t.Errorf("%s: started", name)
			continue
		}
		for _, want := range c.want {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%s: got error %q, want one that says %q", name, err, want)
			}
		}
		if strings.Contains(err.Error(), "line 1\n") {
			t.Errorf("%s: the error holds more than the end of the log", name)
		}
	}
}

func TestStartCancelled(t *testing.T) {
	defer goleak.VerifyNone(t)
	marker := filepath.Join(t.TempDir(), "started")
	s := spec(t, "stubborn", marker) // would not end by itself
	s.StopGrace = 10 * time.Millisecond
	ctx, cancel := context.WithCancelCause(t.Context())
	interrupted := errors.New("interrupted")
	s.Ready = func(ctx context.Context) error {
		if exists(marker)(ctx) == nil {
			cancel(interrupted)
		}
		return errors.New("not yet")
	}
	if _, err := proc.Start(ctx, s); !errors.Is(err, interrupted) || !strings.Contains(err.Error(), "not yet") {
		t.Errorf("got %v, want the cause and the last reason", err)
	}
	if pids := withArgument(t, marker); len(pids) != 0 {
		t.Errorf("left behind: %v", pids)
	}
}

// withArgument returns the processes that have an argument.
func withArgument(t *testing.T, argument string) []string {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for _, file := range files {
		content, err := os.ReadFile(file)
		if err == nil && slices.Contains(strings.Split(string(content), "\x00"), argument) {
			found = append(found, file)
		}
	}
	return found
}

func TestContextBoundsTheStartOnly(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	process, err := proc.Start(ctx, spec(t, "wait"))
	cancel()
	if err != nil {
		t.Fatal(err)
	}
	defer stop(t, process)
	if got := process.Status(); got.State != proc.Running || !alive(got.PID) {
		t.Errorf("got %+v, want it to run on", got)
	}
}

func TestRestartAfterKill(t *testing.T) {
	s := spec(t, "wait")
	s.Restart = proc.Always
	process := start(t, s)
	for restarts := 1; restarts <= 2; restarts++ {
		before := process.Status()
		if err := syscall.Kill(before.PID, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		eventually(t, func() error {
			if got := process.Status(); got.State != proc.Running || got.Restarts != restarts || got.LastExit != "signal: killed" || got.PID == before.PID {
				return fmt.Errorf("got %+v, want it running again", got)
			}
			return nil
		})
	}
}

func TestNoRestartUnlessAskedFor(t *testing.T) {
	process := start(t, spec(t, "wait"))
	if err := syscall.Kill(process.Status().PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() error {
		if got := process.Status(); got.State != proc.Stopped || got.LastExit != "signal: killed" {
			return fmt.Errorf("got %+v, want it stopped", got)
		}
		return nil
	})
}

// TestStopInEachPhase stops a process that is starting, running, waiting for its
// next start, stopped, and twice at the same time.
func TestStopInEachPhase(t *testing.T) {
	t.Run("running, twice", func(t *testing.T) {
		process := start(t, spec(t, "wait"))
		stop(t, process)
		stop(t, process)
	})
	t.Run("restarting", func(t *testing.T) {
		marker := filepath.Join(t.TempDir(), "marker")
		s := spec(t, "once", marker)
		s.Ready = exists(marker)
		s.Restart = proc.Always
		process := start(t, s)
		if err := syscall.Kill(process.Status().PID, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		eventually(t, func() error {
			if got := process.Status(); got.LastExit != "exit status 7" || got.State != proc.Restarting {
				return fmt.Errorf("got %+v, want it to fail again and again", got)
			}
			return nil
		})
		stop(t, process)
	})
	t.Run("exited", func(t *testing.T) {
		process := start(t, spec(t, "wait"))
		if err := syscall.Kill(process.Status().PID, syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		eventually(t, func() error {
			if got := process.Status(); got.State != proc.Stopped {
				return fmt.Errorf("got %+v", got)
			}
			return nil
		})
		stop(t, process)
	})
	t.Run("at the same time", func(t *testing.T) {
		process := start(t, spec(t, "wait"))
		var stops sync.WaitGroup
		for range 4 {
			stops.Go(func() { stop(t, process) })
		}
		stops.Wait()
	})
}

func TestStopKillsAfterTheGrace(t *testing.T) {
	marker := filepath.Join(t.TempDir(), "marker")
	s := spec(t, "stubborn", marker)
	s.Ready = exists(marker)
	s.StopGrace = 50 * time.Millisecond
	process := start(t, s)
	began := time.Now()
	stop(t, process)
	if got, took := process.Status().LastExit, time.Since(began); got != "signal: killed" || took > deadline/2 {
		t.Errorf("got %q after %s, want it killed after the grace", got, took)
	}

	control := start(t, spec(t, "wait"))
	stop(t, control)
	if got := control.Status().LastExit; got != "signal: terminated" {
		t.Errorf("control: got %q, want it terminated", got)
	}
}

func TestStopKillsWhenItsContextEnds(t *testing.T) {
	marker := filepath.Join(t.TempDir(), "marker")
	s := spec(t, "stubborn", marker)
	s.Ready = exists(marker)
	s.StopGrace = time.Hour
	process := start(t, s)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := process.Stop(ctx); err != nil {
		t.Error(err)
	}
	if got := process.Status(); got.State != proc.Stopped || got.LastExit != "signal: killed" {
		t.Errorf("got %+v, want it killed", got)
	}
}

func TestStopEndsTheWholeGroup(t *testing.T) {
	file := filepath.Join(t.TempDir(), "pid")
	s := spec(t, "parent", file)
	s.Ready = exists(file)
	process := start(t, s)
	content, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	grandchild, err := strconv.Atoi(string(content))
	if err != nil {
		t.Fatal(err)
	}
	// The grandchild outlives a parent that is killed alone, unless its group is.
	if err := syscall.Kill(process.Status().PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() error {
		if alive(grandchild) {
			return fmt.Errorf("grandchild %d is still there", grandchild)
		}
		return nil
	})
}

func TestEnvironmentIsExplicit(t *testing.T) {
	t.Setenv("INHERITED", "yes")
	for _, env := range [][]string{nil, {"A=1"}} {
		t.Run(fmt.Sprint(env), func(t *testing.T) {
			s := spec(t, "environment")
			s.Env = env
			s.Ready = func(context.Context) error {
				return contains(s.LogFile, fmt.Sprintf("environment: %v\n", env))
			}
			start(t, s)
		})
	}
}

func TestExtraFiles(t *testing.T) {
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer read.Close()
	if _, err := write.WriteString("hello"); err != nil {
		t.Fatal(err)
	}
	if err := write.Close(); err != nil {
		t.Fatal(err)
	}
	s := spec(t, "extra")
	s.ExtraFiles = []*os.File{read}
	s.Ready = func(context.Context) error { return contains(s.LogFile, "extra: hello <nil>\n") }
	start(t, s)
}

func contains(file, want string) error {
	content, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	if !strings.Contains(string(content), want) {
		return fmt.Errorf("%s holds %q, not %q", file, content, want)
	}
	return nil
}

func TestLifelineNeedsASupervisor(t *testing.T) {
	executable, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	output, err := exec.CommandContext(t.Context(), executable, "lifeline").CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 3 || !strings.Contains(string(output), "lifeline") {
		t.Errorf("got %v and %q, want it refused", err, output)
	}
}

// TestChildrenDieWithTheSupervisor kills a supervisor with SIGKILL. A child that
// watches nothing dies by the kernel's parent death signal.
func TestChildrenDieWithTheSupervisor(t *testing.T) {
	for _, child := range []string{"wait", "lifeline"} {
		t.Run(child, func(t *testing.T) {
			executable, err := os.Executable()
			if err != nil {
				t.Fatal(err)
			}
			supervisor := exec.Command(executable, "supervisor", filepath.Join(t.TempDir(), "log"), child)
			stdout, err := supervisor.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := supervisor.Start(); err != nil {
				t.Fatal(err)
			}
			var pid int
			line, err := bufio.NewReader(stdout).ReadString('\n')
			if err == nil {
				pid, err = strconv.Atoi(strings.TrimSpace(line))
			}
			if err != nil || !alive(pid) {
				t.Errorf("no child: %q, %v", line, err)
			}
			if err := supervisor.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			killed := time.Now()
			_ = supervisor.Wait() // killed
			eventually(t, func() error {
				if alive(pid) {
					return fmt.Errorf("child %d is still there", pid)
				}
				return nil
			})
			if took := time.Since(killed); took > 2*time.Second {
				t.Errorf("the child lived on for %s, want at most 2 s", took)
			}
		})
	}
}

// TestChildrenSurviveTheEndOfThreads ends threads while children are started:
// the kernel's signal is tied to the thread that started the child.
func TestChildrenSurviveTheEndOfThreads(t *testing.T) {
	var threads sync.WaitGroup
	defer threads.Wait()
	churn, stopChurn := context.WithCancel(t.Context())
	defer stopChurn()
	for range 3 {
		threads.Go(func() {
			for churn.Err() == nil {
				ended := make(chan struct{})
				go func() {
					defer close(ended)
					// A goroutine that ends while locked to its thread takes the thread along.
					runtime.LockOSThread()
				}()
				<-ended
			}
		})
	}
	for range 10 {
		process, err := proc.Start(t.Context(), spec(t, "wait"))
		if err != nil {
			t.Fatal(err)
		}
		defer stop(t, process)
		defer func() {
			if got := process.Status(); got.State != proc.Running || !alive(got.PID) {
				t.Errorf("got %+v, want it running", got)
			}
		}()
	}
}
