package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sort"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/oidclab/oidclab/lab"
	"github.com/oidclab/oidclab/lab/cluster/kind"
	"github.com/oidclab/oidclab/lab/issuer"
	"github.com/oidclab/oidclab/lab/labfile"
	"github.com/oidclab/oidclab/lab/problem"
)

type upFlags struct {
	file       string
	engine     string
	signer     string
	style      string
	image      string
	clusters   int
	port       int
	vault      string
	timeout    time.Duration
	foreground bool
	keep       bool
}

func (a *app) upCommand() *cobra.Command {
	var flags upFlags
	cmd := &cobra.Command{
		Use:   "up",
		Short: "Bring up a lab, and leave it running in the background",
		Long: `Bring up a lab: Kubernetes control planes that are OIDC issuers, the HTTPS front
that publishes their keys, the token service with its relying parties, and Vault.
It runs in the background until ` + "`oidclab down`" + `. If it is up already, up says where
everything is and changes nothing.

The embedded engine runs the control planes as processes, in seconds and without
pods. The kind engine runs nodes in Docker: with a kubelet, real pods and DNS. auto
is kind where it can work and a node image is there, and otherwise embedded.

A file says what else there shall be, such as roles and whom they trust. Flags win
over it. Everything it can say:

` + indentedBy("  ", labfile.Example),
		Example: `  oidclab up
  oidclab up --engine kind             with real pods; oidclab doctor says whether it can work
  oidclab up --clusters 2              two issuers, for trust that must not be shared
  oidclab up --name ci --timeout 1m    a second lab beside the first
  oidclab up -f lab.yaml               with roles, trust and policies of your own
  oidclab up --foreground              stay attached; Ctrl-C is down`,
		Args: exactly(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			file, err := a.readFile(flags.file)
			if err != nil {
				return err
			}
			return a.up(cmd, flags.over(cmd, file), file)
		},
	}
	cmd.Flags().StringVarP(&flags.file, "file", "f", "", "lab.yaml, or - for stdin")
	a.engineFlags(cmd, &flags.engine, &flags.image)
	cmd.Flags().StringVar(&flags.signer, "signer", lab.External, "who signs tokens: external (the lab; keys rotate without a restart) or static (the API server, with key files)")
	styles := issuerStyles()
	flags.style = styles[0]
	cmd.Flags().Var(&choice{value: &flags.style, values: styles}, "issuer-style", "how issuer URLs look, as those of: "+strings.Join(styles, ", "))
	cmd.Flags().IntVar(&flags.clusters, "clusters", 1, "number of clusters, 1 to 9")
	cmd.Flags().IntVar(&flags.port, "port", 0, "port of the issuer front; 0 means any free one")
	cmd.Flags().StringVar(&flags.vault, "vault", "auto", "auto (a container with the kind engine if its image is there, else the vault program on PATH), none, a path, or container:IMAGE")
	cmd.Flags().DurationVar(&flags.timeout, "timeout", 3*time.Minute, "how long to wait until everything is ready")
	cmd.Flags().BoolVar(&flags.foreground, "foreground", false, "stay attached; Ctrl-C is down")
	cmd.Flags().BoolVar(&flags.keep, "keep", false, "if the lab does not come up, keep its files and logs")
	a.outputFlag(cmd, "text", "json")
	return cmd
}

// readFile reads a lab.yaml; an empty path means none.
func (a *app) readFile(path string) (labfile.File, error) {
	switch path {
	case "":
		return labfile.File{}, nil
	case "-":
		return labfile.Read(a.In, "stdin")
	}
	file, err := os.Open(path)
	if err != nil {
		return labfile.File{}, problem.New(problem.BadConfig, "oidclab up --help shows an example", "%w", err)
	}
	defer func() { _ = file.Close() }()
	return labfile.Read(file, path)
}

