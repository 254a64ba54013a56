package cli

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/oidclab/oidclab/fixtures"
	"github.com/oidclab/oidclab/lab"
	"github.com/oidclab/oidclab/lab/control"
	"github.com/oidclab/oidclab/lab/exchange"
	"github.com/oidclab/oidclab/lab/problem"
	"github.com/oidclab/oidclab/lab/trace"
	"github.com/oidclab/oidclab/lab/workload"
)

// credentialProcess is the output that AWS's SDKs expect of a program that a
// profile names as its credential_process.
const credentialProcess = "credential-process"

// exchangeFlags say which token goes where.
type exchangeFlags struct {
	mint       lab.MintRequest
	token      string
	showTrace  bool
	party      string // generic
	grant      string // generic
	role       string // aws, vault
	method     string // vault, oci
	wholeToken string // the token that was exchanged
}

// exchanged is what came of an exchange and the use of its credentials.
type exchanged struct {
	Party       string `json:"party"`
	Journey     string `json:"journey"`
	Credentials any    `json:"credentials"` // secret
	Use         any    `json:"use"`         // what the credentials are good for, tried
}

func (a *app) exchangeCommand() *cobra.Command {
	g := group("exchange", "Exchange a token at a relying party, and use what it gives",
		a.exchangePartyCommand("aws", "AssumeRoleWithWebIdentity, then GetCallerIdentity and an object of S3, with the AWS SDK", exchangeAWS, func(cmd *cobra.Command, f *exchangeFlags) {
			cmd.Flags().StringVar(&f.role, "role-arn", "", "role to assume; empty means the lab's for the cluster")
		}),
		a.exchangePartyCommand("gcp", "Token exchange, impersonation of a service account, then a bucket, with Google's library", exchangeGCP, func(*cobra.Command, *exchangeFlags) {}),
		a.exchangePartyCommand("azure", "Client assertion, then a blob, with azidentity", exchangeAzure, func(*cobra.Command, *exchangeFlags) {}),
		a.exchangePartyCommand("stackit", "Client assertion, then a project, with STACKIT's SDK", exchangeSTACKIT, func(*cobra.Command, *exchangeFlags) {}),
		a.exchangePartyCommand("oci", "Token exchange for a session, then an object, with requests that Oracle's SDK signs", exchangeOCI, func(cmd *cobra.Command, f *exchangeFlags) {
			cmd.Flags().StringVar(&f.method, "method", "upst", "how: upst (identity domain) or pod (as a pod of OKE, with a token for the API server)")
		}),
		a.exchangePartyCommand("generic", "OAuth token exchange or assertion, then a request to a protected resource", exchangeGeneric, func(cmd *cobra.Command, f *exchangeFlags) {
			cmd.Flags().StringVar(&f.party, "party", "generic", "the relying party: generic, pure-ttl which keeps keys for an hour, come what may, or auth0 which speaks its dialect")
			f.grant = string(exchange.TokenExchange)
			grants := []string{f.grant, string(exchange.JWTBearer), string(exchange.ClientAssertion)}
			cmd.Flags().Var(&choice{value: &f.grant, values: grants}, "grant", "how to present the token: token-exchange (RFC 8693), jwt-bearer or client-assertion (RFC 7523)")
		}),
		a.exchangePartyCommand("vault", "Login with a token, then read a secret", exchangeVault, func(cmd *cobra.Command, f *exchangeFlags) {
			cmd.Flags().StringVar(&f.method, "method", "jwt", "auth method: jwt (offline, by discovery), jwks-url (without discovery), pinned (with the keys of the time of up) or kubernetes (TokenReview)")
			cmd.Flags().StringVar(&f.role, "role", "", "role to log in with; empty means the lab's")
		}),
	)
	g.Example = `  oidclab exchange aws
  oidclab exchange generic --trace
  oidclab exchange aws -n demo --serviceaccount other      refused, with exit code 6
  oidclab token forge --audience oidclab --expired | oidclab exchange generic --token -`
	return g
}

type exchangeFunc func(ctx context.Context, info lab.Info, client *http.Client, f exchangeFlags) (exchanged, error)

