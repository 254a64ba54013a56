package sts

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/coreos/go-oidc/v3/oidc"
	"github.com/go-jose/go-jose/v4"
	josejwt "github.com/go-jose/go-jose/v4/jwt"
	"github.com/lestrrat-go/jwx/v3/jwk"
	"github.com/lestrrat-go/jwx/v3/jwt"
)

// verifiers returns three other verifiers of the same issuer, configured as
// strictly as their common options allow. Each returns nil for a token that it accepts.
func (b *party) verifiers() map[string]func(token string) error {
	ctx := oidc.ClientContext(context.Background(), b.issuer.server.Client())
	algorithms := b.core.cfg.Profile.Algorithms
	provider, err := oidc.NewProvider(ctx, b.issuer.URL)
	if err != nil {
		b.tb.Fatal(err)
	}
	verifier := provider.Verifier(&oidc.Config{ClientID: audience, SupportedSigningAlgs: algorithms, Now: b.clock.Now})

	published := keySetOf(rsaKey().jwk(), ecKey().jwk())
	var joseSet jose.JSONWebKeySet
	for _, key := range []signingKey{rsaKey(), ecKey()} {
		joseSet.Keys = append(joseSet.Keys, jose.JSONWebKey{Key: key.private.Public(), KeyID: key.kid, Algorithm: key.alg, Use: "sig"})
	}
	var joseAlgorithms []jose.SignatureAlgorithm
	for _, alg := range algorithms {
		joseAlgorithms = append(joseAlgorithms, jose.SignatureAlgorithm(alg))
	}
	jwxSet, err := jwk.Parse([]byte(published))
	if err != nil {
		b.tb.Fatal(err)
	}
	return map[string]func(string) error{
		"go-oidc": func(token string) error {
			_, err := verifier.Verify(ctx, token)
			return err
		},
		"go-jose": func(token string) error {
			parsed, err := josejwt.ParseSigned(token, joseAlgorithms)
			if err != nil {
				return err
			}
			var claims josejwt.Claims
			if err := parsed.Claims(joseSet, &claims); err != nil {
				return err
			}
			return claims.ValidateWithLeeway(josejwt.Expected{Issuer: b.issuer.URL, AnyAudience: []string{audience, "lab-2"}, Time: b.clock.Now()}, 0)
		},
		"jwx": func(token string) error {
			parsed, err := jwt.ParseString(token, jwt.WithKeySet(jwxSet), jwt.WithIssuer(b.issuer.URL),
				jwt.WithClock(jwt.ClockFunc(b.clock.Now)), jwt.WithAcceptableSkew(0),
				jwt.WithRequiredClaim("exp"), jwt.WithRequiredClaim("iat"), jwt.WithRequiredClaim("sub"))
			if err != nil {
				return err
			}
			got, _ := parsed.Audience()
			if !slices.Contains(got, audience) && !slices.Contains(got, "lab-2") {
				return errors.New("audience")
			}
			return nil
		},
	}
}

