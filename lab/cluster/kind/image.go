package kind

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"time"
)

// imagesFile is the archive of images for the node, in what it has mounted.
const imagesFile = "images.tar"

// importInterval is between two looks whether the node takes images yet.
const importInterval = 500 * time.Millisecond

// importImages gives the node the images that write writes, as soon as it takes
// them. Once created is closed, it must.
func (c *Cluster) importImages(ctx context.Context, write func(io.Writer) error, created <-chan struct{}) (err error) {
	if write == nil {
		return nil
	}
	archive := filepath.Join(c.mountDir(), imagesFile)
	defer func() {
		if removeErr := os.Remove(archive); !errors.Is(removeErr, os.ErrNotExist) {
			err = errors.Join(err, removeErr)
		}
	}()
	if err := writeImages(archive, write); err != nil {
		return fmt.Errorf("images: %w", err)
	}
	for last := false; ; {
		// Digests are names too, for the kubelet; nothing unpacks what no pod asks for. Without
		// --local, containerd is sent the archive in small pieces, which takes three times as long.
		_, err := docker(ctx, "exec", c.node(), "ctr", "--namespace=k8s.io", "images", "import", "--local", "--digests", "--no-unpack", path.Join(nodeDir, imagesFile))
		if err == nil {
			return nil
		}
		if last || ctx.Err() != nil {
			return fmt.Errorf("images: %w", err)
		}
		select {
		case <-created:
			last = true
		case <-ctx.Done():
		case <-time.After(importInterval):
		}
	}
}

func writeImages(archive string, write func(io.Writer) error) (err error) {
	file, err := os.OpenFile(archive, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	return write(file)
}
