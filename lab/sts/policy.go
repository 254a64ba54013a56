package sts

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// validateRole refuses a role that would trust more than anybody could mean.
func (c *Core) validateRole(role Role) error {
	if _, ok := c.roles[role.Name]; ok {
		return errors.New("defined twice; put all statements into one")
	}
	if role.Name == "" || len(role.Trust) == 0 {
		return errors.New("want a name and at least one statement of trust")
	}
	for i, statement := range role.Trust {
		if err := c.validateStatement(statement); err != nil {
			return fmt.Errorf("statement %d: %w", i+1, err)
		}
	}
	return nil
}

func (c *Core) validateStatement(s Statement) error {
	if c.issuers[s.Issuer] == nil {
		return fmt.Errorf("issuer %q is not registered; register it, or correct the statement", s.Issuer)
	}
	bounded := false
	for _, condition := range s.Conditions {
		o, err := condition.Operator.parse()
		if err != nil {
			return err
		}
		if condition.Claim == "" || len(condition.Values) == 0 || slices.Contains(condition.Values, "") {
			return fmt.Errorf("a condition on claim %q needs a claim and values, none of them empty", condition.Claim)
		}
		bounded = bounded || condition.Claim == "sub" && !o.negated && !(o.like && slices.ContainsFunc(condition.Values, matchesAll))
	}
	if !bounded {
		return errors.New(`no condition limits "sub": any service account of the cluster could become the role; add one`)
	}
	return nil
}

// matchesAll reports whether the pattern lets everything pass.
func matchesAll(pattern string) bool { return strings.Trim(pattern, "*") == "" }

// comparison is an Operator taken apart.
type comparison struct {
	set        string // "ForAnyValue", "ForAllValues" or ""
	ifExists   bool
	negated    bool
	like       bool
	ignoreCase bool
}

func (o Operator) parse() (comparison, error) {
	var c comparison
	base := string(o)
	if set, rest, ok := strings.Cut(base, ":"); ok {
		if set != "ForAnyValue" && set != "ForAllValues" {
			return c, fmt.Errorf("operator %q: only ForAnyValue: and ForAllValues: may stand before an operator", o)
		}
		c.set, base = set, rest
	}
	base, c.ifExists = strings.CutSuffix(base, "IfExists")
	switch Operator(base) {
	case StringEquals:
	case StringNotEquals:
		c.negated = true
	case StringEqualsIgnoreCase:
		c.ignoreCase = true
	case StringNotEqualsIgnoreCase:
		c.ignoreCase, c.negated = true, true
	case StringLike:
		c.like = true
	case StringNotLike:
		c.like, c.negated = true, true
	default:
		return c, fmt.Errorf("operator %q is not supported; use StringEquals or StringLike, of which there are Not, IgnoreCase, IfExists and set operators, too", o)
	}
	return c, nil
}

// Validate returns an error that says which operators there are, if this is none.
func (o Operator) Validate() error {
	_, err := o.parse()
	return err
}

func checkRole(_ context.Context, a *attempt) (finding, *Refusal) {
	role, ok := a.core.roles[a.request.Role]
	if !ok {
		return finding{}, &Refusal{Reason: RoleUnknown, Want: "a role of this relying party", Got: shown(a.request.Role), Hint: "check the role's name, or define it"}
	}
	for _, statement := range role.Trust {
		if statement.Issuer == a.claims.Issuer {
			a.trust = append(a.trust, statement)
		}
	}
	if len(a.trust) == 0 {
		return finding{}, &Refusal{Reason: IssuerNotTrusted, Claim: "iss", Want: "an issuer that role " + shown(role.Name) + " trusts", Got: shown(a.claims.Issuer),
			Hint: "add a statement for this issuer to the role"}
	}
	return finding{want: "a role that trusts " + a.claims.Issuer, got: role.Name}, nil
}

func checkSubject(_ context.Context, a *attempt) (finding, *Refusal) {
	want, refusal := a.narrow(SubjectMismatch, func(c Condition) bool { return c.Claim == "sub" })
	if refusal != nil {
		return finding{}, refusal
	}
	return finding{want: want, got: shown(a.claims.Subject)}, nil
}

func checkConditions(_ context.Context, a *attempt) (finding, *Refusal) {
	want, refusal := a.narrow(ConditionMismatch, func(c Condition) bool { return c.Claim != "sub" })
	if refusal != nil {
		return finding{}, refusal
	}
	if want == "" {
		return finding{detail: "the role has no others"}, nil
	}
	return finding{want: want, got: "met"}, nil
}

