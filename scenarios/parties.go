package scenarios

import (
	"context"
	"fmt"
	"os"
	"slices"

	"github.com/oidclab/oidclab/fixtures"
	"github.com/oidclab/oidclab/lab"
	"github.com/oidclab/oidclab/lab/exchange"
	"github.com/oidclab/oidclab/lab/sts"
	"github.com/oidclab/oidclab/lab/sts/azure"
	"github.com/oidclab/oidclab/lab/sts/gcp"
	"github.com/oidclab/oidclab/lab/sts/oci"
	"github.com/oidclab/oidclab/lab/sts/stackit"
)

// Party is a relying party as a workload meets it: a token goes in, and what
// comes out is put to use.
type Party struct {
	Name     string
	Audience string
	Profile  sts.Profile // how it judges; only of the lab's own
	Needs    []Need
	Online   bool        // asks the cluster (TokenReview), so that it needs no keys and knows what was deleted
	RealTime bool        // goes by the system clock, not the lab's
	Lingers  bool        // remembers for a few seconds what it has accepted
	staleKey Expectation // how it refuses the token of a removed key; only of those that are not the lab's own
	answers  func(sts.Reason) Expectation
	exchange func(ctx context.Context, s *Session, token string) (use any, err error)
}

// Expectation is how a party refuses. Empty fields are not compared.
type Expectation struct {
	Reason sts.Reason // in the trace; only of the lab's own parties
	Status int        // of HTTP
	Code   string     // the vendor's
	Text   string     // part of the vendor's message
}

func (e Expectation) String() string {
	return fmt.Sprintf("status %d, code %q, text %q, reason %q", e.Status, e.Code, e.Text, e.Reason)
}

// The parties of a lab, and the same as a list.
var (
	genericParty = Party{
		Name: "generic", Audience: fixtures.GenericAudience, Profile: sts.Strict(), answers: genericAnswer,
		exchange: exchangeGeneric(0),
	}
	pureTTLParty = Party{
		Name: "pure-ttl", Audience: fixtures.GenericAudience, Profile: sts.STACKIT(), answers: genericAnswer,
		exchange: exchangeGeneric(1),
	}
	jwtBearerParty = Party{
		Name: "jwt-bearer", Audience: fixtures.GenericAudience, Profile: sts.Strict(), answers: badTokenIs("invalid_grant"),
		exchange: exchangeBy(exchange.JWTBearer),
	}
	clientAssertionParty = Party{
		Name: "client-assertion", Audience: fixtures.GenericAudience, Profile: sts.Strict(), answers: badTokenIs("invalid_client"),
		exchange: exchangeBy(exchange.ClientAssertion),
	}
	auth0Party = Party{
		Name: "auth0", Audience: fixtures.GenericAudience, Profile: sts.Strict(), answers: auth0Answer, exchange: exchangeGeneric(2),
	}
	awsParty = Party{
		Name: "aws", Audience: fixtures.AWSAudience, Profile: sts.AWS(), answers: awsAnswer, exchange: exchangeAWS,
	}
	gcpParty = Party{
		Name: "gcp", Audience: gcp.Audience(fixtures.GCPProjectNumber, "oidclab-c1", fixtures.GCPProvider), Profile: sts.GCP(), answers: gcpAnswer, exchange: exchangeGCP,
	}
	azureParty = Party{
		Name: "azure", Audience: azure.Audience, Profile: sts.Azure(), answers: azureAnswer, exchange: exchangeAzure,
	}
	stackitParty = Party{
		Name: "stackit", Audience: stackit.Audience, Profile: sts.STACKIT(), answers: stackitAnswer, exchange: exchangeSTACKIT,
	}
	ociParty = Party{
		Name: "oci", Audience: fixtures.OCIAudience, Profile: oci.Profile(), answers: ociAnswer, exchange: exchangeOCI,
	}
	vaultJWTParty = Party{
		Name: "vault-jwt", Audience: fixtures.VaultAudience, Needs: []Need{Vault}, RealTime: true, staleKey: badSignature,
		exchange: exchangeVault(exchange.VaultJWT, byDiscovery),
	}
	vaultKubernetesParty = Party{
		Name: "vault-kubernetes", Audience: fixtures.VaultAudience, Needs: []Need{Vault}, RealTime: true, Online: true,
		exchange: exchangeVault(exchange.VaultKubernetes, byTokenReview),
	}
	kubernetesParty = Party{
		Name: "kubernetes", Audience: fixtures.ClusterAudience("c2"), Needs: []Need{TwoClusters}, RealTime: true, Lingers: true, staleKey: unauthorized, exchange: exchangeKubernetes,
	}
	parties = []Party{genericParty, pureTTLParty, auth0Party, awsParty, gcpParty, azureParty, stackitParty, ociParty, kubernetesParty, vaultJWTParty, vaultKubernetesParty}
)

