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
	isoBasic  = "20060102T150405Z"

	serviceSTS = "sts"
	serviceS3  = "s3"
)

// signature is a request's signature of version 4, as it was found in the
// Authorization header or, presigned, in the query string
// (IAM user guide, "Elements of an AWS API request signature").
type signature struct {
	service             string
	accessKeyID, region string
	signedHeaders       []string
	signedAt            time.Time
	token               string // the session token
	value               string // the signature itself, hex
	presigned           bool
}

// flaw is what is wrong with a signature. Each service has an answer of its own
// for each.
type flaw int

const (
	notSigned   flaw = iota + 1
	malformed        // it cannot be read
	outOfScope       // made for another service or another day
	unknownKey       // the access key id is nobody's
	wrongToken       // the session token is not that of the access key
	keyExpired       // the session is over
	outOfTime        // made by another clock, or too long ago
	wrongSecret      // made with another secret, or for another request
)

// signatureError says what is wrong with a signature, in the words of STS.
type signatureError struct {
	flaw flaw
	text string
}

// parseSignature reads the signature of a request to a service without
// believing it.
func parseSignature(r *http.Request, query url.Values, service string) (signature, *signatureError) {
	switch {
	case r.Header.Get("Authorization") != "":
		return parseAuthorization(r, service)
	case query.Has("X-Amz-Algorithm"):
		return parsePresigned(query, service)
	default:
		return signature{}, &signatureError{notSigned, "Request is missing Authentication Token"}
	}
}

func parseAuthorization(r *http.Request, service string) (signature, *signatureError) {
	scheme, rest, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	if scheme != algorithm {
		return signature{}, signatureMalformed("Unsupported AWS 'algorithm': use " + algorithm + ".")
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
		return signature{}, signatureMalformed(strings.Join(missing, " "))
	}
	if r.Header.Get("X-Amz-Date") == "" {
		return signature{}, signatureMalformed("Authorization header requires existence of either a 'X-Amz-Date' or a 'Date' header.")
	}
	s := signature{service: service, value: fields["Signature"], token: r.Header.Get("X-Amz-Security-Token")}
	return s, s.parse(fields["Credential"], r.Header.Get("X-Amz-Date"), fields["SignedHeaders"])
}

func parsePresigned(query url.Values, service string) (signature, *signatureError) {
	if query.Get("X-Amz-Algorithm") != algorithm {
		return signature{}, signatureMalformed("Unsupported AWS 'algorithm': use " + algorithm + ".")
	}
	for _, name := range []string{"X-Amz-Credential", "X-Amz-Date", "X-Amz-SignedHeaders", "X-Amz-Signature"} {
		if query.Get(name) == "" {
			return signature{}, signatureMalformed(fmt.Sprintf("AWS query-string parameters must include '%s'.", name))
		}
	}
	s := signature{service: service, presigned: true, value: query.Get("X-Amz-Signature"), token: query.Get("X-Amz-Security-Token")}
	return s, s.parse(query.Get("X-Amz-Credential"), query.Get("X-Amz-Date"), query.Get("X-Amz-SignedHeaders"))
}

// parse reads what both forms have, and judges what needs no key.
func (s *signature) parse(credential, date, signedHeaders string) *signatureError {
	scope := strings.Split(credential, "/")
	if len(scope) != 5 {
		return signatureMalformed("Credential must have exactly 5 slash-delimited elements, e.g. keyid/date/region/service/term.")
	}
	signedAt, err := time.Parse(isoBasic, date)
	if err != nil {
		return signatureMalformed("Date must be in ISO-8601 'basic format', e.g. " + isoBasic + ".")
	}
	s.accessKeyID, s.region, s.signedAt = scope[0], scope[2], signedAt
	s.signedHeaders = strings.Split(signedHeaders, ";")
	switch {
	case scope[4] != "aws4_request":
		return signatureOutOfScope("Credential should be scoped with a valid terminator: 'aws4_request'.")
	case scope[3] != s.service:
		return signatureOutOfScope("Credential should be scoped to correct service: '" + s.service + "'.")
	case scope[1] != date[:8]:
		return signatureOutOfScope(fmt.Sprintf("Date in Credential scope does not match YYYYMMDD from ISO-8601 version of date from HTTP: '%s' != '%s', from '%s'.", scope[1], date[:8], date))
	case !slices.Contains(s.signedHeaders, "host"):
		return signatureOutOfScope("'Host' or ':authority' must be a 'SignedHeader' in the AWS Authorization.")
	}
	return nil
}

