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
		AllowDuplicates: true,              // observed: the last one wins, of claims and of kids
		AuthorizedParty: true,              // IAM user guide, OIDC condition keys: aud is azp if there is one
		Cache: CachePolicy{
			// Not documented by the vendor. Operators report waits of none to
			// 10 min after a rotation; this models both ends.
			Name:              "undocumented by the vendor, 10 min model",
			TTL:               10 * time.Minute,
			RefetchUnknownKid: true,
			MinInterval:       30 * time.Second,
			FetchTimeout:      5 * time.Second, // re:Post: a provider slower than 5 s fails
			MaxBodyBytes:      1 << 20,
			MaxKeys:           200, // IAM user guide: 100 RSA and 100 EC keys
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

// Profiles returns the built-in profiles.
func Profiles() []Profile { return []Profile{Strict(), AWS(), STACKIT(), GCP(), Azure()} }

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