// disagreements are the tokens of the table refused that another verifier
// accepts, and why the core does not follow.
var disagreements = map[string]struct {
	accept string // who accepts, sorted
	why    string
}{
	"too large":        {all, "no limit of their own; an attacker chooses how much is hashed and parsed"},
	"header too large": {all, "as above"},

	"JSON serialization":         {"go-oidc", "reads either; RFC 8725bis section 2.13 warns of the confusion, RFC 7519 section 1 wants compact"},
	"trailing newline":           {all, "white space is trimmed, or skipped by the base64 decoder; RFC 7515 section 2 has none"},
	"leading blank":              {"go-oidc jwx", "as above"},
	"newline inside":             {all, "encoding/base64 skips it; one token must have one spelling, for replay lists and traces"},
	"padding":                    {"jwx", "takes padded base64url; RFC 7515 section 2 has all padding left out"},
	"bits that do not count":     {all, "encoding/base64 is not strict by default; one token must have one spelling"},
	"payload with data after it": {"jwx", "stops after the first JSON value; RFC 7519 section 7.2 wants one object"},
	"invalid UTF-8":              {all, "encoding/json puts U+FFFD; RFC 7519 section 7.2 wants UTF-8"},
	"lone surrogate":             {all, "encoding/json puts U+FFFD, so different claims become equal"},
	"deep nesting":               {all, "limit of ours"},
	"too many claims":            {all, "limit of ours"},

	"alg twice":               {"jwx", "last one wins; RFC 7515 section 4 allows that only to parsers that cannot refuse"},
	"ALG":                     {all, "ignored as unknown; a case-insensitive verifier would read it as alg"},
	"\u212aid":                {all, "as above: the Kelvin sign folds to k"},
	"crit":                    {"jwx", "takes exp for an understood extension; a verifier that understands none must refuse all, RFC 7515 section 4.1.11"},
	"empty crit":              {all, "RFC 7515 section 4.1.11: must not be empty"},
	"crit null":               {all, "RFC 7515 section 4.1.11: an array"},
	"cty":                     {all, "says that a token is nested, which none of these would open"},
	"jwk":                     {all, "ignored, with which AWS agrees; strict refuses, a good issuer sends none"},
	"jku":                     {all, "as above"},
	"x5u":                     {all, "as above"},
	"typ of an access token":  {all, "not looked at; RFC 8725 section 3.11: one kind of token must not pass for another"},
	"typ empty":               {all, "as above"},
	"typ null":                {all, "as above"},
	"typ a number":            {"go-jose go-oidc", "as above"},
	"no kid":                  {"go-oidc", "tries every key; which key signed should not be a guess"},
	"kid empty":               {"go-oidc", "as above"},
	"kid null":                {"go-oidc", "as above"},
	"no alg":                  {"jwx", "takes the key's; RFC 7515 section 4.1.1: must be present"},
	"sub twice":               {"go-oidc jwx", "last one wins; another verifier may take the first"},
	"sub twice, once escaped": {"go-oidc jwx", "as above"},
	"duplicate in depth":      {all, "as above; for go-jose claims it does not read are not looked at"},

	"SUB":                     {all, "go-oidc and go-jose read it as sub or ignore it, jwx ignores it; the verifier behind may not"},
	"\u017fub":                {all, "as above: the long s folds to s"},
	"EXP":                     {all, "as above: in go-oidc the later of the two counts as exp"},
	"no sub":                  {"go-jose go-oidc", "not required by these; without a subject there is nobody to trust"},
	"no exp":                  {"go-jose", "not required; such a token is good for ever"},
	"no iat":                  {"go-jose go-oidc", "not required by these; OpenID Connect Core section 2 requires it"},
	"sub empty":               {all, "not required to say anything"},
	"sub with NUL":            {all, "not looked at; a comparison in C would end at the NUL"},
	"exp a string":            {"go-oidc jwx", "converted; RFC 7519 section 2: a number"},
	"exp a fraction":          {all, "cut off or kept, so that verifiers disagree for a second"},
	"exp 4e9":                 {all, "a JSON number; no issuer writes times so, and not every verifier reads them"},
	"exp after the year 9999": {all, "limit of ours: beyond what RFC 3339 can show"},
	"exp null":                {"go-jose", "as if absent, and then good for ever"},
	"iat negative":            {"go-jose go-oidc", "read as it is, or not read at all"},
	"nbf null":                {"go-jose go-oidc", "as if absent"},
	"jti a number":            {"go-oidc", "not read"},
	"expired":                 {"go-jose go-oidc", "at exp itself still good for them; RFC 7519 section 4.1.4: must not be accepted on or after"},
	"not yet valid":           {"go-oidc", "a fixed leeway of 5 min on nbf"},
	"issued in the future":    {"go-oidc", "iat is not looked at"},
}

const all = "go-jose go-oidc jwx"

// TestDifferential compares the core with three other verifiers.
func TestDifferential(t *testing.T) {
	b := newParty(t, Strict())
	others := b.verifiers()
	who := func(token string) string {
		var accept []string
		for name, verify := range others {
			if verify(token) == nil {
				accept = append(accept, name)
			}
		}
		slices.Sort(accept)
		return strings.Join(accept, " ")
	}
	seen := 0
	for _, tt := range refused {
		token := b.forge(tt.change).token()
		if b.core.Verify(context.Background(), token).Refusal == nil {
			continue // the role refuses it, which the others do not know
		}
		known := disagreements[tt.name]
		if got := who(token); got != known.accept {
			t.Errorf("%s: accepted by %q, explained is %q", tt.name, got, known.accept)
		}
		if known.accept != "" {
			seen++
		}
	}
	if seen != len(disagreements) {
		t.Errorf("%d disagreements are explained, %d seen", len(disagreements), seen)
	}
	// No token is accepted that any other refuses, but for go-oidc's single audience.
	for name, change := range accepted {
		want := all
		if name == "one of several audiences" {
			want = "go-jose jwx"
		}
		if got := who(b.forge(change).token()); got != want {
			t.Errorf("%s: accepted by the core and by %q, want %q", name, got, want)
		}
	}
}
