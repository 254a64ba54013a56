package scenarios

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/onsi/gomega"
	"github.com/onsi/gomega/types"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/oidclab/oidclab/lab"
	"github.com/oidclab/oidclab/lab/cluster"
	"github.com/oidclab/oidclab/lab/control"
	"github.com/oidclab/oidclab/lab/exchange"
	"github.com/oidclab/oidclab/lab/sts"
	"github.com/oidclab/oidclab/lab/trace"
)

// settle bounds the waits for something that happens by itself, such as the
// API server's next look at its signer.
const settle = 20 * time.Second

// Session is what a scenario may touch.
type Session struct {
	Lab  *control.Client
	Info lab.Info
	Web  *http.Client // trusts the lab's CA
	Name string       // unique, for things that the scenario makes in the cluster

	expect   gomega.Gomega
	mu       sync.Mutex
	journeys []string
	cleanups []func(context.Context)
}

func newSession(ctx context.Context, client *control.Client, info lab.Info, name string, fail types.GomegaFailHandler) (*Session, error) {
	ca, err := os.ReadFile(info.CAFile)
	if err != nil {
		return nil, err
	}
	web, err := exchange.NewClient(ca)
	if err != nil {
		return nil, err
	}
	if _, err := client.ResetClock(ctx); err != nil {
		return nil, err
	}
	return &Session{Lab: client, Info: info, Web: web, Name: name, expect: gomega.NewGomega(fail)}, nil
}

// close undoes what the scenario did, and puts the lab clock right.
func (s *Session) close(ctx context.Context) error {
	for i := len(s.cleanups) - 1; i >= 0; i-- {
		s.cleanups[i](ctx)
	}
	s.Web.CloseIdleConnections()
	_, err := s.Lab.ResetClock(ctx)
	return err
}

// Cleanup registers what to do when the scenario has ended, however it ends.
func (s *Session) Cleanup(undo func(context.Context)) { s.cleanups = append(s.cleanups, undo) }

// Expect makes an assertion.
func (s *Session) Expect(actual any, extra ...any) types.Assertion {
	return s.expect.Expect(actual, extra...)
}

// Must fails the scenario if err is not nil.
func (s *Session) Must(err error, what ...any) {
	s.expect.ExpectWithOffset(1, err).NotTo(gomega.HaveOccurred(), what...)
}

// Eventually polls until an assertion holds.
func (s *Session) Eventually(ctx context.Context, actual func(context.Context) error) types.AsyncAssertion {
	return s.expect.Eventually(ctx, actual).WithTimeout(settle).WithPolling(100 * time.Millisecond)
}

// Fail fails the scenario.
func (s *Session) Fail(format string, args ...any) {
	s.expect.ExpectWithOffset(1, fmt.Errorf(format, args...)).NotTo(gomega.HaveOccurred())
}

// Cluster returns the first cluster, and Other the second.
func (s *Session) Cluster() lab.ClusterInfo { return s.Info.Clusters[0] }

// Other returns the second cluster; see TwoClusters.
func (s *Session) Other() lab.ClusterInfo { return s.Info.Clusters[1] }

// Kubernetes returns the API of a cluster, as its administrator.
func (s *Session) Kubernetes(c lab.ClusterInfo) *cluster.API {
	config, err := clientcmd.BuildConfigFromFlags("", c.Kubeconfig)
	s.Must(err)
	api, err := cluster.NewAPI(config)
	s.Must(err)
	return api
}

// Mint returns a token of the first cluster unless r says otherwise.
func (s *Session) Mint(ctx context.Context, r lab.MintRequest) string {
	token, err := s.Lab.Mint(ctx, r)
	s.Must(err)
	s.remember(token)
	return token
}

// Forge returns a token that a cluster never would issue.
func (s *Session) Forge(ctx context.Context, r lab.ForgeRequest) string {
	token, err := s.Lab.Forge(ctx, r)
	s.Must(err)
	s.remember(token)
	return token
}

func (s *Session) remember(token string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.journeys = append(s.journeys, trace.JourneyOf(token))
}

// Accepted demands that a party takes the token and that what it gives works.
func (s *Session) Accepted(ctx context.Context, p Party, token, why string) {
	_, err := p.exchange(ctx, s, token)
	s.expect.ExpectWithOffset(1, err).NotTo(gomega.HaveOccurred(), "%s: %s (journey %s)", p.Name, why, trace.JourneyOf(token))
}

// Refused demands that a party refuses the token, and says so as e says.
func (s *Session) Refused(ctx context.Context, p Party, token string, e Expectation, why string) {
	_, err := p.exchange(ctx, s, token)
	if p.Lingers && err == nil {
		s.Eventually(ctx, func(ctx context.Context) error {
			if _, err = p.exchange(ctx, s, token); err == nil {
				return errors.New("it still accepts the token")
			}
			return nil
		}).Should(gomega.Succeed(), "%s: %s", p.Name, why)
	}
	s.refusedAs(ctx, p, token, err, e, why)
}

func (s *Session) refusedAs(ctx context.Context, p Party, token string, err error, e Expectation, why string) {
	journey := trace.JourneyOf(token)
	complain := func(format string, args ...any) {
		s.expect.ExpectWithOffset(3, fmt.Errorf(format, args...)).NotTo(gomega.HaveOccurred(), "%s: %s (journey %s)", p.Name, why, journey)
	}
	var refused *exchange.RefusedError
	switch {
	case err == nil:
		complain("the token was ACCEPTED; wanted a refusal with %s", e)
	case !errors.As(err, &refused):
		complain("not a refusal, but: %w", err)
	case refused.Status != e.Status || (e.Code != "" && refused.Code != e.Code) || !strings.Contains(refused.Message, e.Text):
		complain("refused as %w; wanted %s", refused, e)
	case e.Reason != "" && !s.traced(ctx, journey, e.Reason):
		complain("refused, but the trace has no reason %q", e.Reason)
	}
}

// traced says whether a check of the journey was refused for a reason.
func (s *Session) traced(ctx context.Context, journey string, reason sts.Reason) bool {
	found := false
	s.Must(s.Lab.Trace(ctx, journey, false, func(e trace.Event) error {
		found = found || (e.Outcome == trace.Refused && e.Reason == string(reason))
		return nil
	}))
	return found
}

// Get fetches a URL as a stranger: without credentials, without redirects.
func (s *Session) Get(ctx context.Context, method, url string, header http.Header) (*http.Response, []byte) {
	request, err := http.NewRequestWithContext(ctx, method, url, nil)
	s.Must(err)
	for name, values := range header {
		request.Header[name] = values
	}
	if host := header.Get("Host"); host != "" {
		request.Host = host
	}
	client := *s.Web
	client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	response, err := client.Do(request)
	s.Must(err)
	defer func() { _ = response.Body.Close() }()
	body, err := io.ReadAll(io.LimitReader(response.Body, 1<<20))
	s.Must(err)
	return response, body
}

// Advance moves the lab clock.
func (s *Session) Advance(ctx context.Context, by time.Duration) {
	_, err := s.Lab.AdvanceClock(ctx, by)
	s.Must(err)
}
