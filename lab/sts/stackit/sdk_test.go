package stackit

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stackitcloud/stackit-sdk-go/core/auth"
	"github.com/stackitcloud/stackit-sdk-go/core/config"

	"github.com/oidclab/oidclab/lab/sts/internal/ststest"
	"github.com/oidclab/oidclab/lab/sts/internal/tokenservice"
	"github.com/oidclab/oidclab/lab/trace"
)

// The modes of the application: when it has the SDK refresh tokens.
const (
	onDemand     = "on demand"
	inBackground = "in the background"
)

// report is what the application saw, one JSON line for each line it was sent.
type report struct {
	Status int
	Body   string
	Error  string
	Panic  string
}

// application is the SDK's authenticated transport without any options. It gets
// the URL that each line names.
func application(mode string) (func(string) any, error) {
	var cfg config.Configuration
	if mode == inBackground {
		cfg.BackgroundTokenRefreshContext = context.Background()
	}
	transport, err := auth.SetupAuth(&cfg)
	if err != nil {
		return nil, err
	}
	client := &http.Client{Transport: transport}
	return func(target string) any { return get(client, target) }, nil
}

func get(client *http.Client, target string) (r report) {
	defer func() {
		if p := recover(); p != nil {
			r = report{Panic: fmt.Sprint(p)}
		}
	}()
	response, err := client.Get(target)
	if err != nil {
		return report{Error: err.Error()}
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		return report{Error: err.Error()}
	}
	return report{Status: response.StatusCode, Body: string(body)}
}

// run starts the application with nothing in its environment but what the
// webhook injects into a pod if all its annotations are set, and the
// authority's certificate.
func (p *provider) run(t *testing.T, token, mode string) *ststest.Application {
	t.Helper()
	return p.Start(t, mode, token, func(files ststest.Files) []string {
		return []string{
			"SSL_CERT_FILE=" + files.CA,
			"STACKIT_FEDERATED_TOKEN_FILE=" + files.Token,
			"STACKIT_IDP_TOKEN_ENDPOINT=" + p.url + "/oauth/v2/token",
			"STACKIT_IDP_TOKEN_EXPIRATION_SECONDS=3600", // the SDK ignores it
			"STACKIT_SERVICE_ACCOUNT_EMAIL=" + testEmail,
		}
	})
}

// readAs has an application get the project.
func (p *provider) readAs(t *testing.T, app *ststest.Application) report {
	t.Helper()
	var r report
	app.Ask(t, p.url+"/v2/projects/"+testProject, &r)
	return r
}

// grants returns how many access tokens were granted for a token.
func (p *provider) grants(token string) int {
	n := 0
	for _, e := range p.Trace.Journey(trace.JourneyOf(token)) {
		if e.Step == "grant" {
			n++
		}
	}
	return n
}

func TestSDK(t *testing.T) {
	p := newProvider(t)
	token := p.token(t, nil)
	app := p.run(t, token, onDemand)
	for range 3 {
		if got := p.readAs(t, app); got.Status != http.StatusOK || !strings.Contains(got.Body, testProject) {
			t.Fatalf("got %+v", got)
		}
	}
	if n := p.grants(token); n != 1 {
		t.Errorf("%d tokens for three calls", n)
	}
	p.Clock.Advance(time.Hour)
	if got := p.readAs(t, app); got.Status != http.StatusUnauthorized || !strings.Contains(got.Body, "the access token is expired") {
		t.Errorf("after it expired: %+v", got)
	}
}

func TestSDKRefused(t *testing.T) {
	p := newProvider(t)
	for name, test := range map[string]struct{ token, want string }{
		"audience": {p.token(t, map[string]any{"aud": "vault"}), "the token does not satisfy the assertions"},
		"newline":  {p.token(t, nil) + "\n", "the token is not a signed JWT"}, // the SDK does not trim the file
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got := p.readAs(t, p.run(t, test.token, onDemand))
			if !strings.Contains(got.Error, "status code 401") || !strings.Contains(got.Error, test.want) {
				t.Errorf("got %+v, want 401 with %q", got, test.want)
			}
		})
	}
}

// TestSDKHotLoop documents that the SDK refreshes in the background from half
// an hour before exp on, and so without a pause if a token lives no longer.
func TestSDKHotLoop(t *testing.T) {
	p := newProvider(t)
	token := p.token(t, nil)
	p.readAs(t, p.run(t, token, inBackground))
	if n := p.grants(token); n > 2 { // by the call, and in the background
		t.Errorf("control: %d tokens that live for an hour", n)
	}

	p.serve(t, func(c *Config) { c.Lifetime = 30 * time.Minute })
	token = p.token(t, map[string]any{"jti": "another journey"})
	p.readAs(t, p.run(t, token, inBackground))
	const many = 20
	deadline := time.After(30 * time.Second)
	for position := int64(0); ; {
		events, more := p.Trace.Since(position)
		if n := p.grants(token); n >= many {
			break
		}
		if len(events) > 0 {
			position = events[len(events)-1].Seq
			continue
		}
		select {
		case <-more:
		case <-deadline:
			t.Fatalf("%d tokens in 30 s, want %d: the SDK no longer loops", p.grants(token), many)
		}
	}
}

// TestSDKNeedsExpiry documents what the SDK does with access tokens of another
// kind, from a service that is not this one.
func TestSDKNeedsExpiry(t *testing.T) {
	p := newProvider(t)
	signer, err := tokenservice.NewSigner(tokenservice.TypeJWT)
	if err != nil {
		t.Fatal(err)
	}
	sign := func(claims map[string]any) string {
		token, err := signer.Sign(claims)
		if err != nil {
			t.Fatal(err)
		}
		return token
	}
	for name, test := range map[string]struct {
		accessToken string
		want        func(second report) bool
	}{
		"control": {sign(map[string]any{"exp": p.Clock.Now().Add(time.Hour).Unix()}), func(r report) bool { return r.Status == http.StatusNoContent }},
		"opaque":  {"opaque", func(r report) bool { return strings.Contains(r.Error, "token is malformed") }},
		"no exp":  {sign(map[string]any{"sub": testEmail}), func(r report) bool { return strings.Contains(r.Panic, "nil pointer") }},
	} {
		t.Run(name, func(t *testing.T) {
			p := &provider{Lab: p.Lab, issuer: p.issuer}
			server := p.Listen(t)
			p.url = server.URL()
			mux := http.NewServeMux()
			mux.HandleFunc("POST /oauth/v2/token", func(w http.ResponseWriter, _ *http.Request) {
				tokenservice.WriteJSON(w, http.StatusOK, tokenResponse{AccessToken: test.accessToken, ExpiresIn: 3600})
			})
			mux.HandleFunc("GET /v2/", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) })
			server.Serve(mux)
			app := p.run(t, p.token(t, nil), onDemand)
			if first := p.readAs(t, app); first.Status != http.StatusNoContent {
				t.Fatalf("first call: %+v", first)
			}
			if second := p.readAs(t, app); !test.want(second) {
				t.Errorf("second call: %+v", second)
			}
		})
	}
}
