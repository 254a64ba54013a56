package scenarios

import (
	"context"
	"errors"
	"time"

	. "github.com/onsi/gomega"

	"github.com/oidclab/oidclab/fixtures"
	"github.com/oidclab/oidclab/lab"
	"github.com/oidclab/oidclab/lab/exchange"
)

// credentials are what parties give, and what becomes of it.
func credentials() []Scenario {
	return []Scenario{
		{Name: "credentials: AWS's are refused once they have expired", Labels: []string{"credentials", "expiry", "aws"}, Run: awsCredentialsExpire},
		{Name: "credentials: AWS refuses a wrong secret and an unknown access key", Labels: []string{"credentials", "aws"}, Run: awsCredentialsForged},
		{Name: "credentials: an unknown AWS role is denied like one that does not trust", Labels: []string{"credentials", "aws"}, Run: awsUnknownRole},
		{Name: "credentials: an access token is refused once it has expired", Labels: []string{"credentials", "expiry", "generic"}, Run: accessTokenExpires},
		{Name: "credentials: the resource refuses a cluster's token", Labels: []string{"credentials", "generic"}, Run: resourceRefusesSubjectToken},
	}
}

// refusedWith demands that err is a refusal with a status and a code.
func (s *Session) refusedWith(err error, status int, code, why string) {
	var refused *exchange.RefusedError
	if !errors.As(err, &refused) || refused.Status != status || refused.Code != code {
		s.Fail("%s: wanted a refusal with %d %s, found: %v", why, status, code, err)
	}
}

func awsCredentialsExpire(ctx context.Context, s *Session) {
	target := s.awsTarget(s.Cluster())
	target.Duration = 15 * time.Minute
	result, err := exchange.AWS(ctx, target, s.Mint(ctx, lab.MintRequest{Audiences: []string{fixtures.AWSAudience}}))
	s.Must(err)
	_, err = exchange.WhoAmI(ctx, target, result.Credentials)
	s.Must(err, "control: fresh credentials")
	s.Advance(ctx, 14*time.Minute+50*time.Second)
	_, err = exchange.WhoAmI(ctx, target, result.Credentials)
	s.Must(err, "control: ten seconds before they expire")
	s.Advance(ctx, 11*time.Second)
	_, err = exchange.WhoAmI(ctx, target, result.Credentials)
	s.refusedWith(err, 403, "ExpiredToken", "expired credentials")
}

func awsCredentialsForged(ctx context.Context, s *Session) {
	target := s.awsTarget(s.Cluster())
	result, err := exchange.AWS(ctx, target, s.Mint(ctx, lab.MintRequest{Audiences: []string{fixtures.AWSAudience}}))
	s.Must(err)
	_, err = exchange.WhoAmI(ctx, target, result.Credentials)
	s.Must(err, "control")
	forged := result.Credentials
	forged.SecretAccessKey = "0000000000000000000000000000000000000000"
	_, err = exchange.WhoAmI(ctx, target, forged)
	s.refusedWith(err, 403, "SignatureDoesNotMatch", "a wrong secret")
	forged = result.Credentials
	forged.AccessKeyID = "ASIAOIDCLAB000000000"
	_, err = exchange.WhoAmI(ctx, target, forged)
	s.refusedWith(err, 403, "InvalidClientTokenId", "an unknown access key")
}

func awsUnknownRole(ctx context.Context, s *Session) {
	target := s.awsTarget(s.Cluster())
	token := s.Mint(ctx, lab.MintRequest{Audiences: []string{fixtures.AWSAudience}})
	_, err := exchange.AWS(ctx, target, token)
	s.Must(err, "control")
	target.RoleARN += "-that-is-not-there"
	_, err = exchange.AWS(ctx, target, token)
	s.refusedWith(err, 403, "AccessDenied", "an unknown role")
}

func accessTokenExpires(ctx context.Context, s *Session) {
	target := exchange.GenericTarget{TokenURL: s.Info.Generic.Parties[0].TokenURL, Audience: s.Info.Generic.Target, Client: s.Web}
	result, err := exchange.Generic(ctx, target, s.Mint(ctx, lab.MintRequest{Audiences: []string{fixtures.GenericAudience}}))
	s.Must(err)
	_, err = exchange.UseResource(ctx, s.Web, s.Info.Generic.Resource, result.AccessToken)
	s.Must(err, "control: a fresh access token")
	s.Expect(result.ExpiresIn).To(BeNumerically(">", 60))
	s.Advance(ctx, time.Duration(result.ExpiresIn)*time.Second+time.Second)
	_, err = exchange.UseResource(ctx, s.Web, s.Info.Generic.Resource, result.AccessToken)
	s.refusedWith(err, 401, "invalid_token", "an expired access token")
}

func resourceRefusesSubjectToken(ctx context.Context, s *Session) {
	token := s.Mint(ctx, lab.MintRequest{Audiences: []string{fixtures.GenericAudience, fixtures.Target}})
	s.Accepted(ctx, genericParty, token, "control: exchanged first")
	_, err := exchange.UseResource(ctx, s.Web, s.Info.Generic.Resource, token)
	s.refusedWith(err, 401, "invalid_token", "a cluster's token at the resource")
}
