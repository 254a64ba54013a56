// Package exchange is what a workload does with its service-account token: it
// exchanges it at a relying party, and uses what it gets.
//
// The requests are made by the vendors' own SDKs where there is one. A refusal
// costs one request: nothing is repeated in the hope of another answer, no
// redirect is followed, and a token is sent over HTTPS only.
package exchange

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"
)

// RefusedError says that a party could be reached and said no: it answered
// with a status from 400 to 499. Every other failure is another error.
type RefusedError struct {
	Party   string `json:"party"`          // such as "aws", "generic", "resource" or "vault"
	Status  int    `json:"status"`         // of HTTP
	Code    string `json:"code,omitempty"` // the vendor's, where it has codes
	Message string `json:"message"`        // the vendor's
}

// Error says who refused, and how.
func (e *RefusedError) Error() string {
	code := ""
	if e.Code != "" {
		code = " " + e.Code
	}
	return fmt.Sprintf("%s refused (%d%s): %s", e.Party, e.Status, code, e.Message)
}

// Limits of one exchange.
const (
	requestTimeout = 30 * time.Second
	maxAnswer      = 1 << 20 // bytes
	maxMessage     = 1 << 10 // bytes that are shown of what a party says
)

// NewClient returns an HTTP client that trusts the given roots (PEM) and no
// others. It uses no proxy, whatever the environment says.
func NewClient(rootsPEM []byte) (*http.Client, error) {
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(rootsPEM) {
		return nil, errors.New("exchange: the certificate authority is not a PEM certificate")
	}
	return &http.Client{
		Timeout: requestTimeout,
		Transport: &http.Transport{
			TLSClientConfig:   &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12},
			ForceAttemptHTTP2: true,
		},
	}, nil
}

// direct returns a client that stops at redirects: a token is for the party it
// was sent to.
func direct(client *http.Client) *http.Client {
	c := *client
	c.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return &c
}

// answered returns the error for an answer that is not a success.
func answered(party string, status int, code, message string, secrets ...string) error {
	message = shown(message, secrets...)
	if status >= 400 && status < 500 {
		return &RefusedError{Party: party, Status: status, Code: shown(code, secrets...), Message: message}
	}
	return fmt.Errorf("%s: status %d: %s %s", party, status, code, message)
}

// shown makes what a party said safe and short enough for a terminal or a log.
func shown(text string, secrets ...string) string {
	for _, secret := range secrets {
		if secret != "" {
			text = strings.ReplaceAll(text, secret, "[token]")
		}
	}
	if len(text) > maxMessage {
		text = text[:maxMessage] + "…"
	}
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(strings.TrimSpace(text), "?"))
}

// secure wants an https URL: a token must not travel in the clear.
func secure(party, address string) error {
	if !strings.HasPrefix(address, "https://") {
		return fmt.Errorf("%s: %q is not an https URL, and a token is sent over HTTPS only", party, address)
	}
	return nil
}
