package aws

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	awssdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/config"
	sdksts "github.com/aws/aws-sdk-go-v2/service/sts"
	"github.com/aws/smithy-go"

	"github.com/oidclab/oidclab/lab/sts/internal/ststest"
)

// report is what the application saw, one JSON line for each line it was sent.
type report struct {
	Arn     string
	Expires time.Time
	Code    string // of the error, if there is one
	Type    string // its Go type
	Error   string
}

// application is the SDK without any options. It asks who it is.
func application(string) (func(string) any, error) {
	ctx := context.Background()
	cfg, err := config.LoadDefaultConfig(ctx)
	if err != nil {
		return nil, err
	}
	client := sdksts.NewFromConfig(cfg)
	return func(string) any { return ask(ctx, cfg, client) }, nil
}

func ask(ctx context.Context, cfg awssdk.Config, client *sdksts.Client) report {
	var r report
	credentials, err := cfg.Credentials.Retrieve(ctx)
	if err == nil {
		r.Expires = credentials.Expires
		var identity *sdksts.GetCallerIdentityOutput
		if identity, err = client.GetCallerIdentity(ctx, nil); err == nil {
			r.Arn = awssdk.ToString(identity.Arn)
			return r
		}
	}
	r.Error = err.Error()
	var apiError smithy.APIError
	if errors.As(err, &apiError) {
		r.Code, r.Type = apiError.ErrorCode(), fmt.Sprintf("%T", apiError)
	}
	return r
}

// run starts the application with nothing in its environment but what a
// webhook injects into a pod, the endpoint and the authority.
func (a *account) run(t *testing.T, token string, more ...string) *ststest.Application {
	t.Helper()
	return a.Start(t, "default", token, func(files ststest.Files) []string {
		return append([]string{
			"AWS_ENDPOINT_URL_STS=" + a.url,
			"AWS_REGION=eu-central-1",
			"AWS_ROLE_ARN=" + testRole,
			"AWS_WEB_IDENTITY_TOKEN_FILE=" + files.Token,
			"AWS_CA_BUNDLE=" + files.CA,
		}, more...)
	})
}

// whoIs asks an application who it is.
func whoIs(t *testing.T, app *ststest.Application) report {
	t.Helper()
	var r report
	app.Ask(t, "who am I?", &r)
	return r
}

func TestSDK(t *testing.T) {
	a := newAccount(t)
	app := a.run(t, a.token(t, nil), "AWS_ROLE_SESSION_NAME=from-the-environment")
	got := whoIs(t, app)
	if want := "arn:aws:sts::123456789012:assumed-role/demo/from-the-environment"; got.Arn != want {
		t.Fatalf("got %+v, want %s", got, want)
	}
	if want := a.Clock.Now().Add(time.Hour); !got.Expires.Equal(want) {
		t.Errorf("the SDK keeps the credentials until %s, want %s", got.Expires, want)
	}
	a.Clock.Advance(time.Hour)
	if got := whoIs(t, app); got.Code != "ExpiredToken" {
		t.Errorf("after they expired: %+v", got)
	}
}

func TestSDKWithoutSessionName(t *testing.T) {
	a := newAccount(t)
	if got := whoIs(t, a.run(t, a.token(t, nil))); got.Arn == "" {
		t.Errorf("got %+v", got)
	}
}

func TestSDKRefused(t *testing.T) {
	a := newAccount(t)
	for _, test := range []struct {
		name, token, code, goType string
	}{
		{"audience", a.token(t, map[string]any{"aud": "vault"}), "InvalidIdentityToken", "*types.InvalidIdentityTokenException"},
		{"expired", a.token(t, map[string]any{"exp": a.Clock.Now().Add(-time.Hour).Unix()}), "ExpiredTokenException", "*types.ExpiredTokenException"},
		{"subject", a.token(t, map[string]any{"sub": "system:serviceaccount:foreign:app"}), "AccessDenied", "*smithy.GenericAPIError"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			got := whoIs(t, a.run(t, test.token, "AWS_MAX_ATTEMPTS=1"))
			if got.Code != test.code || got.Type != test.goType {
				t.Errorf("got %s as %s (%s), want %s as %s", got.Code, got.Type, got.Error, test.code, test.goType)
			}
		})
	}
}
