// Package control is how the verbs of the command line talk to the supervisor
// of a lab: JSON over HTTP on a Unix socket in the lab's state directory. The
// directory is nobody else's (0700), which is all the authentication there is.
package control

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/oidclab/oidclab/lab"
	"github.com/oidclab/oidclab/lab/clock"
	"github.com/oidclab/oidclab/lab/problem"
	"github.com/oidclab/oidclab/lab/sts"
	"github.com/oidclab/oidclab/lab/trace"
)

// maxBody bounds requests: the largest holds a token that is too large for everybody.
const maxBody = 4 << 20

// keyRequest is the body of POST /v1/keys/{phase}.
type keyRequest struct {
	Cluster string `json:"cluster"`
	Kid     string `json:"kid"`
	Advance bool   `json:"advance"`
}

// issuerRequest is the body of POST /v1/cluster/issuer.
type issuerRequest struct {
	Cluster string `json:"cluster"`
	Public  bool   `json:"public"`
}

type issuerAnswer struct {
	Issuer string `json:"issuer"`
}

// clockRequest is the body of POST /v1/clock/{operation}.
type clockRequest struct {
	By time.Duration `json:"by,omitempty"`
	At time.Time     `json:"at,omitzero"`
}

type tokenAnswer struct {
	Token string `json:"token"`
}

type fileAnswer struct {
	File string `json:"file"`
}

// Handler answers the verbs for l. stop is called, once the answer is under
// way, when the lab shall go down.
func Handler(l *lab.Lab, stop func()) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/status", func(w http.ResponseWriter, r *http.Request) {
		answer(w, l.Status(r.Context()), nil)
	})
	mux.HandleFunc("POST /v1/down", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, struct{}{}, nil)
		stop()
	})
	mux.HandleFunc("POST /v1/token/mint", post(func(ctx context.Context, r lab.MintRequest) (tokenAnswer, error) {
		token, err := l.Mint(ctx, r)
		return tokenAnswer{token}, err
	}))
	mux.HandleFunc("POST /v1/token/forge", post(func(ctx context.Context, r lab.ForgeRequest) (tokenAnswer, error) {
		token, err := l.Forge(ctx, r)
		return tokenAnswer{token}, err
	}))
	mux.HandleFunc("POST /v1/token/verify", post(l.Verify))
	mux.HandleFunc("POST /v1/token/file", post(func(ctx context.Context, r lab.TokenFileRequest) (fileAnswer, error) {
		file, err := l.TokenFile(ctx, r)
		return fileAnswer{file}, err
	}))
	mux.HandleFunc("GET /v1/keys", func(w http.ResponseWriter, r *http.Request) {
		infos, err := l.Keys(r.FormValue("cluster"))
		answer(w, infos, err)
	})
	mux.HandleFunc("POST /v1/keys/publish", post(func(ctx context.Context, r keyRequest) (lab.KeyInfo, error) {
		return l.PublishKey(ctx, r.Cluster)
	}))
	mux.HandleFunc("POST /v1/keys/sign", post(func(ctx context.Context, r keyRequest) (lab.KeyInfo, error) {
		return l.SignWithKey(ctx, r.Cluster, r.Kid)
	}))
	mux.HandleFunc("POST /v1/keys/remove", post(func(ctx context.Context, r keyRequest) (lab.KeyInfo, error) {
		return l.RemoveKey(ctx, r.Cluster, r.Kid)
	}))
	mux.HandleFunc("POST /v1/keys/rotate", post(func(ctx context.Context, r keyRequest) (lab.Rotation, error) {
		return l.StartRotation(ctx, r.Cluster, r.Advance)
	}))
	mux.HandleFunc("POST /v1/keys/abandon", post(func(_ context.Context, r keyRequest) (lab.Rotation, error) {
		return l.AbandonRotation(r.Cluster)
	}))
	mux.HandleFunc("POST /v1/cluster/issuer", post(func(ctx context.Context, r issuerRequest) (issuerAnswer, error) {
		issuer, err := l.SetPublicIssuer(ctx, r.Cluster, r.Public)
		return issuerAnswer{issuer}, err
	}))
	mux.HandleFunc("POST /v1/cluster/recreate", post(func(ctx context.Context, r keyRequest) (lab.KeyInfo, error) {
		return l.RecreateCluster(ctx, r.Cluster)
	}))
	mux.HandleFunc("GET /v1/clock", func(w http.ResponseWriter, _ *http.Request) { answer(w, l.Clock.State(), nil) })
	mux.HandleFunc("POST /v1/clock/advance", post(func(_ context.Context, r clockRequest) (clock.State, error) {
		return l.Clock.Advance(r.By), nil
	}))
	mux.HandleFunc("POST /v1/clock/freeze", post(func(_ context.Context, r clockRequest) (clock.State, error) {
		return l.Clock.Freeze(r.At), nil
	}))
	mux.HandleFunc("POST /v1/clock/reset", post(func(context.Context, clockRequest) (clock.State, error) {
		return l.Clock.Reset(), nil
	}))
	mux.HandleFunc("GET /v1/trace", events(l.Trace))
	mux.HandleFunc("POST /v1/trace", post(func(_ context.Context, e trace.Event) (struct{}, error) {
		l.Trace.Add(e)
		return struct{}{}, nil
	}))
	return http.MaxBytesHandler(mux, maxBody)
}

