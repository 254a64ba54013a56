package e2e

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/oidclab/oidclab/lab/images"
	"github.com/oidclab/oidclab/lab/problem"
)

// TestImages: what was built is there, is not built again, and travels in an
// archive.
func TestImages(t *testing.T) {
	t.Parallel()
	u := newUser(t)
	needKind(t, u)
	built := u.start(t, "", "images", "build", "-o", "json").wait(t, kindLimit)
	built.want(t, 0)
	var list []images.Image
	if err := json.Unmarshal([]byte(built.stdout), &list); err != nil {
		t.Fatal(err)
	}
	for _, image := range list {
		if image.Name != images.Vault && (image.Ref == "" || image.Size == 0) {
			t.Errorf("%+v is not built", image)
		}
	}

	again := u.run(t, "images", "build", "-o", "json")
	again.want(t, 0)
	if again.stdout != built.stdout || again.stderr != "" {
		t.Errorf("a second build did something: %s", again)
	}

	archive := filepath.Join(t.TempDir(), "images.tar")
	u.start(t, "", "images", "save", archive).wait(t, kindLimit).want(t, 0)
	loaded := u.start(t, "", "images", "load", archive).wait(t, kindLimit)
	loaded.want(t, 0)
	if !strings.Contains(loaded.stdout, list[0].Ref) {
		t.Errorf("the node image is not shown: %s", loaded)
	}
	garbage := filepath.Join(t.TempDir(), "garbage.tar")
	if err := os.WriteFile(garbage, []byte("no archive"), 0o600); err != nil {
		t.Fatal(err)
	}
	u.run(t, "images", "load", garbage).want(t, int(problem.Usage))
	u.run(t, "images", "load", archive+".absent").want(t, int(problem.Usage))
}
