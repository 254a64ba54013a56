package sts

import (
	"cmp"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/oidclab/oidclab/lab/trace"
)

// attempt is one token on its way through the checks. Each check reads what
// earlier ones established and adds to it.
type attempt struct {
	core    *Core
	request Request
	journey string

	header    document
	payload   document
	signed    string // the JWS signing input, RFC 7515 section 2
	signature []byte

	alg    string
	kid    string
	claims Claims
	issuer *registeredIssuer
	key    publicKey
	trust  []Statement // of the role, those that are still met
}

// finding is what a passed check wanted and found.
type finding struct{ want, got, detail string }

// step is one check: it either finds or refuses.
type step struct {
	check Check
	run   func(context.Context, *attempt) (finding, *Refusal)
}

// exchange are all checks in order.
var exchange = [...]step{
	{CheckSize, checkSize},
	{CheckShape, checkShape},
	{CheckHeader, checkHeader},
	{CheckAlgorithm, checkAlgorithm},
	{CheckClaims, checkClaims},
	{CheckIssuer, checkIssuer},
	{CheckKeys, checkKeys},
	{CheckSignature, checkSignature},
	{CheckTimes, checkTimes},
	{CheckAudience, checkAudience},
	{CheckRole, checkRole},
	{CheckSubject, checkSubject},
	{CheckConditions, checkConditions},
}

// verified is the number of checks up to and including the audience.
const verified = 10

func checkSize(_ context.Context, a *attempt) (finding, *Refusal) {
	p := &a.core.cfg.Profile
	if n := len(a.request.Token); n > p.MaxTokenBytes {
		return finding{}, &Refusal{Reason: TokenTooLarge, Want: fmt.Sprintf("a token of at most %d bytes", p.MaxTokenBytes), Got: fmt.Sprintf("%d bytes", n),
			Hint: "look for what makes the token large with oidclab token inspect"}
	}
	header := strings.IndexByte(a.request.Token, '.')
	if n := base64.RawURLEncoding.DecodedLen(max(header, 0)); n > p.MaxHeaderBytes {
		return finding{}, &Refusal{Reason: TokenTooLarge, Want: fmt.Sprintf("a header of at most %d bytes", p.MaxHeaderBytes), Got: fmt.Sprintf("%d bytes", n),
			Hint: "look for what makes the header large with oidclab token inspect"}
	}
	return finding{want: a.core.wantSize, got: strconv.Itoa(len(a.request.Token)) + " bytes"}, nil
}

func checkShape(_ context.Context, a *attempt) (finding, *Refusal) {
	payload, refusal := a.parse()
	if refusal != nil {
		return finding{}, refusal
	}
	var err error
	if a.payload, err = decodeObject(payload); err != nil {
		return finding{}, malformed("a payload that is "+err.Error(), "")
	}
	return finding{want: wantShape, got: "three parts"}, nil
}

const wantShape = "three base64url parts, of which two are JSON objects"

func malformed(got, hint string) *Refusal {
	return &Refusal{Reason: TokenMalformed, Want: wantShape, Got: got, Hint: hint}
}

// parse takes a JWS in compact serialization apart, RFC 7515 section 7.1, and
// returns its payload.
func (a *attempt) parse() ([]byte, *Refusal) {
	token := a.request.Token
	if token == "" {
		return nil, &Refusal{Reason: TokenMissing, Want: "a token", Got: "none", Hint: "check that the token file exists and is not empty"}
	}
	if dots := strings.Count(token, "."); dots != 2 {
		return nil, malformed(strconv.Itoa(dots+1)+" parts", "send a signed token in compact serialization; five parts would be an encrypted one")
	}
	end := strings.LastIndexByte(token, '.')
	a.signed = token[:end]
	encodedHeader, encodedPayload, _ := strings.Cut(a.signed, ".")
	header, headerErr := decodePart(encodedHeader)
	payload, payloadErr := decodePart(encodedPayload)
	signature, signatureErr := decodePart(token[end+1:])
	if err := cmp.Or(headerErr, payloadErr, signatureErr); err != nil {
		hint := "send the token as it was issued"
		if strings.ContainsAny(token, " \t\r\n") {
			hint = "trim the token: kubectl create token ends its output with a newline"
		}
		return nil, malformed("a part that is not canonical base64url", hint)
	}
	a.signature = signature
	var err error
	if a.header, err = decodeObject(header); err != nil {
		return nil, malformed("a header that is "+err.Error(), "")
	}
	return payload, nil
}

