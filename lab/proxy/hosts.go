package proxy

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
)

// host is a parsed [Host].
type host struct {
	labels  []string
	handler http.Handler
	noHTTP2 bool
}

func parseHosts(hosts []Host) ([]host, error) {
	if len(hosts) == 0 {
		return nil, errors.New("proxy: there are no hosts to answer for")
	}
	var parsed []host
	seen := map[string]bool{}
	for _, h := range hosts {
		if h.Handler == nil {
			return nil, fmt.Errorf("proxy: host %q has no handler", h.Pattern)
		}
		if seen[h.Pattern] {
			return nil, fmt.Errorf("proxy: host %q is there twice", h.Pattern)
		}
		seen[h.Pattern] = true
		labels := strings.Split(h.Pattern, ".")
		for i, label := range labels {
			wildcard := label == "*" && i < len(labels)-2
			if len(labels) < 2 || !wildcard && !isLabel(label) {
				return nil, fmt.Errorf("proxy: host %q is not a lower-case DNS name of two labels or more, in which a label before the last two may be *", h.Pattern)
			}
		}
		if strings.Trim(labels[len(labels)-1], "0123456789") == "" {
			return nil, fmt.Errorf("proxy: host %q is an IP address, which the proxy never answers for", h.Pattern)
		}
		parsed = append(parsed, host{labels, h.Handler, h.NoHTTP2})
	}
	return parsed, nil
}

func (h host) pattern() string { return strings.Join(h.labels, ".") }

// matches says whether a canonical name is the host's. A * stands for exactly
// one label.
func (h host) matches(name string) bool {
	if !isName(name) {
		return false
	}
	labels := strings.Split(name, ".")
	if len(labels) != len(h.labels) {
		return false
	}
	for i, label := range h.labels {
		if label != "*" && label != labels[i] {
			return false
		}
	}
	return true
}

// canonical returns a name as it is compared: DNS names are the same in upper
// and lower case (RFC 4343), and with the root's dot at the end or without it
// (RFC 1034 section 3.1).
func canonical(name string) string { return strings.ToLower(strings.TrimSuffix(name, ".")) }

// isName says whether s is a host name in lower case (RFC 1123 section 2.1).
func isName(s string) bool {
	if len(s) > 253 {
		return false
	}
	for label := range strings.SplitSeq(s, ".") {
		if !isLabel(label) {
			return false
		}
	}
	return true
}

func isLabel(s string) bool {
	if s == "" || len(s) > 63 || s[0] == '-' || s[len(s)-1] == '-' {
		return false
	}
	return strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789-") == ""
}
