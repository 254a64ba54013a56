package gcp

import (
	"encoding/json"
	"strings"
)

// CredentialFile is what makes Google's libraries federate a workload.
type CredentialFile struct {
	URL            string // of the Handler's listener, without a trailing slash; empty means Google's own
	Audience       string // of the provider, see Audience
	TokenFile      string // with the workload's token; read anew for each exchange
	ServiceAccount string // e-mail address of the one to impersonate; empty means none
}

// CredentialsJSON returns the external_account credential file as gcloud iam
// workload-identity-pools create-cred-config writes it, but for the URLs, which
// are those of the lab. It holds no secret. GOOGLE_APPLICATION_CREDENTIALS
// names it, and SSL_CERT_FILE has to name the certificate of the lab.
func CredentialsJSON(f CredentialFile) ([]byte, error) {
	tokenService := strings.TrimSuffix(f.URL, "/")
	iamCredentials := tokenService
	if f.URL == "" {
		tokenService, iamCredentials = "https://sts.googleapis.com", "https://iamcredentials.googleapis.com"
	}
	file := map[string]any{
		// Not a name of the lab: libraries would send tokens to sts.googleapis.com
		// or refuse to use what they got.
		"universe_domain":    "googleapis.com",
		"type":               "external_account",
		"audience":           f.Audience,
		"subject_token_type": tokenTypeJWT,
		"token_url":          tokenService + "/v1/token",
		"credential_source": map[string]any{
			"file":   f.TokenFile,
			"format": map[string]string{"type": "text"},
		},
	}
	if f.ServiceAccount != "" {
		file["service_account_impersonation_url"] = iamCredentials + "/v1/projects/-/serviceAccounts/" + f.ServiceAccount + ":generateAccessToken"
	}
	data, err := json.MarshalIndent(file, "", "  ")
	return append(data, '\n'), err
}
