package signer_test

import (
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	externaljwt "k8s.io/externaljwt/apis/v1"

	"github.com/oidclab/oidclab/lab/clock"
	"github.com/oidclab/oidclab/lab/cluster/signer"
	"github.com/oidclab/oidclab/lab/keys"
	"github.com/oidclab/oidclab/lab/trace"
)

const claims = `{"sub":"system:serviceaccount:demo:app","aud":["sts.example"],"exp":1893456000}`

// privateDir is a short path: t.TempDir may exceed what a socket address holds.
func privateDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "signer")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func newKeys(t *testing.T) *keys.Set {
	t.Helper()
	set, err := keys.New(clock.System{}, keys.RS256)
	if err != nil {
		t.Fatal(err)
	}
	return set
}

// start serves a key set and returns a client, as the API server is one.
func start(t *testing.T, set *keys.Set, log *trace.Log) externaljwt.ExternalJWTSignerClient {
	t.Helper()
	t.Cleanup(func() { goleak.VerifyNone(t) })
	socket := filepath.Join(privateDir(t), "signer.sock")
	s, err := signer.Start(signer.Config{Socket: socket, Keys: set, Trace: log})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Stop)
	connection, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := connection.Close(); err != nil {
			t.Error(err)
		}
	})
	return externaljwt.NewExternalJWTSignerClient(connection)
}

func encode(s string) string { return base64.RawURLEncoding.EncodeToString([]byte(s)) }

func TestSign(t *testing.T) {
	set, log := newKeys(t), trace.New()
	client := start(t, set, log)
	response, err := client.Sign(t.Context(), &externaljwt.SignJWTRequest{Claims: encode(claims)})
	if err != nil {
		t.Fatal(err)
	}
	token := response.Header + "." + encode(claims) + "." + response.Signature
	object, err := jose.ParseSignedCompact(token, []jose.SignatureAlgorithm{jose.RS256})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := object.Verify(set.Current().Public); err != nil {
		t.Errorf("the assembled token does not verify: %v", err)
	}

	events := log.Journey(trace.JourneyOf(token))
	if len(events) != 1 {
		t.Fatalf("got %d events for the token, want 1", len(events))
	}
	event := events[0]
	if event.Station != "signer" || event.Step != "mint" || event.Name != set.Current().ID || event.Outcome != trace.OK {
		t.Errorf("got event %+v", event)
	}
	if want := "sub system:serviceaccount:demo:app, aud sts.example, exp 2030-01-01T00:00:00Z"; event.Detail != want {
		t.Errorf("got detail %q, want %q", event.Detail, want)
	}
	written, err := json.Marshal(event)
	if err != nil {
		t.Fatal(err)
	}
	for _, part := range strings.Split(token, ".") {
		if strings.Contains(string(written), part) {
			t.Errorf("the event holds a part of the token: %s", written)
		}
	}
}

func TestSignRefuses(t *testing.T) {
	log := trace.New()
	client := start(t, newKeys(t), log)
	if _, err := client.Sign(t.Context(), &externaljwt.SignJWTRequest{Claims: encode(claims)}); err != nil {
		t.Fatal("control:", err)
	}
	for name, bad := range map[string]string{
		"nothing":         "",
		"not base64url":   "!",
		"padded":          base64.URLEncoding.EncodeToString([]byte(claims)) + "=",
		"loose last bits": strings.TrimSuffix(encode(`{"exp":10}`), "Q") + "R",
		"not JSON":        encode("exp"),
		"no exp":          encode(`{"sub":"x"}`),
	} {
		if _, err := client.Sign(t.Context(), &externaljwt.SignJWTRequest{Claims: bad}); status.Code(err) != codes.InvalidArgument {
			t.Errorf("%s: got %v, want InvalidArgument", name, err)
		}
	}
	if events, _ := log.Since(0); len(events) != 1 {
		t.Errorf("got %d events, want only that of the control", len(events))
	}
}

