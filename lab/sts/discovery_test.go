package sts

import (
	"compress/gzip"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// TestKeySetIsRefused serves discovery documents and key sets that must not be used.
func TestKeySetIsRefused(t *testing.T) {
	var followed atomic.Int32
	stranger := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		followed.Add(1)
		text(keySetOf(rsaKey().jwk()))(w, nil)
	}))
	defer stranger.Close()

	document := func(change func(document map[string]any, i *testIssuer)) func(*testIssuer) {
		return func(i *testIssuer) {
			d := map[string]any{"issuer": i.URL, "jwks_uri": i.URL + "/openid/v1/jwks"}
			change(d, i)
			i.serveDiscovery(toJSON(d))
		}
	}
	jwksURI := func(uri string) func(*testIssuer) {
		return document(func(d map[string]any, _ *testIssuer) { d["jwks_uri"] = uri })
	}
	keys := func(body string) func(*testIssuer) { return func(i *testIssuer) { i.serveKeys(body) } }
	many := make([]map[string]any, 101)
	for n := range many {
		many[n] = rsaKey().withKid(fmt.Sprint("rsa-", n)).jwk()
	}
	for name, tt := range map[string]struct {
		change func(*testIssuer)
		says   string
	}{
		"404":                       {func(i *testIssuer) { i.handleDiscovery(http.NotFound) }, "404"},
		"redirect of the discovery": {func(i *testIssuer) { i.handleDiscovery(http.RedirectHandler(stranger.URL, http.StatusFound).ServeHTTP) }, "redirects are not followed"},
		"redirect of the keys": {func(i *testIssuer) {
			i.handleKeys(http.RedirectHandler(stranger.URL, http.StatusTemporaryRedirect).ServeHTTP)
		}, "redirects are not followed"},
		"not JSON":                   {func(i *testIssuer) { i.serveDiscovery("<html>") }, "not valid JSON"},
		"empty":                      {func(i *testIssuer) { i.serveDiscovery("") }, "not valid JSON"},
		"too large":                  {func(i *testIssuer) { i.serveDiscovery(strings.Repeat(" ", 1<<20) + "{}") }, "larger than"},
		"gzip bomb":                  {func(i *testIssuer) { i.handleDiscovery(bomb) }, "larger than"},
		"no issuer":                  {document(func(d map[string]any, _ *testIssuer) { delete(d, "issuer") }), "issuer is"},
		"another issuer":             {document(func(d map[string]any, _ *testIssuer) { d["issuer"] = "https://evil.example" }), "issuer is"},
		"issuer with trailing slash": {document(func(d map[string]any, i *testIssuer) { d["issuer"] = i.URL + "/" }), "issuer is"},
		"issuer in capitals":         {document(func(d map[string]any, i *testIssuer) { d["Issuer"] = i.URL }), "case"},
		"issuer twice": {func(i *testIssuer) {
			i.serveDiscovery(like(map[string]any{"issuer": i.URL, "jwks_uri": i.URL + "/openid/v1/jwks"}, `"issuer":"x"`))
		}, "twice"},
		"no jwks_uri":       {document(func(d map[string]any, _ *testIssuer) { delete(d, "jwks_uri") }), "jwks_uri"},
		"jwks_uri a number": {document(func(d map[string]any, _ *testIssuer) { d["jwks_uri"] = 1 }), "jwks_uri"},
		"other host":        {jwksURI(stranger.URL + "/openid/v1/jwks"), "want one under"},
		"metadata service":  {jwksURI("https://169.254.169.254/latest"), "want one under"},
		"plain HTTP": {document(func(d map[string]any, i *testIssuer) {
			d["jwks_uri"] = strings.Replace(i.URL, "https", "http", 1) + "/openid/v1/jwks"
		}), "want one under"},
		"user in jwks_uri": {document(func(d map[string]any, i *testIssuer) {
			d["jwks_uri"] = strings.Replace(i.URL, "https://", "https://a@", 1) + "/openid/v1/jwks"
		}), "want one under"},
		"issuer's host as user": {document(func(d map[string]any, i *testIssuer) {
			d["jwks_uri"] = i.server.URL + "@evil.example/openid/v1/jwks"
		}), "jwks_uri"},
		"relative jwks_uri": {jwksURI("/c/1/openid/v1/jwks"), "want one under"},

		"keys not JSON":       {keys("keys"), "not valid JSON"},
		"keys an array":       {keys("[]"), "not a JSON object"},
		"no keys member":      {keys("{}"), `no array "keys"`},
		"keys in capitals":    {keys(`{"Keys":[]}`), `no array "keys"`},
		"keys null":           {keys(`{"keys":null}`), `no array "keys"`},
		"keys of numbers":     {keys(`{"keys":[1]}`), "not an object"},
		"keys twice":          {keys(`{"keys":[],"keys":[]}`), "twice"},
		"kid twice in a key":  {keys(strings.Replace(keySetOf(rsaKey().jwk()), `"kid"`, `"kid":"x","kid"`, 1)), "twice"},
		"too many keys":       {keys(keySetOf(many...)), "at most 100"},
		"key set too large":   {keys(strings.Repeat(" ", 1<<20) + "{}"), "larger than"},
		"keys nested deeply":  {keys(`{"keys":` + strings.Repeat("[", 50) + strings.Repeat("]", 50) + `}`), "deeper"},
		"key set answers 500": {func(i *testIssuer) { i.breakKeys() }, "503"},
	} {
		t.Run(name, func(t *testing.T) {
			b := newParty(t, Strict())
			tt.change(b.issuer)
			r := b.refuses(name, CheckKeys, IssuerUnreachable, nil)
			if r.Err == nil || !strings.Contains(r.Err.Error(), tt.says) {
				t.Errorf("error %v, want one that says %q", r.Err, tt.says)
			}
			document(func(map[string]any, *testIssuer) {})(b.issuer)
			b.issuer.publish(rsaKey())
			b.clock.Advance(time.Minute)
			b.accepts("control", nil)
		})
	}
	if n := followed.Load(); n > 0 {
		t.Errorf("%d requests to another host", n)
	}
}

