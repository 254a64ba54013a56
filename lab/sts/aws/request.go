package aws

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"mime"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// maxBodyBytes bounds a request body: far more than the largest legal request,
// so that a token beyond the vendor's limit is refused for what it is.
const maxBodyBytes = 256 << 10

// readParameters returns the parameters of a Query request, from query string
// and form body, and the body itself, which a signature covers. Each parameter
// has exactly one value.
func readParameters(r *http.Request) (map[string]string, []byte, *apiError) {
	body, err := io.ReadAll(http.MaxBytesReader(nil, r.Body, maxBodyBytes))
	if err != nil {
		if errors.As(err, new(*http.MaxBytesError)) {
			return nil, nil, &apiError{http.StatusRequestEntityTooLarge, "RequestEntityTooLarge", fmt.Sprintf("Request body exceeds %d bytes", maxBodyBytes)}
		}
		return nil, nil, &apiError{http.StatusBadRequest, "MalformedInput", "The request body could not be read"}
	}
	if contentType := r.Header.Get("Content-Type"); len(body) > 0 && contentType != "" {
		if media, _, err := mime.ParseMediaType(contentType); err != nil || media != "application/x-www-form-urlencoded" {
			return nil, nil, &apiError{http.StatusUnsupportedMediaType, "MalformedInput", "The Query protocol takes application/x-www-form-urlencoded bodies"}
		}
	}
	parameters := make(map[string]string)
	for _, encoded := range []string{r.URL.RawQuery, string(body)} {
		if e := addParameters(parameters, encoded); e != nil {
			return nil, nil, e
		}
	}
	return parameters, body, nil
}

func addParameters(parameters map[string]string, encoded string) *apiError {
	values, err := url.ParseQuery(encoded)
	if err != nil {
		// The error of url.ParseQuery quotes the input, which may hold a token.
		return &apiError{http.StatusNotFound, "MalformedQueryString", "The query string contains a syntax error"}
	}
	for name, list := range values {
		if _, ok := parameters[name]; ok || len(list) > 1 || !utf8.ValidString(name+list[0]) {
			return &apiError{http.StatusBadRequest, "InvalidQueryParameter", "The AWS query string is malformed or does not adhere to AWS standards"}
		}
		parameters[name] = list[0]
	}
	return nil
}

// assumeRequest are the parameters of AssumeRoleWithWebIdentity.
type assumeRequest struct {
	roleARN     string
	sessionName string
	token       string
	duration    time.Duration // 0 if not given
	providerID  string
	policy      string   // inline session policy
	policyARNs  []string // managed session policies
	permissions permissions
}

// The limits of the vendor's model of the API (sts 2011-06-15). The upper
// limit of the token is the core's to judge, since it has the token's journey.
const (
	minARN, maxARN                 = 20, 2048
	minSessionName, maxSessionName = 2, 64
	minToken, maxToken             = 4, 20000
	minDuration, maxDuration       = 900, 43200 // seconds
	maxPolicy                      = 2048
	maxPolicyARNs                  = 10
	minProviderID, maxProviderID   = 4, 2048
)

// parseAssumeRequest checks form and limits of the parameters, to which a web
// identity belongs or not. Like the real service it reports all violations at once.
func parseAssumeRequest(parameters map[string]string, webIdentity bool) (assumeRequest, *apiError) {
	var v violations
	request := assumeRequest{
		roleARN:     v.required(parameters, "RoleArn", minARN, maxARN),
		sessionName: v.required(parameters, "RoleSessionName", minSessionName, maxSessionName),
	}
	if webIdentity {
		request.token = v.token(parameters)
	}
	request.duration = v.duration(parameters)
	if webIdentity {
		request.providerID = v.optional(parameters, "ProviderId", minProviderID, maxProviderID)
	}
	if !isName(request.sessionName) {
		v.add(quoted(request.sessionName), "roleSessionName", `Member must satisfy regular expression pattern: [\w+=,.@-]*`)
	}
	request.policy = v.optional(parameters, "Policy", 1, maxPolicy)
	request.policyARNs = v.policyARNs(parameters)
	switch {
	case len(v) > 0:
		return assumeRequest{}, v.err()
	case !isRoleARN(request.roleARN):
		return assumeRequest{}, validationError("Request ARN is invalid")
	}
	return request, request.readPolicies()
}

