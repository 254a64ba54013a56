package exchange

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"regexp"
	"strings"
)

const (
	generic  = "generic"
	resource = "resource"
)

// GenericTarget is what to ask an RFC 8693 token service for.
type GenericTarget struct {
	TokenURL string
	Audience string // logical name of the service the access token is for; "" leaves it to the token service
	Resource string // its URL; "" for none
	Scope    string // "" for none
	Client   *http.Client
}

// GenericResult is a successful answer, RFC 8693 section 2.2.1. It marshals as
// it came.
type GenericResult struct {
	AccessToken     string `json:"access_token"`
	IssuedTokenType string `json:"issued_token_type"`
	TokenType       string `json:"token_type"`
	ExpiresIn       int64  `json:"expires_in,omitempty"` // seconds
	Scope           string `json:"scope,omitempty"`
}

// Generic exchanges a token for an access token (RFC 8693 section 2.1). It
// makes one request, whatever the answer.
func Generic(ctx context.Context, target GenericTarget, token string) (GenericResult, error) {
	if err := secure(generic, target.TokenURL); err != nil {
		return GenericResult{}, err
	}
	form := url.Values{
		"grant_type":           {"urn:ietf:params:oauth:grant-type:token-exchange"},
		"subject_token":        {token},
		"subject_token_type":   {"urn:ietf:params:oauth:token-type:jwt"},
		"requested_token_type": {"urn:ietf:params:oauth:token-type:access_token"},
	}
	for name, value := range map[string]string{"audience": target.Audience, "resource": target.Resource, "scope": target.Scope} {
		if value != "" {
			form.Set(name, value)
		}
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, target.TokenURL, strings.NewReader(form.Encode()))
	if err != nil {
		return GenericResult{}, fmt.Errorf("generic: %w", err)
	}
	request.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	request.Header.Set("Accept", "application/json")
	response, body, err := do(target.Client, request)
	if err != nil {
		return GenericResult{}, fmt.Errorf("generic: %w", err)
	}
	if response.StatusCode != http.StatusOK {
		code, message := oauthError(body)
		return GenericResult{}, answered(generic, response.StatusCode, code, message, token)
	}
	var result GenericResult
	if err := json.Unmarshal(body, &result); err != nil {
		return GenericResult{}, fmt.Errorf("generic: the answer is not that of a token service: %w", err)
	}
	if result.AccessToken == "" || result.IssuedTokenType == "" || result.TokenType == "" {
		return GenericResult{}, errors.New("generic: the answer lacks access_token, issued_token_type or token_type (RFC 8693 section 2.2.1)")
	}
	return result, nil
}

// oauthError reads an error answer, RFC 6749 section 5.2. One that is
// something else is the message.
func oauthError(body []byte) (code, message string) {
	var answer struct {
		Error       string `json:"error"`
		Description string `json:"error_description"`
	}
	if err := json.Unmarshal(body, &answer); err != nil || answer.Error == "" {
		return "", string(body)
	}
	return answer.Error, answer.Description
}

// UseResource calls a protected resource with an access token (RFC 6750
// section 2.1) and returns its document as JSON: one of another type as a
// string. The message of a refusal is that of the WWW-Authenticate header.
func UseResource(ctx context.Context, client *http.Client, resourceURL, accessToken string) (json.RawMessage, error) {
	if err := secure(resource, resourceURL); err != nil {
		return nil, err
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, resourceURL, nil)
	if err != nil {
		return nil, fmt.Errorf("resource: %w", err)
	}
	request.Header.Set("Authorization", "Bearer "+accessToken)
	response, body, err := do(client, request)
	if err != nil {
		return nil, fmt.Errorf("resource: %w", err)
	}
	if response.StatusCode != http.StatusOK {
		code, message := challenge(response.Header.Get("WWW-Authenticate"))
		if message == "" {
			message = string(body)
		}
		return nil, answered(resource, response.StatusCode, code, message, accessToken)
	}
	if mediaType, _, err := mime.ParseMediaType(response.Header.Get("Content-Type")); err == nil && mediaType == "application/json" && json.Valid(body) {
		return bytes.TrimSpace(body), nil
	}
	return json.Marshal(string(body))
}

// challengeParameter is one of error="..." and error_description="...", whose
// characters RFC 6750 section 3 limits so that nothing in them is escaped.
var challengeParameter = regexp.MustCompile(`\b(error|error_description)="([^"]*)"`)

// challenge reads error and description of a WWW-Authenticate header, RFC 6750
// section 3.
func challenge(header string) (code, message string) {
	for _, parameter := range challengeParameter.FindAllStringSubmatch(header, -1) {
		if parameter[1] == "error" {
			code = parameter[2]
		} else {
			message = parameter[2]
		}
	}
	return code, message
}

// do sends a request and reads the whole answer.
func do(client *http.Client, request *http.Request) (_ *http.Response, body []byte, err error) {
	response, err := direct(client).Do(request)
	if err != nil {
		return nil, nil, err
	}
	defer func() { err = errors.Join(err, response.Body.Close()) }()
	body, err = io.ReadAll(io.LimitReader(response.Body, maxAnswer+1))
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", request.URL, err)
	}
	if len(body) > maxAnswer {
		return nil, nil, fmt.Errorf("%s: the answer is longer than %d bytes", request.URL, maxAnswer)
	}
	return response, body, nil
}
