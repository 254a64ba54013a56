package proxy

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"

	awssdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	sdksts "github.com/aws/aws-sdk-go-v2/service/sts"

	"github.com/oidclab/oidclab/lab/sts/aws"
)

// askAWS asks AWS who the application is.
func askAWS(ctx context.Context) (string, error) {
	cfg, err := config.LoadDefaultConfig(ctx)
	if err != nil {
		return "", err
	}
	identity, err := sdksts.NewFromConfig(cfg).GetCallerIdentity(ctx, nil)
	if err != nil {
		return "", err
	}
	return awssdk.ToString(identity.Arn), nil
}

// readS3 reads an object of S3.
func readS3(ctx context.Context) (string, error) {
	cfg, err := config.LoadDefaultConfig(ctx)
	if err != nil {
		return "", err
	}
	output, err := s3.NewFromConfig(cfg).GetObject(ctx, &s3.GetObjectInput{Bucket: awssdk.String("demo"), Key: awssdk.String("greeting")})
	if err != nil {
		return "", err
	}
	defer output.Body.Close()
	content, err := io.ReadAll(output.Body)
	return string(content), err
}

func (c *cluster) aws(t *testing.T) *aws.Handler {
	t.Helper()
	const account = "123456789012"
	provider := strings.TrimPrefix(c.issuer, "https://")
	handler, err := aws.New(aws.Config{
		Account:   account,
		Providers: []aws.Provider{{URL: c.issuer, ClientIDs: []string{"sts.amazonaws.com"}}},
		Roles: []aws.Role{{Name: "demo", TrustPolicy: json.RawMessage(fmt.Sprintf(`{"Version":"2012-10-17","Statement":[{"Effect":"Allow",
			"Principal":{"Federated":%q},"Action":"sts:AssumeRoleWithWebIdentity","Condition":{"StringEquals":{%q:%q}}}]}`,
			aws.ProviderARN(account, c.issuer), provider+":sub", subject)),
			Policy: json.RawMessage(`{"Statement": {"Effect": "Allow", "Action": "s3:GetObject", "Resource": "arn:aws:s3:::demo/*"}}`)}},
		Buckets: []aws.Bucket{{Name: "demo", Region: "us-east-1", Objects: map[string][]byte{"greeting": []byte("hello")}}},
		Client:  c.client, Clock: c.clock,
	})
	if err != nil {
		t.Fatal(err)
	}
	return handler
}

func TestAWS(t *testing.T) {
	c := newCluster(t)
	handler := c.aws(t)
	for region, host := range map[string]string{"us-east-1": "sts.us-east-1.amazonaws.com", "aws-global": "sts.amazonaws.com"} {
		t.Run(region, func(t *testing.T) {
			l := startWith(t, c.ca, nil, Host{Pattern: "sts.amazonaws.com", Handler: handler}, Host{Pattern: "sts.*.amazonaws.com", Handler: handler})
			token := c.token(t, "sts.amazonaws.com")
			webhook := []string{
				"AWS_REGION=" + region,
				"AWS_ROLE_ARN=" + aws.RoleARN("123456789012", "demo"),
				"AWS_WEB_IDENTITY_TOKEN_FILE=" + file(t, []byte(token)),
				"AWS_ROLE_SESSION_NAME=session",
			}
			if got := l.run(t, "aws", webhook...); got.Got != "arn:aws:sts::123456789012:assumed-role/demo/session" {
				t.Errorf("got %+v", got)
			}
			events, _ := l.trace.Since(0)
			for _, e := range events {
				if e.Name != host {
					t.Errorf("asked for %s, want %s", e.Name, host)
				}
			}
			l.clean(t, token)
		})
	}
	t.Run("S3", func(t *testing.T) {
		l := startWith(t, c.ca, nil, Host{Pattern: "sts.*.amazonaws.com", Handler: handler}, Host{Pattern: "*.s3.*.amazonaws.com", Handler: handler.S3()})
		token := c.token(t, "sts.amazonaws.com")
		got := l.run(t, "s3", "AWS_REGION=us-east-1", "AWS_ROLE_ARN="+aws.RoleARN("123456789012", "demo"), "AWS_WEB_IDENTITY_TOKEN_FILE="+file(t, []byte(token)))
		if got.Got != "hello" {
			t.Errorf("got %+v", got)
		}
		var hosts []string
		events, _ := l.trace.Since(0)
		for _, e := range events {
			hosts = append(hosts, e.Name)
		}
		slices.Sort(hosts)
		if want := []string{"demo.s3.us-east-1.amazonaws.com", "sts.us-east-1.amazonaws.com"}; !slices.Equal(slices.Compact(hosts), want) {
			t.Errorf("asked for %q, want %q", hosts, want)
		}
		l.clean(t, token)
	})
	t.Run("refused token", func(t *testing.T) {
		l := startWith(t, c.ca, nil, Host{Pattern: "sts.*.amazonaws.com", Handler: handler})
		got := l.run(t, "aws", "AWS_REGION=us-east-1", "AWS_MAX_ATTEMPTS=1", "AWS_ROLE_ARN="+aws.RoleARN("123456789012", "demo"),
			"AWS_WEB_IDENTITY_TOKEN_FILE="+file(t, []byte(c.token(t, "vault"))))
		if !strings.Contains(got.Error, "InvalidIdentityToken: The web identity token provided could not be validated") {
			t.Errorf("got %+v", got)
		}
	})
	t.Run("host that is not played", func(t *testing.T) {
		l := startWith(t, c.ca, nil, Host{Pattern: "sts.*.amazonaws.com", Handler: handler})
		got := l.run(t, "aws", "AWS_REGION=cn-north-1", "AWS_MAX_ATTEMPTS=1", "AWS_ROLE_ARN="+aws.RoleARN("123456789012", "demo"),
			"AWS_WEB_IDENTITY_TOKEN_FILE="+file(t, []byte(c.token(t, "sts.amazonaws.com"))))
		if !strings.Contains(got.Error, "Forbidden") {
			t.Errorf("got %+v", got)
		}
		if refused := l.Refused(); len(refused) != 1 || refused[0].Target != "sts.cn-north-1.amazonaws.com.cn:443" {
			t.Errorf("recorded %+v", refused)
		}
	})
}
