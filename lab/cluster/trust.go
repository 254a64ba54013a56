package cluster

import (
	"encoding/json"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	apiserverv1 "k8s.io/apiserver/pkg/apis/apiserver/v1"
)

// TrustedIssuer is an issuer, not the cluster's own, whose tokens the API
// server takes (structured authentication, KEP-3331).
type TrustedIssuer struct {
	URL      string // the iss claim
	CA       []byte // PEM, of the issuer's HTTPS server
	Audience string // that tokens must have
	Prefix   string // of the user name, whose rest is the sub claim
}

// AuthenticationConfig returns the content of a kube-apiserver's
// --authentication-config: anonymous callers reach the health endpoints and
// nothing else (KEP-4633), and the issuers are trusted.
func AuthenticationConfig(issuers []TrustedIssuer) ([]byte, error) {
	config := apiserverv1.AuthenticationConfiguration{
		TypeMeta: metav1.TypeMeta{APIVersion: apiserverv1.SchemeGroupVersion.String(), Kind: "AuthenticationConfiguration"},
		Anonymous: &apiserverv1.AnonymousAuthConfig{
			Enabled:    true,
			Conditions: []apiserverv1.AnonymousAuthCondition{{Path: "/healthz"}, {Path: "/livez"}, {Path: "/readyz"}},
		},
	}
	for _, issuer := range issuers {
		config.JWT = append(config.JWT, apiserverv1.JWTAuthenticator{
			Issuer: apiserverv1.Issuer{URL: issuer.URL, CertificateAuthority: string(issuer.CA), Audiences: []string{issuer.Audience}},
			ClaimMappings: apiserverv1.ClaimMappings{
				Username: apiserverv1.PrefixedClaimOrExpression{Claim: "sub", Prefix: &issuer.Prefix},
			},
		})
	}
	return json.Marshal(config) // JSON is YAML
}
