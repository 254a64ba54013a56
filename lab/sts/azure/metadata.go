package azure

import (
	"net/http"
	"net/url"
	"strings"

	"github.com/google/uuid"

	"github.com/oidclab/oidclab/lab/sts/internal/tokenservice"
)

// publicHost is Entra's own name. Requests for it come in through a proxy that
// answers for the vendor's hosts.
const publicHost = "login.microsoftonline.com"

// authority returns the origin that the caller knows the service by: one of
// two, never what a stranger writes into the Host header.
func (h *Handler) authority(r *http.Request) string {
	if r.Host == publicHost {
		return "https://" + publicHost
	}
	return h.service.URL
}

// TokenProxy returns a handler for the root of a listener of its own: the proxy
// of Kubernetes clusters that an application turns to instead of Entra if it
// sets EnableAzureProxy and finds AZURE_KUBERNETES_TOKEN_PROXY (azidentity,
// WorkloadIdentityCredentialOptions). Its requests name Entra in their Host
// header, or else the authority that the application has. No other host is
// answered for.
func (h *Handler) TokenProxy() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Host != publicHost && "https://"+r.Host != h.service.URL {
			tokenservice.SetDate(w, h.service.Clock)
			http.Error(w, "this is the token proxy of "+publicHost, http.StatusMisdirectedRequest)
			return
		}
		h.entra.ServeHTTP(w, r)
	})
}

// checkTenant says why a path's tenant is not the one there is.
func (h *Handler) checkTenant(tenant string) *aadError {
	if strings.EqualFold(tenant, h.tenant) {
		return nil
	}
	if _, err := uuid.Parse(tenant); err == nil || strings.Contains(strings.Trim(tenant, "."), ".") {
		return tenantNotFound(tenant)
	}
	return tenantMalformed(tenant)
}

// serveConfiguration answers with the tenant's metadata (OpenID Connect
// Discovery 1.0 section 3). MSAL wants issuer, authorization_endpoint and
// token_endpoint, and an issuer of the host that it asked.
func (h *Handler) serveConfiguration(w http.ResponseWriter, r *http.Request) {
	if e := h.checkTenant(r.PathValue("tenant")); e != nil {
		e.oauth = "invalid_tenant"
		h.refuse(w, r, e)
		return
	}
	base := h.authority(r) + "/" + h.tenant
	tokenservice.WriteJSON(w, http.StatusOK, map[string]any{
		"issuer":                                h.issuer(h.authority(r)),
		"authorization_endpoint":                base + "/oauth2/v2.0/authorize",
		"token_endpoint":                        base + "/oauth2/v2.0/token",
		"jwks_uri":                              base + "/discovery/v2.0/keys",
		"token_endpoint_auth_methods_supported": []string{"private_key_jwt"},
		"grant_types_supported":                 []string{grantType},
		"response_types_supported":              []string{}, // there is no authorization
		"scopes_supported":                      []string{"openid", "profile", "offline_access"},
		"subject_types_supported":               []string{"pairwise"},
		"id_token_signing_alg_values_supported": []string{tokenservice.Algorithm},
		"cloud_instance_name":                   "microsoftonline.com",
	})
}

func (h *Handler) serveKeys(w http.ResponseWriter, r *http.Request) {
	if e := h.checkTenant(r.PathValue("tenant")); e != nil {
		e.oauth = "invalid_tenant"
		h.refuse(w, r, e)
		return
	}
	tokenservice.WriteJSON(w, http.StatusOK, h.service.KeySet())
}

// serveInstance says which hosts are one authority, and where the tenant's
// configuration is, for the authority that the SDK was configured with.
func (h *Handler) serveInstance(w http.ResponseWriter, r *http.Request) {
	endpoint, err := url.Parse(r.URL.Query().Get("authorization_endpoint"))
	own := strings.TrimPrefix(h.service.URL, "https://")
	if err != nil || endpoint.Scheme != "https" || endpoint.Host != own && endpoint.Host != publicHost {
		h.refuse(w, r, unknownInstance())
		return
	}
	tenant, _, _ := strings.Cut(strings.TrimPrefix(endpoint.Path, "/"), "/")
	if e := h.checkTenant(tenant); e != nil {
		h.refuse(w, r, e)
		return
	}
	instance := func(network string, aliases ...string) map[string]any {
		return map[string]any{"preferred_network": network, "preferred_cache": network, "aliases": aliases}
	}
	tokenservice.WriteJSON(w, http.StatusOK, map[string]any{
		"tenant_discovery_endpoint": "https://" + endpoint.Host + "/" + h.tenant + "/v2.0/.well-known/openid-configuration",
		"api-version":               "1.1",
		"metadata": []any{
			instance(publicHost, publicHost, "login.windows.net", "login.microsoft.com", "sts.windows.net"),
			instance(own, own),
		},
	})
}