// decodePart decodes base64url without padding. One token has one spelling:
// Strict refuses bits that do not count, and line breaks, which encoding/base64
// would skip, are refused here.
func decodePart(part string) ([]byte, error) {
	if strings.IndexByte(part, '\n') >= 0 || strings.IndexByte(part, '\r') >= 0 {
		return nil, errors.New("a line break")
	}
	return base64.RawURLEncoding.Strict().DecodeString(part)
}

// headerParameters are those of RFC 7515 section 4.1 and RFC 7797.
func headerParameters() []string {
	return []string{"alg", "jku", "jwk", "kid", "x5u", "x5c", "x5t", "x5t#S256", "typ", "cty", "crit", "b64"}
}

func checkHeader(_ context.Context, a *attempt) (finding, *Refusal) {
	p := &a.core.cfg.Profile
	refused := func(name, want, got, hint string) (finding, *Refusal) {
		return finding{}, &Refusal{Reason: HeaderRefused, Claim: name, Want: want, Got: got, Hint: hint}
	}
	detail := ""
	if name := a.header.duplicate; name != nil {
		if !p.AllowDuplicates {
			return refused(*name, "each header parameter once", shown(*name)+" twice", "two verifiers could read two different values")
		}
		detail = shown(*name) + " occurs twice, the last one counts"
	}
	if name, ok := lookalike(a.header.members, headerParameters()); ok {
		return refused(name, "header parameters in their exact case", shown(name), "some verifiers would read it as the parameter it resembles")
	}
	for _, name := range []string{"crit", "cty", "b64"} {
		if value, ok := a.header.members[name]; ok {
			return refused(name, "no "+name, display(value), "extensions and nested tokens are not supported, RFC 7515 section 4.1.11")
		}
	}
	for _, name := range []string{"jwk", "jku", "x5u", "x5c"} {
		if _, ok := a.header.members[name]; !ok {
			continue
		}
		if p.RefuseKeyHeaders {
			return refused(name, "no key in the token", name, "keys come from the registered issuer only, RFC 8725 section 3.10")
		}
		detail = name + " is ignored: keys come from the registered issuer only"
	}
	typ, present := a.header.members["typ"]
	name, isString := typ.(string)
	if !p.AnyType && (present && (!isString || name == "") || !slices.Contains(p.Types, name)) {
		got := "none"
		if present {
			got = display(typ)
		}
		return refused("typ", "typ "+strings.Join(quoted(p.Types), " or "), got, "a token of another kind must not pass for this one, RFC 8725 section 3.11")
	}
	kid, present := a.header.members["kid"]
	if !present {
		return refused("kid", "a kid", "none", "without a kid it is a guess which key signed")
	}
	a.kid, isString = kid.(string)
	if !isString || a.kid == "" || len(a.kid) > maxKidBytes || hasControl(a.kid) {
		return refused("kid", fmt.Sprintf("a kid of 1 to %d printable bytes", maxKidBytes), display(kid), "")
	}
	return finding{want: "a kid, no extensions", got: "kid " + shown(a.kid), detail: detail}, nil
}

func checkAlgorithm(_ context.Context, a *attempt) (finding, *Refusal) {
	p := &a.core.cfg.Profile
	want := a.core.wantAlgorithms
	value, present := a.header.members["alg"]
	alg, ok := value.(string)
	if !ok || !slices.Contains(p.Algorithms, alg) {
		got := "none given"
		if present {
			got = display(value)
		}
		return finding{}, &Refusal{Reason: AlgorithmRefused, Claim: "alg", Want: want, Got: got,
			Hint: "the relying party, not the token, chooses the algorithm, RFC 8725 section 3.1"}
	}
	a.alg = alg
	return finding{want: want, got: alg}, nil
}

// registeredClaims are those of RFC 7519 section 4.1, and azp of OpenID Connect.
func registeredClaims() []string {
	return []string{"iss", "sub", "aud", "exp", "nbf", "iat", "jti", "azp"}
}

