// Package tokenservice is what the OAuth 2.0 token services of personas have in
// common: they read a form, sign an access token, and answer with JSON at the
// time of the lab.
package tokenservice

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"strings"
	"unicode/utf8"

	"github.com/go-jose/go-jose/v4"

	"github.com/oidclab/oidclab/lab/clock"
	"github.com/oidclab/oidclab/lab/sts"
)

const (
	// Algorithm is that of access tokens: of those that every library verifies, the
	// one that is cheapest to sign.
	Algorithm = "ES256"

	// TypeJWT is the typ header of access tokens that have no type of their own.
	TypeJWT = "JWT"
)

// Signer signs access tokens with one key, which is made for it and never
// leaves it.
type Signer struct {
	public jose.JSONWebKey
	key    *ecdsa.PrivateKey
	header string // of every token, encoded
}

// NewSigner returns a signer of tokens with the given typ header. It has a new
// key, whose kid is its thumbprint (RFC 7638).
func NewSigner(tokenType string) (*Signer, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("signing key: %w", err)
	}
	public := jose.JSONWebKey{Key: key.Public(), Algorithm: Algorithm, Use: "sig"}
	thumbprint, err := public.Thumbprint(crypto.SHA256)
	if err != nil {
		return nil, fmt.Errorf("signing key: %w", err)
	}
	public.KeyID = base64.RawURLEncoding.EncodeToString(thumbprint)
	header, err := json.Marshal(struct {
		Algorithm string `json:"alg"`
		KeyID     string `json:"kid"`
		Type      string `json:"typ"`
	}{Algorithm, public.KeyID, tokenType})
	if err != nil {
		return nil, fmt.Errorf("signing key: %w", err)
	}
	return &Signer{public: public, key: key, header: base64.RawURLEncoding.EncodeToString(header)}, nil
}

// KeySet returns the key set (RFC 7517) that verifies the signer's tokens.
func (s *Signer) KeySet() jose.JSONWebKeySet {
	return jose.JSONWebKeySet{Keys: []jose.JSONWebKey{s.public}}
}

// Sign returns a compact token (RFC 7515 section 7.1) with the claims, which must
// encode as a JSON object. It is what an exchange costs beside the verification,
// hence without a library's generality.
func (s *Signer) Sign(claims any) (string, error) {
	payload, err := json.Marshal(claims)
	if err != nil {
		return "", err
	}
	const signatureLength = 64 // RFC 7518 section 3.4
	token := make([]byte, 0, len(s.header)+len(".")+base64.RawURLEncoding.EncodedLen(len(payload))+len(".")+base64.RawURLEncoding.EncodedLen(signatureLength))
	token = append(append(token, s.header...), '.')
	token = base64.RawURLEncoding.AppendEncode(token, payload)
	digest := sha256.Sum256(token)
	r, t, err := ecdsa.Sign(rand.Reader, s.key, digest[:])
	if err != nil {
		return "", err
	}
	var signature [signatureLength]byte
	r.FillBytes(signature[:signatureLength/2])
	t.FillBytes(signature[signatureLength/2:])
	return string(base64.RawURLEncoding.AppendEncode(append(token, '.'), signature[:])), nil
}

// AccessTokens returns how a protected resource judges the tokens of a Signer,
// which may have any of the given typ headers.
func AccessTokens(types ...string) sts.Profile {
	profile := sts.Strict()
	profile.Name = "access token"
	profile.Algorithms = []string{Algorithm}
	profile.Types = types
	return profile
}

// maxFormBytes bounds a request. It is more than any profile lets a token
// have, so that a large token is refused for what it is.
const maxFormBytes = 256 << 10

// FormError says what is wrong with a form, as a sentence for an answer. It
// quotes nothing of the form.
type FormError struct {
	Status int // HTTP
	Text   string
}

// Error implements the error interface.
func (e *FormError) Error() string { return e.Text }

// ReadForm reads the parameters of a token request (RFC 6749 section 3.2):
// they are in the body, each once, in UTF-8. After an error it returns what was
// read nevertheless, for the trace.
func ReadForm(r *http.Request) (url.Values, *FormError) {
	if media, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || media != "application/x-www-form-urlencoded" {
		return nil, &FormError{http.StatusBadRequest, "the request must be application/x-www-form-urlencoded"}
	}
	body, err := ReadBody(r, maxFormBytes)
	switch {
	case errors.As(err, new(*http.MaxBytesError)):
		return nil, &FormError{http.StatusRequestEntityTooLarge, "the request is too large"}
	case err != nil:
		return nil, &FormError{http.StatusBadRequest, "the request could not be read"}
	}
	form, err := url.ParseQuery(body)
	if err != nil { // which quotes the body
		return nil, &FormError{http.StatusBadRequest, "the body is not a form"}
	}
	for _, values := range form {
		if len(values) > 1 {
			return form, &FormError{http.StatusBadRequest, "a parameter is there twice"}
		}
		if !utf8.ValidString(values[0]) {
			return form, &FormError{http.StatusBadRequest, "a parameter is not UTF-8"}
		}
	}
	return form, nil
}

// ReadBody reads a body of at most so many bytes. Of a larger one, the error is an
// [http.MaxBytesError].
func ReadBody(r *http.Request, limit int64) (string, error) {
	var body strings.Builder
	if r.ContentLength > 0 && r.ContentLength <= limit {
		body.Grow(int(r.ContentLength))
	}
	var chunk [2 << 10]byte
	for reader := http.MaxBytesReader(nil, r.Body, limit); ; {
		n, err := reader.Read(chunk[:])
		body.Write(chunk[:n])
		if err == io.EOF {
			return body.String(), nil
		}
		if err != nil {
			return "", err
		}
	}
}

// SetDate sets the Date header to the time of the lab.
func SetDate(w http.ResponseWriter, c clock.Clock) {
	w.Header().Set("Date", c.Now().UTC().Format(http.TimeFormat))
}

// WriteJSON answers with a value.
func WriteJSON(w http.ResponseWriter, status int, value any) {
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(value) // the client may be gone
}
