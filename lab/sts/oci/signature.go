package oci

import (
	"bytes"
	"crypto"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
)

// clockSkew is how far the Date of a request may be from now ("Request
// Signatures", "Maximum allowed client clock skew").
const clockSkew = 5 * time.Minute

// maxSignedBody bounds the body of a signed request.
const maxSignedBody = 1 << 20

// dateLayout is that of the vendor's messages.
const dateLayout = "Mon, 02 Jan 2006 15:04:05 UTC"

// signature is the Authorization header of a request
// (draft-cavage-http-signatures-08 section 4.1).
type signature struct {
	keyID   string
	headers []string // lower case, in the order of the signing string
	value   []byte
}

// parseSignature reads the header. Its errors quote nothing of it.
func parseSignature(header string) (signature, error) {
	scheme, rest, _ := strings.Cut(header, " ")
	if scheme != "Signature" {
		return signature{}, errors.New("the Authorization header is no signature")
	}
	fields := map[string]string{}
	for parameter := range strings.SplitSeq(rest, ",") {
		name, quoted, _ := strings.Cut(strings.TrimSpace(parameter), "=")
		if len(quoted) < 2 || quoted[0] != '"' || quoted[len(quoted)-1] != '"' || strings.Contains(quoted[1:len(quoted)-1], `"`) {
			return signature{}, errors.New("a parameter of the signature is not a quoted string")
		}
		if _, ok := fields[name]; ok {
			return signature{}, errors.New("a parameter of the signature is there twice")
		}
		fields[name] = quoted[1 : len(quoted)-1]
	}
	if fields["version"] != "1" || fields["algorithm"] != "rsa-sha256" {
		return signature{}, errors.New("the signature is not of version 1 with rsa-sha256")
	}
	value, err := base64.StdEncoding.DecodeString(fields["signature"])
	if err != nil || len(value) == 0 {
		return signature{}, errors.New("the signature is not base64")
	}
	s := signature{keyID: fields["keyId"], headers: strings.Fields(strings.ToLower(fields["headers"])), value: value}
	return s, s.checkHeaders()
}

func (s signature) checkHeaders() error {
	sorted := slices.Clone(s.headers)
	slices.Sort(sorted)
	if len(slices.Compact(sorted)) != len(s.headers) {
		return errors.New("a header is signed twice")
	}
	return nil
}

// covers says whether the signature is over all that a request must have signed:
// of one with content, that too.
func (s signature) covers(method string) error {
	required := []string{"(request-target)", "host"}
	if hasContent(method) {
		required = append(required, "content-length", "content-type", "x-content-sha256")
	}
	for _, name := range required {
		if !slices.Contains(s.headers, name) {
			return fmt.Errorf("%s is not signed", name)
		}
	}
	if !slices.Contains(s.headers, "date") && !slices.Contains(s.headers, "x-date") {
		return errors.New("neither date nor x-date is signed")
	}
	return nil
}

func hasContent(method string) bool {
	return method == http.MethodPost || method == http.MethodPut || method == http.MethodPatch
}

// signingString is what the caller signed (section 2.3). A header that is
// signed must be there.
func (s signature) signingString(r *http.Request) (string, error) {
	lines := make([]string, len(s.headers))
	for i, name := range s.headers {
		var value string
		switch name {
		case "(request-target)":
			value = strings.ToLower(r.Method) + " " + r.RequestURI
		case "host":
			value = r.Host
		case "content-length":
			value = strconv.FormatInt(r.ContentLength, 10)
		default:
			values := r.Header.Values(name)
			if len(values) == 0 {
				return "", fmt.Errorf("the signed header %s is not there", name)
			}
			value = strings.Join(values, ", ")
		}
		lines[i] = name + ": " + value
	}
	return strings.Join(lines, "\n"), nil
}

// verify says what is wrong with the signature of a request by the holder of
// key, or nil. It reads the body, and puts it back.
func (s signature) verify(r *http.Request, key *rsa.PublicKey) error {
	if err := s.covers(r.Method); err != nil {
		return err
	}
	text, err := s.signingString(r)
	if err != nil {
		return err
	}
	digest := sha256.Sum256([]byte(text))
	if err := rsa.VerifyPKCS1v15(key, crypto.SHA256, digest[:], s.value); err != nil {
		return errors.New("the signature is not over this request, or not by the session's key")
	}
	if !hasContent(r.Method) {
		return nil
	}
	body, err := io.ReadAll(http.MaxBytesReader(nil, r.Body, maxSignedBody))
	if err != nil {
		return errors.New("the body is too large or could not be read")
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	content := sha256.Sum256(body)
	if r.Header.Get("X-Content-Sha256") != base64.StdEncoding.EncodeToString(content[:]) {
		return errors.New("the body is not the one that was signed")
	}
	return nil
}

// signedAt is the date of a request: x-date, if that is signed.
func (s signature) signedAt(r *http.Request) (time.Time, error) {
	name := "Date"
	if slices.Contains(s.headers, "x-date") {
		name = "X-Date"
	}
	return http.ParseTime(r.Header.Get(name))
}

// checkDate refuses a request that was signed too long ago, or will be.
func (s signature) checkDate(r *http.Request, now time.Time) *serviceError {
	at, err := s.signedAt(r)
	if err != nil {
		return notAuthenticated("the date of the request is not an HTTP date")
	}
	oldest, newest := now.Add(-clockSkew), now.Add(clockSkew)
	if at.Before(oldest) || at.After(newest) {
		e := notAuthenticated("clock skew")
		show := func(t time.Time) string { return t.UTC().Format(dateLayout) }
		e.message = fmt.Sprintf("Date '%s' is not within allowed clock skew. Current '%s', valid datetime range: ['%s', '%s']",
			show(at), show(now), show(oldest), show(newest.Add(time.Second)))
		return e
	}
	return nil
}
