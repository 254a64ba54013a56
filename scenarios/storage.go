package scenarios

import (
	"context"
	"net/http"
	"net/url"
	"time"

	. "github.com/onsi/gomega"

	"github.com/oidclab/oidclab/fixtures"
	"github.com/oidclab/oidclab/lab"
	"github.com/oidclab/oidclab/lab/exchange"
	"github.com/oidclab/oidclab/lab/sts"
	"github.com/oidclab/oidclab/lab/trace"
)

// storage is what S3 makes of AWS's credentials, and how the blob is reached
// through a cluster's token proxy.
func storage() []Scenario {
	return []Scenario{
		{Name: "storage: S3 gives an object to the role whose policy allows it, and to no other", Labels: []string{"storage", "aws"}, Run: roleDecides},
		{Name: "storage: a session policy narrows what an AWS role may do, and widens nothing", Labels: []string{"storage", "aws"}, Run: sessionPolicyNarrows},
		{Name: "storage: S3 goes by the session tags that the token's issuer gave", Labels: []string{"storage", "aws"}, Run: sessionTagsDecide},
		{Name: "storage: an AWS role refuses session tags that its trust policy does not allow", Labels: []string{"storage", "aws"}, Run: tagsNeedTrust},
		{Name: "storage: S3 refuses an AWS session once it has expired", Labels: []string{"storage", "expiry", "aws"}, Run: sessionExpiresAtS3},
		{Name: "storage: S3 refuses a request by a clock that is wrong, and the SDK corrects it", Labels: []string{"storage", "aws"}, Run: wrongClock},
		{Name: "storage: Azure's blob is reached through the cluster's token proxy", Labels: []string{"storage", "azure"}, Run: throughTokenProxy},
	}
}

// awsToken returns a token for AWS's audience.
func (s *Session) awsToken(ctx context.Context) string {
	return s.Mint(ctx, lab.MintRequest{Audiences: []string{fixtures.AWSAudience}})
}

// tagRole returns the target of the role that may read the object only in
// sessions with the tag for it.
func (s *Session) tagRole() exchange.AWSTarget {
	target := s.awsTarget(s.Cluster())
	target.RoleARN = s.Info.AWS.TagRoles[s.Cluster().ID]
	return target
}

// readS3 exchanges a token, which must succeed, and reads the lab's object.
func (s *Session) readS3(ctx context.Context, target exchange.AWSTarget, token string) error {
	session, err := exchange.AWS(ctx, target, token)
	s.Must(err)
	return s.readAgain(ctx, target, session)
}

func (s *Session) readAgain(ctx context.Context, target exchange.AWSTarget, session exchange.AWSResult) error {
	content, err := exchange.GetObject(ctx, target, session.Credentials, s.Info.AWS.Bucket, s.Info.AWS.Object)
	if err == nil {
		s.Expect(string(content)).To(Equal(fixtures.ObjectContent))
	}
	return err
}

// deniedByS3 demands that S3 denies access, for a reason in its own words.
func (s *Session) deniedByS3(err error, because, why string) {
	s.refusedWith(err, http.StatusForbidden, "AccessDenied", why)
	s.Expect(err).To(MatchError(ContainSubstring(because)), why)
}

const (
	noRolePolicy    = "because no identity-based policy allows the s3:GetObject action"
	noSessionPolicy = "because no session policy allows the s3:GetObject action"
)

func roleDecides(ctx context.Context, s *Session) {
	token := s.awsToken(ctx)
	s.Must(s.readS3(ctx, s.awsTarget(s.Cluster()), token), "control: the role whose policy allows it")
	s.deniedByS3(s.readS3(ctx, s.tagRole(), token), noRolePolicy, "the same token at a role whose policy does not allow it")
}

func sessionPolicyNarrows(ctx context.Context, s *Session) {
	token := s.awsToken(ctx)
	const readEverything = `{"Statement": {"Effect": "Allow", "Action": "s3:GetObject", "Resource": "*"}}`
	target := s.awsTarget(s.Cluster())
	target.Policy = readEverything
	s.Must(s.readS3(ctx, target, token), "control: both policies allow it")
	target.Policy = `{"Statement": {"Effect": "Allow", "Action": "s3:ListBucket", "Resource": "*"}}`
	s.deniedByS3(s.readS3(ctx, target, token), noSessionPolicy, "a session policy that allows something else")
	target.Policy = `{"Statement": [{"Effect": "Allow", "Action": "*", "Resource": "*"}, {"Effect": "Deny", "Action": "s3:Get*", "Resource": "*"}]}`
	s.deniedByS3(s.readS3(ctx, target, token), "with an explicit deny in a session policy", "a session policy that denies it")
	target = s.tagRole()
	target.Policy = readEverything
	s.deniedByS3(s.readS3(ctx, target, token), noRolePolicy, "a session policy that allows what the role's does not")
}

