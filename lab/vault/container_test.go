package vault

import (
	"archive/tar"
	"bytes"
	"errors"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/oidclab/oidclab/lab/proc"
)

// A container is started, opened and left behind as a process is. What runs in it is
// the stand-in: the test is of the container.
func TestContainer(t *testing.T) {
	requireContainers(t)
	t.Setenv("TESTCONTAINERS_RYUK_DISABLED", "true")
	image := standInImage(t)
	label := "dev.oidclab/test=" + filepath.Base(t.TempDir()) + t.Name()
	key, value, _ := strings.Cut(label, "=")
	dir := t.TempDir()
	config := Config{
		Container: &Container{Image: image, Network: "bridge", Labels: map[string]string{key: value}},
		Dir:       dir, CA: newCA(t),
	}
	server, err := Start(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := server.Stop(t.Context()); err != nil {
			t.Error(err)
		}
	}()
	if err := server.Healthy(t.Context()); err != nil {
		t.Error(err)
	}
	if status := server.Status(); status.State != proc.Running || status.PID == 0 {
		t.Errorf("status %+v", status)
	}
	response, err := (&http.Client{Transport: server.transport}).Get(server.URL() + "/v1/sys/health?sealedcode=299")
	if err != nil {
		t.Fatal(err)
	}
	if err := response.Body.Close(); err != nil || response.StatusCode != http.StatusOK {
		t.Errorf("%s, %v: it is not unsealed", response.Status, err)
	}
	if host := server.URL(); !strings.HasPrefix(host, "https://127.0.0.1:") {
		t.Errorf("it is published at %s", host)
	}

	containers := func() string { return docker(t, "ps", "--all", "--quiet", "--filter", "label="+label) }
	id := containers()
	docker(t, "kill", id)
	if err := server.Healthy(t.Context()); err == nil || !strings.Contains(err.Error(), "what it held in memory is gone") {
		t.Errorf("a dead Vault is %v", err)
	}
	for range 2 {
		if err := server.Stop(t.Context()); err != nil {
			t.Error(err)
		}
	}
	if left := containers(); left != "" {
		t.Errorf("the container %s is left", left)
	}
	if _, err := os.Stat(filepath.Join(dir, "vault.log")); err != nil {
		t.Error(err)
	}
}

func TestContainerWithoutImage(t *testing.T) {
	requireContainers(t)
	t.Setenv("TESTCONTAINERS_RYUK_DISABLED", "true")
	server, err := Start(t.Context(), Config{
		Container: &Container{Image: "oidclab.invalid/vault:none", Network: "bridge"}, Dir: t.TempDir(), CA: newCA(t),
	})
	if err == nil {
		_ = server.Stop(t.Context())
		t.Fatal("it started")
	}
	if !strings.Contains(err.Error(), "oidclab.invalid/vault:none") {
		t.Errorf("%q does not name the image", err)
	}
}

// requireContainers skips the test where there is no container engine.
func requireContainers(t *testing.T) {
	t.Helper()
	err := exec.Command("docker", "version").Run()
	if err == nil {
		return
	}
	if os.Getenv("OIDCLAB_REQUIRE_KIND") == "1" {
		t.Fatalf("no container engine answers: %v", err)
	}
	t.Skipf("needs the capability \"container engine\" (OIDCLAB_REQUIRE_KIND=1 makes this a failure): %v", err)
}

// standInImage makes an image whose entrypoint is the stand-in.
func standInImage(t *testing.T) string {
	t.Helper()
	binary := filepath.Join(t.TempDir(), "test")
	build := exec.Command("go", "test", "-c", "-o", binary, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0") // static, whatever this test itself is
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	content, err := os.ReadFile(binary)
	if err != nil {
		t.Fatal(err)
	}
	var root bytes.Buffer
	w := tar.NewWriter(&root)
	err = w.WriteHeader(&tar.Header{Name: containedVault, Mode: 0o755, Size: int64(len(content))})
	_, writeErr := w.Write(content)
	if err := errors.Join(err, writeErr, w.Close()); err != nil {
		t.Fatal(err)
	}
	load := exec.Command("docker", "import", "--change", `ENTRYPOINT ["/`+containedVault+`"]`, "-")
	load.Stdin = &root
	out, err := load.Output()
	if err != nil {
		t.Fatal(err)
	}
	image := strings.TrimSpace(string(out))
	t.Cleanup(func() { docker(t, "image", "rm", "--force", image) })
	return image
}

func docker(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.Command("docker", args...).CombinedOutput()
	if err != nil {
		t.Fatalf("docker %s: %v: %s", args[0], err, out)
	}
	return strings.TrimSpace(string(out))
}