// over returns the flags, and what the file says where there is no flag.
func (f upFlags) over(cmd *cobra.Command, file labfile.File) upFlags {
	if !cmd.Flags().Changed("engine") && file.Engine != "" {
		f.engine = file.Engine
	}
	if !cmd.Flags().Changed("image") && file.Image != "" {
		f.image = file.Image
	}
	if !cmd.Flags().Changed("signer") && file.Signer != "" {
		f.signer = file.Signer
	}
	if !cmd.Flags().Changed("issuer-style") && file.IssuerStyle != "" {
		f.style = file.IssuerStyle
	}
	if !cmd.Flags().Changed("clusters") && file.Clusters != 0 {
		f.clusters = file.Clusters
	}
	if !cmd.Flags().Changed("port") {
		f.port = file.Port
	}
	if !cmd.Flags().Changed("vault") && file.Vault != "" {
		f.vault = file.Vault
	}
	return f
}

func issuerStyles() []string {
	var names []string
	for _, layout := range issuer.Layouts() {
		names = append(names, layout.Name)
	}
	return names
}

func indentedBy(prefix, text string) string {
	return prefix + strings.ReplaceAll(strings.TrimSuffix(text, "\n"), "\n", "\n"+prefix)
}

func (a *app) up(cmd *cobra.Command, flags upFlags, file labfile.File) error {
	ctx := cmd.Context()
	dir, err := a.state()
	if err != nil {
		return err
	}
	if err := checkEngine(cmd, flags.engine); err != nil {
		return err
	}
	if flags.clusters == 0 { // which means 1 in a Spec
		return problem.New(problem.Usage, "oidclab up --help", "a lab without a cluster has no issuer")
	}
	if flags.timeout <= 0 {
		return problem.New(problem.Usage, "oidclab up --help", "the timeout %s is not positive", flags.timeout)
	}
	spec, err := a.spec(dir, flags, file)
	if err != nil {
		return err
	}
	lock, err := dir.acquire()
	if err != nil {
		if status, statusErr := runningStatus(ctx, dir); statusErr == nil {
			if flags.engine != autoEngine && status.Engine != flags.engine {
				return problem.New(problem.Conflict, "oidclab down, or another --name", "lab %s is up with the %s engine, not %s", dir.name(), status.Engine, flags.engine)
			}
			if cmd.Flags().Changed("issuer-style") && status.IssuerStyle != flags.style {
				return problem.New(problem.Conflict, "oidclab down, or another --name", "lab %s is up with issuers in the style of %s, not %s", dir.name(), status.IssuerStyle, flags.style)
			}
			if cmd.Flags().Changed("signer") && status.Signer != flags.signer {
				return problem.New(problem.Conflict, "oidclab down, or another --name", "lab %s is up with the %s signer, not %s", dir.name(), status.Signer, flags.signer)
			}
			if cmd.Flags().Changed("clusters") && len(status.Clusters) != flags.clusters {
				return problem.New(problem.Conflict, "oidclab down, or another --name", "lab %s is up with %s, not %d", dir.name(), plural(len(status.Clusters), "cluster"), flags.clusters)
			}
			if front := status.Front; cmd.Flags().Changed("port") && flags.port != 0 && !strings.HasSuffix(front, ":"+strconv.Itoa(flags.port)) {
				return problem.New(problem.Conflict, "oidclab down, or another --name", "lab %s is up with its front at %s, not on port %d", dir.name(), front, flags.port)
			}
			fmt.Fprintf(a.Err, "oidclab: lab %s is up already\n", dir.name())
			return a.showInfo(status.Info)
		}
		return err
	}
	// Whatever is there belongs to a lab whose supervisor is dead, and with it its children.
	if err := dir.reap(ctx); err != nil {
		return errors.Join(err, lock.Close())
	}
	if err := dir.clear(); err != nil {
		return environment(err)
	}
	if err := dir.checkRoom(flags.clusters); err != nil {
		return errors.Join(err, dir.remove(), lock.Close())
	}
	if spec.Engine, spec.Image, err = a.chooseEngine(ctx, flags.engine, flags.image, flags.clusters); err != nil {
		return errors.Join(err, dir.remove(), lock.Close())
	}
	if err := a.chooseVault(ctx, &spec, flags.vault); err != nil {
		return errors.Join(err, dir.remove(), lock.Close())
	}
	if spec.Engine == lab.Kind {
		spec.Network = dir.network()
		if err := errors.Join(os.Setenv(kind.NetworkVariable, spec.Network), dir.markContainers()); err != nil {
			return errors.Join(environment(err), dir.remove(), lock.Close())
		}
	}
	request := superviseRequest{Spec: spec, Timeout: flags.timeout, Keep: flags.keep}
	show := newProgress(a.Err)
	began := time.Now()
	if flags.foreground {
		defer func() { _ = lock.Close() }()
		s := supervisor{dir: dir, request: request, log: newLog(a.Err), observe: show.observe, ready: func(info lab.Info) {
			show.end()
			fmt.Fprintf(a.Err, "lab %s is ready after %.1f s; Ctrl-C is down\n", dir.name(), time.Since(began).Seconds())
			_ = a.showInfo(info)
		}}
		return s.run(ctx)
	}
	info, err := startSupervisor(ctx, dir, lock, request, show.observe)
	show.end()
	if err != nil {
		return err
	}
	fmt.Fprintf(a.Err, "lab %s is ready after %.1f s\n", dir.name(), time.Since(began).Seconds())
	return a.showInfo(info)
}

