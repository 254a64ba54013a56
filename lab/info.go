package lab

import (
	"net"
	"strconv"
	"time"

	"github.com/oidclab/oidclab/lab/clock"
	"github.com/oidclab/oidclab/lab/proc"
	"github.com/oidclab/oidclab/lab/proxy"
	"github.com/oidclab/oidclab/lab/sts"
	"github.com/oidclab/oidclab/lab/sts/oci"
)

// Info is where everything of a ready lab is. It holds no secrets.
type Info struct {
	Name        string        `json:"name"`
	Engine      string        `json:"engine"`
	Signer      string        `json:"signer"`      // of tokens, External or Static
	IssuerStyle string        `json:"issuerStyle"` // of issuer URLs, see issuer.Layouts
	Dir         string        `json:"dir"`
	CAFile      string        `json:"caFile"` // PEM; the root of front, token service and Vault
	Front       string        `json:"front"`  // origin of the issuer front
	Clusters    []ClusterInfo `json:"clusters"`
	AWS         AWSInfo       `json:"aws"`
	GCP         GCPInfo       `json:"gcp"`
	Azure       AzureInfo     `json:"azure"`
	STACKIT     STACKITInfo   `json:"stackit"`
	OCI         OCIInfo       `json:"oci"`
	Generic     GenericInfo   `json:"generic"`
	Vault       *VaultInfo    `json:"vault,omitempty"`
	Webhook     WebhookInfo   `json:"webhook"`
	Proxy       string        `json:"proxy"` // HTTPS_PROXY of unmodified applications
	// WorkloadImage is the image of the oidclab binary that the nodes have.
	WorkloadImage string            `json:"workloadImage,omitempty"`
	Absent        map[string]string `json:"absent,omitempty"` // what this lab lacks, and why
}

// ClusterInfo is where a cluster is.
type ClusterInfo struct {
	ID         string `json:"id"`
	Issuer     string `json:"issuer"`
	JWKSURI    string `json:"jwksURI"`
	Server     string `json:"server"`     // of the Kubernetes API
	Kubeconfig string `json:"kubeconfig"` // file
	Audience   string `json:"audience"`   // of tokens of other clusters, which it takes as bearer tokens
}

// AWSInfo is how AWS's SDKs reach the lab's AWS.
type AWSInfo struct {
	Endpoint string            `json:"endpoint"` // of STS
	S3       string            `json:"s3"`
	Region   string            `json:"region"`
	Audience string            `json:"audience"`
	Bucket   string            `json:"bucket"`
	Object   string            `json:"object"`
	Roles    map[string]string `json:"roles"`    // ARN by cluster
	TagRoles map[string]string `json:"tagRoles"` // likewise, of roles that may read the object only in sessions with the tag for it
}

// GCPInfo is how Google's libraries reach the lab's GCP.
type GCPInfo struct {
	URL            string            `json:"url"` // of token service, impersonation and storage
	Project        string            `json:"project"`
	ServiceAccount string            `json:"serviceAccount"`
	Bucket         string            `json:"bucket"`
	Object         string            `json:"object"`
	Audiences      map[string]string `json:"audiences"` // the provider's resource name by cluster; its tokens' audience too
}

// AzureInfo is how Azure's libraries reach the lab's Azure.
type AzureInfo struct {
	Authority  string            `json:"authority"`  // and the blob service
	TokenProxy string            `json:"tokenProxy"` // of applications with EnableAzureProxy
	Tenant     string            `json:"tenant"`
	Audience   string            `json:"audience"`
	Container  string            `json:"container"`
	Blob       string            `json:"blob"`
	ClientIDs  map[string]string `json:"clientIDs"` // of applications, by cluster
}

// STACKITInfo is how STACKIT's SDK reaches the lab's STACKIT.
type STACKITInfo struct {
	URL      string            `json:"url"` // of the project API
	TokenURL string            `json:"tokenURL"`
	Audience string            `json:"audience"`
	Project  string            `json:"project"`
	Accounts map[string]string `json:"accounts"` // e-mail addresses by cluster
}

// OCIInfo is how Oracle's SDKs reach the lab's OCI.
type OCIInfo struct {
	URL          string               `json:"url"` // of identity domain and object storage
	Region       string               `json:"region"`
	Audience     string               `json:"audience"`
	Clients      map[string]OCIClient `json:"clients"`   // that exchange tokens, by cluster
	Namespace    string               `json:"namespace"` // of object storage
	Bucket       string               `json:"bucket"`
	Object       string               `json:"object"`
	PodHost      string               `json:"podHost,omitempty"` // where the pods of OKE get their identity, at port 12250; empty if there is none
	PodAudiences map[string]string    `json:"podAudiences"`      // of the tokens that pods get it with, by cluster
}