// tagged returns a token whose issuer gives sessions a tag. A cluster does not,
// others do.
func (s *Session) tagged(ctx context.Context, value string) string {
	return s.Forge(ctx, lab.ForgeRequest{
		MintRequest: lab.MintRequest{Audiences: []string{fixtures.AWSAudience}},
		Claims: map[string]any{"https://aws.amazon.com/tags": map[string]any{
			"principal_tags": map[string]any{fixtures.ReaderTag: []string{value}},
		}},
	})
}

func sessionTagsDecide(ctx context.Context, s *Session) {
	s.Must(s.readS3(ctx, s.tagRole(), s.tagged(ctx, fixtures.ReaderTagValue)), "control: the tag that the role's policy wants")
	s.deniedByS3(s.readS3(ctx, s.tagRole(), s.tagged(ctx, "none")), noRolePolicy, "another value of the tag")
	s.deniedByS3(s.readS3(ctx, s.tagRole(), s.awsToken(ctx)), noRolePolicy, "no tag")
}

func tagsNeedTrust(ctx context.Context, s *Session) {
	token := s.tagged(ctx, fixtures.ReaderTagValue)
	_, err := exchange.AWS(ctx, s.tagRole(), token)
	s.Must(err, "control: a role whose trust policy allows sts:TagSession")
	_, err = exchange.AWS(ctx, s.awsTarget(s.Cluster()), token)
	s.refusedWith(err, http.StatusForbidden, "AccessDenied", "a role whose trust policy does not")
	s.Expect(err).To(MatchError(ContainSubstring("sts:TagSession")))
	_, err = exchange.AWS(ctx, s.awsTarget(s.Cluster()), s.awsToken(ctx))
	s.Must(err, "control: that role, without tags")
}

func sessionExpiresAtS3(ctx context.Context, s *Session) {
	target := s.awsTarget(s.Cluster())
	session, err := exchange.AWS(ctx, target, s.awsToken(ctx))
	s.Must(err)
	_, err = s.Lab.FreezeClock(ctx, session.Credentials.Expiration.Add(-time.Second))
	s.Must(err)
	s.Must(s.readAgain(ctx, target, session), "control: in the session's last second")
	s.Advance(ctx, time.Second)
	s.refusedWith(s.readAgain(ctx, target, session), http.StatusBadRequest, "ExpiredToken", "an expired session")
}

// wrongClock lets the lab's time pass, but not that of the SDK, which then takes
// S3's from the refusal.
func wrongClock(ctx context.Context, s *Session) {
	const skewed sts.Reason = "RequestTimeTooSkewed"
	target, token := s.awsTarget(s.Cluster()), s.awsToken(ctx)
	session, err := exchange.AWS(ctx, target, token)
	s.Must(err)
	s.Must(s.readAgain(ctx, target, session))
	s.Advance(ctx, 14*time.Minute)
	s.Must(s.readAgain(ctx, target, session))
	s.Expect(s.traced(ctx, trace.JourneyOf(token), skewed)).To(BeFalse(), "control: clocks that differ by less than 15 minutes")
	s.Advance(ctx, 2*time.Minute)
	s.Must(s.readAgain(ctx, target, session), "the SDK corrects its clock")
	s.Expect(s.traced(ctx, trace.JourneyOf(token), skewed)).To(BeTrue(), "clocks that differ by 16 minutes")
}

// throughTokenProxy is an application whose authority is Entra itself, and which
// turns to the cluster's token proxy, as EnableAzureProxy has it.
func throughTokenProxy(ctx context.Context, s *Session) {
	proxy, err := url.Parse(s.Info.Azure.TokenProxy)
	s.Must(err)
	target := s.azureTarget()
	target.Authority = "https://login.microsoftonline.com"
	client := *s.Web
	client.Transport = tokenProxy{proxy.Host, s.Web.Transport}
	target.Client = &client

	_, err = s.readBlob(ctx, target, s.Mint(ctx, lab.MintRequest{Audiences: []string{azureParty.Audience}}))
	s.Must(err, "control: the trusted service account")
	_, err = s.readBlob(ctx, target, s.Mint(ctx, lab.MintRequest{Audiences: []string{azureParty.Audience}, ServiceAccount: fixtures.OtherServiceAccount}))
	s.refusedWith(err, http.StatusUnauthorized, "AADSTS700213", "another service account")
	target.Authority = "https://login.example.com"
	_, err = s.readBlob(ctx, target, s.Mint(ctx, lab.MintRequest{Audiences: []string{azureParty.Audience}}))
	s.refusedWith(err, http.StatusMisdirectedRequest, "", "the proxy is Entra's alone")
}

// tokenProxy sends requests to the token proxy, with the authority's name in
// the Host header.
type tokenProxy struct {
	host string
	next http.RoundTripper
}

func (p tokenProxy) RoundTrip(request *http.Request) (*http.Response, error) {
	sent := request.Clone(request.Context())
	sent.Host, sent.URL.Host = request.URL.Host, p.host
	return p.next.RoundTrip(sent)
}
