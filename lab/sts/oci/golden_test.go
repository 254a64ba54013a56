package oci

import (
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"flag"
	"net/http"
	"net/url"
	"regexp"
	"testing"
	"time"

	"github.com/oracle/oci-go-sdk/v65/common"

	"github.com/oidclab/oidclab/lab/sts/internal/ststest"
)

var update = flag.Bool("update", false, "rewrite the responses in testdata")

func TestGolden(t *testing.T) {
	n := newTenancy(t)
	n.Clock.Freeze(time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC))
	both := http.NewServeMux()
	both.Handle("/", n.handler)
	both.Handle("/resourcePrincipalSessionTokens", n.handler.Proxymux())
	server := n.Listen(t)
	server.Serve(both)

	session := n.post(t, testClient, n.form(t, n.token(t, nil))).Token
	n.url, n.proxymux = server.URL(), server.URL()+"/resourcePrincipalSessionTokens"
	signature := func(path string, at time.Time) string {
		request := ststest.Request(t, http.MethodGet, n.url+path, "")
		request.Header.Set("Date", at.UTC().Format(http.TimeFormat))
		if err := common.DefaultRequestSigner(caller{session, n.key}).Sign(request); err != nil {
			t.Fatal(err)
		}
		return request.Header.Get("Authorization")
	}
	podKey, err := json.Marshal(string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: publicDER(t, n.key.Public())})))
	if err != nil {
		t.Fatal(err)
	}
	const hello, other = "/n/axdemo/b/demo/o/hello.txt", "/n/axdemo/b/other/o/hello.txt"
	n.Golden(t, n.url, *update, map[string]string{
		"token":                        n.token(t, nil),
		"token for another audience":   n.token(t, map[string]any{"aud": "vault"}),
		"token of another subject":     n.token(t, map[string]any{"sub": strayWorkload}),
		"token with a slash":           n.token(t, map[string]any{"iss": n.issuer.URL + "/"}),
		"expired token":                n.token(t, map[string]any{"exp": n.Clock.Now().Add(-time.Hour).Unix()}),
		"pod token":                    n.podToken(t, nil),
		"pod token of a basic cluster": n.basic.Sign(t, n.basic.Claims(testSubject, apiAudience, nil)),
		"public key":                   url.QueryEscape(base64.StdEncoding.EncodeToString(publicDER(t, n.key.Public()))),
		"pod key":                      string(podKey),
		"client":                       base64.StdEncoding.EncodeToString([]byte(testClient + ":" + testSecret)),
		"signature":                    signature("/n/axdemo/b/demo/o/a%2Fhello.txt", n.Clock.Now()),
		"signature, namespace":         signature("/n", n.Clock.Now()),
		"signature, no such object":    signature(hello, n.Clock.Now()),
		"signature, no such bucket":    signature(other, n.Clock.Now()),
		"signature, yesterday":         signature("/n", n.Clock.Now().Add(-24*time.Hour)),
	},
		ststest.Replacement{Pattern: `"token":"[\w.-]+"`, Name: `"token":"{{session token}}"`},
		ststest.Replacement{Pattern: `"[A-Za-z0-9+/]{500,}=*"`, Name: `"{{base64 of the session token}}"`},
		ststest.Replacement{Pattern: `"ecid":"[\w-]+"`, Name: `"ecid":"{{id}}"`},
		ststest.Replacement{Pattern: `Opc-Request-Id: [\w-]+`, Name: `Opc-Request-Id: {{id}}`},
		ststest.Replacement{Pattern: `"(x|y|kid)":"[\w-]+"`, Name: `"{{key}}"`},
		ststest.Replacement{Pattern: regexp.QuoteMeta(n.handler.service.URL), Name: "{{oci}}"},
	)
}
