package e2e

import (
	"context"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/oracle/oci-go-sdk/v65/common"
	ociauth "github.com/oracle/oci-go-sdk/v65/common/auth"
	"github.com/oracle/oci-go-sdk/v65/objectstorage"

	"github.com/oidclab/oidclab/fixtures"
	"github.com/oidclab/oidclab/lab"
)

// readAsServiceUser exchanges the workload's token at the identity domain with
// the given URL, or - for that of the lab, and reads with Oracle's client of
// object storage.
func readAsServiceUser(ctx context.Context, domain string) (string, error) {
	secret, err := os.ReadFile(os.Getenv("OIDCLAB_OCI_CLIENT_SECRET_FILE"))
	if err != nil {
		return "", err
	}
	storage := ""
	if domain == "-" {
		domain, storage = os.Getenv("OIDCLAB_OCI_URL"), os.Getenv("OIDCLAB_OCI_URL")
	}
	identity, err := ociauth.TokenExchangeConfigurationProviderFromIssuer(ociTokenFile(os.Getenv("OIDCLAB_OCI_TOKEN_FILE")), ociauth.TokenExchangeBuilder{
		DomainUrl: domain, ClientId: os.Getenv("OIDCLAB_OCI_CLIENT_ID"), ClientSecret: string(secret), Region: "us-ashburn-1",
		RequestedTokenType: "urn:oci:token-type:oci-upst", SubjectTokenType: "jwt",
	})
	if err != nil {
		return "", err
	}
	return readOCIObject(ctx, identity, storage)
}

// ociTokenFile is where the SDK gets the workload's token from.
type ociTokenFile string

func (f ociTokenFile) GetToken() (string, error) {
	content, err := os.ReadFile(string(f))
	return string(content), err
}

// readOCIObject reads from the storage at the given URL; empty means the
// vendor's.
func readOCIObject(ctx context.Context, identity common.ConfigurationProvider, storage string) (string, error) {
	client, err := objectstorage.NewObjectStorageClientWithConfigurationProvider(identity)
	if err != nil {
		return "", err
	}
	if storage != "" {
		client.Host = storage
	}
	namespace, err := client.GetNamespace(ctx, objectstorage.GetNamespaceRequest{})
	if err != nil {
		return "", err
	}
	got, err := client.GetObject(ctx, objectstorage.GetObjectRequest{
		NamespaceName: namespace.Value, BucketName: common.String(fixtures.Bucket), ObjectName: common.String(fixtures.Object),
	})
	if err != nil {
		return "", err
	}
	defer func() { _ = got.Content.Close() }()
	content, err := io.ReadAll(got.Content)
	return string(content), err
}

// testOCI runs unmodified applications with nothing in their environment but
// what `env` prints, and once more under the proxy with the vendor's URLs.
func testOCI(t *testing.T, u *user, info lab.Info) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct{ party, domain string }{
		{"oci", "-"},
		{"proxy", "https://idcs-0000.identity.oraclecloud.com"},
	} {
		t.Run("oci for "+test.party, func(t *testing.T) {
			home := "HOME=" + t.TempDir()
			command := exec.Command(self, test.domain)
			command.Env = append([]string{applicationVariable + "=oci", home}, environmentOf(t, u, test.party)...)
			if got, err := ask(command); err != nil || strings.TrimSpace(got) != fixtures.ObjectContent {
				t.Errorf("got %q: %v", got, err)
			}
			refused := exec.Command(binary, "run", "--name", labName, "--serviceaccount", fixtures.OtherServiceAccount, "--for", test.party, "--", self, test.domain)
			refused.Env = append(u.env(), applicationVariable+"=oci", home)
			if got, err := ask(refused); err == nil || !strings.Contains(err.Error(), "invalid token endpoint response 400") {
				t.Errorf("an account that nobody trusts got %q, %v", got, err)
			}
		})
	}
}
