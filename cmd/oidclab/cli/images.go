package cli

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"text/tabwriter"
	"time"

	"github.com/adrg/xdg"
	"github.com/spf13/cobra"

	"github.com/oidclab/oidclab/lab"
	"github.com/oidclab/oidclab/lab/images"
	"github.com/oidclab/oidclab/lab/problem"
	"github.com/oidclab/oidclab/lab/vault"
)

// nodeImageCommand is the hidden verb by which `images build` runs kind's build.
const nodeImageCommand = "build-node-image"

func (a *app) imagesCommand() *cobra.Command {
	g := group("images", "Container images for the kind engine, made without a registry",
		a.imagesListCommand(), a.imagesBuildCommand(), a.imagesSaveCommand(), a.imagesLoadCommand(), a.nodeImageCommand())
	g.Long = `Container images for the kind engine: a Kubernetes node, the workload that runs in
pods (this binary), and Vault if there is a vault program on PATH.

build needs no registry. It makes the node image from Go modules and Debian
packages, as this machine's go and apt are set up. An image's tag names what it
was made from, so a second build does nothing, and one that was interrupted goes
on where it stopped. save and load carry images to machines that can't build.`
	g.Example = `  oidclab images list
  sudo oidclab images build             needs Docker, Go, debootstrap and root
  oidclab images save images.tar
  oidclab images load images.tar`
	return g
}

func (a *app) imagesConfig() (images.Config, error) {
	executable, err := os.Executable()
	if err != nil {
		return images.Config{}, err
	}
	show := newProgress(a.Err)
	var mu sync.Mutex
	config := images.Config{
		Cache:   filepath.Join(xdg.CacheHome, "oidclab", "images"),
		Command: []string{executable, "images", nodeImageCommand},
		Observe: func(step string) func(string, error) {
			mu.Lock()
			defer mu.Unlock()
			show.observe(lab.StepEvent{Name: step})
			began := time.Now()
			return func(detail string, err error) {
				mu.Lock()
				defer mu.Unlock()
				event := lab.StepEvent{Name: step, Done: true, Elapsed: time.Since(began), Detail: detail}
				if err != nil {
					event.Error = err.Error()
				}
				show.observe(event)
			}
		},
	}
	config.Vault, config.NoVault = vault.Find(exec.LookPath)
	return config, nil
}

func (a *app) imagesListCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "list", Short: "List the images, and which of them Docker has", Args: exactly(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			config, err := a.imagesConfig()
			if err != nil {
				return err
			}
			return a.listImages(cmd.Context(), config)
		},
	}
	a.outputFlag(cmd, "text", "json")
	return cmd
}

func (a *app) listImages(ctx context.Context, config images.Config) error {
	list, err := images.List(ctx, config)
	if err != nil {
		return err
	}
	return a.showImages(list)
}

func (a *app) showImages(list []images.Image) error {
	if a.output == "json" {
		return a.printJSON(list)
	}
	w := tabwriter.NewWriter(a.Out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "NAME\tIMAGE\tSIZE")
	for _, image := range list {
		switch {
		case image.Why != "":
			fmt.Fprintf(w, "%s\t-\tcan't be made: %s\n", image.Name, firstLine(image.Why))
		case image.Size == 0:
			fmt.Fprintf(w, "%s\t%s\tnot there\n", image.Name, image.Ref)
		default:
			fmt.Fprintf(w, "%s\t%s\t%d MB\n", image.Name, image.Ref, image.Size/1e6)
		}
	}
	return w.Flush()
}

func (a *app) imagesBuildCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "build", Short: "Make the images that Docker does not have", Args: exactly(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			config, err := a.imagesConfig()
			if err != nil {
				return err
			}
			if err := images.Build(cmd.Context(), config); err != nil {
				return err
			}
			return a.listImages(cmd.Context(), config)
		},
	}
	a.outputFlag(cmd, "text", "json")
	return cmd
}

func (a *app) imagesSaveCommand() *cobra.Command {
	return &cobra.Command{
		Use: "save FILE", Short: "Write the images that Docker has to an archive", Args: exactly(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			config, err := a.imagesConfig()
			if err != nil {
				return err
			}
			return images.Save(cmd.Context(), config, args[0])
		},
	}
}

func (a *app) imagesLoadCommand() *cobra.Command {
	return &cobra.Command{
		Use: "load FILE", Short: "Hand the images of an archive to Docker", Args: exactly(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			config, err := a.imagesConfig()
			if err != nil {
				return err
			}
			if err := images.Load(cmd.Context(), args[0]); err != nil {
				return err
			}
			list, err := images.List(cmd.Context(), config)
			if err != nil {
				return err
			}
			if list[0].Size == 0 {
				return problem.New(problem.Conflict, "take oidclab and the archive from one build",
					"%s is not in that archive, or of another version of oidclab", list[0].Ref)
			}
			a.output = "text"
			return a.showImages(list)
		},
	}
}

func (a *app) nodeImageCommand() *cobra.Command {
	return &cobra.Command{
		Use: nodeImageCommand, Hidden: true, Args: exactly(3),
		RunE: func(_ *cobra.Command, args []string) error { return images.NodeImageMain(args, a.Out) },
	}
}