func checkClaims(_ context.Context, a *attempt) (finding, *Refusal) {
	p := &a.core.cfg.Profile
	invalid := func(claim, want, got string) (finding, *Refusal) {
		return finding{}, &Refusal{Reason: ClaimInvalid, Claim: claim, Want: want, Got: got}
	}
	detail := ""
	if name := a.payload.duplicate; name != nil {
		if !p.AllowDuplicates {
			return invalid(*name, "each claim once", shown(*name)+" twice")
		}
		detail = shown(*name) + " occurs twice, the last one counts"
	}
	if name, ok := lookalike(a.payload.members, registeredClaims()); ok {
		return invalid(name, "claims in their exact case", shown(name))
	}
	for _, claim := range a.core.required {
		if _, ok := a.payload.members[claim]; !ok {
			return finding{}, &Refusal{Reason: ClaimMissing, Claim: claim, Want: "claim " + claim, Got: "none"}
		}
	}
	for _, text := range []struct {
		claim string
		value *string
	}{{"iss", &a.claims.Issuer}, {"sub", &a.claims.Subject}, {"jti", &a.claims.ID}} {
		value, present := a.payload.members[text.claim]
		if !present {
			continue
		}
		s, ok := value.(string)
		lenient := text.claim == "sub" && p.AnySubject
		if number, isNumber := value.(json.Number); isNumber && lenient {
			s, ok = number.String(), true
			a.payload.members["sub"] = s // as conditions see it
		}
		if !ok || s == "" && !lenient || hasControl(s) {
			return invalid(text.claim, text.claim+": text", display(value))
		}
		*text.value = s
	}
	var ok bool
	if a.claims.Audience, ok = audiences(a.payload.members["aud"]); !ok {
		return invalid("aud", "aud: text, or an array of texts", display(a.payload.members["aud"]))
	}
	if azp, present := a.payload.members["azp"]; present && p.AuthorizedParty {
		if s, ok := azp.(string); !ok || s == "" || hasControl(s) {
			return invalid("azp", "azp: text", display(azp))
		}
	}
	for _, instant := range []struct {
		claim string
		value *time.Time
	}{{"exp", &a.claims.Expiry}, {"iat", &a.claims.IssuedAt}, {"nbf", &a.claims.NotBefore}} {
		value, present := a.payload.members[instant.claim]
		if !present {
			continue
		}
		if *instant.value, ok = numericDate(value, p.StringTimes); !ok {
			return invalid(instant.claim, instant.claim+": whole seconds since 1970", display(value))
		}
	}
	if p.ImpliedLife > 0 && !a.claims.implyTimes(p.ImpliedLife) {
		return finding{}, &Refusal{Reason: ClaimMissing, Claim: "exp", Want: "one of exp, nbf and iat", Got: "none"}
	}
	a.claims.Raw = a.payload.members
	return finding{want: a.core.wantClaims, got: "all of them", detail: detail}, nil
}

// requiredClaims are those without which the profile refuses a token.
func requiredClaims(p Profile) []string {
	required := []string{"iss", "sub", "aud"}
	if !p.IgnoreIssuedAt && p.ImpliedLife == 0 {
		required = append(required, "iat")
	}
	if p.ImpliedLife == 0 {
		required = append(required, "exp")
	}
	return required
}

// implyTimes fills in exp and nbf that are absent, so that the token lives for
// life. It returns false if there is no time to start from.
func (c *Claims) implyTimes(life time.Duration) bool {
	begin := c.NotBefore
	if c.IssuedAt.After(begin) {
		begin = c.IssuedAt
	}
	switch {
	case c.Expiry.IsZero() && begin.IsZero():
		return false
	case c.Expiry.IsZero():
		c.Expiry = begin.Add(life)
	}
	switch {
	case !c.NotBefore.IsZero():
	case !c.IssuedAt.IsZero():
		c.NotBefore = c.IssuedAt
	default:
		c.NotBefore = c.Expiry.Add(-life)
	}
	return true
}

// audiences reads an aud claim, RFC 7519 section 4.1.3.
func audiences(value any) ([]string, bool) {
	list, isList := value.([]any)
	if !isList {
		list = []any{value}
	}
	texts := make([]string, len(list))
	for i, entry := range list {
		s, ok := entry.(string)
		if !ok || s == "" || hasControl(s) {
			return nil, false
		}
		texts[i] = s
	}
	return texts, len(texts) > 0
}

// maxNumericDate is the last second of the year 9999, the end of RFC 3339.
const maxNumericDate = 253402300799

