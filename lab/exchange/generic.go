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

// Grant is how a token is presented to an OAuth token service.
type Grant string

// The grants.
const (
	TokenExchange   Grant = "token-exchange"   // RFC 8693; the default
	JWTBearer       Grant = "jwt-bearer"       // RFC 7523 section 2.1: the token is the grant
	ClientAssertion Grant = "client-assertion" // RFC 7523 section 2.2: the token is the client's credentials
)

// GenericTarget is what to ask an OAuth token service for.
type GenericTarget struct {
	Grant    Grant // "" means TokenExchange
	TokenURL string
	Audience string // logical name of the service the access token is for; "" leaves it to the token service
	Resource string // its URL; "" for none
	Scope    string // "" for none
	Client   *http.Client

	// Of Auth0's custom token exchange; all are "" otherwise.
	TokenType    string // subject_token_type, which names the profile
	ClientID     string
	ClientSecret string
}

// GenericResult is a successful answer, RFC 6749 section 5.1 and RFC 8693
// section 2.2.1. It marshals as it came.
type GenericResult struct {
	AccessToken     string `json:"access_token"`
	IssuedTokenType string `json:"issued_token_type,omitempty"` // of a token exchange
	TokenType       string `json:"token_type"`
	ExpiresIn       int64  `json:"expires_in,omitempty"` // seconds
	Scope           string `json:"scope,omitempty"`
}

// form is the request for a token.
func (t GenericTarget) form(token string) (url.Values, error) {
	form := url.Values{}
	switch t.Grant {
	case "", TokenExchange:
		form.Set("grant_type", "urn:ietf:params:oauth:grant-type:token-exchange")
		form.Set("subject_token", token)
		form.Set("subject_token_type", "urn:ietf:params:oauth:token-type:jwt")
		form.Set("requested_token_type", "urn:ietf:params:oauth:token-type:access_token")
		if t.TokenType != "" {
			form.Set("subject_token_type", t.TokenType)
			form.Del("requested_token_type")
		}
	case JWTBearer:
		form.Set("grant_type", "urn:ietf:params:oauth:grant-type:jwt-bearer")
		form.Set("assertion", token)
	case ClientAssertion:
		form.Set("grant_type", "client_credentials")
		form.Set("client_assertion", token)
		form.Set("client_assertion_type", "urn:ietf:params:oauth:client-assertion-type:jwt-bearer")
	default:
		return nil, fmt.Errorf("generic: there is no grant %q, but %s, %s and %s", t.Grant, TokenExchange, JWTBearer, ClientAssertion)
	}
	for name, value := range map[string]string{
		"audience": t.Audience, "resource": t.Resource, "scope": t.Scope, "client_id": t.ClientID, "client_secret": t.ClientSecret,
	} {
		if value != "" {
			form.Set(name, value)
		}
	}
	return form, nil
}

// Generic exchanges a token for an access token (RFC 8693 section 2.1, or
// another [Grant]). It makes one request, whatever the answer.
func Generic(ctx context.Context, target GenericTarget, token string) (GenericResult, error) {
	if err := secure(generic, target.TokenURL); err != nil {
		return GenericResult{}, err
	}
	form, err := target.form(token)
	if err != nil {
		return GenericResult{}, err
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
		return GenericResult{}, answered(generic, response.StatusCode, code, message, token, target.ClientSecret)
	}
	var result GenericResult
	if err := json.Unmarshal(body, &result); err != nil {
		return GenericResult{}, fmt.Errorf("generic: the answer is not that of a token service: %w", err)
	}
	if result.AccessToken == "" || result.TokenType == "" {
		return GenericResult{}, errors.New("generic: the answer lacks access_token or token_type (RFC 6749 section 5.1)")
	}
	if result.IssuedTokenType == "" && (target.Grant == "" || target.Grant == TokenExchange) {
		return GenericResult{}, errors.New("generic: the answer lacks issued_token_type (RFC 8693 section 2.2.1)")
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
