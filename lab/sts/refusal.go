package sts

import (
	"strconv"
	"strings"
	"unicode"
)

// Checks returns every check, in the order in which they run.
func Checks() []Check {
	var checks []Check
	for _, s := range exchange {
		checks = append(checks, s.check)
	}
	return checks
}

// Reasons returns every reason a token can be refused for, in the order of the
// checks that give them.
func Reasons() []Reason {
	return []Reason{
		TokenMissing, TokenTooLarge, TokenMalformed, HeaderRefused, AlgorithmRefused,
		ClaimMissing, ClaimInvalid, IssuerUnknown, IssuerUnreachable, KeyUnknown,
		SignatureInvalid, TokenExpired, TokenNotYetValid, TokenIssuedInFuture, TokenTooOld,
		AudienceMismatch, RoleUnknown, IssuerNotTrusted, SubjectMismatch, ConditionMismatch,
	}
}

// Error says which check refused the token, what was wanted and found, and
// what to look at next. It holds neither the token nor its signature.
func (r *Refusal) Error() string {
	var b strings.Builder
	b.WriteString("token refused by check " + string(r.Check) + " (" + string(r.Reason) + "): want " + r.Want + ", got " + r.Got)
	if r.Err != nil {
		b.WriteString(": " + r.Err.Error())
	}
	if r.Hint != "" {
		b.WriteString("; " + r.Hint)
	}
	return b.String()
}

// Unwrap returns the cause, for instance the error of a failed key fetch.
func (r *Refusal) Unwrap() error { return r.Err }

// maxShown bounds what is shown of a value that a stranger chose.
const maxShown = 200

// shown makes a value from a token safe and short enough for a terminal or a log.
func shown(s string) string {
	if len(s) > maxShown {
		s = strings.ToValidUTF8(s[:maxShown], "") + "…"
	}
	if s == "" || strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return strconv.Quote(s)
	}
	return s
}

// detail is the part of a refusal that a result shows beside want and got.
func (r *Refusal) detail() string {
	switch {
	case r.Err == nil:
		return r.Hint
	case r.Hint == "":
		return r.Err.Error()
	default:
		return r.Err.Error() + "; " + r.Hint
	}
}
