package tokenservice

import "github.com/oidclab/oidclab/lab/sts"

// Describe says what is wrong with a workload's token by itself, as a clause of
// an answer that quotes nothing of it. It is empty for reasons that are about
// the service, or about whom the service trusts.
func Describe(reason sts.Reason) string {
	switch reason {
	case sts.TokenTooLarge:
		return "the token is too large"
	case sts.TokenMalformed:
		return "the token is not a signed JWT"
	case sts.HeaderRefused:
		return "the token's header is not accepted"
	case sts.AlgorithmRefused:
		return "the token's algorithm is not accepted"
	case sts.ClaimMissing:
		return "the token lacks a claim"
	case sts.ClaimInvalid:
		return "the token has an invalid claim"
	case sts.KeyUnknown:
		return "the token's key is not among the issuer's"
	case sts.SignatureInvalid:
		return "the token's signature is invalid"
	case sts.TokenExpired:
		return "the token is expired"
	case sts.TokenNotYetValid:
		return "the token is not yet valid"
	case sts.TokenIssuedInFuture:
		return "the token was issued in the future"
	case sts.TokenTooOld:
		return "the token is too old"
	}
	return ""
}