// rows are the parties, and the other ways to ask one of them: those share its
// keys.
var rows = append(slices.Clone(parties), jwtBearerParty, clientAssertionParty)

// own are the parties of the lab's token service, which go by the lab clock.
var own = []Party{genericParty, pureTTLParty, auth0Party, awsParty, gcpParty, azureParty, stackitParty, ociParty}

// present returns those of the given parties that the lab has.
func (s *Session) present(list []Party) []Party {
	var there []Party
	for _, p := range list {
		if len(p.Needs) == 0 || p.Needs[0].Missing(s.Info) == "" {
			there = append(there, p)
		}
	}
	return there
}

func exchangeGeneric(index int) func(context.Context, *Session, string) (any, error) {
	return func(ctx context.Context, s *Session, token string) (any, error) {
		return s.exchangeAt(ctx, index, exchange.TokenExchange, token)
	}
}

// exchangeBy presents a token to the generic party in another way.
func exchangeBy(grant exchange.Grant) func(context.Context, *Session, string) (any, error) {
	return func(ctx context.Context, s *Session, token string) (any, error) {
		return s.exchangeAt(ctx, 0, grant, token)
	}
}

func (s *Session) exchangeAt(ctx context.Context, index int, grant exchange.Grant, token string) (any, error) {
	party := s.Info.Generic.Parties[index]
	target := exchange.GenericTarget{Grant: grant, TokenURL: party.TokenURL, Audience: s.Info.Generic.Target, Client: s.Web}
	if party.Custom != nil {
		secret, err := os.ReadFile(party.Custom.SecretFile)
		s.Must(err)
		target.TokenType, target.ClientID, target.ClientSecret = party.Custom.TokenType, party.Custom.ClientID, string(secret)
	}
	result, err := exchange.Generic(ctx, target, token)
	if err != nil {
		return nil, err
	}
	return exchange.UseResource(ctx, s.Web, s.Info.Generic.Resource, result.AccessToken)
}

// genericAnswer is how the generic token service refuses for a reason, by RFC
// 8693 section 2.2.2.
func genericAnswer(reason sts.Reason) Expectation {
	e := Expectation{Reason: reason, Status: 400, Code: "invalid_request"}
	switch reason {
	case sts.RoleUnknown, sts.IssuerNotTrusted, sts.SubjectMismatch, sts.ConditionMismatch:
		e.Code = "invalid_target"
	case sts.IssuerUnreachable:
		e.Status, e.Code = 503, "temporarily_unavailable"
	}
	return e
}

// badTokenIs is how the generic token service refuses for a reason where RFC
// 7523 has a code for bad tokens.
func badTokenIs(code string) func(sts.Reason) Expectation {
	return func(reason sts.Reason) Expectation {
		e := genericAnswer(reason)
		if e.Code == "invalid_request" && reason != sts.TokenMissing {
			e.Code = code
		}
		return e
	}
}

// auth0Answer is how a custom token exchange refuses for a reason.
func auth0Answer(reason sts.Reason) Expectation {
	e := Expectation{Reason: reason, Status: 400, Code: "invalid_request"}
	switch reason {
	case sts.RoleUnknown:
		e.Status, e.Code = 403, "access_denied"
	case sts.IssuerNotTrusted, sts.SubjectMismatch, sts.ConditionMismatch:
		e.Code = "access_denied"
	case sts.IssuerUnreachable:
		e.Status, e.Code = 500, "server_error"
	}
	return e
}

