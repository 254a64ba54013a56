package oci

import (
	"crypto/rsa"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/x509"
	"encoding/base64"
	"net/http"
	"net/url"

	"github.com/oidclab/oidclab/lab/sts"
	"github.com/oidclab/oidclab/lab/sts/internal/tokenservice"
	"github.com/oidclab/oidclab/lab/trace"
)

const (
	grantType        = "urn:ietf:params:oauth:grant-type:token-exchange"
	subjectTokenType = "jwt" // the vendor's own, not that of RFC 8693
	tokenTypeUPST    = "urn:oci:token-type:oci-upst"
)

// tokenResponse is a successful answer (oci-go-sdk, common/auth,
// tokenExchangeResponse): the field is not access_token.
type tokenResponse struct {
	Token string `json:"token"`
}

// tokenRequest is what the SDK asks.
type tokenRequest struct {
	client       string // id, once it is authenticated
	subjectToken string
	key          *rsa.PublicKey // to bind the session token to
}

// serveToken is the token endpoint of the identity domain ("Token Exchange
// Grant Type: Exchanging a JSON Web Token for a UPST").
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
	if e == nil {
		request.client, e = h.authenticated(r)
	}
	if e != nil {
		if token := form.Get("subject_token"); token != "" {
			h.record(trace.JourneyOf(token), "check", "request", e)
		}
		e.write(w)
		return
	}
	token, e := h.exchange(r, request)
	if e != nil {
		e.write(w)
		return
	}
	tokenservice.WriteJSON(w, http.StatusOK, tokenResponse{token})
}

// parseRequest reads the form. Parameters that it does not know are ignored.
// That there is a subject token is left to the core.
func parseRequest(form url.Values) (tokenRequest, *oauthError) {
	switch form.Get("grant_type") {
	case grantType:
	case "":
		return tokenRequest{}, invalidRequest("grant_type is missing")
	default:
		return tokenRequest{}, &oauthError{http.StatusBadRequest, "unsupported_grant_type", "the grant_type must be " + grantType}
	}
	if form.Get("requested_token_type") != tokenTypeUPST {
		return tokenRequest{}, invalidRequest("the requested_token_type must be " + tokenTypeUPST)
	}
	if form.Get("subject_token_type") != subjectTokenType {
		return tokenRequest{}, invalidRequest("the subject_token_type must be " + subjectTokenType)
	}
	der, err := base64.StdEncoding.DecodeString(form.Get("public_key"))
	if err != nil {
		return tokenRequest{}, invalidRequest("the public_key is not base64")
	}
	key, err := x509.ParsePKIXPublicKey(der)
	if err != nil {
		return tokenRequest{}, invalidRequest("the public_key is not a public key in DER")
	}
	if err := checkKey(key); err != nil {
		return tokenRequest{}, invalidRequest(err.Error())
	}
	return tokenRequest{subjectToken: form.Get("subject_token"), key: key.(*rsa.PublicKey)}, nil
}

// authenticated returns the id of the client, which authenticates by HTTP Basic
// (RFC 6749 section 2.3.1; the SDK does not percent-encode).
func (h *Handler) authenticated(r *http.Request) (string, *oauthError) {
	id, secret, ok := r.BasicAuth()
	client, known := h.clients[id]
	got, want := sha256.Sum256([]byte(secret)), sha256.Sum256([]byte(client.Secret))
	if !ok || subtle.ConstantTimeCompare(got[:], want[:]) != 1 || !known {
		return "", &oauthError{http.StatusUnauthorized, "invalid_client", "the client could not be authenticated"}
	}
	return id, nil
}

// exchange lets the core decide, and mints.
func (h *Handler) exchange(r *http.Request, request tokenRequest) (string, *oauthError) {
	verdict := h.core.Exchange(r.Context(), sts.Request{Token: request.subjectToken, Role: request.client})
	if verdict.Refusal != nil {
		return "", refused(verdict.Refusal)
	}
	user, ok := h.trusts[verdict.Claims.Issuer].impersonated(verdict.Claims.Subject)
	if !ok { // the core has the same rules
		return "", serverError()
	}
	token, err := h.grant(verdict, request.key, user.OCID, "user", workloadClaims{})
	if err != nil {
		e := serverError()
		h.record(verdict.Journey, "grant", user.OCID, e)
		return "", e
	}
	h.record(verdict.Journey, "grant", user.OCID, nil)
	return token, nil
}

// record adds an event to a token's journey.
func (h *Handler) record(journey, step, name string, e *oauthError) {
	var reason, detail string
	if e != nil {
		reason, detail = e.code, e.description
	}
	h.service.Record(journey, step, name, reason, detail)
}
