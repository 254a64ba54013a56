package sts

import (
	"cmp"
	"context"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/oidclab/oidclab/lab/trace"
)

// refused lists tokens that every strict relying party must refuse, and why.
// early says that no key may be fetched for them.
var refused = []struct {
	name   string
	check  Check
	reason Reason
	early  bool
	change func(*forged)
}{
	{"no token", CheckShape, TokenMissing, true, func(f *forged) { f.finish = func(string) string { return "" } }},
	{"too large", CheckSize, TokenTooLarge, true, func(f *forged) { with(f.claims, "pad", strings.Repeat("x", 16<<10)) }},
	{"a million dots", CheckSize, TokenTooLarge, true, func(f *forged) { f.finish = func(string) string { return strings.Repeat(".", 1e6) } }},
	{"header too large", CheckSize, TokenTooLarge, true, func(f *forged) { with(f.header, "pad", strings.Repeat("x", 4<<10)) }},

	{"garbage", CheckShape, TokenMalformed, true, func(f *forged) { f.finish = func(string) string { return "garbage" } }},
	{"two parts", CheckShape, TokenMalformed, true, func(f *forged) {
		f.finish = func(s string) string { return s[:strings.LastIndex(s, ".")] }
	}},
	{"four parts", CheckShape, TokenMalformed, true, func(f *forged) { f.finish = func(s string) string { return s + ".x" } }},
	{"five parts", CheckShape, TokenMalformed, true, func(f *forged) { f.finish = func(s string) string { return s + ".x.y" } }},
	{"JSON serialization", CheckShape, TokenMalformed, true, func(f *forged) {
		f.finish = func(s string) string {
			p := strings.Split(s, ".")
			return toJSON(map[string]string{"protected": p[0], "payload": p[1], "signature": p[2]})
		}
	}},
	{"trailing newline", CheckShape, TokenMalformed, true, func(f *forged) { f.finish = func(s string) string { return s + "\n" } }},
	{"leading blank", CheckShape, TokenMalformed, true, func(f *forged) { f.finish = func(s string) string { return " " + s } }},
	{"newline inside", CheckShape, TokenMalformed, true, func(f *forged) { f.finish = func(s string) string { return s[:9] + "\n" + s[9:] } }},
	{"padding", CheckShape, TokenMalformed, true, func(f *forged) { f.finish = func(s string) string { return s + "==" } }},
	{"base64 instead of base64url", CheckShape, TokenMalformed, true, func(f *forged) { f.finish = func(s string) string { return s[:len(s)-4] + "+/+/" } }},
	{"bits that do not count", CheckShape, TokenMalformed, true, func(f *forged) { f.finish = spareBits }},
	{"header not JSON", CheckShape, TokenMalformed, true, func(f *forged) { f.rawHead = `{"alg":"RS256"` }},
	{"header an array", CheckShape, TokenMalformed, true, func(f *forged) { f.rawHead = `["RS256"]` }},
	{"header with data after it", CheckShape, TokenMalformed, true, func(f *forged) { f.rawHead = toJSON(f.header) + "{}" }},
	{"header null", CheckShape, TokenMalformed, true, func(f *forged) { f.rawHead = `null` }},
	{"payload not JSON", CheckShape, TokenMalformed, true, func(f *forged) { f.rawBody = `hello` }},
	{"payload with trailing comma", CheckShape, TokenMalformed, true, func(f *forged) { f.rawBody = like(f.claims, "") }},
	{"payload a string", CheckShape, TokenMalformed, true, func(f *forged) { f.rawBody = `"hello"` }},
	{"payload with data after it", CheckShape, TokenMalformed, true, func(f *forged) { f.rawBody = toJSON(f.claims) + " 1" }},
	{"invalid UTF-8", CheckShape, TokenMalformed, true, func(f *forged) { f.rawBody = like(f.claims, "\"x\":\"\xff\"") }},
	{"lone surrogate", CheckShape, TokenMalformed, true, func(f *forged) { f.rawBody = like(f.claims, `"x":"\ud800"`) }},
	{"byte order mark", CheckShape, TokenMalformed, true, func(f *forged) { f.rawBody = "\ufeff" + toJSON(f.claims) }},
	{"deep nesting", CheckShape, TokenMalformed, true, func(f *forged) {
		f.rawBody = like(f.claims, `"x":`+strings.Repeat("[", 33)+strings.Repeat("]", 33))
	}},
	{"too many claims", CheckShape, TokenMalformed, true, func(f *forged) {
		for i := range 201 {
			with(f.claims, fmt.Sprint("x", i), 1)
		}
	}},

	{"alg twice", CheckHeader, HeaderRefused, true, func(f *forged) { f.rawHead = like(f.header, `"alg":"RS256"`) }},
	{"ALG", CheckHeader, HeaderRefused, true, func(f *forged) { with(f.header, "ALG", "none") }},
	{"\u212aid", CheckHeader, HeaderRefused, true, func(f *forged) { with(f.header, "\u212aid", "x") }},
	{"crit", CheckHeader, HeaderRefused, true, func(f *forged) { with(f.header, "crit", []string{"exp"}) }},
	{"empty crit", CheckHeader, HeaderRefused, true, func(f *forged) { with(f.header, "crit", []string{}) }},
	{"crit null", CheckHeader, HeaderRefused, true, func(f *forged) { with(f.header, "crit", nil) }},
	{"b64", CheckHeader, HeaderRefused, true, func(f *forged) { with(f.header, "b64", false) }},
	{"cty", CheckHeader, HeaderRefused, true, func(f *forged) { with(f.header, "cty", "JWT") }},
	{"jwk", CheckHeader, HeaderRefused, true, func(f *forged) { with(f.header, "jwk", otherRSA().jwk()) }},
	{"jku", CheckHeader, HeaderRefused, true, func(f *forged) { with(f.header, "jku", "https://evil.example/jwks") }},
	{"x5u", CheckHeader, HeaderRefused, true, func(f *forged) { with(f.header, "x5u", "https://evil.example/x5u") }},
	{"x5c", CheckHeader, HeaderRefused, true, func(f *forged) { with(f.header, "x5c", []string{"MII"}) }},
	{"typ of an access token", CheckHeader, HeaderRefused, true, func(f *forged) { with(f.header, "typ", "at+jwt") }},
	{"typ empty", CheckHeader, HeaderRefused, true, func(f *forged) { with(f.header, "typ", "") }},
	{"typ null", CheckHeader, HeaderRefused, true, func(f *forged) { with(f.header, "typ", nil) }},
	{"typ a number", CheckHeader, HeaderRefused, true, func(f *forged) { with(f.header, "typ", 1) }},
	{"no kid", CheckHeader, HeaderRefused, true, func(f *forged) { delete(f.header, "kid") }},
	{"kid empty", CheckHeader, HeaderRefused, true, func(f *forged) { with(f.header, "kid", "") }},
	{"kid null", CheckHeader, HeaderRefused, true, func(f *forged) { with(f.header, "kid", nil) }},
	{"kid a number", CheckHeader, HeaderRefused, true, func(f *forged) { with(f.header, "kid", 1) }},
	{"kid too long", CheckHeader, HeaderRefused, true, func(f *forged) { with(f.header, "kid", strings.Repeat("k", 257)) }},
	{"kid with NUL", CheckHeader, HeaderRefused, true, func(f *forged) { with(f.header, "kid", "rsa-1\x00") }},

	{"no alg", CheckAlgorithm, AlgorithmRefused, true, func(f *forged) { delete(f.header, "alg") }},
	{"HS256 with the public key", CheckAlgorithm, AlgorithmRefused, true, func(f *forged) { f.finish = hmacWithPublicKey }},
	{"none without a signature", CheckAlgorithm, AlgorithmRefused, true, func(f *forged) {
		with(f.header, "alg", "none")
		f.finish = func(s string) string { return s[:strings.LastIndex(s, ".")+1] }
	}},
	{"PS256, which the profile does not have", CheckAlgorithm, AlgorithmRefused, true, func(f *forged) {
		f.key.alg = "PS256"
		with(f.header, "alg", "PS256")
	}},

	{"sub twice", CheckClaims, ClaimInvalid, true, func(f *forged) { f.rawBody = like(f.claims, `"sub":"admin"`) }},
	{"sub twice, once escaped", CheckClaims, ClaimInvalid, true, func(f *forged) { f.rawBody = like(f.claims, `"\u0073ub":"admin"`) }},
	{"duplicate in depth", CheckClaims, ClaimInvalid, true, func(f *forged) { f.rawBody = like(f.claims, `"x":[{"a":1,"a":2}]`) }},
	{"SUB", CheckClaims, ClaimInvalid, true, func(f *forged) { with(f.claims, "SUB", "admin") }},
	{"\u017fub", CheckClaims, ClaimInvalid, true, func(f *forged) { with(f.claims, "\u017fub", "admin") }},
	{"EXP", CheckClaims, ClaimInvalid, true, func(f *forged) { with(f.claims, "EXP", 1) }},
	{"no iss", CheckClaims, ClaimMissing, true, func(f *forged) { delete(f.claims, "iss") }},
	{"no sub", CheckClaims, ClaimMissing, true, func(f *forged) { delete(f.claims, "sub") }},
	{"no aud", CheckClaims, ClaimMissing, true, func(f *forged) { delete(f.claims, "aud") }},
	{"no exp", CheckClaims, ClaimMissing, true, func(f *forged) { delete(f.claims, "exp") }},
	{"no iat", CheckClaims, ClaimMissing, true, func(f *forged) { delete(f.claims, "iat") }},
	{"no claims", CheckClaims, ClaimMissing, true, func(f *forged) { f.rawBody = "{}" }},
	{"iss null", CheckClaims, ClaimInvalid, true, func(f *forged) { with(f.claims, "iss", nil) }},
	{"iss a list", CheckClaims, ClaimInvalid, true, func(f *forged) { with(f.claims, "iss", []any{f.claims["iss"]}) }},
	{"sub empty", CheckClaims, ClaimInvalid, true, func(f *forged) { with(f.claims, "sub", "") }},
	{"sub a number", CheckClaims, ClaimInvalid, true, func(f *forged) { with(f.claims, "sub", 7) }},
	{"sub with NUL", CheckClaims, ClaimInvalid, true, func(f *forged) { with(f.claims, "sub", subject+"\x00") }},
	{"aud empty", CheckClaims, ClaimInvalid, true, func(f *forged) { with(f.claims, "aud", "") }},
	{"aud an empty list", CheckClaims, ClaimInvalid, true, func(f *forged) { with(f.claims, "aud", []string{}) }},
	{"aud with a number", CheckClaims, ClaimInvalid, true, func(f *forged) { with(f.claims, "aud", []any{audience, 1}) }},
	{"aud an object", CheckClaims, ClaimInvalid, true, func(f *forged) { with(f.claims, "aud", map[string]any{audience: true}) }},
	{"exp a string", CheckClaims, ClaimInvalid, true, func(f *forged) { with(f.claims, "exp", fmt.Sprint(f.claims["exp"])) }},
	{"exp a fraction", CheckClaims, ClaimInvalid, true, func(f *forged) { with(f.claims, "exp", float64(f.claims["exp"].(int64))+0.5) }},
	{"exp 1e300", CheckClaims, ClaimInvalid, true, func(f *forged) { f.rawBody = like(without(f.claims, "exp"), `"exp":1e300`) }},
	{"exp 4e9", CheckClaims, ClaimInvalid, true, func(f *forged) { f.rawBody = like(without(f.claims, "exp"), `"exp":4e9`) }},
	{"exp -0", CheckClaims, ClaimInvalid, true, func(f *forged) { f.rawBody = like(without(f.claims, "exp"), `"exp":-0`) }},
	{"exp beyond int64", CheckClaims, ClaimInvalid, true, func(f *forged) { f.rawBody = like(without(f.claims, "exp"), `"exp":9223372036854775808`) }},
	{"exp after the year 9999", CheckClaims, ClaimInvalid, true, func(f *forged) { with(f.claims, "exp", int64(253402300800)) }},
	{"exp null", CheckClaims, ClaimInvalid, true, func(f *forged) { with(f.claims, "exp", nil) }},
	{"iat true", CheckClaims, ClaimInvalid, true, func(f *forged) { with(f.claims, "iat", true) }},
	{"iat negative", CheckClaims, ClaimInvalid, true, func(f *forged) { with(f.claims, "iat", -1) }},
	{"nbf null", CheckClaims, ClaimInvalid, true, func(f *forged) { with(f.claims, "nbf", nil) }},
	{"jti a number", CheckClaims, ClaimInvalid, true, func(f *forged) { with(f.claims, "jti", 1) }},

	{"issuer with a trailing slash", CheckIssuer, IssuerUnknown, true, func(f *forged) { with(f.claims, "iss", f.claims["iss"].(string)+"/") }},
	{"issuer in capitals", CheckIssuer, IssuerUnknown, true, func(f *forged) { with(f.claims, "iss", strings.ToUpper(f.claims["iss"].(string))) }},
	{"issuer without scheme", CheckIssuer, IssuerUnknown, true, func(f *forged) {
		with(f.claims, "iss", strings.TrimPrefix(f.claims["iss"].(string), "https://"))
	}},
	{"issuer with a dot segment", CheckIssuer, IssuerUnknown, true, func(f *forged) { with(f.claims, "iss", f.claims["iss"].(string)+"/.") }},
	{"another issuer", CheckIssuer, IssuerUnknown, true, func(f *forged) { with(f.claims, "iss", "https://evil.example") }},

	{"unknown kid", CheckKeys, KeyUnknown, false, func(f *forged) { with(f.header, "kid", "nobody") }},
	{"kid of a path", CheckKeys, KeyUnknown, false, func(f *forged) { with(f.header, "kid", "../../rsa-1") }},
	{"kid in capitals", CheckKeys, KeyUnknown, false, func(f *forged) { with(f.header, "kid", "RSA-1") }},
	{"kid of the EC key", CheckKeys, KeyUnknown, false, func(f *forged) { with(f.header, "kid", "ec-1") }},
	{"algorithm of another curve", CheckKeys, KeyUnknown, false, func(f *forged) {
		f.key = newEC("ec-1", "ES384", elliptic.P384())
		f.header = map[string]any{"alg": "ES384", "kid": "ec-1"}
	}},

	{"signed by another key", CheckSignature, SignatureInvalid, false, func(f *forged) { f.key = otherRSA().withKid("rsa-1") }},
	{"no signature", CheckSignature, SignatureInvalid, false, func(f *forged) {
		f.finish = func(s string) string { return s[:strings.LastIndex(s, ".")+1] }
	}},
	{"signature of another token", CheckSignature, SignatureInvalid, false, func(f *forged) {
		f.finish = func(s string) string {
			other := f.key.sign(toJSON(f.header), "{}")
			return s[:strings.LastIndex(s, ".")] + other[strings.LastIndex(other, "."):]
		}
	}},
	{"changed payload", CheckSignature, SignatureInvalid, false, func(f *forged) {
		f.finish = func(s string) string {
			p := strings.Split(s, ".")
			return p[0] + "." + encode(toJSON(f.claims)+" ") + "." + p[2]
		}
	}},
	{"ECDSA zeros (CVE-2022-21449)", CheckSignature, SignatureInvalid, false, func(f *forged) {
		f.header = map[string]any{"alg": "ES256", "kid": "ec-1"}
		f.finish = func(s string) string { return s[:strings.LastIndex(s, ".")+1] + encode(strings.Repeat("\x00", 64)) }
	}},
	{"ECDSA signature with a zero more", CheckSignature, SignatureInvalid, false, func(f *forged) {
		f.key, f.header = ecKey(), map[string]any{"alg": "ES256", "kid": "ec-1"}
		f.finish = func(s string) string {
			at := strings.LastIndex(s, ".") + 1
			signature, _ := base64.RawURLEncoding.DecodeString(s[at:])
			return s[:at] + encode("\x00"+string(signature[:32])+"\x00"+string(signature[32:]))
		}
	}},

	{"expired", CheckTimes, TokenExpired, false, func(f *forged) { with(f.claims, "exp", start.Unix()) }},
	{"exp 0", CheckTimes, TokenExpired, false, func(f *forged) { with(f.claims, "exp", 0) }},
	{"not yet valid", CheckTimes, TokenNotYetValid, false, func(f *forged) { with(f.claims, "nbf", start.Unix()+1) }},
	{"issued in the future", CheckTimes, TokenIssuedInFuture, false, func(f *forged) { with(f.claims, "iat", start.Unix()+1) }},

	{"another audience", CheckAudience, AudienceMismatch, false, func(f *forged) { with(f.claims, "aud", []string{"vault"}) }},
	{"audience in capitals", CheckAudience, AudienceMismatch, false, func(f *forged) { with(f.claims, "aud", "LAB") }},
	{"audiences in one text", CheckAudience, AudienceMismatch, false, func(f *forged) { with(f.claims, "aud", "lab lab-2") }},

	{"unknown role", CheckRole, RoleUnknown, false, func(f *forged) { f.role = "admin" }},
	{"no role", CheckRole, RoleUnknown, false, func(f *forged) { f.role = "" }},
	{"another subject", CheckSubject, SubjectMismatch, false, func(f *forged) { with(f.claims, "sub", subject+"2") }},
	{"subject in capitals", CheckSubject, SubjectMismatch, false, func(f *forged) { with(f.claims, "sub", strings.ToUpper(subject)) }},
}

