package azure

import (
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/oidclab/oidclab/lab/sts"
	"github.com/oidclab/oidclab/lab/sts/internal/tokenservice"
	"github.com/oidclab/oidclab/lab/trace"
)

const (
	grantType     = "client_credentials"
	assertionType = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer" // RFC 7523 section 2.2

	// storageResource is the resource that access tokens are for (Azure
	// Storage, "Authorize with Microsoft Entra ID").
	storageResource = "https://storage.azure.com"
)

// tokenResponse is a successful answer. The SDKs want expires_in.
type tokenResponse struct {
	TokenType    string `json:"token_type"`
	ExpiresIn    int64  `json:"expires_in"` // seconds
	ExtExpiresIn int64  `json:"ext_expires_in"`
	AccessToken  string `json:"access_token"`
}

// accessToken are the claims of an access token (Microsoft identity platform,
// "Access token claims reference"), and one of our own.
type accessToken struct {
	Audience  string `json:"aud"`
	Issuer    string `json:"iss"`
	IssuedAt  int64  `json:"iat"`
	NotBefore int64  `json:"nbf"`
	Expiry    int64  `json:"exp"`
	AppID     string `json:"appid"`
	AppIDAcr  string `json:"appidacr"` // "2": authenticated by an assertion
	IDType    string `json:"idtyp"`    // "app": there is no user
	ObjectID  string `json:"oid"`
	Subject   string `json:"sub"` // the object id
	TenantID  string `json:"tid"`
	ID        string `json:"uti"`
	Version   string `json:"ver"`

	Journey string `json:"oidclab_journey"` // [tokenservice.JourneyClaim]
}

// tokenRequest is a client credentials request (Microsoft identity platform,
// "OAuth 2.0 client credentials flow", third case).
type tokenRequest struct {
	clientID  string
	assertion string
}

func (h *Handler) serveToken(w http.ResponseWriter, r *http.Request) {
	if e := h.checkTenant(r.PathValue("tenant")); e != nil {
		h.refuse(w, r, e)
		return
	}
	if r.Method != http.MethodPost {
		w.Header().Set("Allow", http.MethodPost)
		e := invalidRequest(900561, "The endpoint only accepts POST requests. Received a "+bounded(r.Method)+" request.")
		e.status = http.StatusMethodNotAllowed
		h.refuse(w, r, e)
		return
	}
	form, malformed := tokenservice.ReadForm(r)
	request, e := parseRequest(form)
	if malformed != nil { // no text is on record
		e = invalidRequest(90100, "A request parameter is empty or not valid: "+malformed.Text+".")
		e.status = malformed.Status
	}
	if e != nil {
		if token := form.Get("client_assertion"); token != "" {
			h.record(trace.JourneyOf(token), "check", "request", e)
		}
		h.refuse(w, r, e)
		return
	}
	response, e := h.exchange(r, request)
	if e != nil {
		h.refuse(w, r, e)
		return
	}
	w.Header().Set("X-Ms-Request-Id", uuid.NewString())
	w.Header().Set("Cache-Control", "no-store, no-cache")
	tokenservice.WriteJSON(w, http.StatusOK, response)
}

// parseRequest reads the form. Parameters that it does not know, such as
// client_info, are ignored. That there is an assertion is left to the core.
func parseRequest(form url.Values) (tokenRequest, *aadError) {
	switch grant := form.Get("grant_type"); grant {
	case grantType:
	case "":
		return tokenRequest{}, missingParameter("grant_type")
	default:
		return tokenRequest{}, &aadError{http.StatusBadRequest, "unsupported_grant_type", 70003, "The app requested an unsupported grant type '" + bounded(grant) + "'."}
	}
	request := tokenRequest{clientID: strings.ToLower(form.Get("client_id")), assertion: form.Get("client_assertion")}
	if request.clientID == "" {
		return tokenRequest{}, missingParameter("client_id")
	}
	if e := checkScope(form.Get("scope")); e != nil {
		return tokenRequest{}, e
	}
	if request.assertion != "" {
		switch form.Get("client_assertion_type") {
		case assertionType:
		case "":
			return tokenRequest{}, missingParameter("client_assertion_type")
		default: // no text is on record
			return tokenRequest{}, invalidRequest(90100, "The client_assertion_type parameter is empty or not valid.")
		}
	}
	return request, nil
}

// checkScope wants the resource with the suffix /.default, and takes the
// scopes of OpenID Connect that MSAL adds.
func checkScope(scope string) *aadError {
	scopes := slices.DeleteFunc(strings.Fields(scope), func(s string) bool {
		return s == "openid" || s == "profile" || s == "offline_access"
	})
	switch {
	case scope == "":
		return missingParameter("scope")
	case len(scopes) != 1:
		return &aadError{http.StatusBadRequest, "invalid_scope", 70011, "The provided request must include a 'scope' input parameter. The provided value for the input parameter 'scope' is not valid. The scope " + bounded(scope) + " is not valid."}
	}
	resource, ok := strings.CutSuffix(scopes[0], "/.default")
	if !ok {
		return &aadError{http.StatusBadRequest, "invalid_scope", 1002012, "The provided value for scope " + bounded(scope) + " is not valid. Client credential flows must have a scope value with /.default suffixed to the resource identifier (application ID URI)."}
	}
	if strings.TrimSuffix(resource, "/") != storageResource {
		return &aadError{http.StatusBadRequest, "invalid_resource", 500011, "The resource principal named " + bounded(resource) + " was not found in the tenant. This can happen if the application has not been installed by the administrator of the tenant or consented to by any user in the tenant."}
	}
	return nil
}

// exchange lets the core decide, and mints. An access token outlives the
// assertion, as the vendor's does.
func (h *Handler) exchange(r *http.Request, request tokenRequest) (*tokenResponse, *aadError) {
	verdict := h.core.Exchange(r.Context(), sts.Request{Token: request.assertion, Role: request.clientID})
	if verdict.Refusal != nil {
		return nil, h.refused(verdict.Refusal, request.clientID, request.assertion)
	}
	now := h.service.Clock.Now().Truncate(time.Second)
	object := h.objectID(request.clientID)
	token, err := h.service.Sign(accessToken{
		Audience: storageResource,
		Issuer:   h.issuer(h.service.URL),
		IssuedAt: now.Unix(), NotBefore: now.Unix(), Expiry: now.Add(h.service.Lifetime).Unix(),
		AppID: request.clientID, AppIDAcr: "2", IDType: "app",
		ObjectID: object, Subject: object, TenantID: h.tenant,
		ID: uuid.NewString(), Version: "1.0",
		Journey: verdict.Journey,
	})
	if err != nil {
		e := serverError()
		h.record(verdict.Journey, "grant", request.clientID, e)
		return nil, e
	}
	h.record(verdict.Journey, "grant", request.clientID, nil)
	seconds := int64(h.service.Lifetime.Seconds())
	return &tokenResponse{TokenType: "Bearer", ExpiresIn: seconds, ExtExpiresIn: seconds, AccessToken: token}, nil
}

// record adds an event to a token's journey. Of an error it keeps the code
// only: its text may quote the request.
func (h *Handler) record(journey, step, name string, e *aadError) {
	reason := ""
	if e != nil {
		reason = "AADSTS" + strconv.Itoa(e.code)
	}
	h.service.Record(journey, step, name, reason, "")
}