// audienceOf returns the audience that tokens for a party need.
func audienceOf(party string, f exchangeFlags, info lab.Info) (string, error) {
	switch party {
	case "aws":
		return info.AWS.Audience, nil
	case "gcp":
		return info.GCP.Audiences[f.mint.Cluster], nil
	case "azure":
		return info.Azure.Audience, nil
	case "stackit":
		return info.STACKIT.Audience, nil
	case "oci":
		if f.method == ociPod {
			return info.OCI.PodAudiences[f.mint.Cluster], nil
		}
		return info.OCI.Audience, nil
	case "generic":
		return info.Generic.Audience, nil
	}
	if info.Vault == nil {
		return "", workload.WithoutVault(info)
	}
	return info.Vault.Audience, nil
}

func (a *app) exchangePartyCommand(party, short string, do exchangeFunc, flags func(*cobra.Command, *exchangeFlags)) *cobra.Command {
	var f exchangeFlags
	cmd := &cobra.Command{
		Use: party, Short: short, Args: exactly(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.withLab(cmd.Context(), func(ctx context.Context, client *control.Client, status lab.Status) error {
				if _, err := findCluster(status.Info, f.mint.Cluster); err != nil {
					return err
				}
				audience, err := audienceOf(party, f, status.Info)
				if err != nil {
					return err
				}
				if f.wholeToken, err = a.exchangeToken(ctx, client, f, audience); err != nil {
					return err
				}
				ca, err := os.ReadFile(status.CAFile)
				if err != nil {
					return err
				}
				web, err := exchange.NewClient(ca)
				if err != nil {
					return err
				}
				defer web.CloseIdleConnections()
				result, err := do(ctx, status.Info, web, f)
				result.Journey = trace.JourneyOf(f.wholeToken)
				if party == "vault" { // the real one, which knows nothing of the lab's trace
					if traceErr := client.AddEvent(ctx, vaultEvent(result, f, err)); traceErr != nil {
						return traceErr
					}
				}
				if f.showTrace {
					show := newJourneyPrinter(a.Err, false)
					err = errors.Join(err, client.Trace(ctx, result.Journey, false, show.event))
				}
				if err != nil {
					return refusal(result.Journey, err)
				}
				return a.showExchanged(result)
			})
		},
	}
	mintFlags(cmd, &f.mint)
	cmd.Flags().StringVar(&f.token, "token", "", "the token to exchange, or - for stdin; empty means a new one")
	cmd.Flags().BoolVar(&f.showTrace, "trace", false, "print the journey on stderr")
	flags(cmd, &f)
	formats := []string{"text", "json"}
	if party == "aws" {
		formats = append(formats, credentialProcess)
	}
	a.outputFlag(cmd, formats...)
	return cmd
}

func (a *app) exchangeToken(ctx context.Context, client *control.Client, f exchangeFlags, audience string) (string, error) {
	if f.token != "" {
		return a.readToken([]string{f.token})
	}
	if len(f.mint.Audiences) == 0 {
		f.mint.Audiences = []string{audience}
	}
	return client.Mint(ctx, f.mint)
}

// refusal makes a problem of what a relying party said no to.
func refusal(journey string, err error) error {
	var refused *exchange.RefusedError
	if errors.As(err, &refused) {
		return problem.New(problem.Refused, "oidclab trace "+journey, "%w", err)
	}
	return err
}

func vaultEvent(result exchanged, f exchangeFlags, err error) trace.Event {
	e := trace.Event{Journey: result.Journey, Station: "vault", Step: "use", Name: f.method, Outcome: trace.OK, Detail: "login and secret read"}
	var refused *exchange.RefusedError
	switch {
	case errors.As(err, &refused):
		e.Outcome, e.Got, e.Detail = trace.Refused, refused.Message, ""
	case err != nil:
		e.Outcome, e.Detail = trace.Failed, err.Error()
	}
	return e
}

