package proxy

import (
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/oidclab/oidclab/lab/trace"
)

// Reason says why something was refused.
type Reason string

// The reasons.
const (
	ClientNotLocal     Reason = "client_not_local"     // 403: the client is not on the loopback interface
	NotConnect         Reason = "not_connect"          // 403: plain HTTP, or a request to the proxy itself
	TargetMalformed    Reason = "target_malformed"     // 403: not HOST:PORT
	PortRefused        Reason = "port_refused"         // 403: not 443
	HostUnknown        Reason = "host_unknown"         // 403: none of Config.Hosts
	NotServing         Reason = "not_serving"          // 503: before Listen, or during Close
	TooManyTunnels     Reason = "too_many_tunnels"     // 503
	ServerNameMismatch Reason = "server_name_mismatch" // TLS alert: the server name is not the host of CONNECT
	HostMismatch       Reason = "host_mismatch"        // 421: the request's Host is not the host of CONNECT
)

func (r Reason) text() string {
	switch r {
	case ClientNotLocal:
		return "the proxy serves clients on this machine only"
	case NotConnect:
		return "the proxy takes CONNECT only, and no plain HTTP"
	case TargetMalformed:
		return "CONNECT needs HOST:PORT"
	case PortRefused:
		return "the port is not 443"
	case HostUnknown:
		return "no host that this lab plays"
	case NotServing:
		return "the proxy is not running"
	case TooManyTunnels:
		return "too many tunnels are open"
	default:
		return "not the host that the tunnel was opened for"
	}
}

// Refusal is a target that was refused, and how often.
type Refusal struct {
	Target string    `json:"target"` // host name or IP address, with the port if there was one
	Reason Reason    `json:"reason"`
	Count  int       `json:"count"`
	Last   time.Time `json:"last"` // system time
}

// What stands for a target that is not shown.
const (
	notAName     = "(not a host name)" // it could be anything, a token included
	otherTargets = "(others)"          // beyond maxRefusals
)

// maxRefusals is how many refusals are told apart.
const maxRefusals = 100

// record keeps what was asked of the proxy: host names, nothing else.
type record struct {
	trace *trace.Log

	mu       sync.Mutex
	refusals []Refusal
}

func (r *record) connected(host string) {
	r.trace.Add(trace.Event{Station: "proxy", Step: "connect", Name: host, Outcome: trace.OK})
}

// refused counts a refusal and returns the target as it may be shown.
func (r *record) refused(target string, reason Reason) string {
	target = showable(target)
	r.trace.Add(trace.Event{Station: "proxy", Step: "connect", Name: target, Outcome: trace.Refused, Reason: string(reason)})
	r.mu.Lock()
	defer r.mu.Unlock()
	counted := target
	same := func(f Refusal) bool { return f.Target == counted && f.Reason == reason }
	i := slices.IndexFunc(r.refusals, same)
	if i < 0 && len(r.refusals) >= maxRefusals {
		counted = otherTargets
		i = slices.IndexFunc(r.refusals, same)
	}
	if i < 0 {
		r.refusals = append(r.refusals, Refusal{Target: counted, Reason: reason})
		i = len(r.refusals) - 1
	}
	r.refusals[i].Count++
	r.refusals[i].Last = time.Now()
	return target
}

func (r *record) list() []Refusal {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.refusals)
}

// showable returns a target as host names and IP addresses are written, or
// something that stands for it.
func showable(target string) string {
	name, port, err := net.SplitHostPort(target)
	if err != nil {
		name, port = strings.Trim(target, "[]"), ""
	}
	name = canonical(name)
	if ip, err := netip.ParseAddr(name); !isName(name) && (err != nil || ip.Zone() != "") {
		return notAName
	}
	if port == "" || len(port) > 5 || strings.Trim(port, "0123456789") != "" {
		return name
	}
	return net.JoinHostPort(name, port)
}