// numericDate reads a time, RFC 7519 section 2, of which it takes whole
// seconds only: fractions and exponents are read differently by different verifiers.
func numericDate(value any, fromString bool) (time.Time, bool) {
	var digits string
	switch value := value.(type) {
	case json.Number:
		digits = value.String()
	case string:
		if !fromString {
			return time.Time{}, false
		}
		digits = value
	}
	seconds, err := strconv.ParseInt(digits, 10, 64)
	if err != nil || seconds < 0 || seconds > maxNumericDate || strconv.FormatInt(seconds, 10) != digits {
		return time.Time{}, false
	}
	return time.Unix(seconds, 0).UTC(), true
}

func checkIssuer(_ context.Context, a *attempt) (finding, *Refusal) {
	iss := a.claims.Issuer
	if a.issuer = a.core.issuers[iss]; a.issuer != nil {
		return finding{want: "a registered issuer", got: iss}, nil
	}
	hint := "register the issuer, or send a token of one that is"
	want := make([]string, 0, len(a.core.issuers))
	for registered := range a.core.issuers {
		want = append(want, registered)
		if strings.TrimSuffix(registered, "/") == strings.TrimSuffix(iss, "/") {
			hint = "issuers are compared byte for byte, and these differ by a trailing slash"
		}
	}
	slices.Sort(want)
	return finding{}, &Refusal{Reason: IssuerUnknown, Claim: "iss", Want: strings.Join(want, " or "), Got: shown(iss), Hint: hint}
}

func checkKeys(ctx context.Context, a *attempt) (finding, *Refusal) {
	found := a.issuer.keys.find(ctx, a.kid)
	source := a.traceKeys(found)
	want := "a key of the issuer with kid " + shown(a.kid)
	if found.err != nil {
		refusal := &Refusal{Reason: IssuerUnreachable, Claim: "kid", Want: want, Got: "no keys", Err: found.err,
			Hint: "check that the issuer is up (oidclab status), and what it serves under " + strings.TrimSuffix(a.issuer.URL, "/") + "/.well-known/openid-configuration"}
		if found.unknown {
			refusal.Reason = KeyUnknown
			refusal.Got = "none among the keys " + source
			refusal.Hint = "a key must be published for as long as relying parties cache keys (" + a.core.cfg.Profile.Cache.Name + ") before it signs"
			if found.uploaded {
				refusal.Hint = "an uploaded key set does not follow rotations: upload the issuer's current one"
			}
		}
		return finding{}, refusal
	}
	if err := found.key.fits(a.alg); err != nil {
		return finding{}, &Refusal{Reason: KeyUnknown, Claim: "alg", Want: want + " for " + a.alg, Got: err.Error(),
			Hint: "a key serves one algorithm, RFC 8725 section 3.1"}
	}
	a.key = found.key
	return finding{want: want, got: "kid " + shown(a.kid), detail: source}, nil
}

// traceKeys records where the keys came from, and returns it.
func (a *attempt) traceKeys(found lookup) string {
	event := trace.Event{Step: "jwks", Name: shown(a.kid), Outcome: trace.OK, Got: a.issuer.URL}
	if f := found.fetch; f != nil {
		discovery := trace.Event{Step: "discovery", Name: a.issuer.URL, Outcome: trace.OK, Got: f.jwksURI}
		if f.jwksURI == "" {
			discovery.Outcome, discovery.Detail = trace.Failed, f.err.Error()
		}
		a.trace(discovery)
		event.Got = f.jwksURI
		if f.err != nil && f.jwksURI != "" {
			a.trace(trace.Event{Step: "jwks", Name: shown(a.kid), Outcome: trace.Failed, Got: f.jwksURI, Detail: f.err.Error()})
		}
	}
	switch {
	case found.uploaded:
		event.Detail = "uploaded"
	case found.err != nil && !found.unknown:
		if found.fetch == nil {
			event.Outcome, event.Detail = trace.Failed, found.err.Error()
			a.trace(event)
		}
		return ""
	case found.stale:
		event.Detail = "cached " + found.age.Round(time.Second).String() + " ago, used although stale"
	case found.fetch == nil || found.fetch.err != nil:
		event.Detail = "cached " + found.age.Round(time.Second).String() + " ago"
	default:
		event.Detail = "fetched"
	}
	a.trace(event)
	return event.Detail
}

func checkSignature(_ context.Context, a *attempt) (finding, *Refusal) {
	want := a.alg + " by key " + shown(a.kid)
	if !a.key.verify(a.alg, []byte(a.signed), a.signature) {
		return finding{}, &Refusal{Reason: SignatureInvalid, Want: want, Got: "another signature",
			Hint: "header or payload were changed, or another key with the same kid signed"}
	}
	return finding{want: want, got: "verified"}, nil
}

