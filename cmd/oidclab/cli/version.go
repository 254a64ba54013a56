package cli

import (
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"
)

// The modules whose versions are those of the components they are.
const (
	kubernetesModule = "k8s.io/kubernetes"
	etcdModule       = "go.etcd.io/etcd/server/v3"
)

// version and commit are set by the linker (see the Makefile). Without it, as
// after `go install`, they come from the build information.
var version, commit string

type versionInfo struct {
	Version    string `json:"version"`
	Commit     string `json:"commit"`
	Go         string `json:"go"`
	Platform   string `json:"platform"`
	Kubernetes string `json:"kubernetes"`
	Etcd       string `json:"etcd"`
	Vault      string `json:"vault"`
}

func readVersion() versionInfo {
	v := versionInfo{
		Version: version, Commit: commit, Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH,
		Vault: "the vault program on PATH, which oidclab does not contain",
	}
	build, ok := debug.ReadBuildInfo()
	if !ok {
		return v
	}
	if v.Version == "" {
		v.Version = build.Main.Version
	}
	for _, s := range build.Settings {
		if s.Key == "vcs.revision" && v.Commit == "" {
			v.Commit = s.Value
		}
	}
	for _, m := range build.Deps {
		switch m.Path {
		case kubernetesModule:
			v.Kubernetes = m.Version
		case etcdModule:
			v.Etcd = m.Version
		}
	}
	return v
}

func (a *app) versionCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "version", Short: "Show the versions of oidclab and of what it contains", Args: exactly(0),
		RunE: func(*cobra.Command, []string) error {
			v := readVersion()
			if a.output == "json" {
				return a.printJSON(v)
			}
			a.printVersion(v)
			return nil
		},
	}
	a.outputFlag(cmd, "text", "json")
	return cmd
}

func (a *app) printVersion(v versionInfo) {
	a.printf("oidclab %s (%s, %s, %s)\nkubernetes %s\netcd %s\nvault: %s\n", v.Version, v.Commit, v.Go, v.Platform, v.Kubernetes, v.Etcd, v.Vault)
}