// readPolicies reads the session policies. Texts are ours, but for the first.
func (r *assumeRequest) readPolicies() *apiError {
	if r.policy != "" {
		if !json.Valid([]byte(r.policy)) {
			return malformedPolicy("This policy contains invalid Json")
		}
		parsed, err := parsePermissions([]byte(r.policy))
		if err != nil {
			return malformedPolicy(err.Error())
		}
		r.permissions = parsed
	}
	for _, arn := range r.policyARNs {
		document := managedPolicy(arn)
		if document == nil {
			return malformedPolicy("policy " + arn + " is not known here; pass its document as the session policy")
		}
		parsed, err := parsePermissions(document)
		if err != nil {
			return malformedPolicy(err.Error())
		}
		r.permissions = append(r.permissions, parsed...)
	}
	return nil
}

// violations are the constraints that a request does not meet, in AWS's words.
type violations []string

// add takes the value as it is to be shown: quoted, null, or for a secret
// nothing at all.
func (v *violations) add(shown, member, constraint string) {
	value := "Value"
	if shown != "" {
		value += " " + shown
	}
	*v = append(*v, fmt.Sprintf("%s at '%s' failed to satisfy constraint: %s", value, member, constraint))
}

func (v violations) err() *apiError {
	plural := "s"
	if len(v) == 1 {
		plural = ""
	}
	return validationError(fmt.Sprintf("%d validation error%s detected: %s", len(v), plural, strings.Join(v, "; ")))
}

func (v *violations) required(parameters map[string]string, name string, shortest, longest int) string {
	if _, ok := parameters[name]; !ok {
		v.add("null", member(name), "Member must not be null")
		return ""
	}
	return v.optional(parameters, name, shortest, longest)
}

func (v *violations) optional(parameters map[string]string, name string, shortest, longest int) string {
	value, ok := parameters[name]
	switch n := utf8.RuneCountInString(value); {
	case !ok:
	case n < shortest:
		v.add(quoted(value), member(name), fmt.Sprintf("Member must have length greater than or equal to %d", shortest))
	case n > longest:
		v.add(quoted(value), member(name), fmt.Sprintf("Member must have length less than or equal to %d", longest))
	}
	return value
}

// token never shows the value: the vendor's model marks it as sensitive.
func (v *violations) token(parameters map[string]string) string {
	token, ok := parameters["WebIdentityToken"]
	switch {
	case !ok:
		v.add("null", "webIdentityToken", "Member must not be null")
	case len(token) < minToken:
		v.add("", "webIdentityToken", fmt.Sprintf("Member must have length greater than or equal to %d", minToken))
	}
	return token
}

func (v *violations) duration(parameters map[string]string) time.Duration {
	value, ok := parameters["DurationSeconds"]
	if !ok {
		return 0
	}
	seconds, err := strconv.ParseInt(value, 10, 32)
	switch {
	case err != nil:
		v.add(quoted(value), "durationSeconds", "Member must be a number") // the real text is not known
	case seconds < minDuration:
		v.add(quoted(value), "durationSeconds", fmt.Sprintf("Member must have value greater than or equal to %d", minDuration))
	case seconds > maxDuration:
		v.add(quoted(value), "durationSeconds", fmt.Sprintf("Member must have value less than or equal to %d", maxDuration))
	}
	return time.Duration(seconds) * time.Second
}

// policyARNs reads the list PolicyArns.member.N.arn.
func (v *violations) policyARNs(parameters map[string]string) []string {
	var arns []string
	n := 0
	for _, name := range slices.Sorted(maps.Keys(parameters)) {
		index, ok := strings.CutPrefix(name, "PolicyArns.member.")
		if !ok {
			continue
		}
		n++
		index, ok = strings.CutSuffix(index, ".arn")
		if i, err := strconv.Atoi(index); !ok || err != nil || i < 1 {
			v.add(quoted(name), "policyArns", "Member must have the form PolicyArns.member.N.arn") // the real text is not known
			continue
		}
		value := parameters[name]
		arns = append(arns, value)
		if length := utf8.RuneCountInString(value); length < minARN || length > maxARN {
			v.add(quoted(value), "policyArns."+index+".member.arn", fmt.Sprintf("Member must have length between %d and %d, inclusive", minARN, maxARN))
		}
	}
	if n > maxPolicyARNs {
		v.add("", "policyArns", fmt.Sprintf("Member must have length less than or equal to %d", maxPolicyARNs))
	}
	return arns
}

// isRoleARN says whether arn has the form arn:PARTITION:iam::ACCOUNT:role/NAME.
func isRoleARN(arn string) bool {
	parts := strings.SplitN(arn, ":", 6)
	return len(parts) == 6 && parts[0] == "arn" && parts[2] == "iam" && strings.HasPrefix(parts[5], "role/")
}

// member is the name of a parameter as AWS's messages write it.
func member(parameter string) string { return strings.ToLower(parameter[:1]) + parameter[1:] }

func quoted(value string) string { return "'" + value + "'" }
