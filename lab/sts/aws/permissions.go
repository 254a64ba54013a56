package aws

import (
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// permissions are what a policy says of a principal: the identity-based policy
// of a role, or a session policy (IAM user guide, "Policy evaluation logic").
type permissions []permission

// permission is one statement.
type permission struct {
	deny      bool
	actions   []*regexp.Regexp
	resources []*regexp.Regexp
	tags      []tagCondition
}

// tagCondition compares a tag of the session (aws:PrincipalTag/KEY).
type tagCondition struct {
	key    string // in lower case
	values []*regexp.Regexp
}

// permissionStatement is a statement as far as it is evaluated. Any other
// element is refused, as in trust policies.
type permissionStatement struct {
	Sid       string
	Effect    string
	Action    oneOrMore
	Resource  oneOrMore
	Condition map[string]map[string]oneOrMore
}

// parsePermissions reads a policy document without principals.
func parsePermissions(document []byte) (permissions, error) {
	raw, err := parseDocument(document)
	if err != nil {
		return nil, err
	}
	var parsed permissions
	for i, r := range raw {
		var s permissionStatement
		err := unmarshalStrict(r, &s)
		if err == nil {
			var p permission
			if p, err = s.permission(); err == nil {
				parsed = append(parsed, p)
				continue
			}
		}
		return nil, fmt.Errorf("statement %d: %w", i+1, err)
	}
	return parsed, nil
}

func (s *permissionStatement) permission() (permission, error) {
	switch {
	case s.Effect != "Allow" && s.Effect != "Deny":
		return permission{}, fmt.Errorf("invalid effect %q: use Allow or Deny", s.Effect)
	case len(s.Action) == 0:
		return permission{}, errors.New("missing required field Action")
	case len(s.Resource) == 0:
		return permission{}, errors.New("missing required field Resource")
	}
	for _, action := range s.Action {
		if service, name, ok := strings.Cut(action, ":"); action != "*" && (!ok || service == "" || name == "") {
			return permission{}, fmt.Errorf("action %q must be * or of the form SERVICE:NAME", action)
		}
	}
	for _, resource := range s.Resource {
		if resource != "*" && !strings.HasPrefix(resource, "arn:") {
			return permission{}, fmt.Errorf("resource %q must be * or an ARN", resource)
		}
	}
	for _, text := range slices.Concat(s.Action, s.Resource) {
		if strings.Contains(text, "${") {
			return permission{}, fmt.Errorf("policy variables such as %q are not evaluated here", text)
		}
	}
	tags, err := tagConditions(s.Condition)
	return permission{
		deny: s.Effect == "Deny", tags: tags,
		actions: patterns("(?i)", s.Action), resources: patterns("", s.Resource),
	}, err
}

// tagConditions reads a Condition element, all of which must hold.
func tagConditions(element map[string]map[string]oneOrMore) ([]tagCondition, error) {
	var conditions []tagCondition
	for operator, keys := range element {
		if operator != "StringEquals" && operator != "StringLike" {
			return nil, fmt.Errorf("condition operator %q is not evaluated here; use StringEquals or StringLike", operator)
		}
		for key, values := range keys {
			tag, ok := strings.CutPrefix(strings.ToLower(key), "aws:principaltag/")
			if !ok || tag == "" || len(values) == 0 {
				return nil, fmt.Errorf("condition key %q is not evaluated here; use aws:PrincipalTag/KEY, with values", key)
			}
			condition := tagCondition{key: tag}
			for _, value := range values {
				if strings.Contains(value, "${") {
					return nil, fmt.Errorf("condition key %q: policy variables such as %q are not evaluated here", key, value)
				}
				if operator == "StringLike" {
					condition.values = append(condition.values, pattern("", value))
				} else {
					condition.values = append(condition.values, regexp.MustCompile(`\A`+regexp.QuoteMeta(value)+`\z`))
				}
			}
			conditions = append(conditions, condition)
		}
	}
	return conditions, nil
}

func patterns(flags string, texts []string) []*regexp.Regexp {
	var compiled []*regexp.Regexp
	for _, text := range texts {
		compiled = append(compiled, pattern(flags, text))
	}
	return compiled
}

// pattern compiles a text in which * is any run of characters and ? any one.
func pattern(flags, text string) *regexp.Regexp {
	quoted := strings.NewReplacer(`\*`, ".*", `\?`, ".").Replace(regexp.QuoteMeta(text))
	return regexp.MustCompile(flags + `(?s)\A` + quoted + `\z`)
}

func matchesAny(patterns []*regexp.Regexp, text string) bool {
	return slices.ContainsFunc(patterns, func(p *regexp.Regexp) bool { return p.MatchString(text) })
}

// applies says whether the statement is about an action on a resource by a
// principal with the given tags, whose keys are in lower case.
func (p permission) applies(action, resource string, tags map[string]string) bool {
	if !matchesAny(p.actions, action) || !matchesAny(p.resources, resource) {
		return false
	}
	for _, condition := range p.tags {
		if value, ok := tags[condition.key]; !ok || !matchesAny(condition.values, value) {
			return false
		}
	}
	return true
}

// decide says whether a statement allows the action and whether one denies it.
func (all permissions) decide(action, resource string, tags map[string]string) (allowed, denied bool) {
	for _, p := range all {
		if p.applies(action, resource, tags) {
			allowed = allowed || !p.deny
			denied = denied || p.deny
		}
	}
	return allowed, denied
}

// forbidden says in AWS's words why the session may not do something; it is
// empty if it may. The role's policy and, if there are any, one of the
// session's policies must allow it, and none may deny it. The role's need not
// allow what the policy of the resource itself grants to the role.
func (s *session) forbidden(action, resource string, granted bool) string {
	byRole, deniedByRole := s.role.policy.decide(action, resource, s.tags)
	bySession, deniedBySession := s.policy.decide(action, resource, s.tags)
	switch {
	case deniedByRole:
		return "with an explicit deny in an identity-based policy"
	case deniedBySession:
		return "with an explicit deny in a session policy"
	case !byRole && !granted:
		return "because no identity-based policy allows the " + action + " action"
	case s.policy != nil && !bySession:
		return "because no session policy allows the " + action + " action"
	}
	return ""
}

// managedPolicy returns the document of a policy that AWS manages, as far as it
// is about S3, or nil (AWS managed policy reference guide).
func managedPolicy(arn string) json.RawMessage {
	switch arn {
	case "arn:aws:iam::aws:policy/AdministratorAccess":
		return json.RawMessage(`{"Statement": {"Effect": "Allow", "Action": "*", "Resource": "*"}}`)
	case "arn:aws:iam::aws:policy/ReadOnlyAccess", "arn:aws:iam::aws:policy/AmazonS3ReadOnlyAccess":
		return json.RawMessage(`{"Statement": {"Effect": "Allow", "Action": ["s3:Get*", "s3:List*", "s3:Describe*"], "Resource": "*"}}`)
	case "arn:aws:iam::aws:policy/AWSDenyAll":
		return json.RawMessage(`{"Statement": {"Effect": "Deny", "Action": "*", "Resource": "*"}}`)
	}
	return nil
}
