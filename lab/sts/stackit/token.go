package stackit

import (
	"net/http"
	"net/url"
	"time"

	"github.com/google/uuid"

	"github.com/oidclab/oidclab/lab/sts"
	"github.com/oidclab/oidclab/lab/sts/internal/tokenservice"
	"github.com/oidclab/oidclab/lab/trace"
)

const (
	grantType = "client_credentials"

	// assertionType is the vendor's own, not that of RFC 7523
	// (stackit-sdk-go/core, clients/workload_identity_flow.go).
	assertionType = "urn:schwarz:params:oauth:client-assertion-type:workload-jwt"

	// apiAudience is that of access tokens.
	apiAudience = "stackit"
)

// tokenResponse is a successful answer (stackit-sdk-go/core,
// clients/auth_flow.go), which the SDK takes with status 200 only.
type tokenResponse struct {
	AccessToken string `json:"access_token"`
	ExpiresIn   int64  `json:"expires_in"` // seconds
	Scope       string `json:"scope"`
	TokenType   string `json:"token_type"`
}

// accessToken are the claims of an access token. The SDK goes by exp alone and
// panics without it.
type accessToken struct {
	Issuer   string `json:"iss"`
	Subject  string `json:"sub"` // the service account's e-mail address
	Audience string `json:"aud"`
	ID       string `json:"jti"`
	IssuedAt int64  `json:"iat"`
	Expiry   int64  `json:"exp"`
	Email    string `json:"email"`

	Journey string `json:"oidclab_journey"` // [tokenservice.JourneyClaim]
}

// tokenRequest is what the SDK asks.
type tokenRequest struct {
	email     string
	assertion string
}

func (h *Handler) serveToken(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Cache-Control", "no-store")
	if r.Method != http.MethodPost {
		w.Header().Set("Allow", http.MethodPost)
		(&oauthError{http.StatusMethodNotAllowed, "invalid_request", "the token endpoint takes POST"}).write(w)
		return
	}
	form, malformed := tokenservice.ReadForm(r)
	request, e := parseRequest(form)
	if malformed != nil {
		e = &oauthError{malformed.Status, "invalid_request", malformed.Text}
	}
	if e != nil {
		if token := form.Get("client_assertion"); token != "" {
			h.record(trace.JourneyOf(token), "check", "request", e)
		}
		e.write(w)
		return
	}
	response, e := h.exchange(r, request)
	if e != nil {
		e.write(w)
		return
	}
	tokenservice.WriteJSON(w, http.StatusOK, response)
}

// parseRequest reads the form. Parameters that it does not know are ignored.
// That there is an assertion is left to the core.
func parseRequest(form url.Values) (tokenRequest, *oauthError) {
	switch form.Get("grant_type") {
	case grantType:
	case "":
		return tokenRequest{}, invalidRequest("grant_type is missing")
	default:
		return tokenRequest{}, &oauthError{http.StatusBadRequest, "unsupported_grant_type", "the grant_type must be " + grantType}
	}
	switch form.Get("client_assertion_type") {
	case assertionType:
	case "":
		return tokenRequest{}, invalidRequest("client_assertion_type is missing")
	default:
		return tokenRequest{}, invalidRequest("the client_assertion_type must be " + assertionType)
	}
	request := tokenRequest{email: form.Get("client_id"), assertion: form.Get("client_assertion")}
	if request.email == "" {
		return tokenRequest{}, invalidRequest("client_id is missing; it is the service account's e-mail address")
	}
	return request, nil
}

// exchange lets the core decide, and mints. An access token outlives the
// workload's token: the vendor's webhook has those made for 10 minutes.
func (h *Handler) exchange(r *http.Request, request tokenRequest) (*tokenResponse, *oauthError) {
	verdict := h.core.Exchange(r.Context(), sts.Request{Token: request.assertion, Role: request.email})
	if verdict.Refusal != nil {
		return nil, refused(verdict.Refusal)
	}
	now := h.service.Clock.Now().Truncate(time.Second)
	token, err := h.service.Sign(accessToken{
		Issuer: h.service.URL, Subject: request.email, Audience: apiAudience, ID: uuid.NewString(),
		IssuedAt: now.Unix(), Expiry: now.Add(h.service.Lifetime).Unix(),
		Email: request.email, Journey: verdict.Journey,
	})
	if err != nil {
		e := serverError()
		h.record(verdict.Journey, "grant", request.email, e)
		return nil, e
	}
	h.record(verdict.Journey, "grant", request.email, nil)
	return &tokenResponse{AccessToken: token, ExpiresIn: int64(h.service.Lifetime.Seconds()), TokenType: "Bearer"}, nil
}

// record adds an event to a token's journey.
func (h *Handler) record(journey, step, name string, e *oauthError) {
	var reason, detail string
	if e != nil {
		reason, detail = e.code, e.description
	}
	h.service.Record(journey, step, name, reason, detail)
}

// serveConfiguration answers with the service's metadata (OpenID Connect
// Discovery 1.0 section 3), by which its access tokens can be verified.
func (h *Handler) serveConfiguration(w http.ResponseWriter, _ *http.Request) {
	tokenservice.WriteJSON(w, http.StatusOK, map[string]any{
		"issuer":                                h.service.URL,
		"token_endpoint":                        h.service.URL + "/oauth/v2/token",
		"jwks_uri":                              h.service.URL + "/oauth/v2/jwks",
		"grant_types_supported":                 []string{grantType},
		"response_types_supported":              []string{}, // there is no authorization endpoint
		"subject_types_supported":               []string{"public"},
		"id_token_signing_alg_values_supported": []string{tokenservice.Algorithm},
	})
}

func (h *Handler) serveKeys(w http.ResponseWriter, _ *http.Request) {
	tokenservice.WriteJSON(w, http.StatusOK, h.service.KeySet())
}
