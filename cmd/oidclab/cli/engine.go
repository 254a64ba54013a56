package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/oidclab/oidclab/lab"
	"github.com/oidclab/oidclab/lab/cluster/kind"
	"github.com/oidclab/oidclab/lab/images"
	"github.com/oidclab/oidclab/lab/problem"
)

const (
	autoEngine     = "auto"
	engineVariable = "OIDCLAB_ENGINE"
	imageVariable  = "OIDCLAB_IMAGE"
)

// autoLimit bounds how long auto waits for a container engine that hangs.
const autoLimit = 400 * time.Millisecond

func (a *app) engineFlags(cmd *cobra.Command, engine, image *string) {
	byDefault := os.Getenv(engineVariable)
	if byDefault == "" {
		byDefault = autoEngine
	}
	cmd.Flags().StringVar(engine, "engine", byDefault, "what runs the clusters: auto, embedded or kind (or "+engineVariable+")")
	cmd.Flags().StringVar(image, "image", os.Getenv(imageVariable),
		"node image of the kind engine (or "+imageVariable+"); without it the one that kind pins, or that of oidclab images build, whichever is there")
}

// checkEngine refuses engines that there are not, and flags that they do not heed.
func checkEngine(cmd *cobra.Command, engine string) error {
	switch engine {
	case autoEngine, lab.Embedded, lab.Kind:
	default:
		return problem.New(problem.Usage, "oidclab up --engine embedded, or kind", "there is no engine %q", engine)
	}
	if engine == lab.Embedded && cmd.Flags().Changed("image") {
		return problem.New(problem.Usage, "oidclab up --engine kind", "the embedded engine has no nodes, and takes no --image")
	}
	return nil
}

// nodeImages returns the node images that will do, best first.
func nodeImages(image string) []string {
	if image != "" {
		return []string{image}
	}
	made, _ := images.NodeRef()
	return []string{kind.DefaultImage, made}
}

// chooseEngine returns what auto means here, or whether the engine that was
// asked for can work, and the image of its nodes.
func (a *app) chooseEngine(ctx context.Context, engine, image string, clusters int) (chosen, found string, err error) {
	candidates := nodeImages(image)
	switch engine {
	case lab.Embedded:
		return engine, "", nil
	case lab.Kind:
		machine := kind.Look(ctx, clusters, candidates...)
		if machine.LacksOnlyImage() {
			fmt.Fprintf(a.Err, "oidclab: pulling the node image %s\n", candidates[0])
			if err := kind.Pull(ctx, candidates[0]); err != nil {
				return "", "", err
			}
			machine = kind.Look(ctx, clusters, candidates...)
		}
		return engine, machine.Image, machine.Unmet()
	}
	look, cancel := context.WithTimeoutCause(ctx, autoLimit, errors.New("it does not answer"))
	defer cancel()
	machine := kind.Look(look, clusters, candidates...)
	if err := machine.Unmet(); err != nil {
		fmt.Fprintf(a.Err, "oidclab: the embedded engine, since %s\n", firstLine(err.Error()))
		return lab.Embedded, "", nil
	}
	return lab.Kind, machine.Image, nil
}