// spareBits changes the bits of the signature's last character that no byte holds.
func spareBits(token string) string {
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	last := len(token) - 1
	return token[:last] + string(alphabet[strings.IndexByte(alphabet, token[last])|1])
}

// hmacWithPublicKey signs with HS256 and the PEM of the public key as the secret.
func hmacWithPublicKey(token string) string {
	der, err := x509.MarshalPKIXPublicKey(rsaKey().private.Public())
	if err != nil {
		panic(err)
	}
	payload := strings.Split(token, ".")[1]
	input := encode(`{"alg":"HS256","kid":"rsa-1"}`) + "." + payload
	mac := hmac.New(sha256.New, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
	mac.Write([]byte(input))
	return input + "." + base64.RawURLEncoding.EncodeToString(mac.Sum(nil))
}

func TestStrictRefuses(t *testing.T) {
	for _, tt := range refused {
		t.Run(tt.name, func(t *testing.T) {
			b := newParty(t, Strict())
			b.refuses(tt.name, tt.check, tt.reason, tt.change)
			if discoveries, fetches := b.issuer.counts(); tt.early && discoveries+fetches > 0 {
				t.Errorf("%d discoveries and %d key sets were fetched for a token that shows its defect", discoveries, fetches)
			}
			b.accepts("control", nil)
		})
	}
}

// TestAlgorithmsAreComparedExactly has no key fetched for any of them.
func TestAlgorithmsAreComparedExactly(t *testing.T) {
	b := newParty(t, Strict())
	for _, alg := range []any{"none", "None", "NONE", "nOnE", "noNE", "", " RS256", "RS256 ", "rs256", "Rs256", "RS256\x00", "RS-256", "RSA256",
		"HS256", "hs256", "HS384", "HS512", "RS1", "RS384", "RS512", "PS256", "EdDSA", "ES256K", "dir", "A128KW", "RSA-OAEP",
		nil, 256, true, []any{"RS256"}, map[string]any{"alg": "RS256"}} {
		b.refuses(fmt.Sprintf("alg %q", alg), CheckAlgorithm, AlgorithmRefused, func(f *forged) { with(f.header, "alg", alg) })
	}
	if discoveries, fetches := b.issuer.counts(); discoveries+fetches > 0 {
		t.Errorf("%d discoveries and %d key sets fetched", discoveries, fetches)
	}
	b.accepts("control", nil)
}

// accepted lists unusual tokens that are good.
var accepted = map[string]func(*forged){
	"a Kubernetes token":       nil,
	"typ JWT":                  func(f *forged) { with(f.header, "typ", "JWT") },
	"an EC key":                func(f *forged) { f.key, f.header = ecKey(), map[string]any{"alg": "ES256", "kid": "ec-1"} },
	"aud a text":               func(f *forged) { with(f.claims, "aud", audience) },
	"one of several audiences": func(f *forged) { with(f.claims, "aud", []string{"vault", "lab-2"}) },
	"no nbf":                   func(f *forged) { delete(f.claims, "nbf") },
	"no jti":                   func(f *forged) { delete(f.claims, "jti") },
	"unknown header parameter": func(f *forged) { with(f.header, "x5t", "abc") },
	"azp has no meaning here":  func(f *forged) { with(f.claims, "azp", "somebody") },
	"a surrogate pair":         func(f *forged) { f.rawBody = like(f.claims, `"x":"\ud83d\ude00"`) },
	"white space in JSON":      func(f *forged) { f.rawBody = " " + strings.ReplaceAll(toJSON(f.claims), `,"`, ",\n\t\"") + " " },
	"nested as deep as allowed": func(f *forged) {
		f.rawBody = like(f.claims, `"x":`+strings.Repeat("[", 31)+strings.Repeat("]", 31))
	},
}

func TestStrictAccepts(t *testing.T) {
	b := newParty(t, Strict())
	for name, change := range accepted {
		b.accepts(name, change)
	}
}

func TestClaimsOfAnAcceptedToken(t *testing.T) {
	b := newParty(t, Strict())
	v := b.exchange(func(f *forged) { with(f.claims, "aud", []string{"vault", "lab-2"}) })
	if v.Refusal != nil {
		t.Fatal(v.Refusal)
	}
	raw := v.Claims.Raw
	v.Claims.Raw = nil
	want := Claims{Issuer: b.issuer.URL, Subject: subject, Audience: []string{"vault", "lab-2"}, Accepted: "lab-2",
		Expiry: start.Add(600 * time.Second), IssuedAt: start, NotBefore: start, ID: "b7c5"}
	if !reflect.DeepEqual(*v.Claims, want) {
		t.Errorf("claims %+v, want %+v", *v.Claims, want)
	}
	if kubernetes, ok := raw["kubernetes.io"].(map[string]any); !ok || kubernetes["namespace"] != "shop" {
		t.Errorf("raw claims %v", raw)
	}
}

// TestTimesToTheNanosecond walks the boundaries of each profile.
func TestTimesToTheNanosecond(t *testing.T) {
	aged := Strict()
	aged.Name, aged.MaxAge, aged.Skew = "aged", time.Hour, time.Minute
	for _, profile := range append(Profiles(), aged) {
		b := newParty(t, profile)
		skew := profile.Skew
		at := func(when time.Time, claim string, reason Reason, seconds int64) {
			t.Helper()
			b.clock.Freeze(when)
			name := fmt.Sprintf("%s: %s %d at %s", profile.Name, claim, seconds-start.Unix(), when.Sub(start))
			change := func(f *forged) {
				with(f.claims, "iat", start.Unix()-86400)
				if profile.MaxAge > 0 {
					with(f.claims, "iat", start.Unix())
				}
				with(f.claims, "nbf", start.Unix()-86400)
				with(f.claims, "exp", start.Unix()+2*86400)
				with(f.claims, claim, seconds)
			}
			if reason == "" {
				b.accepts(name, change)
			} else {
				b.refuses(name, CheckTimes, reason, change)
			}
		}
		s := start.Unix()
		exp := start.Add(100 * time.Second)
		at(exp.Add(-time.Second), "exp", "", s+100)
		at(exp.Add(skew-time.Second), "exp", "", s+100)
		at(exp.Add(skew-1), "exp", "", s+100)
		at(exp.Add(skew), "exp", TokenExpired, s+100)
		at(exp.Add(skew+time.Second), "exp", TokenExpired, s+100)
		begin := cmp.Or(profile.NotBeforeSkew, skew)
		for claim, reason := range map[string]Reason{"nbf": TokenNotYetValid, "iat": TokenIssuedInFuture} {
			if claim == "iat" && profile.IgnoreIssuedAt {
				reason = ""
			}
			at(start.Add(-begin-time.Second), claim, reason, s)
			at(start.Add(-begin-1), claim, reason, s)
			at(start.Add(-begin), claim, "", s)
			at(start, claim, "", s)
		}
		if profile.MaxAge > 0 {
			at(start.Add(profile.MaxAge+skew-1), "iat", "", s)
			at(start.Add(profile.MaxAge+skew), "iat", TokenTooOld, s)
		}
		// 2038 and 9999 are ordinary years.
		at(start, "exp", "", 1<<31)
		at(start, "exp", "", maxNumericDate)
	}
}

func TestAWSProfile(t *testing.T) {
	b := newParty(t, AWS())
	aws := func(name string, check Check, reason Reason, change func(*forged)) {
		t.Helper()
		if reason == "" {
			b.accepts(name, change)
		} else {
			b.refuses(name, check, reason, change)
		}
	}
	aws("control", "", "", nil)
	aws("20000 bytes", "", "", func(f *forged) { padTo(f, 20_000) })
	aws("20001 bytes", CheckSize, TokenTooLarge, func(f *forged) { padTo(f, 20_001) })
	aws("the last of two subs counts", "", "", func(f *forged) {
		f.rawBody = `{"sub":"admin",` + strings.TrimPrefix(toJSON(f.claims), "{")
	})
	aws("the last of two subs counts, and is refused", CheckSubject, SubjectMismatch, func(f *forged) { f.rawBody = like(f.claims, `"sub":"admin"`) })
	aws("jku is ignored", "", "", func(f *forged) { with(f.header, "jku", "https://evil.example/jwks") })
	aws("jwk is ignored", CheckSignature, SignatureInvalid, func(f *forged) {
		with(f.header, "jwk", otherRSA().jwk())
		f.key = otherRSA().withKid("rsa-1")
	})
	aws("RS512", "", "", func(f *forged) {
		b.issuer.serveKeys(keySetOf(without(rsaKey().jwk(), "alg")))
		b.clock.Advance(10 * time.Minute)
		with(f.claims, "exp", start.Unix()+3600)
		f.key.alg = "RS512"
		with(f.header, "alg", "RS512")
	})
	b.clock.Freeze(start)
	aws("PS256", CheckAlgorithm, AlgorithmRefused, func(f *forged) { f.key.alg = "PS256"; with(f.header, "alg", "PS256") })
	aws("exp as a text", "", "", func(f *forged) { with(f.claims, "exp", fmt.Sprint(f.claims["exp"])) })
	aws("exp as a text with a fraction", CheckClaims, ClaimInvalid, func(f *forged) { with(f.claims, "exp", fmt.Sprint(f.claims["exp"])+".0") })
	aws("exp as a fraction", CheckClaims, ClaimInvalid, func(f *forged) { with(f.claims, "exp", float64(f.claims["exp"].(int64))+0.5) })

	aws("azp is the audience", "", "", func(f *forged) {
		with(f.claims, "aud", []string{"x", "y"})
		with(f.claims, "azp", audience)
	})
	aws("azp, not aud", CheckAudience, AudienceMismatch, func(f *forged) { with(f.claims, "azp", "somebody") })
	aws("several audiences without azp", CheckAudience, AudienceMismatch, func(f *forged) { with(f.claims, "aud", []string{audience, "x"}) })
	aws("azp empty", CheckClaims, ClaimInvalid, func(f *forged) { with(f.claims, "azp", "") })
	aws("azp null", CheckClaims, ClaimInvalid, func(f *forged) { with(f.claims, "azp", nil) })
}

// TestTimesThatAreAbsent: Vault puts in what is missing, an API server does not
// read iat, and nobody else goes on without.
func TestTimesThatAreAbsent(t *testing.T) {
	const missing, expired, early = ClaimMissing, TokenExpired, TokenNotYetValid
	now := start.Unix()
	for _, tt := range []struct {
		name                           string
		claims                         map[string]any
		strict, aws, vault, kubernetes Reason
	}{
		{"all", map[string]any{"exp": now + 600, "nbf": now, "iat": now}, "", "", "", ""},
		{"no nbf", map[string]any{"exp": now + 600, "iat": now}, "", "", "", ""},
		{"no iat", map[string]any{"exp": now + 600, "nbf": now}, missing, missing, "", ""},
		{"no exp", map[string]any{"iat": now, "nbf": now}, missing, missing, "", missing},
		{"none", nil, missing, missing, missing, missing},
		// The implied life is 150 s, the skew 60 s.
		{"no exp, iat long ago", map[string]any{"iat": now - 209}, missing, missing, "", missing},
		{"no exp, iat too long ago", map[string]any{"iat": now - 210}, missing, missing, expired, missing},
		{"no exp, the later of nbf and iat", map[string]any{"iat": now - 600, "nbf": now - 209}, missing, missing, "", missing},
		{"exp only, soon", map[string]any{"exp": now + 210}, missing, missing, "", ""},
		{"exp only, not so soon", map[string]any{"exp": now + 211}, missing, missing, early, ""},
		{"nbf only", map[string]any{"nbf": now + 60}, missing, missing, "", missing},
		{"nbf only, in the future", map[string]any{"nbf": now + 61}, missing, missing, early, missing},
		{"iat for nbf", map[string]any{"exp": now + 600, "iat": now + 61}, TokenIssuedInFuture, "", early, ""},
	} {
		for name, want := range map[string]Reason{"strict": tt.strict, "aws": tt.aws, "vault": tt.vault, "kubernetes": tt.kubernetes} {
			profile, err := ProfileNamed(name)
			if err != nil {
				t.Fatal(err)
			}
			verdict := newParty(t, profile).exchange(func(f *forged) {
				for _, claim := range []string{"exp", "nbf", "iat"} {
					delete(f.claims, claim)
				}
				maps.Copy(f.claims, tt.claims)
			})
			var got Reason
			if verdict.Refusal != nil {
				got = verdict.Refusal.Reason
			}
			if got != want {
				t.Errorf("%s, %s: %q, want %q", name, tt.name, got, want)
			}
		}
	}
}

func TestAnyType(t *testing.T) {
	for _, profile := range []Profile{Vault(), Kubernetes()} {
		b := newParty(t, profile)
		for _, typ := range []any{"at+jwt", "", nil, 1} {
			b.accepts(fmt.Sprintf("%s: typ %v", profile.Name, typ), func(f *forged) { with(f.header, "typ", typ) })
		}
	}
}

// padTo makes the token n bytes long. The header takes what the payload
// cannot: base64 leaves out every fourth length.
func padTo(f *forged, n int) {
	length := func(value any) int { return base64.RawURLEncoding.EncodedLen(len(toJSON(value))) }
	const dotsAndSignature = 2 + 342
	for head := range 4 {
		with(f.header, "pad", strings.Repeat("x", head))
		with(f.claims, "pad", "")
		missing := n - dotsAndSignature - length(f.header) - length(f.claims)
		for pad := missing * 3 / 4; pad < missing*3/4+3; pad++ {
			with(f.claims, "pad", strings.Repeat("x", pad))
			if dotsAndSignature+length(f.header)+length(f.claims) == n {
				return
			}
		}
	}
	panic("no padding gives this length")
}

// TestTheFirstDefectCounts pins the order of the checks.
func TestTheFirstDefectCounts(t *testing.T) {
	b := newParty(t, Strict())
	defects := []struct {
		check  Check
		change func(*forged)
	}{
		{CheckConditions, nil},
		{CheckSubject, func(f *forged) { with(f.claims, "sub", "admin") }},
		{CheckRole, func(f *forged) { f.role = "nobody" }},
		{CheckAudience, func(f *forged) { with(f.claims, "aud", "vault") }},
		{CheckTimes, func(f *forged) { with(f.claims, "exp", 1) }},
		{CheckSignature, func(f *forged) { f.key = otherRSA() }},
		{CheckKeys, func(f *forged) { with(f.header, "kid", "nobody") }},
		{CheckIssuer, func(f *forged) { with(f.claims, "iss", "https://evil.example") }},
		{CheckClaims, func(f *forged) { with(f.claims, "jti", 1) }},
		{CheckAlgorithm, func(f *forged) { with(f.header, "alg", "none") }},
		{CheckHeader, func(f *forged) { with(f.header, "crit", []string{"x"}) }},
		{CheckShape, func(f *forged) { f.finish = func(s string) string { return s + "=" } }},
		{CheckSize, func(f *forged) { with(f.claims, "pad", strings.Repeat("x", 20_000)) }},
	}
	for n := 1; n < len(defects); n++ {
		v := b.exchange(func(f *forged) {
			for _, d := range defects[1 : n+1] {
				d.change(f)
			}
		})
		if v.Refusal == nil || v.Refusal.Check != defects[n].check {
			t.Errorf("with defects up to %s: %v", defects[n].check, v.Refusal)
		}
	}
}

func TestVerdictHasOneResultForEachCheck(t *testing.T) {
	b := newParty(t, Strict())
	outcomes := func(v Verdict) (checks []Check, outcomes []string) {
		for _, r := range v.Results {
			checks, outcomes = append(checks, r.Check), append(outcomes, r.Outcome)
		}
		return checks, outcomes
	}
	checks, got := outcomes(b.exchange(nil))
	if !slices.Equal(checks, Checks()) || slices.ContainsFunc(got, func(o string) bool { return o != "passed" }) {
		t.Errorf("accepted: %v %v", checks, got)
	}
	token := b.forge(func(f *forged) { with(f.claims, "exp", 1) }).token()
	v := b.core.Verify(context.Background(), token)
	checks, got = outcomes(v)
	if !slices.Equal(checks, Checks()[:10]) || !slices.Equal(got[7:], []string{"passed", "refused", "not reached"}) {
		t.Errorf("refused: %v %v", checks, got)
	}
	if v.Journey != trace.JourneyOf(token) {
		t.Errorf("journey %s", v.Journey)
	}
	// Verify does not know roles.
	if v := b.core.Verify(context.Background(), b.forge(func(f *forged) { with(f.claims, "sub", "anybody") }).token()); v.Refusal != nil || v.Claims == nil {
		t.Error(v.Refusal)
	}
}

func TestTraceTellsTheJourney(t *testing.T) {
	b := newParty(t, Strict())
	token := b.forge(nil).token()
	for range 2 {
		if v := b.core.Exchange(context.Background(), Request{Token: token, Role: roleName}); v.Refusal != nil {
			t.Fatal(v.Refusal)
		}
	}
	var steps []string
	for _, e := range b.trace.Journey(trace.JourneyOf(token)) {
		steps = append(steps, e.Step+" "+e.Name+" "+e.Detail)
		if e.Station != "test" || e.Outcome != trace.OK {
			t.Errorf("event %+v", e)
		}
	}
	all := strings.Join(steps, "\n")
	for _, want := range []string{"discovery " + b.issuer.URL, "jwks rsa-1 fetched", "jwks rsa-1 cached 0s ago", "check conditions"} {
		if strings.Count(all, want) == 0 {
			t.Errorf("no %q in\n%s", want, all)
		}
	}

	v := b.exchange(func(f *forged) { with(f.claims, "aud", "vault") })
	events := b.trace.Journey(v.Journey)
	last := events[len(events)-1]
	if last.Name != "audience" || last.Outcome != trace.Refused || last.Reason != "audience_mismatch" || last.Want != "lab or lab-2" || last.Got != "vault" {
		t.Errorf("last event %+v", last)
	}
}

// TestNothingShowsTheToken walks all refusals: neither error nor trace may
// hold the token or its signature, or a line that a stranger could break.
func TestNothingShowsTheToken(t *testing.T) {
	b := newParty(t, Strict())
	for _, tt := range refused {
		f := b.forge(tt.change)
		token := f.token()
		v := b.core.Exchange(context.Background(), Request{Token: token, Role: f.role})
		if v.Refusal == nil {
			t.Errorf("%s: accepted", tt.name)
			continue
		}
		said := v.Refusal.Error() + fmt.Sprintf("%+v", v.Results) + fmt.Sprintf("%+v", b.trace.Journey(v.Journey))
		for _, part := range strings.Split(token, ".") {
			if len(part) > 20 && strings.Contains(said, part) {
				t.Errorf("%s: shows a part of the token: %s", tt.name, said)
			}
		}
		if strings.ContainsAny(v.Refusal.Error(), "\n\x00\x1b") || len(v.Refusal.Error()) > 1500 {
			t.Errorf("%s: %q", tt.name, v.Refusal.Error())
		}
	}
}

func TestEveryReasonIsTested(t *testing.T) {
	seen := map[Reason]bool{
		TokenTooOld:       true, // TestTimesToTheNanosecond
		IssuerUnreachable: true, // TestKeySetIsRefused
		IssuerNotTrusted:  true, // TestTrust
		ConditionMismatch: true, // TestTrust
	}
	for _, tt := range refused {
		seen[tt.reason] = true
	}
	for _, reason := range Reasons() {
		if !seen[reason] {
			t.Errorf("no token is refused for %s", reason)
		}
	}
	if len(seen) != len(Reasons()) {
		t.Errorf("%d reasons are listed, %d tested", len(Reasons()), len(seen))
	}
}

// TestEveryBitCounts flips each bit of a whole valid token.
func TestEveryBitCounts(t *testing.T) {
	b := newParty(t, Strict())
	for _, key := range []signingKey{rsaKey(), ecKey()} {
		token := []byte(b.forge(func(f *forged) { f.key, f.header = key, map[string]any{"alg": key.alg, "kid": key.kid} }).token())
		accepted := func() bool {
			return b.core.Exchange(context.Background(), Request{Token: string(token), Role: roleName}).Refusal == nil
		}
		if !accepted() {
			t.Fatal("control refused")
		}
		for i := range token {
			for bit := range 8 {
				token[i] ^= 1 << bit
				if accepted() {
					t.Errorf("%s: accepted with bit %d of byte %d flipped", key.alg, bit, i)
				}
				token[i] ^= 1 << bit
			}
		}
	}
}

func TestRefusalIsAnError(t *testing.T) {
	cause := errors.New("connection refused")
	r := &Refusal{Check: CheckKeys, Reason: IssuerUnreachable, Want: "a key", Got: "no keys", Hint: "start the issuer", Err: cause}
	if want := "token refused by check keys (issuer_unreachable): want a key, got no keys: connection refused; start the issuer"; r.Error() != want {
		t.Errorf("%s, want %s", r.Error(), want)
	}
	if !errors.Is(r, cause) {
		t.Error("the cause is lost")
	}
}
