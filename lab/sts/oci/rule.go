package oci

import (
	"fmt"
	"strings"

	"github.com/oidclab/oidclab/lab/sts"
)

// rule is when a service user is impersonated: a comparison of the sub claim,
// as SCIM filters write it (RFC 7644 section 3.4.2.2).
type rule struct {
	operator string // eq, sw or co
	value    string
}

func parseRule(text string) (rule, error) {
	claim, rest, _ := strings.Cut(text, " ")
	operator, value, _ := strings.Cut(rest, " ")
	r := rule{operator, value}
	switch {
	case claim != "sub":
		return rule{}, fmt.Errorf("rule %q is not about sub: any service account of the cluster could become the user; write it as sub eq VALUE", text)
	case operator != "eq" && operator != "sw" && operator != "co":
		return rule{}, fmt.Errorf("rule %q: there is no operator %q; use eq, sw or co", text, operator)
	case value == "" || strings.ContainsAny(value, "*?"):
		return rule{}, fmt.Errorf("rule %q: want a value, without wildcards: sw and co do without", text)
	}
	return r, nil
}

// condition is the rule as the core knows it.
func (r rule) condition() sts.Condition {
	c := sts.Condition{Operator: sts.StringLike, Claim: "sub"}
	switch r.operator {
	case "sw":
		c.Values = []string{r.value + "*"}
	case "co":
		c.Values = []string{"*" + r.value + "*"}
	default:
		c.Operator, c.Values = sts.StringEquals, []string{r.value}
	}
	return c
}

// holds says whether the rule is met by a subject that the core accepted.
func (r rule) holds(subject string) bool {
	switch r.operator {
	case "sw":
		return strings.HasPrefix(subject, r.value)
	case "co":
		return strings.Contains(subject, r.value)
	}
	return subject == r.value
}

// impersonated returns the first service user whose rule a subject meets.
func (t Trust) impersonated(subject string) (ServiceUser, bool) {
	for _, user := range t.ServiceUsers {
		if r, err := parseRule(user.Rule); err == nil && r.holds(subject) {
			return user, true
		}
	}
	return ServiceUser{}, false
}
