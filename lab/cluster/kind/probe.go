package kind

import (
	"bufio"
	"context"
	"fmt"
	"strconv"
	"strings"

	"k8s.io/apimachinery/pkg/util/version"

	"github.com/oidclab/oidclab/lab/problem"
)

// capSysResource is the number of CAP_SYS_RESOURCE, capabilities(7).
const capSysResource = 24

// probeScript prints what node.adapt goes by, and ends with an error if it can't
// connect to one of its arguments, each host/port.
const probeScript = `cat /kind/version; echo; grep CapBnd /proc/self/status
for address; do timeout 5 bash -c "exec 3<>/dev/tcp/$address" 2>/dev/null || echo "unreachable: $address"; done`

// probe runs a container as nodes will run, and returns what it finds. It must
// reach the addresses (host:port); further are options of docker run.
func probe(ctx context.Context, image string, reach []string, further ...string) (node, error) {
	args := []string{"run", "--rm", "--privileged", "--security-opt", "seccomp=unconfined", "--security-opt", "apparmor=unconfined",
		"--pull", "never", "--entrypoint", "bash"}
	args = append(append(args, further...), image, "-c", probeScript, "probe")
	for _, address := range reach {
		args = append(args, strings.Replace(address, ":", "/", 1))
	}
	out, err := docker(ctx, args...)
	if err != nil {
		if ctx.Err() != nil {
			return node{}, err
		}
		return node{}, problem.New(problem.EnvironmentMissing, "oidclab up --engine embedded, or oidclab doctor", "%w", privileged(err))
	}
	var n node
	for scanner := bufio.NewScanner(strings.NewReader(out)); scanner.Scan(); {
		name, value, _ := strings.Cut(scanner.Text(), ":")
		switch value = strings.TrimSpace(value); {
		case name == "unreachable":
			return node{}, problem.New(problem.EnvironmentMissing, "let the firewall of this machine accept connections from Docker networks to it",
				"containers do not reach the lab at %s", strings.Replace(value, "/", ":", 1))
		case name == "CapBnd":
			mask, err := strconv.ParseUint(value, 16, 64)
			if err != nil {
				return node{}, fmt.Errorf("capabilities of a container: %w", err)
			}
			n.sysResource = mask>>capSysResource&1 == 1
		case strings.HasPrefix(name, "v"):
			if n.kubernetes, err = version.ParseSemantic(name); err != nil {
				return node{}, fmt.Errorf("version of %s: %w", image, err)
			}
		}
	}
	if n.kubernetes == nil {
		return node{}, problem.New(problem.BadConfig, "leave out --image", "%s is not an image of kind's nodes: it has no file /kind/version", image)
	}
	if n.kubernetes.LessThan(oldest) {
		return node{}, problem.New(problem.BadConfig, "choose an image of Kubernetes "+oldest.String()+" or later",
			"%s has Kubernetes %s, whose API server takes no external signer", image, n.kubernetes)
	}
	return n, nil
}

// privileged explains why a privileged container does not run.
func privileged(err error) error {
	if strings.Contains(err.Error(), "unable to apply caps") {
		return fmt.Errorf("this machine lacks CAP_SYS_RESOURCE, which Docker before version 23 gives to privileged containers (an OCI runtime that leaves it out helps): %w", err)
	}
	return fmt.Errorf("privileged containers do not run: %w", err)
}
