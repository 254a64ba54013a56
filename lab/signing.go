package lab

import (
	"context"
	"os"
	"path/filepath"
	"time"

	"github.com/oidclab/oidclab/lab/clock"
	"github.com/oidclab/oidclab/lab/cluster"
	"github.com/oidclab/oidclab/lab/cluster/signer"
	"github.com/oidclab/oidclab/lab/keys"
	"github.com/oidclab/oidclab/lab/problem"
)

// Who signs the tokens of a lab's clusters.
const (
	External = "external" // the lab, at the API server's request: keys rotate without a restart
	Static   = "static"   // the API server, with key files: every change of keys restarts it
)

// restartTimeout bounds a restart of an API server, kind's included, whose
// kubelet looks at its manifests every 20 s, and a cluster that is made anew.
const restartTimeout = 2 * time.Minute

// startSigning makes a cluster's keys, and serves them if the lab signs.
func (m *member) startSigning(l *Lab) func(context.Context, *undo) (string, error) {
	return func(_ context.Context, u *undo) (string, error) {
		if err := os.MkdirAll(m.dir, 0o700); err != nil {
			return "", err
		}
		var err error
		if l.spec.Signer == Static {
			if m.keys, err = keys.NewStatic(clock.System{}, keys.RS256, cluster.MaxTokenLife, m.installKeys); err != nil {
				return "", err
			}
			return "key file of kid " + m.keys.Current().ID, nil
		}
		if m.keys, err = keys.New(clock.System{}, keys.RS256); err != nil {
			return "", err
		}
		server, err := signer.Start(signer.Config{Socket: m.socket(), Keys: m.keys, Trace: l.Trace})
		if err != nil {
			return "", err
		}
		u.add("signer "+m.id, func(context.Context) error { server.Stop(); return nil })
		return "kid " + m.keys.Current().ID, nil
	}
}

func (m *member) socket() string { return filepath.Join(m.dir, "signer.sock") }

// newIdentity returns what the cluster starts with.
func (l *Lab) newIdentity(m *member) (cluster.Identity, error) {
	identity := cluster.Identity{ID: m.id, Issuer: m.issuer, JWKSURI: m.jwksURI}
	if l.spec.Signer != Static {
		identity.SignerSocket = m.socket()
		return identity, nil
	}
	files, err := m.keys.Files()
	identity.KeyFiles = &files
	return identity, err
}

// installKeys restarts the cluster's API server with other key files. It goes on
// when whoever asked for it has gone: half a restart helps nobody.
func (m *member) installKeys(files keys.Files) error {
	return m.reconfigure(context.Background(), func(identity *cluster.Identity) { identity.KeyFiles = &files })
}

// reconfigure restarts the cluster's API server with a changed identity.
func (m *member) reconfigure(ctx context.Context, change func(*cluster.Identity)) error {
	m.changing.Lock()
	defer m.changing.Unlock()
	identity := m.cluster.Identity()
	change(&identity)
	ctx, cancel := context.WithTimeout(ctx, restartTimeout)
	defer cancel()
	if err := m.cluster.Reconfigure(ctx, identity); err != nil {
		return problem.New(problem.NotReady, "oidclab logs", "the API server of cluster %s was restarted, and does not serve what it was to: %w", m.id, err)
	}
	m.watchAnew()
	return nil
}

// watchAnew has watches of the cluster's objects begin again. On their own they
// come back up to half a minute after an API server was restarted, and never in
// step with a cluster that was made anew, whose versions of objects are others.
func (m *member) watchAnew() {
	select {
	case m.anew <- struct{}{}:
	default: // nobody has looked since the last time
	}
}
