package scenarios

import (
	"context"
	"errors"

	. "github.com/onsi/gomega"

	"github.com/oidclab/oidclab/fixtures"
	"github.com/oidclab/oidclab/lab"
)

// revocation is what becomes of the token of something that was deleted:
// whoever asks the cluster knows, whoever verifies offline does not.
func revocation() []Scenario {
	return []Scenario{{
		Name: "revocation: the token of a deleted pod is refused online and accepted offline", Labels: []string{"revocation"}, Run: podDeleted,
	}}
}

func podDeleted(ctx context.Context, s *Session) {
	all := s.present(parties)
	pod := s.pod(ctx)
	tokens := map[string]string{}
	for _, p := range all {
		tokens[p.Name] = s.Mint(ctx, lab.MintRequest{Audiences: []string{p.Audience}, Pod: pod})
	}
	s.allAccept(ctx, all, tokens, "control: the pod is there")
	cluster := s.Kubernetes(s.Cluster())
	review, err := cluster.TokenReview(ctx, tokens[genericParty.Name], fixtures.GenericAudience)
	s.Must(err)
	s.Expect(review.Authenticated).To(BeTrue(), "control: TokenReview of a pod that is there: %s", review.Error)

	s.Must(cluster.DeletePod(ctx, fixtures.Namespace, pod))
	s.Eventually(ctx, func(ctx context.Context) error {
		review, err := cluster.TokenReview(ctx, tokens[genericParty.Name], fixtures.GenericAudience)
		if err == nil && review.Authenticated {
			err = errors.New("TokenReview still takes the token")
		}
		return err
	}).Should(Succeed())
	for _, p := range all {
		if p.Online {
			s.Refused(ctx, p, tokens[p.Name], permissionDenied, "it asks the cluster")
		} else {
			s.Accepted(ctx, p, tokens[p.Name], "it verifies offline")
		}
	}
}
