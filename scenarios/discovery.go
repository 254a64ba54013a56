package scenarios

import (
	"context"
	"encoding/json"
	"net/http"
	"strings"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	. "github.com/onsi/gomega"

	"github.com/oidclab/oidclab/fixtures"
	"github.com/oidclab/oidclab/lab"
	"github.com/oidclab/oidclab/lab/cluster"
	"github.com/oidclab/oidclab/lab/trace"
)

// discoveryURL returns where a cluster's discovery document is (OpenID Connect
// Discovery 1.0 section 4).
func discoveryURL(c lab.ClusterInfo) string {
	return strings.TrimSuffix(c.Issuer, "/") + "/.well-known/openid-configuration"
}

// discovery is what a stranger sees of a cluster.
func discovery() []Scenario {
	return []Scenario{
		{Name: "discovery: a stranger gets the document and the keys, and nothing private", Labels: []string{"discovery"}, Run: strangerSeesKeys},
		{Name: "discovery: GET, HEAD and conditional requests, and no others", Labels: []string{"discovery"}, Run: documentsAreCacheable},
		{Name: "discovery: the issuer does not depend on the Host header, and nothing redirects", Labels: []string{"discovery"}, Run: issuerIsFixed},
		{Name: "discovery: the API server itself tells a stranger nothing", Labels: []string{"discovery"}, Run: apiServerIsClosed},
		{Name: "discovery: go-oidc finds the issuer and verifies its tokens", Labels: []string{"discovery"}, Run: goOIDCVerifies},
		{Name: "discovery: relying parties find the keys where the document says, and nowhere else", Labels: []string{"discovery", "issuer-style"}, Run: keysAreWhereTheDocumentSays},
		{Name: "discovery: clusters have issuers and keys of their own", Labels: []string{"discovery"}, Needs: []Need{TwoClusters}, Run: clustersDiffer},
	}
}

type keySet struct {
	Keys []map[string]any `json:"keys"`
}

func (s *Session) keySet(ctx context.Context, c lab.ClusterInfo) keySet {
	response, body := s.Get(ctx, http.MethodGet, c.JWKSURI, nil)
	s.Expect(response.StatusCode).To(Equal(http.StatusOK))
	var set keySet
	s.Must(json.Unmarshal(body, &set))
	return set
}

func strangerSeesKeys(ctx context.Context, s *Session) {
	for _, c := range s.Info.Clusters {
		response, body := s.Get(ctx, http.MethodGet, discoveryURL(c), nil)
		s.Expect(response.StatusCode).To(Equal(http.StatusOK))
		s.Expect(response.Header.Get("Content-Type")).To(Equal("application/json"))
		var document map[string]any
		s.Must(json.Unmarshal(body, &document))
		s.Expect(document).To(HaveKeyWithValue("issuer", c.Issuer))
		s.Expect(document).To(HaveKeyWithValue("jwks_uri", c.JWKSURI))
		s.Expect(document).To(HaveKeyWithValue("id_token_signing_alg_values_supported", ContainElement("RS256")))

		response, _ = s.Get(ctx, http.MethodGet, c.JWKSURI, nil)
		s.Expect(response.Header.Get("Content-Type")).To(Equal("application/jwk-set+json"))
		signing, err := s.Lab.Keys(ctx, c.ID)
		s.Must(err)
		published := map[any]bool{}
		for _, key := range s.keySet(ctx, c).Keys {
			s.Expect(key).To(HaveKeyWithValue("kty", "RSA"))
			for _, private := range []string{"d", "p", "q", "dp", "dq", "qi", "oth", "k"} {
				s.Expect(key).NotTo(HaveKey(private))
			}
			published[key["kid"]] = true
		}
		for _, key := range signing {
			s.Expect(published[key.ID]).To(Equal(key.State != "removed"), "key %s is %s", key.ID, key.State)
		}
	}
}

func documentsAreCacheable(ctx context.Context, s *Session) {
	for _, url := range []string{discoveryURL(s.Cluster()), s.Cluster().JWKSURI} {
		get, body := s.Get(ctx, http.MethodGet, url, nil)
		etag := get.Header.Get("ETag")
		s.Expect(etag).NotTo(BeEmpty())
		s.Expect(get.Header.Get("Cache-Control")).To(HavePrefix("public, max-age="))
		s.Expect(get.Header.Get("X-Content-Type-Options")).To(Equal("nosniff"))
		same, empty := s.Get(ctx, http.MethodGet, url, http.Header{"If-None-Match": {etag}})
		s.Expect(same.StatusCode).To(Equal(http.StatusNotModified))
		s.Expect(empty).To(BeEmpty())
		head, empty := s.Get(ctx, http.MethodHead, url, nil)
		s.Expect(head.StatusCode).To(Equal(http.StatusOK))
		s.Expect(empty).To(BeEmpty())
		s.Expect(head.ContentLength).To(Equal(int64(len(body))))
		for _, method := range []string{http.MethodPost, http.MethodPut, http.MethodDelete} {
			response, _ := s.Get(ctx, method, url, nil)
			s.Expect(response.StatusCode).To(Equal(http.StatusMethodNotAllowed), method)
			s.Expect(response.Header.Get("Allow")).To(Equal("GET, HEAD"))
		}
	}
}

