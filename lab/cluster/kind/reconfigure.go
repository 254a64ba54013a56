package kind

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"

	"github.com/oidclab/oidclab/lab/cluster"
)

// manifest is the API server's static pod. kubelet restarts it when it changes.
const manifest = "/etc/kubernetes/manifests/kube-apiserver.yaml"

var errClosed = errors.New("the cluster is closed")

// Reconfigure implements cluster.Cluster: it changes the API server's
// static pod. A cluster that was started with key files takes no external signer.
func (c *Cluster) Reconfigure(ctx context.Context, identity cluster.Identity) error {
	c.reconfiguring.Lock()
	defer c.reconfiguring.Unlock()
	former := c.Identity()
	if err := c.mayBecome(identity); err != nil {
		return err
	}
	if err := c.restart(ctx, identity); err != nil {
		if errors.Is(err, errClosed) {
			return fmt.Errorf("cluster %s: %w", identity.ID, err)
		}
		undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), reconfigureTimeout)
		defer cancel()
		if backErr := c.restart(undo, former); backErr != nil {
			return errors.Join(fmt.Errorf("cluster %s: %w", identity.ID, err), fmt.Errorf("nor has it its former identity again: %w", backErr))
		}
		return fmt.Errorf("cluster %s: %w", identity.ID, err)
	}
	c.setIdentity(identity)
	return nil
}

func (c *Cluster) mayBecome(identity cluster.Identity) error {
	if identity.ID != c.config.Identity.ID {
		return fmt.Errorf("cluster %s can't become %s", c.config.Identity.ID, identity.ID)
	}
	if identity.KeyFiles == nil && identity.SignerSocket != c.config.Identity.SignerSocket {
		return fmt.Errorf("cluster %s has no signer at %q mounted; start it with one", identity.ID, identity.SignerSocket)
	}
	return nil
}

func (c *Cluster) setIdentity(identity cluster.Identity) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.identity = identity
}

// restart has the API server run with an identity, and waits for it. Key files
// are a new generation, so that the static pod changes if only they do.
func (c *Cluster) restart(ctx context.Context, identity cluster.Identity) error {
	ctx, cancel := c.whileOpen(ctx)
	defer cancel(nil)
	c.generation++
	if err := c.writeKeys(identity, c.generation); err != nil {
		return err
	}
	current, err := c.exec(ctx, nil, "cat "+manifest)
	if err != nil {
		return err
	}
	changed, err := withArguments([]byte(current), arguments(identity, c.generation))
	if err != nil {
		return err
	}
	// Not within the directory of manifests: kubelet would take both.
	if _, err := c.exec(ctx, changed, `cat > /etc/kubernetes/oidclab.yaml && mv /etc/kubernetes/oidclab.yaml `+manifest); err != nil {
		return err
	}
	for _, condition := range []func(context.Context) error{
		func(ctx context.Context) error { return c.checkCommand(ctx, identity) },
		c.api.Ready,
	} {
		if err := await(ctx, condition); err != nil {
			return c.withReason(context.WithoutCancel(ctx), err)
		}
	}
	if err := c.api.CheckIdentity(ctx, identity); err != nil {
		return err
	}
	return c.removeOldKeys()
}

// whileOpen returns a context that ends when the cluster is closed, too.
func (c *Cluster) whileOpen(ctx context.Context) (context.Context, context.CancelCauseFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	go func() {
		select {
		case <-c.closed:
			cancel(errClosed)
		case <-ctx.Done():
		}
	}()
	return ctx, cancel
}

// withArguments returns a static pod of an API server whose identity is made by
// args.
func withArguments(content []byte, args []argument) ([]byte, error) {
	var pod corev1.Pod
	if err := yaml.Unmarshal(content, &pod); err != nil {
		return nil, fmt.Errorf("%s: %w", manifest, err)
	}
	if len(pod.Spec.Containers) != 1 {
		return nil, fmt.Errorf("%s has %d containers", manifest, len(pod.Spec.Containers))
	}
	apiServer := &pod.Spec.Containers[0]
	apiServer.Command = slices.DeleteFunc(apiServer.Command, func(arg string) bool { return strings.HasPrefix(arg, managed) })
	for _, a := range args {
		apiServer.Command = append(apiServer.Command, a.String())
	}
	return yaml.Marshal(pod)
}
