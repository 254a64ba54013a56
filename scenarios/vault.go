package scenarios

import (
	"context"

	"github.com/oidclab/oidclab/fixtures"
	"github.com/oidclab/oidclab/lab"
	"github.com/oidclab/oidclab/lab/exchange"
	"github.com/oidclab/oidclab/lab/vault"
)

// vaultRoles are the ways to configure a Vault, the careless ones included.
func vaultRoles() []Scenario {
	var list []Scenario
	add := func(name string, run func(context.Context, *Session), labels ...string) {
		list = append(list, Scenario{Name: "vault: " + name, Labels: append([]string{"vault"}, labels...), Needs: []Need{Vault}, Run: run})
	}
	add("a role without access logs in and reads nothing", vaultRoleWithoutAccess, "credentials")
	add("keys by jwks_url, without a discovery document", vaultJWKSURL)
	add("pinned public keys do not follow a rotation", vaultPinnedKeys, "rotation")
	add("claims bound by JSON pointers and globs", vaultBoundClaims)
	add("without bound_issuer, a token of any issuer is taken", vaultNoIssuer)
	add("a Kubernetes role without audience takes a token that is for another party", vaultNoAudience)
	return list
}

// vaultLogin returns a role of one of Vault's auth methods as a party that gives
// no more than a login.
func vaultLogin(name string, role string, mount func(lab.AuthMounts) string) Party {
	return Party{Name: "vault " + name, Audience: fixtures.VaultAudience, RealTime: true, exchange: func(ctx context.Context, s *Session, token string) (any, error) {
		// Both kinds of auth method have the same request.
		return exchange.VaultJWT(ctx, s.vaultTarget(role, mount), token)
	}}
}

func (s *Session) vaultTarget(role string, mount func(lab.AuthMounts) string) exchange.VaultTarget {
	return exchange.VaultTarget{Address: s.Info.Vault.Address, Mount: mount(s.Info.Vault.Mounts[s.Cluster().ID]), Role: role, Client: s.Web}
}

func byDiscovery(m lab.AuthMounts) string   { return m.JWT }
func byTokenReview(m lab.AuthMounts) string { return m.Kubernetes }

func (s *Session) vaultToken(ctx context.Context) string {
	return s.Mint(ctx, lab.MintRequest{Audiences: []string{fixtures.VaultAudience}})
}

func vaultRoleWithoutAccess(ctx context.Context, s *Session) {
	for _, mount := range []func(lab.AuthMounts) string{byDiscovery, byTokenReview} {
		for role, reads := range map[string]bool{vault.Role: true, vault.BareRole: false} {
			target := s.vaultTarget(role, mount)
			result, err := exchange.VaultJWT(ctx, target, s.vaultToken(ctx))
			s.Must(err, "login with role "+role)
			_, err = exchange.ReadSecret(ctx, target, result.ClientToken, s.Info.Vault.Secret)
			if reads {
				s.Must(err, "control: the role with access")
			} else {
				s.refusedWith(err, 403, "", "the role without access reads")
			}
		}
	}
}

func vaultJWKSURL(ctx context.Context, s *Session) {
	party := vaultLogin("by jwks_url", vault.Role, func(m lab.AuthMounts) string { return m.JWKSURL })
	s.Accepted(ctx, party, s.vaultToken(ctx), "control: a token of the cluster")
	s.Refused(ctx, party, s.Forge(ctx, lab.ForgeRequest{MintRequest: lab.MintRequest{Audiences: []string{party.Audience}}, ForeignKey: true}), badSignature, "of a key that nobody knows")
	s.Refused(ctx, party, s.Forge(ctx, lab.ForgeRequest{MintRequest: lab.MintRequest{Audiences: []string{party.Audience}}, Issuer: "https://issuer.example"}),
		jwtRefuses("invalid issuer (iss) claim"), "of an issuer that is not bound")
}

// vaultPinnedKeys is the configuration of those whose Vault can't reach the
// issuer. A new key refuses every workload until somebody writes the keys again.
func vaultPinnedKeys(ctx context.Context, s *Session) {
	party := vaultLogin("with pinned keys", vault.Role, func(m lab.AuthMounts) string { return m.Pinned })
	current, err := s.Lab.Keys(ctx, s.Cluster().ID)
	s.Must(err)
	if len(current) == 1 { // otherwise a scenario before this one has changed them already
		s.Accepted(ctx, party, s.vaultToken(ctx), "control: a token of the key that the cluster had at first")
		retired := s.sign(ctx, s.publish(ctx))
		s.Cleanup(func(ctx context.Context) { _ = s.tryRemove(ctx, retired) })
	}
	fresh := s.vaultToken(ctx)
	s.Refused(ctx, party, fresh, jwtRefuses("error verifying token signature"), "a token of a new key")
	s.Accepted(ctx, vaultLogin("by discovery", vault.Role, byDiscovery), fresh, "control: by discovery the new key is found")
}

func vaultBoundClaims(ctx context.Context, s *Session) {
	party := vaultLogin("by claims", vault.ClaimsRole, byDiscovery)
	s.Accepted(ctx, party, s.vaultToken(ctx), "control: namespace and service account are the bound ones")
	s.Refused(ctx, party, s.Mint(ctx, lab.MintRequest{Audiences: []string{party.Audience}, ServiceAccount: fixtures.OtherServiceAccount}),
		jwtRefuses(`claim "/kubernetes.io/serviceaccount/name" does not match any associated bound claim values`), "of another service account")
	s.Refused(ctx, party, s.Forge(ctx, lab.ForgeRequest{MintRequest: lab.MintRequest{Audiences: []string{party.Audience}}, Claims: map[string]any{"sub": "app"}}),
		jwtRefuses(`claim "sub" does not match any associated bound claim values`), "of a subject that the glob does not match")
}

// vaultNoIssuer is Vault's default: oidc_discovery_url says where keys are, and
// binds no token to that issuer.
func vaultNoIssuer(ctx context.Context, s *Session) {
	bound := vaultLogin("with bound_issuer", vault.BareRole, byDiscovery)
	loose := vaultLogin("without bound_issuer", vault.BareRole, func(m lab.AuthMounts) string { return m.NoIssuer })
	s.Accepted(ctx, bound, s.vaultToken(ctx), "control: the issuer's token")
	other := s.Forge(ctx, lab.ForgeRequest{MintRequest: lab.MintRequest{Audiences: []string{loose.Audience}}, Issuer: "https://issuer.example"})
	s.Refused(ctx, bound, other, jwtRefuses("invalid issuer (iss) claim"), "the name of another issuer")
	s.Accepted(ctx, loose, other, "the name of another issuer, which nobody compares")
	s.Refused(ctx, loose, s.Forge(ctx, lab.ForgeRequest{MintRequest: lab.MintRequest{Audiences: []string{loose.Audience}}, ForeignKey: true}), badSignature, "but the key counts")
}

// vaultNoAudience is a role that a relying party can use with the tokens that
// workloads send to it.
func vaultNoAudience(ctx context.Context, s *Session) {
	bound := vaultLogin("with audience", vault.BareRole, byTokenReview)
	loose := vaultLogin("without audience", vault.NoAudienceRole, byTokenReview)
	s.Accepted(ctx, bound, s.vaultToken(ctx), "control: a token for Vault")
	forAWS := s.awsToken(ctx)
	s.Refused(ctx, bound, forAWS, kubernetesRefuses("invalid audience (aud) claim"), "a token for AWS")
	s.Accepted(ctx, loose, forAWS, "a token for AWS, whose audience nobody compares")
}