// narrow keeps those of the role's statements whose selected conditions are all
// met, and refuses if none is left: one statement must be met as a whole.
// It returns the conditions of the first statement that is kept.
func (a *attempt) narrow(reason Reason, selected func(Condition) bool) (string, *Refusal) {
	refusal := &Refusal{Reason: reason, Hint: "compare the token's claims with the role's conditions"}
	var met []Statement
	var wanted, missed []string
	for _, statement := range a.trust {
		all := true
		for _, c := range statement.Conditions {
			if !selected(c) {
				continue
			}
			if len(met) == 0 && all {
				wanted = append(wanted, c.String())
			}
			if !all {
				continue
			}
			if values := a.values(c.Claim); !c.met(values) {
				all = false
				missed = append(missed, c.String())
				refusal.Claim, refusal.Got = c.Claim, values.String()
			}
		}
		if all {
			met = append(met, statement)
		} else if len(met) == 0 {
			wanted = nil
		}
	}
	if len(met) == 0 {
		refusal.Want = strings.Join(missed, " or ")
		return "", refusal
	}
	a.trust = met
	return strings.Join(wanted, " and "), nil
}

// claimValues are what conditions see of a claim.
type claimValues struct {
	texts   []string
	present bool
	odd     bool // holds something that is not a text
}

// String shows the values for a refusal.
func (v claimValues) String() string {
	if !v.present {
		return "none"
	}
	return shown(strings.Join(v.texts, " "))
}

// values returns the texts of a claim. Where the profile has it, "aud" is the
// authorized party and "oaud" the audience, as in AWS IAM's condition keys.
func (a *attempt) values(claim string) claimValues {
	if a.core.cfg.Profile.AuthorizedParty {
		switch claim {
		case "aud":
			return claimValues{texts: []string{a.claims.Accepted}, present: true}
		case "oaud":
			return claimValues{texts: a.claims.Audience, present: true}
		}
	}
	value, present := a.payload.members[claim]
	v := claimValues{present: present}
	switch value := value.(type) {
	case string:
		v.texts = []string{value}
	case []any:
		for _, entry := range value {
			if s, ok := entry.(string); ok {
				v.texts = append(v.texts, s)
			} else {
				v.odd = true
			}
		}
	default:
		v.odd = present
	}
	return v
}

// met reports whether the claim's values satisfy the condition.
func (c Condition) met(values claimValues) bool {
	o, err := c.Operator.parse()
	if err != nil {
		return false
	}
	// What cannot be compared must not pass for a value that is absent or different.
	if values.odd && (o.negated || o.ifExists || o.set == "ForAllValues") {
		return false
	}
	matches := func(value string) bool {
		return slices.ContainsFunc(c.Values, func(want string) bool { return o.matches(want, value) })
	}
	switch o.set {
	case "ForAnyValue":
		return slices.ContainsFunc(values.texts, func(value string) bool { return matches(value) != o.negated })
	case "ForAllValues":
		return !slices.ContainsFunc(values.texts, func(value string) bool { return matches(value) == o.negated })
	}
	if len(values.texts) == 0 {
		return o.negated || o.ifExists && !values.present
	}
	return slices.ContainsFunc(values.texts, matches) != o.negated
}

func (c comparison) matches(want, value string) bool {
	switch {
	case c.like:
		return stringLike(want, value)
	case c.ignoreCase:
		return strings.EqualFold(want, value)
	default:
		return want == value
	}
}

// String returns the condition in one line, for instance "sub StringEquals a or b".
func (c Condition) String() string {
	return c.Claim + " " + string(c.Operator) + " " + strings.Join(c.Values, " or ")
}

// stringLike reports whether the whole of s matches the pattern, in which * is
// any run of characters and ? any one. It goes back to the last * only, so its
// time is bounded by the product of the lengths.
func stringLike(pattern, s string) bool {
	p, text := []rune(pattern), []rune(s)
	star, resume := -1, 0 // the last *, and where its run ends
	i, j := 0, 0
	for j < len(text) {
		switch {
		case i < len(p) && p[i] == '*':
			star, resume = i, j
			i++
		case i < len(p) && (p[i] == '?' || p[i] == text[j]):
			i++
			j++
		case star >= 0:
			resume++
			i, j = star+1, resume
		default:
			return false
		}
	}
	for i < len(p) && p[i] == '*' {
		i++
	}
	return i == len(p)
}
