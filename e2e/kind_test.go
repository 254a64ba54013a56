package e2e

import (
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/oidclab/oidclab/lab"
	"github.com/oidclab/oidclab/lab/problem"
)

// requireKind, set to 1, makes a machine where the kind engine can't work a
// failure instead of skips.
const requireKind = "OIDCLAB_REQUIRE_KIND"

// kindLimit bounds what takes seconds, on a machine that does other things too.
const kindLimit = 4 * time.Minute

// needKind ends a test where the kind engine can't work.
func needKind(t testing.TB, u *user) {
	t.Helper()
	doctor := u.run(t, "doctor", "--engine", "kind")
	if doctor.code == 0 {
		return
	}
	if os.Getenv(requireKind) == "1" {
		t.Fatalf("%s=1: %s", requireKind, doctor)
	}
	doctor.want(t, int(problem.EnvironmentMissing))
	var missing []string
	for line := range strings.Lines(doctor.stdout) {
		if strings.HasPrefix(line, "missing") && strings.Contains(line, " kind ") {
			missing = append(missing, strings.Join(strings.Fields(line), " "))
		}
	}
	t.Skip("the kind engine can't work here: ", strings.Join(missing, "; "))
}

// docker returns what a docker command prints, by words.
func docker(t testing.TB, args ...string) []string {
	t.Helper()
	out, err := exec.Command("docker", args...).Output()
	if err != nil {
		t.Fatalf("docker %q: %v", args, err)
	}
	return strings.Fields(string(out))
}

// inDocker is what a lab has in Docker, where others have things too.
type inDocker struct {
	network string
	volumes []string // of all containers ever seen
}

// newInDocker returns that of a lab that is up or about to be.
func (u *user) newInDocker(t testing.TB) *inDocker {
	t.Helper()
	network, err := os.ReadFile(filepath.Join(u.dir(labName), "containers"))
	if err != nil {
		t.Fatal(err)
	}
	return &inDocker{network: strings.TrimSpace(string(network))}
}

// objects returns the names of containers, networks and volumes that are there.
func (d *inDocker) objects(t testing.TB) []string {
	t.Helper()
	containers := docker(t, "ps", "--all", "--filter", "name=^"+d.network, "--format", "{{.Names}}")
	for _, container := range containers {
		// Without success, it is just coming or going.
		if out, err := exec.Command("docker", "inspect", "--format", "{{range .Mounts}}{{.Name}} {{end}}", container).Output(); err == nil {
			d.volumes = append(d.volumes, strings.Fields(string(out))...)
		}
	}
	networks := docker(t, "network", "ls", "--filter", "name=^"+d.network, "--format", "{{.Name}}")
	volumes := slices.DeleteFunc(docker(t, "volume", "ls", "--quiet"), func(v string) bool { return !slices.Contains(d.volumes, v) })
	return slices.Concat(containers, networks, volumes)
}

// there fails the test unless there is a node, its volume and its network.
func (d *inDocker) there(t testing.TB) {
	t.Helper()
	if objects := d.objects(t); len(objects) < 3 {
		t.Errorf("control: a node, its volume and its network are not there: %q", objects)
	}
}

// gone fails the test if anything is left.
func (d *inDocker) gone(t testing.TB) {
	t.Helper()
	if objects := d.objects(t); len(objects) > 0 {
		t.Errorf("left behind: %q", objects)
	}
}

// TestKind is the life of a lab whose cluster has a node: it does what others
// do, and is cleaned up after whatever happens to its supervisor.
func TestKind(t *testing.T) {
	t.Parallel()
	u := newUser(t)
	needKind(t, u)
	t.Cleanup(func() { u.start(t, "", "down", "--name", labName).wait(t, kindLimit) })
	info := u.upKind(t)
	traces := u.newInDocker(t)
	traces.there(t)
	front, err := url.Parse(info.Front)
	if err != nil || front.Hostname() == "127.0.0.1" {
		t.Errorf("the front is at %s (%v), where no pod reaches it", info.Front, err)
	}
	u.start(t, "", "up", "--engine", "kind", "--name", labName).wait(t, kindLimit).want(t, 0, "up already")
	u.run(t, "up", "--engine", "embedded", "--name", labName).want(t, int(problem.Conflict), "kind engine")
	cluster := kubernetesClient(t, info.Clusters[0])
	ca, err := cluster.CoreV1().ConfigMaps("demo").Get(t.Context(), "oidclab-ca", metav1.GetOptions{})
	if want, readErr := os.ReadFile(info.CAFile); err != nil || readErr != nil || ca.Data["ca.crt"] != string(want) {
		t.Errorf("the CA for pods: %v (%v, %v)", ca.Data, err, readErr)
	}
	// It is ready once it has reached the API server, as a pod does.
	mustAwait(t, kindLimit, "DNS", func() error {
		dns, err := cluster.AppsV1().Deployments("kube-system").Get(t.Context(), "coredns", metav1.GetOptions{})
		if err == nil && dns.Status.AvailableReplicas == 0 {
			err = fmt.Errorf("CoreDNS is not available: %+v", dns.Status.Conditions)
		}
		return err
	})
	for _, party := range []string{"aws", "generic"} {
		u.run(t, "exchange", party, "--name", labName).want(t, 0)
	}
	u.start(t, "", "scenarios", "run", "--name", labName, "--label-filter", "generic").wait(t, kindLimit).want(t, 0)

	t.Run("supervisor killed, then up", func(t *testing.T) {
		u.killLab(t)
		traces.there(t)
		u.upKind(t)
		traces.there(t)
		u.run(t, "exchange", "aws", "--name", labName).want(t, 0)
	})
	t.Run("supervisor killed, then down", func(t *testing.T) {
		u.killLab(t)
		u.start(t, "", "down", "--name", labName).wait(t, kindLimit).want(t, 0)
		traces.gone(t)
		u.run(t, "down", "--name", labName).want(t, 0, "nothing to remove")
	})
	t.Run("interrupted", func(t *testing.T) {
		up := u.start(t, "", "up", "--engine", "kind", "--name", labName)
		mustAwait(t, kindLimit, "a node", func() error {
			if up.ended() {
				return fmt.Errorf("up has ended: %s", up.result)
			}
			if !slices.ContainsFunc(traces.objects(t), func(o string) bool { return strings.HasSuffix(o, "-control-plane") }) {
				return errors.New("there is no node")
			}
			return nil
		})
		if err := up.command.Process.Signal(syscall.SIGINT); err != nil {
			t.Fatal(err)
		}
		up.wait(t, kindLimit).want(t, int(problem.Interrupted))
		traces.gone(t)
	})
}

func (u *user) upKind(t testing.TB, args ...string) lab.Info {
	t.Helper()
	r := u.start(t, "", append([]string{"up", "--engine", "kind", "--name", labName, "-o", "json"}, args...)...).wait(t, kindLimit).want(t, 0)
	var info lab.Info
	decode(t, r, &info)
	return info
}

func (u *user) killLab(t testing.TB) {
	t.Helper()
	status, r := u.status(t, "--name", labName)
	r.want(t, 0)
	if err := syscall.Kill(status.PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	mustAwait(t, cleanLimit, "the end of the supervisor", func() error {
		if _, r := u.status(t, "--name", labName); r.code != int(problem.NotRunning) {
			return errors.New(r.String())
		}
		return nil
	})
}
