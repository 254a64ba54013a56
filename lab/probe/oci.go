package probe

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"strings"

	"github.com/oracle/oci-go-sdk/v65/common"
	ociauth "github.com/oracle/oci-go-sdk/v65/common/auth"
	"github.com/oracle/oci-go-sdk/v65/objectstorage"
)

// ociTokenFile returns the token that every pod has, unless a variable names
// another one: the SDK takes the path from code only.
func ociTokenFile(c Config) (string, error) {
	return variable("OIDCLAB_OCI_POD_TOKEN_FILE", ociauth.KubernetesServiceAccountTokenPath)(c)
}

// useOCI uses the workload identity of OKE's pods. The SDK takes no context for it.
func useOCI(ctx context.Context, c Config) (identity, content string, err error) {
	file, err := ociTokenFile(c)
	if err != nil {
		return "", "", err
	}
	provider, err := ociauth.OkeWorkloadIdentityConfigurationProviderWithServiceAccountTokenProvider(
		ociauth.NewDefaultServiceAccountTokenProvider().WithSaTokenPath(file))
	if err != nil {
		return "", "", err
	}
	principal, err := provider.GetClaim("sub")
	if err != nil {
		return "", "", err
	}
	if c.Resource != "" {
		if content, err = readOCIObject(ctx, provider, c.Resource); err != nil {
			return "", "", err
		}
	}
	identity, _ = principal.(string)
	return identity, content, nil
}

func readOCIObject(ctx context.Context, provider common.ConfigurationProvider, resource string) (_ string, err error) {
	host, request, err := parseOCIObject(resource)
	if err != nil {
		return "", err
	}
	client, err := objectstorage.NewObjectStorageClientWithConfigurationProvider(provider)
	if err != nil {
		return "", err
	}
	client.Host = host
	object, err := client.GetObject(ctx, request)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, object.Content.Close()) }()
	body, err := io.ReadAll(io.LimitReader(object.Content, maxContent))
	return string(body), err
}

// parseOCIObject takes the URL of an object apart, whose name may have slashes.
func parseOCIObject(resource string) (host string, request objectstorage.GetObjectRequest, err error) {
	u, err := url.Parse(resource)
	if err != nil {
		return "", request, err
	}
	parts := strings.SplitN(u.Path, "/", 7)
	if u.Scheme != "https" || u.Host == "" || len(parts) != 7 || parts[1] != "n" || parts[3] != "b" || parts[5] != "o" || parts[2] == "" || parts[4] == "" || parts[6] == "" {
		return "", request, fmt.Errorf("the resource %q is not https://HOST/n/NAMESPACE/b/BUCKET/o/OBJECT", resource)
	}
	return u.Scheme + "://" + u.Host, objectstorage.GetObjectRequest{NamespaceName: &parts[2], BucketName: &parts[4], ObjectName: &parts[6]}, nil
}
