package sts

import (
	"context"
	"encoding/json"
	"io/fs"
	"slices"
	"testing"

	"github.com/c2sp/wycheproof"
)

// TestWycheproof runs the JSON Web Signature vectors of C2SP/wycheproof
// through the part of the core that judges header, key and signature. Their
// payloads are not claims.
func TestWycheproof(t *testing.T) {
	// Valid vectors that are refused, by file and number. These sign with an
	// algorithm other than the one their key is for ("PS256" with PS384) or with
	// a key for an algorithm that does not exist ("ES521"), which RFC 8725
	// section 3.1 forbids and vectors 332 to 340 of the same file call invalid.
	keyForAnotherAlgorithm := map[string][]int{"json_web_signature_test.json": {346, 347, 350, 351}}
	profile := Strict()
	profile.Algorithms = []string{"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"}

	for file, want := range map[string]struct{ asymmetricInvalid, asymmetricAccepted, other int }{
		"json_web_signature_test.json": {325, 32, 40},
		"json_web_key_test.json":       {10, 1, 15},
		"json_web_crypto_test.json":    {27, 2, 54},
	} {
		data, err := fs.ReadFile(wycheproof.TestVectors, file)
		if err != nil {
			t.Fatal(err)
		}
		var vectors struct {
			TestGroups []struct {
				Comment         string
				Public, Private map[string]any
				Tests           []struct {
					TcID    int
					Comment string
					JWS     json.RawMessage
					JWE     json.RawMessage
					Result  string
				}
			}
		}
		if err := json.Unmarshal(data, &vectors); err != nil {
			t.Fatal(err)
		}
		invalid, accepted, other := 0, 0, 0
		var refusedValid []int
		for _, group := range vectors.TestGroups {
			// Groups without a public key are symmetric signatures or encryption:
			// nothing of them may be accepted, whatever they call it.
			asymmetric := group.Public != nil
			keys := group.Public
			if !asymmetric {
				keys = group.Private
			}
			if _, isSet := keys["keys"]; !isSet {
				keys = map[string]any{"keys": []any{keys}}
			}
			for _, test := range group.Tests {
				var token string
				raw := test.JWS
				if raw == nil {
					raw = test.JWE
				}
				if json.Unmarshal(raw, &token) != nil {
					token = string(raw) // JSON serialization
				}
				ok := verifies(t, profile, token, toJSON(keys))
				switch {
				case !asymmetric:
					other++
					if ok {
						t.Errorf("%s %d (%s: %s): accepted without a public key", file, test.TcID, group.Comment, test.Comment)
					}
				case test.Result == "valid" && ok:
					accepted++
				case test.Result == "valid":
					refusedValid = append(refusedValid, test.TcID)
				default:
					invalid++
					if ok {
						t.Errorf("%s %d (%s: %s): an invalid vector is accepted", file, test.TcID, group.Comment, test.Comment)
					}
				}
			}
		}
		if !slices.Equal(refusedValid, keyForAnotherAlgorithm[file]) {
			t.Errorf("%s: valid vectors refused: %v, want %v", file, refusedValid, keyForAnotherAlgorithm[file])
		}
		if invalid != want.asymmetricInvalid || accepted != want.asymmetricAccepted || other != want.other {
			t.Errorf("%s: %d invalid, %d accepted, %d without a public key; want %+v", file, invalid, accepted, other, want)
		}
	}
}

// verifies runs the checks on header, algorithm, key and signature.
func verifies(t *testing.T, profile Profile, token, keys string) bool {
	t.Helper()
	a := &attempt{core: &Core{cfg: Config{Profile: profile}}, request: Request{Token: token}}
	if _, refusal := checkSize(context.Background(), a); refusal != nil {
		return false
	}
	if _, refusal := a.parse(); refusal != nil {
		return false
	}
	for _, check := range []func(context.Context, *attempt) (finding, *Refusal){checkHeader, checkAlgorithm} {
		if _, refusal := check(context.Background(), a); refusal != nil {
			return false
		}
	}
	set, err := parseKeySet([]byte(keys), profile.Cache.MaxKeys, KeyRules{})
	if err != nil {
		return false
	}
	key, ok := set.keys[a.kid]
	return ok && key.verify(a.alg, []byte(a.signed), a.signature)
}
