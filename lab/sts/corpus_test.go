package sts

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

// corpus is testdata/policy.yaml, which says what it means.
type corpus []struct {
	Source  string
	Claim   string
	Profile string         // strict if empty
	Token   map[string]any // further claims of the token
	Rows    []corpusRow
}

type corpusRow struct {
	operator Operator
	values   []string
	claim    any
	outcome  string
}

// The values of a claim that stand for something else.
const (
	absent = "(absent)"
	asItIs = "(as it is)" // the token says it already
)

// UnmarshalJSON reads [operator, value or values, claim, outcome].
func (r *corpusRow) UnmarshalJSON(data []byte) error {
	var values json.RawMessage
	columns := []any{&r.operator, &values, &r.claim, &r.outcome}
	if err := json.Unmarshal(data, &columns); err != nil || len(columns) != 4 {
		return fmt.Errorf("not a row of four columns: %s", data)
	}
	var one string
	if json.Unmarshal(values, &one) == nil {
		r.values = []string{one}
		return nil
	}
	return json.Unmarshal(values, &r.values)
}

func (r corpusRow) String() string {
	return fmt.Sprintf("%s %q of %v", r.operator, r.values, r.claim)
}

// TestPolicyCorpus makes a role of each row, and sends it a token.
func TestPolicyCorpus(t *testing.T) {
	data, err := os.ReadFile("testdata/policy.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var groups corpus
	if err := yaml.UnmarshalStrict(data, &groups); err != nil {
		t.Fatal(err)
	}
	rows := 0
	for _, group := range groups {
		rows += len(group.Rows)
		profile := Strict()
		if group.Profile != "" {
			if profile, err = ProfileNamed(group.Profile); err != nil {
				t.Fatal(err)
			}
		}
		if group.Source == "" || group.Claim == "" {
			t.Fatalf("a group without source or claim: %v", group.Rows)
		}
		b := newParty(t, profile, func(c *Config) {
			good := *c
			for i, row := range group.Rows {
				role := Role{fmt.Sprint("row ", i), []Statement{{c.Issuers[0].URL, []Condition{{row.operator, group.Claim, row.values}}}}}
				if group.Claim != "sub" {
					role.Trust[0].Conditions = append(role.Trust[0].Conditions, Condition{StringEquals, "sub", []string{subject}})
				}
				alone := good
				alone.Roles = []Role{role}
				_, err := New(alone)
				if (row.outcome == "invalid") != (err != nil) {
					t.Errorf("%s, %v: making the role: %v, want %s", group.Claim, row, err, row.outcome)
				}
				if err == nil {
					c.Roles = append(c.Roles, role)
				}
			}
		})
		for i, row := range group.Rows {
			if row.outcome == "invalid" {
				continue
			}
			verdict := b.exchange(func(f *forged) {
				f.key, f.header = ecKey(), map[string]any{"alg": "ES256", "kid": "ec-1"}
				f.role = fmt.Sprint("row ", i)
				maps.Copy(f.claims, group.Token)
				switch row.claim {
				case asItIs:
				case absent:
					delete(f.claims, group.Claim)
				default:
					with(f.claims, group.Claim, row.claim)
				}
			})
			check, reason := CheckConditions, ConditionMismatch
			if group.Claim == "sub" {
				check, reason = CheckSubject, SubjectMismatch
			}
			switch r := verdict.Refusal; {
			case row.outcome == "accepted" && r == nil:
			case row.outcome == "refused" && r != nil && r.Check == check && r.Reason == reason && r.Claim == group.Claim && r.Got != "" && strings.Contains(r.Want, string(row.operator)):
			default:
				t.Errorf("%s, %v: refusal %v, want %s", group.Claim, row, r, row.outcome)
			}
		}
	}
	if rows < 250 {
		t.Errorf("%d rows were read", rows)
	}
}