// OCIClient is a confidential application of the identity domain.
type OCIClient struct {
	ID         string `json:"id"`
	SecretFile string `json:"secretFile"`
}

// PodURL returns the origin of the endpoint for pods of OKE; empty if there is none.
func (i OCIInfo) PodURL() string {
	if i.PodHost == "" {
		return ""
	}
	return "https://" + net.JoinHostPort(i.PodHost, strconv.Itoa(oci.ProxymuxPort))
}

// GenericInfo is how clients reach the RFC 8693 token service.
type GenericInfo struct {
	Issuer   string         `json:"issuer"` // of its access tokens
	Audience string         `json:"audience"`
	Target   string         `json:"target"`   // what to ask an access token for
	Resource string         `json:"resource"` // URL of the protected resource that takes it
	Parties  []GenericParty `json:"parties"`
}

// CustomExchangeInfo is what an application tells a party that speaks Auth0's
// custom token exchange.
type CustomExchangeInfo struct {
	TokenType  string `json:"tokenType"`
	ClientID   string `json:"clientID"`
	SecretFile string `json:"secretFile"`
}

// GenericParty is one relying party of the generic token service.
type GenericParty struct {
	Custom   *CustomExchangeInfo `json:"custom,omitempty"` // nil unless it speaks Auth0's dialect
	Name     string              `json:"name"`
	TokenURL string              `json:"tokenURL"`
	Cache    sts.CachePolicy     `json:"cache"`
}

// VaultInfo is how clients reach Vault.
type VaultInfo struct {
	Address  string                `json:"address"`
	Audience string                `json:"audience"`
	Role     string                `json:"role"`     // may read Secret
	BareRole string                `json:"bareRole"` // may log in, and nothing else
	Secret   string                `json:"secret"`   // API path of the KV v2 secret
	Mounts   map[string]AuthMounts `json:"mounts"`   // by cluster
}

// AuthMounts are the paths of a cluster's auth methods.
type AuthMounts struct {
	JWT        string `json:"jwt"`      // finds keys by discovery
	JWKSURL    string `json:"jwksURL"`  // is told where keys are
	Pinned     string `json:"pinned"`   // has a snapshot of them
	NoIssuer   string `json:"noIssuer"` // like JWT, but takes any issuer's name, as Vault does by default; BareRole only
	Kubernetes string `json:"kubernetes"`
}

// WebhookInfo is the pod identity webhook, as workloads meet it.
type WebhookInfo struct {
	URL      string           `json:"url"`
	CAFile   string           `json:"caFile"` // the lab's root, in the containers that it injects into
	Profiles []WebhookProfile `json:"profiles"`
}

// WebhookProfile is the webhook of one vendor.
type WebhookProfile struct {
	Name          string                       `json:"name"`
	Configuration string                       `json:"configuration"`       // name of the MutatingWebhookConfiguration
	URLs          map[string]string            `json:"urls"`                // that the API server calls, by cluster
	Annotations   map[string]map[string]string `json:"annotations"`         // with which a service account gets the trusted identity, by cluster
	PodLabels     map[string]string            `json:"podLabels,omitempty"` // that a pod must have as well
	TokenFile     string                       `json:"tokenFile"`           // in containers, unless an annotation says otherwise
	Audience      string                       `json:"audience"`            // of the token, likewise
}

// Status is the state of a lab at one moment.
type Status struct {
	Info
	PID        int                 `json:"pid"` // of the supervisor
	Since      time.Time           `json:"since"`
	Ready      bool                `json:"ready"`
	Problems   []string            `json:"problems,omitempty"` // why it is not ready
	Components []proc.Status       `json:"components"`
	Caches     []PartyCache        `json:"caches"`
	Clock      clock.State         `json:"clock"`
	Rotations  map[string]Rotation `json:"rotations,omitempty"` // by cluster
	Egress     []proxy.Refusal     `json:"egress,omitempty"`    // where applications wanted to go that the proxy refused
}

// PartyCache is what a relying party keeps of an issuer's keys.
type PartyCache struct {
	Party  string          `json:"party"`
	Policy string          `json:"policy"`
	State  sts.KeySetState `json:"state"`
}
