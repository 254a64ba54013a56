package scenarios

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"slices"
	"strings"
	"time"

	. "github.com/onsi/gomega"

	"github.com/oidclab/oidclab/fixtures"
	"github.com/oidclab/oidclab/lab"
	"github.com/oidclab/oidclab/lab/trace"
)

// tokens are what an API server issues.
func tokens() []Scenario {
	return []Scenario{
		{Name: "token: minted for a service account", Labels: []string{"token"}, Run: tokenOfServiceAccount},
		{Name: "token: minted for a pod, and bound to it", Labels: []string{"token"}, Run: tokenOfPod},
		{Name: "token: the API server refuses a life below 10 minutes", Labels: []string{"token"}, Run: tokenTooShort},
	}
}

type podClaims struct {
	Namespace      string
	ServiceAccount struct{ Name, UID string }
	Pod            *struct{ Name, UID string }
}

type serviceAccountClaims struct {
	Iss, Sub, Jti string
	Aud           []string
	Iat, Nbf, Exp int64
	Kubernetes    podClaims `json:"kubernetes.io"`
}

func (s *Session) claims(token string) serviceAccountClaims {
	payload, err := base64.RawURLEncoding.DecodeString(strings.Split(token, ".")[1])
	s.Must(err)
	var claims serviceAccountClaims
	s.Must(json.Unmarshal(payload, &claims))
	return claims
}

func tokenOfServiceAccount(ctx context.Context, s *Session) {
	token := s.Mint(ctx, lab.MintRequest{Audiences: []string{"one", "two"}, Expiration: 20 * time.Minute})
	claims := s.claims(token)
	s.Expect(claims.Iss).To(Equal(s.Cluster().Issuer))
	s.Expect(claims.Sub).To(Equal(fixtures.Subject))
	s.Expect(claims.Aud).To(Equal([]string{"one", "two"}))
	s.Expect(claims.Exp - claims.Iat).To(Equal(int64(20 * 60)))
	s.Expect(claims.Jti).NotTo(BeEmpty())
	s.Expect(claims.Kubernetes.ServiceAccount.Name).To(Equal(fixtures.ServiceAccount))
	s.Expect(claims.Kubernetes.Pod).To(BeNil())
	review, err := s.Kubernetes(s.Cluster()).TokenReview(ctx, token, "one")
	s.Must(err)
	s.Expect(review.Authenticated).To(BeTrue(), review.Error)
	s.Expect(review.User.Username).To(Equal(fixtures.Subject))
}

func tokenOfPod(ctx context.Context, s *Session) {
	pod := s.pod(ctx)
	token := s.Mint(ctx, lab.MintRequest{Audiences: []string{fixtures.GenericAudience}, Pod: pod})
	claims := s.claims(token)
	s.Expect(claims.Kubernetes.Pod).NotTo(BeNil())
	s.Expect(claims.Kubernetes.Pod.Name).To(Equal(pod))
	s.Expect(claims.Kubernetes.Pod.UID).NotTo(BeEmpty())
	s.Accepted(ctx, genericParty, token, "a pod's token")
}

// pod makes a pod of the trusted service account, until the scenario ends.
func (s *Session) pod(ctx context.Context) string {
	api := s.Kubernetes(s.Cluster())
	s.Must(api.CreatePod(ctx, fixtures.Namespace, s.Name, fixtures.ServiceAccount))
	s.Cleanup(func(ctx context.Context) { _ = api.DeletePod(ctx, fixtures.Namespace, s.Name) }) // it may be deleted already
	return s.Name
}

func tokenTooShort(ctx context.Context, s *Session) {
	_, err := s.Lab.Mint(ctx, lab.MintRequest{Expiration: 599 * time.Second})
	s.Expect(err).To(MatchError(ContainSubstring("may not specify a duration less than 10 minutes")))
	s.Mint(ctx, lab.MintRequest{Expiration: 600 * time.Second})
}

// journeyOf returns the name of the scenario of a good token at a party.
func journeyOf(p Party) string { return "journey: mint, exchange and use at " + p.Name }

// journeys go all the way: mint, exchange, use.
func journeys() []Scenario {
	var list []Scenario
	for _, p := range rows {
		list = append(list, Scenario{
			Name: journeyOf(p), Labels: []string{"journey", p.Name}, Needs: p.Needs,
			Run: func(ctx context.Context, s *Session) { wholeJourney(ctx, s, p) },
		})
	}
	return append(list, Scenario{
		Name: "journey: the same service account of two clusters, and trust is not shared", Labels: []string{"journey", "aws"}, Needs: []Need{TwoClusters},
		Run: trustIsNotShared,
	})
}

func wholeJourney(ctx context.Context, s *Session, p Party) {
	token := s.Mint(ctx, lab.MintRequest{Audiences: []string{p.Audience}})
	use, err := p.exchange(ctx, s, token)
	s.Must(err)
	if p.RealTime { // not the lab's own, so it does not write to the lab's trace
		return
	}
	shown, err := json.Marshal(use)
	s.Must(err)
	s.Expect(string(shown)).To(Or(ContainSubstring(fixtures.Subject), ContainSubstring(":assumed-role/c1-app/"), ContainSubstring(fixtures.ObjectContent), ContainSubstring(fixtures.STACKITProject)))
	var steps []string
	s.Must(s.Lab.Trace(ctx, trace.JourneyOf(token), false, func(e trace.Event) error {
		s.Expect(e.Outcome).To(Equal(trace.OK), "%s %s", e.Step, e.Name)
		if !slices.Contains(steps, e.Step) {
			steps = append(steps, e.Step)
		}
		return nil
	}))
	if s.Info.Signer == lab.External { // nobody sees an API server sign by itself
		s.Expect(steps).To(ContainElement("mint"))
	}
	s.Expect(steps).To(ContainElements("check", "jwks", "grant", "use"))
}
