// Package sandbox runs programs of this machine as if in a container: in mount,
// PID, UTS and IPC namespaces of their own, with a root file system to which
// they may write without changing the machine's, and with files mounted where
// they want them. It is about what a program sees, not about security: other
// file systems than the root, and the network, are shared. Linux only.
//
// The program that starts one executes itself to become it: see [Main].
package sandbox

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Descriptors of a process that becomes a sandbox.
const (
	specFD  = 3 // a pipe with its Spec, as JSON
	errorFD = 4 // a pipe for why it could not; it ends without a word when the command runs
)

// Spec is what a program gets.
type Spec struct {
	Dir             string // an empty directory for its root file system; without symbolic links
	Hostname        string
	Mounts          []Bind
	ReadOnlyRoot    bool
	UID, GID        int
	Groups          []int
	NoNewPrivileges bool
	Capabilities    []uintptr // that it may have at all; see capabilities(7)
	WorkingDir      string
	Args            []string // a name without a slash is looked for in the PATH of Env
	Env             []string // all of the environment

	// UserNamespace gives it a user namespace too, for those who are not root. It
	// maps UID and GID to those of this process, and has no groups.
	UserNamespace bool
}

// Bind is a file or directory of this machine that the program gets. Its target
// need not exist.
type Bind struct {
	Source   string
	Target   string
	ReadOnly bool
}

// namespaces are what a program has of its own. With the PID namespace, no
// process of it outlives its first.
const namespaces = unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC

// Process is a program in a sandbox.
type Process struct {
	Started time.Time
	exited  chan struct{} // closed when it has been reaped
	command *exec.Cmd
}

// StartError says that the sandbox or its command could not be had.
type StartError struct{ error }

// Start starts a program, whose output is appended to a file of mode 0600.
// command has this program call Main. The program dies with this process. What
// the program itself could not do is a StartError.
func Start(command []string, s Spec, logFile string) (*Process, error) {
	log, err := os.OpenFile(logFile, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer func() { _ = log.Close() }()
	specs, writeSpecs, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer func() { _ = specs.Close() }()
	report, writeReport, err := os.Pipe()
	if err != nil {
		return nil, errors.Join(err, writeSpecs.Close())
	}
	defer func() { _ = report.Close() }()

	cmd := exec.Command(command[0], command[1:]...)
	cmd.Env = []string{} // that of the container comes with the sandbox
	cmd.Stdout, cmd.Stderr = log, log
	cmd.ExtraFiles = []*os.File{specs, writeReport}
	cmd.SysProcAttr = s.attributes()
	p := &Process{exited: make(chan struct{}), command: cmd}
	started := make(chan error, 1)
	go func() {
		// The kernel sends the parent death signal when this thread ends.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		p.Started = time.Now()
		started <- err
		if err == nil {
			_ = cmd.Wait() // its state says it all
			close(p.exited)
		}
	}()
	err = <-started
	_ = writeReport.Close() // the child's alone, or nobody's
	if err != nil {
		return nil, errors.Join(fmt.Errorf("new namespaces: %w", err), writeSpecs.Close())
	}
	// It dies before it reads them only if it is killed: then its exit says so.
	_ = json.NewEncoder(writeSpecs).Encode(s)
	_ = writeSpecs.Close()
	problem, err := io.ReadAll(report)
	if err == nil && len(problem) == 0 {
		return p, nil
	}
	p.Signal(syscall.SIGKILL)
	<-p.exited
	return nil, StartError{errors.Join(err, errors.New(strings.TrimSpace(string(problem))))}
}

// Exited is closed when the program has ended, and all that it started.
func (p *Process) Exited() <-chan struct{} { return p.exited }

// Signal sends a signal; a program that has ended does not mind. It is the first
// process of its PID namespace: signals other than SIGKILL, for which it has no
// handler, do nothing (pid_namespaces(7)).
func (p *Process) Signal(signal syscall.Signal) { _ = p.command.Process.Signal(signal) }

// Exit returns the exit code as container runtimes give it, and the signal that
// ended the program, or 0. It must have ended.
func (p *Process) Exit() (code, signal int32) {
	status := p.command.ProcessState.Sys().(syscall.WaitStatus)
	if status.Signaled() {
		return 128 + int32(status.Signal()), int32(status.Signal())
	}
	return int32(status.ExitStatus()), 0
}

// attributes are those of a process that becomes a sandbox.
func (s Spec) attributes() *syscall.SysProcAttr {
	attributes := &syscall.SysProcAttr{Cloneflags: namespaces, Setsid: true, Pdeathsig: syscall.SIGKILL}
	if s.UserNamespace {
		attributes.Cloneflags |= unix.CLONE_NEWUSER
		attributes.UidMappings = []syscall.SysProcIDMap{{ContainerID: s.UID, HostID: os.Getuid(), Size: 1}}
		attributes.GidMappings = []syscall.SysProcIDMap{{ContainerID: s.GID, HostID: os.Getgid(), Size: 1}}
		attributes.AmbientCaps = []uintptr{unix.CAP_SYS_ADMIN, unix.CAP_SYS_CHROOT, unix.CAP_SETPCAP, unix.CAP_DAC_OVERRIDE}
	}
	return attributes
}

// Supported returns nil if this process may make such namespaces, and otherwise
// why not.
func Supported() error {
	// Only the error tells: the namespaces are made before the program is looked for.
	cmd := exec.Command("/nonexistent/program")
	cmd.SysProcAttr = Spec{UserNamespace: NeedsUserNamespace()}.attributes()
	if err := cmd.Run(); !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("no mount and PID namespaces: %w", err)
	}
	return nil
}

// NeedsUserNamespace says whether only a user namespace gives this process the
// rights that a sandbox takes.
func NeedsUserNamespace() bool { return os.Geteuid() != 0 }
