package aws

import (
	"bytes"
	"compress/flate"
	"maps"
	"regexp"
	"slices"
	"strings"
	"unicode/utf8"
)

// Actions that a role's trust policy must allow beside the web identity action
// if the token has the claims for it.
const (
	tagAction            = "sts:TagSession"
	sourceIdentityAction = "sts:SetSourceIdentity"
)

// The limits of session tags (IAM user guide, "Pass session tags in AWS STS").
const (
	maxTags        = 50
	maxTagKey      = 128
	maxTagValue    = 256
	tagCharacters  = `\A[\p{L}\p{Z}\p{N}_.:/=+\-@]*\z`
	claimNamespace = "https://aws.amazon.com/"
)

// sessionClaims are what a token says about the session: the issuer decides,
// not the caller.
type sessionClaims struct {
	tags           map[string]string
	transitive     []string // keys of tags that a chained session inherits
	sourceIdentity string
}

// actions are those that the claims need.
func (c *sessionClaims) actions() []string {
	var needed []string
	if len(c.tags) > 0 {
		needed = append(needed, tagAction)
	}
	if c.sourceIdentity != "" {
		needed = append(needed, sourceIdentityAction)
	}
	return needed
}

// inherited are the claims of a session that this one's role is chained to: its
// transitive tags, which stay so, and its source identity.
func (c *sessionClaims) inherited() sessionClaims {
	next := sessionClaims{tags: make(map[string]string), transitive: c.transitive, sourceIdentity: c.sourceIdentity}
	for _, key := range c.transitive {
		next.tags[key] = c.tags[key]
	}
	return next
}

// readSessionClaims reads them from verified claims, in the nested form
//
//	"https://aws.amazon.com/tags": {"principal_tags": {"Project": ["a"]}, "transitive_tag_keys": ["Project"]}
//
// or the flat one, "https://aws.amazon.com/tags/principal_tags/Project": "a".
func readSessionClaims(claims map[string]any) (sessionClaims, *apiError) {
	found := sessionClaims{tags: make(map[string]string)}
	raw, transitive := make(map[string]any), any(nil)
	if nested, ok := claims[claimNamespace+"tags"]; ok {
		members, isObject := nested.(map[string]any)
		tags, hasTags := members["principal_tags"].(map[string]any)
		if _, there := members["principal_tags"]; !isObject || there && !hasTags {
			return found, badSessionClaims()
		}
		maps.Copy(raw, tags)
		transitive = members["transitive_tag_keys"]
	}
	for name, value := range claims {
		if key, ok := strings.CutPrefix(name, claimNamespace+"tags/principal_tags/"); ok {
			raw[key] = value
		}
	}
	if flat, ok := claims[claimNamespace+"tags/transitive_tag_keys"]; ok {
		transitive = flat
	}
	for key, value := range raw {
		text, ok := single(value)
		if !ok || !validTag(key, text) {
			return found, badSessionClaims()
		}
		found.tags[key] = text
	}
	keys, ok := texts(transitive)
	if !ok || len(found.tags) > maxTags || len(lowered(found.tags)) != len(found.tags) {
		return found, badSessionClaims()
	}
	for _, key := range keys {
		if _, ok := found.tags[key]; !ok {
			return found, badSessionClaims()
		}
	}
	found.transitive = keys
	if value, ok := claims[claimNamespace+"source_identity"]; ok {
		text, isText := value.(string)
		if n := len(text); !isText || n < minSessionName || n > maxSessionName || !isName(text) {
			return found, badSessionClaims()
		}
		found.sourceIdentity = text
	}
	return found, nil
}

// badSessionClaims is the answer to claims beyond the limits. No text is on record.
func badSessionClaims() *apiError { return invalidIdentityToken(couldNotValidate) }

func validTag(key, value string) bool {
	allowed := regexp.MustCompile(tagCharacters)
	return key != "" && utf8.RuneCountInString(key) <= maxTagKey && utf8.RuneCountInString(value) <= maxTagValue &&
		!strings.HasPrefix(strings.ToLower(key), "aws:") && allowed.MatchString(key) && allowed.MatchString(value)
}

// single reads a text, or an array of one.
func single(value any) (string, bool) {
	list, ok := texts(value)
	if !ok || len(list) != 1 {
		return "", false
	}
	return list[0], true
}

// texts reads a text, an array of texts, or nothing.
func texts(value any) ([]string, bool) {
	switch value := value.(type) {
	case nil:
		return nil, true
	case string:
		return []string{value}, true
	case []any:
		var list []string
		for _, entry := range value {
			text, ok := entry.(string)
			if !ok {
				return nil, false
			}
			list = append(list, text)
		}
		return list, true
	}
	return nil, false
}

// lowered returns the tags as conditions find them: keys match in any case.
func lowered(tags map[string]string) map[string]string {
	lower := make(map[string]string, len(tags))
	for key, value := range tags {
		lower[strings.ToLower(key)] = value
	}
	return lower
}

// packedSpace is what session policies and tags may take, in bytes. How the
// vendor packs them is not documented; here it is deflate, and the space is as
// large as the largest inline policy.
const packedSpace = maxPolicy

// packedSize returns how much of that space session policies and tags take, in
// percent, rounded up; 0 if there are none.
func packedSize(policy string, arns []string, tags map[string]string) int {
	if policy == "" && len(arns) == 0 && len(tags) == 0 {
		return 0
	}
	var packed bytes.Buffer
	w, err := flate.NewWriter(&packed, flate.BestCompression)
	if err != nil {
		panic("aws: " + err.Error()) // the level is wrong
	}
	parts := append([]string{policy}, arns...)
	for _, key := range slices.Sorted(maps.Keys(tags)) {
		parts = append(parts, key, tags[key])
	}
	_, _ = w.Write([]byte(strings.Join(parts, "\x00"))) // to memory
	_ = w.Close()
	return (100*packed.Len() + packedSpace - 1) / packedSpace
}
