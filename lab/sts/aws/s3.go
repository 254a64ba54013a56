package aws

import (
	"bytes"
	"crypto/md5"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"
)

// Bucket is a bucket of S3. Who may read it is said by the policies of roles.
type Bucket struct {
	Name    string // 3 to 63 lower-case letters, digits, dots and hyphens
	Region  string // of which the signatures of requests must be
	Objects map[string][]byte
}

func checkedBuckets(buckets []Bucket) (map[string]Bucket, error) {
	byName := make(map[string]Bucket)
	for _, b := range buckets {
		if n := len(b.Name); n < 3 || n > 63 || strings.Trim(b.Name, "abcdefghijklmnopqrstuvwxyz0123456789.-") != "" {
			return nil, fmt.Errorf("aws: bucket %q: the name must be 3 to 63 lower-case letters, digits, dots and hyphens", b.Name)
		}
		if b.Region == "" {
			return nil, fmt.Errorf("aws: bucket %s has no region", b.Name)
		}
		if _, ok := byName[b.Name]; ok {
			return nil, fmt.Errorf("aws: bucket %s is there twice", b.Name)
		}
		byName[b.Name] = b
	}
	return byName, nil
}

// The limits of signed requests to S3 (Amazon S3 API reference, "Authenticating
// Requests (AWS Signature Version 4)").
const (
	s3Skew           = 15 * time.Minute
	maxPresignedLife = 7 * 24 * time.Hour
	unsignedPayload  = "UNSIGNED-PAYLOAD"
)

// s3Request is what a request wants, and who sent it.
type s3Request struct {
	*http.Request
	id          string // of the request
	bucket, key string
	query       url.Values
	now         time.Time
}

// S3 returns the account's S3 as far as objects are read: GetObject, HeadObject
// and ListObjectsV2, of requests that are signed in a header or presigned, at
// /BUCKET/KEY or, under the vendor's host names, with the bucket in the name.
// Answers carry the time of the lab in the Date header.
func (h *Handler) S3() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		request := s3Request{Request: r, id: strings.ToUpper(strings.ReplaceAll(uuid.NewString(), "-", "")[:16]), now: h.clock.Now()}
		request.bucket, request.key = address(r)
		header := w.Header()
		header.Set("Date", request.now.UTC().Format(http.TimeFormat))
		header.Set("Server", "AmazonS3")
		header.Set("X-Amz-Request-Id", request.id)
		if e := h.serve(w, request); e != nil {
			request.refuse(w, e)
		}
	})
}

// address returns bucket and key of a request in either style (Amazon S3 user
// guide, "Virtual hosting of general purpose buckets").
func address(r *http.Request) (bucket, key string) {
	host, _, _ := strings.Cut(strings.ToLower(r.Host), ":")
	path := strings.TrimPrefix(r.URL.Path, "/")
	if i := strings.LastIndex(host, ".s3."); i > 0 && strings.HasSuffix(host, ".amazonaws.com") {
		return host[:i], path
	}
	bucket, key, _ = strings.Cut(path, "/")
	return bucket, key
}

func (h *Handler) serve(w http.ResponseWriter, r s3Request) *s3Error {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		return newS3Error(http.StatusMethodNotAllowed, "MethodNotAllowed", "The specified method is not allowed against this resource.")
	}
	var err error
	if r.query, err = url.ParseQuery(r.URL.RawQuery); err != nil { // which quotes the query
		return newS3Error(http.StatusBadRequest, "InvalidURI", "Couldn't parse the specified URI.")
	}
	session, e := h.s3Signer(r)
	var answer func(http.ResponseWriter)
	used := "s3:GetObject of an unknown object"
	switch bucket := h.buckets[r.bucket]; {
	case r.isListing():
		used = "s3:ListBucket of an unknown bucket"
		if bucket.Name != "" {
			used = "s3:ListBucket " + bucket.Name
		}
		if e == nil {
			answer, e = h.list(r, session, bucket)
		}
	default:
		object, known := bucket.Objects[r.key]
		if known {
			used = "s3:GetObject " + r.bucket + "/" + r.key
		}
		if e == nil {
			e = h.mayRead(r, session, bucket, known)
		}
		answer = func(w http.ResponseWriter) { h.serveObject(w, r, object) }
	}
	if session != nil {
		h.record(session.journey, "use", used, e.withoutDetails())
	}
	if e == nil {
		answer(w)
	}
	return e
}

