package scenarios

import (
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/oidclab/oidclab/fixtures"
	"github.com/oidclab/oidclab/lab"
	"github.com/oidclab/oidclab/lab/exchange"
	"github.com/oidclab/oidclab/lab/sts"
	"github.com/oidclab/oidclab/lab/trace"
)

// mutation is one thing that is wrong with a token, and how parties answer.
type mutation struct {
	name  string
	needs []Need
	token func(ctx context.Context, s *Session, p Party) string

	reason     sts.Reason            // why the lab's own parties refuse it
	byParty    map[string]sts.Reason // where a party has another reason
	accept     []string              // parties that rightly take it: here they trust both clusters
	awsAnswer  *Expectation          // where AWS refuses it before the core sees it
	jwt        Expectation           // Vault, jwt auth
	kubernetes Expectation           // Vault, kubernetes auth
	bearer     *Expectation          // another cluster, where that is not 401; a status of 0 means it accepts
}

// How Vault's auth methods refuse (vault-plugin-auth-jwt, vault-plugin-auth-kubernetes).
func jwtRefuses(text string) Expectation { return Expectation{Status: 400, Text: text} }
func kubernetesRefuses(text string) Expectation {
	return Expectation{Status: 403, Text: text}
}

var (
	unauthorized     = Expectation{Status: 401, Code: "Unauthorized"}
	badSignature     = jwtRefuses("failed to verify id token signature")
	permissionDenied = kubernetesRefuses("permission denied")
)

// forged returns a mutation's token function: a forgery like a good token but for r.
func forged(change func(*lab.ForgeRequest)) func(context.Context, *Session, Party) string {
	return func(ctx context.Context, s *Session, p Party) string {
		r := lab.ForgeRequest{MintRequest: lab.MintRequest{Audiences: []string{p.Audience}}}
		change(&r)
		return s.Forge(ctx, r)
	}
}

func minted(change func(*lab.MintRequest)) func(context.Context, *Session, Party) string {
	return func(ctx context.Context, s *Session, p Party) string {
		r := lab.MintRequest{Audiences: []string{p.Audience}}
		change(&r)
		return s.Mint(ctx, r)
	}
}

func fromNow(d time.Duration) *time.Duration { return &d }

