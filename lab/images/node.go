package images

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sync/errgroup"
	"sigs.k8s.io/kind/pkg/build/nodeimage"
	"sigs.k8s.io/kind/pkg/log"

	"github.com/oidclab/oidclab/fixtures"
	"github.com/oidclab/oidclab/lab/problem"
)

// nodeBuild is one build of the node image.
type nodeBuild struct {
	Config
	ref     string
	version string // of Kubernetes
	base    string // reference of kind's base image
	dir     string // of what is made halfway; named by the recipes, so that it fits them
	log     *os.File
}

// modules are the recipes of Go programs, and what their build needs beside the
// module. The first is part of the base image.
var modules = []struct {
	name    string
	tags    string
	version bool // the programs tell their version by linker flags
}{
	{name: "containerd", tags: "no_btrfs,no_zfs,no_aufs,no_devmapper"},
	{name: "kubernetes", version: true},
	{name: "etcd"},
	{name: "coredns"},
}

// buildNode makes the node image: programs from Go modules, a base image from
// Debian packages, and kind's own build on top. It needs root.
func buildNode(ctx context.Context, config Config) (err error) {
	for program, next := range map[string]string{"go": "install Go", "debootstrap": "apt-get install debootstrap", "apt-get": "run it on Debian"} {
		if _, err := exec.LookPath(program); err != nil {
			return problem.New(problem.EnvironmentMissing, next, "the node image can't be made: there is no %s program on PATH", program)
		}
	}
	if os.Geteuid() != 0 {
		return problem.New(problem.EnvironmentMissing, "sudo oidclab images build", "the node image can't be made: debootstrap needs root")
	}
	b := &nodeBuild{Config: config}
	b.ref, b.version = NodeRef()
	tag := b.ref[strings.LastIndex(b.ref, ":")+1:]
	b.base, b.dir = "oidclab/node-base:"+tag, filepath.Join(config.Cache, tag)
	if err := os.MkdirAll(b.dir, 0o700); err != nil {
		return err
	}
	if b.log, err = os.Create(filepath.Join(b.dir, "build.log")); err != nil {
		return err
	}
	defer func() { _ = b.log.Close() }()
	if err := os.CopyFS(b.path("recipes"), fixtures.ImageRecipes()); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}

	if err := b.programs(ctx, modules[0].name, modules[0].tags, ""); err != nil {
		return err
	}
	parts, partsCtx := errgroup.WithContext(ctx)
	parts.Go(func() error { return b.baseImage(partsCtx) })
	parts.Go(func() error {
		for _, module := range modules[1:] {
			flags := ""
			if module.version {
				flags = b.versionFlags()
			}
			if err := b.programs(partsCtx, module.name, module.tags, flags); err != nil {
				return err
			}
		}
		return b.pause(partsCtx)
	})
	if err := parts.Wait(); err != nil {
		return err
	}
	if err := b.step("kubernetes images", func() (string, error) { return "", b.release(ctx) }); err != nil {
		return err
	}
	if err := b.step("node image", func() (string, error) { return b.ref, b.nodeImage(ctx) }); err != nil {
		return err
	}
	return os.RemoveAll(b.dir)
}

func (b *nodeBuild) path(elements ...string) string {
	return filepath.Join(append([]string{b.dir}, elements...)...)
}

// command is a program that runs in dir; what it prints goes to the log. If ctx
// ends, it is killed with all that it started.
func (b *nodeBuild) command(ctx context.Context, dir, program string, args ...string) *exec.Cmd {
	command := exec.CommandContext(ctx, program, args...)
	command.Dir, command.Stdout, command.Stderr = dir, b.log, b.log
	command.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	command.Cancel = func() error { return syscall.Kill(-command.Process.Pid, syscall.SIGKILL) }
	return command
}

func (b *nodeBuild) wait(ctx context.Context, command *exec.Cmd) error {
	err := command.Run()
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case err != nil:
		return fmt.Errorf("%s: %w; what it said is in %s", strings.Join(command.Args[:2], " "), err, b.log.Name())
	}
	return nil
}

