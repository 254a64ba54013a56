package sandbox

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
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
	var sources []*os.File // opened now: their paths are hidden later
	for _, m := range s.Mounts {
		source, err := os.OpenFile(m.Source, unix.O_PATH|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		sources = append(sources, source)
	}
	own := private{dir: s.Dir, copied: s.UserNamespace}
	root, err := own.begin()
	if err != nil {
		return err
	}
	if err := unix.Chroot(root); err != nil {
		return fmt.Errorf("chroot: %w", err)
	}
	if err := os.Chdir("/"); err != nil {
		return err
	}
	for i, m := range s.Mounts {
		if err := own.bind(sources[i], m); err != nil {
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

// private makes directories the program's own: they show what they hold, and what
// is written to them, or mounted, nobody else sees.
type private struct {
	dir     string   // holds what is written, in memory
	copied  bool     // a user namespace may not have overlays of directories on which others have mounted something
	count   int      // of the directories
	devices []uint64 // of their file systems
}

// begin returns a directory that shows the whole file system.
func (p *private) begin() (string, error) {
	mounts, err := mountsOnRoot()
	if err != nil {
		return "", err
	}
	if err := mountMemory(p.dir); err != nil {
		return "", err
	}
	root, err := p.show("/")
	if err != nil {
		return "", err
	}
	for _, m := range mounts {
		if p.copied { // they are there already
			break
		}
		err := unix.Mount(m, filepath.Join(root, m), "", unix.MS_BIND|unix.MS_REC, "")
		if err != nil && !errors.Is(err, fs.ErrNotExist) { // hidden by another mount
			return "", fmt.Errorf("mounting %s: %w", m, err)
		}
	}
	// Unless it is on a file system that has just been mounted.
	here, err := deviceOf(p.dir)
	if err != nil {
		return "", err
	}
	there, err := deviceOf(filepath.Join(root, p.dir))
	if err != nil || here == there {
		return root, err
	}
	return root, unix.Mount(p.dir, filepath.Join(root, p.dir), "", unix.MS_BIND|unix.MS_REC, "")
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

func mountMemory(dir string) error {
	if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0755"); err != nil {
		return fmt.Errorf("tmpfs: %w", err)
	}
	return nil
}

// show returns a private directory that shows what dir holds.
func (p *private) show(dir string) (string, error) {
	p.count++
	here := filepath.Join(p.dir, fmt.Sprint(p.count))
	if err := os.Mkdir(here, 0o755); err != nil {
		return "", err
	}
	show := overlay
	if p.copied {
		show = skeleton
	}
	shown, err := show(dir, here)
	if err != nil {
		return "", fmt.Errorf("a private %s: %w", dir, err)
	}
	device, err := deviceOf(shown)
	p.devices = append(p.devices, device)
	return shown, err
}

// overlay shows what dir holds, but for what is mounted there.
func overlay(dir, here string) (string, error) {
	for _, name := range []string{"upper", "work", "merged"} {
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
	// Relative paths and a descriptor: names may hold what separates options.
	if err := os.Chdir(here); err != nil {
		return "", err
	}
	options := fmt.Sprintf("lowerdir=/proc/self/fd/%d,upperdir=upper,workdir=work", lower.Fd())
	return filepath.Join(here, "merged"), unix.Mount("overlay", "merged", "overlay", 0, options)
}

// skeleton shows what dir holds, each entry by a mount of its own. Entries are as
// writable as they were.
func skeleton(dir, here string) (string, error) {
	if err := mountMemory(here); err != nil {
		return "", err
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return "", err
	}
	for _, entry := range entries {
		source, target := filepath.Join(dir, entry.Name()), filepath.Join(here, entry.Name())
		switch entry.Type() {
		case fs.ModeSymlink:
			link, err := os.Readlink(source)
			if err == nil {
				err = os.Symlink(link, target)
			}
			if err != nil {
				return "", err
			}
			continue
		case fs.ModeDir:
			err = os.Mkdir(target, 0o755)
		default:
			err = os.WriteFile(target, nil, 0o644)
		}
		if err != nil {
			return "", err
		}
		err = unix.Mount(source, target, "", unix.MS_BIND|unix.MS_REC, "")
		if err != nil && !errors.Is(err, fs.ErrNotExist) { // it has just been removed
			return "", fmt.Errorf("mounting %s: %w", source, err)
		}
	}
	return here, nil
}

func deviceOf(path string) (uint64, error) {
	var stat unix.Stat_t
	err := unix.Stat(path, &stat)
	return stat.Dev, err
}

// bind mounts an open file or directory.
func (p *private) bind(source *os.File, m Bind) error {
	defer func() { _ = source.Close() }()
	info, err := source.Stat()
	if err != nil {
		return err
	}
	if _, err := os.Stat(m.Target); errors.Is(err, fs.ErrNotExist) {
		if err := p.makePrivate(filepath.Dir(m.Target)); err != nil {
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
func (p *private) makePrivate(dir string) error {
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
	if !slices.Contains(p.devices, device) {
		shown, err := p.show(existing)
		if err != nil {
			return err
		}
		if err := os.Chdir("/"); err != nil {
			return err
		}
		if err := unix.Mount(shown, existing, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
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
		if slices.Contains(s.Capabilities, capability) {
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
