package scenarios

import (
	"context"
	"fmt"
	"time"

	"github.com/oidclab/oidclab/lab"
	"github.com/oidclab/oidclab/lab/sts"
)

// expiry moves the lab clock around the end of a token's life. Kubernetes
// issues no token that lives for less than 10 minutes; nobody waits for that.
func expiry() []Scenario {
	var list []Scenario
	for _, p := range own {
		list = append(list, Scenario{
			Name: "expiry: to the second, by " + p.Name, Labels: []string{"expiry", p.Name},
			Run: func(ctx context.Context, s *Session) { tokenExpires(ctx, s, p) },
		})
	}
	return list
}

func tokenExpires(ctx context.Context, s *Session, p Party) {
	token := s.Mint(ctx, lab.MintRequest{Audiences: []string{p.Audience}, Expiration: 10 * time.Minute})
	expires := time.Unix(s.claims(token).Exp, 0)
	skew := p.Profile.Skew
	for _, moment := range []struct {
		offset   time.Duration // from exp
		accepted bool          // RFC 7519 section 4.1.4: not on or after, but for the skew
	}{
		{-time.Second, true},
		{0, skew > 0},
		{skew - time.Second, true},
		{skew, false},
		{skew + time.Second, false},
	} {
		_, err := s.Lab.FreezeClock(ctx, expires.Add(moment.offset))
		s.Must(err)
		when := fmt.Sprintf("exp%+.0f s, with a skew of %s", moment.offset.Seconds(), skew)
		if moment.accepted {
			s.Accepted(ctx, p, token, when)
		} else {
			s.Refused(ctx, p, token, p.answers(sts.TokenExpired), when)
		}
	}
}