// TestNoURLOfATokenIsFollowed points tokens at a server that any of the clients
// could reach: whatever the profile makes of them, nobody calls.
func TestNoURLOfATokenIsFollowed(t *testing.T) {
	var called atomic.Int32
	stranger := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		called.Add(1)
		text(keySetOf(otherRSA().withKid("rsa-1").jwk()))(w, r)
	}))
	defer stranger.Close()
	for _, profile := range Profiles() {
		b := newParty(t, profile)
		foreign := otherRSA().withKid("rsa-1")
		for name, change := range map[string]func(*forged){
			"jku":      func(f *forged) { with(f.header, "jku", stranger.URL+"/jwks") },
			"x5u":      func(f *forged) { with(f.header, "x5u", stranger.URL+"/x5u") },
			"jwk":      func(f *forged) { with(f.header, "jwk", foreign.jwk()) },
			"x5c":      func(f *forged) { with(f.header, "x5c", []string{"MIIB"}) },
			"kid":      func(f *forged) { with(f.header, "kid", stranger.URL+"/jwks") },
			"iss":      func(f *forged) { with(f.claims, "iss", stranger.URL) },
			"jwks_uri": func(f *forged) { with(f.claims, "jwks_uri", stranger.URL+"/jwks") },
			"_claim_source": func(f *forged) {
				with(f.claims, "_claim_sources", map[string]any{"a": map[string]any{"endpoint": stranger.URL}})
			},
		} {
			if v := b.exchange(func(f *forged) { f.key = foreign; change(f) }); v.Refusal == nil {
				t.Errorf("%s: %s: accepted", profile.Name, name)
			}
		}
		b.accepts(profile.Name+": control", nil)
	}
	if n := called.Load(); n > 0 {
		t.Errorf("%d requests to an address from a token", n)
	}
	if _, err := newParty(t, Strict()).core.cfg.Client.Get(stranger.URL); err != nil || called.Load() != 1 {
		t.Errorf("control: the client does not reach the address: %v", err)
	}
}

// bomb serves 256 MiB in 256 KiB.
func bomb(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Encoding", "gzip")
	z := gzip.NewWriter(w)
	defer z.Close()
	zeros := make([]byte, 1<<20)
	for range 256 {
		if _, err := z.Write(zeros); err != nil {
			return
		}
	}
}

func TestUntrustedCertificateIsRefused(t *testing.T) {
	b := newParty(t, Strict(), func(c *Config) { c.Client = &http.Client{} })
	if r := b.refuses("a client without the CA", CheckKeys, IssuerUnreachable, nil); !strings.Contains(fmt.Sprint(r.Err), "certificate") {
		t.Error(r)
	}
	newParty(t, Strict()).accepts("control", nil)
}

// TestTrailingSlashIssuer has one slash between issuer and well-known path.
func TestTrailingSlashIssuer(t *testing.T) {
	issuer := newIssuer(t, rsaKey())
	issuer.serveDiscovery(toJSON(map[string]any{"issuer": issuer.URL + "/", "jwks_uri": issuer.URL + "/openid/v1/jwks"}))
	b := newParty(t, Strict(), func(c *Config) {
		c.Issuers[0].URL = issuer.URL + "/"
		c.Roles[0].Trust[0].Issuer = issuer.URL + "/"
	})
	b.accepts("issuer with a slash", func(f *forged) { with(f.claims, "iss", issuer.URL+"/") })
	b.refuses("without the slash", CheckIssuer, IssuerUnknown, func(f *forged) { with(f.claims, "iss", issuer.URL) })
}

func TestSameOrigin(t *testing.T) {
	for _, tt := range []struct {
		keys, issuer string
		want         bool
	}{
		{"https://a.example/jwks", "https://a.example/c/1", true},
		{"https://a.example:443/jwks", "https://a.example", true},
		{"https://a.example/jwks", "https://a.example:443", true},
		{"https://A.example/jwks", "https://a.example", true},
		{"https://a.example:8443/jwks", "https://a.example", false},
		{"https://b.a.example/jwks", "https://a.example", false},
		{"https://a.example.evil.example/jwks", "https://a.example", false},
		{"https://a.example@evil.example/jwks", "https://a.example", false},
		{"https://[::1]/jwks", "https://[::1]:443", true},
		{"https://[::ffff:127.0.0.1]/jwks", "https://127.0.0.1", false},
		{"http://a.example/jwks", "https://a.example", false},
		{"//a.example/jwks", "https://a.example", false},
		{"https:a.example", "https://a.example", false},
		{"https://a.example/jwks#x", "https://a.example", false},
		{"", "https://a.example", false},
	} {
		if err := sameOrigin(tt.keys, tt.issuer); (err == nil) != tt.want {
			t.Errorf("%s for %s: %v", tt.keys, tt.issuer, err)
		}
	}
}
