package aws

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"

	kjson "sigs.k8s.io/json"

	"github.com/oidclab/oidclab/lab/sts"
)

// policyDocument is a policy (IAM user guide, "Grammar of the IAM JSON policy
// language"). Its statements are reduced to what can be evaluated here: any
// other element is unknown and refused, since to ignore it would be to trust
// more, or less, than the document says.
type policyDocument struct {
	Version   string
	ID        string `json:"Id"`
	Statement json.RawMessage
}

// statement is one of a trust policy.
type statement struct {
	Sid       string
	Effect    string
	Principal json.RawMessage
	Action    oneOrMore
	Condition map[string]map[string]oneOrMore
}

// The actions by which a role is assumed: with a web identity, and with the
// credentials of another role's session.
const (
	webIdentityAction = "sts:AssumeRoleWithWebIdentity"
	chainAction       = "sts:AssumeRole"
)

// trust is a trust policy, by the action that it allows: to web identities, and
// to sessions of roles, of which it has the ARNs.
type trust struct {
	webIdentities map[string][]sts.Statement
	roles         map[string][]string
}

// parseTrustPolicy reads a trust policy. providers holds the account's
// issuers by provider ARN.
func parseTrustPolicy(document []byte, providers map[string]string) (trust, error) {
	raw, err := parseDocument(document)
	if err != nil {
		return trust{}, err
	}
	var compact bytes.Buffer // IAM does not count white space
	if err := json.Compact(&compact, document); err != nil {
		return trust{}, fmt.Errorf("syntax errors in policy: %w", err)
	}
	if n := utf8.RuneCount(compact.Bytes()); n > maxTrustPolicyDocument {
		return trust{}, fmt.Errorf("%d characters; the limit is %d", n, maxTrustPolicyDocument)
	}
	parsed := trust{webIdentities: make(map[string][]sts.Statement), roles: make(map[string][]string)}
	for i, r := range raw {
		if err := parsed.add(r, providers); err != nil {
			return trust{}, fmt.Errorf("statement %d: %w", i+1, err)
		}
	}
	if len(parsed.webIdentities[webIdentityAction])+len(parsed.roles[chainAction]) == 0 {
		return trust{}, fmt.Errorf("the policy does not allow %s, so nobody could use it", webIdentityAction)
	}
	return parsed, nil
}

// parseDocument returns the statements of a policy document.
func parseDocument(document []byte) ([]json.RawMessage, error) {
	var policy policyDocument
	if err := unmarshalStrict(document, &policy); err != nil {
		return nil, err
	}
	// Without a version, AWS assumes 2008-10-17. The two differ in policy
	// variables only, and those are refused.
	if !slices.Contains([]string{"", "2008-10-17", "2012-10-17"}, policy.Version) {
		return nil, fmt.Errorf("the policy must contain a valid version string, not %q: use 2012-10-17", policy.Version)
	}
	return statements(policy.Statement)
}

// statements splits the Statement element, which is one object or an array.
func statements(raw json.RawMessage) ([]json.RawMessage, error) {
	if len(raw) == 0 {
		return nil, errors.New("missing required field Statement")
	}
	if raw[0] != '[' {
		return []json.RawMessage{raw}, nil
	}
	var list []json.RawMessage
	if err := unmarshalStrict(raw, &list); err != nil {
		return nil, err
	}
	if len(list) == 0 {
		return nil, errors.New("missing required field Statement")
	}
	return list, nil
}

// add reads a statement.
func (t *trust) add(raw json.RawMessage, providers map[string]string) error {
	var s statement
	if err := unmarshalStrict(raw, &s); err != nil {
		return err
	}
	switch s.Effect {
	case "Allow":
	case "Deny":
		return errors.New("effect Deny is not evaluated here: narrow the conditions of the Allow statements instead")
	case "":
		return errors.New("missing required field Effect")
	default:
		return fmt.Errorf("invalid effect %q: use Allow", s.Effect)
	}
	var sessions struct{ AWS oneOrMore }
	if json.Unmarshal(s.Principal, &sessions) == nil && sessions.AWS != nil {
		return t.addRoles(s)
	}
	if err := checkActions(s.Action, webIdentityAction, "web identities"); err != nil {
		return err
	}
	provider, err := federated(s.Principal)
	if err != nil {
		return err
	}
	issuer, ok := providers[provider]
	if !ok {
		return fmt.Errorf("invalid principal in policy: the account has no OIDC provider %q; register it, or use arn:aws:iam::ACCOUNT:oidc-provider/ISSUER with the issuer's URL without https://", provider)
	}
	conditions, err := parseConditions(s.Condition, strings.TrimPrefix(issuer, "https://"))
	for _, action := range s.Action {
		t.webIdentities[action] = append(t.webIdentities[action], sts.Statement{Issuer: issuer, Conditions: conditions})
	}
	return err
}

