package sandbox

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// Main is the life of a process that Start started, in namespaces of its own,
// until it executes the command of its spec. It returns only if it cannot.
func Main() error {
	runtime.LockOSThread() // the parent death signal is the thread's that executes the command
	report := os.NewFile(errorFD, "error")
	syscall.CloseOnExec(errorFD)
	var s Spec
	specs := os.NewFile(specFD, "spec")
	err := json.NewDecoder(specs).Decode(&s)
	if err = errors.Join(err, specs.Close()); err == nil {
		err = s.enter()
	}
	if err == nil {
		err = s.execute()
	}
	_, writeErr := report.WriteString(err.Error())
	return errors.Join(err, writeErr)
}

// enter gives the process its file system.
func (s Spec) enter() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("mounts cannot be made private: %w", err)
	}
	others, err := mountsOnRoot()
	if err != nil {
		return err
	}
	var sources []*os.File // opened now: their paths are hidden later
	for _, m := range s.Mounts {
		source, err := os.OpenFile(m.Source, unix.O_PATH|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		sources = append(sources, source)
	}
	root := overlays{dir: s.Dir, userXattr: s.UserNamespace}
	if err := root.begin(); err != nil {
		return err
	}
	merged, err := root.mount("/")
	if err != nil {
		return err
	}
	for _, other := range others {
		err := unix.Mount(other, filepath.Join(merged, other), "", unix.MS_BIND|unix.MS_REC, "")
		if err != nil && !errors.Is(err, fs.ErrNotExist) { // hidden by another mount
			return fmt.Errorf("mounting %s: %w", other, err)
		}
	}
	if err := root.showIn(merged); err != nil {
		return fmt.Errorf("mounting %s: %w", s.Dir, err)
	}
	if err := unix.Chroot(merged); err != nil {
		return fmt.Errorf("chroot: %w", err)
	}
	if err := os.Chdir("/"); err != nil {
		return err
	}
	for i, m := range s.Mounts {
		if err := root.bind(sources[i], m); err != nil {
			return fmt.Errorf("mounting %s: %w", m.Target, err)
		}
	}
	if err := unix.Unmount(s.Dir, unix.MNT_DETACH); err != nil {
		return fmt.Errorf("unmounting %s: %w", s.Dir, err)
	}
	if s.ReadOnlyRoot {
		if err := remountReadOnly("/"); err != nil {
			return fmt.Errorf("making / read-only: %w", err)
		}
	}
	if err := unix.Sethostname([]byte(s.Hostname)); err != nil {
		return fmt.Errorf("hostname: %w", err)
	}
	return nil
}

// mountsOnRoot returns the mount points on the root file system itself.
func mountsOnRoot() ([]string, error) {
	all, err := mountinfo.GetMounts(nil)
	if err != nil {
		return nil, err
	}
	root := 0
	for _, m := range all {
		if m.Mountpoint == "/" {
			root = m.ID // the last one is on top
		}
	}
	var points []string
	for _, m := range all {
		if m.Parent == root && m.Mountpoint != "/" {
			points = append(points, m.Mountpoint)
		}
	}
	return points, nil
}

// overlays makes parts of the file system the container's own.
type overlays struct {
	dir       string // holds what is written, in memory
	userXattr bool
	count     int
	devices   []uint64 // of the overlays
}

func (o *overlays) begin() error {
	if err := unix.Mount("tmpfs", o.dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0755"); err != nil {
		return fmt.Errorf("tmpfs: %w", err)
	}
	return nil
}

// showIn makes the overlays' directory what it is in another root, unless it is
// on a file system that has been mounted there.
func (o *overlays) showIn(root string) error {
	here, err := deviceOf(o.dir)
	if err != nil {
		return err
	}
	there := filepath.Join(root, o.dir)
	if device, err := deviceOf(there); err != nil || device == here {
		return err
	}
	return unix.Mount(o.dir, there, "", unix.MS_BIND|unix.MS_REC, "")
}

// mount returns a directory that shows what dir holds, and keeps to itself what is
// written to it.
func (o *overlays) mount(dir string) (string, error) {
	o.count++
	here := filepath.Join(o.dir, fmt.Sprint(o.count))
	for _, name := range []string{"", "upper", "work", "merged"} {
		if err := os.Mkdir(filepath.Join(here, name), 0o755); err != nil {
			return "", err
		}
	}
	info, err := os.Stat(dir)
	if err != nil {
		return "", err
	}
	if err := os.Chmod(filepath.Join(here, "upper"), info.Mode()); err != nil {
		return "", err
	}
	lower, err := os.OpenFile(dir, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", err
	}
	defer func() { _ = lower.Close() }()
	// Relative paths and descriptors: names may hold what separates options.
	if err := os.Chdir(here); err != nil {
		return "", err
	}
	options := fmt.Sprintf("lowerdir=/proc/self/fd/%d,upperdir=upper,workdir=work", lower.Fd())
	if o.userXattr {
		options += ",userxattr"
	}
	if err := unix.Mount("overlay", "merged", "overlay", 0, options); err != nil {
		return "", fmt.Errorf("overlay of %s: %w", dir, err)
	}
	merged := filepath.Join(here, "merged")
	device, err := deviceOf(merged)
	o.devices = append(o.devices, device)
	return merged, err
}

