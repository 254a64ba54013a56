package exchange

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/oracle/oci-go-sdk/v65/common"
)

const ociParty = "oci"

// ociKeyBits is the size of a session's key. Oracle's SDK takes 3072 for those
// of the token exchange, which take seconds to make.
const ociKeyBits = 2048

// OCITarget is a client of an identity domain, and the object storage that it
// wants to read.
type OCITarget struct {
	URL          string // of both
	ClientID     string
	ClientSecret string
	PodURL       string // where the pods of OKE get their identity; an https origin
	Client       *http.Client
}

// OCIResult is a session: a token, and the key that every request with it must
// be signed with.
type OCIResult struct {
	SecurityToken string    `json:"security_token"`
	PrivateKey    string    `json:"private_key"` // PEM, PKCS #8
	Expiry        time.Time `json:"expiry"`      // by the service's clock
}

// OCI exchanges a token for a session of a service user ("Token Exchange Grant
// Type: Exchanging a JSON Web Token for a UPST"). It makes one request, whatever
// the answer. The code of a refusal is the error of RFC 6749 section 5.2.
//
// The request is not made by Oracle's SDK, which takes neither a certificate
// authority nor a context for it, and keeps the answer to a bad one to itself.
func OCI(ctx context.Context, target OCITarget, token string) (OCIResult, error) {
	key, public, err := newOCIKey()
	if err != nil {
		return OCIResult{}, err
	}
	form := url.Values{
		"grant_type": {"urn:ietf:params:oauth:grant-type:token-exchange"}, "requested_token_type": {"urn:oci:token-type:oci-upst"},
		"subject_token": {token}, "subject_token_type": {"jwt"}, "public_key": {base64.StdEncoding.EncodeToString(public)},
	}
	header := http.Header{"Content-Type": {"application/x-www-form-urlencoded"}}
	basic := base64.StdEncoding.EncodeToString([]byte(target.ClientID + ":" + target.ClientSecret))
	header.Set("Authorization", "Basic "+basic)
	body, err := post(ctx, target.Client, target.URL+"/oauth2/v1/token", header, []byte(form.Encode()), oauthError, token, target.ClientSecret, basic)
	if err != nil {
		return OCIResult{}, err
	}
	var answer struct {
		Token string `json:"token"`
	}
	if err := json.Unmarshal(body, &answer); err != nil || answer.Token == "" {
		return OCIResult{}, errors.New("oci: the answer has no token")
	}
	return newOCIResult(answer.Token, key)
}

// OCIPod exchanges a pod's own token for a session of the pod's service account
// at the endpoint that OKE has for it. It makes one request, whatever the
// answer. Oracle's SDK would do, but for the context.
func OCIPod(ctx context.Context, target OCITarget, token string) (OCIResult, error) {
	key, public, err := newOCIKey()
	if err != nil {
		return OCIResult{}, err
	}
	request, err := json.Marshal(map[string]string{"podKey": string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: public}))})
	if err != nil {
		return OCIResult{}, err
	}
	header := http.Header{"Content-Type": {"application/json"}}
	header.Set("Authorization", "Bearer "+token)
	body, err := post(ctx, target.Client, target.PodURL+"/resourcePrincipalSessionTokens", header, request, ociError, token)
	if err != nil {
		return OCIResult{}, err
	}
	var encoded []byte // a JSON string: base64 of a document
	var answer struct {
		Token string `json:"token"`
	}
	if err := json.Unmarshal(body, &encoded); err != nil || json.Unmarshal(encoded, &answer) != nil || !strings.HasPrefix(answer.Token, "ST$") {
		return OCIResult{}, errors.New("oci: the answer has no token")
	}
	return newOCIResult(strings.TrimPrefix(answer.Token, "ST$"), key)
}

// newOCIKey returns a key, and its public part in DER.
func newOCIKey() (key *rsa.PrivateKey, public []byte, err error) {
	if key, err = rsa.GenerateKey(rand.Reader, ociKeyBits); err != nil {
		return nil, nil, fmt.Errorf("oci: %w", err)
	}
	public, err = x509.MarshalPKIXPublicKey(key.Public())
	return key, public, err
}

// post sends a request of which the secrets must not be shown.
func post(ctx context.Context, client *http.Client, address string, header http.Header, body []byte, explain explain, secrets ...string) ([]byte, error) {
	if err := secure(ociParty, address); err != nil {
		return nil, err
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, address, bytes.NewReader(body))
	if err != nil {
		return nil, fmt.Errorf("oci: %w", err)
	}
	request.Header = header
	response, answer, err := do(client, request)
	if err != nil {
		return nil, fmt.Errorf("oci: %w", err)
	}
	if response.StatusCode != http.StatusOK {
		code, message := explain(answer)
		return nil, answered(ociParty, response.StatusCode, code, message, secrets...)
	}
	return answer, nil
}

func newOCIResult(token string, key *rsa.PrivateKey) (OCIResult, error) {
	expiry, err := expiryOf(token)
	if err != nil {
		return OCIResult{}, fmt.Errorf("oci: the answer has no token that the SDK could use: %w", err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return OCIResult{}, err
	}
	private := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
	return OCIResult{SecurityToken: token, PrivateKey: string(private), Expiry: expiry}, nil
}

// ociSession is a session as Oracle's SDK signs with it.
type ociSession struct {
	token string
	key   *rsa.PrivateKey
}

func (s ociSession) KeyID() (string, error)                  { return "ST$" + s.token, nil }
func (s ociSession) PrivateRSAKey() (*rsa.PrivateKey, error) { return s.key, nil }

// ReadOCIObject reads the content of an object with a session (Object Storage
// API, GetObject), signed by Oracle's SDK. It makes one request, and another one
// only if the service's clock turns out to be another. The code of a refusal is
// the service's.
func ReadOCIObject(ctx context.Context, target OCITarget, session OCIResult, namespace, bucket, object string) ([]byte, error) {
	address := target.URL + "/n/" + url.PathEscape(namespace) + "/b/" + url.PathEscape(bucket) + "/o/" + url.PathEscape(object)
	if err := secure(ociParty, address); err != nil {
		return nil, err
	}
	key, err := common.PrivateKeyFromBytes([]byte(session.PrivateKey), nil)
	if err != nil {
		return nil, fmt.Errorf("oci: the session's key: %w", err)
	}
	signer := common.DefaultRequestSigner(ociSession{session.SecurityToken, key})
	at := time.Now()
	for first := true; ; first = false {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
		if err != nil {
			return nil, fmt.Errorf("oci: %w", err)
		}
		request.Header.Set("Date", at.UTC().Format(http.TimeFormat))
		if err := signer.Sign(request); err != nil {
			return nil, fmt.Errorf("oci: %w", err)
		}
		response, body, err := do(target.Client, request)
		if err != nil {
			return nil, fmt.Errorf("oci: %w", err)
		}
		if response.StatusCode == http.StatusOK {
			return body, nil
		}
		service, err := http.ParseTime(response.Header.Get("Date"))
		if first && response.StatusCode == http.StatusUnauthorized && err == nil && service.Sub(at).Abs() > noticeableSkew {
			at = service
			continue
		}
		code, message := ociError(body)
		return nil, answered(ociParty, response.StatusCode, code, message, session.SecurityToken)
	}
}

// ociError reads an error of OCI's services (API reference, "API Errors").
func ociError(body []byte) (code, message string) {
	var answer struct {
		Code    string `json:"code"`
		Message string `json:"message"`
	}
	if err := json.Unmarshal(body, &answer); err != nil || answer.Code == "" {
		return "", string(body)
	}
	return answer.Code, answer.Message
}
