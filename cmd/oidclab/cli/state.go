package cli

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/oidclab/oidclab/lab/cluster/kind"
	"github.com/oidclab/oidclab/lab/control"
	"github.com/oidclab/oidclab/lab/problem"
)

// stateDir is where one lab keeps everything: $XDG_STATE_HOME/oidclab/<name>.
//
// A lab is alive exactly while its supervisor holds the lock (flock(2), which
// passes from `up` to the supervisor with the open file). Nothing else in
// the directory is believed: what a dead supervisor left is removed.
type stateDir string

var namePattern = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?$`)

func stateBase(home string) string { return filepath.Join(home, "oidclab") }

func newStateDir(home, name string) (stateDir, error) {
	if !namePattern.MatchString(name) {
		return "", problem.New(problem.Usage, "", "the lab's name %q is not 1 to 32 lower-case letters, digits and dashes", name)
	}
	return stateDir(filepath.Join(stateBase(home), name)), nil
}

func (d stateDir) name() string           { return filepath.Base(string(d)) }
func (d stateDir) lockFile() string       { return filepath.Join(string(d), "lock") }
func (d stateDir) infoFile() string       { return filepath.Join(string(d), "lab.json") }
func (d stateDir) controlSocket() string  { return filepath.Join(string(d), "control.sock") }
func (d stateDir) containersFile() string { return filepath.Join(string(d), "containers") }
func (d stateDir) supervisorLog() string  { return filepath.Join(string(d), "logs", "supervisor.log") }

// contents are the entries that a lab makes in its directory. Nothing else is
// ever deleted.
var contents = []string{"clusters", "tokens", "vault", "logs", "ca.crt", "lab.json", "lab.json.new", "control.sock", "containers", "oci-client-secret", "auth0-client-secret"}

// lockPatience is for those who only look whether the lock is held: to do so
// they hold it themselves for a moment.
const lockPatience = 100 * time.Millisecond

// reapTimeout bounds the removal of containers.
const reapTimeout = 30 * time.Second

// network is the name of the lab's Docker network and, with another label, of all
// its containers: no other lab of this machine, of whatever user, has it.
func (d stateDir) network() string {
	digest := sha256.Sum256([]byte(d))
	return "oidclab-" + d.name() + "-" + hex.EncodeToString(digest[:])[:5] // with -c1-control-plane still a host name: 63 bytes
}

// markContainers records that the lab may have containers from now on.
func (d stateDir) markContainers() error {
	return os.WriteFile(d.containersFile(), []byte(d.network()+"\n"), 0o600)
}

// reap removes the containers, volumes and networks of a lab that may have some.
// The lock must be held.
func (d stateDir) reap(ctx context.Context) error {
	if _, err := os.Stat(d.containersFile()); err != nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, reapTimeout)
	defer cancel()
	if err := kind.Reap(ctx, d.network()); err != nil {
		return problem.New(problem.EnvironmentMissing, "start Docker, then: oidclab down --name "+d.name(), "lab %s may have left containers: %w", d.name(), err)
	}
	return nil
}

// acquire makes the directory, if need be, and locks it. Who holds the lock
// owns the lab. If another process does, the problem is a Conflict.
func (d stateDir) acquire() (*os.File, error) {
	deadline := time.Now().Add(lockPatience)
	for {
		if err := os.MkdirAll(string(d), 0o700); err != nil {
			return nil, environment(fmt.Errorf("the state directory: %w", err))
		}
		if err := os.Chmod(string(d), 0o700); err != nil {
			return nil, environment(fmt.Errorf("the state directory: %w", err))
		}
		lock, err := os.OpenFile(d.lockFile(), os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			_ = os.Remove(string(d)) // if it is empty: then it has just been made
			return nil, environment(fmt.Errorf("the state directory: %w", err))
		}
		if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
			_ = lock.Close()
			if time.Now().Before(deadline) {
				time.Sleep(10 * time.Millisecond)
				continue
			}
			return nil, problem.New(problem.Conflict, "wait for it to end, or take another --name",
				"lab %s is being started or stopped by process %d", d.name(), d.owner())
		}
		// `down` removes the file; a lock on a removed file excludes nobody.
		if d.lockedBy(lock) {
			if err := d.setOwner(lock); err != nil && !errors.Is(err, syscall.ENOSPC) { // `down` must work on a full disk
				return nil, errors.Join(err, lock.Close())
			}
			return lock, nil
		}
		_ = lock.Close()
	}
}

// roomPerCluster is the disk space that a cluster takes, in bytes: 17 MiB when
// it has come up, most of them etcd's log, and some to work with.
const roomPerCluster = 48 << 20

// checkRoom returns a problem if the file system of the directory, which must
// exist, has no room for a lab.
func (d stateDir) checkRoom(clusters int) error {
	var stat unix.Statfs_t
	if err := unix.Statfs(string(d), &stat); err != nil {
		return fmt.Errorf("the state directory: %w", err)
	}
	need, have := uint64(clusters)*roomPerCluster, stat.Bavail*uint64(stat.Bsize)
	if have < need {
		return environment(fmt.Errorf("the state directory %s has %d MiB left, and a lab with %s takes %d MiB: %w",
			d, have>>20, plural(clusters, "cluster"), need>>20, syscall.ENOSPC))
	}
	return nil
}

// setOwner records that this process holds the lock, in place of the one before:
// a number that is not the holder's would have `down` signal a stranger.
func (d stateDir) setOwner(lock *os.File) error {
	record := fmt.Sprintf("%-10d\n", os.Getpid()) // of one length: overwriting needs no room on the disk
	if _, err := lock.WriteAt([]byte(record), 0); err != nil {
		return environment(err)
	}
	return environment(lock.Truncate(int64(len(record))))
}

// owner returns the process that holds the lock, or 0 if that is not known.
func (d stateDir) owner() int {
	data, err := os.ReadFile(d.lockFile())
	if err != nil {
		return 0
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(data)))
	if err != nil {
		return 0
	}
	return pid
}

// lockedBy says whether an open file is the lock, and holds it.
func (d stateDir) lockedBy(file *os.File) bool {
	opened, err := file.Stat()
	if err != nil {
		return false
	}
	current, err := os.Stat(d.lockFile())
	return err == nil && os.SameFile(opened, current) && syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) == nil
}

// held says whether a process holds the lock.
func (d stateDir) held() bool {
	lock, err := os.Open(d.lockFile())
	if err != nil {
		return false
	}
	defer func() { _ = lock.Close() }()
	return errors.Is(syscall.Flock(int(lock.Fd()), syscall.LOCK_SH|syscall.LOCK_NB), syscall.EWOULDBLOCK)
}

// leftovers says whether there is anything of a lab in the directory.
func (d stateDir) leftovers() bool {
	_, err := os.Stat(string(d))
	return err == nil
}

// clear removes what labs make in the directory, except the lock. The lock must be held.
func (d stateDir) clear() error {
	var errs []error
	for _, name := range contents {
		errs = append(errs, os.RemoveAll(filepath.Join(string(d), name)))
	}
	return errors.Join(errs...)
}

// remove clears the directory and, if nothing else is in it, removes it. The
// lock must be held; it is gone afterwards.
func (d stateDir) remove() error {
	if err := d.clear(); err != nil {
		return err
	}
	if err := os.Remove(d.lockFile()); err != nil {
		return err
	}
	err := os.Remove(string(d))
	if errors.Is(err, syscall.ENOTEMPTY) || errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// writeInfo writes lab.json, whole or not at all.
func (d stateDir) writeInfo(info any) error {
	data, err := json.MarshalIndent(info, "", "  ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(d.infoFile()+".new", append(data, '\n'), 0o600); err != nil {
		return environment(err)
	}
	return environment(os.Rename(d.infoFile()+".new", d.infoFile()))
}

// client returns a client for the lab's supervisor, or a NotRunning problem.
func (d stateDir) client() (*control.Client, error) {
	if !d.held() {
		if d.leftovers() {
			return nil, problem.New(problem.NotRunning, "oidclab up, which removes what it left, or oidclab down", "lab %s is not running: its supervisor died", d.name())
		}
		return nil, problem.New(problem.NotRunning, "oidclab up", "lab %s is not running", d.name())
	}
	if _, err := os.Stat(d.controlSocket()); err != nil {
		return nil, problem.New(problem.NotReady, "oidclab status, in a few seconds", "lab %s is being started or stopped by process %d", d.name(), d.owner())
	}
	return control.NewClient(d.controlSocket()), nil
}

// awaitRelease waits until no process holds the lock.
func (d stateDir) awaitRelease(ctx context.Context) error {
	for d.held() {
		select {
		case <-ctx.Done():
			return fmt.Errorf("process %d still holds lab %s: %w", d.owner(), d.name(), ctx.Err())
		case <-time.After(10 * time.Millisecond):
		}
	}
	return nil
}

// environment makes a problem of errors that the machine is to blame for.
func environment(err error) error {
	for _, cause := range []error{fs.ErrPermission, syscall.EROFS, syscall.ENOSPC, syscall.ENOTDIR, syscall.EDQUOT, syscall.EMFILE} {
		if errors.Is(err, cause) {
			return problem.New(problem.EnvironmentMissing, "make room there, or set XDG_STATE_HOME to a directory that can be written", "%w", err)
		}
	}
	return err
}
