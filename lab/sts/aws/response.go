package aws

import "encoding/xml"

// response is the body of an answer.
type response interface{ setRequestID(string) }

// metadata is at the end of each answer that is not an error.
type metadata struct {
	RequestID string `xml:"ResponseMetadata>RequestId"`
}

func (m *metadata) setRequestID(id string) { m.RequestID = id }

type assumeWithWebIdentityResponse struct {
	XMLName xml.Name                    `xml:"https://sts.amazonaws.com/doc/2011-06-15/ AssumeRoleWithWebIdentityResponse"`
	Result  assumeWithWebIdentityResult `xml:"AssumeRoleWithWebIdentityResult"`
	metadata
}

type assumeWithWebIdentityResult struct {
	Subject  string `xml:"SubjectFromWebIdentityToken"`
	Audience string
	granted
	Provider string
}

type assumeRoleResponse struct {
	XMLName xml.Name `xml:"https://sts.amazonaws.com/doc/2011-06-15/ AssumeRoleResponse"`
	Result  granted  `xml:"AssumeRoleResult"`
	metadata
}

// granted is a session, as the one who may have it is told.
type granted struct {
	AssumedRoleUser struct {
		Arn           string
		AssumedRoleID string `xml:"AssumedRoleId"`
	}
	Credentials struct {
		SessionToken    string
		SecretAccessKey string
		Expiration      string
		AccessKeyID     string `xml:"AccessKeyId"`
	}
	SourceIdentity   string `xml:",omitempty"`
	PackedPolicySize int    `xml:",omitempty"` // percent
}

type callerIdentityResponse struct {
	XMLName xml.Name             `xml:"https://sts.amazonaws.com/doc/2011-06-15/ GetCallerIdentityResponse"`
	Result  callerIdentityResult `xml:"GetCallerIdentityResult"`
	metadata
}

type callerIdentityResult struct {
	Arn     string
	UserID  string `xml:"UserId"`
	Account string
}

type errorResponse struct {
	XMLName xml.Name `xml:"https://sts.amazonaws.com/doc/2011-06-15/ ErrorResponse"`
	Error   struct {
		Type    string
		Code    string
		Message string
	}
	RequestID string `xml:"RequestId"`
}

func (r *errorResponse) setRequestID(id string) { r.RequestID = id }

// newErrorResponse blames the client below status 500, and the service from there on.
func newErrorResponse(e *apiError) *errorResponse {
	r := new(errorResponse)
	r.Error.Type, r.Error.Code, r.Error.Message = "Sender", e.Code, e.Message
	if e.Status >= 500 {
		r.Error.Type = "Receiver"
	}
	return r
}
