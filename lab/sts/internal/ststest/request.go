package ststest

import (
	"io"
	"net/http"
	"strings"
	"testing"
)

// Request returns a request, with the content type of forms if it is a POST.
func Request(t testing.TB, method, target, body string) *http.Request {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), method, target, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if method == http.MethodPost {
		request.Header.Set("Content-Type", "application/x-www-form-urlencoded; charset=utf-8")
	}
	return request
}

// Do sends a request to a persona, whose answers must carry the time of the lab.
func (l *Lab) Do(t testing.TB, request *http.Request) (status int, header http.Header, body []byte) {
	t.Helper()
	response, err := l.Client.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	body, err = io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := response.Header.Get("Date"), l.Clock.Now().UTC().Format(http.TimeFormat); got != want {
		t.Errorf("Date %q, want %q", got, want)
	}
	return response.StatusCode, response.Header, body
}
