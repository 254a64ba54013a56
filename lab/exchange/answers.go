package exchange

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
)

// explain reads the code and the message of an answer that is not a success.
type explain func(body []byte) (code, message string)

// answers is the transport of an SDK for one exchange. It keeps the last
// answer, which not every SDK hands out, and holds the SDK to the rules of this
// package: one host, answers of limited length, the caller's context.
type answers struct {
	ctx  context.Context
	next http.RoundTripper
	host string

	bearer string // of the last request; "" if it had none
	status int    // of the last answer; 0 if there is none
	body   []byte
	err    error // of the last request, if it was not answered
}

// watch returns a client for an SDK that is to talk to the host of address
// only, and what that host answers.
func watch(ctx context.Context, client *http.Client, address string) (*http.Client, *answers, error) {
	u, err := url.Parse(address)
	if err != nil {
		return nil, nil, err
	}
	seen := &answers{ctx: ctx, next: client.Transport, host: u.Host}
	if seen.next == nil {
		seen.next = http.DefaultTransport
	}
	watched := direct(client)
	watched.Transport = seen
	return watched, seen, nil
}

// RoundTrip implements [http.RoundTripper].
func (a *answers) RoundTrip(request *http.Request) (*http.Response, error) {
	a.status, a.body = 0, nil
	a.bearer = strings.TrimPrefix(request.Header.Get("Authorization"), "Bearer ")
	response, err := a.ask(request)
	if a.ctx.Err() != nil {
		err = a.ctx.Err()
	}
	a.err = err
	if err != nil {
		return nil, err
	}
	a.status = response.StatusCode
	response.Body = io.NopCloser(bytes.NewReader(a.body))
	return response, nil
}

// ask sends a request and reads the whole answer.
func (a *answers) ask(request *http.Request) (*http.Response, error) {
	if request.URL.Host != a.host {
		if request.Body != nil {
			request.Body.Close()
		}
		return nil, fmt.Errorf("the SDK turns to %s, and a token for %s is sent nowhere else; check the SDK's environment variables", request.URL.Host, a.host)
	}
	ctx, cancel := context.WithCancel(request.Context())
	defer cancel()
	defer context.AfterFunc(a.ctx, cancel)()
	response, err := a.next.RoundTrip(request.WithContext(ctx))
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", request.Method, request.URL, err)
	}
	defer response.Body.Close()
	a.body, err = io.ReadAll(io.LimitReader(response.Body, maxAnswer+1))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", request.URL, err)
	}
	if len(a.body) > maxAnswer {
		return nil, fmt.Errorf("%s: the answer is longer than %d bytes", request.URL, maxAnswer)
	}
	return response, nil
}

// failure returns the error for one that an SDK returned.
func (a *answers) failure(party string, err error, explain explain, secrets ...string) error {
	switch {
	case a.err != nil:
		return fmt.Errorf("%s: %w", party, a.err)
	case a.status == 0:
		return fmt.Errorf("%s: %w", party, err)
	case a.status != http.StatusOK:
		code, message := explain(a.body)
		return answered(party, a.status, code, message, append(secrets, a.bearer)...)
	}
	text := err.Error() // may quote an answer with a token in it
	if len(a.body) > 0 {
		text = strings.ReplaceAll(text, string(a.body), "[answer]")
	}
	return fmt.Errorf("%s: the answer is not that of a token service: %s", party, shown(text, append(secrets, a.bearer)...))
}

// use calls an API with an access token (RFC 6750 section 2.1) and returns the
// body of its answer.
func use(ctx context.Context, client *http.Client, party, address, accessToken string, header http.Header, explain explain) ([]byte, error) {
	if err := secure(party, address); err != nil {
		return nil, err
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", party, err)
	}
	if header != nil {
		request.Header = header
	}
	request.Header.Set("Authorization", "Bearer "+accessToken)
	response, body, err := do(client, request)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", party, err)
	}
	if response.StatusCode != http.StatusOK {
		code, message := explain(body)
		return nil, answered(party, response.StatusCode, code, message, accessToken)
	}
	return body, nil
}
