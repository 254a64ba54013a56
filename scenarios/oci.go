package scenarios

import (
	"context"
	"time"

	"github.com/oidclab/oidclab/fixtures"
	"github.com/oidclab/oidclab/lab"
	"github.com/oidclab/oidclab/lab/exchange"
)

// OKE is the endpoint at which pods of OKE get their identity.
var OKE = Need{"oke", func(info lab.Info) string { return info.Absent[lab.OKEPods] }}

// ociSessions are what OCI gives, and what becomes of it.
func ociSessions() []Scenario {
	return []Scenario{
		{Name: "credentials: an OCI session is of no use without its key", Labels: []string{"credentials", "oci"}, Run: ociSessionNeedsKey},
		{Name: "credentials: an OCI session is refused once it has expired", Labels: []string{"credentials", "expiry", "oci"}, Run: ociSessionExpires},
		{Name: "credentials: a pod of OKE gets an identity, and policies say what for", Labels: []string{"credentials", "oci"}, Needs: []Need{OKE}, Run: okePod},
	}
}

func (s *Session) ociSession(ctx context.Context) (exchange.OCITarget, exchange.OCIResult) {
	target := s.ociTarget()
	session, err := exchange.OCI(ctx, target, s.Mint(ctx, lab.MintRequest{Audiences: []string{fixtures.OCIAudience}}))
	s.Must(err)
	_, err = s.readOCIObject(ctx, target, session)
	s.Must(err, "control: a fresh session with its key")
	return target, session
}

func ociSessionNeedsKey(ctx context.Context, s *Session) {
	target, session := s.ociSession(ctx)
	_, other := s.ociSession(ctx)
	session.PrivateKey = other.PrivateKey
	_, err := s.readOCIObject(ctx, target, session)
	s.refusedWith(err, 401, "NotAuthenticated", "another session's key")
}

func ociSessionExpires(ctx context.Context, s *Session) {
	target, session := s.ociSession(ctx)
	_, err := s.Lab.FreezeClock(ctx, session.Expiry.Add(-time.Second))
	s.Must(err)
	_, err = s.readOCIObject(ctx, target, session)
	s.Must(err, "control: in its last second")
	s.Advance(ctx, time.Second)
	_, err = s.readOCIObject(ctx, target, session)
	s.refusedWith(err, 401, "NotAuthenticated", "an expired session")
}

// okePod takes tokens for the API server, which every pod has, to the endpoint
// of OKE: any service account gets a session, and one may read the object.
func okePod(ctx context.Context, s *Session) {
	target := s.ociTarget()
	audiences := []string{s.Info.OCI.PodAudiences[s.Cluster().ID]}
	session, err := exchange.OCIPod(ctx, target, s.Mint(ctx, lab.MintRequest{Audiences: audiences}))
	s.Must(err)
	_, err = s.readOCIObject(ctx, target, session)
	s.Must(err, "control: the trusted service account")
	session, err = exchange.OCIPod(ctx, target, s.Mint(ctx, lab.MintRequest{Audiences: audiences, ServiceAccount: fixtures.OtherServiceAccount}))
	s.Must(err, "another service account gets a session")
	_, err = s.readOCIObject(ctx, target, session)
	s.refusedWith(err, 404, "BucketNotFound", "another service account reads")
	_, err = exchange.OCIPod(ctx, target, s.Mint(ctx, lab.MintRequest{Audiences: []string{fixtures.OCIAudience}}))
	s.refusedWith(err, 401, "NotAuthenticated", "a token for the identity domain")
}
