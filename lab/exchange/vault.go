package exchange

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/hashicorp/vault/api"

	"github.com/oidclab/oidclab/lab/vault"
)

const vaultParty = "vault"

// VaultTarget is a role of one of Vault's auth methods.
type VaultTarget struct {
	Address string // an origin, such as "https://127.0.0.1:41733"
	Mount   string // the auth method's path below auth/, such as "jwt-c1"
	Role    string
	Client  *http.Client
}

// VaultResult is a login. Its names are those of Vault's API.
type VaultResult struct {
	ClientToken   string            `json:"client_token"`
	Accessor      string            `json:"accessor"`
	Policies      []string          `json:"policies"`
	Metadata      map[string]string `json:"metadata,omitempty"`
	EntityID      string            `json:"entity_id,omitempty"`
	LeaseDuration int               `json:"lease_duration"` // seconds
	Renewable     bool              `json:"renewable"`
}

// VaultSecret is a secret of a KV version 2 store.
type VaultSecret struct {
	Data    map[string]any `json:"data"`
	Version int64          `json:"version"`
}

// VaultJWT exchanges a token for one of Vault at a JWT auth method: Vault
// verifies it with the issuer's keys. It makes one request, whatever the answer.
func VaultJWT(ctx context.Context, target VaultTarget, token string) (VaultResult, error) {
	return login(ctx, target, token)
}

// VaultKubernetes exchanges a token for one of Vault at a Kubernetes auth
// method: Vault has the cluster review it. It makes one request, whatever the
// answer.
func VaultKubernetes(ctx context.Context, target VaultTarget, token string) (VaultResult, error) {
	return login(ctx, target, token)
}

// login makes the request that is the same at both methods.
func login(ctx context.Context, target VaultTarget, token string) (VaultResult, error) {
	client, err := target.client("")
	if err != nil {
		return VaultResult{}, err
	}
	answer, err := client.Logical().WriteWithContext(ctx, "auth/"+target.Mount+"/login", map[string]any{
		"role": target.Role,
		"jwt":  token,
	})
	if err != nil {
		return VaultResult{}, vaultError(err, token)
	}
	if answer == nil || answer.Auth == nil || answer.Auth.ClientToken == "" {
		return VaultResult{}, errors.New("vault: the answer to the login has no token")
	}
	return VaultResult{
		ClientToken:   answer.Auth.ClientToken,
		Accessor:      answer.Auth.Accessor,
		Policies:      answer.Auth.Policies,
		Metadata:      answer.Auth.Metadata,
		EntityID:      answer.Auth.EntityID,
		LeaseDuration: answer.Auth.LeaseDuration,
		Renewable:     answer.Auth.Renewable,
	}, nil
}

// ReadSecret reads a secret of a KV version 2 store with a Vault token. The
// path is that of the API, such as "secret/data/demo/greeting". Mount and role
// of the target do not matter. A secret that is not there is a refusal with
// status 404.
func ReadSecret(ctx context.Context, target VaultTarget, clientToken, path string) (VaultSecret, error) {
	client, err := target.client(clientToken)
	if err != nil {
		return VaultSecret{}, err
	}
	answer, err := client.Logical().ReadWithContext(ctx, path)
	if err != nil {
		return VaultSecret{}, vaultError(err, clientToken)
	}
	if answer == nil {
		return VaultSecret{}, answered(vaultParty, http.StatusNotFound, "", "there is nothing at "+path)
	}
	data, ok := answer.Data["data"].(map[string]any)
	if !ok {
		return VaultSecret{}, fmt.Errorf("vault: %s is not a secret of a KV version 2 store, or was deleted", path)
	}
	secret := VaultSecret{Data: data}
	metadata, _ := answer.Data["metadata"].(map[string]any)
	if version, ok := metadata["version"].(json.Number); ok {
		secret.Version, _ = version.Int64() // informative only
	}
	return secret, nil
}

func (t VaultTarget) client(token string) (*api.Client, error) {
	if err := secure(vaultParty, t.Address); err != nil {
		return nil, err
	}
	client, err := vault.NewClient(t.Address, t.Client)
	if err != nil {
		return nil, err
	}
	client.SetToken(token)
	return client, nil
}

func vaultError(err error, secrets ...string) error {
	var answer *api.ResponseError
	if errors.As(err, &answer) {
		return answered(vaultParty, answer.StatusCode, "", strings.Join(answer.Errors, "; "), secrets...)
	}
	return fmt.Errorf("vault: %w", err)
}
