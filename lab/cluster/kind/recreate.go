package kind

import (
	"context"
	"fmt"
	"net/url"
	"path"
	"path/filepath"
	"strconv"

	"sigs.k8s.io/kind/pkg/apis/config/v1alpha4"

	"github.com/oidclab/oidclab/lab/cluster"
)

// pkiDir is where kubeadm takes a certificate authority from, if there is one.
const pkiDir = "/etc/kubernetes/pki"

// authority are its files.
var authority = [...]string{"ca.crt", "ca.key"}

// kept is what a cluster that is made anew keeps, so that clients of its API go
// on: the port, and the authority of server and client certificates.
type kept struct {
	port int32
	ca   string // directory of authority
}

func (k *kept) adapt(config *v1alpha4.Cluster) {
	config.Networking.APIServerPort = k.port
	for _, file := range authority {
		config.Nodes[0].ExtraMounts = append(config.Nodes[0].ExtraMounts,
			v1alpha4.Mount{HostPath: filepath.Join(k.ca, file), ContainerPath: path.Join(pkiDir, file), Readonly: true})
	}
}

// Recreate implements cluster.Cluster: the node is another one.
func (c *Cluster) Recreate(ctx context.Context, identity cluster.Identity) (err error) {
	c.reconfiguring.Lock()
	defer c.reconfiguring.Unlock()
	if err := c.mayBecome(identity); err != nil {
		return err
	}
	ctx, cancel := c.whileOpen(ctx)
	defer cancel(nil)
	defer func() {
		if err != nil {
			err = fmt.Errorf("cluster %s: %w", c.config.Identity.ID, err)
		}
	}()
	if c.kept == nil { // or the node was removed already, by a recreation that failed
		if c.kept, err = c.keep(ctx); err != nil {
			return err
		}
	}
	if err := c.remove(ctx); err != nil {
		return err
	}
	c.generation++
	if err := c.start(ctx, identity); err != nil {
		return err
	}
	c.setIdentity(identity)
	return c.removeOldKeys()
}

// keep reads what is kept.
func (c *Cluster) keep(ctx context.Context) (*kept, error) {
	server, err := url.Parse(c.api.Config().Host)
	if err != nil {
		return nil, err
	}
	port, err := strconv.ParseInt(server.Port(), 10, 32)
	if err != nil {
		return nil, err
	}
	files := map[string][]byte{}
	for _, file := range authority {
		content, err := c.exec(ctx, nil, `cat "$1"`, path.Join(pkiDir, file))
		if err != nil {
			return nil, err
		}
		files[file] = []byte(content)
	}
	dir := filepath.Join(c.config.Dir, "ca")
	if err := writeFiles(dir, files); err != nil {
		return nil, err
	}
	return &kept{int32(port), dir}, nil
}
