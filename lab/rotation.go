package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/oidclab/oidclab/lab/cluster"
	"github.com/oidclab/oidclab/lab/keys"
	"github.com/oidclab/oidclab/lab/problem"
	"github.com/oidclab/oidclab/lab/sts"
)

// propagation bounds the wait until a change of keys shows at the front: the API
// server asks the external signer every second (with key files it knows at
// once), the front the API server as often.
const propagation = 20 * time.Second

// Rotation is a safe rotation of one cluster's signing key: publish; sign when
// every relying party must know the new key; remove the old key when no token
// that it signed can be alive.
type Rotation struct {
	Phase    string    `json:"phase"` // "published", "signing", "done", "abandoned" or "failed"
	NewKey   string    `json:"newKey"`
	OldKey   string    `json:"oldKey"`
	SignAt   time.Time `json:"signAt"`            // lab time
	SignWhy  string    `json:"signWhy"`           //
	RemoveAt time.Time `json:"removeAt,omitzero"` // lab time and system time; known once the old key has stopped signing
	// RemoveWhy says what is known of the old key's last token.
	RemoveWhy string `json:"removeWhy,omitempty"`
	Error     string `json:"error,omitempty"`
}

// KeyInfo is one key as `keys list` shows it.
type KeyInfo struct {
	ID         string         `json:"kid"`
	State      keys.State     `json:"state"`
	Since      time.Time      `json:"since"`
	Algorithm  keys.Algorithm `json:"alg"`
	Signer     string         `json:"signer"`              // External or Static
	LastExpiry time.Time      `json:"lastExpiry,omitzero"` // of the tokens it signed; with Static, the latest that is possible
}

func (l *Lab) keyInfo(k keys.Key) KeyInfo {
	return KeyInfo{ID: k.ID, State: k.State, Since: k.Since, Algorithm: k.Algorithm, Signer: l.spec.Signer, LastExpiry: k.LastExpiry}
}

// Keys returns the keys of a cluster, oldest first.
func (l *Lab) Keys(id string) ([]KeyInfo, error) {
	m, err := l.member(id)
	if err != nil {
		return nil, err
	}
	var infos []KeyInfo
	for _, k := range m.keys.Keys() {
		infos = append(infos, l.keyInfo(k))
	}
	return infos, nil
}

// PublishKey adds a key to a cluster's key set, and returns once the issuer
// front publishes it. It does not sign yet.
func (l *Lab) PublishKey(ctx context.Context, id string) (KeyInfo, error) {
	m, err := l.member(id)
	if err != nil {
		return KeyInfo{}, err
	}
	if err := m.followed(); err != nil {
		return KeyInfo{}, err
	}
	key, err := m.keys.Publish()
	if err != nil {
		return KeyInfo{}, err
	}
	return l.keyInfo(key), l.awaitKey(ctx, m, key.ID, true)
}

// SignWithKey makes a key of a cluster sign; the key that signed until now is
// retired, which leaves it published. An empty kid means the newest published
// key. With Static, it returns once the API server has restarted.
func (l *Lab) SignWithKey(_ context.Context, id, kid string) (KeyInfo, error) {
	m, err := l.member(id)
	if err != nil {
		return KeyInfo{}, err
	}
	if kid, err = m.pick(kid, keys.Published, "oidclab keys rotate --phase publish"); err != nil {
		return KeyInfo{}, err
	}
	key, err := m.keys.SignWith(kid)
	if err != nil {
		return KeyInfo{}, conflict(err)
	}
	return l.keyInfo(key), nil
}

