package probe

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"

	googlecredentials "cloud.google.com/go/auth/credentials"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"
	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/sts"
	"github.com/hashicorp/vault/api"
	"github.com/stackitcloud/stackit-sdk-go/core/auth"
	"github.com/stackitcloud/stackit-sdk-go/core/clients"
	stackitconfig "github.com/stackitcloud/stackit-sdk-go/core/config"
	authenticationv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/oidclab/oidclab/lab/exchange"
)

// useAWS asks who it is, with the default credential chain.
func useAWS(ctx context.Context, c Config) (identity, content string, err error) {
	cfg, err := config.LoadDefaultConfig(ctx)
	if err != nil {
		return "", "", err
	}
	answer, err := sts.NewFromConfig(cfg).GetCallerIdentity(ctx, nil)
	if err != nil {
		return "", "", err
	}
	if c.Resource != "" {
		if content, err = readS3(ctx, cfg, c.Resource); err != nil {
			return "", "", err
		}
	}
	return aws.ToString(answer.Arn), content, nil
}

func readS3(ctx context.Context, cfg aws.Config, resource string) (_ string, err error) {
	path, ok := strings.CutPrefix(resource, "s3://")
	bucket, key, found := strings.Cut(path, "/")
	if !ok || !found || bucket == "" || key == "" {
		return "", fmt.Errorf("the resource %q is not s3://BUCKET/KEY", resource)
	}
	object, err := s3.NewFromConfig(cfg).GetObject(ctx, &s3.GetObjectInput{Bucket: &bucket, Key: &key})
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, object.Body.Close()) }()
	body, err := io.ReadAll(io.LimitReader(object.Body, maxContent))
	return string(body), err
}

// googleFile is what the probe needs of an external_account credential file.
type googleFile struct {
	Audience         string `json:"audience"`
	ImpersonationURL string `json:"service_account_impersonation_url"`
	Source           struct {
		File string `json:"file"`
	} `json:"credential_source"`
}

func readGoogleFile(c Config) (file googleFile, err error) {
	path, err := c.required("GOOGLE_APPLICATION_CREDENTIALS")
	if err != nil {
		return file, err
	}
	content, err := os.ReadFile(path[0])
	if err != nil {
		return file, err
	}
	return file, json.Unmarshal(content, &file)
}

func gcpTokenFile(c Config) (string, error) {
	file, err := readGoogleFile(c)
	return file.Source.File, err
}

// useGCP uses the application default credentials.
func useGCP(ctx context.Context, c Config) (identity, content string, err error) {
	found, err := googlecredentials.DetectDefault(&googlecredentials.DetectOptions{Scopes: []string{"https://www.googleapis.com/auth/cloud-platform"}})
	if err != nil {
		return "", "", err
	}
	token, err := found.Token(ctx)
	if err != nil {
		return "", "", err
	}
	file, err := readGoogleFile(c)
	if err != nil {
		return "", "", err
	}
	identity = file.Audience
	if _, account, impersonated := strings.Cut(file.ImpersonationURL, "/serviceAccounts/"); impersonated {
		identity, _, _ = strings.Cut(account, ":")
	}
	content, err = fetch(ctx, http.DefaultClient, c.Resource, token.Value, nil)
	return identity, content, err
}

// useAzure uses workload identity, with nothing but the environment and the one
// option that cannot be had by it.
func useAzure(ctx context.Context, c Config) (identity, content string, err error) {
	credential, err := azidentity.NewWorkloadIdentityCredential(&azidentity.WorkloadIdentityCredentialOptions{DisableInstanceDiscovery: c.DisableInstanceDiscovery})
	if err != nil {
		return "", "", err
	}
	token, err := credential.GetToken(ctx, policy.TokenRequestOptions{Scopes: []string{"https://storage.azure.com/.default"}})
	if err != nil {
		return "", "", err
	}
	content, err = fetch(ctx, http.DefaultClient, c.Resource, token.Token, http.Header{"X-Ms-Version": {"2021-08-06"}})
	return claim(token.Token, "appid"), content, err
}

