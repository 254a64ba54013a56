package gcp

import (
	"context"
	"io"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	adc "cloud.google.com/go/auth/credentials"
	"golang.org/x/oauth2/google"

	"github.com/oidclab/oidclab/lab/sts/internal/ststest"
)

// The modes of the application are its SDKs: cloud.google.com/go/auth, and
// golang.org/x/oauth2/google.
func sdks() []string { return []string{"auth", "oauth2"} }

// report is what the application saw, one JSON line for each line it was sent.
type report struct {
	Status  int
	Content string // of the object
	Error   string // of the credentials
}

// application reads the object whose URL each line is.
func application(sdk string) (func(string) any, error) {
	token, err := newTokenSource(context.Background(), sdk)
	if err != nil {
		return nil, err
	}
	return func(target string) any { return get(token, target) }, nil
}

// newTokenSource uses the application default credentials, as applications do.
func newTokenSource(ctx context.Context, sdk string) (func() (string, error), error) {
	if sdk == "oauth2" {
		source, err := google.DefaultTokenSource(ctx, cloudPlatform)
		if err != nil {
			return nil, err
		}
		return func() (string, error) {
			token, err := source.Token()
			if err != nil {
				return "", err
			}
			return token.AccessToken, nil
		}, nil
	}
	found, err := adc.DetectDefault(&adc.DetectOptions{Scopes: []string{cloudPlatform}})
	if err != nil {
		return nil, err
	}
	return func() (string, error) {
		token, err := found.Token(ctx)
		if err != nil {
			return "", err
		}
		return token.Value, nil
	}, nil
}

func get(accessToken func() (string, error), target string) report {
	token, err := accessToken()
	if err != nil {
		return report{Error: err.Error()}
	}
	request, err := http.NewRequest(http.MethodGet, target, nil)
	if err != nil {
		return report{Error: err.Error()}
	}
	request.Header.Set("Authorization", "Bearer "+token)
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return report{Error: err.Error()}
	}
	defer response.Body.Close()
	content, err := io.ReadAll(response.Body)
	if err != nil {
		return report{Error: err.Error()}
	}
	return report{Status: response.StatusCode, Content: string(content)}
}

// run starts the application with nothing in its environment but the
// credential file and the authority.
func (p *project) run(t *testing.T, sdk, serviceAccount, audience, token string) *ststest.Application {
	t.Helper()
	return p.Start(t, sdk, token, func(files ststest.Files) []string {
		data, err := CredentialsJSON(CredentialFile{URL: p.url, Audience: audience, TokenFile: files.Token, ServiceAccount: serviceAccount})
		if err != nil {
			t.Fatal(err)
		}
		credentialFile := files.Token + ".json"
		if err := os.WriteFile(credentialFile, data, 0o600); err != nil {
			t.Fatal(err)
		}
		return []string{"GOOGLE_APPLICATION_CREDENTIALS=" + credentialFile, "SSL_CERT_FILE=" + files.CA}
	})
}

// readAs has an application read the object.
func (p *project) readAs(t *testing.T, app *ststest.Application) report {
	t.Helper()
	var r report
	app.Ask(t, p.url+"/storage/v1/b/demo/o/greeting?alt=media", &r)
	return r
}

func TestSDK(t *testing.T) {
	for _, sdk := range sdks() {
		for _, account := range []string{"", testAccount} {
			t.Run(sdk+" "+account, func(t *testing.T) {
				p := newProject(t)
				app := p.run(t, sdk, account, testAudience(), p.token(t, nil)+"\n")
				if got := p.readAs(t, app); got.Status != http.StatusOK || got.Content != "hello" {
					t.Fatalf("got %+v", got)
				}
				p.Clock.Advance(time.Hour)
				if got := p.readAs(t, app); got.Status != http.StatusUnauthorized {
					t.Errorf("after the lab's time went on, unknown to the SDK: %+v", got)
				}
			})
		}
	}
}

func TestSDKRefused(t *testing.T) {
	p := newProject(t)
	conditional := Audience(testProject, testPool, "conditional")
	now := p.Clock.Now().Unix()
	for _, test := range []struct {
		name, account, audience string
		claims                  map[string]any
		status                  int    // of the object, if credentials were to be had
		text                    string // of the SDK's error, or else of the answer
	}{
		{"control", testAccount, testAudience(), nil, 200, "hello"},
		{"control with a condition", "", conditional, map[string]any{"aud": "gcp"}, 200, "hello"},
		{"audience", "", testAudience(), map[string]any{"aud": "vault"}, 0, `status code 400: {"error":"invalid_grant","error_description":"The audience in ID Token does not match the expected audience."}`},
		{"condition", "", conditional, map[string]any{"aud": "gcp", "kubernetes.io": map[string]any{"namespace": "x"}}, 0, `status code 403: {"error":"unauthorized_client","error_description":"The given credential is rejected by the attribute condition."}`},
		{"age", "", testAudience(), map[string]any{"iat": now - 86400}, 0, "is stale to sign-in."},
		{"expired", "", testAudience(), map[string]any{"exp": now}, 0, "ID Token expired at"},
		{"unknown pool", "", Audience(testProject, "nobody", testProvider), nil, 0, `status code 400: {"error":"invalid_target"`},
		{"subject without a grant", "", testAudience(), map[string]any{"sub": "system:serviceaccount:demo:other"}, 403, "does not have storage.objects.get access"},
		{"subject that cannot impersonate", testAccount, testAudience(), map[string]any{"sub": "system:serviceaccount:demo:other"}, 0, "Permission 'iam.serviceAccounts.getAccessToken' denied on resource (or it may not exist)."},
	} {
		for _, sdk := range sdks() {
			t.Run(test.name+" "+sdk, func(t *testing.T) {
				got := p.readAs(t, p.run(t, sdk, test.account, test.audience, p.token(t, test.claims)))
				if got.Status != test.status || !strings.Contains(got.Error+got.Content, test.text) {
					t.Errorf("got %+v, want %d with %q", got, test.status, test.text)
				}
			})
		}
	}
}
