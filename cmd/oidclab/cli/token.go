package cli

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/oidclab/oidclab/fixtures"
	"github.com/oidclab/oidclab/lab"
	"github.com/oidclab/oidclab/lab/control"
	"github.com/oidclab/oidclab/lab/problem"
	"github.com/oidclab/oidclab/lab/sts"
	"github.com/oidclab/oidclab/lab/trace"
)

// maxTokenInput bounds what is read as a token.
const maxTokenInput = 4 << 20

func (a *app) tokenCommand() *cobra.Command {
	return group("token", "Mint, forge, inspect and verify tokens",
		a.tokenMintCommand(), a.tokenForgeCommand(), a.tokenInspectCommand(), a.tokenVerifyCommand())
}

// mintFlags adds the flags that say which token is wanted.
func mintFlags(cmd *cobra.Command, r *lab.MintRequest) {
	cmd.Flags().StringVarP(&r.Namespace, "namespace", "n", fixtures.Namespace, "namespace of the service account")
	cmd.Flags().StringVar(&r.ServiceAccount, "serviceaccount", fixtures.ServiceAccount, "name of the service account")
	cmd.Flags().StringSliceVar(&r.Audiences, "audience", nil, "audience, may be repeated; none means the API server's own")
	cmd.Flags().DurationVar(&r.Expiration, "expiration", 0, "life of the token; Kubernetes refuses less than 10m; 0 means its default, 1h")
	cmd.Flags().StringVar(&r.Pod, "pod", "", "bind the token to this pod")
	clusterFlag(cmd, &r.Cluster)
}

func (a *app) tokenMintCommand() *cobra.Command {
	var r lab.MintRequest
	cmd := &cobra.Command{
		Use:   "mint",
		Short: "Have the API server issue a token",
		Example: `  oidclab token mint --audience vault
  oidclab token mint -n demo --serviceaccount app --audience sts.amazonaws.com --expiration 10m`,
		Args: exactly(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.withLab(cmd.Context(), func(ctx context.Context, client *control.Client, _ lab.Status) error {
				token, err := client.Mint(ctx, r)
				return a.showToken(token, err)
			})
		},
	}
	mintFlags(cmd, &r)
	a.outputFlag(cmd, "text", "json")
	return cmd
}

func (a *app) showToken(token string, err error) error {
	if err != nil {
		return err
	}
	if a.output == "json" {
		return a.printJSON(struct {
			Token   string `json:"token"`
			Journey string `json:"journey"`
		}{token, trace.JourneyOf(token)})
	}
	a.printf("%s\n", token)
	return nil
}

