package gcp

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/google/cel-go/cel"
	"github.com/google/cel-go/checker"
	"github.com/google/cel-go/common/types"
	"github.com/google/cel-go/common/types/ref"
	"github.com/google/cel-go/common/types/traits"
	"github.com/google/cel-go/interpreter"

	"github.com/oidclab/oidclab/lab/sts"
)

// The limits of the IAM API reference (WorkloadIdentityPoolProvider,
// attributeMapping and attributeCondition), and two of our own.
const (
	maxAttributes       = 50
	maxAttributeKey     = 100  // characters of NAME in attribute.NAME
	maxExpressionLength = 2048 // characters of a mapping
	maxConditionLength  = 4096 // characters
	maxSubject          = 127  // bytes
	maxMapped           = 8192 // bytes of all mapped values
	maxGroups           = 400  // ours; what is mapped is kept with every credential

	// maxCost bounds the evaluation of all expressions for one token, in CEL's
	// units of cost, and maxNesting macros (all, map, ...) within or after one
	// another: without, lists could be made that double with each, and CEL
	// compares lists at the cost of their outermost level only. The vendor's
	// limits are not documented.
	maxCost    = 1_000_000
	maxNesting = 2
)

const (
	subjectKey      = "google.subject"
	groupsKey       = "google.groups"
	attributePrefix = "attribute."
)

// mapping makes a principal's attributes of a token's claims.
type mapping struct {
	keys        []string // of the expressions, google.subject first
	expressions map[string]cel.Program
	text        string      // of the condition
	condition   cel.Program // nil if there is none
}

// mapped are the attributes of one principal.
type mapped struct {
	subject    string
	groups     []string
	attributes map[string]string // by NAME of attribute.NAME
}

// newMapping compiles expressions and condition. It refuses what is beyond the
// vendor's limits, of the wrong type, or too costly for any token.
func newMapping(expressions map[string]string, condition string) (*mapping, error) {
	env, err := cel.NewEnv(
		cel.ASTValidators(cel.ValidateComprehensionNestingLimit(maxNesting)),
		cel.Variable("assertion", cel.MapType(cel.StringType, cel.DynType)),
		stringFunction("extract", cel.StringType, func(s, template string) ref.Val {
			return types.String(extract(s, template))
		}),
		stringFunction("split", cel.ListType(cel.StringType), func(s, separator string) ref.Val {
			return types.NewStringList(types.DefaultTypeAdapter, strings.Split(s, separator))
		}),
	)
	if err != nil {
		return nil, fmt.Errorf("CEL: %w", err)
	}
	if expressions[subjectKey] == "" {
		return nil, errors.New("the attribute mapping lacks " + subjectKey)
	}
	m := &mapping{expressions: make(map[string]cel.Program), text: condition}
	m.keys = slices.SortedFunc(maps.Keys(expressions), func(a, b string) int {
		if (a == subjectKey) != (b == subjectKey) { // the subject is judged first
			return map[bool]int{true: -1, false: 1}[a == subjectKey]
		}
		return strings.Compare(a, b)
	})
	if len(m.keys) > maxAttributes+2 {
		return nil, fmt.Errorf("%d mapped attributes; there can be %d beside google's", len(m.keys), maxAttributes)
	}
	for _, key := range m.keys {
		want, err := typeOf(key)
		if err != nil {
			return nil, err
		}
		if m.expressions[key], err = compile(env, expressions[key], maxExpressionLength, want); err != nil {
			return nil, fmt.Errorf("attribute mapping of %s: %w", key, err)
		}
	}
	if condition == "" {
		return m, nil
	}
	env, err = env.Extend(
		cel.Variable("google", cel.MapType(cel.StringType, cel.DynType)),
		cel.Variable("attribute", cel.MapType(cel.StringType, cel.StringType)),
	)
	if err != nil {
		return nil, fmt.Errorf("CEL: %w", err)
	}
	if m.condition, err = compile(env, condition, maxConditionLength, types.BoolKind); err != nil {
		return nil, fmt.Errorf("attribute condition: %w", err)
	}
	return m, nil
}

// typeOf returns the kind of value that is mapped to a key.
func typeOf(key string) (types.Kind, error) {
	switch key {
	case subjectKey:
		return types.StringKind, nil
	case groupsKey:
		return types.ListKind, nil
	}
	name, ok := strings.CutPrefix(key, attributePrefix)
	if !ok || name == "" || len(name) > maxAttributeKey || strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789_") != "" {
		return 0, fmt.Errorf("attribute mapping of %q: there are %s, %s and attribute.NAME with 1 to %d of lower-case letters, digits and underscores", key, subjectKey, groupsKey, maxAttributeKey)
	}
	return types.StringKind, nil
}

