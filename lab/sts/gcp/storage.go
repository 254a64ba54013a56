package gcp

import (
	"bytes"
	"crypto/md5"
	"encoding/base64"
	"encoding/binary"
	"hash/crc32"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/oidclab/oidclab/lab/sts/internal/tokenservice"
	"github.com/oidclab/oidclab/lab/trace"
)

// The permissions that the methods take (IAM permissions for JSON methods).
const (
	objectsGet  = "storage.objects.get"
	objectsList = "storage.objects.list"
)

// objectResource is the metadata of an object (Cloud Storage JSON API, resource
// Objects), as far as it has a meaning here. Whole numbers are strings there.
type objectResource struct {
	Kind           string `json:"kind"`
	ID             string `json:"id"`
	SelfLink       string `json:"selfLink"`
	MediaLink      string `json:"mediaLink"`
	Name           string `json:"name"`
	Bucket         string `json:"bucket"`
	Generation     string `json:"generation"`
	Metageneration string `json:"metageneration"`
	ContentType    string `json:"contentType"`
	StorageClass   string `json:"storageClass"`
	Size           string `json:"size"` // bytes
	MD5Hash        string `json:"md5Hash"`
	CRC32C         string `json:"crc32c"` // big-endian
	ETag           string `json:"etag"`
	TimeCreated    string `json:"timeCreated"` // RFC 3339, as is the next
	Updated        string `json:"updated"`
}

// describe returns the metadata of an object. Its links lead back to the host
// that was asked: clients follow them, with their access tokens.
func (h *Handler) describe(host, bucket, name string) objectResource {
	content := h.buckets[bucket].Objects[name]
	sum := md5.Sum(content)
	generation := strconv.FormatInt(h.started.UnixMicro(), 10)
	created := h.started.UTC().Format("2006-01-02T15:04:05.000Z")
	path := "/storage/v1/b/" + url.PathEscape(bucket) + "/o/" + url.PathEscape(name)
	return objectResource{
		Kind:           "storage#object",
		ID:             bucket + "/" + name + "/" + generation,
		SelfLink:       "https://" + host + path,
		MediaLink:      "https://" + host + "/download" + path + "?generation=" + generation + "&alt=media",
		Name:           name,
		Bucket:         bucket,
		Generation:     generation,
		Metageneration: "1",
		ContentType:    "application/octet-stream",
		StorageClass:   "STANDARD",
		Size:           strconv.Itoa(len(content)),
		MD5Hash:        base64.StdEncoding.EncodeToString(sum[:]),
		CRC32C:         base64.StdEncoding.EncodeToString(binary.BigEndian.AppendUint32(nil, crc32.Checksum(content, crc32.MakeTable(crc32.Castagnoli)))),
		ETag:           base64.StdEncoding.EncodeToString([]byte(generation + "/1")),
		TimeCreated:    created,
		Updated:        created,
	}
}

// object answers with an object's metadata or, with alt=media, its content
// (objects.get).
func (h *Handler) object(w http.ResponseWriter, r *http.Request) {
	bucket, name, query := r.PathValue("bucket"), r.PathValue("object"), r.URL.Query()
	content, exists := h.buckets[bucket].Objects[name]
	object := h.describe(r.Host, bucket, name)
	alt, generation := query.Get("alt"), query.Get("generation")
	caller, e := h.authorize(r, objectsGet)
	switch {
	case e != nil:
	case !exists:
		e = storageError(http.StatusNotFound, "notFound", "No such object: "+bucket+"/"+name)
	case generation != "" && generation != object.Generation:
		e = storageError(http.StatusNotFound, "notFound", "No such object: "+bucket+"/"+name+"#"+generation)
	case alt != "" && alt != "json" && alt != "media":
		e = storageError(http.StatusBadRequest, "invalid", "This lab serves metadata as JSON, and content with alt=media.")
	}
	h.recordUse(caller, bucket+"/"+name, e)
	switch {
	case e != nil:
		writeError(w, e)
	case alt == "media":
		header := w.Header()
		header.Set("Content-Type", object.ContentType)
		header.Set("Etag", `"`+object.ETag+`"`)
		header.Set("X-Goog-Generation", object.Generation)
		header.Set("X-Goog-Hash", "crc32c="+object.CRC32C+",md5="+object.MD5Hash)
		http.ServeContent(w, r, "", h.started, bytes.NewReader(content))
	default:
		tokenservice.WriteJSON(w, http.StatusOK, object)
	}
}

// objectList is an answer of objects.list.
type objectList struct {
	Kind     string           `json:"kind"`
	Prefixes []string         `json:"prefixes,omitempty"`
	Items    []objectResource `json:"items,omitempty"`
}

// objects lists a bucket in one page, with prefix and delimiter as objects.list
// has them.
func (h *Handler) objects(w http.ResponseWriter, r *http.Request) {
	bucket, query := r.PathValue("bucket"), r.URL.Query()
	caller, e := h.authorize(r, objectsList)
	h.recordUse(caller, bucket, e)
	if e != nil {
		writeError(w, e)
		return
	}
	prefix, delimiter := query.Get("prefix"), query.Get("delimiter")
	list := objectList{Kind: "storage#objects"}
	for _, name := range slices.Sorted(maps.Keys(h.buckets[bucket].Objects)) {
		rest, ok := strings.CutPrefix(name, prefix)
		if !ok {
			continue
		}
		directory, _, nested := strings.Cut(rest, delimiter)
		directory = prefix + directory + delimiter
		switch {
		case delimiter == "" || !nested:
			list.Items = append(list.Items, h.describe(r.Host, bucket, name))
		case !slices.Contains(list.Prefixes, directory):
			list.Prefixes = append(list.Prefixes, directory)
		}
	}
	tokenservice.WriteJSON(w, http.StatusOK, list)
}

// authorize returns the caller, if it is known, and why it has not got the
// permission on the request's bucket.
func (h *Handler) authorize(r *http.Request, permission string) (*credential, *apiError) {
	caller, e := h.authenticate(r,
		accessDenied(http.StatusUnauthorized, "required", "Anonymous caller", permission),
		storageError(http.StatusUnauthorized, "authError", "Invalid Credentials"))
	switch {
	case e != nil:
		return caller, e
	case !caller.scopes.read:
		return caller, storageError(http.StatusForbidden, "insufficientPermissions", "Insufficient Permission")
	case !caller.principal.may(h.buckets[r.PathValue("bucket")].Policy):
		return caller, accessDenied(http.StatusForbidden, "forbidden", strings.TrimPrefix(caller.principal.member, ServiceAccountMember("")), permission)
	}
	return caller, nil
}

// recordUse records what came of a request for a resource, in the journey of
// the caller's token.
func (h *Handler) recordUse(caller *credential, resource string, e *apiError) {
	if caller != nil {
		h.recordAnswer(trace.Event{Journey: caller.journey, Step: "use", Name: shown(resource), Outcome: trace.OK, Got: shown(caller.principal.member)}, e)
	}
}
