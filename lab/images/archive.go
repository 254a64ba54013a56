package images

import (
	"archive/tar"
	"bytes"
	"context"
	"debug/elf"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/oidclab/oidclab/lab/problem"
)

const path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// newImage returns an image of layers, which are not compressed: these images
// never cross a network.
func newImage(config v1.Config, layers ...v1.Layer) (v1.Image, error) {
	file := &v1.ConfigFile{Architecture: runtime.GOARCH, OS: "linux", Config: config, RootFS: v1.RootFS{Type: "layers"}}
	image, err := mutate.ConfigFile(mutate.MediaType(empty.Image, types.DockerManifestSchema2), file)
	if err != nil {
		return nil, err
	}
	return mutate.AppendLayers(image, layers...)
}

// tarLayer is a layer that is a tar file as it is. (The layers of package tarball
// are compressed, whatever they are asked for.)
type tarLayer struct {
	open   func() (io.ReadCloser, error)
	size   int64
	digest v1.Hash
}

var _ v1.Layer = (*tarLayer)(nil)

func newTarLayer(open func() (io.ReadCloser, error)) (*tarLayer, error) {
	content, err := open()
	if err != nil {
		return nil, err
	}
	digest, size, err := v1.SHA256(content)
	return &tarLayer{open, size, digest}, errors.Join(err, content.Close())
}

func tarFile(name string) (*tarLayer, error) {
	return newTarLayer(func() (io.ReadCloser, error) { return os.Open(name) })
}

func (l *tarLayer) Digest() (v1.Hash, error)             { return l.digest, nil }
func (l *tarLayer) DiffID() (v1.Hash, error)             { return l.digest, nil }
func (l *tarLayer) Compressed() (io.ReadCloser, error)   { return l.open() }
func (l *tarLayer) Uncompressed() (io.ReadCloser, error) { return l.open() }
func (l *tarLayer) Size() (int64, error)                 { return l.size, nil }
func (l *tarLayer) MediaType() (types.MediaType, error)  { return types.DockerUncompressedLayer, nil }

// programLayer returns a layer that holds one program, as target. The program is
// read when the layer is, and not held in memory.
func programLayer(program, target string) (v1.Layer, error) {
	info, err := os.Stat(program)
	if err != nil {
		return nil, err
	}
	var header bytes.Buffer
	err = tar.NewWriter(&header).WriteHeader(&tar.Header{
		Typeflag: tar.TypeReg, Name: strings.TrimPrefix(target, "/"), Mode: 0o755, Size: info.Size(),
	})
	if err != nil {
		return nil, err
	}
	const block = 512 // of tar; two empty ones end it
	trailer := make([]byte, (block-info.Size()%block)%block+2*block)
	open := func() (io.ReadCloser, error) {
		file, err := os.Open(program)
		if err != nil {
			return nil, err
		}
		return struct {
			io.Reader
			io.Closer
		}{io.MultiReader(bytes.NewReader(header.Bytes()), file, bytes.NewReader(trailer)), file}, nil
	}
	return newTarLayer(open)
}

// programImage returns an image of one static program, which is its
// entrypoint, and runs as nobody in particular.
func programImage(program, target string) (v1.Image, error) {
	layer, err := programLayer(program, target)
	if err != nil {
		return nil, err
	}
	return newImage(v1.Config{Env: []string{path}, Entrypoint: []string{target}, User: "65532:65532"}, layer)
}

// loadProgram hands the container engine an image of one program.
func loadProgram(ctx context.Context, ref, program, target string) (err error) {
	image, err := programImage(program, target)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "oidclab-image-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	archive := filepath.Join(dir, "image.tar")
	if err := writeArchive(archive, map[string]v1.Image{ref: image}); err != nil {
		return err
	}
	return loadArchive(ctx, archive)
}

// WriteWorkload writes the workload image of a binary to w, as an archive that
// containerd imports under the reference ref.
func WriteWorkload(w io.Writer, ref, binary string) error {
	tag, err := name.NewTag(ref)
	if err != nil {
		return err
	}
	image, err := programImage(binary, workloadProgram)
	if err != nil {
		return err
	}
	return tarball.Write(tag, image, w)
}

// checkStatic refuses a program that would not start in an image of its own.
func checkStatic(program string) error {
	file, err := elf.Open(program)
	if err != nil {
		return problem.New(problem.EnvironmentMissing, "", "%s is not a Linux program: %w", program, err)
	}
	defer func() { _ = file.Close() }()
	for _, p := range file.Progs {
		if p.Type == elf.PT_INTERP {
			return problem.New(problem.EnvironmentMissing, "build it with CGO_ENABLED=0",
				"%s is not static, so it would not start in an image that holds nothing else", program)
		}
	}
	return nil
}

func second(_ int, err error) error { return err }

// writeArchive writes an archive as `docker save` does. Its first entry is
// `repositories`, where kind's build looks for all tags; of manifest.json it
// reads the first image only.
func writeArchive(file string, images map[string]v1.Image) (err error) {
	out, err := os.Create(file)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	repositories := map[string]map[string]string{}
	tags := map[name.Tag]v1.Image{}
	for ref, image := range images {
		tag, err := name.NewTag(ref)
		if err != nil {
			return err
		}
		tags[tag] = image
		digest, err := image.ConfigName()
		if err != nil {
			return err
		}
		colon := strings.LastIndex(ref, ":")
		repositories[ref[:colon]] = map[string]string{ref[colon+1:]: digest.Hex}
	}
	index, err := json.Marshal(repositories)
	if err != nil {
		return err
	}
	// No Close: the entries that MultiWrite writes follow.
	w := tar.NewWriter(out)
	if err := errors.Join(w.WriteHeader(&tar.Header{Name: "repositories", Mode: 0o644, Size: int64(len(index))}), second(w.Write(index)), w.Flush()); err != nil {
		return err
	}
	if err := tarball.MultiWrite(tags, out); err != nil {
		return fmt.Errorf("images: %s: %w", file, err)
	}
	return nil
}
