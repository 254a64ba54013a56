package images

import (
	"archive/tar"
	"bytes"
	"debug/elf"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"testing/fstest"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"github.com/oidclab/oidclab/fixtures"
	"github.com/oidclab/oidclab/lab/problem"
)

func TestRecipeKey(t *testing.T) {
	recipe := func(edit func(fstest.MapFS)) fstest.MapFS {
		files := fstest.MapFS{"node/packages": {Data: []byte("jq\n")}, "node/base.sh": {Data: []byte("true\n")}}
		edit(files)
		return files
	}
	same := recipeKey(recipe(func(fstest.MapFS) {}))
	if again := recipeKey(recipe(func(fstest.MapFS) {})); again != same {
		t.Errorf("the same recipes have the keys %s and %s", same, again)
	}
	for name, edit := range map[string]func(fstest.MapFS){
		"content":  func(f fstest.MapFS) { f["node/packages"].Data = []byte("jq\nrunc\n") },
		"new file": func(f fstest.MapFS) { f["node/more"] = &fstest.MapFile{} },
		"renamed":  func(f fstest.MapFS) { f["node/package"] = f["node/packages"]; delete(f, "node/packages") },
		// What is moved from one file to the next is a change too.
		"boundary": func(f fstest.MapFS) {
			f["node/base.sh"].Data = []byte("true\nnode/packages 3\njq\n")
			delete(f, "node/packages")
		},
	} {
		if key := recipeKey(recipe(edit)); key == same {
			t.Errorf("%s: the key is the same", name)
		}
	}
}

// TestKubernetesModule: the node runs the Kubernetes that oidclab links, with
// the same versions of what it needs, so that both share a compile.
func TestKubernetesModule(t *testing.T) {
	own := requirements(t, readFile(t, os.DirFS("../.."), "go.mod"))
	for module, version := range requirements(t, readFile(t, fixtures.ImageRecipes(), "node/kubernetes.mod")) {
		if want, ok := own[module]; ok && version != want {
			t.Errorf("node/kubernetes.mod requires %s %s, and go.mod %s", module, version, want)
		}
	}
	ref, version := NodeRef()
	if want := own["k8s.io/kubernetes"]; version != want || !strings.HasPrefix(ref, "oidclab/node:"+want+"-") {
		t.Errorf("the node image is %s with Kubernetes %s, want %s", ref, version, want)
	}
	kind := requirements(t, readFile(t, fixtures.ImageRecipes(), "node/kind.mod"))
	if got, want := kind["sigs.k8s.io/kind"], own["sigs.k8s.io/kind"]; got != want {
		t.Errorf("node/kind.mod requires kind %s, and go.mod %s", got, want)
	}
}

// TestPauseReferences: what kind's build would pull is what the recipes name.
func TestPauseReferences(t *testing.T) {
	dir, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "sigs.k8s.io/kind").Output()
	if err != nil {
		t.Fatal(err)
	}
	kind := os.DirFS(strings.TrimSpace(string(dir)))
	quoted := regexp.MustCompile(`(?m)Image = "(docker\.io/[^"]+)"`)
	want := map[string]bool{}
	for _, file := range []string{"pkg/build/nodeimage/const_cni.go", "pkg/build/nodeimage/const_storage.go"} {
		for _, match := range quoted.FindAllStringSubmatch(readFile(t, kind, file), -1) {
			want[match[1]] = true
		}
	}
	sandbox := regexp.MustCompile(`sandbox_image = "([^"]+)"`).FindStringSubmatch(readFile(t, kind, "images/base/files/etc/containerd/config.toml"))
	if len(want) == 0 || sandbox == nil {
		t.Fatal("kind's source is not what this test knows")
	}
	want[sandbox[1]] = true
	for _, list := range []string{"node/pause", "node/placeholders"} {
		for ref := range strings.FieldsSeq(readFile(t, fixtures.ImageRecipes(), list)) {
			if !want[ref] {
				t.Errorf("%s names %s, which kind does not need", list, ref)
			}
			delete(want, ref)
		}
	}
	for ref := range want {
		t.Errorf("kind would pull %s", ref)
	}
}

