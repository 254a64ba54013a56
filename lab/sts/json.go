package sts

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode/utf8"
)

const (
	maxDepth   = 32  // nesting of a JSON document
	maxMembers = 200 // of one JSON object
)

// document is a JSON object that was decoded with its names exactly as they
// are. encoding/json matches struct fields regardless of case and replaces
// invalid UTF-8, either of which lets two verifiers read one token differently.
type document struct {
	members   map[string]any // string, json.Number, bool, nil, []any, map[string]any
	duplicate *string        // the first name that occurs twice in one object, at any depth
}

// decodeObject decodes the one JSON object (RFC 8259) that data must hold. Of
// members with the same name the last wins; whether that is tolerated is for
// the caller to decide.
func decodeObject(data []byte) (document, error) {
	if !utf8.Valid(data) {
		return document{}, errors.New("not valid UTF-8")
	}
	d := decoder{tokens: json.NewDecoder(bytes.NewReader(data))}
	d.tokens.UseNumber()
	value, err := d.value(1)
	if err != nil {
		return document{}, fmt.Errorf("not valid JSON: %w", err)
	}
	members, ok := value.(map[string]any)
	if !ok {
		return document{}, errors.New("not a JSON object")
	}
	if _, err := d.tokens.Token(); err != io.EOF {
		return document{}, errors.New("not valid JSON: data after the object")
	}
	return document{members, d.duplicate}, nil
}

type decoder struct {
	tokens    *json.Decoder
	duplicate *string
}

func (d *decoder) value(depth int) (any, error) {
	token, err := d.tokens.Token()
	if err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return nil, err
	}
	switch token := token.(type) {
	case string:
		return token, wellFormed(token)
	case json.Delim:
		if depth > maxDepth {
			return nil, fmt.Errorf("nested deeper than %d", maxDepth)
		}
		if token == '{' {
			return d.object(depth)
		}
		return d.array(depth)
	default:
		return token, nil
	}
}

func (d *decoder) object(depth int) (any, error) {
	members := make(map[string]any)
	for d.tokens.More() {
		name, err := d.value(depth + 1)
		if err != nil {
			return nil, err
		}
		key := name.(string) // the decoder lets nothing else be a name
		value, err := d.value(depth + 1)
		if err != nil {
			return nil, err
		}
		if _, ok := members[key]; ok && d.duplicate == nil {
			d.duplicate = &key
		}
		members[key] = value
		if len(members) > maxMembers {
			return nil, fmt.Errorf("an object with more than %d members", maxMembers)
		}
	}
	_, err := d.tokens.Token()
	return members, err
}

func (d *decoder) array(depth int) (any, error) {
	values := []any{}
	for d.tokens.More() {
		value, err := d.value(depth + 1)
		if err != nil {
			return nil, err
		}
		values = append(values, value)
	}
	_, err := d.tokens.Token()
	return values, err
}

// wellFormed refuses U+FFFD, which is what encoding/json makes of an escaped
// lone surrogate: strings that differ on the wire would become equal.
func wellFormed(s string) error {
	if strings.ContainsRune(s, utf8.RuneError) {
		return errors.New("a string with a lone surrogate or U+FFFD")
	}
	return nil
}

// lookalike returns the first name among the members that equals one of the
// registered names in all but case, by Unicode folding ("SUB", "ſub").
func lookalike(members map[string]any, registered []string) (string, bool) {
	for name := range members {
		for _, r := range registered {
			if name != r && strings.EqualFold(name, r) {
				return name, true
			}
		}
	}
	return "", false
}
