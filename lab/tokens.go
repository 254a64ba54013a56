package lab

import (
	"context"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/oidclab/oidclab/fixtures"
	"github.com/oidclab/oidclab/lab/cluster"
	"github.com/oidclab/oidclab/lab/problem"
	"github.com/oidclab/oidclab/lab/sts"
)

// MintRequest asks a cluster for a service-account token.
type MintRequest struct {
	Cluster        string        `json:"cluster,omitempty"`        // empty means the first
	Namespace      string        `json:"namespace,omitempty"`      // empty means demo
	ServiceAccount string        `json:"serviceAccount,omitempty"` // empty means app
	Audiences      []string      `json:"audiences,omitempty"`      // none means the API server's own
	Expiration     time.Duration `json:"expirationNanoseconds,omitempty"`
	Pod            string        `json:"pod,omitempty"`
}

func (r MintRequest) defaulted() MintRequest {
	if r.Namespace == "" {
		r.Namespace = fixtures.Namespace
	}
	if r.ServiceAccount == "" {
		r.ServiceAccount = fixtures.ServiceAccount
	}
	return r
}

// Mint has a cluster's API server issue a token.
func (l *Lab) Mint(ctx context.Context, r MintRequest) (string, error) {
	m, err := l.member(r.Cluster)
	if err != nil {
		return "", err
	}
	r = r.defaulted()
	token, err := m.cluster.API().Token(ctx, cluster.TokenRequest{
		Namespace: r.Namespace, ServiceAccount: r.ServiceAccount, Audiences: r.Audiences, Expiration: r.Expiration, Pod: r.Pod,
	})
	switch {
	case apierrors.IsNotFound(err):
		return "", problem.New(problem.Usage, "create it with kubectl and the kubeconfig that `oidclab status` shows", "%w", err)
	case apierrors.IsInvalid(err) || apierrors.IsBadRequest(err):
		return "", problem.New(problem.Usage, "oidclab token mint --help", "%w", err)
	}
	return token, err
}

// VerifyRequest asks how a relying party would judge a token.
type VerifyRequest struct {
	Token     string   `json:"token"`
	Profile   string   `json:"profile,omitempty"`   // empty means strict
	Audiences []string `json:"audiences,omitempty"` // any one is accepted; none means those of the lab's relying parties
	Subject   string   `json:"subject,omitempty"`   // empty means any that is not empty
}

// Verify judges a token with fresh keys, as a relying party of the given
// profile would if it trusted the lab's clusters.
func (l *Lab) Verify(ctx context.Context, r VerifyRequest) (sts.Verdict, error) {
	if r.Profile == "" {
		r.Profile = sts.Strict().Name
	}
	profile, err := sts.ProfileNamed(r.Profile)
	if err != nil {
		return sts.Verdict{}, problem.New(problem.Usage, "oidclab token verify --help", "%w", err)
	}
	if len(r.Audiences) == 0 {
		r.Audiences = l.audiences()
	}
	config := sts.Config{Party: "verify", Profile: profile, Client: l.client, Clock: l.Clock, Trace: l.Trace}
	role := sts.Role{Name: "token verify"}
	for _, m := range l.members {
		config.Issuers = append(config.Issuers, sts.Issuer{URL: m.issuer, Audiences: r.Audiences})
		condition := sts.Condition{Operator: sts.StringLike, Claim: "sub", Values: []string{"?*"}}
		if r.Subject != "" {
			condition = sts.Condition{Operator: sts.StringEquals, Claim: "sub", Values: []string{r.Subject}}
		}
		role.Trust = append(role.Trust, sts.Statement{Issuer: m.issuer, Conditions: []sts.Condition{condition}})
	}
	config.Roles = []sts.Role{role}
	core, err := sts.New(config)
	if err != nil {
		return sts.Verdict{}, problem.New(problem.Usage, "oidclab token verify --help", "%w", err)
	}
	return core.Exchange(ctx, sts.Request{Token: r.Token, Role: role.Name}), nil
}

