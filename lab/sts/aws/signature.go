package aws

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	awssdk "github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
)

const (
	algorithm = "AWS4-HMAC-SHA256"
	service   = "sts"
	isoBasic  = "20060102T150405Z"

	signatureSkew = 5 * time.Minute
	// presignedLife is how long a presigned request is good for. STS does not
	// look at X-Amz-Expires (aws-iam-authenticator, pkg/token).
	presignedLife = 15 * time.Minute
)

// signature is a request's signature of version 4, as it was found in the
// Authorization header or, presigned, in the query string
// (IAM user guide, "Elements of an AWS API request signature").
type signature struct {
	accessKeyID, region string
	signedHeaders       []string
	signedAt            time.Time
	token               string // the session token
	value               string // the signature itself, hex
	presigned           bool
}

// Errors of signed requests. All but IncompleteSignature have status 403.
func missingAuthentication() *apiError {
	return &apiError{http.StatusForbidden, "MissingAuthenticationToken", "Request is missing Authentication Token"}
}

func incompleteSignature(message string) *apiError {
	return &apiError{http.StatusBadRequest, "IncompleteSignature", message}
}

func signatureDoesNotMatch(message string) *apiError {
	return &apiError{http.StatusForbidden, "SignatureDoesNotMatch", message}
}

func invalidClientTokenID() *apiError {
	return &apiError{http.StatusForbidden, "InvalidClientTokenId", "The security token included in the request is invalid."}
}

func expiredToken() *apiError {
	return &apiError{http.StatusForbidden, "ExpiredToken", "The security token included in the request is expired"}
}

// parseSignature reads the signature of a request without believing it.
func parseSignature(r *http.Request, query url.Values) (signature, *apiError) {
	switch {
	case r.Header.Get("Authorization") != "":
		return parseAuthorization(r)
	case query.Has("X-Amz-Algorithm"):
		return parsePresigned(query)
	default:
		return signature{}, missingAuthentication()
	}
}

func parseAuthorization(r *http.Request) (signature, *apiError) {
	scheme, rest, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	if scheme != algorithm {
		return signature{}, incompleteSignature("Unsupported AWS 'algorithm': use " + algorithm + ".")
	}
	fields := make(map[string]string)
	for field := range strings.SplitSeq(rest, ",") {
		name, value, _ := strings.Cut(strings.TrimSpace(field), "=")
		fields[name] = value
	}
	var missing []string
	for _, name := range []string{"Credential", "SignedHeaders", "Signature"} {
		if fields[name] == "" {
			missing = append(missing, fmt.Sprintf("Authorization header requires '%s' parameter.", name))
		}
	}
	if missing != nil {
		return signature{}, incompleteSignature(strings.Join(missing, " "))
	}
	if r.Header.Get("X-Amz-Date") == "" {
		return signature{}, incompleteSignature("Authorization header requires existence of either a 'X-Amz-Date' or a 'Date' header.")
	}
	s := signature{value: fields["Signature"], token: r.Header.Get("X-Amz-Security-Token")}
	return s, s.parse(fields["Credential"], r.Header.Get("X-Amz-Date"), fields["SignedHeaders"])
}

func parsePresigned(query url.Values) (signature, *apiError) {
	if query.Get("X-Amz-Algorithm") != algorithm {
		return signature{}, incompleteSignature("Unsupported AWS 'algorithm': use " + algorithm + ".")
	}
	for _, name := range []string{"X-Amz-Credential", "X-Amz-Date", "X-Amz-SignedHeaders", "X-Amz-Signature"} {
		if query.Get(name) == "" {
			return signature{}, incompleteSignature(fmt.Sprintf("AWS query-string parameters must include '%s'.", name))
		}
	}
	s := signature{presigned: true, value: query.Get("X-Amz-Signature"), token: query.Get("X-Amz-Security-Token")}
	return s, s.parse(query.Get("X-Amz-Credential"), query.Get("X-Amz-Date"), query.Get("X-Amz-SignedHeaders"))
}

