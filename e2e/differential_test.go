package e2e

import (
	"strings"
	"testing"

	authenticationv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// TestKubernetesProfile gives forged tokens to the profile of an API server
// with structured authentication and to a real one. The profile accepts nothing
// that the real one refuses; where it is stricter, the table says why.
func TestKubernetesProfile(t *testing.T) {
	t.Parallel()
	const name = "differential"
	u := newUser(t)
	info := u.up(t, "--name", name, "--clusters", "2")
	trusting := info.Clusters[1]
	reviews := kubernetesClient(t, trusting).AuthenticationV1().TokenReviews()

	const refused, accepted = false, true
	for _, tt := range []struct {
		name     string
		forge    []string
		real     bool
		stricter string // why the profile refuses what the real one accepts
	}{
		{"a good token", nil, accepted, ""},
		{"expired", []string{"--expired"}, refused, ""},
		{"nbf within the skew", []string{"--not-before", "40s"}, accepted, ""},
		{"nbf beyond the skew", []string{"--not-before", "2m"}, refused, ""},
		{"iat in the future", []string{"--issued-in", "1h"}, accepted, ""},
		{"no iat", []string{"--claim", "iat=null"}, accepted, ""},
		{"no nbf", []string{"--claim", "nbf=null"}, accepted, ""},
		{"no exp", []string{"--claim", "exp=null"}, refused, ""},
		{"no sub", []string{"--claim", "sub=null"}, refused, ""},
		{"no aud", []string{"--claim", "aud=null"}, refused, ""},
		{"another audience", []string{"--claim", "aud=vault"}, refused, ""},
		{"one of several audiences", []string{"--claim", `aud=["vault","` + trusting.Audience + `"]`}, accepted, ""},
		{"another issuer", []string{"--issuer", "https://issuer.example"}, refused, ""},
		{"typ of an access token", []string{"--header", "typ=at+jwt"}, accepted, ""},
		{"jku", []string{"--header", "jku=https://evil.example/jwks"}, accepted, ""},
		{"a claim of ours", []string{"--claim", "team=blue"}, accepted, ""},
		{"none", []string{"--alg", "none"}, refused, ""},
		{"HS256 with the public key", []string{"--alg", "HS256"}, refused, ""},
		{"unknown kid", []string{"--kid", "nobody-knows"}, refused, ""},
		{"foreign key", []string{"--foreign-key"}, refused, ""},
		{"foreign key in the header", []string{"--embed-foreign-key"}, refused, ""},
		{"changed after signing", []string{"--tampered"}, refused, ""},
		{"signature changed", []string{"--alter-signature"}, refused, ""},
		{"crit", []string{"--header", `crit=["exp"]`}, refused, ""},

		{"no kid", []string{"--header", "kid=null"}, accepted, "which key signed should not be a guess"},
		{"cty", []string{"--header", "cty=JWT"}, accepted, "says that a token is nested, which none of both would open"},
		{"another algorithm of the key's type", []string{"--alg", "PS256"}, accepted, "the key is published for RS256: RFC 8725 section 3.1"},
		{"SUB beside sub", []string{"--claim", "SUB=admin"}, accepted, "a verifier that ignores case would read it as sub"},
		{"EXP beside exp", []string{"--claim", "EXP=1"}, accepted, "go-oidc reads the last of the two, whichever that is"},
		{"exp a text", []string{"--claim", `exp="4102444800"`}, accepted, "RFC 7519 section 2: a number"},
		{"exp a fraction", []string{"--claim", "exp=4102444800.5"}, accepted, "cut off or rounded, by different verifiers"},
	} {
		token := strings.TrimSpace(u.run(t, append([]string{"token", "forge", "--name", name, "--audience", trusting.Audience}, tt.forge...)...).want(t, 0).stdout)
		review, err := reviews.Create(t.Context(), &authenticationv1.TokenReview{Spec: authenticationv1.TokenReviewSpec{Token: token}}, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if review.Status.Authenticated != tt.real {
			t.Errorf("%s: the API server accepts it: %v (%s)", tt.name, review.Status.Authenticated, review.Status.Error)
		}
		code := 0
		if !tt.real || tt.stricter != "" {
			code = 6
		}
		u.feed(t, token, "token", "verify", "--name", name, "--profile", "kubernetes", "--audience", trusting.Audience).want(t, code)
	}
}