// goBuild builds a module's tools, or the files named, to an empty directory
// or file out. The build does not depend on flags in the environment.
func (b *nodeBuild) goBuild(ctx context.Context, dir, out, tags, ldflags string, what ...string) error {
	args := append([]string{"build", "-trimpath", "-tags", tags, "-ldflags", "-s -w " + ldflags, "-o", out}, what...)
	command := b.command(ctx, dir, "go", args...)
	command.Env = append(command.Environ(), "CGO_ENABLED=0", "GOFLAGS=", "GOWORK=off")
	return b.wait(ctx, command)
}

// module lays out the module of a recipe and returns its directory.
func (b *nodeBuild) module(name string) (string, error) {
	dir := b.path("modules", name)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", err
	}
	for _, suffix := range []string{"mod", "sum"} {
		content, err := fs.ReadFile(fixtures.ImageRecipes(), "node/"+name+"."+suffix)
		if err != nil {
			return "", err
		}
		if err := os.WriteFile(filepath.Join(dir, "go."+suffix), content, 0o600); err != nil {
			return "", err
		}
	}
	return dir, nil
}

// programs builds the programs of a module to bin/<module>.
func (b *nodeBuild) programs(ctx context.Context, module, tags, ldflags string) error {
	return b.once("programs of "+module, b.path("bin", module), func(unfinished string) error {
		dir, err := b.module(module)
		if err != nil {
			return err
		}
		if err := os.MkdirAll(unfinished, 0o700); err != nil {
			return err
		}
		return b.goBuild(ctx, dir, unfinished+"/", tags, ldflags, "tool")
	})
}

// once makes a file or directory, unless an earlier build has finished it.
func (b *nodeBuild) once(step, path string, make func(unfinished string) error) error {
	if _, err := os.Stat(path); err == nil {
		return nil
	}
	return b.step(step, func() (string, error) {
		unfinished := path + ".unfinished"
		if err := errors.Join(os.RemoveAll(unfinished), os.MkdirAll(filepath.Dir(path), 0o700)); err != nil {
			return "", err
		}
		if err := make(unfinished); err != nil {
			return "", errors.Join(err, os.RemoveAll(unfinished))
		}
		return "", os.Rename(unfinished, path)
	})
}

// versionFlags make Kubernetes' programs tell their version.
func (b *nodeBuild) versionFlags() string {
	const variable = " -X k8s.io/component-base/version."
	parts := strings.SplitN(strings.TrimPrefix(b.version, "v"), ".", 3)
	return variable + "gitVersion=" + b.version + variable + "gitMajor=" + parts[0] + variable + "gitMinor=" + parts[1]
}

// baseImage makes kind's base image, and the root of kube-proxy's image.
func (b *nodeBuild) baseImage(ctx context.Context) error {
	err := b.once("debian packages", b.path("debian"), func(unfinished string) error {
		mirror, err := b.mirror(ctx)
		if err != nil {
			return err
		}
		kind, err := b.kindSource(ctx)
		if err != nil {
			return err
		}
		if err := os.MkdirAll(unfinished, 0o700); err != nil {
			return err
		}
		script := b.command(ctx, unfinished, "sh", b.path("recipes", "node", "base.sh"), unfinished, mirror,
			filepath.Join(kind, "images", "base", "files"), b.path("bin", "containerd"))
		script.SysProcAttr.Unshareflags = syscall.CLONE_NEWNS // what it mounts is gone with it
		return b.wait(ctx, script)
	})
	if err != nil {
		return err
	}
	if size, err := Size(ctx, b.base); size > 0 || err != nil {
		return err
	}
	return b.step("node base image", func() (string, error) {
		layer, err := tarFile(b.path("debian", "base.tar"))
		if err != nil {
			return "", err
		}
		// As at the end of kind's Dockerfile.
		image, err := newImage(v1.Config{
			Env: []string{path, "container=docker"}, StopSignal: "SIGRTMIN+3", Entrypoint: []string{"/usr/local/bin/entrypoint", "/sbin/init"},
		}, layer)
		if err != nil {
			return "", err
		}
		archive := b.path("base-image.tar")
		if err := writeArchive(archive, map[string]v1.Image{b.base: image}); err != nil {
			return "", err
		}
		return "", errors.Join(loadArchive(ctx, archive), os.Remove(archive))
	})
}

