// Package sts is the core of a token service: the ordered, named checks that
// decide whether a token from a Kubernetes cluster is accepted, and as whom.
//
// A persona (package aws, generic, ...) translates a vendor's request into a
// [Request], asks the [Core], and translates the [Verdict] back into that
// vendor's status, code and text. Personas never decide.
//
// The core trusts issuers that were registered with it and nothing else: it
// gets an issuer's URL and an HTTP client that trusts the lab's certificate
// authority, and fetches discovery document and keys over HTTPS as a real
// relying party does. A token's header and claims are judged as far as they
// can be before any key is fetched; no URL in a token is ever followed.
package sts

import (
	"net/http"
	"time"

	"github.com/oidclab/oidclab/lab/clock"
	"github.com/oidclab/oidclab/lab/trace"
)

// Check is one named step of the verification.
type Check string

// The checks, in the order in which they run.
const (
	CheckSize       Check = "size"       // within the profile's limits
	CheckShape      Check = "shape"      // three canonical base64url parts, two JSON objects
	CheckHeader     Check = "header"     // typ, crit, cty, kid, embedded keys
	CheckAlgorithm  Check = "algorithm"  // exactly one of the profile's
	CheckClaims     Check = "claims"     // required claims are there and of their type
	CheckIssuer     Check = "issuer"     // registered, byte for byte
	CheckKeys       Check = "keys"       // discovery, key set, key by kid
	CheckSignature  Check = "signature"  //
	CheckTimes      Check = "times"      // exp, nbf, iat within the skew
	CheckAudience   Check = "audience"   // one that is registered for the issuer
	CheckRole       Check = "role"       // exists, and trusts the issuer
	CheckSubject    Check = "subject"    // the role's conditions on sub
	CheckConditions Check = "conditions" // the role's other conditions
)

// Reason says why a token was refused. The set is closed: every persona has an
// answer for each, and a test walks them all.
type Reason string

// The reasons.
const (
	TokenMissing        Reason = "token_missing"          // shape: no token at all
	TokenTooLarge       Reason = "token_too_large"        // size
	TokenMalformed      Reason = "token_malformed"        // shape
	HeaderRefused       Reason = "header_refused"         // header
	AlgorithmRefused    Reason = "algorithm_refused"      // algorithm
	ClaimMissing        Reason = "claim_missing"          // claims
	ClaimInvalid        Reason = "claim_invalid"          // claims: wrong type, empty, duplicate
	IssuerUnknown       Reason = "issuer_unknown"         // issuer
	IssuerUnreachable   Reason = "issuer_unreachable"     // keys: discovery or key set could not be had
	KeyUnknown          Reason = "key_unknown"            // keys: no usable key for the token's kid
	SignatureInvalid    Reason = "signature_invalid"      // signature
	TokenExpired        Reason = "token_expired"          // times
	TokenNotYetValid    Reason = "token_not_yet_valid"    // times: nbf
	TokenIssuedInFuture Reason = "token_issued_in_future" // times: iat
	TokenTooOld         Reason = "token_too_old"          // times: iat is older than the profile allows
	AudienceMismatch    Reason = "audience_mismatch"      // audience
	RoleUnknown         Reason = "role_unknown"           // role
	IssuerNotTrusted    Reason = "issuer_not_trusted"     // role: registered, but not trusted by this role
	SubjectMismatch     Reason = "subject_mismatch"       // subject
	ConditionMismatch   Reason = "condition_mismatch"     // conditions
)

// Refusal is why a token was not accepted. Want and Got are safe to show: they
// hold claims and limits, never a signature or the token.
type Refusal struct {
	Check  Check  `json:"check"`
	Reason Reason `json:"reason"`
	Claim  string `json:"claim,omitempty"` // the claim or header parameter at fault, "" if it is no single one
	Want   string `json:"want,omitempty"`
	Got    string `json:"got,omitempty"`  // of checks on times: the claim in RFC 3339
	Hint   string `json:"hint,omitempty"` // what a person would look at next
	Err    error  `json:"-"`              // the cause, for instance of a failed key fetch
}

// Profile is how one kind of relying party judges tokens. It is data; each
// value of the built-in profiles names its source where it is set.
type Profile struct {
	Name             string
	Algorithms       []string      // JWS alg values, RFC 7518 section 3.1
	Types            []string      // accepted typ values; "" stands for an absent typ
	AnyType          bool          // typ is not looked at, and Types is empty
	Skew             time.Duration // tolerated on exp, and on nbf and iat unless NotBeforeSkew says otherwise
	NotBeforeSkew    time.Duration // tolerated on nbf and iat; 0 means Skew
	MaxTokenBytes    int
	MaxHeaderBytes   int           // of the decoded header
	MaxAge           time.Duration // now - iat; 0 means any
	ImpliedLife      time.Duration // of a token without exp, from the later of nbf and iat on; one of the three is enough then. 0 means that exp is required
	IgnoreIssuedAt   bool          // iat is neither required nor compared, and ImpliedLife is 0; otherwise it is both, but see ImpliedLife
	StringTimes      bool          // exp, nbf and iat may be strings of digits
	RefuseKeyHeaders bool          // refuse jwk, jku, x5u, x5c in the header, not merely ignore them
	AllowDuplicates  bool          // the last of two claims of the same name wins; otherwise refused
	AuthorizedParty  bool          // AWS: if there is an azp claim, it is the audience
	AnySubject       bool          // sub may be a number, which is read as text, and empty; no role takes an empty one
	Keys             KeyRules
	Cache            CachePolicy
}

