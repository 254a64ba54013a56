// Package probe is the workload of the lab's pods: it does what an application
// does that uses a vendor's SDK and knows nothing of the lab. The SDK finds its
// settings and its token by itself, in its default configuration; what it gets
// is used, and one line says who the workload has become.
//
// The SDKs read the environment of the process, which is their job. What they
// do not read comes with [Config].
package probe

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
)

// maxContent bounds what is read of a resource, in bytes.
const maxContent = 64 << 10

// Config is what SDKs do not find by themselves.
type Config struct {
	// Getenv returns an environment variable, or "".
	Getenv func(name string) string
	// Resource is what to read with the credentials; empty means nothing. It is
	// an https URL for gcp, azure, stackit, generic and oci (of an object), s3://BUCKET/KEY
	// for aws, and an API path such as secret/data/NAME for vault. kubernetes reads
	// nothing.
	Resource string
	// DisableInstanceDiscovery is azidentity's option of that name, without which
	// it asks Microsoft about an authority that it does not know.
	DisableInstanceDiscovery bool
}

// Result is what came of a probe. It holds neither token nor credentials.
type Result struct {
	Party    string `json:"party"`
	Identity string `json:"identity,omitempty"` // who the workload is to the relying party
	Resource string `json:"resource,omitempty"` // what was read
	Content  string `json:"content,omitempty"`  // of it
	Token    *Token `json:"token,omitempty"`    // what the token file held at the time; nil if it could not be read
	Error    string `json:"error,omitempty"`    // the SDK's
}

// Token is what a service-account token says. It is not verified: that is what
// relying parties are for.
type Token struct {
	Issuer   string    `json:"iss"`
	Subject  string    `json:"sub"`
	Audience []string  `json:"aud"`
	IssuedAt time.Time `json:"iat"`
	Expiry   time.Time `json:"exp"`
	Pod      string    `json:"pod,omitempty"` // the one it is bound to
}

// party is how one relying party is probed.
type party struct {
	tokenFile func(Config) (path string, err error)
	// use exchanges the token, and reads the resource if there is one.
	use func(context.Context, Config) (identity, content string, err error)
}

func parties() map[string]party {
	return map[string]party{
		"aws":        {variable("AWS_WEB_IDENTITY_TOKEN_FILE", ""), useAWS},
		"gcp":        {gcpTokenFile, useGCP},
		"azure":      {variable("AZURE_FEDERATED_TOKEN_FILE", ""), useAzure},
		"stackit":    {variable("STACKIT_FEDERATED_TOKEN_FILE", "/var/run/secrets/stackit.cloud/serviceaccount/token"), useSTACKIT},
		"oci":        {ociTokenFile, useOCI},
		"vault":      {variable("OIDCLAB_VAULT_TOKEN_FILE", ""), useVault},
		"generic":    {variable("OIDCLAB_TOKEN_FILE", ""), useGeneric},
		"kubernetes": {func(Config) (string, error) { return "/var/run/secrets/kubernetes.io/serviceaccount/token", nil }, useKubernetes},
	}
}

// Parties returns the names of the relying parties that can be probed.
func Parties() []string {
	return []string{"aws", "gcp", "azure", "stackit", "oci", "vault", "generic", "kubernetes"}
}

// Run probes one of Parties, once, and reads its token file anew. Everything
// that goes wrong is in the result.
func Run(ctx context.Context, name string, config Config) Result {
	result := Result{Party: name, Resource: config.Resource}
	p, ok := parties()[name]
	if !ok {
		result.Error = fmt.Sprintf("there is no relying party %q", name)
		return result
	}
	var secrets []string
	if file, err := p.tokenFile(config); err == nil {
		if raw, err := os.ReadFile(file); err == nil {
			secrets = append(secrets, strings.TrimSpace(string(raw)))
			result.Token = decode(secrets[0])
		}
	}
	identity, content, err := p.use(ctx, config)
	if err != nil {
		result.Error = without(secrets, err.Error())
		return result
	}
	result.Identity, result.Content = identity, content
	return result
}

// without takes secrets out of a text that others have written.
func without(secrets []string, text string) string {
	for _, secret := range slices.DeleteFunc(secrets, func(s string) bool { return s == "" }) {
		text = strings.ReplaceAll(text, secret, "[token]")
	}
	return text
}

// decode returns nil if the token is not a service-account token.
func decode(raw string) *Token {
	token, err := jwt.ParseSigned(raw, []jose.SignatureAlgorithm{
		jose.RS256, jose.RS384, jose.RS512, jose.ES256, jose.ES384, jose.ES512, jose.PS256, jose.PS384, jose.PS512, jose.EdDSA,
	})
	if err != nil {
		return nil
	}
	var claims jwt.Claims
	var private struct {
		Kubernetes struct {
			Pod struct {
				Name string `json:"name"`
			} `json:"pod"`
		} `json:"kubernetes.io"`
	}
	if err := token.UnsafeClaimsWithoutVerification(&claims, &private); err != nil {
		return nil
	}
	return &Token{
		Issuer: claims.Issuer, Subject: claims.Subject, Audience: claims.Audience,
		IssuedAt: claims.IssuedAt.Time().UTC(), Expiry: claims.Expiry.Time().UTC(), Pod: private.Kubernetes.Pod.Name,
	}
}

// variable returns the token file that a variable names.
func variable(name, fallback string) func(Config) (string, error) {
	return func(c Config) (string, error) {
		if file := c.Getenv(name); file != "" {
			return file, nil
		}
		if fallback == "" {
			return "", fmt.Errorf("%s is not set", name)
		}
		return fallback, nil
	}
}

// required returns variables that must be set.
func (c Config) required(names ...string) ([]string, error) {
	values := make([]string, len(names))
	for i, name := range names {
		if values[i] = c.Getenv(name); values[i] == "" {
			return nil, fmt.Errorf("%s is not set", name)
		}
	}
	return values, nil
}

// claim returns a claim of an access token that is a JWT, and otherwise "".
func claim(accessToken, name string) string {
	token, err := jwt.ParseSigned(accessToken, []jose.SignatureAlgorithm{jose.RS256, jose.ES256})
	if err != nil {
		return ""
	}
	var claims map[string]any
	if err := token.UnsafeClaimsWithoutVerification(&claims); err != nil {
		return ""
	}
	value, _ := claims[name].(string)
	return value
}

// fetch reads a resource, if there is one. The bearer token may be empty: then
// the client adds what is needed.
func fetch(ctx context.Context, client *http.Client, url, bearer string, header http.Header) (string, error) {
	if url == "" {
		return "", nil
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	for name, values := range header {
		request.Header[name] = values
	}
	if bearer != "" {
		request.Header.Set("Authorization", "Bearer "+bearer)
	}
	response, err := client.Do(request)
	if err != nil {
		return "", err
	}
	defer func() { _ = response.Body.Close() }()
	body, err := io.ReadAll(io.LimitReader(response.Body, maxContent))
	if err == nil && response.StatusCode != http.StatusOK {
		err = fmt.Errorf("GET %s: %s: %s", url, response.Status, body)
	}
	return string(body), err
}

// Line returns the result as one line of JSON.
func (r Result) Line() ([]byte, error) {
	line, err := json.Marshal(r)
	return append(line, '\n'), err
}