func mutations() []mutation {
	return []mutation{
		{
			name: "another audience", token: minted(func(r *lab.MintRequest) { r.Audiences = []string{"somebody-else"} }),
			reason: sts.AudienceMismatch, jwt: jwtRefuses("invalid audience (aud) claim"), kubernetes: kubernetesRefuses("invalid audience (aud) claim"),
		},
		{
			name: "another subject", token: minted(func(r *lab.MintRequest) { r.ServiceAccount = fixtures.OtherServiceAccount }),
			bearer: &Expectation{Status: 403, Code: "Forbidden"},
			reason: sts.SubjectMismatch, jwt: jwtRefuses("invalid subject (sub) claim"), kubernetes: kubernetesRefuses("service account name not authorized"),
		},
		{
			name: "an issuer that nobody registered", token: forged(func(r *lab.ForgeRequest) { r.Issuer = "https://issuer.example/c/c1" }),
			reason: sts.IssuerUnknown, jwt: jwtRefuses("invalid issuer (iss) claim"), kubernetes: permissionDenied,
		},
		{
			name: "the issuer with a trailing slash", token: func(ctx context.Context, s *Session, p Party) string {
				return forged(func(r *lab.ForgeRequest) { r.Issuer = s.Cluster().Issuer + "/" })(ctx, s, p)
			},
			reason: sts.IssuerUnknown, jwt: jwtRefuses("invalid issuer (iss) claim"), kubernetes: permissionDenied,
		},
		{
			name: "the same issuer and subject under another cluster's key", needs: []Need{TwoClusters},
			token: func(ctx context.Context, s *Session, p Party) string {
				return forged(func(r *lab.ForgeRequest) { r.Cluster, r.Issuer = s.Other().ID, s.Cluster().Issuer })(ctx, s, p)
			},
			reason: sts.KeyUnknown, jwt: badSignature, kubernetes: permissionDenied,
		},
		{
			name: "the same service account of another cluster", needs: []Need{TwoClusters},
			token: func(ctx context.Context, s *Session, p Party) string {
				return s.Mint(ctx, lab.MintRequest{Cluster: s.Other().ID, Audiences: []string{p.Audience}})
			},
			reason: sts.IssuerNotTrusted, jwt: badSignature, kubernetes: permissionDenied,
			// A pool provider of Google's has one issuer.
			byParty: map[string]sts.Reason{"gcp": sts.IssuerUnknown}, accept: []string{"generic", "pure-ttl", "jwt-bearer", "client-assertion", "auth0"},
		},
		{
			name: "the true kid over a key that nobody knows", token: forged(func(r *lab.ForgeRequest) { r.ForeignKey = true }),
			reason: sts.SignatureInvalid, jwt: badSignature, kubernetes: permissionDenied,
		},
		{
			name: "expired", token: forged(func(r *lab.ForgeRequest) { r.ExpiresIn = fromNow(-time.Hour) }),
			reason: sts.TokenExpired, jwt: jwtRefuses("token is expired"), kubernetes: kubernetesRefuses("token is expired"),
		},
		{
			name: "not yet valid", token: forged(func(r *lab.ForgeRequest) {
				r.ValidIn, r.ExpiresIn = fromNow(time.Hour), fromNow(2*time.Hour)
			}),
			reason: sts.TokenNotYetValid, jwt: jwtRefuses("token not yet valid"), kubernetes: Expectation{Status: 403},
		},
		{
			// go-oidc, which API servers use, does not look at iat.
			name: "issued in the future", bearer: &Expectation{}, token: forged(func(r *lab.ForgeRequest) {
				r.IssuedIn, r.ExpiresIn = fromNow(time.Hour), fromNow(2*time.Hour)
			}),
			reason: sts.TokenIssuedInFuture, jwt: jwtRefuses("token issued in the future"), kubernetes: Expectation{Status: 403},
		},
		{
			name: "an unknown kid", token: forged(func(r *lab.ForgeRequest) { r.Header = map[string]any{"kid": "nobody-knows"} }),
			reason: sts.KeyUnknown, jwt: badSignature, kubernetes: permissionDenied,
		},
		{
			name: "an altered payload", token: forged(func(r *lab.ForgeRequest) { r.AlterPayload = map[string]any{"jti": "another"} }),
			reason: sts.SignatureInvalid, jwt: badSignature, kubernetes: permissionDenied,
		},
		{
			name: "an altered signature", token: forged(func(r *lab.ForgeRequest) { r.AlterSignature = true }),
			reason: sts.SignatureInvalid, jwt: badSignature, kubernetes: permissionDenied,
		},
		{
			name: "alg none", token: forged(func(r *lab.ForgeRequest) { r.Algorithm = "none" }),
			reason: sts.AlgorithmRefused, jwt: Expectation{Status: 400}, kubernetes: Expectation{Status: 403},
		},
		{
			name: "HS256 with the public key as secret", token: forged(func(r *lab.ForgeRequest) { r.Algorithm = "HS256" }),
			reason: sts.AlgorithmRefused, jwt: Expectation{Status: 400}, kubernetes: Expectation{Status: 403},
		},
		keyHeader("jku", "https://evil.example/jwks"),
		keyHeader("x5u", "https://evil.example/chain.pem"),
		{
			name: "the attacker's key as jwk in the header", token: forged(func(r *lab.ForgeRequest) { r.EmbedForeign = true }),
			reason: sts.HeaderRefused, byParty: ignoreHeader, jwt: badSignature, kubernetes: permissionDenied,
		},
		{
			name: "no subject", token: forged(func(r *lab.ForgeRequest) { r.Claims = map[string]any{"sub": nil} }),
			reason: sts.ClaimMissing, jwt: jwtRefuses("invalid subject (sub) claim"), kubernetes: Expectation{Status: 403},
		},
		{
			name: "no expiry", token: forged(func(r *lab.ForgeRequest) {
				// Older than 150 s, to which Vault stretches a token without exp.
				r.IssuedIn, r.ValidIn, r.Claims = fromNow(-time.Hour), fromNow(-time.Hour), map[string]any{"exp": nil}
			}),
			reason: sts.ClaimMissing, jwt: jwtRefuses("token is expired"), kubernetes: Expectation{Status: 403},
		},
		{
			name: "too large", token: forged(func(r *lab.ForgeRequest) { r.Claims = map[string]any{"padding": strings.Repeat("x", 21_000)} }),
			// An API server limits the headers of a request only, to 1 MiB.
			bearer: &Expectation{},
			reason: sts.TokenTooLarge, awsAnswer: &Expectation{Status: 400, Code: "ValidationError", Text: "webIdentityToken"},
		},
		{
			name: "garbage", token: func(_ context.Context, s *Session, p Party) string {
				garbage := "not.a-token." + p.Name
				s.remember(garbage)
				return garbage
			},
			reason: sts.TokenMalformed, jwt: Expectation{Status: 400}, kubernetes: Expectation{Status: 403},
		},
	}
}