func (s *Session) awsTarget(c lab.ClusterInfo) exchange.AWSTarget {
	return exchange.AWSTarget{
		Endpoint: s.Info.AWS.Endpoint, S3: s.Info.AWS.S3, Region: s.Info.AWS.Region, RoleARN: s.Info.AWS.Roles[c.ID], SessionName: "scenario", Client: s.Web,
	}
}

func exchangeAWS(ctx context.Context, s *Session, token string) (any, error) {
	target := s.awsTarget(s.Cluster())
	result, err := exchange.AWS(ctx, target, token)
	if err != nil {
		return nil, err
	}
	return exchange.WhoAmI(ctx, target, result.Credentials)
}

// awsAnswer is how AWS refuses for a reason.
func awsAnswer(reason sts.Reason) Expectation {
	e := Expectation{Reason: reason, Status: 400, Code: "InvalidIdentityToken"}
	switch reason {
	case sts.TokenExpired:
		e.Code, e.Text = "ExpiredTokenException", "Token expired: current date/time "
	case sts.IssuerUnknown:
		e.Text = "No OpenIDConnect provider found in your account for "
	case sts.AudienceMismatch:
		e.Text = "The web identity token provided could not be validated."
	case sts.KeyUnknown:
		e.Text = "Couldn't retrieve verification key from your identity provider,  please reference"
	case sts.RoleUnknown, sts.IssuerNotTrusted, sts.SubjectMismatch, sts.ConditionMismatch:
		e.Status, e.Code, e.Text = 403, "AccessDenied", "Not authorized to perform sts:AssumeRoleWithWebIdentity"
	case sts.IssuerUnreachable:
		e.Code = "IDPCommunicationError"
	}
	return e
}

func exchangeVault(login func(context.Context, exchange.VaultTarget, string) (exchange.VaultResult, error), mount func(lab.AuthMounts) string) func(context.Context, *Session, string) (any, error) {
	return func(ctx context.Context, s *Session, token string) (any, error) {
		target := s.vaultTarget(s.Info.Vault.Role, mount)
		result, err := login(ctx, target, token)
		if err != nil {
			return nil, err
		}
		return exchange.ReadSecret(ctx, target, result.ClientToken, s.Info.Vault.Secret)
	}
}

// exchangeKubernetes takes the token to the second cluster, which trusts the
// first one's issuer.
func exchangeKubernetes(ctx context.Context, s *Session, token string) (any, error) {
	config := s.Kubernetes(s.Other()).Config()
	return exchange.Kubernetes(ctx, exchange.KubernetesTarget{
		Server: config.Host, CA: config.CAData, Namespace: fixtures.Namespace, ConfigMap: fixtures.GreetingConfigMap,
	}, token)
}

func exchangeGCP(ctx context.Context, s *Session, token string) (any, error) {
	target := exchange.GCPTarget{
		URL: s.Info.GCP.URL, Audience: s.Info.GCP.Audiences[s.Cluster().ID], ServiceAccount: s.Info.GCP.ServiceAccount, Client: s.Web,
	}
	result, err := exchange.GCP(ctx, target, token)
	if err != nil {
		return nil, err
	}
	content, err := exchange.ReadObject(ctx, target, result.AccessToken, s.Info.GCP.Bucket, s.Info.GCP.Object)
	return string(content), err
}

// gcpAnswer is how Google's token service refuses for a reason, and its service
// account credentials API for a subject.
func gcpAnswer(reason sts.Reason) Expectation {
	e := Expectation{Reason: reason, Status: 400, Code: "invalid_grant"}
	switch reason {
	case sts.TokenTooLarge, sts.TokenMissing:
		e.Code = "invalid_request"
	case sts.IssuerUnknown:
		e.Text = "does not match the expected ones: "
	case sts.AudienceMismatch:
		e.Text = "The audience in ID Token does not match the expected audience."
	case sts.RoleUnknown, sts.IssuerNotTrusted:
		e.Code = "invalid_target"
	case sts.ConditionMismatch:
		e.Status, e.Code = 403, "unauthorized_client"
	case sts.SubjectMismatch:
		return Expectation{Status: 403, Code: "IAM_PERMISSION_DENIED", Text: "iam.serviceAccounts.getAccessToken"}
	}
	return e
}

func exchangeAzure(ctx context.Context, s *Session, token string) (any, error) {
	return s.readBlob(ctx, s.azureTarget(), token)
}

