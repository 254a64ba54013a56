package kind

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
	"sigs.k8s.io/kind/pkg/apis/config/defaults"

	"github.com/oidclab/oidclab/lab/problem"
)

// DefaultImage is the node image that kind pins, by digest.
const DefaultImage = defaults.Image

// What a cluster of one node takes, in bytes.
const (
	memoryPerCluster = 1 << 30
	diskPerCluster   = 1 << 30
)

// nodeImage is the name of a requirement.
const nodeImage = "node image"

// Requirement is something that the engine needs of a machine.
type Requirement struct {
	Name  string `json:"name"`
	OK    bool   `json:"ok"`
	Found string `json:"found"`
	Next  string `json:"next,omitempty"` // what to do if it is missing
}

// Machine is what the engine found of what it needs.
type Machine struct {
	Requirements []Requirement
	Image        string // of nodes: the first of those asked for that is there
}

// Unmet returns an EnvironmentMissing problem that tells the first requirement
// that is missing, or nil.
func (m Machine) Unmet() error {
	for _, r := range m.Requirements {
		if !r.OK {
			return problem.New(problem.EnvironmentMissing, r.Next, "the kind engine can't work here: %s: %s", r.Name, r.Found)
		}
	}
	return nil
}

// LacksOnlyImage says whether the node image is all that is missing.
func (m Machine) LacksOnlyImage() bool {
	missing := slices.DeleteFunc(slices.Clone(m.Requirements), func(r Requirement) bool { return r.OK })
	return len(missing) == 1 && missing[0].Name == nodeImage
}

// engineInfo is what `docker info` says.
type engineInfo struct {
	ServerVersion   string
	ServerErrors    []string
	OSType          string
	OperatingSystem string
	CgroupVersion   string
	DefaultRuntime  string
	DockerRootDir   string
	MemTotal        int64 // bytes
	SecurityOptions []string
}

// Look looks at what a lab of so many clusters needs, and takes some 0.1 s.
// It runs no container: see Probe. Of images, the first that is there counts.
func Look(ctx context.Context, clusters int, images ...string) Machine {
	var m Machine
	info, err := engine(ctx)
	if err != nil {
		next := problem.Of(err).Next
		if next == "" {
			next = "start Docker, or let this user use it, then: oidclab doctor"
		}
		m.missing("container engine", next, "%v", err)
		return m
	}
	if info.OSType == "linux" {
		m.met("container engine", "Docker %s, %s", info.ServerVersion, info.OperatingSystem)
	} else {
		m.missing("container engine", "switch Docker to Linux containers", "Docker runs %s containers", info.OSType)
	}
	if gateway, err := gatewayOf(ctx, "bridge"); err == nil { // some engines do without this network
		if err := checkLocal(gateway); err != nil {
			m.missing("same machine", problem.Of(err).Next, "%v", err)
		} else {
			m.met("same machine", "containers reach it at addresses such as %s", gateway)
		}
	}
	switch info.CgroupVersion {
	case "2":
		m.met("cgroups", "version 2")
	case "1":
		m.met("cgroups", "version 1, which kubelet is told to bear")
	default:
		m.missing("cgroups", "mount them", "version %q", info.CgroupVersion)
	}
	switch {
	case sysResource():
		m.met("CAP_SYS_RESOURCE", "there")
	case info.DefaultRuntime == "runc" && beforeDocker23(info.ServerVersion):
		m.missing("CAP_SYS_RESOURCE", "Docker 23 or later, or as its default runtime one that leaves this capability out",
			"this machine lacks it, and Docker %s gives it to privileged containers", info.ServerVersion)
	default:
		m.met("CAP_SYS_RESOURCE", "lacking, which kubelet and containerd are told to bear")
	}
	m.room("memory", "oidclab up --engine embedded", info.MemTotal, int64(clusters)*memoryPerCluster)
	var stat unix.Statfs_t
	if unix.Statfs(info.DockerRootDir, &stat) == nil {
		m.room("disk of "+info.DockerRootDir, "docker system prune", int64(stat.Bavail)*stat.Bsize, int64(clusters)*diskPerCluster)
	}
	for _, image := range images {
		if _, err := docker(ctx, "image", "inspect", image); err == nil {
			m.Image = image
			m.met(nodeImage, "%s", image)
			return m
		}
	}
	m.missing(nodeImage, "oidclab images build, or docker pull "+images[0], "there is no %s", strings.Join(images, ", and no "))
	return m
}

func (m *Machine) met(name, found string, args ...any) {
	m.Requirements = append(m.Requirements, Requirement{Name: name, OK: true, Found: fmt.Sprintf(found, args...)})
}

func (m *Machine) missing(name, next, found string, args ...any) {
	m.Requirements = append(m.Requirements, Requirement{Name: name, Found: fmt.Sprintf(found, args...), Next: next})
}

// room compares what is there with what is needed, in bytes.
func (m *Machine) room(name, next string, have, need int64) {
	if have >= need {
		m.met(name, "%d MiB, of which nodes take %d MiB", have>>20, need>>20)
	} else {
		m.missing(name, next, "%d MiB, and nodes take %d MiB", have>>20, need>>20)
	}
}

// engine returns what the container engine says of itself.
func engine(ctx context.Context) (info engineInfo, err error) {
	out, err := docker(ctx, "info", "--format", "{{json .}}")
	if err != nil {
		return info, err
	}
	if err := json.Unmarshal([]byte(out), &info); err != nil {
		return info, fmt.Errorf("docker info: %w", err)
	}
	if len(info.ServerErrors) > 0 { // older docker programs exit with 0
		return info, errors.New(strings.Join(info.ServerErrors, "; "))
	}
	return info, nil
}

// Probe runs a privileged container of the machine's image, which takes about a
// second, and adds what it finds to the requirements.
func (m *Machine) Probe(ctx context.Context) {
	if m.Image == "" {
		return
	}
	const name = "privileged containers"
	n, err := probe(ctx, m.Image, nil)
	if err != nil {
		m.missing(name, problem.Of(err).Next, "%v", err)
		return
	}
	m.met(name, "they run; the image has Kubernetes v%s", n.kubernetes)
}

// Pull has the container engine fetch an image.
func Pull(ctx context.Context, image string) error {
	_, err := docker(ctx, "pull", "--quiet", image)
	if err == nil || ctx.Err() != nil {
		return err
	}
	return problem.New(problem.EnvironmentMissing, "oidclab images build, or oidclab images load", "the node image can't be pulled: %w", err)
}

// sysResource says whether processes of this machine may have CAP_SYS_RESOURCE,
// or that is not known.
func sysResource() bool {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return true
	}
	for line := range strings.Lines(string(status)) {
		if value, ok := strings.CutPrefix(line, "CapBnd:"); ok {
			mask, err := strconv.ParseUint(strings.TrimSpace(value), 16, 64)
			return err != nil || mask>>capSysResource&1 == 1
		}
	}
	return true
}

// beforeDocker23 says whether Docker has the privileged capabilities of the
// kernel rather than those of the daemon.
func beforeDocker23(version string) bool {
	major, _, _ := strings.Cut(version, ".")
	n, err := strconv.Atoi(major)
	return err == nil && n < 23
}
