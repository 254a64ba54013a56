package proxy

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"testing"

	adc "cloud.google.com/go/auth/credentials"
	"golang.org/x/oauth2/google"

	"github.com/oidclab/oidclab/lab/sts/gcp"
)

const (
	gcpProject = "123456789012"
	gcpAccount = "demo@oidclab.iam.gserviceaccount.com"
	gcpScope   = "https://www.googleapis.com/auth/cloud-platform"
)

// readObject reads an object with the application default credentials of
// cloud.google.com/go/auth.
func readObject(ctx context.Context) (string, error) {
	found, err := adc.DetectDefault(&adc.DetectOptions{Scopes: []string{gcpScope}})
	if err != nil {
		return "", err
	}
	token, err := found.Token(ctx)
	if err != nil {
		return "", err
	}
	return getObject(ctx, token.Value)
}

// readObjectOAuth2 does the same with golang.org/x/oauth2/google.
func readObjectOAuth2(ctx context.Context) (string, error) {
	source, err := google.DefaultTokenSource(ctx, gcpScope)
	if err != nil {
		return "", err
	}
	token, err := source.Token()
	if err != nil {
		return "", err
	}
	return getObject(ctx, token.AccessToken)
}

func getObject(ctx context.Context, accessToken string) (string, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://storage.googleapis.com/storage/v1/b/demo/o/hello?alt=media", nil)
	if err != nil {
		return "", err
	}
	request.Header.Set("Authorization", "Bearer "+accessToken)
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	return string(body), err
}

func TestGCP(t *testing.T) {
	c := newCluster(t)
	member := gcp.Principal(gcpProject, "clusters", subject)
	handler, err := gcp.New(gcp.Config{
		ProjectNumber: gcpProject,
		Pools: []gcp.Pool{{ID: "clusters", Providers: []gcp.Provider{{
			ID: "demo", IssuerURI: c.issuer, AttributeMapping: map[string]string{"google.subject": "assertion.sub"},
		}}}},
		ServiceAccounts: []gcp.ServiceAccount{{Email: gcpAccount, Policy: []gcp.Binding{{Role: gcp.RoleWorkloadIdentityUser, Members: []string{member}}}}},
		Buckets: []gcp.Bucket{{
			Name: "demo", Objects: map[string][]byte{"hello": []byte("hello")},
			Policy: []gcp.Binding{{Role: gcp.RoleObjectViewer, Members: []string{gcp.ServiceAccountMember(gcpAccount)}}},
		}},
		Client: c.client, Clock: c.clock,
	})
	if err != nil {
		t.Fatal(err)
	}
	audience := gcp.Audience(gcpProject, "clusters", "demo")
	token := c.token(t, "https:"+audience)
	// As gcloud iam workload-identity-pools create-cred-config writes it.
	credentials, err := json.Marshal(map[string]any{
		"universe_domain":                   "googleapis.com",
		"type":                              "external_account",
		"audience":                          audience,
		"subject_token_type":                "urn:ietf:params:oauth:token-type:jwt",
		"token_url":                         "https://sts.googleapis.com/v1/token",
		"service_account_impersonation_url": "https://iamcredentials.googleapis.com/v1/projects/-/serviceAccounts/" + gcpAccount + ":generateAccessToken",
		"credential_source":                 map[string]any{"file": file(t, []byte(token)), "format": map[string]string{"type": "text"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, application := range []string{"gcp", "gcp-oauth2"} {
		t.Run(application, func(t *testing.T) {
			l := startWith(t, c.ca, nil, Host{Pattern: "sts.googleapis.com", Handler: handler}, Host{Pattern: "iamcredentials.googleapis.com", Handler: handler}, Host{Pattern: "storage.googleapis.com", Handler: handler})
			if got := l.run(t, application, "GOOGLE_APPLICATION_CREDENTIALS="+file(t, credentials)); got.Got != "hello" {
				t.Errorf("got %+v", got)
			}
			l.clean(t, token)
		})
	}
}