func TestFetchKeysFollowsTheSet(t *testing.T) {
	set := newKeys(t)
	client := start(t, set, nil)
	first := set.Current()
	second, err := set.Publish()
	if err != nil {
		t.Fatal(err)
	}
	fetch := func(want ...keys.Key) *externaljwt.FetchKeysResponse {
		t.Helper()
		response, err := client.FetchKeys(t.Context(), &externaljwt.FetchKeysRequest{})
		if err != nil {
			t.Fatal(err)
		}
		if response.RefreshHintSeconds != 1 {
			t.Errorf("got refresh hint %d s, want 1 s", response.RefreshHintSeconds)
		}
		var got, ids []string
		for _, key := range response.Keys {
			got = append(got, key.KeyId)
			public, err := x509.ParsePKIXPublicKey(key.Key)
			if err != nil {
				t.Fatal(err)
			}
			if id, err := keys.ID(public); id != key.KeyId || err != nil {
				t.Errorf("key %s holds the key of id %s (%v)", key.KeyId, id, err)
			}
		}
		for _, key := range want {
			ids = append(ids, key.ID)
		}
		if !slices.Equal(got, ids) {
			t.Errorf("got keys %v, want %v", got, ids)
		}
		return response
	}
	before := fetch(first, second) // signing and published
	if again := fetch(first, second); !again.DataTimestamp.AsTime().Equal(before.DataTimestamp.AsTime()) {
		t.Error("the timestamp changed although the keys did not")
	}
	if _, err := set.SignWith(second.ID); err != nil {
		t.Fatal(err)
	}
	fetch(first, second) // retired and signing
	if _, err := set.Remove(first.ID); err != nil {
		t.Fatal(err)
	}
	if after := fetch(second); !after.DataTimestamp.AsTime().After(before.DataTimestamp.AsTime()) {
		t.Error("the timestamp did not change although the keys did")
	}
}

func TestMetadata(t *testing.T) {
	response, err := start(t, newKeys(t), nil).Metadata(t.Context(), &externaljwt.MetadataRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if got, want := response.MaxTokenExpirationSeconds, int64(24*60*60); got != want {
		t.Errorf("got %d s, want %d s", got, want)
	}
}

func TestStartRefuses(t *testing.T) {
	open := privateDir(t)
	if err := os.Chmod(open, 0o755); err != nil {
		t.Fatal(err)
	}
	closed := privateDir(t)
	for name, c := range map[string]struct {
		config signer.Config
		want   string
	}{
		"open directory":    {signer.Config{Socket: filepath.Join(open, "s")}, "0700"},
		"no directory":      {signer.Config{Socket: filepath.Join(closed, "none", "s")}, "no such file"},
		"long path":         {signer.Config{Socket: filepath.Join(closed, strings.Repeat("s", 108))}, "107"},
		"refresh too often": {signer.Config{Socket: filepath.Join(closed, "s"), Refresh: time.Millisecond}, "whole number"},
		"part of a second":  {signer.Config{Socket: filepath.Join(closed, "s"), Refresh: 1500 * time.Millisecond}, "whole number"},
	} {
		c.config.Keys = newKeys(t)
		s, err := signer.Start(c.config)
		if err == nil {
			s.Stop()
		}
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got error %v, want one that says %q", name, err, c.want)
		}
	}
}

func TestStopTwiceLeavesNothing(t *testing.T) {
	defer goleak.VerifyNone(t)
	socket := filepath.Join(privateDir(t), "signer.sock")
	s, err := signer.Start(signer.Config{Socket: socket, Keys: newKeys(t)})
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(socket)
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode().Perm() != 0o600 {
		t.Errorf("socket has mode %#o, want 0600", info.Mode().Perm())
	}
	s.Stop()
	s.Stop()
	if _, err := os.Stat(socket); !os.IsNotExist(err) {
		t.Errorf("the socket is still there (%v)", err)
	}
}