func (a *app) tokenForgeCommand() *cobra.Command {
	var r lab.ForgeRequest
	var expired, tampered bool
	var notBefore, issuedIn time.Duration
	var kid string
	var claims, header []string
	cmd := &cobra.Command{
		Use:   "forge",
		Short: "Sign what the API server never would",
		Long: `Sign a token that the API server never would issue, with the cluster's own key
unless told otherwise. It is like one of ` + "`token mint`" + ` but for the changes asked
for. Times are those of the lab clock.`,
		Example: `  oidclab token forge --audience oidclab --expired
  oidclab token forge --audience oidclab --kid nobody-knows
  oidclab token forge --audience oidclab --issuer https://127.0.0.1:1/c/c1/
  oidclab token forge --audience oidclab --alg none
  oidclab token forge --audience oidclab --claim sub=system:serviceaccount:kube-system:admin
  oidclab token forge --audience oidclab --header 'jku="https://evil.example/jwks"' --foreign-key`,
		Args: exactly(0),
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			if r.Claims, err = assignments("--claim", claims); err != nil {
				return err
			}
			if r.Header, err = assignments("--header", header); err != nil {
				return err
			}
			if cmd.Flags().Changed("kid") {
				r.Header["kid"] = kid
			}
			if expired {
				ago := -time.Hour
				r.ExpiresIn = &ago
			}
			if cmd.Flags().Changed("not-before") {
				r.ValidIn = &notBefore
			}
			if cmd.Flags().Changed("issued-in") {
				r.IssuedIn = &issuedIn
			}
			if tampered {
				r.AlterPayload = map[string]any{"sub": "system:serviceaccount:kube-system:default"}
			}
			return a.withLab(cmd.Context(), func(ctx context.Context, client *control.Client, _ lab.Status) error {
				token, err := client.Forge(ctx, r)
				return a.showToken(token, err)
			})
		},
	}
	mintFlags(cmd, &r.MintRequest)
	flags := cmd.Flags()
	flags.BoolVar(&expired, "expired", false, "expired an hour ago")
	flags.DurationVar(&notBefore, "not-before", 0, "nbf, from now")
	flags.DurationVar(&issuedIn, "issued-in", 0, "iat, from now")
	flags.StringVar(&kid, "kid", "", "key id in the header, whatever key signs")
	flags.StringVar(&r.Issuer, "issuer", "", "iss")
	flags.StringVar(&r.Algorithm, "alg", "", "RS, PS, HS (with the public key as secret) or ES with 256, 384, 512; or none")
	flags.StringArrayVar(&claims, "claim", nil, "name=value, value as JSON or else a string; name=null takes the claim out")
	flags.StringArrayVar(&header, "header", nil, "name=value, as --claim")
	flags.BoolVar(&r.ForeignKey, "foreign-key", false, "sign with a key that nobody knows")
	flags.BoolVar(&r.EmbedForeign, "embed-foreign-key", false, "likewise, with that key as jwk in the header")
	flags.BoolVar(&tampered, "tampered", false, "change sub after signing")
	flags.BoolVar(&r.AlterSignature, "alter-signature", false, "change one bit of the signature")
	a.outputFlag(cmd, "text", "json")
	return cmd
}

// assignments parses name=value; a value that is JSON is taken as such.
func assignments(flag string, list []string) (map[string]any, error) {
	values := map[string]any{}
	for _, item := range list {
		name, text, ok := strings.Cut(item, "=")
		if !ok || name == "" {
			return nil, problem.New(problem.Usage, "oidclab token forge --help", "%s %q is not name=value", flag, item)
		}
		var value any = text
		decoder := json.NewDecoder(strings.NewReader(text))
		decoder.UseNumber()
		var parsed any
		if decoder.Decode(&parsed) == nil && !decoder.More() {
			value = parsed
		}
		values[name] = value
	}
	return values, nil
}

func (a *app) tokenInspectCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "inspect [TOKEN|-]",
		Short: "Show what a token says, without judging it",
		Long:  "Show what a token says. Nothing is verified: anybody can write anything into a\ntoken. Without an argument, or with -, the token is read from stdin.",
		Example: `  oidclab token mint --audience vault | oidclab token inspect
  oidclab token inspect -o json "$TOKEN"`,
		Args: between(0, 1),
		RunE: func(_ *cobra.Command, args []string) error {
			token, err := a.readToken(args)
			if err != nil {
				return err
			}
			header, claims, err := decodeToken(token)
			if err != nil {
				return problem.New(problem.Refused, "", "this is not a JWT: %w", err)
			}
			if a.output == "json" {
				return a.printJSON(struct {
					Verified bool            `json:"verified"` // always false
					Journey  string          `json:"journey"`
					Header   json.RawMessage `json:"header"`
					Claims   json.RawMessage `json:"claims"`
				}{false, trace.JourneyOf(token), header, claims})
			}
			a.printf("NOT VERIFIED: this is what the token says, which proves nothing. To judge it: oidclab token verify\n\n")
			a.printf("journey %s\nheader  %s\nclaims  %s\n", trace.JourneyOf(token), indented(header), indented(claims))
			a.showTimes(claims)
			return nil
		},
	}
	a.outputFlag(cmd, "text", "json")
	return cmd
}

