package aws

import (
	"encoding/xml"
	"fmt"
	"net/http"
)

// s3Error is an error of S3 (Amazon S3 API reference, "Error responses"), with
// the elements that some of them have.
type s3Error struct {
	XMLName          xml.Name `xml:"Error"`
	Code             string
	Message          string
	Region           string `xml:",omitempty"`
	Key              string `xml:",omitempty"`
	BucketName       string `xml:",omitempty"`
	AccessKeyID      string `xml:"AWSAccessKeyId,omitempty"`
	HeadersNotSigned string `xml:",omitempty"`
	RequestTime      string `xml:",omitempty"`
	XAmzExpires      int64  `xml:"X-Amz-Expires,omitempty"`
	Expires          string `xml:",omitempty"`
	ServerTime       string `xml:",omitempty"`
	MaxAllowedSkew   int64  `xml:"MaxAllowedSkewMilliseconds,omitempty"`
	RequestID        string `xml:"RequestId"`
	HostID           string `xml:"HostId"`

	status int
}

func newS3Error(status int, code, message string) *s3Error {
	return &s3Error{Code: code, Message: message, status: status}
}

func queryParameters(message string) *s3Error {
	return newS3Error(http.StatusBadRequest, "AuthorizationQueryParametersError", message)
}

// notUnderstood is the answer to a signature whose form or scope is wrong.
func notUnderstood(s signature, text string) *s3Error {
	if s.presigned {
		return queryParameters(text)
	}
	return newS3Error(http.StatusBadRequest, "AuthorizationHeaderMalformed", "The authorization header is malformed; "+text)
}

func wrongRegion(s signature, region string) *s3Error {
	text := fmt.Sprintf("the region '%s' is wrong; expecting '%s'", s.region, region)
	if s.presigned {
		text = "Error parsing the X-Amz-Credential parameter; " + text
	}
	e := notUnderstood(s, text)
	e.Region = region
	return e
}

// unauthenticatedByS3 is the answer of S3 to a request that is not signed as it
// should be. S3 shows what it would have signed beside a wrong signature; this
// one does not, since the session token is a part of it.
func unauthenticatedByS3(flawed *signatureError, s signature) *s3Error {
	switch flawed.flaw {
	case notSigned:
		return newS3Error(http.StatusForbidden, "AccessDenied", "Access Denied")
	case malformed, outOfScope:
		return notUnderstood(s, flawed.text)
	case unknownKey:
		e := newS3Error(http.StatusForbidden, "InvalidAccessKeyId", "The AWS Access Key Id you provided does not exist in our records.")
		e.AccessKeyID = s.accessKeyID
		return e
	case wrongToken:
		return newS3Error(http.StatusBadRequest, "InvalidToken", "The provided token is malformed or otherwise invalid.")
	case keyExpired:
		return newS3Error(http.StatusBadRequest, "ExpiredToken", "The provided token has expired.")
	case wrongSecret:
		e := newS3Error(http.StatusForbidden, "SignatureDoesNotMatch", "The request signature we calculated does not match the signature you provided. Check your key and signing method.")
		e.AccessKeyID = s.accessKeyID
		return e
	}
	panic("aws: an unknown flaw of a signature") // checkTime has answers of its own
}

// withoutDetails is the error as the trace has it.
func (e *s3Error) withoutDetails() *apiError {
	if e == nil {
		return nil
	}
	return &apiError{Status: e.status, Code: e.Code}
}

// refuse answers with an error, and to HEAD with its status alone.
func (r s3Request) refuse(w http.ResponseWriter, e *s3Error) {
	e.RequestID, e.HostID = r.id, "oidclab"
	body, err := xml.Marshal(e)
	if err != nil {
		panic("aws: an error cannot be encoded: " + err.Error()) // its type is wrong
	}
	w.Header().Set("Content-Type", "application/xml")
	w.WriteHeader(e.status)
	if r.Method != http.MethodHead {
		_, _ = fmt.Fprintf(w, "%s\n%s", `<?xml version="1.0" encoding="UTF-8"?>`, plainQuotes(body)) // the client may be gone
	}
}
