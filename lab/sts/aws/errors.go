package aws

import (
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/oidclab/oidclab/lab/sts"
)

// apiError is an error as the Query protocol carries it.
type apiError struct {
	Status  int
	Code    string // as on the wire: some names end in Exception, most do not
	Message string
}

// Error implements the error interface.
func (e *apiError) Error() string { return e.Code + ": " + e.Message }

// Errors of the Query protocol (STS API reference, "Common Error Types").
func invalidAction(action, version string) *apiError {
	if version == "" {
		version = "NO_VERSION_SPECIFIED"
	}
	return &apiError{http.StatusBadRequest, "InvalidAction", fmt.Sprintf("Could not find operation %s for version %s", action, version)}
}

func validationError(message string) *apiError {
	return &apiError{http.StatusBadRequest, "ValidationError", message}
}

// Errors of AssumeRoleWithWebIdentity. Codes and statuses are those of the
// vendor's model of the API (sts 2011-06-15); texts were seen in answers of
// the real service where a comment does not say otherwise.

func invalidIdentityToken(message string) *apiError {
	return &apiError{http.StatusBadRequest, "InvalidIdentityToken", message}
}

func accessDenied(action string) *apiError {
	return &apiError{http.StatusForbidden, "AccessDenied", "Not authorized to perform " + action}
}

func malformedPolicy(message string) *apiError {
	return &apiError{http.StatusBadRequest, "MalformedPolicyDocument", message}
}

// packedPolicyTooLarge has a text that was seen of AssumeRole.
func packedPolicyTooLarge(percent int) *apiError {
	return &apiError{http.StatusBadRequest, "PackedPolicyTooLarge", fmt.Sprintf("Packed policy consumes %d%% of allotted space, please use smaller policy.", percent)}
}

func regionDisabled(account string) *apiError {
	return &apiError{http.StatusForbidden, "RegionDisabledException", "STS is not activated in this region for account:" + account +
		". Your account administrator can activate STS in this region using the IAM Console."}
}

// idpRejected is the answer to a token that a provider of OAuth 2.0 access
// tokens did not know.
func idpRejected(provider string) *apiError {
	return &apiError{http.StatusForbidden, "IDPRejectedClaim", provider + ": " + provider + " responded with HTTP/1.1 400 Bad Request"}
}

func internalFailure() *apiError {
	return &apiError{http.StatusInternalServerError, "InternalFailure", "The request processing has failed because of an unknown error, exception or failure."}
}

// unauthenticated is the answer of STS to a request that is not signed as it
// should be.
func unauthenticated(e *signatureError) *apiError {
	status, code := http.StatusForbidden, "SignatureDoesNotMatch"
	switch e.flaw {
	case notSigned:
		code = "MissingAuthenticationToken"
	case malformed:
		status, code = http.StatusBadRequest, "IncompleteSignature"
	case unknownKey, wrongToken:
		code = "InvalidClientTokenId"
	case keyExpired:
		code = "ExpiredToken"
	}
	return &apiError{status, code, e.text}
}

const (
	notAJWT = "The ID Token provided is not a valid JWT. (You may see this error if you sent an Access Token)"
	// Two blanks, as the real service has it.
	noVerificationKey = "Couldn't retrieve verification key from your identity provider,  please reference AssumeRoleWithWebIdentity documentation for requirements"
	couldNotValidate  = "The web identity token provided could not be validated. See the AssumeRoleWithWebIdentity documentation for requirements."
)

// refused is the answer to a token that the core refused at now with skew of
// tolerance. A reason that is not in the list is answered as a failure of the
// service; a test sees to it that there is none.
func refused(r *sts.Refusal, now time.Time, skew time.Duration) *apiError {
	switch r.Reason {
	case sts.TokenMissing:
		var v violations
		v.add("null", "webIdentityToken", "Member must not be null")
		return v.err()
	case sts.TokenTooLarge:
		var v violations
		v.add("", "webIdentityToken", fmt.Sprintf("Member must have length less than or equal to %d", maxToken))
		return v.err()
	case sts.HeaderRefused:
		if r.Claim == "kid" {
			return invalidIdentityToken(noVerificationKey)
		}
		return invalidIdentityToken(notAJWT)
	case sts.TokenMalformed:
		return invalidIdentityToken(notAJWT)
	case sts.AlgorithmRefused, sts.SignatureInvalid: // no text is on record
		return invalidIdentityToken(couldNotValidate)
	case sts.ClaimMissing:
		return invalidIdentityToken("Missing a required claim: " + r.Claim)
	case sts.ClaimInvalid:
		return invalidClaim(r)
	case sts.IssuerUnknown:
		return invalidIdentityToken("No OpenIDConnect provider found in your account for " + r.Got)
	case sts.IssuerUnreachable: // the code is for this case by its definition; the text is that of its neighbour
		return &apiError{http.StatusBadRequest, "IDPCommunicationError", noVerificationKey}
	case sts.KeyUnknown:
		return invalidIdentityToken(noVerificationKey)
	case sts.TokenExpired:
		return &apiError{http.StatusBadRequest, "ExpiredTokenException", fmt.Sprintf(
			"Token expired: current date/time %d must be before the expiration date/time %s", now.Add(-skew).Unix(), unix(r.Got))}
	case sts.TokenNotYetValid:
		return invalidIdentityToken(fmt.Sprintf(
			"Token not yet valid: current date/time %d must be after or equal to the not-before date/time %s", now.Add(skew).Unix(), unix(r.Got)))
	case sts.TokenIssuedInFuture:
		return invalidIdentityToken("Token issued in the future: " + unix(r.Got))
	case sts.TokenTooOld: // what the number of the real text counts is not on record
		return &apiError{http.StatusBadRequest, "ExpiredTokenException", "Token too old: " + unix(r.Got)}
	case sts.AudienceMismatch:
		if r.Claim == "azp" && strings.HasPrefix(r.Want, "azp, because") {
			return invalidIdentityToken("Token audience contains more than one audience while authorized party is not present")
		}
		return invalidIdentityToken(couldNotValidate) // until some time before 2026: Incorrect token audience
	case sts.RoleUnknown, sts.IssuerNotTrusted, sts.SubjectMismatch, sts.ConditionMismatch:
		return accessDenied(webIdentityAction)
	default:
		return internalFailure()
	}
}

func invalidClaim(r *sts.Refusal) *apiError {
	switch {
	case r.Claim == "exp" || r.Claim == "nbf" || r.Claim == "iat":
		return invalidIdentityToken("Invalid timestamp in token claims.")
	case r.Claim == "sub" && r.Got == "null": // as observed
		return internalFailure()
	case r.Claim == "aud" && r.Got == "[]":
		return invalidIdentityToken("Claim is not allowed to be empty: aud")
	default:
		return invalidIdentityToken(couldNotValidate)
	}
}

// unix rewrites a time of a refusal, RFC 3339, as seconds since 1970.
func unix(rfc3339 string) string {
	t, err := time.Parse(time.RFC3339, rfc3339)
	if err != nil {
		return rfc3339
	}
	return strconv.FormatInt(t.Unix(), 10)
}