func (a *app) showTimes(claims json.RawMessage) {
	var times struct {
		Exp, Iat, Nbf *json.Number
	}
	if json.Unmarshal(claims, &times) != nil {
		return
	}
	for _, t := range []struct {
		name  string
		value *json.Number
	}{{"iat", times.Iat}, {"nbf", times.Nbf}, {"exp", times.Exp}} {
		if t.value == nil {
			continue
		}
		if seconds, err := t.value.Int64(); err == nil {
			at := time.Unix(seconds, 0)
			a.printf("%s     %s (%s from now)\n", t.name, at.UTC().Format(time.RFC3339), signed(time.Until(at)))
		}
	}
}

func indented(raw json.RawMessage) string {
	var out strings.Builder
	encoder := json.NewEncoder(&out)
	encoder.SetIndent("        ", "  ")
	encoder.SetEscapeHTML(false)
	if encoder.Encode(raw) != nil {
		return string(raw)
	}
	return strings.TrimSpace(out.String())
}

// readToken returns the token of the argument, or of stdin. One newline at the
// end, as shells leave it, is no part of it.
func (a *app) readToken(args []string) (string, error) {
	if len(args) == 1 && args[0] != "-" {
		return args[0], nil
	}
	data, err := io.ReadAll(io.LimitReader(a.In, maxTokenInput+1))
	if err != nil {
		return "", err
	}
	if len(data) > maxTokenInput {
		return "", problem.New(problem.Usage, "", "stdin holds more than %d bytes: that is no token", maxTokenInput)
	}
	token := strings.TrimSuffix(strings.TrimSuffix(string(data), "\n"), "\r")
	if token == "" {
		return "", problem.New(problem.Usage, "oidclab token mint | oidclab token inspect", "there is no token on stdin")
	}
	return token, nil
}

func decodeToken(token string) (header, claims json.RawMessage, err error) {
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return nil, nil, fmt.Errorf("it has %d parts, not 3", len(parts))
	}
	for i, into := range []*json.RawMessage{&header, &claims} {
		decoded, err := base64.RawURLEncoding.DecodeString(parts[i])
		if err != nil {
			return nil, nil, fmt.Errorf("part %d is not base64url: %w", i+1, err)
		}
		if !json.Valid(decoded) {
			return nil, nil, fmt.Errorf("part %d is not JSON", i+1)
		}
		*into = decoded
	}
	return header, claims, nil
}

func (a *app) tokenVerifyCommand() *cobra.Command {
	var r lab.VerifyRequest
	var profiles []string
	for _, p := range sts.Profiles() {
		profiles = append(profiles, p.Name)
	}
	cmd := &cobra.Command{
		Use:   "verify [TOKEN|-]",
		Short: "Judge a token as relying parties do, check by check",
		Long: `Judge a token as a relying party would that trusts the lab's clusters, with keys
fetched anew and the time of the lab clock. Prints every check with what was
wanted and what was found; --profile all shows all profiles side by side. Exits
6 if any of the profiles refuses the token.`,
		Example: `  oidclab token mint --audience oidclab | oidclab token verify --audience oidclab
  oidclab token forge --audience oidclab --expired | oidclab token verify --profile all`,
		Args: between(0, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			token, err := a.readToken(args)
			if err != nil {
				return err
			}
			r.Token = token
			wanted := []string{r.Profile}
			if r.Profile == "all" {
				wanted = profiles
			}
			return a.withLab(cmd.Context(), func(ctx context.Context, client *control.Client, _ lab.Status) error {
				return a.verify(ctx, client, r, wanted)
			})
		},
	}
	cmd.Flags().StringVar(&r.Profile, "profile", "strict", strings.Join(profiles, ", ")+", or all")
	cmd.Flags().StringSliceVar(&r.Audiences, "audience", nil, "the audience wanted, may be repeated; none means those of the lab's relying parties")
	cmd.Flags().StringVar(&r.Subject, "subject", "", "the subject wanted; empty means any")
	a.outputFlag(cmd, "text", "json")
	return cmd
}

// judgement is the verdict of a relying party with the given profile.
type judgement struct {
	Profile string `json:"profile"`
	sts.Verdict
}