func deviceOf(path string) (uint64, error) {
	var stat unix.Stat_t
	err := unix.Stat(path, &stat)
	return stat.Dev, err
}

// bind mounts an open file or directory.
func (o *overlays) bind(source *os.File, m Bind) error {
	defer func() { _ = source.Close() }()
	info, err := source.Stat()
	if err != nil {
		return err
	}
	if _, err := os.Stat(m.Target); errors.Is(err, fs.ErrNotExist) {
		if err := o.makePrivate(filepath.Dir(m.Target)); err != nil {
			return err
		}
		if info.IsDir() {
			err = os.Mkdir(m.Target, 0o755)
		} else {
			err = os.WriteFile(m.Target, nil, 0o644)
		}
		if err != nil {
			return err
		}
	}
	if err := unix.Mount(fmt.Sprintf("/proc/self/fd/%d", source.Fd()), m.Target, "", unix.MS_BIND, ""); err != nil {
		return err
	}
	if m.ReadOnly {
		return remountReadOnly(m.Target)
	}
	return nil
}

// makePrivate makes a directory in which mount points can be made without
// anybody else seeing them.
func (o *overlays) makePrivate(dir string) error {
	existing := dir
	for {
		if resolved, err := filepath.EvalSymlinks(existing); err == nil {
			existing = resolved
			break
		} else if !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		existing = filepath.Dir(existing)
	}
	device, err := deviceOf(existing)
	if err != nil {
		return err
	}
	private := false
	for _, own := range o.devices {
		private = private || own == device
	}
	if !private {
		merged, err := o.mount(existing)
		if err != nil {
			return err
		}
		if err := os.Chdir("/"); err != nil {
			return err
		}
		if err := unix.Mount(merged, existing, "", unix.MS_BIND, ""); err != nil {
			return err
		}
	}
	return os.MkdirAll(dir, 0o755)
}

// remountReadOnly keeps the flags that a user namespace locks.
func remountReadOnly(path string) error {
	var stat unix.Statfs_t
	if err := unix.Statfs(path, &stat); err != nil {
		return err
	}
	flags := uintptr(stat.Flags) & (unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC | unix.MS_NOATIME | unix.MS_NODIRATIME | unix.MS_RELATIME)
	return unix.Mount("", path, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY|flags, "")
}

// execute becomes the container's user and command.
func (s Spec) execute() error {
	for capability := uintptr(0); capability <= unix.CAP_LAST_CAP; capability++ {
		keep := false
		for _, allowed := range s.Capabilities {
			keep = keep || allowed == capability
		}
		if keep {
			continue
		}
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, capability, 0, 0, 0); err != nil && !errors.Is(err, unix.EINVAL) { // unknown to this kernel
			return fmt.Errorf("capabilities: %w", err)
		}
	}
	if s.UserNamespace {
		if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0); err != nil {
			return fmt.Errorf("capabilities: %w", err)
		}
	} else {
		if err := syscall.Setgroups(s.Groups); err != nil {
			return fmt.Errorf("groups: %w", err)
		}
		if err := syscall.Setgid(s.GID); err != nil {
			return fmt.Errorf("group %d: %w", s.GID, err)
		}
		if err := syscall.Setuid(s.UID); err != nil {
			return fmt.Errorf("user %d: %w", s.UID, err)
		}
	}
	if s.NoNewPrivileges {
		if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
			return fmt.Errorf("no_new_privs: %w", err)
		}
	}
	// Another user's process has lost the signal (prctl(2)).
	if err := unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0); err != nil {
		return fmt.Errorf("parent death signal: %w", err)
	}
	if orphaned() {
		return errors.New("the node agent is gone")
	}
	if err := os.Chdir(s.WorkingDir); err != nil {
		return fmt.Errorf("working directory: %w", err)
	}
	program, err := lookPath(s.Args[0], s.Env)
	if err != nil {
		return err
	}
	if err := syscall.Exec(program, s.Args, s.Env); err != nil {
		return fmt.Errorf("exec: %q: %w", program, err)
	}
	return nil
}

// orphaned says whether nobody reads the error pipe any more.
func orphaned() bool {
	poll := []unix.PollFd{{Fd: errorFD}}
	n, err := unix.Poll(poll, 0)
	return err == nil && n > 0 && poll[0].Revents&unix.POLLERR != 0
}

// lookPath finds a program as execvp(3) does, by the container's PATH.
func lookPath(name string, env []string) (string, error) {
	if strings.Contains(name, "/") {
		return name, nil
	}
	for _, entry := range env {
		list, ok := strings.CutPrefix(entry, "PATH=")
		if !ok {
			continue
		}
		for _, dir := range filepath.SplitList(list) {
			path := filepath.Join(dir, name)
			if info, err := os.Stat(path); err == nil && !info.IsDir() && info.Mode()&0o111 != 0 {
				return path, nil
			}
		}
	}
	return "", fmt.Errorf("exec: %q: executable file not found in $PATH", name)
}