func (h *Handler) serveObject(w http.ResponseWriter, r s3Request, object []byte) {
	header := w.Header()
	header.Set("ETag", etag(object))
	header.Set("Content-Type", "binary/octet-stream")
	if r.Header.Get("Range") == "" && strings.EqualFold(r.Header.Get("X-Amz-Checksum-Mode"), "enabled") {
		header.Set("X-Amz-Checksum-Crc32", base64.StdEncoding.EncodeToString(binary.BigEndian.AppendUint32(nil, crc32.ChecksumIEEE(object))))
		header.Set("X-Amz-Checksum-Type", "FULL_OBJECT")
	}
	http.ServeContent(w, r.Request, "", h.started, bytes.NewReader(object))
}

func etag(object []byte) string {
	sum := md5.Sum(object)
	return `"` + hex.EncodeToString(sum[:]) + `"`
}

func noSuchBucket(name string) *s3Error {
	e := newS3Error(http.StatusNotFound, "NoSuchBucket", "The specified bucket does not exist")
	e.BucketName = name
	return e
}

func notImplemented() *s3Error {
	return newS3Error(http.StatusNotImplemented, "NotImplemented", "A header or query you provided implies functionality that is not implemented.")
}

// mayRead says why a session does not get an object, which may not be there.
func (h *Handler) mayRead(r s3Request, session *session, bucket Bucket, there bool) *s3Error {
	if bucket.Name == "" {
		return noSuchBucket(r.bucket)
	}
	if r.key == "" || !onlyThese(r.query) {
		return notImplemented()
	}
	arn := "arn:aws:s3:::" + r.bucket
	if e := h.mayS3(session, "s3:GetObject", arn+"/"+r.key); there || e != nil {
		return e
	}
	// Who may not list the bucket is not told what is not in it.
	if e := h.mayS3(session, "s3:ListBucket", arn); e != nil {
		return e
	}
	e := newS3Error(http.StatusNotFound, "NoSuchKey", "The specified key does not exist.")
	e.Key = r.key
	return e
}

// onlyThese says whether a query has, beside the signature and what SDKs add,
// nothing but the given parameters: nothing that would make the request another
// one, or the answer another.
func onlyThese(query url.Values, names ...string) bool {
	for name := range query {
		if name != "x-id" && !strings.HasPrefix(name, "X-Amz-") && !slices.Contains(names, name) {
			return false
		}
	}
	return true
}

func (h *Handler) mayS3(s *session, action, resource string) *s3Error {
	reason := s.forbidden(action, resource, false)
	if reason == "" {
		return nil
	}
	return newS3Error(http.StatusForbidden, "AccessDenied", fmt.Sprintf("User: %s is not authorized to perform: %s on resource: %q %s", s.arn(h.account), action, resource, reason))
}

// s3Signer returns the session whose credentials signed the request. If there
// is an error, it is the session that they were said to be of, or nil.
func (h *Handler) s3Signer(r s3Request) (*session, *s3Error) {
	if strings.HasPrefix(r.Header.Get("Authorization"), "AWS ") || r.query.Has("AWSAccessKeyId") {
		// Signature version 2, as botocore still presigns in us-east-1.
		return nil, newS3Error(http.StatusBadRequest, "InvalidRequest", "The authorization mechanism you have provided is not supported. Please use AWS4-HMAC-SHA256.")
	}
	if r.Header.Get("Authorization") != "" && r.query.Has("X-Amz-Algorithm") {
		return nil, newS3Error(http.StatusBadRequest, "InvalidArgument", "Only one auth mechanism allowed; only the X-Amz-Algorithm query parameter, Signature query string parameter or the Authorization header should be specified")
	}
	signature, flawed := parseSignature(r.Request, r.query, serviceS3)
	if flawed != nil {
		return nil, unauthenticatedByS3(flawed, signature)
	}
	if b, ok := h.buckets[r.bucket]; ok && signature.region != b.Region {
		return nil, wrongRegion(signature, b.Region)
	}
	holder, flawed := signature.holder(h.sessions, r.now)
	if flawed != nil {
		return holder, unauthenticatedByS3(flawed, signature)
	}
	payloadHash, e := r.payloadHash(signature)
	if e == nil {
		e = r.checkTime(signature)
	}
	if e == nil {
		e = r.checkSignedHeaders(signature)
	}
	if e != nil {
		return holder, e
	}
	if flawed := signature.check(r.Request, payloadHash, holder); flawed != nil {
		return holder, unauthenticatedByS3(flawed, signature)
	}
	return holder, nil
}