func (a *app) spec(dir stateDir, flags upFlags, file labfile.File) (lab.Spec, error) {
	executable, err := os.Executable()
	if err != nil {
		return lab.Spec{}, err
	}
	spec := lab.Spec{
		Name: dir.name(), Dir: string(dir), Signer: flags.signer, Issuers: flags.style, Clusters: flags.clusters, Port: flags.port,
		Command: []string{executable, ComponentCommand},
		AWS:     file.AWS, Generic: file.Generic,
	}
	return spec, nil
}

// runningStatus returns the status of a lab that is up.
func runningStatus(ctx context.Context, dir stateDir) (lab.Status, error) {
	client, err := dir.client()
	if err != nil {
		return lab.Status{}, err
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	return client.Status(ctx)
}

func (a *app) showInfo(info lab.Info) error {
	if a.output == "json" {
		return a.printJSON(info)
	}
	w := tabwriter.NewWriter(a.Out, 0, 0, 2, ' ', 0)
	row := func(name, value string) { fmt.Fprintf(w, "%s\t%s\n", name, value) }
	for _, c := range info.Clusters {
		row("issuer "+c.ID, c.Issuer)
		row("kubeconfig "+c.ID, c.Kubeconfig)
	}
	row("aws", info.AWS.Endpoint)
	row("gcp", info.GCP.URL)
	row("azure", info.Azure.Authority)
	row("stackit", info.STACKIT.TokenURL)
	row("oci", info.OCI.URL)
	if info.OCI.PodHost != "" {
		row("oke", info.OCI.PodURL())
	}
	for _, party := range info.Generic.Parties {
		row(party.Name, party.TokenURL)
	}
	row("resource", info.Generic.Resource)
	if info.Vault != nil {
		row("vault", info.Vault.Address)
	}
	row("webhook", info.Webhook.URL+" "+webhookProfiles(info.Webhook))
	row("proxy", info.Proxy)
	row("ca", info.CAFile)
	for _, what := range sortedKeys(info.Absent) {
		row("without "+what, firstLine(info.Absent[what]))
	}
	return w.Flush()
}

func webhookProfiles(info lab.WebhookInfo) string {
	var names []string
	for _, p := range info.Profiles {
		names = append(names, p.Name)
	}
	return strings.Join(names, " ")
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	return keys
}

func firstLine(s string) string {
	line, _, _ := strings.Cut(s, "\n")
	return line
}
