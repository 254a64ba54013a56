package exchange

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"time"

	"cloud.google.com/go/auth/credentials/externalaccount"
)

const gcpParty = "gcp"

// GCPTarget is a provider of a workload identity pool, and perhaps a service
// account.
type GCPTarget struct {
	URL            string // origin of Google's APIs, such as "https://127.0.0.1:41733"
	Audience       string // the provider's full resource name, from "//iam.googleapis.com/" on
	ServiceAccount string // e-mail address of the account to impersonate; "" for none
	Client         *http.Client
}

// GCPResult is an access token, as Google's libraries write one.
type GCPResult struct {
	AccessToken string `json:"access_token"`
	// Expiry is by the service's clock if a service account is impersonated,
	// and by that of this machine otherwise: the answer has a lifetime only.
	Expiry time.Time `json:"expiry"`
}

// subjectToken is what Google's library exchanges.
type subjectToken string

// SubjectToken implements [externalaccount.SubjectTokenProvider].
func (t subjectToken) SubjectToken(context.Context, *externalaccount.RequestOptions) (string, error) {
	return string(t), nil
}

// GCP exchanges a token for an access token (Security Token Service API, token)
// and that one for an access token of the service account, if there is one (IAM
// Service Account Credentials API, generateAccessToken). It makes one request
// for each. The code of a refusal is the error of RFC 6749 section 5.2 for the
// first, and as for [ReadObject] for the second.
func GCP(ctx context.Context, target GCPTarget, token string) (GCPResult, error) {
	if err := secure(gcpParty, target.URL); err != nil {
		return GCPResult{}, err
	}
	client, seen, err := watch(ctx, target.Client, target.URL)
	if err != nil {
		return GCPResult{}, fmt.Errorf("gcp: %w", err)
	}
	options := &externalaccount.Options{
		Audience:             target.Audience,
		SubjectTokenType:     "urn:ietf:params:oauth:token-type:jwt",
		SubjectTokenProvider: subjectToken(token),
		TokenURL:             target.URL + "/v1/token",
		Scopes:               []string{"https://www.googleapis.com/auth/cloud-platform"},
		Client:               client,
		Logger:               slog.New(slog.DiscardHandler), // an environment variable would have the library log tokens
	}
	if target.ServiceAccount != "" {
		options.ServiceAccountImpersonationURL = target.URL + "/v1/projects/-/serviceAccounts/" + url.PathEscape(target.ServiceAccount) + ":generateAccessToken"
	}
	credentials, err := externalaccount.NewCredentials(options)
	if err != nil {
		return GCPResult{}, fmt.Errorf("gcp: %w", err)
	}
	granted, err := credentials.Token(ctx)
	if err != nil {
		return GCPResult{}, seen.failure(gcpParty, err, googleError, token)
	}
	if granted.Value == "" {
		return GCPResult{}, errors.New("gcp: the answer has no access token")
	}
	return GCPResult{AccessToken: granted.Value, Expiry: granted.Expiry.UTC()}, nil
}

// ReadObject reads the content of an object with an access token (Cloud Storage
// JSON API, objects.get). Only the URL and the client of the target matter. The
// code of a refusal is the reason of Cloud Storage.
func ReadObject(ctx context.Context, target GCPTarget, accessToken, bucket, object string) ([]byte, error) {
	address := target.URL + "/storage/v1/b/" + url.PathEscape(bucket) + "/o/" + url.PathEscape(object) + "?alt=media"
	return use(ctx, target.Client, gcpParty, address, accessToken, nil, googleError)
}

// googleError reads an error of Google's APIs: with details as google.rpc.Status
// has them (AIP-193), with errors as Cloud Storage has them. The code is the
// reason, or else the status. Those of the Security Token Service are OAuth's.
func googleError(body []byte) (code, message string) {
	type reason struct {
		Reason string `json:"reason"`
	}
	var answer struct {
		Error struct {
			Message string   `json:"message"`
			Status  string   `json:"status"`
			Details []reason `json:"details"`
			Errors  []reason `json:"errors"`
		} `json:"error"`
	}
	if err := json.Unmarshal(body, &answer); err != nil || answer.Error.Message == "" {
		return oauthError(body)
	}
	for _, r := range append(answer.Error.Details, answer.Error.Errors...) {
		if r.Reason != "" {
			return r.Reason, answer.Error.Message
		}
	}
	return answer.Error.Status, answer.Error.Message
}
