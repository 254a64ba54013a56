package lab

import (
	"context"
	"io"
	"net/netip"
	"net/url"
	"strings"

	"github.com/oidclab/oidclab/lab/cluster"
	"github.com/oidclab/oidclab/lab/cluster/kind"
	"github.com/oidclab/oidclab/lab/images"
)

// startNetwork makes the lab's Docker network, whose gateway becomes the lab's
// address. What a former lab of the same network left is removed first.
func (l *Lab) startNetwork(ctx context.Context, u *undo) (string, error) {
	if err := kind.Reap(ctx, l.spec.Network); err != nil {
		return "", err
	}
	u.add("docker network", func(ctx context.Context) error { return kind.Reap(ctx, l.spec.Network) })
	gateway, err := kind.CreateNetwork(ctx, l.spec.Network)
	if err != nil {
		return "", err
	}
	l.address = gateway.String()
	return l.spec.Network + " " + l.address, nil
}

func (l *Lab) startKind(ctx context.Context, m *member, identity cluster.Identity) (*kind.Cluster, error) {
	address, err := netip.ParseAddr(l.address)
	if err != nil {
		return nil, err
	}
	front, err := url.Parse(l.info.Front)
	if err != nil {
		return nil, err
	}
	config := kind.Config{
		Identity: identity, Dir: m.dir, Image: l.spec.Image, Network: l.spec.Network, Address: address,
		Reach: []string{front.Host}, Trusts: l.trusted(m), Plain: madeHere(l.spec.Image), Log: l.spec.Log,
		Observe: func(phase string) { l.observe(StepEvent{Name: m.step(), Detail: phase}) },
	}
	if l.info.WorkloadImage != "" {
		config.Images = func(w io.Writer) error { return images.WriteWorkload(w, l.info.WorkloadImage, l.spec.Command[0]) }
	}
	return kind.Start(ctx, config)
}

// madeHere says whether a node image was made by package images, which can't make
// kind's plugins.
func madeHere(image string) bool {
	made, _ := images.NodeRef()
	repository, _, _ := strings.Cut(made, ":")
	return strings.HasPrefix(image, repository+":")
}
