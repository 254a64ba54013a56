package sts

import (
	"fmt"
	"strings"
	"time"
)

// Strict returns a relying party that follows RFC 8725 to the letter.
func Strict() Profile {
	return Profile{
		Name: "strict",
		// What Kubernetes signs with (pkg/serviceaccount/jwt.go) and lets an
		// external signer use (pkg/serviceaccount/externaljwt).
		Algorithms:       []string{"RS256", "ES256", "ES384", "ES512"},
		Types:            []string{"", "JWT"}, // Kubernetes sends no typ, an external signer "JWT"
		Skew:             0,
		MaxTokenBytes:    16 << 10,
		MaxHeaderBytes:   4 << 10,
		RefuseKeyHeaders: true,
		Cache: CachePolicy{
			// The habits of careful libraries: panva/jose keeps keys for 10 min
			// and waits 30 s between two fetches for unknown kids, 5 s for an answer.
			Name:              "refetch on unknown kid",
			TTL:               10 * time.Minute,
			RefetchUnknownKid: true,
			MinInterval:       30 * time.Second,
			FetchTimeout:      5 * time.Second,
			MaxBodyBytes:      1 << 20,
			MaxKeys:           100,
		},
	}
}

// AWS returns AWS STS, AssumeRoleWithWebIdentity.
func AWS() Profile {
	return Profile{
		Name: "aws",
		// STS API reference, WebIdentityToken: "signed with either RSA keys
		// (RS256, RS384, or RS512) or ECDSA keys (ES256, ES384, or ES512)".
		Algorithms:      []string{"RS256", "RS384", "RS512", "ES256", "ES384", "ES512"},
		Types:           []string{"", "JWT"},
		Skew:            300 * time.Second, // observed on exp, nbf and iat
		MaxTokenBytes:   20_000,            // STS API reference, WebIdentityToken: 4 to 20000
		MaxHeaderBytes:  4 << 10,           // ours; the vendor documents none
		StringTimes:     true,              // observed: strings of digits pass, fractions do not
		AllowDuplicates: true,              // observed: the last one wins
		AuthorizedParty: true,              // IAM user guide, OIDC condition keys: aud is azp if there is one
		AnySubject:      true,              // observed
		// Observed, all four. IAM user guide: at most 100 RSA and 100 EC keys.
		Keys: KeyRules{LastWins: true, RefuseKeyOps: true, IgnoreAlg: true, MaxPerKind: 100},
		Cache: CachePolicy{
			// Not documented by the vendor. Operators report waits of none to
			// 10 min after a rotation; this models both ends.
			Name:              "undocumented by the vendor, 10 min model",
			TTL:               10 * time.Minute,
			RefetchUnknownKid: true,
			MinInterval:       30 * time.Second,
			FetchTimeout:      5 * time.Second, // re:Post: a provider slower than 5 s fails
			MaxBodyBytes:      1 << 20,
			MaxKeys:           1000, // ours; see Keys
		},
	}
}

// Azure returns Microsoft Entra ID, federated identity credentials.
func Azure() Profile {
	return Profile{
		Name: "azure",
		// AzureAD/microsoft-identity-web#3467: RSA only; ES256 is refused with AADSTS5002738.
		Algorithms:     []string{"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"},
		Types:          []string{"", "JWT"},
		Skew:           300 * time.Second, // Microsoft.IdentityModel, DefaultClockSkew; Entra documents none
		MaxTokenBytes:  16 << 10,          // ours; the vendor documents none
		MaxHeaderBytes: 4 << 10,           // ours; the vendor documents none
		Cache: CachePolicy{
			// Not documented by the vendor. These are the habits of its own
			// library, Microsoft.IdentityModel: DefaultAutomaticRefreshInterval
			// and, after a key was not found, DefaultRefreshInterval.
			Name:              "undocumented by the vendor, 12 h and 5 min model",
			TTL:               12 * time.Hour,
			RefetchUnknownKid: true,
			MinInterval:       5 * time.Minute,
			FetchTimeout:      5 * time.Second,
			MaxBodyBytes:      1 << 20,
			MaxKeys:           100, // Entra stores the first 100; here a larger set is refused
		},
	}
}

// STACKIT returns the STACKIT identity provider. Of it only the cache is
// documented (SKE, "Use Workload Identity", Credential rotation): keys are kept
// for one hour per key set URL, and a token is accepted while its kid is among
// them. That a token with a new kid waits for that hour to pass is what a cache
// by age alone does. The rest is as strict as Strict.
func STACKIT() Profile {
	p := Strict()
	p.Name = "stackit"
	p.Cache.Name = "1 h TTL"
	p.Cache.TTL = time.Hour
	p.Cache.RefetchUnknownKid = false
	return p
}

