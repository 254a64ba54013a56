package sts

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"
)

const (
	maxDepth   = 32     // nesting of a JSON document
	maxMembers = 200    // of one JSON object
	maxValues  = 10_000 // of a JSON document, at any depth
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
	if !json.Valid(data) {
		return document{}, errors.New("not valid JSON")
	}
	d := decoder{data: string(data)}
	if !utf8.Valid(data) || strings.Contains(d.data, replacement) {
		return document{}, errUnreadable
	}
	value, err := d.value(1)
	if err != nil {
		return document{}, err
	}
	members, ok := value.(map[string]any)
	if !ok {
		return document{}, errors.New("not a JSON object")
	}
	return document{members, d.duplicate}, nil
}

// replacement is U+FFFD, which encoding/json puts in place of invalid UTF-8 and
// of an escaped lone surrogate: strings that differ on the wire would become equal.
const replacement = string(utf8.RuneError)

var errUnreadable = errors.New("a document with invalid UTF-8, a lone surrogate or U+FFFD")

// decoder walks data that json.Valid has accepted, so it asks for no comma or
// bracket again. (json.Decoder.Token tells duplicates too, at five times the cost.)
type decoder struct {
	data      string // of which the decoded strings are parts
	at        int
	values    int // decoded so far
	duplicate *string
}

func (d *decoder) value(depth int) (any, error) {
	if d.values++; d.values > maxValues {
		return nil, fmt.Errorf("more than %d values", maxValues)
	}
	switch d.next() {
	case '{', '[':
		if depth > maxDepth {
			return nil, fmt.Errorf("nested deeper than %d", maxDepth)
		}
		if d.data[d.at] == '{' {
			return d.object(depth)
		}
		return d.array(depth)
	case '"':
		return d.text()
	case 't':
		d.at += len("true")
		return true, nil
	case 'f':
		d.at += len("false")
		return false, nil
	case 'n':
		d.at += len("null")
		return nil, nil
	default:
		from := d.at
		for d.at < len(d.data) && strings.IndexByte("+-.0123456789Ee", d.data[d.at]) >= 0 {
			d.at++
		}
		return json.Number(d.data[from:d.at]), nil
	}
}

// next returns the next byte that is neither white space nor a separator.
func (d *decoder) next() byte {
	for {
		switch c := d.data[d.at]; c {
		case ' ', '\t', '\r', '\n', ',', ':':
			d.at++
		default:
			return c
		}
	}
}

func (d *decoder) object(depth int) (any, error) {
	members := make(map[string]any)
	for d.at++; d.next() != '}'; {
		name, err := d.text()
		if err != nil {
			return nil, err
		}
		value, err := d.value(depth + 1)
		if err != nil {
			return nil, err
		}
		if _, ok := members[name]; ok && d.duplicate == nil {
			d.duplicate = &name
		}
		members[name] = value
		if len(members) > maxMembers {
			return nil, fmt.Errorf("an object with more than %d members", maxMembers)
		}
	}
	d.at++
	return members, nil
}

func (d *decoder) array(depth int) (any, error) {
	values := []any{}
	for d.at++; d.next() != ']'; {
		value, err := d.value(depth + 1)
		if err != nil {
			return nil, err
		}
		values = append(values, value)
	}
	d.at++
	return values, nil
}

func (d *decoder) text() (string, error) {
	from, escaped := d.at, false
	for d.at++; d.data[d.at] != '"'; d.at++ {
		if d.data[d.at] == '\\' {
			escaped = true
			d.at++
		}
	}
	d.at++
	if !escaped {
		return d.data[from+1 : d.at-1], nil
	}
	var s string
	if err := json.Unmarshal([]byte(d.data[from:d.at]), &s); err != nil {
		return "", err
	}
	if strings.Contains(s, replacement) {
		return "", errUnreadable
	}
	return s, nil
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
