package scenarios

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	. "github.com/onsi/gomega"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/oidclab/oidclab/fixtures"
	"github.com/oidclab/oidclab/lab"
	"github.com/oidclab/oidclab/lab/cluster"
	"github.com/oidclab/oidclab/lab/sts"
)

// Lives of the tokens of rotation scenarios. The signer agrees to 24 h.
const (
	shortLife = 4 * time.Hour
	longLife  = 24 * time.Hour
)

// restart bounds the restart of an API server, which a change of key files takes.
const restart = time.Minute

// aMoment puts the lab clock past a wait.
const aMoment = time.Second

// rotation changes the signing key at the right time and at the wrong one.
func rotation() []Scenario {
	return []Scenario{
		{Name: "rotation: by the safe plan nothing is ever refused", Labels: []string{"rotation"}, Run: safeRotation},
		{Name: "rotation: the safe plan of keys rotate signs when every cache knows", Labels: []string{"rotation"}, Run: plannedRotation},
		{Name: "rotation: a key that signs before consumers can know it", Labels: []string{"rotation"}, Run: signsTooEarly},
		{Name: "rotation: a key that is removed while its tokens live", Labels: []string{"rotation"}, Run: removedTooEarly},
		{Name: "rotation: the API server signs with key files, and is restarted for each change", Labels: []string{"rotation"}, Needs: []Need{StaticSigner}, Run: restartedForKeys},
		{Name: "rotation: a cluster made anew under the same issuer URL", Labels: []string{"rotation"}, Timeout: time.Minute + servicesTimeout, Run: clusterRecreated},
		{Name: "issuer: enabled later on a running cluster", Labels: []string{"rotation", "issuer"}, Run: issuerEnabledLater},
	}
}

// StaticSigner is a lab whose API servers sign by themselves.
var StaticSigner = Need{"static signer", func(info lab.Info) string {
	if info.Signer != lab.Static {
		return "the lab signs for its API servers, which need no restart: oidclab up --signer static"
	}
	return ""
}}

// tokenFor returns a new token of the first cluster for a party.
func (s *Session) tokenFor(ctx context.Context, p Party, life time.Duration) string {
	return s.Mint(ctx, lab.MintRequest{Audiences: []string{p.Audience}, Expiration: life})
}

func (s *Session) tokensFor(ctx context.Context, list []Party, life time.Duration) map[string]string {
	tokens := map[string]string{}
	for _, p := range list {
		tokens[p.Name] = s.tokenFor(ctx, p, life)
	}
	return tokens
}

func (s *Session) allAccept(ctx context.Context, list []Party, tokens map[string]string, why string) {
	for _, p := range list {
		s.Accepted(ctx, p, tokens[p.Name], why)
	}
}

func (s *Session) publish(ctx context.Context) string {
	key, err := s.Lab.PublishKey(ctx, s.Cluster().ID)
	s.Must(err)
	return key.ID
}

// sign makes a key sign, and returns the one that is retired by that.
func (s *Session) sign(ctx context.Context, kid string) (retired string) {
	infos, err := s.Lab.Keys(ctx, s.Cluster().ID)
	s.Must(err)
	for _, key := range infos {
		if key.State == "signing" {
			retired = key.ID
		}
	}
	_, err = s.Lab.SignWithKey(ctx, s.Cluster().ID, kid)
	s.Must(err)
	return retired
}

func (s *Session) remove(ctx context.Context, kid string) {
	s.Must(s.tryRemove(ctx, kid))
}

// tryRemove removes a key, and has the cluster's own pods made anew. The API
// server refuses the tokens that they have from that key, and kubelet would keep
// those until 80 % of their life.
func (s *Session) tryRemove(ctx context.Context, kid string) error {
	if _, err := s.Lab.RemoveKey(ctx, s.Cluster().ID, kid); err != nil {
		return err
	}
	return s.Kubernetes(s.Cluster()).Kubernetes().CoreV1().Pods(metav1.NamespaceSystem).DeleteCollection(ctx, metav1.DeleteOptions{}, ownPods)
}

