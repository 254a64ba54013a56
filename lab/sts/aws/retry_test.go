package aws

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	awssdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials/stscreds"
	sdksts "github.com/aws/aws-sdk-go-v2/service/sts"
	"github.com/aws/smithy-go"
)

// noDelay is a retryer of the SDK that does not wait. What is asked again, and
// how often, is left to the SDK.
type noDelay struct{ awssdk.Retryer }

func (noDelay) RetryDelay(int, error) (time.Duration, error) { return 0, nil }

// tokenFrom is where the SDK's provider gets its token.
type tokenFrom string

func (t tokenFrom) GetIdentityToken() ([]byte, error) { return []byte(t), nil }

// counted is a client of the account, as an SDK makes it, and the number of
// requests that it sent.
func (a *account) counted(t *testing.T) (*sdksts.Client, *atomic.Int64) {
	t.Helper()
	const name = "sts.ap-east-1.amazonaws.com" // which is a disabled region
	var requests atomic.Int64
	server := a.Listen(t, name)
	server.Serve(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		requests.Add(1)
		if !strings.HasPrefix(r.Header.Get("User-Agent"), "aws-sdk-go-v2/") {
			t.Errorf("not the SDK: %q", r.Header.Get("User-Agent"))
		}
		a.handler.ServeHTTP(w, r)
	}))
	transport := a.Client.Transport.(*http.Transport).Clone()
	transport.DialContext = func(ctx context.Context, network, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, strings.TrimPrefix(server.URL(), "https://"))
	}
	t.Cleanup(transport.CloseIdleConnections)
	options := sdksts.New(sdksts.Options{
		Region: "eu-central-1", BaseEndpoint: awssdk.String(server.URL()), HTTPClient: &http.Client{Transport: transport},
	}).Options() // with the SDK's defaults
	options.Retryer = noDelay{options.Retryer}
	return sdksts.New(options), &requests
}

// TestSDKRetries counts how often the SDK asks: the classes of errors are its
// own, of the service's client and of the web identity provider above it.
func TestSDKRetries(t *testing.T) {
	a := newAccount(t)
	gone := a.NewIssuer(t)
	cfg := a.config()
	cfg.Providers = append(cfg.Providers, Provider{URL: gone.URL, ClientIDs: []string{testAudience}})
	cfg.Client = &http.Client{Transport: refuse{a.Client.Transport, strings.TrimPrefix(gone.URL, "https://")}}
	var err error
	if a.handler, err = New(cfg); err != nil {
		t.Fatal(err)
	}
	large := map[string]any{}
	for _, letter := range "abcdefghijklmnopqrstuvwxyz" {
		large[string(letter)] = []string{randomBase64(150)} // of 200 characters
	}
	const tagged = "arn:aws:iam::123456789012:role/tagged"
	for _, test := range []struct {
		name     string
		token    string
		change   func(*stscreds.WebIdentityRoleOptions)
		role     string
		code     string
		requests int64 // of the provider
	}{
		{"control", a.token(t, nil), nil, testRole, "", 1},
		{"audience", a.token(t, map[string]any{"aud": "vault"}), nil, testRole, "InvalidIdentityToken", 3},
		{"issuer unreachable", a.token(t, map[string]any{"iss": gone.URL}), nil, testRole, "IDPCommunicationError", 1}, // 3 from some later version than service/sts v1.33.19 on
		{"sub null", a.token(t, map[string]any{"sub": json.RawMessage("null")}), nil, testRole, "InternalFailure", 3},
		{"expired", a.token(t, map[string]any{"exp": a.Clock.Now().Add(-time.Hour).Unix()}), nil, testRole, "ExpiredTokenException", 1},
		{"subject", a.token(t, map[string]any{"sub": "system:serviceaccount:demo:other"}), nil, testRole, "AccessDenied", 1},
		{"tags", a.token(t, nestedTags(large)), nil, tagged, "PackedPolicyTooLarge", 1},
		{"session policy", a.token(t, nil), func(o *stscreds.WebIdentityRoleOptions) { o.Policy = awssdk.String("{}") }, testRole, "MalformedPolicyDocument", 1},
		{"session name", a.token(t, nil), func(o *stscreds.WebIdentityRoleOptions) { o.RoleSessionName = "a b" }, testRole, "ValidationError", 1},
		{"duration", a.token(t, nil), func(o *stscreds.WebIdentityRoleOptions) { o.Duration = 3 * time.Hour }, testRole, "ValidationError", 1},
	} {
		t.Run(test.name, func(t *testing.T) {
			client, requests := a.counted(t)
			provider := stscreds.NewWebIdentityRoleProvider(client, test.role, tokenFrom(test.token), func(o *stscreds.WebIdentityRoleOptions) {
				if test.change != nil {
					test.change(o)
				}
			})
			_, err := provider.Retrieve(t.Context())
			if code := codeOf(err); code != test.code || requests.Load() != test.requests {
				t.Errorf("%q after %d requests, want %q after %d: %v", code, requests.Load(), test.code, test.requests, err)
			}
		})
	}
}

// TestSDKRetriesOfClient is what the service's client does alone: it takes
// InvalidIdentityToken for final.
func TestSDKRetriesOfClient(t *testing.T) {
	a := newAccount(t)
	for _, test := range []struct {
		name    string
		token   string
		change  func(*sdksts.AssumeRoleWithWebIdentityInput)
		options func(*sdksts.Options)
		code    string
	}{
		{"control", a.token(t, nil), nil, nil, ""},
		{"audience", a.token(t, map[string]any{"aud": "vault"}), nil, nil, "InvalidIdentityToken"},
		{"provider", a.token(t, nil), func(i *sdksts.AssumeRoleWithWebIdentityInput) { i.ProviderId = awssdk.String("www.amazon.com") }, nil, "IDPRejectedClaim"},
		{"region", a.token(t, nil), nil, func(o *sdksts.Options) { o.Region, o.BaseEndpoint = "ap-east-1", nil }, "RegionDisabledException"},
	} {
		t.Run(test.name, func(t *testing.T) {
			client, requests := a.counted(t)
			input := &sdksts.AssumeRoleWithWebIdentityInput{RoleArn: awssdk.String(testRole), RoleSessionName: awssdk.String("session"), WebIdentityToken: &test.token}
			if test.change != nil {
				test.change(input)
			}
			_, err := client.AssumeRoleWithWebIdentity(t.Context(), input, func(o *sdksts.Options) {
				if test.options != nil {
					test.options(o)
				}
			})
			if code := codeOf(err); code != test.code || requests.Load() != 1 {
				t.Errorf("%q after %d requests, want %q after one: %v", code, requests.Load(), test.code, err)
			}
		})
	}
}

func codeOf(err error) string {
	var apiError smithy.APIError
	if !errors.As(err, &apiError) {
		return ""
	}
	return apiError.ErrorCode()
}

// refuse is a transport to which one host is not reachable.
type refuse struct {
	http.RoundTripper
	host string
}

func (r refuse) RoundTrip(request *http.Request) (*http.Response, error) {
	if request.URL.Host == r.host {
		return nil, errors.New("connection refused")
	}
	return r.RoundTripper.RoundTrip(request)
}