// RemoveKey takes a key out of a cluster's key set, and returns once the issuer
// front no longer publishes it. An empty kid means the newest retired key.
func (l *Lab) RemoveKey(ctx context.Context, id, kid string) (KeyInfo, error) {
	m, err := l.member(id)
	if err != nil {
		return KeyInfo{}, err
	}
	if err := m.followed(); err != nil {
		return KeyInfo{}, err
	}
	if kid, err = m.pick(kid, keys.Retired, "oidclab keys rotate --phase sign"); err != nil {
		return KeyInfo{}, err
	}
	if err := l.renewReviewer(ctx, m); err != nil {
		return KeyInfo{}, err
	}
	key, err := m.keys.Remove(kid)
	if err != nil {
		return KeyInfo{}, conflict(err)
	}
	return l.keyInfo(key), l.awaitKey(ctx, m, key.ID, false)
}

// conflict says that keys are in no state for what was asked, unless err is a
// problem of another kind.
func conflict(err error) error {
	if p := new(problem.Problem); errors.As(err, &p) {
		return err
	}
	return problem.New(problem.Conflict, "oidclab keys list", "%w", err)
}

// pick returns kid, or the newest key in the given state if kid is empty.
func (m *member) pick(kid string, state keys.State, next string) (string, error) {
	if kid != "" {
		return kid, nil
	}
	for _, k := range slices.Backward(m.keys.Keys()) {
		if k.State == state {
			return k.ID, nil
		}
	}
	return "", problem.New(problem.Conflict, next, "cluster %s has no %s key", m.id, state)
}

// followed returns nil if consumers can learn of the cluster's keys.
func (m *member) followed() error {
	if issuer := m.cluster.Identity().Issuer; issuer != m.issuer {
		return problem.New(problem.Conflict, "oidclab cluster issuer public", "cluster %s issues as %s, whose keys nobody can fetch", m.id, issuer)
	}
	return nil
}

