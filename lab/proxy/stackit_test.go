package proxy

import (
	"context"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/stackitcloud/stackit-sdk-go/core/auth"
	"github.com/stackitcloud/stackit-sdk-go/core/config"

	"github.com/oidclab/oidclab/lab/sts/stackit"
)

const (
	stackitEmail   = "demo@sa.stackit.cloud"
	stackitProject = "11111111-2222-4333-8444-555555555555"
)

// readProject asks the resource manager for a project.
func readProject(ctx context.Context) (string, error) {
	transport, err := auth.SetupAuth(&config.Configuration{})
	if err != nil {
		return "", err
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://resource-manager.api.stackit.cloud/v2/projects/"+stackitProject, nil)
	if err != nil {
		return "", err
	}
	response, err := (&http.Client{Transport: transport}).Do(request)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	return string(body), err
}

func TestSTACKIT(t *testing.T) {
	c := newCluster(t)
	server := c.listen(t) // where the persona fetches the keys of its own access tokens
	handler, err := stackit.New(stackit.Config{
		URL: server.URL(),
		Accounts: []stackit.ServiceAccount{{Email: stackitEmail, Providers: []stackit.Provider{{Name: "demo", Issuer: c.issuer, Assertions: []stackit.Assertion{
			{Item: "aud", Operator: "equals", Value: stackit.Audience},
			{Item: "sub", Operator: "equals", Value: subject},
		}}}}},
		Projects: []stackit.Project{{ID: stackitProject, Name: "demo", Readers: []string{stackitEmail}}},
		Client:   c.client, Clock: c.clock,
	})
	if err != nil {
		t.Fatal(err)
	}
	server.Serve(handler)
	l := startWith(t, c.ca, nil, Host{Pattern: "accounts.stackit.cloud", Handler: handler}, Host{Pattern: "*.api.stackit.cloud", Handler: handler})
	token := c.token(t, stackit.Audience)
	got := l.run(t, "stackit", "STACKIT_SERVICE_ACCOUNT_EMAIL="+stackitEmail, "STACKIT_FEDERATED_TOKEN_FILE="+file(t, []byte(token)))
	if !strings.Contains(got.Got, `"ACTIVE"`) {
		t.Errorf("got %+v", got)
	}
	l.clean(t, token)
}