func compile(env *cel.Env, expression string, longest int, want types.Kind) (cel.Program, error) {
	if n := utf8.RuneCountInString(expression); n > longest {
		return nil, fmt.Errorf("an expression of %d characters; there can be %d", n, longest)
	}
	ast, issues := env.Compile(expression)
	if issues.Err() != nil {
		return nil, issues.Err()
	}
	if kind := ast.OutputType().Kind(); kind != want && kind != types.DynKind {
		return nil, fmt.Errorf("the expression yields a %s", ast.OutputType())
	}
	estimate, err := env.EstimateCost(ast, unknownSizes{})
	if err != nil {
		return nil, err
	}
	if estimate.Min > maxCost {
		return nil, fmt.Errorf("the expression costs at least %d to evaluate; there can be %d", estimate.Min, maxCost)
	}
	return env.Program(ast, cel.CostLimit(maxCost), cel.CostTrackerOptions(
		interpreter.OverloadCostTracker(overload("extract"), stringCost),
		interpreter.OverloadCostTracker(overload("split"), stringCost),
	))
}

// unknownSizes estimates costs without knowing any claim.
type unknownSizes struct{}

func (unknownSizes) EstimateSize(checker.AstNode) *checker.SizeEstimate { return nil }

func (unknownSizes) EstimateCallCost(string, string, *checker.AstNode, []checker.AstNode) *checker.CallEstimate {
	return nil
}

// stringFunction declares a method of strings that takes a string.
func stringFunction(name string, result *cel.Type, f func(s, argument string) ref.Val) cel.EnvOption {
	return cel.Function(name, cel.MemberOverload(overload(name), []*cel.Type{cel.StringType, cel.StringType}, result,
		cel.BinaryBinding(func(s, argument ref.Val) ref.Val {
			return f(string(s.(types.String)), string(argument.(types.String)))
		})))
}

func overload(function string) string { return "string_" + function + "_string" }

// stringCost is that of looking at all of a string: CEL's factor for one is
// 0.1, and of a list that is made each element costs 1.
func stringCost(arguments []ref.Val, result ref.Val) *uint64 {
	length := 0
	for _, a := range arguments {
		if s, ok := a.(types.String); ok {
			length += len(s)
		}
	}
	cost := 1 + uint64(length)/10
	if list, ok := result.(traits.Lister); ok {
		if n, ok := list.Size().(types.Int); ok && n > 0 {
			cost += uint64(n)
		}
	}
	return &cost
}

// extract returns the part of s where template has {NAME}, or "" if s does not
// match (IAM documentation, "Attribute reference for IAM Conditions", extract).
// The text before {NAME} is found where it is first, and the text after it
// where that follows first; without text after it the rest of s is the part.
func extract(s, template string) string {
	before, rest, ok := strings.Cut(template, "{")
	_, after, closed := strings.Cut(rest, "}")
	if !ok || !closed {
		return ""
	}
	_, part, found := strings.Cut(s, before)
	if !found {
		return ""
	}
	if after == "" {
		return part
	}
	part, _, found = strings.Cut(part, after)
	if !found {
		return ""
	}
	return part
}

// evaluate maps the claims of a good token and judges the result. Of a refusal
// about an attribute Err is the vendor's text.
func (m *mapping) evaluate(claims map[string]any) (*mapped, *sts.Refusal) {
	e := evaluation{assertion: plain(claims)}
	result := &mapped{attributes: make(map[string]string)}
	for _, key := range m.keys {
		value, err := e.run(m.expressions[key], map[string]any{"assertion": e.assertion})
		if err != nil {
			return nil, notMapped(key, err.Error(), "The attribute mapping of '"+key+"' could not be evaluated.") // no text is on record
		}
		if refusal := result.set(key, value); refusal != nil {
			return nil, refusal
		}
	}
	size := len(result.subject)
	for _, group := range result.groups {
		size += len(group)
	}
	for _, value := range result.attributes {
		size += len(value)
	}
	if size > maxMapped {
		return nil, notMapped("", fmt.Sprintf("%d bytes", size), fmt.Sprintf("The total size of all mapped attributes exceeds the %d bytes limit.", maxMapped)) // no text is on record
	}
	return result, m.judge(&e, result)
}