func exchangeAWS(ctx context.Context, info lab.Info, client *http.Client, f exchangeFlags) (exchanged, error) {
	target := exchange.AWSTarget{
		Endpoint: info.AWS.Endpoint, S3: info.AWS.S3, Region: info.AWS.Region, RoleARN: f.role, SessionName: "oidclab-exchange", Client: client,
	}
	if target.RoleARN == "" {
		target.RoleARN = info.AWS.Roles[f.mint.Cluster]
	}
	result, err := exchange.AWS(ctx, target, f.wholeToken)
	if err != nil {
		return exchanged{}, err
	}
	identity, err := exchange.WhoAmI(ctx, target, result.Credentials)
	if err != nil {
		return exchanged{}, err
	}
	object, err := exchange.GetObject(ctx, target, result.Credentials, info.AWS.Bucket, info.AWS.Object)
	return exchanged{Party: "aws", Credentials: result.Credentials, Use: struct {
		exchange.AWSIdentity
		Object string
	}{identity, string(object)}}, err
}

func exchangeGeneric(ctx context.Context, info lab.Info, client *http.Client, f exchangeFlags) (exchanged, error) {
	target := exchange.GenericTarget{Grant: exchange.Grant(f.grant), Audience: info.Generic.Target, Client: client}
	for _, p := range info.Generic.Parties {
		if p.Name == f.party {
			target.TokenURL = p.TokenURL
			if p.Custom != nil {
				secret, err := os.ReadFile(p.Custom.SecretFile)
				if err != nil {
					return exchanged{}, environment(err)
				}
				target.TokenType, target.ClientID, target.ClientSecret = p.Custom.TokenType, p.Custom.ClientID, string(secret)
			}
		}
	}
	if target.TokenURL == "" {
		return exchanged{}, problem.New(problem.Usage, "oidclab exchange generic --help", "there is no relying party %q", f.party)
	}
	result, err := exchange.Generic(ctx, target, f.wholeToken)
	if err != nil {
		return exchanged{}, err
	}
	answer, err := exchange.UseResource(ctx, client, info.Generic.Resource, result.AccessToken)
	return exchanged{Party: f.party, Credentials: result, Use: answer}, err
}

func exchangeGCP(ctx context.Context, info lab.Info, client *http.Client, f exchangeFlags) (exchanged, error) {
	target := exchange.GCPTarget{URL: info.GCP.URL, Audience: info.GCP.Audiences[f.mint.Cluster], ServiceAccount: info.GCP.ServiceAccount, Client: client}
	result, err := exchange.GCP(ctx, target, f.wholeToken)
	if err != nil {
		return exchanged{}, err
	}
	content, err := exchange.ReadObject(ctx, target, result.AccessToken, info.GCP.Bucket, info.GCP.Object)
	return exchanged{Party: "gcp", Credentials: result, Use: string(content)}, err
}

func exchangeAzure(ctx context.Context, info lab.Info, client *http.Client, f exchangeFlags) (exchanged, error) {
	target := exchange.AzureTarget{Authority: info.Azure.Authority, Tenant: info.Azure.Tenant, ClientID: info.Azure.ClientIDs[f.mint.Cluster], Scope: fixtures.AzureScope, Client: client}
	result, err := exchange.Azure(ctx, target, f.wholeToken)
	if err != nil {
		return exchanged{}, err
	}
	content, err := exchange.ReadBlob(ctx, client, info.Azure.Authority, result.AccessToken, info.Azure.Container, info.Azure.Blob)
	return exchanged{Party: "azure", Credentials: result, Use: string(content)}, err
}

func exchangeSTACKIT(ctx context.Context, info lab.Info, client *http.Client, f exchangeFlags) (exchanged, error) {
	target := exchange.STACKITTarget{TokenURL: info.STACKIT.TokenURL, Email: info.STACKIT.Accounts[f.mint.Cluster], Client: client}
	result, err := exchange.STACKIT(ctx, target, f.wholeToken)
	if err != nil {
		return exchanged{}, err
	}
	project, err := exchange.ReadProject(ctx, client, info.STACKIT.URL, result.AccessToken, info.STACKIT.Project)
	return exchanged{Party: "stackit", Credentials: result, Use: project}, err
}