func post[Request, Answer any](do func(context.Context, Request) (Answer, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		var request Request
		if err := json.NewDecoder(r.Body).Decode(&request); err != nil {
			answer(w, nil, problem.New(problem.Usage, "", "the request is not understood: %w", err))
			return
		}
		result, err := do(r.Context(), request)
		answer(w, result, err)
	}
}

// statusProblem carries a problem.Problem in the body, 200 the answer.
const statusProblem = http.StatusUnprocessableEntity

func answer(w http.ResponseWriter, value any, err error) {
	w.Header().Set("Content-Type", "application/json")
	if err != nil {
		w.WriteHeader(statusProblem)
		value = problem.Of(err)
	}
	_ = json.NewEncoder(w).Encode(value)
}

// events streams events as JSON lines: those after ?since, of ?journey if it is
// given, and with ?follow those to come.
func events(log *trace.Log) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		since, _ := strconv.ParseInt(r.FormValue("since"), 10, 64)
		journey, follow := r.FormValue("journey"), r.FormValue("follow") == "true"
		w.Header().Set("Content-Type", "application/x-ndjson")
		encoder := json.NewEncoder(w)
		for {
			batch, more := log.Since(since)
			for _, e := range batch {
				since = e.Seq
				if journey == "" || e.Journey == journey {
					if encoder.Encode(e) != nil {
						return
					}
				}
			}
			if !follow {
				return
			}
			_ = http.NewResponseController(w).Flush()
			select {
			case <-more:
			case <-r.Context().Done():
				return
			}
		}
	}
}

// Client talks to the supervisor of a lab. Make one with NewClient.
type Client struct {
	http *http.Client
}

// NewClient returns a client for the supervisor that listens on socket.
func NewClient(socket string) *Client {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", socket)
	}
	return &Client{http: &http.Client{Transport: &http.Transport{DialContext: dial}}}
}

// Close closes idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Status returns the state of the lab.
func (c *Client) Status(ctx context.Context) (lab.Status, error) {
	return call[lab.Status](ctx, c, http.MethodGet, "/v1/status", nil)
}

// Down asks the supervisor to take the lab down. It returns before that is done.
func (c *Client) Down(ctx context.Context) error {
	_, err := call[struct{}](ctx, c, http.MethodPost, "/v1/down", struct{}{})
	return err
}

// Mint returns a token of a cluster.
func (c *Client) Mint(ctx context.Context, r lab.MintRequest) (string, error) {
	a, err := call[tokenAnswer](ctx, c, http.MethodPost, "/v1/token/mint", r)
	return a.Token, err
}

// Forge returns a token that a cluster never would issue.
func (c *Client) Forge(ctx context.Context, r lab.ForgeRequest) (string, error) {
	a, err := call[tokenAnswer](ctx, c, http.MethodPost, "/v1/token/forge", r)
	return a.Token, err
}

// Verify returns how a relying party would judge a token.
func (c *Client) Verify(ctx context.Context, r lab.VerifyRequest) (sts.Verdict, error) {
	return call[sts.Verdict](ctx, c, http.MethodPost, "/v1/token/verify", r)
}

// TokenFile returns the path of a file with a token, which the lab keeps fresh.
func (c *Client) TokenFile(ctx context.Context, r lab.TokenFileRequest) (string, error) {
	a, err := call[fileAnswer](ctx, c, http.MethodPost, "/v1/token/file", r)
	return a.File, err
}

// Keys returns the keys of a cluster.
func (c *Client) Keys(ctx context.Context, cluster string) ([]lab.KeyInfo, error) {
	return call[[]lab.KeyInfo](ctx, c, http.MethodGet, "/v1/keys?"+url.Values{"cluster": {cluster}}.Encode(), nil)
}

// PublishKey adds a key to a cluster's key set, and returns once the front publishes it.
func (c *Client) PublishKey(ctx context.Context, cluster string) (lab.KeyInfo, error) {
	return call[lab.KeyInfo](ctx, c, http.MethodPost, "/v1/keys/publish", keyRequest{Cluster: cluster})
}

// SignWithKey makes a key sign; empty means the newest published.
func (c *Client) SignWithKey(ctx context.Context, cluster, kid string) (lab.KeyInfo, error) {
	return call[lab.KeyInfo](ctx, c, http.MethodPost, "/v1/keys/sign", keyRequest{Cluster: cluster, Kid: kid})
}

// RemoveKey removes a key; empty means the newest retired.
func (c *Client) RemoveKey(ctx context.Context, cluster, kid string) (lab.KeyInfo, error) {
	return call[lab.KeyInfo](ctx, c, http.MethodPost, "/v1/keys/remove", keyRequest{Cluster: cluster, Kid: kid})
}

