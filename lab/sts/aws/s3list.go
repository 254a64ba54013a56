package aws

import (
	"encoding/base64"
	"encoding/xml"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
)

// maxListed is how many objects and prefixes S3 lists at once, at most.
const maxListed = 1000

// listing is the answer of ListObjectsV2 (Amazon S3 API reference).
type listing struct {
	XMLName               xml.Name `xml:"http://s3.amazonaws.com/doc/2006-03-01/ ListBucketResult"`
	Name                  string
	Prefix                string
	StartAfter            string `xml:",omitempty"`
	ContinuationToken     string `xml:",omitempty"`
	NextContinuationToken string `xml:",omitempty"`
	KeyCount              int
	MaxKeys               int
	Delimiter             string `xml:",omitempty"`
	EncodingType          string `xml:",omitempty"`
	IsTruncated           bool
	Contents              []listedObject
	CommonPrefixes        []listedPrefix
}

type listedObject struct {
	Key          string
	LastModified string
	ETag         string
	Size         int
	StorageClass string
}

type listedPrefix struct{ Prefix string }

func (r s3Request) isListing() bool { return r.key == "" && r.query.Get("list-type") == "2" }

// list answers ListObjectsV2. A continuation token is the last key or prefix of
// the page before.
func (h *Handler) list(r s3Request, session *session, bucket Bucket) (func(http.ResponseWriter), *s3Error) {
	if bucket.Name == "" {
		return nil, noSuchBucket(r.bucket)
	}
	if !onlyThese(r.query, "list-type", "prefix", "delimiter", "max-keys", "start-after", "continuation-token", "encoding-type") {
		return nil, notImplemented()
	}
	if e := h.mayS3(session, "s3:ListBucket", "arn:aws:s3:::"+bucket.Name); e != nil {
		return nil, e
	}
	result := listing{
		Name: bucket.Name, Prefix: r.query.Get("prefix"), Delimiter: r.query.Get("delimiter"), MaxKeys: maxListed,
		StartAfter: r.query.Get("start-after"), ContinuationToken: r.query.Get("continuation-token"), EncodingType: r.query.Get("encoding-type"),
	}
	if result.EncodingType != "" && result.EncodingType != "url" {
		return nil, newS3Error(http.StatusBadRequest, "InvalidArgument", "Invalid Encoding Method specified in Request")
	}
	if text := r.query.Get("max-keys"); text != "" {
		number, err := strconv.ParseInt(text, 10, 32)
		if err != nil || number < 0 {
			return nil, newS3Error(http.StatusBadRequest, "InvalidArgument", "Provided max-keys not an integer or within integer range")
		}
		result.MaxKeys = min(int(number), maxListed)
	}
	after := result.StartAfter
	if result.ContinuationToken != "" {
		last, err := base64.StdEncoding.DecodeString(result.ContinuationToken)
		if err != nil {
			return nil, newS3Error(http.StatusBadRequest, "InvalidArgument", "The continuation token provided is incorrect")
		}
		after = string(last)
	}
	h.fill(&result, bucket, after)
	return result.write, nil
}

// fill lists what comes after a key or prefix, in the order of its bytes.
func (h *Handler) fill(result *listing, bucket Bucket, after string) {
	for _, key := range slices.Sorted(maps.Keys(bucket.Objects)) {
		rest, ok := strings.CutPrefix(key, result.Prefix)
		if !ok {
			continue
		}
		name, isPrefix := key, false
		if result.Delimiter != "" {
			if i := strings.Index(rest, result.Delimiter); i >= 0 {
				name, isPrefix = key[:len(key)-len(rest)+i+len(result.Delimiter)], true
			}
		}
		if key <= after || name == after {
			continue // of the page before, or of the prefix that was listed last
		}
		if result.KeyCount == result.MaxKeys {
			if result.MaxKeys > 0 { // S3 takes a page without room for the last one
				result.IsTruncated, result.NextContinuationToken = true, base64.StdEncoding.EncodeToString([]byte(after))
			}
			return
		}
		result.KeyCount++
		after = name
		if isPrefix {
			result.CommonPrefixes = append(result.CommonPrefixes, listedPrefix{result.encoded(name)})
			continue
		}
		object := bucket.Objects[key]
		result.Contents = append(result.Contents, listedObject{
			Key: result.encoded(key), LastModified: h.started.UTC().Format("2006-01-02T15:04:05.000Z"), ETag: etag(object), Size: len(object), StorageClass: "STANDARD",
		})
	}
}

// encoded is a name as the caller asked for it: XML has no form of some characters.
func (l *listing) encoded(name string) string {
	if l.EncodingType == "" {
		return name
	}
	return strings.ReplaceAll(url.QueryEscape(name), "%2F", "/")
}

func (l listing) write(w http.ResponseWriter) {
	l.Prefix, l.Delimiter, l.StartAfter = l.encoded(l.Prefix), l.encoded(l.Delimiter), l.encoded(l.StartAfter)
	body, err := xml.Marshal(l)
	if err != nil {
		panic("aws: a listing cannot be encoded: " + err.Error()) // its type is wrong
	}
	w.Header().Set("Content-Type", "application/xml")
	_, _ = w.Write(append([]byte(xml.Header), plainQuotes(body)...)) // the client may be gone
}