func (a *app) verify(ctx context.Context, client *control.Client, r lab.VerifyRequest, profiles []string) error {
	var judgements []judgement
	refused := false
	for _, profile := range profiles {
		r.Profile = profile
		verdict, err := client.Verify(ctx, r)
		if err != nil {
			return err
		}
		refused = refused || verdict.Refusal != nil
		judgements = append(judgements, judgement{profile, verdict})
	}
	var err error
	switch {
	case a.output == "json":
		err = a.printJSON(judgements)
	case len(judgements) > 1:
		err = a.showSideBySide(judgements)
	default:
		err = a.showVerdict(judgements[0].Profile, judgements[0].Verdict)
	}
	if err == nil && refused {
		return reported{problem.Refused}
	}
	return err
}

func (a *app) showVerdict(profile string, verdict sts.Verdict) error {
	word := "accepted"
	if verdict.Refusal != nil {
		word = "REFUSED: " + string(verdict.Refusal.Reason)
	}
	a.printf("%s: %s\n", profile, word)
	w := tabwriter.NewWriter(a.Out, 0, 0, 2, ' ', 0)
	for _, result := range verdict.Results {
		fmt.Fprintf(w, "  %s\t%s%s\n", marks[result.Outcome], result.Check, explained(result))
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if verdict.Refusal != nil && verdict.Refusal.Hint != "" {
		a.printf("  hint: %s\n", verdict.Refusal.Hint)
	}
	return nil
}

// showSideBySide prints a table of checks by profiles, and below it what each
// check wanted and found, once for all profiles of which the same is true.
func (a *app) showSideBySide(judgements []judgement) error {
	w := tabwriter.NewWriter(a.Out, 0, 0, 2, ' ', 0)
	row := func(name string, cell func(judgement) string) {
		cells := []string{name}
		for _, j := range judgements {
			cells = append(cells, cell(j))
		}
		fmt.Fprintln(w, strings.Join(cells, "\t"))
	}
	checks := judgements[0].Results
	row("CHECK", func(j judgement) string { return j.Profile })
	for i, result := range checks {
		row(string(result.Check), func(j judgement) string { return marks[j.Results[i].Outcome] })
	}
	row("verdict", func(j judgement) string {
		if j.Refusal != nil {
			return "REFUSED"
		}
		return "accepted"
	})
	fmt.Fprintln(w)
	for i, result := range checks {
		fmt.Fprintln(w, result.Check)
		type line struct{ mark, text string }
		var lines []line
		profiles := map[line][]string{}
		for _, j := range judgements {
			l := line{marks[j.Results[i].Outcome], explained(j.Results[i])}
			if profiles[l] == nil {
				lines = append(lines, l)
			}
			profiles[l] = append(profiles[l], j.Profile)
		}
		for _, l := range lines {
			fmt.Fprintf(w, "  %s %s%s\n", l.mark, strings.Join(profiles[l], ", "), l.text)
		}
	}
	var hints []string
	for _, j := range judgements {
		if j.Refusal != nil && j.Refusal.Hint != "" && !slices.Contains(hints, j.Refusal.Hint) {
			hints = append(hints, j.Refusal.Hint)
			fmt.Fprintf(w, "hint: %s\n", j.Refusal.Hint)
		}
	}
	return w.Flush()
}

// explained is what a check wanted and found, in the next column of a table.
func explained(result sts.Result) string {
	line := ""
	switch {
	case result.Outcome == "refused":
		line = fmt.Sprintf("\twanted %s, found %s", orNothing(result.Want), orNothing(result.Got))
	case result.Got != "" && result.Want != "":
		line = fmt.Sprintf("\tfound %s, wanted %s", result.Got, result.Want)
	case result.Got != "" || result.Want != "":
		line = "\t" + result.Got + result.Want
	}
	if result.Detail != "" && result.Outcome != "refused" { // there it is the hint, which comes last
		line += " (" + result.Detail + ")"
	}
	return line
}

// marks show the outcome of a check.
var marks = map[string]string{"passed": "✓", "refused": "✗", "not reached": "·"}

func orNothing(s string) string {
	if s == "" {
		return "nothing"
	}
	return s
}
