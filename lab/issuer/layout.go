package issuer

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"

	"github.com/google/uuid"
)

// Layout is where a front has the documents of its clusters: in what form their
// issuers are below its origin, and the key sets below the issuers.
type Layout struct {
	Name string
	// Issuer is the path of an issuer. In it {id} is the cluster's id, and {uuid}
	// and {hex} are made of that: a UUID, and 32 digits in upper case.
	Issuer string
	KeySet string // what follows the issuer in the URL of its key set
}

// Layouts returns the layouts that there are, each as a provider has it. The
// first is the default.
func Layouts() []Layout {
	return []Layout{
		{"excloud", "/c/{id}", "/openid/v1/jwks"},                                  // https://k8sapi.excloud.in/c/<id>; paths of an API server
		{"oke", "/n/okecustprod/b/oidc/o/{uuid}", "/jwks"},                         // Oracle, "OpenID Connect (OIDC) Discovery": an object of object storage
		{"eks", "/id/{hex}", "/keys"},                                              // https://oidc.eks.<region>.amazonaws.com/id/<id>
		{"gardener", "/projects/{id}/shoots/{uuid}/issuer", "/jwks"},               // gardener-discovery-server, docs/api.md
		{"aks", "/00000000-0000-4000-8000-000000000000/{uuid}/", "openid/v1/jwks"}, // https://<region>.oic.prod-aks.azure.com/<tenant>/<id>/: the slash is a part of the issuer
	}
}

// LayoutNamed returns a layout; empty means the default. The error of an unknown
// name lists those that there are.
func LayoutNamed(name string) (Layout, error) {
	layouts := Layouts()
	if name == "" {
		return layouts[0], nil
	}
	var names []string
	for _, l := range layouts {
		if l.Name == name {
			return l, nil
		}
		names = append(names, l.Name)
	}
	slices.Sort(names)
	return Layout{}, fmt.Errorf("no issuer style %q: there are %s", name, strings.Join(names, ", "))
}

// issuer returns the path of a cluster's issuer. It is the same for the same id.
func (l Layout) issuer(id string) string {
	sum := sha256.Sum256([]byte("oidclab " + id))
	return strings.NewReplacer(
		"{id}", id, "{uuid}", uuid.NewSHA1(uuid.NameSpaceDNS, []byte(id+".oidclab.dev")).String(), "{hex}", strings.ToUpper(hex.EncodeToString(sum[:16])),
	).Replace(l.Issuer)
}
