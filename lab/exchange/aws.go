package exchange

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	awssdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/sts"
	"github.com/aws/smithy-go"
	smithyhttp "github.com/aws/smithy-go/transport/http"
)

const aws = "aws"

// AWSTarget is a role at an AWS STS endpoint, and the S3 it may use.
type AWSTarget struct {
	Endpoint    string // an origin, such as "https://127.0.0.1:41733"
	S3          string // likewise; GetObject needs nothing else but region and client
	Region      string
	RoleARN     string
	SessionName string        // 2 to 64 characters
	Policy      string        // a session policy, which narrows what the role may do; empty means none
	Duration    time.Duration // whole seconds; 0 means AWS's default, one hour
	Client      *http.Client
}

// AWSResult is an assumed role. It marshals as the AWS command line prints it.
type AWSResult struct {
	Credentials     AWSCredentials
	Subject         string `json:"SubjectFromWebIdentityToken"`
	AssumedRoleUser AWSAssumedRole
	Provider        string // the issuer
	Audience        string
}

// AWSCredentials are temporary credentials.
type AWSCredentials struct {
	AccessKeyID     string `json:"AccessKeyId"`
	SecretAccessKey string
	SessionToken    string
	Expiration      time.Time
}

// AWSAssumedRole is the identity of a role session.
type AWSAssumedRole struct {
	AssumedRoleID string `json:"AssumedRoleId"`
	ARN           string `json:"Arn"`
}

// AWSIdentity is who a set of credentials belongs to. It marshals as the AWS
// command line prints it.
type AWSIdentity struct {
	UserID  string `json:"UserId"`
	Account string
	ARN     string `json:"Arn"`
}

// CredentialProcess returns the credentials in the form in which AWS's SDKs and
// tools read them from a credential_process (AWS SDKs and Tools reference
// guide, "Process credential provider").
func (c AWSCredentials) CredentialProcess() ([]byte, error) {
	return json.Marshal(struct {
		Version int
		AWSCredentials
	}{1, c})
}

// AWS exchanges a token for credentials of a role (AssumeRoleWithWebIdentity).
// It makes one request, whatever the answer.
func AWS(ctx context.Context, target AWSTarget, token string) (AWSResult, error) {
	client, err := target.client(awssdk.AnonymousCredentials{})
	if err != nil {
		return AWSResult{}, err
	}
	input := &sts.AssumeRoleWithWebIdentityInput{
		RoleArn: &target.RoleARN, RoleSessionName: &target.SessionName, WebIdentityToken: &token,
	}
	if target.Policy != "" {
		input.Policy = &target.Policy
	}
	if target.Duration != 0 {
		input.DurationSeconds = awssdk.Int32(int32(target.Duration / time.Second))
	}
	output, err := client.AssumeRoleWithWebIdentity(ctx, input)
	if err != nil {
		return AWSResult{}, awsError(err, token)
	}
	if output.Credentials == nil || output.AssumedRoleUser == nil {
		return AWSResult{}, errors.New("aws: the answer to AssumeRoleWithWebIdentity has no credentials")
	}
	return AWSResult{
		Credentials: AWSCredentials{
			AccessKeyID:     awssdk.ToString(output.Credentials.AccessKeyId),
			SecretAccessKey: awssdk.ToString(output.Credentials.SecretAccessKey),
			SessionToken:    awssdk.ToString(output.Credentials.SessionToken),
			Expiration:      awssdk.ToTime(output.Credentials.Expiration),
		},
		Subject: awssdk.ToString(output.SubjectFromWebIdentityToken),
		AssumedRoleUser: AWSAssumedRole{
			AssumedRoleID: awssdk.ToString(output.AssumedRoleUser.AssumedRoleId),
			ARN:           awssdk.ToString(output.AssumedRoleUser.Arn),
		},
		Provider: awssdk.ToString(output.Provider),
		Audience: awssdk.ToString(output.Audience),
	}, nil
}

