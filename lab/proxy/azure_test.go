package proxy

import (
	"context"
	"io"
	"net/http"
	"testing"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/runtime"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"

	"github.com/oidclab/oidclab/lab/sts/azure"
)

const (
	azureTenant = "11111111-2222-4333-8444-555555555555"
	azureClient = "66666666-7777-4888-8999-aaaaaaaaaaaa"
)

// readBlob reads a blob with the credential that applications use by default,
// without any options.
func readBlob(ctx context.Context) (string, error) {
	credential, err := azidentity.NewDefaultAzureCredential(nil)
	if err != nil {
		return "", err
	}
	bearer := runtime.NewBearerTokenPolicy(credential, []string{"https://storage.azure.com/.default"}, nil)
	pipeline := runtime.NewPipeline("oidclab", "test", runtime.PipelineOptions{PerRetry: []policy.Policy{bearer}}, nil)
	request, err := runtime.NewRequest(ctx, http.MethodGet, "https://demo.blob.core.windows.net/container/hello.txt")
	if err != nil {
		return "", err
	}
	request.Raw().Header.Set("X-Ms-Version", "2021-08-06")
	response, err := pipeline.Do(request)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	return string(body), err
}

func TestAzure(t *testing.T) {
	c := newCluster(t)
	server := c.listen(t) // where the persona fetches the keys of its own access tokens
	handler, err := azure.New(azure.Config{
		URL: server.URL(), Tenant: azureTenant,
		Applications: []azure.Application{{ClientID: azureClient, Credentials: []azure.FederatedCredential{{Name: "demo", Issuer: c.issuer, Subject: subject}}}},
		Containers:   []azure.Container{{Name: "container", Blobs: map[string][]byte{"hello.txt": []byte("hello")}, Readers: []string{azureClient}}},
		Client:       c.client, Clock: c.clock,
	})
	if err != nil {
		t.Fatal(err)
	}
	server.Serve(handler)
	l := startWith(t, c.ca, nil, Host{Pattern: "login.microsoftonline.com", Handler: handler}, Host{Pattern: "*.blob.core.windows.net", Handler: handler})
	token := c.token(t, azure.Audience)
	got := l.run(t, "azure",
		"AZURE_AUTHORITY_HOST=https://login.microsoftonline.com/",
		"AZURE_CLIENT_ID="+azureClient,
		"AZURE_TENANT_ID="+azureTenant,
		"AZURE_FEDERATED_TOKEN_FILE="+file(t, []byte(token)),
	)
	if got.Got != "hello" {
		t.Errorf("got %+v", got)
	}
	l.clean(t, token)
}
