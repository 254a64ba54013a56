package lab

import (
	"encoding/json"
	"log/slog"
	"path/filepath"
	"strconv"
	"time"

	"github.com/oidclab/oidclab/fixtures"
	"github.com/oidclab/oidclab/lab/issuer"
	"github.com/oidclab/oidclab/lab/problem"
	"github.com/oidclab/oidclab/lab/sts"
)

// The engines.
const (
	Embedded = "embedded" // control planes as processes of this machine, without nodes
	Kind     = "kind"     // Kubernetes in Docker, with nodes and pods
)

// Limits of a Spec.
const (
	maxClusters   = 9
	maxSocketPath = 107 // bytes, unix(7): sun_path without its final NUL
	longestSocket = "clusters/c9/signer.sock"
)

// Spec is all choices that make a lab. Its zero value, with a directory and a
// command, is a useful one.
type Spec struct {
	Name     string   // of the lab, for messages
	Dir      string   // where it keeps its state; absolute, exists, belongs to this lab alone (0700)
	Engine   string   // what runs the clusters, Embedded or Kind; empty means Embedded
	Network  string   // the lab's Docker network, which begins the names of its containers; this process's kind.NetworkVariable; only with Kind
	Image    string   // of the nodes; only with Kind
	Signer   string   // who signs tokens, External or Static; empty means External
	Clusters int      // 1 to 9; 0 means 1
	Port     int      // of the issuer front; 0 means any free one
	Issuers  string   // the style of issuer URLs, see issuer.Layouts; empty means the first
	Command  []string // runs this program as a component of a control plane
	Vault    string   // the vault program; empty means a lab without Vault
	NoVault  string   // why there is no Vault, for messages; only if Vault and VaultImage are empty
	// VaultImage runs Vault in a container instead, with the kind engine only.
	VaultImage string

	AWS     AWSSpec     // what there is beside the lab's own
	Generic GenericSpec // likewise

	Log *slog.Logger `json:"-"` // nil means none
}

// AWSSpec is what the lab's AWS account has.
type AWSSpec struct {
	ClientIDs []string // of each cluster's OIDC provider; none means sts.amazonaws.com
	Roles     []AWSRole
}

// AWSRole is an IAM role for web identities.
type AWSRole struct {
	Name               string
	MaxSessionDuration time.Duration   // 0 means AWS's default
	TrustPolicy        json.RawMessage // ${issuer:<cluster>} stands for that cluster's issuer without https://
	Policy             json.RawMessage `json:",omitempty"` // what it may do at S3; nil means that it may read the lab's bucket
}

// GenericSpec is what the RFC 8693 token service has.
type GenericSpec struct {
	Audiences []string // of tokens; none means oidclab
	Targets   []GenericTarget
}

// GenericTarget is a service that access tokens are issued for.
type GenericTarget struct {
	Name  string
	Trust []GenericTrust
}

// GenericTrust is trust in tokens of one cluster.
type GenericTrust struct {
	Cluster    string
	Conditions []sts.Condition
}

func (s Spec) validated() (Spec, error) {
	if s.Engine == "" {
		s.Engine = Embedded
	}
	if s.Engine != Embedded && s.Engine != Kind {
		return s, problem.New(problem.Usage, "", "there is no engine %q; there are %s and %s", s.Engine, Embedded, Kind)
	}
	if s.Engine == Kind && (s.Network == "" || s.Image == "") {
		return s, problem.New(problem.Usage, "", "the kind engine needs a network and an image of nodes")
	}
	if s.Signer == "" {
		s.Signer = External
	}
	if s.Signer != External && s.Signer != Static {
		return s, problem.New(problem.Usage, "oidclab up --help", "there is no signer %q; there are %s and %s", s.Signer, External, Static)
	}
	layout, err := issuer.LayoutNamed(s.Issuers)
	if err != nil {
		return s, problem.New(problem.Usage, "oidclab up --help", "%w", err)
	}
	s.Issuers = layout.Name
	if s.Clusters == 0 {
		s.Clusters = 1
	}
	if s.Clusters < 1 || s.Clusters > maxClusters {
		return s, problem.New(problem.Usage, "", "a lab has 1 to %d clusters, not %d", maxClusters, s.Clusters)
	}
	if s.Port < 0 || s.Port > 65535 {
		return s, problem.New(problem.Usage, "", "port %d is not between 0 and 65535", s.Port)
	}
	if err := CheckDir(s.Dir); err != nil {
		return s, err
	}
	if len(s.AWS.ClientIDs) == 0 {
		s.AWS.ClientIDs = []string{fixtures.AWSAudience}
	}
	if len(s.Generic.Audiences) == 0 {
		s.Generic.Audiences = []string{fixtures.GenericAudience}
	}
	if s.Log == nil {
		s.Log = slog.New(slog.DiscardHandler)
	}
	return s, nil
}

// CheckDir returns a BadConfig problem if the path of a lab's directory is too
// long for the sockets in it.
func CheckDir(dir string) error {
	if n := len(filepath.Join(dir, longestSocket)); n > maxSocketPath {
		return problem.New(problem.BadConfig, "set XDG_STATE_HOME to a shorter path, or take a shorter --name",
			"the state directory %s is too long: a Unix socket in it would have a path of %d bytes, and the limit is %d", dir, n, maxSocketPath)
	}
	return nil
}

func clusterID(i int) string { return "c" + strconv.Itoa(i+1) }