func safeRotation(ctx context.Context, s *Session) {
	all := s.present(parties)
	old := s.tokensFor(ctx, all, shortLife)
	s.allAccept(ctx, all, old, "before the rotation")

	kid := s.publish(ctx)
	s.allAccept(ctx, all, old, "published: tokens of the old key")
	s.allAccept(ctx, all, s.tokensFor(ctx, all, shortLife), "published: new tokens, still of the old key")

	s.Advance(ctx, longestWait()+aMoment)
	s.allAccept(ctx, all, old, "every cache knows the new key, or may ask for it")

	retired := s.sign(ctx, kid)
	fresh := s.tokensFor(ctx, all, longLife)
	s.allAccept(ctx, all, fresh, "signing: tokens of the new key")
	s.allAccept(ctx, all, old, "signing: tokens of the old key, which is retired and published")

	s.Advance(ctx, shortLife) // the last token of the old key has expired
	s.remove(ctx, retired)
	s.allAccept(ctx, all, fresh, "removed: tokens of the new key")
	s.Advance(ctx, longestTTL()+aMoment)
	s.allAccept(ctx, all, fresh, "removed, and every cache had to fetch again")
	s.allAccept(ctx, all, s.tokensFor(ctx, all, longLife), "removed: new tokens")
}

// longest returns the longest of a duration over the lab's own parties.
func longest(of func(sts.CachePolicy) time.Duration) time.Duration {
	var result time.Duration
	for _, p := range own {
		result = max(result, of(p.Profile.Cache))
	}
	return result
}

// longestTTL is after how long every party fetches keys again.
func longestTTL() time.Duration {
	return longest(func(c sts.CachePolicy) time.Duration { return c.TTL })
}

// longestInterval is after how long those fetch again that do for an unknown kid.
func longestInterval() time.Duration {
	return longest(func(c sts.CachePolicy) time.Duration {
		if c.RefetchUnknownKid {
			return c.MinInterval
		}
		return 0
	})
}

// longestWait is after how long every party can know a key that was published.
func longestWait() time.Duration {
	return longest(func(c sts.CachePolicy) time.Duration {
		if c.RefetchUnknownKid {
			return c.MinInterval
		}
		return c.TTL
	})
}

func plannedRotation(ctx context.Context, s *Session) {
	all := s.present(parties)
	old := s.tokensFor(ctx, all, shortLife)
	s.allAccept(ctx, all, old, "before the rotation")
	s.Cleanup(func(ctx context.Context) { _, _ = s.Lab.AbandonRotation(ctx, s.Cluster().ID) }) // fails if it has been, below
	rotation, err := s.Lab.StartRotation(ctx, s.Cluster().ID, false)
	s.Must(err)
	s.Expect(rotation.Phase).To(Equal("published"))
	_, err = s.Lab.StartRotation(ctx, s.Cluster().ID, false)
	s.Expect(err).To(MatchError(ContainSubstring("in a rotation")))
	s.allAccept(ctx, all, s.tokensFor(ctx, all, shortLife), "published")

	clock, err := s.Lab.Clock(ctx)
	s.Must(err)
	s.Expect(rotation.SignAt.Sub(clock.Now)).To(BeNumerically("~", longestWait(), 10*time.Second))
	s.Advance(ctx, rotation.SignAt.Sub(clock.Now))
	s.Eventually(ctx, func(ctx context.Context) error {
		status, err := s.Lab.Status(ctx)
		if err != nil {
			return err
		}
		if r := status.Rotations[s.Cluster().ID]; r.Phase != "signing" {
			return fmt.Errorf("the rotation is %q: %s", r.Phase, r.Error)
		}
		return nil
	}).WithTimeout(restart).Should(Succeed())
	s.allAccept(ctx, all, old, "signing: tokens of the old key")
	s.allAccept(ctx, all, s.tokensFor(ctx, all, shortLife), "signing: tokens of the new key")

	status, err := s.Lab.Status(ctx)
	s.Must(err)
	planned := status.Rotations[s.Cluster().ID]
	for _, token := range old {
		s.Expect(planned.RemoveAt).To(BeTemporally(">", time.Unix(s.claims(token).Exp, 0)), "the old key would go before its tokens")
	}
	_, err = s.Lab.AbandonRotation(ctx, s.Cluster().ID)
	s.Must(err)
	s.remove(ctx, rotation.OldKey)
}

