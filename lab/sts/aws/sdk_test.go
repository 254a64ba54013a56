package aws

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	awssdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/config"
	sdksts "github.com/aws/aws-sdk-go-v2/service/sts"
	"github.com/aws/smithy-go"
)

// childVariable tells the test binary to be an application that uses the SDK.
const childVariable = "OIDCLAB_TEST_CHILD"

// report is what the application saw, one JSON line for each line it was sent.
type report struct {
	Arn     string
	Expires time.Time
	Code    string // of the error, if there is one
	Type    string // its Go type
	Error   string
}

// child is the application: the SDK without any options. It asks who it is
// each time it is sent a line.
func child() int {
	ctx := context.Background()
	cfg, err := config.LoadDefaultConfig(ctx)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	client := sdksts.NewFromConfig(cfg)
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		if err := json.NewEncoder(os.Stdout).Encode(ask(ctx, cfg, client)); err != nil {
			return 1
		}
	}
	return 0
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

// application is a running child.
type application struct {
	stdin  io.Writer
	stdout *json.Decoder
}

// run starts the application with nothing in its environment but what a
// webhook injects into a pod, the endpoint and the authority.
func (a *account) run(t *testing.T, token string, more ...string) *application {
	t.Helper()
	dir := t.TempDir()
	tokenFile, bundle := filepath.Join(dir, "token"), filepath.Join(dir, "ca.pem")
	for file, content := range map[string][]byte{tokenFile: []byte(token), bundle: a.CA.CertPEM()} {
		if err := os.WriteFile(file, content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self) // ends when its input does
	cmd.Env = append([]string{
		childVariable + "=1",
		"AWS_ENDPOINT_URL_STS=" + a.url,
		"AWS_REGION=eu-central-1",
		"AWS_ROLE_ARN=" + testRole,
		"AWS_WEB_IDENTITY_TOKEN_FILE=" + tokenFile,
		"AWS_CA_BUNDLE=" + bundle,
	}, more...)
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		stdin.Close()
		if err := cmd.Wait(); err != nil {
			t.Errorf("application: %v", err)
		}
	})
	return &application{stdin, json.NewDecoder(stdout)}
}

func (a *application) ask(t *testing.T) report {
	t.Helper()
	if _, err := fmt.Fprintln(a.stdin, "who am I?"); err != nil {
		t.Fatal(err)
	}
	var r report
	if err := a.stdout.Decode(&r); err != nil {
		t.Fatal(err)
	}
	return r
}

func TestSDK(t *testing.T) {
	a := newAccount(t)
	app := a.run(t, a.token(t, nil), "AWS_ROLE_SESSION_NAME=from-the-environment")
	got := app.ask(t)
	if want := "arn:aws:sts::123456789012:assumed-role/demo/from-the-environment"; got.Arn != want {
		t.Fatalf("got %+v, want %s", got, want)
	}
	if want := a.Clock.Now().Add(time.Hour); !got.Expires.Equal(want) {
		t.Errorf("the SDK keeps the credentials until %s, want %s", got.Expires, want)
	}
	a.Clock.Advance(time.Hour)
	if got := app.ask(t); got.Code != "ExpiredToken" {
		t.Errorf("after they expired: %+v", got)
	}
}

func TestSDKWithoutSessionName(t *testing.T) {
	a := newAccount(t)
	if got := a.run(t, a.token(t, nil)).ask(t); got.Arn == "" {
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
			got := a.run(t, test.token, "AWS_MAX_ATTEMPTS=1").ask(t)
			if got.Code != test.code || got.Type != test.goType {
				t.Errorf("got %s as %s (%s), want %s as %s", got.Code, got.Type, got.Error, test.code, test.goType)
			}
		})
	}
}