// mirror returns the Debian mirror of this machine.
func (b *nodeBuild) mirror(ctx context.Context) (string, error) {
	var out bytes.Buffer
	command := b.command(ctx, b.dir, "apt-get", "indextargets", "--format", "$(CODENAME) $(COMPONENT) $(REPO_URI)", "Created-By: Packages")
	command.Stdout = &out
	if err := b.wait(ctx, command); err != nil {
		return "", err
	}
	for line := range strings.Lines(out.String()) {
		// bookworm-security and bookworm-updates hold what changed since only.
		if fields := strings.Fields(line); len(fields) == 3 && !strings.Contains(fields[0], "-") && fields[1] == "main" {
			return fields[2], nil
		}
	}
	return "", problem.New(problem.EnvironmentMissing, "add one to the machine's apt sources, then: apt-get update", "apt knows no Debian mirror")
}

// kindSource returns the directory of kind's source in the module cache.
func (b *nodeBuild) kindSource(ctx context.Context) (string, error) {
	dir, err := b.module("kind")
	if err != nil {
		return "", err
	}
	var out bytes.Buffer
	command := b.command(ctx, dir, "go", "mod", "download", "-json", "sigs.k8s.io/kind")
	command.Stdout = &out
	if err := b.wait(ctx, command); err != nil {
		return "", err
	}
	var module struct{ Dir string }
	if err := json.Unmarshal(out.Bytes(), &module); err != nil {
		return "", err
	}
	return module.Dir, nil
}

// pause builds the program that holds a pod's namespaces.
func (b *nodeBuild) pause(ctx context.Context) error {
	return b.once("pause", b.path("bin", "pause", "pause"), func(unfinished string) error {
		return b.goBuild(ctx, b.path("recipes", "pause"), unfinished, "", "", "main.go")
	})
}

// release lays out the programs as a release of Kubernetes does, which is what
// kind builds from: three programs, and archives of images. kind would pull
// every other image that a node needs, so those are in the first archive.
func (b *nodeBuild) release(ctx context.Context) (err error) {
	images, err := b.images(ctx)
	if err != nil {
		return err
	}
	out, err := os.Create(b.path("kubernetes.tar.gz"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	compressed, err := gzip.NewWriterLevel(out, gzip.NoCompression) // kind wants gzip; nothing is carried anywhere
	if err != nil {
		return err
	}
	w := tar.NewWriter(compressed)
	if err := errors.Join(w.WriteHeader(&tar.Header{Name: "kubernetes/version", Mode: 0o644, Size: int64(len(b.version))}), second(w.Write([]byte(b.version)))); err != nil {
		return err
	}
	for archive, content := range images {
		file := b.path(archive)
		if err := errors.Join(writeArchive(file, content), addFile(w, file, "kubernetes/server/bin/"+archive), os.Remove(file)); err != nil {
			return err
		}
	}
	for _, program := range []string{"kubeadm", "kubelet", "kubectl"} {
		if err := addFile(w, b.path("bin", "kubernetes", program), "kubernetes/server/bin/"+program); err != nil {
			return err
		}
	}
	return errors.Join(w.Close(), compressed.Close())
}

// images returns the images of a node, by archive and reference.
func (b *nodeBuild) images(ctx context.Context) (map[string]map[string]v1.Image, error) {
	var required bytes.Buffer
	command := b.command(ctx, b.dir, b.path("bin", "kubernetes", "kubeadm"), "config", "images", "list", "--kubernetes-version", b.version)
	command.Stdout = &required
	if err := b.wait(ctx, command); err != nil {
		return nil, err
	}
	archives := map[string]map[string]v1.Image{}
	add := func(archive, ref string, image v1.Image) {
		if archives[archive] == nil {
			archives[archive] = map[string]v1.Image{}
		}
		archives[archive][ref] = image
	}
	const first = "kube-apiserver.tar"
	for ref := range strings.FieldsSeq(required.String()) {
		repository := ref[:strings.LastIndex(ref, ":")]
		program := repository[strings.LastIndex(repository, "/")+1:]
		var image v1.Image
		var err error
		archive := first
		switch program {
		case "pause":
			continue // kind has another version
		case "etcd":
			image, err = b.nodeProgram("bin/etcd/server", "/usr/local/bin/etcd", false)
		case "coredns":
			image, err = b.nodeProgram("bin/coredns/coredns", "/coredns", true)
		case "kube-proxy":
			archive = program + ".tar"
			image, err = b.nodeProgram("bin/kubernetes/kube-proxy", "/usr/local/bin/kube-proxy", false, "debian/proxy.tar")
		default:
			archive = program + ".tar"
			image, err = b.nodeProgram("bin/kubernetes/"+program, "/usr/local/bin/"+program, false)
		}
		if err != nil {
			return nil, err
		}
		add(archive, ref, image)
	}
	pause, err := b.nodeProgram("bin/pause/pause", "/pause", true)
	if err != nil {
		return nil, err
	}
	for _, list := range []string{"node/pause", "node/placeholders"} {
		refs, err := fs.ReadFile(fixtures.ImageRecipes(), list)
		if err != nil {
			return nil, err
		}
		for ref := range strings.FieldsSeq(string(refs)) {
			add(first, ref, pause)
		}
	}
	return archives, nil
}

// nodeProgram returns an image of a program above other layers.
func (b *nodeBuild) nodeProgram(program, target string, entrypoint bool, below ...string) (v1.Image, error) {
	var layers []v1.Layer
	for _, file := range below {
		layer, err := tarFile(b.path(file))
		if err != nil {
			return nil, err
		}
		layers = append(layers, layer)
	}
	layer, err := programLayer(b.path(program), target)
	if err != nil {
		return nil, err
	}
	config := v1.Config{Env: []string{path}}
	if entrypoint {
		config.Entrypoint = []string{target}
	}
	return newImage(config, append(layers, layer)...)
}

func addFile(w *tar.Writer, file, name string) (err error) {
	in, err := os.Open(file)
	if err != nil {
		return err
	}
	defer func() { _ = in.Close() }()
	info, err := in.Stat()
	if err != nil {
		return err
	}
	if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o755, Size: info.Size()}); err != nil {
		return err
	}
	_, err = io.Copy(w, in)
	return err
}