// addRoles reads a statement that trusts sessions of roles.
func (t *trust) addRoles(s statement) error {
	var principal struct{ AWS oneOrMore }
	if err := unmarshalStrict(s.Principal, &principal); err != nil {
		return fmt.Errorf("invalid principal in policy: %w", err)
	}
	if err := checkActions(s.Action, chainAction, "sessions of roles"); err != nil {
		return err
	}
	if s.Condition != nil {
		return errors.New("conditions on sessions of roles are not evaluated here: name the roles")
	}
	for _, arn := range principal.AWS {
		if !isRoleARN(arn) || strings.ContainsAny(arn, "*?") {
			return fmt.Errorf("invalid principal in policy: %q is not the ARN of a role", arn)
		}
	}
	for _, action := range s.Action {
		t.roles[action] = append(t.roles[action], principal.AWS...)
	}
	return nil
}

// checkActions wants actions that a kind of principal can do, of which one is
// the main one.
func checkActions(actions oneOrMore, main, principals string) error {
	if len(actions) == 0 {
		return errors.New("missing required field Action")
	}
	for _, a := range actions {
		switch {
		case strings.Contains(a, "*"):
			return fmt.Errorf("action %q: wildcards are not evaluated here; use %s", a, main)
		case !slices.Contains([]string{main, tagAction, sourceIdentityAction}, a):
			return fmt.Errorf("action %q does not apply to %s; use %s", a, principals, main)
		}
	}
	return nil
}

// federated returns the one provider ARN of a Principal element.
func federated(raw json.RawMessage) (string, error) {
	const form = `use {"Federated": "arn:aws:iam::ACCOUNT:oidc-provider/ISSUER"}`
	switch {
	case len(raw) == 0:
		return "", errors.New("missing required field Principal")
	case string(raw) == `"*"`:
		return "", errors.New("invalid principal in policy: a wildcard would trust everybody; " + form)
	}
	var principal struct{ Federated oneOrMore }
	if err := unmarshalStrict(raw, &principal); err != nil {
		return "", fmt.Errorf("invalid principal in policy: %w; %s", err, form)
	}
	if len(principal.Federated) != 1 {
		return "", fmt.Errorf("invalid principal in policy: %d federated providers; conditions belong to one provider, so give each a statement of its own", len(principal.Federated))
	}
	if arn := principal.Federated[0]; strings.ContainsAny(arn, "*?") {
		return "", fmt.Errorf("invalid principal in policy: %q has a wildcard; %s", arn, form)
	}
	return principal.Federated[0], nil
}

// parseConditions reads the Condition element of a statement for the provider
// (an issuer without its scheme). All operators and keys must hold.
func parseConditions(element map[string]map[string]oneOrMore, provider string) ([]sts.Condition, error) {
	var conditions []sts.Condition
	for name, keys := range element {
		operator := sts.Operator(name)
		if err := operator.Validate(); err != nil {
			return nil, fmt.Errorf("condition %w", err)
		}
		for key, values := range keys {
			claim, ok := strings.CutPrefix(key, provider+":")
			if !ok || !slices.Contains([]string{"sub", "aud", "oaud", "amr"}, claim) {
				return nil, fmt.Errorf("condition key %q can never match; use %q or %q", key, provider+":sub", provider+":aud")
			}
			if len(values) == 0 {
				return nil, fmt.Errorf("condition key %q has no values", key)
			}
			for _, v := range values {
				if strings.Contains(v, "${") {
					return nil, fmt.Errorf("condition key %q: policy variables such as %q are not evaluated here", key, v)
				}
			}
			conditions = append(conditions, sts.Condition{Operator: operator, Claim: claim, Values: values})
		}
	}
	// The element is a map: give the core, and so its traces, a stable order.
	slices.SortFunc(conditions, func(a, b sts.Condition) int {
		return strings.Compare(b.Claim+string(b.Operator), a.Claim+string(a.Operator))
	})
	return conditions, nil
}

// oneOrMore is a JSON string or an array of strings.
type oneOrMore []string

// UnmarshalJSON implements [json.Unmarshaler].
func (l *oneOrMore) UnmarshalJSON(data []byte) error {
	var one *string
	if json.Unmarshal(data, &one) == nil && one != nil {
		*l = []string{*one}
		return nil
	}
	var more []*string
	if err := json.Unmarshal(data, &more); err != nil || more == nil || slices.Contains(more, nil) {
		return errors.New("neither a string nor an array of strings")
	}
	*l = nil
	for _, s := range more {
		*l = append(*l, *s)
	}
	return nil
}

// unmarshalStrict decodes JSON with exact names, and refuses unknown and
// duplicate ones.
func unmarshalStrict(data []byte, into any) error {
	strict, err := kjson.UnmarshalStrict(data, into)
	if err := errors.Join(append(strict, err)...); err != nil {
		return fmt.Errorf("syntax errors in policy: %w", err)
	}
	return nil
}