// signsTooEarly publishes a key and signs with it at once.
func signsTooEarly(ctx context.Context, s *Session) {
	all := s.present(parties)
	s.warm(ctx, all)
	retired := s.sign(ctx, s.publish(ctx))
	s.Cleanup(func(ctx context.Context) { _ = s.tryRemove(ctx, retired) })
	fresh := s.tokensFor(ctx, all, longLife)
	refusals := 0
	for _, p := range all {
		switch {
		case p.RealTime: // Vault: refetches for every unknown kid, or asks the cluster
			s.Accepted(ctx, p, fresh[p.Name], "it asks at once")
		case s.mayFetch(ctx, p):
			s.Accepted(ctx, p, fresh[p.Name], "it fetched long ago")
		default:
			refusals++
			s.Refused(ctx, p, fresh[p.Name], p.answers(sts.KeyUnknown), "it has just fetched, or keeps keys come what may")
		}
	}
	s.Expect(refusals).To(BeNumerically(">", 0))
	s.Advance(ctx, longestInterval()+aMoment)
	for _, p := range own {
		if p.Profile.Cache.RefetchUnknownKid {
			s.Accepted(ctx, p, fresh[p.Name], "it may fetch again for an unknown kid")
		} else {
			s.Refused(ctx, p, fresh[p.Name], p.answers(sts.KeyUnknown), "it still keeps keys")
		}
	}
	s.Advance(ctx, longestWait())
	for _, p := range own {
		s.Accepted(ctx, p, fresh[p.Name], "its keys are too old now")
	}
}

// mayFetch says whether a party's cache policy allows it to fetch keys now for
// a kid that it does not know.
func (s *Session) mayFetch(ctx context.Context, p Party) bool {
	status, err := s.Lab.Status(ctx)
	s.Must(err)
	for _, cache := range status.Caches {
		if cache.Party != p.Name || cache.State.Issuer != s.Cluster().Issuer {
			continue
		}
		age := status.Clock.Now.Sub(cache.State.FetchedAt)
		policy := p.Profile.Cache
		return age < 0 || age >= policy.TTL || policy.RefetchUnknownKid && age >= policy.MinInterval
	}
	s.Fail("the lab's status has no key cache of %s", p.Name)
	return false
}

// warm makes every party of the lab fetch the keys now.
func (s *Session) warm(ctx context.Context, list []Party) {
	s.Advance(ctx, longestTTL()+aMoment)
	s.allAccept(ctx, list, s.tokensFor(ctx, list, longLife), "control: before the rotation")
}

// removedTooEarly removes a key whose tokens are alive.
func removedTooEarly(ctx context.Context, s *Session) {
	all := s.present(parties)
	s.warm(ctx, all)
	old := s.tokensFor(ctx, all, longLife)
	s.allAccept(ctx, all, old, "control: the key is published")
	s.remove(ctx, s.sign(ctx, s.publish(ctx)))
	fresh := s.tokensFor(ctx, all, longLife)

	api := s.Kubernetes(s.Cluster())
	s.Eventually(ctx, func(ctx context.Context) error { // an external signer is looked at every second
		review, err := api.TokenReview(ctx, old[genericParty.Name], fixtures.GenericAudience)
		if err == nil && review.Authenticated {
			err = errors.New("the cluster still takes the token")
		}
		return err
	}).Should(Succeed())

	s.keysGone(ctx, all, old, fresh)
}

// keysGone is how parties follow when the key of old tokens is published no
// longer, and that of fresh ones is new.
func (s *Session) keysGone(ctx context.Context, all []Party, old, fresh map[string]string) {
	for _, p := range all {
		if p.Online {
			s.Refused(ctx, p, old[p.Name], Expectation{Status: 403}, "the cluster does not know the key any more")
		} else {
			s.Accepted(ctx, p, old[p.Name], "it has the key in its cache and no reason to look again")
		}
	}
	// A token of the new key makes those look again that do so for an unknown kid.
	s.Advance(ctx, longestInterval()+aMoment)
	for _, p := range all {
		switch {
		case p.Online:
			s.Accepted(ctx, p, fresh[p.Name], "a token of the new key")
		case p.RealTime:
			s.Accepted(ctx, p, fresh[p.Name], "a token of the new key")
			s.Refused(ctx, p, old[p.Name], p.staleKey, "its keys were replaced")
		case p.Profile.Cache.RefetchUnknownKid:
			s.Accepted(ctx, p, fresh[p.Name], "a token of the new key")
			s.Refused(ctx, p, old[p.Name], p.answers(sts.KeyUnknown), "its keys were replaced")
		default:
			s.Refused(ctx, p, fresh[p.Name], p.answers(sts.KeyUnknown), "a token of the new key")
			s.Accepted(ctx, p, old[p.Name], "it keeps keys, come what may")
		}
	}
	s.Advance(ctx, longestWait())
	for _, p := range own {
		s.Accepted(ctx, p, fresh[p.Name], "its keys are too old now")
		s.Refused(ctx, p, old[p.Name], p.answers(sts.KeyUnknown), "its keys were replaced")
	}
}