// ociPod is the method of OCI that pods of OKE use.
const ociPod = "pod"

func exchangeOCI(ctx context.Context, info lab.Info, client *http.Client, f exchangeFlags) (exchanged, error) {
	application := info.OCI.Clients[f.mint.Cluster]
	secret, err := os.ReadFile(application.SecretFile)
	if err != nil {
		return exchanged{}, environment(err)
	}
	target := exchange.OCITarget{
		URL: info.OCI.URL, ClientID: application.ID, ClientSecret: string(secret), PodURL: info.OCI.PodURL(), Client: client,
	}
	do := exchange.OCI
	switch f.method {
	case "upst":
	case ociPod:
		if info.OCI.PodHost == "" {
			return exchanged{}, workload.WithoutOKE(info)
		}
		do = exchange.OCIPod
	default:
		return exchanged{}, problem.New(problem.Usage, "oidclab exchange oci --help", "there is no method %q, but upst and pod", f.method)
	}
	session, err := do(ctx, target, f.wholeToken)
	if err != nil {
		return exchanged{}, err
	}
	content, err := exchange.ReadOCIObject(ctx, target, session, info.OCI.Namespace, info.OCI.Bucket, info.OCI.Object)
	return exchanged{Party: "oci", Credentials: session, Use: string(content)}, err
}

func exchangeVault(ctx context.Context, info lab.Info, client *http.Client, f exchangeFlags) (exchanged, error) {
	mounts := info.Vault.Mounts[f.mint.Cluster]
	target := exchange.VaultTarget{Address: info.Vault.Address, Role: f.role, Client: client}
	if target.Role == "" {
		target.Role = info.Vault.Role
	}
	login := exchange.VaultJWT
	switch target.Mount = mounts.JWT; f.method {
	case "jwt":
	case "jwks-url":
		target.Mount = mounts.JWKSURL
	case "pinned":
		target.Mount = mounts.Pinned
	case "kubernetes":
		login, target.Mount = exchange.VaultKubernetes, mounts.Kubernetes
	default:
		return exchanged{}, problem.New(problem.Usage, "oidclab exchange vault --help", "there is no auth method %q, but jwt, jwks-url, pinned and kubernetes", f.method)
	}
	result, err := login(ctx, target, f.wholeToken)
	if err != nil {
		return exchanged{}, err
	}
	secret, err := exchange.ReadSecret(ctx, target, result.ClientToken, info.Vault.Secret)
	return exchanged{Party: "vault", Credentials: result, Use: secret}, err
}

// showExchanged prints who the workload is now. Credentials are printed only
// where they are asked for, with another output than text.
func (a *app) showExchanged(result exchanged) error {
	if credentials, ok := result.Credentials.(exchange.AWSCredentials); ok && a.output == credentialProcess {
		document, err := credentials.CredentialProcess()
		if err == nil {
			a.printf("%s\n", document)
		}
		return err
	}
	if a.output == "json" {
		return a.printJSON(result)
	}
	a.printf("%s accepted the token; journey %s\n", result.Party, result.Journey)
	switch c := result.Credentials.(type) {
	case exchange.AWSCredentials:
		a.printf("credentials %s until %s\n", c.AccessKeyID, c.Expiration.UTC().Format(time.RFC3339))
	case exchange.GenericResult:
		a.printf("access token for %d s\n", c.ExpiresIn)
	case exchange.GCPResult:
		a.printf("access token until %s\n", c.Expiry.UTC().Format(time.RFC3339))
	case exchange.AzureResult:
		a.printf("access token until %s\n", c.Expiry.UTC().Format(time.RFC3339))
	case exchange.STACKITResult:
		a.printf("access token until %s\n", c.Expiry.UTC().Format(time.RFC3339))
	case exchange.OCIResult:
		a.printf("session until %s\n", c.Expiry.UTC().Format(time.RFC3339))
	case exchange.VaultResult:
		a.printf("vault token with policies %v\n", c.Policies)
	}
	use, err := json.Marshal(result.Use)
	if err != nil {
		return err
	}
	a.printf("%s\n", use)
	return nil
}