// checkTimes accepts while now < exp + skew, now >= nbf - skew and now >= iat - skew,
// and, if the profile limits the age, while now < iat + MaxAge + skew.
func checkTimes(_ context.Context, a *attempt) (finding, *Refusal) {
	p := &a.core.cfg.Profile
	now := a.core.cfg.Clock.Now()
	startSkew := cmp.Or(p.NotBeforeSkew, p.Skew)
	earliest, latest := now.Add(-p.Skew), now.Add(startSkew)
	refuse := func(reason Reason, claim, relation string, limit time.Time, skew time.Duration, got time.Time, hint string) (finding, *Refusal) {
		return finding{}, &Refusal{Reason: reason, Claim: claim, Hint: hint, Got: rfc3339(got),
			Want: claim + " " + relation + " " + rfc3339(limit) + ", now with " + skew.String() + " of skew"}
	}
	c := &a.claims
	switch {
	case !c.Expiry.After(earliest):
		return refuse(TokenExpired, "exp", "after", earliest, p.Skew, c.Expiry, "get a new token; if it is new, compare the clocks")
	case c.NotBefore.After(latest):
		return refuse(TokenNotYetValid, "nbf", "not after", latest, startSkew, c.NotBefore, "compare the clocks of issuer and relying party")
	case c.IssuedAt.After(latest) && !p.IgnoreIssuedAt:
		return refuse(TokenIssuedInFuture, "iat", "not after", latest, startSkew, c.IssuedAt, "compare the clocks of issuer and relying party")
	case p.MaxAge > 0 && !c.IssuedAt.After(earliest.Add(-p.MaxAge)):
		return refuse(TokenTooOld, "iat", "after", earliest.Add(-p.MaxAge), p.Skew, c.IssuedAt, "get a new token")
	}
	return finding{want: a.core.wantTimes, got: "exp " + rfc3339(c.Expiry), detail: "now " + rfc3339(now)}, nil
}

// wantTimes is what checkTimes wants of a token.
func wantTimes(p Profile) string {
	started := "nbf and iat"
	if p.IgnoreIssuedAt {
		started = "nbf"
	}
	want := "exp after, " + started + " not after now with " + p.Skew.String() + " of skew"
	if skew := cmp.Or(p.NotBeforeSkew, p.Skew); skew != p.Skew {
		want = "exp after now with " + p.Skew.String() + " of skew, " + started + " not after now with " + skew.String()
	}
	if p.MaxAge > 0 {
		want += ", iat at most " + p.MaxAge.String() + " ago"
	}
	return want
}

func rfc3339(t time.Time) string { return t.UTC().Format(time.RFC3339) }

func checkAudience(_ context.Context, a *attempt) (finding, *Refusal) {
	want := strings.Join(a.issuer.Audiences, " or ")
	got := a.claims.Audience
	claim := "aud"
	if a.core.cfg.Profile.AuthorizedParty {
		if azp, ok := a.payload.members["azp"].(string); ok {
			claim, got = "azp", []string{azp}
		} else if len(got) > 1 {
			return finding{}, &Refusal{Reason: AudienceMismatch, Claim: "azp", Want: "azp, because there are several audiences", Got: shown(strings.Join(got, " ")),
				Hint: "ask for a token with one audience"}
		}
	}
	for _, audience := range got {
		if slices.Contains(a.issuer.Audiences, audience) {
			a.claims.Accepted = audience
			return finding{want: want, got: audience}, nil
		}
	}
	return finding{}, &Refusal{Reason: AudienceMismatch, Claim: claim, Want: want, Got: shown(strings.Join(got, " ")),
		Hint: "ask for a token for this relying party, or register the audience"}
}

// display shows a decoded JSON value.
func display(value any) string {
	if s, ok := value.(string); ok {
		return shown(s)
	}
	data, err := json.Marshal(value)
	if err != nil {
		return "a value"
	}
	return shown(string(data))
}

func quoted(texts []string) []string {
	quoted := make([]string, len(texts))
	for i, s := range texts {
		quoted[i] = strconv.Quote(s)
	}
	return quoted
}

func hasControl(s string) bool { return strings.ContainsFunc(s, unicode.IsControl) }
