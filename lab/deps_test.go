package lab_test

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/oidclab/oidclab/"

// layers are the packages of the project, from the command line down. A package
// may import packages of lower layers and those that allowed names; sts must
// not even know that issuer and keys exist: it gets a URL and a root
// certificate.
var layers = [][]string{
	{"cmd/oidclab"},
	{"cmd/oidclab/cli"},
	{"scenarios"},
	{"lab/control", "lab/labfile", "lab/probe", "lab/workload"},
	{"lab"},
	{"lab/exchange"},
	{"lab/issuer", "lab/proxy", "lab/cluster/embedded", "lab/cluster/embedded/controlplane", "lab/cluster/kind", "lab/cluster/clustertest", "lab/images", "lab/sts/aws", "lab/sts/azure", "lab/sts/gcp", "lab/sts/generic", "lab/sts/oci", "lab/sts/stackit", "lab/vault", "lab/webhook"},
	{"lab/nodeagent"},
	{"lab/cluster", "lab/cluster/signer", "lab/nodeagent/sandbox", "lab/sts", "lab/sts/internal/ststest", "lab/sts/internal/tokenservice"},
	{"lab/serve", "lab/keys", "lab/pki", "lab/proc"},
	{"lab/clock", "lab/trace", "lab/problem", "lab/internal/sidebyside", "fixtures", "fixtures/images/pause", "fixtures/manifests"},
}

// allowed are imports within a layer.
var allowed = map[string][]string{
	"lab/sts/internal/ststest":      {"lab/sts"},
	"lab/sts/internal/tokenservice": {"lab/sts"},
}

// only says who may import a package from outside the project, and what is
// below it.
var only = map[string][]string{
	"github.com/onsi/ginkgo/v2":                   {"scenarios"},
	"github.com/spf13/cobra":                      {"cmd/oidclab/cli"},
	"k8s.io/kubernetes":                           {"lab/cluster/embedded/controlplane", "lab/nodeagent"},
	"go.etcd.io/etcd/server":                      {"lab/cluster/embedded/controlplane"},
	"github.com/testcontainers/testcontainers-go": {"lab/vault"},
}

type goPackage struct {
	ImportPath string
	Imports    []string
	GoFiles    []string
}

func TestImportRules(t *testing.T) {
	layerOf := map[string]int{}
	for i, layer := range layers {
		for _, p := range layer {
			layerOf[p] = i
		}
	}
	for _, p := range projectPackages(t) {
		name := strings.TrimPrefix(p.ImportPath, module)
		layer, known := layerOf[name]
		if !known && name != "e2e" {
			t.Errorf("%s has no layer: say in this test where it stands", name)
			continue
		}
		for _, imported := range p.Imports {
			if own, ok := strings.CutPrefix(imported, module); ok {
				if layerOf[own] <= layer && !slices.Contains(allowed[name], own) {
					t.Errorf("%s must not import %s, which is not below it", name, own)
				}
				continue
			}
			for outside, who := range only {
				if (imported == outside || strings.HasPrefix(imported, outside+"/")) && !slices.Contains(who, name) {
					t.Errorf("%s must not import %s: only %v may", name, imported, who)
				}
			}
		}
	}
}

// Rules that layers cannot say.
func TestForbiddenImports(t *testing.T) {
	forbidden := map[string][]string{
		"lab/sts":    {"lab/issuer", "lab/keys", "lab/cluster", "github.com/coreos/go-oidc", "k8s.io"},
		"lab/keys":   {"k8s.io", "google.golang.org"},
		"lab/issuer": {"k8s.io", "lab/keys"},
		"lab/trace":  {"k8s.io"},
	}
	for _, p := range projectPackages(t) {
		name := strings.TrimPrefix(p.ImportPath, module)
		for _, prefix := range forbidden[name] {
			for _, imported := range p.Imports {
				own := strings.TrimPrefix(imported, module)
				if own == prefix || strings.HasPrefix(own, prefix+"/") {
					t.Errorf("%s must not import %s", name, imported)
				}
			}
		}
	}
}

func projectPackages(t *testing.T) []goPackage {
	t.Helper()
	out, err := exec.Command("go", "list", "-json=ImportPath,Imports,GoFiles", module+"...").Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var list []goPackage
	decoder := json.NewDecoder(strings.NewReader(string(out)))
	for {
		var p goPackage
		if err := decoder.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		if len(p.GoFiles) > 0 {
			list = append(list, p)
		}
	}
	if len(list) < 15 {
		t.Fatalf("go list found %d packages only", len(list))
	}
	return list
}
