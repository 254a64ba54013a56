package exchange

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/stackitcloud/stackit-sdk-go/core/clients"
)

const stackitParty = "stackit"

// STACKITTarget is a STACKIT service account.
type STACKITTarget struct {
	TokenURL string
	Email    string // of the service account
	Client   *http.Client
}

// STACKITResult is an access token.
type STACKITResult struct {
	AccessToken string    `json:"access_token"`
	Expiry      time.Time `json:"expiry"` // by the service's clock
}

// STACKITProject is a project (STACKIT resource manager API v2,
// GetProjectResponse).
type STACKITProject struct {
	ProjectID      string `json:"projectId"`
	ContainerID    string `json:"containerId"`
	Name           string `json:"name"`
	LifecycleState string `json:"lifecycleState"`
}

// STACKIT exchanges a token for an access token: it is the client assertion of
// the client credentials grant (stackit-sdk-go/core, clients,
// WorkloadIdentityFederationFlow). It makes one request, whatever the answer.
// The code of a refusal is the error of RFC 6749 section 5.2.
func STACKIT(ctx context.Context, target STACKITTarget, token string) (STACKITResult, error) {
	if err := secure(stackitParty, target.TokenURL); err != nil {
		return STACKITResult{}, err
	}
	if target.Email == "" { // the SDK would look into the environment
		return STACKITResult{}, errors.New("stackit: no service account: name one by its e-mail address")
	}
	client, seen, err := watch(ctx, target.Client, target.TokenURL)
	if err != nil {
		return STACKITResult{}, fmt.Errorf("stackit: %w", err)
	}
	var flow clients.WorkloadIdentityFederationFlow
	err = flow.Init(&clients.WorkloadIdentityFederationFlowConfig{
		TokenUrl: target.TokenURL, ClientID: target.Email,
		HTTPTransport: client.Transport, AuthHTTPClient: client,
		FederatedTokenFunction: func(context.Context) (string, error) { return token, nil },
	})
	if err != nil {
		return STACKITResult{}, fmt.Errorf("stackit: %w", err)
	}
	accessToken, err := flow.GetAccessToken()
	if err != nil {
		return STACKITResult{}, seen.failure(stackitParty, err, oauthError, token)
	}
	expiry, err := expiryOf(accessToken)
	if err != nil {
		return STACKITResult{}, fmt.Errorf("stackit: the answer has no access token that the SDK could use: %w", err)
	}
	return STACKITResult{AccessToken: accessToken, Expiry: expiry}, nil
}

// expiryOf reads exp of a JWT, which is what the SDK goes by. It panics without
// one, at the second use of a token.
func expiryOf(token string) (time.Time, error) {
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return time.Time{}, errors.New("it is not a JWT")
	}
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return time.Time{}, errors.New("it is not a JWT")
	}
	var claims struct {
		Expiry float64 `json:"exp"` // seconds since 1970
	}
	if err := json.Unmarshal(payload, &claims); err != nil || claims.Expiry == 0 {
		return time.Time{}, errors.New("it is a JWT without exp")
	}
	return time.Unix(int64(claims.Expiry), 0).UTC(), nil
}

// ReadProject reads a project with an access token (STACKIT resource manager
// API v2, Get Project Details). The URL is the API's origin. Its refusals have
// no code.
func ReadProject(ctx context.Context, client *http.Client, apiURL, accessToken, projectID string) (STACKITProject, error) {
	body, err := use(ctx, client, stackitParty, apiURL+"/v2/projects/"+url.PathEscape(projectID), accessToken, nil, stackitError)
	if err != nil {
		return STACKITProject{}, err
	}
	var project STACKITProject
	if err := json.Unmarshal(body, &project); err != nil {
		return STACKITProject{}, fmt.Errorf("stackit: the answer is not a project: %w", err)
	}
	if project.ProjectID == "" {
		return STACKITProject{}, errors.New("stackit: the answer is not a project: it has no projectId")
	}
	return project, nil
}

// stackitError reads an error of the resource manager API (its ErrorResponse).
func stackitError(body []byte) (code, message string) {
	var answer struct {
		Message string `json:"message"`
	}
	if err := json.Unmarshal(body, &answer); err != nil || answer.Message == "" {
		return "", string(body)
	}
	return "", answer.Message
}