// audiences are those that some relying party of the lab accepts.
func (l *Lab) audiences() []string {
	return slices.Concat(l.spec.AWS.ClientIDs, l.spec.Generic.Audiences, []string{fixtures.VaultAudience, l.info.Azure.Audience, l.info.STACKIT.Audience, l.info.OCI.Audience},
		slices.Sorted(maps.Values(l.info.GCP.Audiences)), slices.Sorted(maps.Values(l.info.OCI.PodAudiences)))
}

// The life of the tokens in token files, and how often they are looked after.
const (
	tokenFileLife     = time.Hour
	tokenFileInterval = 10 * time.Second
)

// tokenFiles are the files that applications read their token from. They are
// kept as kubelet keeps a projected token: replaced, atomically, at 80 % of
// their life.
type tokenFiles struct {
	mu    sync.Mutex
	files map[string]tokenFile // by path
}

type tokenFile struct {
	request MintRequest
	renewAt time.Time // system time: Kubernetes does not know the lab's
}

// TokenFileRequest asks for a token file.
type TokenFileRequest struct {
	Cluster        string `json:"cluster,omitempty"`        // empty means the first
	Namespace      string `json:"namespace,omitempty"`      // empty means demo
	ServiceAccount string `json:"serviceAccount,omitempty"` // empty means app
	Audience       string `json:"audience"`
}

// TokenFile returns the path of a file that holds a token, and that is renewed
// for as long as the lab is up.
func (l *Lab) TokenFile(ctx context.Context, r TokenFileRequest) (string, error) {
	m, err := l.member(r.Cluster)
	if err != nil {
		return "", err
	}
	if !slices.Contains(l.audiences(), r.Audience) {
		return "", problem.New(problem.Usage, "oidclab token mint --audience "+r.Audience, "no relying party of the lab has the audience %q", r.Audience)
	}
	request := MintRequest{
		Cluster: m.id, Namespace: r.Namespace, ServiceAccount: r.ServiceAccount, Audiences: []string{r.Audience}, Expiration: tokenFileLife,
	}.defaulted()
	name := m.id
	if request.Namespace != fixtures.Namespace || request.ServiceAccount != fixtures.ServiceAccount {
		name += "-" + request.Namespace + "-" + request.ServiceAccount
	}
	path := filepath.Join(l.spec.Dir, "tokens", name+"-"+fileName(r.Audience))
	l.tokenFiles.mu.Lock()
	defer l.tokenFiles.mu.Unlock()
	if _, ok := l.tokenFiles.files[path]; ok {
		return path, nil
	}
	return path, l.tokenFiles.write(ctx, l, path, request)
}

// fileName returns an audience as part of a file name: audiences can be URLs.
func fileName(audience string) string {
	return strings.Map(func(r rune) rune {
		if r == '.' || r == '-' || '0' <= r && r <= '9' || 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' {
			return r
		}
		return '_'
	}, audience)
}

// write mints and writes one file. The lock must be held.
func (f *tokenFiles) write(ctx context.Context, l *Lab, path string, request MintRequest) error {
	token, err := l.Mint(ctx, request)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	if err := os.WriteFile(path+".new", []byte(token), 0o600); err != nil {
		return err
	}
	if err := os.Rename(path+".new", path); err != nil {
		return err
	}
	if f.files == nil {
		f.files = map[string]tokenFile{}
	}
	f.files[path] = tokenFile{request: request, renewAt: time.Now().Add(tokenFileLife * 8 / 10)}
	return nil
}

// watch renews the files until ctx ends.
func (f *tokenFiles) watch(ctx context.Context, l *Lab) {
	ticker := time.NewTicker(tokenFileInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		f.mu.Lock()
		for path, file := range f.files {
			if time.Now().Before(file.renewAt) {
				continue
			}
			if err := f.write(ctx, l, path, file.request); err != nil && !errors.Is(err, context.Canceled) {
				l.spec.Log.Error("a token file was not renewed", "file", path, "error", err)
			}
		}
		f.mu.Unlock()
	}
}
