package vault

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/hashicorp/vault/api"
)

// clientTimeout bounds one request to Vault.
const clientTimeout = 30 * time.Second

// NewClient returns a client of the Vault at address that uses the HTTP client
// as it is, with the two exceptions that it follows no redirect and repeats no
// request. It has no token. What VAULT_* variables say has no effect on it, but
// vault/api reads them nevertheless and refuses to work if one is broken.
func NewClient(address string, client *http.Client) (*api.Client, error) {
	direct := *client
	direct.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	c, err := api.NewClient(&api.Config{
		Address:          address,
		HttpClient:       &direct,
		DisableRedirects: true,
		MaxRetries:       0,
		Timeout:          clientTimeout,
	})
	if err != nil {
		return nil, fmt.Errorf("vault: client: %w; if a VAULT_* variable is the cause, unset it", err)
	}
	c.ClearToken()
	c.SetHeaders(http.Header{api.RequestHeaderName: {"true"}}) // drops VAULT_NAMESPACE and VAULT_HEADERS
	c.SetWrappingLookupFunc(func(string, string) string { return "" })
	return c, nil
}

// plain turns Vault's answer, of which vault/api makes a page, into one line.
func plain(err error) error {
	var answer *api.ResponseError
	if !errors.As(err, &answer) {
		return err
	}
	return fmt.Errorf("status %d: %s", answer.StatusCode, strings.Join(answer.Errors, "; "))
}
