package generic

// accessTokenType is the typ of access tokens, RFC 9068 section 2.1.
const accessTokenType = "at+jwt"

// accessToken are the claims of an access token (RFC 9068 section 2.2), and
// two of our own.
type accessToken struct {
	Issuer   string `json:"iss"`
	Subject  string `json:"sub"` // that of the subject token
	Audience string `json:"aud"` // the target service
	ClientID string `json:"client_id"`
	ID       string `json:"jti"`
	IssuedAt int64  `json:"iat"`
	Expiry   int64  `json:"exp"`

	// SubjectIssuer tells apart subjects of the same name from two clusters.
	SubjectIssuer string `json:"subject_issuer"`
	// Journey is that of the subject token, a hash of it (see package trace),
	// so that what is done with this token can be added to that journey.
	Journey string `json:"oidclab_journey"`
}