// parse reads what both forms have, and judges what needs no key.
func (s *signature) parse(credential, date, signedHeaders string) *apiError {
	scope := strings.Split(credential, "/")
	if len(scope) != 5 {
		return incompleteSignature("Credential must have exactly 5 slash-delimited elements, e.g. keyid/date/region/service/term.")
	}
	signedAt, err := time.Parse(isoBasic, date)
	if err != nil {
		return incompleteSignature("Date must be in ISO-8601 'basic format', e.g. " + isoBasic + ".")
	}
	s.accessKeyID, s.region, s.signedAt = scope[0], scope[2], signedAt
	s.signedHeaders = strings.Split(signedHeaders, ";")
	switch {
	case scope[4] != "aws4_request":
		return signatureDoesNotMatch("Credential should be scoped with a valid terminator: 'aws4_request'.")
	case scope[3] != service:
		return signatureDoesNotMatch("Credential should be scoped to correct service: '" + service + "'.")
	case scope[1] != date[:8]:
		return signatureDoesNotMatch(fmt.Sprintf("Date in Credential scope does not match YYYYMMDD from ISO-8601 version of date from HTTP: '%s' != '%s', from '%s'.", scope[1], date[:8], date))
	case !slices.Contains(s.signedHeaders, "host"):
		return signatureDoesNotMatch("'Host' or ':authority' must be a 'SignedHeader' in the AWS Authorization.")
	}
	return nil
}

// checkTime wants the signature to be of about now, lab time.
func (s *signature) checkTime(now time.Time) *apiError {
	life := signatureSkew
	if s.presigned {
		life = presignedLife
	}
	at, current := s.signedAt.Format(isoBasic), now.UTC().Format(isoBasic)
	if oldest := now.Add(-life).UTC(); s.signedAt.Before(oldest) {
		return signatureDoesNotMatch(fmt.Sprintf("Signature expired: %s is now earlier than %s (%s - %d min.)", at, oldest.Format(isoBasic), current, int(life.Minutes())))
	}
	if newest := now.Add(signatureSkew).UTC(); s.signedAt.After(newest) {
		return signatureDoesNotMatch(fmt.Sprintf("Signature not yet current: %s is still later than %s (%s + %d min.)", at, newest.Format(isoBasic), current, int(signatureSkew.Minutes())))
	}
	return nil
}

// check signs the request anew with the session's secret, over exactly the
// headers that the client listed and the body that arrived, and compares.
func (s *signature) check(r *http.Request, body []byte, holder *session) *apiError {
	again, err := s.sign(r, body, holder)
	if err != nil || subtle.ConstantTimeCompare([]byte(again), []byte(s.value)) != 1 {
		return signatureDoesNotMatch("The request signature we calculated does not match the signature you provided. Check your AWS Secret Access Key and signing method. Consult the service documentation for details.")
	}
	return nil
}

// sign returns the signature that the AWS SDK makes for the request.
func (s *signature) sign(r *http.Request, body []byte, holder *session) (string, error) {
	request := &http.Request{
		Method: r.Method,
		URL:    &url.URL{Scheme: "https", Host: r.Host, Path: r.URL.Path, RawQuery: r.URL.RawQuery},
		Host:   r.Host,
		Header: make(http.Header),
	}
	for _, name := range s.signedHeaders {
		switch name {
		case "host", "x-amz-date", "x-amz-security-token": // the signer adds them
		case "content-length":
			request.ContentLength = int64(len(body))
		default:
			// Lower case, because the signer skips "User-Agent", which the SDK
			// for .NET signs, but not "user-agent".
			request.Header[name] = r.Header.Values(name)
		}
	}
	credentials := awssdk.Credentials{AccessKeyID: holder.accessKeyID, SecretAccessKey: holder.secretAccessKey, SessionToken: holder.token}
	sum := sha256.Sum256(body)
	payload := hex.EncodeToString(sum[:])
	signer := v4.NewSigner(func(o *v4.SignerOptions) { o.DisableHeaderHoisting = true })
	ctx := r.Context()

	if !s.presigned {
		if err := signer.SignHTTP(ctx, credentials, request, payload, service, s.region, s.signedAt); err != nil {
			return "", err
		}
		_, value, _ := strings.Cut(request.Header.Get("Authorization"), "Signature=")
		return value, nil
	}
	query := request.URL.Query()
	query.Del("X-Amz-Signature")
	request.URL.RawQuery = query.Encode()
	signed, _, err := signer.PresignHTTP(ctx, credentials, request, payload, service, s.region, s.signedAt)
	if err != nil {
		return "", err
	}
	_, value, _ := strings.Cut(signed, "&X-Amz-Signature=")
	return value, nil
}
