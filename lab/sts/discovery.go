package sts

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
)

// discover returns the jwks_uri of an issuer's discovery document, OpenID
// Connect Discovery 1.0 section 4.
func discover(ctx context.Context, client *http.Client, issuer string, policy CachePolicy) (string, error) {
	address := strings.TrimSuffix(issuer, "/") + "/.well-known/openid-configuration"
	body, err := get(ctx, client, address, policy)
	if err != nil {
		return "", fmt.Errorf("discovery: %w", err)
	}
	jwksURI, err := parseDiscovery(body, issuer)
	if err != nil {
		return "", fmt.Errorf("discovery: %s: %w", address, err)
	}
	return jwksURI, nil
}

func parseDiscovery(data []byte, issuer string) (string, error) {
	doc, err := decodeObject(data)
	if err != nil {
		return "", err
	}
	if doc.duplicate != nil {
		return "", fmt.Errorf("member %s occurs twice", shown(*doc.duplicate))
	}
	if name, ok := lookalike(doc.members, []string{"issuer", "jwks_uri"}); ok {
		return "", fmt.Errorf("member %s differs only in case from one that is wanted", shown(name))
	}
	// Section 4.3: exactly the URL that was asked.
	if got, _ := doc.members["issuer"].(string); got != issuer {
		return "", fmt.Errorf("issuer is %s, want %s", shown(got), issuer)
	}
	jwksURI, _ := doc.members["jwks_uri"].(string)
	if err := sameOrigin(jwksURI, issuer); err != nil {
		return "", err
	}
	return jwksURI, nil
}

// sameOrigin wants the keys to come from the host that was registered: a
// discovery document that somebody could change must not turn the relying
// party into a client of any address in its network.
func sameOrigin(jwksURI, issuer string) error {
	keys, err := url.Parse(jwksURI)
	if err != nil {
		return fmt.Errorf("jwks_uri %s is not a URL", shown(jwksURI))
	}
	home, err := url.Parse(issuer)
	if err != nil {
		return err
	}
	if keys.Scheme != "https" || origin(keys) != origin(home) || keys.User != nil || keys.Fragment != "" {
		return fmt.Errorf("jwks_uri is %s, want one under https://%s", shown(jwksURI), origin(home))
	}
	return nil
}

// origin returns the host and port of an https URL.
func origin(u *url.URL) string {
	port := u.Port()
	if port == "" {
		port = "443"
	}
	return strings.ToLower(u.Hostname()) + ":" + port
}

// get fetches one bounded document. Its time limit is real time: the network
// does not follow the lab clock.
func get(ctx context.Context, client *http.Client, address string, policy CachePolicy) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, policy.FetchTimeout)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return nil, err
	}
	request.Header.Set("Accept", "application/json")
	response, err := client.Do(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		detail := ""
		if location := response.Header.Get("Location"); location != "" {
			detail = ", and redirects are not followed: " + shown(location)
		}
		return nil, fmt.Errorf("%s answered %s%s", address, response.Status, detail)
	}
	body, err := io.ReadAll(io.LimitReader(response.Body, policy.MaxBodyBytes+1))
	if err == nil {
		err = ctx.Err() // net/http may still hand over what arrives while it cancels
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", address, err)
	}
	if int64(len(body)) > policy.MaxBodyBytes {
		return nil, fmt.Errorf("%s is larger than %d bytes", address, policy.MaxBodyBytes)
	}
	return body, nil
}