// nodeImage has kind build the image, in a process of its own: kind's build
// takes no context, prints to stdout and leaves files in the temporary directory.
func (b *nodeBuild) nodeImage(ctx context.Context) (err error) {
	temporary := b.path("tmp")
	if err := errors.Join(os.RemoveAll(temporary), os.MkdirAll(temporary, 0o700)); err != nil {
		return err
	}
	defer func() {
		// A build that was killed leaves its container.
		undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
		defer cancel()
		containers, psErr := docker(undo, "ps", "--all", "--quiet", "--filter", "ancestor="+b.base)
		err = errors.Join(err, psErr)
		if containers != "" {
			_, rmErr := docker(undo, append([]string{"rm", "--force", "--volumes"}, strings.Fields(containers)...)...)
			err = errors.Join(err, rmErr)
		}
		if err == nil {
			_, err = docker(undo, "image", "rm", b.base)
		}
	}()
	args := append(b.Command[1:len(b.Command):len(b.Command)], b.base, b.ref, b.path("kubernetes.tar.gz"))
	command := b.command(ctx, b.dir, b.Command[0], args...)
	command.Env = append(command.Environ(), "TMPDIR="+temporary)
	return b.wait(ctx, command)
}

// undoTimeout bounds what a cancelled build does yet.
const undoTimeout = 30 * time.Second

// NodeImageMain builds a node image with kind; its arguments are base image,
// node image and release. It prints kind's progress.
func NodeImageMain(args []string, out io.Writer) error {
	if len(args) != 3 {
		return fmt.Errorf("want base image, node image and release, not %q", args)
	}
	return nodeimage.Build(nodeimage.WithBaseImage(args[0]), nodeimage.WithImage(args[1]), nodeimage.WithKubeParam(args[2]),
		nodeimage.WithBuildType("file"), nodeimage.WithLogger(kindLogger{out}))
}

// kindLogger writes what kind logs.
type kindLogger struct{ out io.Writer }

func (l kindLogger) Warn(message string)          { fmt.Fprintln(l.out, message) }
func (l kindLogger) Warnf(f string, args ...any)  { fmt.Fprintf(l.out, f+"\n", args...) }
func (l kindLogger) Error(message string)         { fmt.Fprintln(l.out, message) }
func (l kindLogger) Errorf(f string, args ...any) { fmt.Fprintf(l.out, f+"\n", args...) }
func (l kindLogger) V(log.Level) log.InfoLogger   { return l }
func (l kindLogger) Info(message string)          { fmt.Fprintln(l.out, message) }
func (l kindLogger) Infof(f string, args ...any)  { fmt.Fprintf(l.out, f+"\n", args...) }
func (l kindLogger) Enabled() bool                { return true }