// clusterRecreated is a cluster that is made anew: its issuer URL stays, which is
// what trust is bound to, and all its keys are others at once.
func clusterRecreated(ctx context.Context, s *Session) {
	all := s.present(parties)
	s.warm(ctx, all)
	old := s.tokensFor(ctx, all, longLife)
	s.allAccept(ctx, all, old, "control: the former cluster")
	before := s.claims(old[genericParty.Name])
	_, err := s.Lab.RecreateCluster(ctx, s.Cluster().ID)
	s.Must(err)
	fresh := s.tokensFor(ctx, all, longLife)
	after := s.claims(fresh[genericParty.Name])
	s.Expect([]string{after.Iss, after.Sub}).To(Equal([]string{before.Iss, before.Sub}))
	s.Expect(after.Kubernetes.ServiceAccount.UID).NotTo(Equal(before.Kubernetes.ServiceAccount.UID), "the account of another cluster")
	s.awaitServices(ctx) // by pods whose tokens are of the new key from the start
	s.keysGone(ctx, all, old, fresh)
}

// restartedForKeys shows that with key files the lab knows a bound for the last
// token of a key, and that nothing but the restart makes a key known.
func restartedForKeys(ctx context.Context, s *Session) {
	all := s.present(parties)
	old := s.tokensFor(ctx, all, longLife)
	s.allAccept(ctx, all, old, "before the rotation")
	kid := s.publish(ctx)
	s.Advance(ctx, longestWait()+aMoment)
	retired := s.sign(ctx, kid)
	s.Cleanup(func(ctx context.Context) { _ = s.tryRemove(ctx, retired) })
	infos, err := s.Lab.Keys(ctx, s.Cluster().ID)
	s.Must(err)
	for _, key := range infos {
		if key.ID != retired {
			continue
		}
		s.Expect(key.LastExpiry).To(BeTemporally("~", key.Since.Add(cluster.MaxTokenLife), time.Second))
		for _, token := range old {
			s.Expect(key.LastExpiry).To(BeTemporally(">=", time.Unix(s.claims(token).Exp, 0)), "the bound is too early")
		}
	}
	s.allAccept(ctx, all, old, "signing: tokens of the old key")
	s.allAccept(ctx, all, s.tokensFor(ctx, all, longLife), "signing: tokens of the new key")
}

// issuerEnabledLater is a cluster whose owner turns OIDC discovery on when
// workloads have tokens already: those keep the former issuer until they are
// refreshed, and relying parties know the new one only.
func issuerEnabledLater(ctx context.Context, s *Session) {
	all := s.present(parties)
	id := s.Cluster().ID
	s.Cleanup(func(ctx context.Context) { _, _ = s.Lab.SetPublicIssuer(ctx, id, true) })
	internal, err := s.Lab.SetPublicIssuer(ctx, id, false)
	s.Must(err)
	s.Expect(internal).NotTo(Equal(s.Cluster().Issuer))
	early := s.tokensFor(ctx, all, longLife)
	s.Expect(s.claims(early[genericParty.Name]).Iss).To(Equal(internal))
	response, _ := s.Get(ctx, http.MethodGet, s.Cluster().JWKSURI, nil)
	s.Expect(response.StatusCode).To(Equal(http.StatusNotFound), "a cluster without a public issuer publishes nothing")
	s.onlyOnlineAccepts(ctx, all, early, "before: nobody has registered the in-cluster issuer")

	issuer, err := s.Lab.SetPublicIssuer(ctx, id, true)
	s.Must(err)
	s.Expect(issuer).To(Equal(s.Cluster().Issuer))
	s.allAccept(ctx, all, s.tokensFor(ctx, all, longLife), "enabled: new tokens")
	s.onlyOnlineAccepts(ctx, all, early, "enabled: a token that was not refreshed names the former issuer")
}

func (s *Session) onlyOnlineAccepts(ctx context.Context, list []Party, tokens map[string]string, why string) {
	for _, p := range list {
		switch {
		case p.Online:
			s.Accepted(ctx, p, tokens[p.Name], why+", but the cluster takes its own tokens of either issuer")
		case p.Name == kubernetesParty.Name:
			s.Refused(ctx, p, tokens[p.Name], unauthorized, why)
		case p.RealTime:
			s.Refused(ctx, p, tokens[p.Name], jwtRefuses("invalid issuer (iss) claim"), why)
		default:
			s.Refused(ctx, p, tokens[p.Name], p.answers(sts.IssuerUnknown), why)
		}
	}
	review, err := s.Kubernetes(s.Cluster()).TokenReview(ctx, tokens[genericParty.Name], fixtures.GenericAudience)
	s.Must(err)
	s.Expect(review.Authenticated).To(BeTrue(), "TokenReview: %s", review.Error)
}