// useSTACKIT uses the SDK's authenticated transport.
func useSTACKIT(ctx context.Context, c Config) (identity, content string, err error) {
	transport, err := auth.SetupAuth(&stackitconfig.Configuration{})
	if err != nil {
		return "", "", err
	}
	flow, ok := transport.(*clients.WorkloadIdentityFederationFlow)
	if !ok {
		return "", "", fmt.Errorf("the SDK does not federate, but uses %T", transport)
	}
	token, err := flow.GetAccessToken()
	if err != nil {
		return "", "", err
	}
	content, err = fetch(ctx, &http.Client{Transport: transport}, c.Resource, "", nil)
	return claim(token, "email"), content, err
}

// useVault logs in at a JWT auth method, and asks who it is.
func useVault(ctx context.Context, c Config) (identity, content string, err error) {
	settings, err := c.required("OIDCLAB_VAULT_MOUNT", "OIDCLAB_VAULT_ROLE", "OIDCLAB_VAULT_TOKEN_FILE")
	if err != nil {
		return "", "", err
	}
	client, err := api.NewClient(nil) // by VAULT_ADDR and VAULT_CACERT
	if err != nil {
		return "", "", err
	}
	token, err := os.ReadFile(settings[2])
	if err != nil {
		return "", "", err
	}
	login, err := client.Logical().WriteWithContext(ctx, "auth/"+settings[0]+"/login", map[string]any{"role": settings[1], "jwt": string(token)})
	if err != nil {
		return "", "", err
	}
	client.SetToken(login.Auth.ClientToken)
	self, err := client.Auth().Token().LookupSelfWithContext(ctx)
	if err != nil {
		return "", "", err
	}
	identity, _ = self.Data["display_name"].(string)
	if c.Resource == "" {
		return identity, "", nil
	}
	secret, err := client.Logical().ReadWithContext(ctx, c.Resource)
	if err != nil {
		return "", "", err
	}
	if secret == nil {
		return "", "", fmt.Errorf("there is nothing at %s", c.Resource)
	}
	data, err := json.Marshal(secret.Data["data"])
	return identity, string(data), err
}

// useGeneric exchanges the token by RFC 8693, for which no vendor has an SDK.
func useGeneric(ctx context.Context, c Config) (identity, content string, err error) {
	settings, err := c.required("OIDCLAB_TOKEN_URL", "OIDCLAB_TOKEN_FILE", "OIDCLAB_TARGET", "OIDCLAB_CA_FILE")
	if err != nil {
		return "", "", err
	}
	token, err := os.ReadFile(settings[1])
	if err != nil {
		return "", "", err
	}
	ca, err := os.ReadFile(settings[3])
	if err != nil {
		return "", "", err
	}
	client, err := exchange.NewClient(ca)
	if err != nil {
		return "", "", err
	}
	defer client.CloseIdleConnections()
	granted, err := exchange.Generic(ctx, exchange.GenericTarget{TokenURL: settings[0], Audience: settings[2], Client: client}, string(token))
	if err != nil {
		return "", "", err
	}
	content, err = fetch(ctx, client, c.Resource, granted.AccessToken, nil)
	return claim(granted.AccessToken, "sub"), content, err
}

// useKubernetes asks the cluster that the pod runs in who it is, as client-go finds
// it there: with the token that is mounted unless automountServiceAccountToken
// says no.
func useKubernetes(ctx context.Context, _ Config) (identity, content string, err error) {
	config, err := rest.InClusterConfig()
	if err != nil {
		return "", "", err
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return "", "", err
	}
	review, err := client.AuthenticationV1().SelfSubjectReviews().Create(ctx, &authenticationv1.SelfSubjectReview{}, metav1.CreateOptions{})
	if err != nil {
		return "", "", err
	}
	return review.Status.UserInfo.Username, "", nil
}
