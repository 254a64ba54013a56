package kind

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/oidclab/oidclab/lab/problem"
)

// Label is the label of all containers, networks and volumes of a lab but
// kind's nodes, which take none. Its value is the lab's network.
const Label = "dev.oidclab/lab"

// clusterLabel is the label of kind's nodes. Its value is their cluster's name.
const clusterLabel = "io.x-k8s.kind.cluster"

// NetworkVariable is where kind takes the name of its Docker network from. It
// must be set in this process, which this package does not do, to Config.Network.
const NetworkVariable = "KIND_EXPERIMENTAL_DOCKER_NETWORK"

// CreateNetwork creates a lab's Docker network and returns its gateway: an
// address of this machine, the same for containers, pods and itself.
func CreateNetwork(ctx context.Context, name string) (netip.Addr, error) {
	if _, err := docker(ctx, "network", "create", "--driver", "bridge", "--label", Label+"="+name, name); err != nil {
		return netip.Addr{}, err
	}
	gateway, err := gatewayOf(ctx, name)
	if err != nil {
		return netip.Addr{}, err
	}
	return gateway, checkLocal(gateway)
}

// gatewayOf returns the IPv4 address of this side of a Docker network.
func gatewayOf(ctx context.Context, network string) (netip.Addr, error) {
	out, err := docker(ctx, "network", "inspect", "--format", "{{json .IPAM.Config}}", network)
	if err != nil {
		return netip.Addr{}, err
	}
	var configs []struct{ Gateway string }
	if err := json.Unmarshal([]byte(out), &configs); err != nil {
		return netip.Addr{}, fmt.Errorf("docker network %s: %w", network, err)
	}
	for _, config := range configs {
		gateway, _, _ := strings.Cut(config.Gateway, "/")
		if address, err := netip.ParseAddr(gateway); err == nil && address.Is4() {
			return address, nil
		}
	}
	return netip.Addr{}, fmt.Errorf("docker network %s has no IPv4 gateway: %s", network, out)
}

// checkLocal returns a problem if an address is not one of this machine.
func checkLocal(address netip.Addr) error {
	addresses, err := net.InterfaceAddrs()
	if err != nil {
		return err
	}
	if slices.ContainsFunc(addresses, func(a net.Addr) bool {
		prefix, err := netip.ParsePrefix(a.String())
		return err == nil && prefix.Addr().Unmap() == address
	}) {
		return nil
	}
	return problem.New(problem.EnvironmentMissing, "oidclab up --engine embedded",
		"the container engine runs on another machine or in a virtual one: its networks' address %s is not one of this machine, so pods would not reach the lab", address)
}

// Reap removes all containers, volumes and networks of a lab, whoever made them.
// It may be called again, and for labs that have none.
func Reap(ctx context.Context, network string) error {
	endPrograms(network)
	err := removeContainers(ctx, func(c container) bool {
		id, ofLab := strings.CutPrefix(c.cluster, network+"-")
		return c.lab == network || ofLab && !strings.Contains(id, "-")
	})
	return errors.Join(err, removeLabelled(ctx, "volume", network), removeLabelled(ctx, "network", network))
}

// endPrograms ends docker programs of kind that outlived a process that was
// killed: they would make containers yet.
func endPrograms(network string) {
	files, _ := filepath.Glob("/proc/[0-9]*/environ") // the pattern is a good one
	for _, file := range files {
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(file)))
		if err != nil || pid == os.Getpid() {
			continue
		}
		command, _ := os.ReadFile(filepath.Join(filepath.Dir(file), "comm")) // empty if it has just ended
		environment, _ := os.ReadFile(file)                                  // likewise, or if it is somebody else's
		if string(command) == "docker\n" && slices.Contains(strings.Split(string(environment), "\x00"), NetworkVariable+"="+network) {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	}
}

// container is what containers are told apart by.
type container struct {
	name    string
	lab     string // value of Label, if any
	cluster string // value of clusterLabel, if any
}

// removeContainers removes containers, running or not, with their anonymous
// volumes. Others may do so at the same time.
func removeContainers(ctx context.Context, chosen func(container) bool) error {
	for {
		ids, err := containers(ctx, chosen)
		if err != nil || len(ids) == 0 {
			return err
		}
		if _, err = docker(ctx, append([]string{"rm", "--force", "--volumes"}, ids...)...); err == nil {
			return nil
		}
		if !strings.Contains(err.Error(), "already in progress") && !strings.Contains(err.Error(), "No such container") {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(pollInterval):
		}
	}
}

// containers returns the ids of containers, running or not.
func containers(ctx context.Context, chosen func(container) bool) ([]string, error) {
	out, err := docker(ctx, "ps", "--all", "--no-trunc", "--format", `{{.ID}},{{.Names}},{{.Label "`+Label+`"}},{{.Label "`+clusterLabel+`"}}`)
	if err != nil {
		return nil, err
	}
	var ids []string
	for line := range strings.Lines(out) {
		if fields := strings.Split(strings.TrimSpace(line), ","); len(fields) == 4 && chosen(container{fields[1], fields[2], fields[3]}) {
			ids = append(ids, fields[0])
		}
	}
	return ids, nil
}

// removeLabelled removes a lab's volumes or networks.
func removeLabelled(ctx context.Context, what, network string) error {
	ids, err := docker(ctx, what, "ls", "--quiet", "--filter", "label="+Label+"="+network)
	if err != nil || ids == "" {
		return err
	}
	_, err = docker(ctx, append([]string{what, "rm"}, strings.Fields(ids)...)...)
	return err
}