// judge evaluates the condition.
func (m *mapping) judge(e *evaluation, result *mapped) *sts.Refusal {
	if m.condition == nil {
		return nil
	}
	value, err := e.run(m.condition, map[string]any{
		"assertion": e.assertion,
		"google":    map[string]any{"subject": result.subject, "groups": result.groups},
		"attribute": result.attributes,
	})
	if err == nil && value == types.True {
		return nil
	}
	got := "false"
	switch {
	case err != nil:
		got = err.Error()
	case value != types.False:
		got = "a " + value.Type().TypeName()
	}
	return &sts.Refusal{Check: sts.CheckConditions, Reason: sts.ConditionMismatch, Want: shown(m.text), Got: shown(got),
		Hint: "compare the token's claims with the provider's attribute condition"}
}

// evaluation runs the expressions for one token, which share one limit of cost.
type evaluation struct {
	assertion any
	cost      uint64
}

func (e *evaluation) run(program cel.Program, variables map[string]any) (ref.Val, error) {
	value, details, err := program.Eval(variables)
	if err != nil {
		return nil, err
	}
	if cost := details.ActualCost(); cost != nil {
		e.cost += *cost
	}
	if e.cost > maxCost {
		return nil, fmt.Errorf("all expressions together cost more than %d to evaluate", maxCost)
	}
	return value, nil
}

// set keeps the value of an expression. It refuses values of the wrong type,
// and a subject that is empty or too long.
func (r *mapped) set(key string, value ref.Val) *sts.Refusal {
	if key == groupsKey {
		return r.setGroups(value)
	}
	text, ok := value.(types.String)
	if !ok {
		return notMapped(key, "a "+value.Type().TypeName(), "The mapped attribute '"+key+"' must be of type STRING.")
	}
	if name, ok := strings.CutPrefix(key, attributePrefix); ok {
		r.attributes[name] = string(text)
		return nil
	}
	switch {
	case text == "":
		return notMapped(key, "nothing", "The mapped attribute '"+key+"' must not be empty.") // no text is on record
	case len(text) > maxSubject:
		return notMapped(key, fmt.Sprintf("%d bytes", len(text)), fmt.Sprintf("The size of mapped attribute %s exceeds the %d bytes limit. Either modify your attribute mapping or the incoming assertion to produce a mapped attribute that is less than %d bytes.", key, maxSubject, maxSubject))
	}
	r.subject = string(text)
	return nil
}

func (r *mapped) setGroups(value ref.Val) *sts.Refusal {
	const text = "The mapped attribute '" + groupsKey + "' must be of type STRING_LIST." // modelled on its neighbour
	list, ok := value.(traits.Lister)
	if !ok {
		return notMapped(groupsKey, "a "+value.Type().TypeName(), text)
	}
	n, ok := list.Size().(types.Int)
	if !ok || n > maxGroups {
		return notMapped(groupsKey, fmt.Sprintf("%d groups", n), fmt.Sprintf("The mapped attribute '%s' exceeds the limit of %d groups.", groupsKey, maxGroups))
	}
	for i := range n {
		group, ok := list.Get(i).(types.String)
		if !ok {
			return notMapped(groupsKey, "a list of something else", text)
		}
		r.groups = append(r.groups, string(group))
	}
	return nil
}

// notMapped refuses a token whose claims make no principal. The key is empty
// if all of them together are at fault.
func notMapped(key, got, text string) *sts.Refusal {
	refusal := &sts.Refusal{Check: sts.CheckConditions, Reason: sts.ConditionMismatch, Claim: key, Want: "a value for " + key, Got: shown(got), Err: errors.New(text),
		Hint: "compare the token's claims with the provider's attribute mapping"}
	switch key {
	case subjectKey:
		refusal.Check, refusal.Reason = sts.CheckSubject, sts.SubjectMismatch
		refusal.Want = fmt.Sprintf("a %s of 1 to %d bytes", key, maxSubject)
	case "":
		refusal.Want = fmt.Sprintf("attributes of at most %d bytes", maxMapped)
	}
	return refusal
}

// plain makes of decoded claims what CEL takes: numbers are doubles, as in
// JSON (google.protobuf.Struct).
func plain(value any) any {
	switch value := value.(type) {
	case json.Number:
		number, err := value.Float64()
		if err != nil { // beyond the range of a double
			return math.NaN()
		}
		return number
	case map[string]any:
		members := make(map[string]any, len(value))
		for name, member := range value {
			members[name] = plain(member)
		}
		return members
	case []any:
		entries := make([]any, len(value))
		for i, entry := range value {
			entries[i] = plain(entry)
		}
		return entries
	default:
		return value
	}
}

// maxShown bounds what is shown of a text that a stranger may have chosen.
const maxShown = 200

// shown makes a text safe and short enough for a terminal or a trace.
func shown(s string) string {
	if len(s) > maxShown {
		s = strings.ToValidUTF8(s[:maxShown], "") + "…"
	}
	if strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return strconv.Quote(s)
	}
	return s
}