func TestArchive(t *testing.T) {
	dir := t.TempDir()
	program := filepath.Join(dir, "program")
	if err := os.WriteFile(program, []byte("content"), 0o700); err != nil {
		t.Fatal(err)
	}
	images := map[string]v1.Image{}
	for _, ref := range []string{"registry.test/a/first:v1", "docker.io/b/second:v2"} {
		layer, err := programLayer(program, "/bin/"+ref[len(ref)-2:])
		if err != nil {
			t.Fatal(err)
		}
		if images[ref], err = newImage(v1.Config{Entrypoint: []string{"/bin/program"}}, layer); err != nil {
			t.Fatal(err)
		}
	}
	archive := filepath.Join(dir, "archive.tar")
	if err := writeArchive(archive, images); err != nil {
		t.Fatal(err)
	}

	file, err := os.Open(archive)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	first := tar.NewReader(file)
	header, err := first.Next()
	if err != nil || header.Name != "repositories" {
		t.Fatalf("the first entry is %v, %v, want repositories", header, err)
	}
	repositories := map[string]map[string]string{}
	if err := json.NewDecoder(first).Decode(&repositories); err != nil {
		t.Fatal(err)
	}
	if repositories["registry.test/a/first"]["v1"] == "" || repositories["docker.io/b/second"]["v2"] == "" || len(repositories) != 2 {
		t.Errorf("repositories are %v", repositories)
	}
	manifest, err := tarball.LoadManifest(func() (io.ReadCloser, error) { return os.Open(archive) })
	if err != nil || len(manifest) != 2 {
		t.Errorf("the manifest is %v, %v, want two images", manifest, err)
	}
}

func TestCheckStatic(t *testing.T) {
	dir := t.TempDir()
	source := filepath.Join(dir, "main.go")
	if err := os.WriteFile(source, []byte("package main\n\nfunc main() {}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	static := filepath.Join(dir, "static")
	build := exec.Command("go", "build", "-o", static, source)
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if err := checkStatic(static); err != nil {
		t.Errorf("a static program: %v", err)
	}

	content, err := os.ReadFile(static)
	if err != nil {
		t.Fatal(err)
	}
	// The first program header of the same program, turned into an interpreter.
	header, err := elf.NewFile(bytes.NewReader(content))
	if err != nil {
		t.Fatal(err)
	}
	const programHeaders = 64 // e_phoff of what the linker makes
	dynamic := bytes.Clone(content)
	header.ByteOrder.PutUint32(dynamic[programHeaders:], uint32(elf.PT_INTERP))
	for name, content := range map[string][]byte{"dynamic": dynamic, "a script": []byte("#!/bin/sh\n")} {
		path := filepath.Join(dir, "other")
		if err := os.WriteFile(path, content, 0o700); err != nil {
			t.Fatal(err)
		}
		if p := new(problem.Problem); !errors.As(checkStatic(path), &p) || p.Kind != problem.EnvironmentMissing {
			t.Errorf("%s is not refused as missing environment", name)
		}
	}
}

func readFile(t *testing.T, files fs.FS, path string) string {
	t.Helper()
	content, err := fs.ReadFile(files, path)
	if err != nil {
		t.Fatal(err)
	}
	return string(content)
}

// requirements returns the versions of a go.mod by module.
func requirements(t *testing.T, module string) map[string]string {
	t.Helper()
	versions := map[string]string{}
	for _, match := range regexp.MustCompile(`(?m)^\s*(?:require )?(\S+\.\S+) (v\S+)`).FindAllStringSubmatch(module, -1) {
		versions[match[1]] = match[2]
	}
	if len(versions) == 0 {
		t.Fatal("no requirements found")
	}
	return versions
}