// awaitKey waits until the front publishes, or no longer publishes, a key: as
// a stranger sees it, over HTTPS.
func (l *Lab) awaitKey(ctx context.Context, m *member, kid string, want bool) error {
	ctx, cancel := context.WithTimeout(ctx, propagation)
	defer cancel()
	last := "nothing was tried"
	for {
		switch published, err := l.publishes(ctx, m, kid); {
		case err != nil:
			last = err.Error()
		case published == want:
			return nil
		default:
			last = "the cluster's API server does not serve the changed key set yet"
		}
		select {
		case <-ctx.Done():
			return problem.New(problem.Timeout, "oidclab status", "the front's key set for cluster %s did not change within %s: %s", m.id, propagation, last)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func (l *Lab) publishes(ctx context.Context, m *member, kid string) (bool, error) {
	if err := l.front.Refresh(ctx, m.id); err != nil {
		return false, err
	}
	body, err := l.get(ctx, m.jwksURI)
	if err != nil {
		return false, err
	}
	var set struct {
		Keys []struct {
			Kid string `json:"kid"`
		} `json:"keys"`
	}
	if err := json.Unmarshal(body, &set); err != nil {
		return false, fmt.Errorf("GET %s: %w", m.jwksURI, err)
	}
	for _, key := range set.Keys {
		if key.Kid == kid {
			return true, nil
		}
	}
	return false, nil
}

// StartRotation begins a safe rotation of a cluster's signing key: it publishes
// a new key and returns the plan, whose later phases the lab carries out when
// their time has come. With advance, the lab clock is moved to the moment from
// which the new key may sign.
func (l *Lab) StartRotation(ctx context.Context, id string, advance bool) (Rotation, error) {
	m, err := l.member(id)
	if err != nil {
		return Rotation{}, err
	}
	m.rotating.Lock()
	defer m.rotating.Unlock()
	if r := m.rotation; r != nil && (r.Phase == "published" || r.Phase == "signing") {
		return *r, problem.New(problem.Conflict, "oidclab keys list", "cluster %s is in a rotation to key %s already", m.id, r.NewKey)
	}
	old := m.keys.Current().ID
	key, err := l.PublishKey(ctx, id)
	if err != nil {
		return Rotation{}, err
	}
	wait, party := l.longestWait()
	m.rotation = &Rotation{
		Phase: "published", NewKey: key.ID, OldKey: old, SignAt: l.Clock.Now().Add(wait),
		SignWhy: fmt.Sprintf("relying party %s may not fetch keys again for %s", party, wait),
	}
	if advance {
		l.Clock.Advance(wait)
		if err := l.continueRotation(ctx, m); err != nil {
			return *m.rotation, err
		}
	}
	return *m.rotation, nil
}

// AbandonRotation ends a rotation where it stands: the keys stay as they are.
func (l *Lab) AbandonRotation(id string) (Rotation, error) {
	m, err := l.member(id)
	if err != nil {
		return Rotation{}, err
	}
	m.rotating.Lock()
	defer m.rotating.Unlock()
	if m.rotation == nil || (m.rotation.Phase != "published" && m.rotation.Phase != "signing") {
		return Rotation{}, problem.New(problem.Conflict, "oidclab keys rotate", "cluster %s is in no rotation", m.id)
	}
	m.rotation.Phase = "abandoned"
	return *m.rotation, nil
}

// longestWait returns for how long a relying party may not know a newly
// published key, and which.
func (l *Lab) longestWait() (time.Duration, string) {
	var longest time.Duration
	party := "none"
	for _, p := range l.parties {
		wait := p.cache.TTL
		if p.cache.RefetchUnknownKid {
			wait = p.cache.MinInterval
		}
		if wait > longest {
			longest, party = wait, p.name
		}
	}
	return longest, party
}

// watchRotations carries out rotations until ctx ends.
func (l *Lab) watchRotations(ctx context.Context) {
	ticker := time.NewTicker(200 * time.Millisecond)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		for _, m := range l.members {
			m.rotating.Lock()
			if m.rotation != nil {
				_ = l.continueRotation(ctx, m) // kept in the rotation itself
			}
			m.rotating.Unlock()
		}
	}
}

// continueRotation takes the next phase if its time has come.
func (l *Lab) continueRotation(ctx context.Context, m *member) (err error) {
	r := m.rotation
	defer func() {
		if err != nil {
			r.Phase, r.Error = "failed", err.Error()
		}
	}()
	labTime, systemTime := l.Clock.Now(), time.Now()
	if r.Phase == "published" && !labTime.Before(r.SignAt) {
		if _, err := l.SignWithKey(ctx, m.id, r.NewKey); err != nil {
			return err
		}
		r.Phase = "signing"
	}
	if r.Phase == "signing" {
		r.RemoveAt, r.RemoveWhy = l.lastUse(m, r.OldKey)
	}
	// Both clocks: offline verifiers here go by the lab's, Kubernetes and Vault by the system's.
	if r.Phase == "signing" && !labTime.Before(r.RemoveAt) && !systemTime.Before(r.RemoveAt) {
		if _, err := l.RemoveKey(ctx, m.id, r.OldKey); err != nil {
			return err
		}
		r.Phase = "done"
	}
	return nil
}

// lastUse returns when the last token that a key signed is expired for everybody,
// and what is known of that token.
func (l *Lab) lastUse(m *member, kid string) (time.Time, string) {
	for _, k := range m.keys.Keys() {
		switch {
		case k.ID != kid:
		case k.LastExpiry.IsZero():
			return time.Time{}, "it has signed no token"
		case l.spec.Signer == Static:
			why := fmt.Sprintf("nobody saw what it signed, but the API server issues no token for longer than %s", cluster.MaxTokenLife)
			return k.LastExpiry.Add(longestSkew()), why
		default:
			return k.LastExpiry.Add(longestSkew()), "its last token has expired for everybody"
		}
	}
	return time.Time{}, ""
}

func longestSkew() time.Duration {
	longest := time.Minute // Kubernetes and Vault
	for _, profile := range sts.Profiles() {
		longest = max(longest, profile.Skew)
	}
	return longest
}
