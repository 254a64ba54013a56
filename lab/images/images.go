// Package images makes the container images of the kind engine without any
// registry: from Go modules and Debian packages, by the recipes of package
// fixtures. An image's tag names the content that it was made from, so one that
// exists is never made again.
package images

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"regexp"
	"runtime"

	"github.com/oidclab/oidclab/fixtures"
	"github.com/oidclab/oidclab/lab/problem"
)

// The images.
const (
	Node     = "node"     // a Kubernetes node, for kind
	Workload = "workload" // the oidclab binary
	Vault    = "vault"    // a vault program
)

// workloadProgram is where the workload image has the oidclab binary.
const workloadProgram = "/oidclab"

// Image is a container image that can be made here.
type Image struct {
	Name string `json:"name"`          // Node, Workload or Vault
	Ref  string `json:"ref,omitempty"` // what docker knows it as; empty if it can't be made
	Size int64  `json:"size"`          // bytes, unpacked; 0 means that the container engine does not have it
	Why  string `json:"why,omitempty"` // it can't be made
}

// NodeRef returns the reference of the node image, and the Kubernetes version
// in it, such as v1.36.1.
func NodeRef() (ref, version string) {
	recipes := fixtures.ImageRecipes()
	version = kubernetesVersion(recipes)
	return "oidclab/node:" + version + "-" + recipeKey(recipes), version
}

// assembly is raised when this package makes another image of the same recipes.
const assembly = 2

// recipeKey returns a digest of what a node image is made from.
func recipeKey(recipes fs.FS) string {
	digest := sha256.New()
	fmt.Fprintln(digest, runtime.GOARCH, assembly)
	err := fs.WalkDir(recipes, ".", func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		content, err := fs.ReadFile(recipes, path)
		fmt.Fprintln(digest, path, len(content))
		digest.Write(content)
		return err
	})
	if err != nil {
		panic(err) // they are embedded
	}
	return shortened(digest.Sum(nil))
}

func shortened(digest []byte) string { return hex.EncodeToString(digest)[:12] }

var kubernetesRequirement = regexp.MustCompile(`(?m)^\s*k8s\.io/kubernetes (v\S+)`)

func kubernetesVersion(recipes fs.FS) string {
	module, err := fs.ReadFile(recipes, "node/kubernetes.mod")
	if err != nil {
		panic(err) // it is embedded
	}
	return string(kubernetesRequirement.FindSubmatch(module)[1])
}

// WorkloadRef returns the reference of the workload image of a binary. One that
// would not start in an image of its own is an EnvironmentMissing problem.
func WorkloadRef(binary string) (string, error) { return programRef(Workload, binary) }

// VaultRef returns the reference of the image of a vault program. One that would
// not start in an image of its own is an EnvironmentMissing problem.
func VaultRef(program string) (string, error) { return programRef(Vault, program) }

// programRef returns the reference of an image that holds one program only.
func programRef(name, program string) (string, error) {
	if err := checkStatic(program); err != nil {
		return "", err
	}
	file, err := os.Open(program)
	if err != nil {
		return "", err
	}
	defer func() { _ = file.Close() }()
	digest := sha256.New()
	if _, err := io.Copy(digest, file); err != nil {
		return "", err
	}
	return "oidclab/" + name + ":" + shortened(digest.Sum(nil)), nil
}

// Config is what images are made with.
type Config struct {
	Cache   string   // directory for what was made halfway; made if it does not exist
	Command []string // runs NodeImageMain with further arguments; [0] is the oidclab binary
	Vault   string   // the vault program
	NoVault error    // why there is none; an EnvironmentMissing problem

	// Observe is told that a step begins, and gets what to call at its end.
	// It may be called by several goroutines at a time.
	Observe func(step string) (end func(detail string, err error))
}

// List returns all images, made or not.
func List(ctx context.Context, config Config) ([]Image, error) {
	var images []Image
	for _, name := range []string{Node, Workload, Vault} {
		image := Image{Name: name}
		var err error
		switch name {
		case Node:
			image.Ref, _ = NodeRef()
		case Workload:
			image.Ref, err = WorkloadRef(config.Command[0])
		case Vault:
			if err = config.NoVault; err == nil {
				image.Ref, err = VaultRef(config.Vault)
			}
		}
		if p := new(problem.Problem); errors.As(err, &p) && p.Kind == problem.EnvironmentMissing {
			image.Why = p.What
			images = append(images, image)
			continue
		}
		if err != nil {
			return nil, err
		}
		if image.Size, err = Size(ctx, image.Ref); err != nil {
			return nil, err
		}
		images = append(images, image)
	}
	return images, nil
}

// Build makes the images that the container engine does not have, and removes
// those that they take the place of. A build that was interrupted goes on where
// it stopped.
func Build(ctx context.Context, config Config) error {
	images, err := List(ctx, config)
	if err != nil {
		return err
	}
	for _, image := range images {
		if image.Size > 0 || image.Why != "" {
			continue
		}
		switch image.Name {
		case Node:
			err = buildNode(ctx, config)
		case Workload:
			err = config.step("workload image", func() (string, error) {
				return image.Ref, loadProgram(ctx, image.Ref, config.Command[0], workloadProgram)
			})
		case Vault:
			err = config.step("vault image", func() (string, error) {
				return image.Ref, loadProgram(ctx, image.Ref, config.Vault, "/bin/vault")
			})
		}
		if err == nil {
			err = removeFormer(ctx, image.Ref)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// Save writes the images that the container engine has to an archive that Load
// reads.
func Save(ctx context.Context, config Config, path string) error {
	images, err := List(ctx, config)
	if err != nil {
		return err
	}
	var refs []string
	for _, image := range images {
		if image.Size > 0 {
			refs = append(refs, image.Ref)
		}
	}
	if len(refs) == 0 {
		return problem.New(problem.EnvironmentMissing, "oidclab images build", "there is no image to save")
	}
	return saveImages(ctx, path, refs)
}

// Load hands the images of an archive to the container engine.
func Load(ctx context.Context, path string) error { return loadArchive(ctx, path) }

// step runs one step, and tells of it.
func (c Config) step(name string, run func() (detail string, err error)) error {
	if c.Observe == nil {
		_, err := run()
		return err
	}
	end := c.Observe(name)
	detail, err := run()
	end(detail, err)
	return err
}