// GCP returns Google Cloud's Security Token Service, as OIDC providers of
// workload identity pools use it. What is not named here is not documented by
// the vendor, and as strict as Strict.
func GCP() Profile {
	p := Strict()
	p.Name = "gcp"
	// STS API reference, v1.token, subject_token: RS256 and ES256 only, kid is
	// required, and iat must be in the past and not older than 24 hours.
	// Compared without skew, since none is documented.
	p.Algorithms = []string{"RS256", "ES256"}
	p.MaxAge = 24 * time.Hour
	p.Cache.Name = "undocumented by the vendor, 10 min model"
	return p
}

// Vault returns Vault's JWT auth method (vault-plugin-auth-jwt 0.25, cap 0.11,
// go-oidc 3.15, as in Vault 1.21) with a bound issuer and bound audiences; without
// a bound issuer it would take tokens of anybody. Where the real one is laxer
// than this, it is because of what this package never does: guess a key without
// a kid, read a claim in another case, or take the last of two.
func Vault() Profile {
	return Profile{
		Name: "vault",
		// API documentation of the method, jwt_supported_algs: all of these by default.
		Algorithms:     []string{"RS256", "RS384", "RS512", "ES256", "ES384", "ES512", "PS256", "PS384", "PS512", "EdDSA"},
		AnyType:        true,              // cap/jwt, Validate: typ is not read
		Skew:           60 * time.Second,  // API documentation, clock_skew_leeway, on exp, nbf and iat
		ImpliedLife:    150 * time.Second, // API documentation, expiration_leeway and not_before_leeway
		MaxTokenBytes:  1 << 20,           // listener documentation, max_json_string_value_length
		MaxHeaderBytes: 4 << 10,           // ours
		Cache: CachePolicy{
			// go-oidc, RemoteKeySet: kept for ever, fetched again for each
			// token with an unknown kid. It does so for a bad signature as well.
			Name:              "for ever, refetch on every unknown kid",
			RefetchUnknownKid: true,
			FetchTimeout:      60 * time.Second, // vault-plugin-auth-jwt, the client's time limit
			MaxBodyBytes:      1 << 20,          // ours
			MaxKeys:           1000,             // ours
		},
	}
}

// Kubernetes returns an API server that trusts an issuer by structured
// authentication (KEP-3331), mapping the user name from sub: plugin
// authenticator/token/oidc of Kubernetes 1.36 over go-oidc 2.5. What is said of
// Vault's laxness is true of it as well.
func Kubernetes() Profile {
	return Profile{
		Name: "kubernetes",
		// Option AuthenticationConfigFile: oidc.AllValidSigningAlgorithms.
		// (The flag --oidc-signing-algs has RS256 only by default.)
		Algorithms:     []string{"RS256", "RS384", "RS512", "ES256", "ES384", "ES512", "PS256", "PS384", "PS512"},
		AnyType:        true,             // go-oidc, Verify: typ is not read
		Skew:           0,                // go-oidc, Verify: none on exp
		NotBeforeSkew:  60 * time.Second, // go-oidc, Verify: a leeway of 1 min on nbf
		IgnoreIssuedAt: true,             // go-oidc, Verify: iat is decoded, not compared
		MaxTokenBytes:  1 << 20,          // apiserver/pkg/server, MaxHeaderBytes
		MaxHeaderBytes: 4 << 10,          // ours
		Cache: CachePolicy{
			// go-oidc, remoteKeySet: kept for ever; fetched again for an unknown
			// kid, or a bad signature, when Cache-Control of the key set has 30 s
			// or less to go. The lab's front allows a minute at most.
			Name:              "for ever, refetch on unknown kid after Cache-Control",
			RefetchUnknownKid: true,
			MinInterval:       30 * time.Second,
			FetchTimeout:      30 * time.Second, // authenticator/token/oidc, the client's time limit
			MaxBodyBytes:      1 << 20,          // ours
			MaxKeys:           1000,             // ours
		},
	}
}

// Profiles returns the built-in profiles.
func Profiles() []Profile {
	return []Profile{Strict(), AWS(), STACKIT(), GCP(), Azure(), Vault(), Kubernetes()}
}

// ProfileNamed returns a built-in profile. The error of an unknown name lists
// those that there are.
func ProfileNamed(name string) (Profile, error) {
	var names []string
	for _, p := range Profiles() {
		if p.Name == name {
			return p, nil
		}
		names = append(names, p.Name)
	}
	return Profile{}, fmt.Errorf("no profile %q: there are %s", name, strings.Join(names, ", "))
}