// KeyRules are which published keys a relying party uses, where parties differ
// on it. The zero value is what RFC 7517 says.
type KeyRules struct {
	LastWins     bool // of keys with the same kid the last one is used; otherwise none
	RefuseKeyOps bool // a key with key_ops is not used, whatever they are
	IgnoreAlg    bool // a key is for any algorithm of its kind, whatever its alg
	MaxPerKind   int  // if there are more keys of one kty, none of those is used; 0 means any number
}

// CachePolicy is how a relying party keeps an issuer's keys. Ages are measured
// on the lab clock.
type CachePolicy struct {
	Name              string        `json:"name"`
	TTL               time.Duration `json:"ttlNanoseconds"`          // keys older than this are fetched again; 0 means never by age
	RefetchUnknownKid bool          `json:"refetchUnknownKid"`       // fetch again for a kid that is not in the cached set
	MinInterval       time.Duration `json:"minIntervalNanoseconds"`  // between two fetches from one issuer, failed ones included
	ServeStale        time.Duration `json:"serveStaleNanoseconds"`   // how long past TTL keys are used while the issuer cannot be reached
	FetchTimeout      time.Duration `json:"fetchTimeoutNanoseconds"` // of discovery and key set, each
	MaxBodyBytes      int64         `json:"maxBodyBytes"`            // of discovery document and key set, each
	MaxKeys           int           `json:"maxKeys"`                 // keys of a set beyond this refuse the set
}

// Issuer is an issuer that was registered with a relying party, and the
// audiences it accepts from it (AWS calls them client ids).
type Issuer struct {
	URL       string // the exact iss claim
	Audiences []string
	KeySet    []byte // a JWK set that was uploaded: a snapshot, used instead of what the issuer publishes; nil means discovery
}

// Role is what a token can be exchanged for, and who may have it.
type Role struct {
	Name  string
	Trust []Statement // any one is enough
}

// Statement trusts tokens of one issuer that meet all conditions. A statement
// without a condition that says which "sub" is meant is refused by New: any
// service account of the cluster could become the role. A wide one is not: the
// pattern ?* takes every sub but the empty one.
type Statement struct {
	Issuer     string
	Conditions []Condition
}

// Condition compares one claim ("sub", "aud", ...) with values, any of which
// is enough; names and values are compared exactly. Only top-level claims that
// are a text or an array of texts can be compared: any other value satisfies no
// condition. A claim with several values matches if any of them does; if some
// are no texts, none of the operators that a lack of values can satisfy is met.
type Condition struct {
	Operator Operator
	Claim    string
	Values   []string
}

// Operator is how a condition compares: one of the constants below, which may
// be prefixed with ForAnyValue: or ForAllValues:, and suffixed with IfExists.
// Names and meanings are those of AWS IAM (user guide, "Condition operators" and
// "Set operators for multi-valued context keys"):
//
//   - A claim that is absent satisfies the Not operators, and none of the others.
//     With IfExists it satisfies those as well.
//   - ForAnyValue wants one of the claim's values to compare true, so an absent
//     claim never does; ForAllValues wants every one to, so an absent claim
//     always does. IfExists adds nothing to either.
type Operator string

// The operators.
const (
	StringEquals              Operator = "StringEquals"
	StringNotEquals           Operator = "StringNotEquals"
	StringEqualsIgnoreCase    Operator = "StringEqualsIgnoreCase"
	StringNotEqualsIgnoreCase Operator = "StringNotEqualsIgnoreCase"
	StringLike                Operator = "StringLike" // * is any run of characters, ? is any one
	StringNotLike             Operator = "StringNotLike"
)

// Request is a token that asks to become a role.
type Request struct {
	Token string
	Role  string
}

// Claims are the claims of a token that was accepted.
type Claims struct {
	Issuer    string         `json:"issuer"`
	Subject   string         `json:"subject"`
	Audience  []string       `json:"audience"` // the aud claim
	Accepted  string         `json:"accepted"` // the audience that was accepted (of aud, or azp where the profile says so)
	Expiry    time.Time      `json:"expiry"`
	IssuedAt  time.Time      `json:"issuedAt"`
	NotBefore time.Time      `json:"notBefore,omitzero"` // zero if absent
	ID        string         `json:"id,omitempty"`       // jti, if any
	Raw       map[string]any `json:"raw,omitempty"`
}

// Result is how one check went.
type Result struct {
	Check   Check  `json:"check"`
	Outcome string `json:"outcome"` // "passed", "refused" or "not reached"
	Want    string `json:"want,omitempty"`
	Got     string `json:"got,omitempty"`
	Detail  string `json:"detail,omitempty"` // for instance whether keys were cached or fetched
}

// Verdict is what the core decided, and how it came to that.
type Verdict struct {
	Journey string   `json:"journey"`           // see trace.JourneyOf
	Results []Result `json:"results"`           // one for each check that was asked for, in order
	Claims  *Claims  `json:"claims,omitempty"`  // nil if refused
	Refusal *Refusal `json:"refusal,omitempty"` // nil if accepted
}

// Config is what a Core needs.
type Config struct {
	Party   string // the name of the relying party in traces
	Profile Profile
	Issuers []Issuer
	Roles   []Role
	Client  *http.Client // trusts the lab CA; its redirect policy is overruled: redirects are refused
	Clock   clock.Clock
	Trace   *trace.Log // may be nil
}