// StartRotation begins a safe rotation.
func (c *Client) StartRotation(ctx context.Context, cluster string, advance bool) (lab.Rotation, error) {
	return call[lab.Rotation](ctx, c, http.MethodPost, "/v1/keys/rotate", keyRequest{Cluster: cluster, Advance: advance})
}

// AbandonRotation ends a safe rotation where it stands.
func (c *Client) AbandonRotation(ctx context.Context, cluster string) (lab.Rotation, error) {
	return call[lab.Rotation](ctx, c, http.MethodPost, "/v1/keys/abandon", keyRequest{Cluster: cluster})
}

// SetPublicIssuer gives a cluster its public issuer, or takes it away, and
// returns the issuer that it has now.
func (c *Client) SetPublicIssuer(ctx context.Context, cluster string, public bool) (string, error) {
	a, err := call[issuerAnswer](ctx, c, http.MethodPost, "/v1/cluster/issuer", issuerRequest{Cluster: cluster, Public: public})
	return a.Issuer, err
}

// RecreateCluster makes a cluster anew under the same issuer URL, and returns its
// new signing key.
func (c *Client) RecreateCluster(ctx context.Context, cluster string) (lab.KeyInfo, error) {
	return call[lab.KeyInfo](ctx, c, http.MethodPost, "/v1/cluster/recreate", keyRequest{Cluster: cluster})
}

// Clock returns what the lab clock shows.
func (c *Client) Clock(ctx context.Context) (clock.State, error) {
	return call[clock.State](ctx, c, http.MethodGet, "/v1/clock", nil)
}

// AdvanceClock moves the lab clock.
func (c *Client) AdvanceClock(ctx context.Context, by time.Duration) (clock.State, error) {
	return call[clock.State](ctx, c, http.MethodPost, "/v1/clock/advance", clockRequest{By: by})
}

// FreezeClock stops the lab clock at a time; the zero time means now.
func (c *Client) FreezeClock(ctx context.Context, at time.Time) (clock.State, error) {
	return call[clock.State](ctx, c, http.MethodPost, "/v1/clock/freeze", clockRequest{At: at})
}

// ResetClock makes the lab clock show the system time.
func (c *Client) ResetClock(ctx context.Context) (clock.State, error) {
	return call[clock.State](ctx, c, http.MethodPost, "/v1/clock/reset", clockRequest{})
}

// AddEvent records what a client of the lab saw, for instance an answer of Vault.
func (c *Client) AddEvent(ctx context.Context, e trace.Event) error {
	_, err := call[struct{}](ctx, c, http.MethodPost, "/v1/trace", e)
	return err
}

// Trace calls each for every event, oldest first, of one journey or, if that is
// empty, of all. With follow it goes on until ctx ends, which is no error.
func (c *Client) Trace(ctx context.Context, journey string, follow bool, each func(trace.Event) error) error {
	query := url.Values{"journey": {journey}, "follow": {strconv.FormatBool(follow)}}
	response, err := c.send(ctx, http.MethodGet, "/v1/trace?"+query.Encode(), nil)
	if err != nil {
		return err
	}
	defer func() { _ = response.Body.Close() }()
	decoder := json.NewDecoder(response.Body)
	for {
		var e trace.Event
		switch err := decoder.Decode(&e); {
		case err == nil:
		case errors.Is(err, io.EOF) || (follow && ctx.Err() != nil):
			return nil
		default:
			return fmt.Errorf("the trace ended: %w", err)
		}
		if err := each(e); err != nil {
			return err
		}
	}
}

func call[Answer any](ctx context.Context, c *Client, method, path string, body any) (answer Answer, err error) {
	response, err := c.send(ctx, method, path, body)
	if err != nil {
		return answer, err
	}
	defer func() { _ = response.Body.Close() }()
	if err := json.NewDecoder(response.Body).Decode(&answer); err != nil {
		return answer, fmt.Errorf("the supervisor's answer is not understood: %w", err)
	}
	return answer, nil
}

// send returns an answer with status 200, or an error.
func (c *Client) send(ctx context.Context, method, path string, body any) (*http.Response, error) {
	var reader io.Reader
	if body != nil {
		encoded, err := json.Marshal(body)
		if err != nil {
			return nil, err
		}
		reader = bytes.NewReader(encoded)
	}
	request, err := http.NewRequestWithContext(ctx, method, "http://oidclab"+path, reader)
	if err != nil {
		return nil, err
	}
	response, err := c.http.Do(request)
	if err != nil {
		var dial *net.OpError
		if errors.As(err, &dial) && dial.Op == "dial" {
			return nil, problem.New(problem.NotRunning, "oidclab up", "no lab is running here: %w", dial)
		}
		return nil, err
	}
	if response.StatusCode == http.StatusOK {
		return response, nil
	}
	defer func() { _ = response.Body.Close() }()
	var p problem.Problem
	if err := json.NewDecoder(response.Body).Decode(&p); err != nil || response.StatusCode != statusProblem {
		return nil, fmt.Errorf("the supervisor answers %s to %s", response.Status, path)
	}
	return nil, &p
}
