// Package scenarios proves the flow from a cluster's token to its use, and
// breaks it on purpose. A scenario is data: a name, labels, what it needs, and
// a function that talks to a running lab as a user would, over the network and
// the control socket. One file imports Ginkgo; the others would do without.
package scenarios

import (
	"context"
	"time"

	"github.com/oidclab/oidclab/lab"
)

// Scenario is one thing that the lab proves.
type Scenario struct {
	Name    string        // "theme: what is so", unique
	Labels  []string      // themes and parties, for label filters
	Needs   []Need        // what the lab must have; otherwise the scenario is skipped, with the reason
	Timeout time.Duration // 0 means 2 min
	Run     func(ctx context.Context, s *Session)
}

// Slow is the label of scenarios that take minutes. They run if asked for only.
const Slow = "slow"

// Need is a capability of a lab that not every lab has.
type Need struct {
	Name    string
	Missing func(lab.Info) string // why the lab does not have it; empty if it does
}

// The needs.
var (
	Vault = Need{"vault", func(info lab.Info) string {
		if info.Vault == nil {
			return info.Absent["vault"]
		}
		return ""
	}}
	TwoClusters = Need{"two clusters", func(info lab.Info) string {
		if len(info.Clusters) < 2 {
			return "the lab has one cluster: oidclab up --clusters 2"
		}
		return ""
	}}
)

// Needs of pods that run.
var (
	Pods = Need{lab.Pods, func(info lab.Info) string {
		if why := info.Absent[lab.Pods]; why != "" {
			return why
		}
		if info.WorkloadImage == "" {
			return "the nodes do not have the workload image: oidclab images build"
		}
		return ""
	}}
	PodUsers = Need{"users of pods", func(info lab.Info) string {
		if !podsRunAsRoot(info) {
			return "the embedded engine gives files to other users for root only"
		}
		return ""
	}}
)

// All returns every scenario, in the order in which they run. Names are unique.
func All() []Scenario {
	var all []Scenario
	for _, theme := range []func() []Scenario{
		discovery, tokens, journeys, refusals, credentials, vaultRoles, storage, ociSessions, expiry, rotation, revocation, webhooks, pods,
	} {
		all = append(all, theme()...)
	}
	return all
}
