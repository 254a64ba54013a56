package generic

import (
	"errors"
	"mime"
	"net/http"
	"net/url"
	"unicode/utf8"

	"github.com/oidclab/oidclab/lab/sts/internal/tokenservice"
)

// The URIs of RFC 8693, section 2.1 and section 3, and of RFC 7523, section 2.
const (
	grantType        = "urn:ietf:params:oauth:grant-type:token-exchange"
	grantAssertion   = "urn:ietf:params:oauth:grant-type:jwt-bearer"
	grantCredentials = "client_credentials" // RFC 6749 section 4.4
	clientAssertion  = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"

	tokenTypeAccessToken = "urn:ietf:params:oauth:token-type:access_token"
	tokenTypeIDToken     = "urn:ietf:params:oauth:token-type:id_token"
	tokenTypeJWT         = "urn:ietf:params:oauth:token-type:jwt"
)

// maxBodyBytes bounds a request body: far more than any profile lets a token
// have, so that a large token is refused for what it is.
const maxBodyBytes = 256 << 10

// exchangeRequest is a request for an access token: by token exchange (RFC 8693
// section 2.1), with the workload's token as the grant (RFC 7523 section 2.1),
// or with it as the credentials of a client (section 2.2).
type exchangeRequest struct {
	dialect
	subjectToken string
	clientID     string // of a client assertion; "" if it is not named
	target       string // "" if it is not named
}

// dialect is where a grant has the token, and how a bad one is answered.
type dialect struct {
	parameter string
	badToken  string // error code; "" leaves it to the party
}

var (
	tokenExchange = dialect{parameter: "subject_token"}
	jwtBearer     = dialect{parameter: "assertion", badToken: "invalid_grant"}         // RFC 7523 section 3.1
	asClient      = dialect{parameter: "client_assertion", badToken: "invalid_client"} // RFC 7523 section 3.2
)

// readRequest parses the request, once. If it fails, subjectToken is set
// nevertheless as far as it was found, for the trace.
func readRequest(r *http.Request) (exchangeRequest, *oauthError) {
	if media, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || media != "application/x-www-form-urlencoded" {
		return exchangeRequest{}, invalidRequest("the request must be application/x-www-form-urlencoded")
	}
	if r.URL.RawQuery != "" {
		return exchangeRequest{}, invalidRequest("parameters belong in the body, not in the query")
	}
	body, err := tokenservice.ReadBody(r, maxBodyBytes)
	switch {
	case errors.As(err, new(*http.MaxBytesError)):
		return exchangeRequest{}, &oauthError{http.StatusRequestEntityTooLarge, "invalid_request", "the request is too large"}
	case err != nil:
		return exchangeRequest{}, invalidRequest("the request could not be read")
	}
	if r.Header.Get("Authorization") != "" {
		return exchangeRequest{}, &oauthError{http.StatusUnauthorized, "invalid_client", "this service has no clients; send no Authorization header"}
	}
	return parseRequest(body)
}

// parseRequest reads the form. Parameters without a value count as omitted and
// unknown ones are ignored, as RFC 6749 section 3.2 has it.
func parseRequest(body string) (exchangeRequest, *oauthError) {
	form, err := url.ParseQuery(body)
	if err != nil { // which quotes the body
		return exchangeRequest{}, invalidRequest("the body is not a form")
	}
	request := exchangeRequest{dialect: tokenExchange}
	switch form.Get("grant_type") {
	case grantAssertion:
		request.dialect = jwtBearer
	case grantCredentials:
		request.dialect = asClient
		request.clientID = form.Get("client_id")
	}
	request.subjectToken = form.Get(request.parameter)
	for name, values := range form {
		if len(values) > 1 && name != "audience" && name != "resource" {
			return request, invalidRequest("a parameter is there twice")
		}
		for _, v := range values {
			if !utf8.ValidString(v) {
				return request, invalidRequest("a parameter is not UTF-8")
			}
		}
	}
	var e *oauthError
	switch form.Get("grant_type") {
	case grantType:
		e = checkSubjectToken(form)
	case grantAssertion:
	case grantCredentials:
		e = checkClientAssertion(form)
	case "":
		e = invalidRequest("grant_type is missing")
	default:
		e = &oauthError{http.StatusBadRequest, "unsupported_grant_type", "the grant_type must be " + grantType + ", " + grantAssertion + " or " + grantCredentials}
	}
	if e == nil {
		e = checkUnsupported(form)
	}
	if e != nil {
		return request, e
	}
	request.target, e = targetOf(form)
	return request, e
}

func checkSubjectToken(form url.Values) *oauthError {
	switch form.Get("subject_token_type") {
	case tokenTypeJWT, tokenTypeIDToken:
	case "":
		return invalidRequest("subject_token_type is missing")
	default:
		return invalidRequest("the subject_token_type must be " + tokenTypeJWT + " or " + tokenTypeIDToken)
	}
	switch form.Get("requested_token_type") {
	case "", tokenTypeAccessToken:
		return nil
	default:
		return invalidRequest("the requested_token_type can only be " + tokenTypeAccessToken)
	}
}

// checkUnsupported refuses what would mean something that this service cannot do.
func checkUnsupported(form url.Values) *oauthError {
	switch {
	case form.Get("actor_token") != "" || form.Get("actor_token_type") != "":
		return invalidRequest("this service knows no delegation; send no actor_token and no actor_token_type")
	case form.Get("scope") != "":
		return &oauthError{http.StatusBadRequest, "invalid_scope", "this service has no scopes; send none"}
	case form.Get("client_secret") != "":
		return &oauthError{http.StatusBadRequest, "invalid_client", "this service has no clients with secrets; send no client_secret"}
	case form.Get("client_assertion") != "" && form.Get("grant_type") != grantCredentials:
		return &oauthError{http.StatusBadRequest, "invalid_client", "a client_assertion goes with the grant_type " + grantCredentials + " only"}
	}
	return nil
}

// checkClientAssertion wants the one way of authentication that there is. That
// there is an assertion is left to the core.
func checkClientAssertion(form url.Values) *oauthError {
	switch form.Get("client_assertion_type") {
	case clientAssertion:
		return nil
	case "":
		return invalidRequest("client_assertion_type is missing")
	default:
		return invalidRequest("the client_assertion_type must be " + clientAssertion)
	}
}

// targetOf returns the one target service, which may be named by audience or
// resource, and more than once; "" if it is not.
func targetOf(form url.Values) (string, *oauthError) {
	target := ""
	for _, name := range []string{"audience", "resource"} {
		for _, value := range form[name] {
			if value == "" {
				continue
			}
			// RFC 8707 section 2: an absolute URI without a fragment.
			if u, err := url.Parse(value); name == "resource" && (err != nil || !u.IsAbs() || u.Fragment != "") {
				return "", invalidTarget("the resource must be an absolute URI without a fragment")
			}
			if target != "" && target != value {
				return "", invalidTarget("a token is for one target; ask for one at a time")
			}
			target = value
		}
	}
	return target, nil
}