// WhoAmI uses credentials (GetCallerIdentity). It makes one request, and up to
// two more only if the service's clock turns out to be another.
func WhoAmI(ctx context.Context, target AWSTarget, credentials AWSCredentials) (AWSIdentity, error) {
	client, err := target.client(credentials.provider())
	if err != nil {
		return AWSIdentity{}, err
	}
	output, err := client.GetCallerIdentity(ctx, &sts.GetCallerIdentityInput{})
	if err != nil {
		return AWSIdentity{}, awsError(err, credentials.SecretAccessKey, credentials.SessionToken)
	}
	if output.Arn == nil {
		return AWSIdentity{}, errors.New("aws: the answer to GetCallerIdentity has no ARN")
	}
	return AWSIdentity{
		UserID:  awssdk.ToString(output.UserId),
		Account: awssdk.ToString(output.Account),
		ARN:     awssdk.ToString(output.Arn),
	}, nil
}

// provider returns the credentials as the SDK wants them.
func (c AWSCredentials) provider() awssdk.CredentialsProvider {
	return awssdk.CredentialsProviderFunc(func(context.Context) (awssdk.Credentials, error) {
		return awssdk.Credentials{AccessKeyID: c.AccessKeyID, SecretAccessKey: c.SecretAccessKey, SessionToken: c.SessionToken}, nil
	})
}

// GetObject uses credentials to read an object of at most 1 MiB from S3. It
// makes as many requests as WhoAmI.
func GetObject(ctx context.Context, target AWSTarget, credentials AWSCredentials, bucket, key string) ([]byte, error) {
	if err := secure(aws, target.S3); err != nil {
		return nil, err
	}
	client := s3.New(s3.Options{
		Region:       target.Region,
		BaseEndpoint: &target.S3,
		UsePathStyle: true,
		Credentials:  credentials.provider(),
		HTTPClient:   direct(target.Client),
		Retryer:      clockRetryer{},
	})
	output, err := client.GetObject(ctx, &s3.GetObjectInput{Bucket: &bucket, Key: &key})
	if err != nil {
		return nil, awsError(err, credentials.SecretAccessKey, credentials.SessionToken)
	}
	defer output.Body.Close()
	content, err := io.ReadAll(io.LimitReader(output.Body, maxAnswer+1))
	if err != nil {
		return nil, fmt.Errorf("aws: object %s of bucket %s: %w", key, bucket, err)
	}
	if len(content) > maxAnswer {
		return nil, fmt.Errorf("aws: object %s of bucket %s is longer than %d bytes", key, bucket, maxAnswer)
	}
	return content, nil
}

// client returns the SDK's client. It is not made from the SDK's configuration,
// which would read the environment and the user's files.
func (t AWSTarget) client(credentials awssdk.CredentialsProvider) (*sts.Client, error) {
	if err := secure(aws, t.Endpoint); err != nil {
		return nil, err
	}
	return sts.New(sts.Options{
		Region:       t.Region,
		BaseEndpoint: &t.Endpoint,
		Credentials:  credentials,
		HTTPClient:   direct(t.Client),
		Retryer:      clockRetryer{},
	}), nil
}

// clockRetryer has the SDK repeat a request only if it was signed by a clock
// that is not the service's. The SDK takes the difference from the Date header
// of an answer; this version of it signs the second request after that answer
// by the service's clock, not the first.
type clockRetryer struct{ awssdk.NopRetryer }

// noticeableSkew is what the SDK itself takes for a wrong clock. AWS tolerates
// 5 minutes.
const noticeableSkew = 4 * time.Minute

func (clockRetryer) MaxAttempts() int { return 3 }

func (clockRetryer) RetryDelay(int, error) (time.Duration, error) { return 0, nil }

func (clockRetryer) IsErrorRetryable(err error) bool {
	var refusal smithy.APIError
	var answer *smithyhttp.ResponseError
	if !errors.As(err, &refusal) || !errors.As(err, &answer) {
		return false
	}
	switch refusal.ErrorCode() {
	case "SignatureDoesNotMatch", "RequestExpired", "RequestTimeTooSkewed":
	default:
		return false
	}
	service, err := http.ParseTime(answer.Response.Header.Get("Date"))
	if err != nil {
		return false
	}
	signed, err := time.Parse("20060102T150405Z", answer.Response.Request.Header.Get("X-Amz-Date"))
	return err == nil && service.Sub(signed).Abs() > noticeableSkew
}

func awsError(err error, secrets ...string) error {
	var refusal smithy.APIError
	var answer *smithyhttp.ResponseError
	if errors.As(err, &refusal) && errors.As(err, &answer) {
		return answered(aws, answer.HTTPStatusCode(), refusal.ErrorCode(), refusal.ErrorMessage(), secrets...)
	}
	return fmt.Errorf("aws: %w", err)
}