func (s *Session) azureTarget() exchange.AzureTarget {
	return exchange.AzureTarget{
		Authority: s.Info.Azure.Authority, Tenant: s.Info.Azure.Tenant, ClientID: s.Info.Azure.ClientIDs[s.Cluster().ID], Scope: fixtures.AzureScope, Client: s.Web,
	}
}

// readBlob exchanges a token and reads the lab's blob.
func (s *Session) readBlob(ctx context.Context, target exchange.AzureTarget, token string) (any, error) {
	result, err := exchange.Azure(ctx, target, token)
	if err != nil {
		return nil, err
	}
	content, err := exchange.ReadBlob(ctx, s.Web, s.Info.Azure.Authority, result.AccessToken, s.Info.Azure.Container, s.Info.Azure.Blob)
	return string(content), err
}

// azureAnswer is how Entra refuses for a reason.
func azureAnswer(reason sts.Reason) Expectation {
	e := Expectation{Reason: reason, Status: 400, Code: "AADSTS50027"}
	switch reason {
	case sts.AlgorithmRefused:
		e.Code = "AADSTS5002738"
	case sts.IssuerUnreachable:
		e.Code = "AADSTS50166"
	case sts.IssuerUnknown, sts.IssuerNotTrusted:
		e.Status, e.Code = 401, "AADSTS700211"
	case sts.KeyUnknown:
		e.Status, e.Code = 401, "AADSTS7000272"
	case sts.TokenExpired, sts.TokenNotYetValid, sts.TokenIssuedInFuture, sts.TokenTooOld:
		e.Status, e.Code = 401, "AADSTS700024"
	case sts.AudienceMismatch:
		e.Status, e.Code = 401, "AADSTS700212"
	case sts.SubjectMismatch:
		e.Status, e.Code = 401, "AADSTS700213"
	}
	return e
}

func exchangeSTACKIT(ctx context.Context, s *Session, token string) (any, error) {
	target := exchange.STACKITTarget{TokenURL: s.Info.STACKIT.TokenURL, Email: s.Info.STACKIT.Accounts[s.Cluster().ID], Client: s.Web}
	result, err := exchange.STACKIT(ctx, target, token)
	if err != nil {
		return nil, err
	}
	return exchange.ReadProject(ctx, s.Web, s.Info.STACKIT.URL, result.AccessToken, s.Info.STACKIT.Project)
}

// stackitAnswer is how STACKIT's identity provider refuses for a reason.
func stackitAnswer(reason sts.Reason) Expectation {
	return Expectation{Reason: reason, Status: 401, Code: "invalid_client"}
}

// ociTarget is the lab's OCI, with the secret of the client that may exchange
// tokens of the first cluster there.
func (s *Session) ociTarget() exchange.OCITarget {
	application := s.Info.OCI.Clients[s.Cluster().ID]
	secret, err := os.ReadFile(application.SecretFile)
	s.Must(err)
	return exchange.OCITarget{URL: s.Info.OCI.URL, ClientID: application.ID, ClientSecret: string(secret), PodURL: s.Info.OCI.PodURL(), Client: s.Web}
}

func exchangeOCI(ctx context.Context, s *Session, token string) (any, error) {
	target := s.ociTarget()
	session, err := exchange.OCI(ctx, target, token)
	if err != nil {
		return nil, err
	}
	return s.readOCIObject(ctx, target, session)
}

func (s *Session) readOCIObject(ctx context.Context, target exchange.OCITarget, session exchange.OCIResult) (any, error) {
	content, err := exchange.ReadOCIObject(ctx, target, session, s.Info.OCI.Namespace, s.Info.OCI.Bucket, s.Info.OCI.Object)
	return string(content), err
}

// ociAnswer is how an identity domain refuses for a reason.
func ociAnswer(reason sts.Reason) Expectation {
	e := Expectation{Reason: reason, Status: 400, Code: "invalid_grant"}
	switch reason {
	case sts.TokenMissing:
		e.Code = "invalid_request"
	case sts.RoleUnknown, sts.IssuerNotTrusted:
		e.Code = "unauthorized_client"
	case sts.IssuerUnreachable:
		e.Status, e.Code = 503, "temporarily_unavailable"
	}
	return e
}