// ignoreHeader is of those that ignore keys in the header, and find a signature
// that is none.
var ignoreHeader = map[string]sts.Reason{"aws": sts.SignatureInvalid, "azure": sts.SignatureInvalid}

// keyHeader points the header at the attacker's keys. Strict parties refuse it.
func keyHeader(name, url string) mutation {
	return mutation{
		name: name + " in the header", token: forged(func(r *lab.ForgeRequest) {
			r.ForeignKey, r.Header = true, map[string]any{name: url}
		}),
		reason: sts.HeaderRefused, byParty: ignoreHeader, jwt: badSignature, kubernetes: permissionDenied,
	}
}

// expected returns how a party answers to a mutation.
func (m mutation) expected(p Party) (Expectation, bool) {
	switch {
	case slices.Contains(m.accept, p.Name):
		return Expectation{}, false
	case p.Name == "kubernetes" && m.bearer != nil:
		return *m.bearer, m.bearer.Status != 0
	case p.Name == "kubernetes":
		return unauthorized, true
	case p.Name == "vault-jwt":
		return m.jwt, m.jwt.Status != 0
	case p.Name == "vault-kubernetes":
		return m.kubernetes, m.kubernetes.Status != 0
	case p.Name == "aws" && m.awsAnswer != nil:
		return *m.awsAnswer, true
	}
	reason := m.reason
	if other, ok := m.byParty[p.Name]; ok {
		reason = other
	}
	return p.answers(reason), true
}

// refusalOf returns the name of the scenario of a mutation at a party.
func refusalOf(m mutation, p Party) string { return "refused: " + m.name + ", by " + p.Name }

// refusals is the matrix of mutations and parties. Each cell has its control: a
// good token, which the party accepts just before.
func refusals() []Scenario {
	var list []Scenario
	for _, p := range rows {
		for _, m := range mutations() {
			e, ok := m.expected(p)
			if !ok {
				continue
			}
			list = append(list, Scenario{
				Name:   refusalOf(m, p),
				Labels: []string{"refused", p.Name},
				Needs:  append(append([]Need(nil), p.Needs...), m.needs...),
				Run: func(ctx context.Context, s *Session) {
					good := s.Mint(ctx, lab.MintRequest{Audiences: []string{p.Audience}})
					s.Accepted(ctx, p, good, "control: a good token")
					s.Refused(ctx, p, m.token(ctx, s, p), e, m.name)
				},
			})
		}
	}
	return list
}

// trustIsNotShared takes an honest token of the second cluster to the role of
// the first, and to its own.
func trustIsNotShared(ctx context.Context, s *Session) {
	token := s.Mint(ctx, lab.MintRequest{Cluster: s.Other().ID, Audiences: []string{fixtures.AWSAudience}})
	_, err := exchange.AWS(ctx, s.awsTarget(s.Other()), token)
	s.Must(err, "control: at its own cluster's role")
	_, err = exchange.AWS(ctx, s.awsTarget(s.Cluster()), token)
	var refused *exchange.RefusedError
	if !errors.As(err, &refused) || refused.Code != "AccessDenied" {
		s.Fail("at the first cluster's role: %v", err)
	}
	if !s.traced(ctx, trace.JourneyOf(token), sts.IssuerNotTrusted) {
		s.Fail("the trace does not say that the issuer is not trusted")
	}
}
