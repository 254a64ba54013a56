package exchange

import (
	"context"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/cloud"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"
)

const azureParty = "azure"

// AzureTarget is an application of a Microsoft Entra tenant.
type AzureTarget struct {
	Authority string // an origin, such as "https://127.0.0.1:41733"
	Tenant    string // a UUID
	ClientID  string // a UUID
	Scope     string // a resource and "/.default", such as "https://storage.azure.com/.default"
	Client    *http.Client
}

// AzureResult is an access token.
type AzureResult struct {
	AccessToken string    `json:"access_token"`
	Expiry      time.Time `json:"expiry"` // by this machine's clock: the answer has a lifetime only
}

// Azure exchanges a token for an access token: it is the client assertion of
// the client credentials grant (Microsoft identity platform, "Access token
// request with a federated credential"). It makes two requests, the first one
// for the tenant's OpenID configuration. The code of a refusal is an AADSTS one.
//
// AZURE_REGIONAL_AUTHORITY_NAME, which the SDK always reads, makes it fail.
func Azure(ctx context.Context, target AzureTarget, token string) (AzureResult, error) {
	if err := secure(azureParty, target.Authority); err != nil {
		return AzureResult{}, err
	}
	client, seen, err := watch(ctx, target.Client, target.Authority)
	if err != nil {
		return AzureResult{}, fmt.Errorf("azure: %w", err)
	}
	credential, err := azidentity.NewClientAssertionCredential(target.Tenant, target.ClientID,
		func(context.Context) (string, error) { return token, nil },
		&azidentity.ClientAssertionCredentialOptions{
			ClientOptions: policy.ClientOptions{
				Cloud:     cloud.Configuration{ActiveDirectoryAuthorityHost: target.Authority},
				Retry:     policy.RetryOptions{MaxRetries: -1}, // none
				Transport: client,
			},
			DisableInstanceDiscovery: true, // would be at Microsoft
		})
	if err != nil {
		return AzureResult{}, fmt.Errorf("azure: %w", err)
	}
	granted, err := credential.GetToken(ctx, policy.TokenRequestOptions{Scopes: []string{target.Scope}})
	if err != nil {
		return AzureResult{}, seen.failure(azureParty, err, entraError, token)
	}
	if granted.Token == "" {
		return AzureResult{}, errors.New("azure: the answer has no access token")
	}
	return AzureResult{AccessToken: granted.Token, Expiry: granted.ExpiresOn}, nil
}

// postscript are the ids and the time at the end of messages of Entra and of
// Blob Storage.
var postscript = regexp.MustCompile(`(?s)\s*(Trace ID: .*|RequestId:.*)$`)

// entraError reads an error of Entra ("Microsoft Entra authentication and
// authorization error codes").
func entraError(body []byte) (code, message string) {
	var answer struct {
		Codes []int `json:"error_codes"`
	}
	code, message = oauthError(body)
	if err := json.Unmarshal(body, &answer); err == nil && len(answer.Codes) > 0 {
		code = "AADSTS" + strconv.Itoa(answer.Codes[0])
	}
	return code, postscript.ReplaceAllString(message, "")
}

// storageVersion is a version of the storage services that takes bearer tokens
// (Azure Storage, "Authorize with Microsoft Entra ID").
const storageVersion = "2021-08-06"

// ReadBlob reads a blob with an access token (Blob Storage REST API, Get Blob).
// The URL is that of the blob service, without a slash at its end; the name of a
// blob may have slashes. The code of a refusal is that of Azure Storage.
func ReadBlob(ctx context.Context, client *http.Client, serviceURL, accessToken, container, blob string) ([]byte, error) {
	path := (&url.URL{Path: "/" + container + "/" + blob}).EscapedPath()
	return use(ctx, client, azureParty, serviceURL+path, accessToken, http.Header{"X-Ms-Version": {storageVersion}}, storageError)
}

// storageError reads an error of Azure Storage ("Status and error codes").
func storageError(body []byte) (code, message string) {
	var answer struct {
		XMLName xml.Name `xml:"Error"`
		Code    string
		Message string
		Detail  string `xml:"AuthenticationErrorDetail"`
	}
	if err := xml.Unmarshal(body, &answer); err != nil {
		return "", string(body)
	}
	return answer.Code, strings.TrimSpace(postscript.ReplaceAllString(answer.Message, "") + " " + answer.Detail)
}
