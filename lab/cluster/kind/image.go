package kind

import (
	"context"
	"errors"
	"fmt"
	"io"
)

// ImportImage gives the node an image, which write writes as an archive.
func (c *Cluster) ImportImage(ctx context.Context, write func(io.Writer) error) error {
	archive, writer := io.Pipe()
	written := make(chan error, 1)
	go func() {
		err := write(writer)
		writer.CloseWithError(err)
		written <- err
	}()
	// Digests are names too, for the kubelet; nothing unpacks what no pod asks for.
	_, err := dockerWith(ctx, archive, "exec", "--interactive", c.node(),
		"ctr", "--namespace=k8s.io", "images", "import", "--digests", "--no-unpack", "-")
	_ = archive.CloseWithError(errors.New("the node takes no more"))
	if writeErr := <-written; err == nil {
		err = writeErr
	}
	if err != nil {
		return fmt.Errorf("cluster %s: image: %w", c.config.Identity.ID, err)
	}
	return nil
}
