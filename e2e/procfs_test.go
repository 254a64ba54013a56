package e2e

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// commandWords is how much of a command line is of interest.
const commandWords = 4

// processes returns the command lines of the user's processes by pid: those
// that have the state directory in their environment (oidclab itself), their
// command line or their working directory (the components of a cluster, which
// inherit no environment).
func (u *user) processes() map[int]string {
	found := map[int]string{}
	directories, _ := filepath.Glob("/proc/[0-9]*") // fails only if the pattern is bad
	for _, dir := range directories {
		// A process that has just ended has none of these.
		environment, _ := os.ReadFile(filepath.Join(dir, "environ"))
		command, _ := os.ReadFile(filepath.Join(dir, "cmdline"))
		cwd, _ := os.Readlink(filepath.Join(dir, "cwd"))
		if !bytes.Contains(environment, []byte(u.home)) && !bytes.Contains(command, []byte(u.home)) && !strings.HasPrefix(cwd, u.home) {
			continue
		}
		if pid, err := strconv.Atoi(filepath.Base(dir)); err == nil {
			words := strings.Split(strings.TrimRight(string(command), "\x00"), "\x00")
			found[pid] = strings.Join(words[:min(len(words), commandWords)], " ")
		}
	}
	return found
}

// process returns the one process of the user that runs the given verb or
// component.
func (u *user) process(word string) (int, error) {
	var pids []int
	for pid, command := range u.processes() {
		for _, argument := range strings.Fields(command) {
			if argument == word {
				pids = append(pids, pid)
			}
		}
	}
	if len(pids) != 1 {
		return 0, fmt.Errorf("%d processes run %s: %v", len(pids), word, u.processes())
	}
	return pids[0], nil
}

// observe remembers the sockets that the user's processes listen on now.
func (u *user) observe(t testing.TB) {
	t.Helper()
	listening, err := listeningSockets()
	if err != nil {
		t.Fatal(err)
	}
	for pid := range u.processes() {
		descriptors, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
		for _, descriptor := range descriptors {
			target, _ := os.Readlink(descriptor) // it may just have been closed
			inode, isSocket := strings.CutPrefix(target, "socket:[")
			inode = strings.TrimSuffix(inode, "]")
			if _, ok := listening[inode]; isSocket && ok {
				u.sockets[inode] = true
			}
		}
	}
}

// noSocket returns an error if any of the sockets is still there.
func (u *user) noSocket() error {
	listening, err := listeningSockets()
	if err != nil {
		return err
	}
	for inode := range u.sockets {
		if address, ok := listening[inode]; ok {
			return fmt.Errorf("a socket listens on %s", address)
		}
	}
	return nil
}

// listeningSockets returns the addresses of all listening TCP sockets by inode,
// proc_net_tcp(5).
func listeningSockets() (map[string]string, error) {
	const stateListen, stateField, inodeField = "0A", 3, 9
	found := map[string]string{}
	for _, file := range []string{"/proc/net/tcp", "/proc/net/tcp6"} {
		data, err := os.ReadFile(file)
		if os.IsNotExist(err) {
			continue
		}
		if err != nil {
			return nil, err
		}
		for line := range strings.Lines(string(data)) {
			if fields := strings.Fields(line); len(fields) > inodeField && fields[stateField] == stateListen {
				found[fields[inodeField]] = fields[1]
			}
		}
	}
	return found, nil
}