func issuerIsFixed(ctx context.Context, s *Session) {
	url := discoveryURL(s.Cluster())
	_, want := s.Get(ctx, http.MethodGet, url, nil)
	for _, host := range []string{"evil.example", "localhost:1"} {
		response, body := s.Get(ctx, http.MethodGet, url, http.Header{"Host": {host}, "X-Forwarded-Host": {host}})
		s.Expect(response.StatusCode).To(Equal(http.StatusOK))
		s.Expect(string(body)).To(Equal(string(want)))
	}
	for _, other := range []string{url + "/", s.Cluster().Issuer, s.Info.Front + "/", s.Info.Front + "/c/nobody/.well-known/openid-configuration"} {
		response, _ := s.Get(ctx, http.MethodGet, other, nil)
		s.Expect(response.StatusCode).To(Equal(http.StatusNotFound), other)
		s.Expect(response.Header.Get("Location")).To(BeEmpty())
	}
}

func apiServerIsClosed(ctx context.Context, s *Session) {
	api := s.Kubernetes(s.Cluster())
	config := api.Config()
	config.CertData, config.KeyData, config.CertFile, config.KeyFile = nil, nil, "", ""
	stranger, err := cluster.NewAPI(config)
	s.Must(err)
	_, err = stranger.Discovery(ctx)
	s.Expect(err).To(MatchError(ContainSubstring("401")))
	document, err := api.Discovery(ctx)
	s.Must(err, "control: the administrator")
	s.Expect(string(document.Body)).To(ContainSubstring(s.Cluster().Issuer))
}

func goOIDCVerifies(ctx context.Context, s *Session) {
	ctx = oidc.ClientContext(ctx, s.Web)
	provider, err := oidc.NewProvider(ctx, s.Cluster().Issuer)
	s.Must(err)
	verifier := provider.Verifier(&oidc.Config{ClientID: "somebody"})
	token, err := verifier.Verify(ctx, s.Mint(ctx, lab.MintRequest{Audiences: []string{"somebody"}}))
	s.Must(err)
	s.Expect(token.Subject).To(Equal(fixtures.Subject))
	_, err = verifier.Verify(ctx, s.Mint(ctx, lab.MintRequest{Audiences: []string{"somebody else"}}))
	s.Expect(err).To(MatchError(ContainSubstring("expected audience")))
	another := strings.TrimSuffix(s.Cluster().Issuer, "/")
	if another == s.Cluster().Issuer {
		another += "/"
	}
	_, err = oidc.NewProvider(ctx, another)
	s.Expect(err).To(MatchError(ContainSubstring("did not match")))
}

func clustersDiffer(ctx context.Context, s *Session) {
	one, other := s.Cluster(), s.Other()
	s.Expect(one.Issuer).NotTo(Equal(other.Issuer))
	kids := map[any]bool{}
	for _, key := range s.keySet(ctx, one).Keys {
		kids[key["kid"]] = true
	}
	for _, key := range s.keySet(ctx, other).Keys {
		s.Expect(kids[key["kid"]]).To(BeFalse(), "both clusters publish key %v", key["kid"])
	}
}

// keysAreWhereTheDocumentSays has every party take a token, those of the lab's
// own after they have forgotten all keys, and looks for keys where a party might
// guess them to be.
func keysAreWhereTheDocumentSays(ctx context.Context, s *Session) {
	for _, p := range s.present(parties) {
		s.Accepted(ctx, p, s.Mint(ctx, lab.MintRequest{Audiences: []string{p.Audience}}), "issuers in the style of "+s.Info.IssuerStyle)
	}
	s.Advance(ctx, 48*time.Hour) // beyond every cache
	for _, p := range own {
		token := s.Forge(ctx, lab.ForgeRequest{MintRequest: lab.MintRequest{Audiences: []string{p.Audience}}})
		s.Accepted(ctx, p, token, "keys are fetched again")
		var fetched []string
		s.Must(s.Lab.Trace(ctx, trace.JourneyOf(token), false, func(e trace.Event) error {
			if e.Step == "discovery" && e.Station == p.Name {
				fetched = append(fetched, e.Got)
			}
			return nil
		}))
		s.Expect(fetched).To(Equal([]string{s.Cluster().JWKSURI}), "the key sets that "+p.Name+" was pointed to")
	}
	for _, guess := range []string{"/openid/v1/jwks", "/jwks", "/keys", "/.well-known/jwks.json"} {
		url := strings.TrimSuffix(s.Cluster().Issuer, "/") + guess
		response, _ := s.Get(ctx, http.MethodGet, url, nil)
		s.Expect(response.StatusCode == http.StatusOK).To(Equal(url == s.Cluster().JWKSURI), url)
	}
}