func signatureMalformed(text string) *signatureError { return &signatureError{malformed, text} }

func signatureOutOfScope(text string) *signatureError { return &signatureError{outOfScope, text} }

// holder returns the session whose key the request claims to be signed with.
func (s *signature) holder(sessions *sessions, now time.Time) (*session, *signatureError) {
	const invalid = "The security token included in the request is invalid."
	holder := sessions.get(s.accessKeyID)
	switch {
	case holder == nil:
		return nil, &signatureError{unknownKey, invalid}
	case !holder.holdsToken(s.token):
		return holder, &signatureError{wrongToken, invalid}
	case holder.expired(now):
		return holder, &signatureError{keyExpired, "The security token included in the request is expired"}
	}
	return holder, nil
}

// checkTime wants the signature to be of about now, lab time: made by a clock
// that is right but for skew, and not more than life ago.
func (s *signature) checkTime(now time.Time, skew, life time.Duration) *signatureError {
	at, current := s.signedAt.Format(isoBasic), now.UTC().Format(isoBasic)
	if oldest := now.Add(-life).UTC(); s.signedAt.Before(oldest) {
		return &signatureError{outOfTime, fmt.Sprintf("Signature expired: %s is now earlier than %s (%s - %d min.)", at, oldest.Format(isoBasic), current, int(life.Minutes()))}
	}
	if newest := now.Add(skew).UTC(); s.signedAt.After(newest) {
		return &signatureError{outOfTime, fmt.Sprintf("Signature not yet current: %s is still later than %s (%s + %d min.)", at, newest.Format(isoBasic), current, int(skew.Minutes()))}
	}
	return nil
}

// check signs the request anew with the session's secret, over exactly the
// headers that the client listed and a payload with the given hash, and
// compares.
func (s *signature) check(r *http.Request, payloadHash string, holder *session) *signatureError {
	again, err := s.sign(r, payloadHash, holder)
	if err != nil || subtle.ConstantTimeCompare([]byte(again), []byte(s.value)) != 1 {
		return &signatureError{wrongSecret, "The request signature we calculated does not match the signature you provided. Check your AWS Secret Access Key and signing method. Consult the service documentation for details."}
	}
	return nil
}

func sha256Hex(body []byte) string {
	sum := sha256.Sum256(body)
	return hex.EncodeToString(sum[:])
}

// sign returns the signature that the AWS SDK makes for the request.
func (s *signature) sign(r *http.Request, payloadHash string, holder *session) (string, error) {
	request := &http.Request{
		Method: r.Method,
		URL:    &url.URL{Scheme: "https", Host: r.Host, Path: r.URL.Path, RawPath: r.URL.RawPath, RawQuery: r.URL.RawQuery},
		Host:   r.Host,
		Header: make(http.Header),
	}
	for _, name := range s.signedHeaders {
		switch name {
		case "host", "x-amz-date", "x-amz-security-token": // the signer adds them
		case "content-length":
			request.ContentLength = r.ContentLength
		default:
			// Lower case, because the signer skips "User-Agent", which the SDK
			// for .NET signs, but not "user-agent".
			request.Header[name] = r.Header.Values(name)
		}
	}
	credentials := awssdk.Credentials{AccessKeyID: holder.accessKeyID, SecretAccessKey: holder.secretAccessKey, SessionToken: holder.token}
	signer := v4.NewSigner(func(o *v4.SignerOptions) {
		o.DisableHeaderHoisting = true
		o.DisableURIPathEscaping = s.service == serviceS3 // the others escape the path twice
	})
	ctx := r.Context()

	if !s.presigned {
		if err := signer.SignHTTP(ctx, credentials, request, payloadHash, s.service, s.region, s.signedAt); err != nil {
			return "", err
		}
		_, value, _ := strings.Cut(request.Header.Get("Authorization"), "Signature=")
		return value, nil
	}
	query := request.URL.Query()
	query.Del("X-Amz-Signature")
	request.URL.RawQuery = query.Encode()
	signed, _, err := signer.PresignHTTP(ctx, credentials, request, payloadHash, s.service, s.region, s.signedAt)
	if err != nil {
		return "", err
	}
	_, value, _ := strings.Cut(signed, "&X-Amz-Signature=")
	return value, nil
}
