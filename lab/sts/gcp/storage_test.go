package gcp

import (
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"testing"
)

// TestStorage asks for metadata, content and list of objects, each with the
// same access tokens.
func TestStorage(t *testing.T) {
	p := newProject(t)
	app := p.federated(t, nil)
	account := p.impersonate(t, testAccount, app, scopeBody).Impersonated
	unscoped := p.impersonate(t, testAccount, app, `{"scope":["https://www.googleapis.com/auth/iam"]}`).Impersonated
	readOnly := p.impersonate(t, testAccount, app, `{"scope":["https://www.googleapis.com/auth/devstorage.read_only"]}`).Impersonated
	for method, target := range map[string]string{
		"metadata":         "/storage/v1/b/{bucket}/o/greeting",
		"content":          "/storage/v1/b/{bucket}/o/greeting?alt=media",
		"content by media": "/download/storage/v1/b/{bucket}/o/greeting?alt=media",
		"list":             "/storage/v1/b/{bucket}/o",
	} {
		for _, test := range []struct {
			name, bucket, token string
			status              int
			cause               string
		}{
			{"control", "demo", app, 200, ""},
			{"service account", "demo", account, 200, ""},
			{"read-only scope", "demo", readOnly, 200, ""},
			{"another subject", "demo", p.federated(t, map[string]any{"sub": "somebody"}), 403, "forbidden"},
			{"scope", "demo", unscoped, 403, "insufficientPermissions"},
			{"no token", "demo", "", 401, "required"},
			{"garbage token", "demo", "ya29.oidclab-x-y", 401, "authError"},
			{"unknown bucket", "nothing", app, 403, "forbidden"},
		} {
			t.Run(method+" "+test.name, func(t *testing.T) {
				got := p.do(t, http.MethodGet, strings.ReplaceAll(target, "{bucket}", test.bucket), test.token, "", "")
				if got.status != test.status || got.cause() != test.cause {
					t.Errorf("got %d %s, want %d %s", got.status, got.body, test.status, test.cause)
				}
				if test.status == 401 && got.header.Get("WWW-Authenticate") == "" {
					t.Error("401 without a challenge")
				}
			})
		}
	}
}

func TestObjectsThatAreNotThere(t *testing.T) {
	p := newProject(t)
	app := p.federated(t, nil)
	for _, test := range []struct {
		object string
		status int
		cause  string
	}{
		{"greeting", 200, ""},
		{"greeting?alt=json", 200, ""},
		{"greeting?alt=media", 200, ""},
		{"a%2Fb", 200, ""},
		{"nothing", 404, "notFound"},
		{"nothing?alt=media", 404, "notFound"},
		{"greeting?generation=1", 404, "notFound"},
		{"greeting?alt=media&generation=1", 404, "notFound"},
		{"greeting?alt=proto", 400, "invalid"},
	} {
		if got := p.do(t, http.MethodGet, "/storage/v1/b/demo/o/"+test.object, app, "", ""); got.status != test.status || got.cause() != test.cause {
			t.Errorf("%s: got %d %s, want %d %s", test.object, got.status, got.body, test.status, test.cause)
		}
	}
}

// TestMediaLink follows the link of an object, as gcloud does.
func TestMediaLink(t *testing.T) {
	p := newProject(t)
	app := p.federated(t, nil)
	var object objectResource
	got := p.do(t, http.MethodGet, "/storage/v1/b/demo/o/a%2Fb", app, "", "")
	if err := json.Unmarshal([]byte(got.body), &object); err != nil {
		t.Fatalf("%v: %s", err, got.body)
	}
	for link, want := range map[string]string{object.MediaLink: "nested", object.SelfLink: got.body} {
		target, ok := strings.CutPrefix(link, p.url)
		if !ok {
			t.Errorf("%s leads elsewhere than to %s", link, p.url)
			continue
		}
		if got := p.do(t, http.MethodGet, target, app, "", ""); got.status != http.StatusOK || got.body != want {
			t.Errorf("%s: %d %s", link, got.status, got.body)
		}
	}
}

func TestObjectList(t *testing.T) {
	p := newProject(t, func(c *Config) {
		c.Buckets[0].Objects = map[string][]byte{"z": nil, "a/b": nil, "a/c/d": nil, "a/c/e": nil, "ab": nil}
	})
	app := p.federated(t, nil)
	for query, want := range map[string][]string{
		"":                       {"a/b", "a/c/d", "a/c/e", "ab", "z"},
		"?prefix=a":              {"a/b", "a/c/d", "a/c/e", "ab"},
		"?prefix=a/&delimiter=/": {"a/c/", "a/b"},
		"?delimiter=/":           {"a/", "ab", "z"},
		"?prefix=nothing":        nil,
	} {
		var list objectList
		got := p.do(t, http.MethodGet, "/storage/v1/b/demo/o"+query, app, "", "")
		if err := json.Unmarshal([]byte(got.body), &list); err != nil {
			t.Fatalf("%v: %s", err, got.body)
		}
		names := list.Prefixes
		for _, object := range list.Items {
			names = append(names, object.Name)
		}
		if !slices.Equal(names, want) {
			t.Errorf("%q lists %q, want %q", query, names, want)
		}
	}
}