// payloadHash returns the hash that the signature covers, and compares it with
// the body.
func (r s3Request) payloadHash(s signature) (string, *s3Error) {
	claimed := r.Header.Get("X-Amz-Content-Sha256")
	if s.presigned && claimed == "" {
		claimed = unsignedPayload
	}
	switch {
	case claimed == "":
		return "", newS3Error(http.StatusBadRequest, "InvalidRequest", "Missing required header for this request: x-amz-content-sha256")
	case claimed == unsignedPayload:
		return claimed, nil
	}
	body, err := io.ReadAll(http.MaxBytesReader(nil, r.Body, maxBodyBytes))
	switch {
	case errors.As(err, new(*http.MaxBytesError)):
		return "", newS3Error(http.StatusBadRequest, "EntityTooLarge", "Your proposed upload exceeds the maximum allowed size")
	case err != nil:
		return "", newS3Error(http.StatusBadRequest, "IncompleteBody", "You did not provide the number of bytes specified by the Content-Length HTTP header")
	case sha256Hex(body) != claimed:
		return "", newS3Error(http.StatusBadRequest, "XAmzContentSHA256Mismatch", "The provided 'x-amz-content-sha256' header does not match what was computed.")
	}
	return claimed, nil
}

// checkTime wants a header to be signed at about now, and a presigned request
// not to be older than it says itself.
func (r s3Request) checkTime(s signature) *s3Error {
	if !s.presigned {
		if s.checkTime(r.now, s3Skew, s3Skew) == nil {
			return nil
		}
		e := newS3Error(http.StatusForbidden, "RequestTimeTooSkewed", "The difference between the request time and the current time is too large.")
		e.RequestTime, e.ServerTime, e.MaxAllowedSkew = s.signedAt.Format(isoBasic), iso(r.now), s3Skew.Milliseconds()
		return e
	}
	seconds, err := strconv.ParseInt(r.query.Get("X-Amz-Expires"), 10, 32)
	life := time.Duration(seconds) * time.Second
	switch {
	case err != nil:
		return queryParameters("X-Amz-Expires should be a number")
	case seconds < 0:
		return queryParameters("X-Amz-Expires must be non-negative")
	case life > maxPresignedLife:
		return queryParameters("X-Amz-Expires must be less than a week (in seconds); that is, the given X-Amz-Expires must be less than 604800 seconds")
	case s.checkTime(r.now, s3Skew, life) == nil:
		return nil
	}
	e := newS3Error(http.StatusForbidden, "AccessDenied", "Request has expired")
	if s.signedAt.After(r.now) {
		e.Message = "Request is not valid yet"
	}
	e.XAmzExpires, e.Expires, e.ServerTime = seconds, iso(s.signedAt.Add(life)), iso(r.now)
	return e
}

func iso(t time.Time) string { return t.UTC().Format("2006-01-02T15:04:05Z") }

// checkSignedHeaders wants all headers of AWS to be covered by the signature.
func (r s3Request) checkSignedHeaders(s signature) *s3Error {
	var missing []string
	for name := range r.Header {
		if name = strings.ToLower(name); strings.HasPrefix(name, "x-amz-") && !slices.Contains(s.signedHeaders, name) {
			missing = append(missing, name)
		}
	}
	if missing == nil {
		return nil
	}
	slices.Sort(missing)
	e := newS3Error(http.StatusForbidden, "AccessDenied", "There were headers present in the request which were not signed")
	e.HeadersNotSigned = strings.Join(missing, ", ")
	return e
}
