package images

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"

	"github.com/oidclab/oidclab/lab/problem"
)

// docker runs a docker command and returns what it printed.
func docker(ctx context.Context, args ...string) (string, error) {
	command := exec.CommandContext(ctx, "docker", args...)
	var stdout, stderr bytes.Buffer
	command.Stdout, command.Stderr = &stdout, &stderr
	err := command.Run()
	switch {
	case errors.Is(err, exec.ErrNotFound):
		return "", problem.New(problem.EnvironmentMissing, "install Docker, then: oidclab doctor", "there is no docker program on PATH")
	case ctx.Err() != nil:
		return "", context.Cause(ctx)
	case err != nil:
		return "", fmt.Errorf("docker %s: %w: %s", args[0], err, strings.TrimSpace(stderr.String()))
	}
	return strings.TrimSpace(stdout.String()), nil
}

// Size returns the size of an image in bytes, or 0 if the container engine does
// not have it. It is an EnvironmentMissing problem if no engine answers.
func Size(ctx context.Context, ref string) (int64, error) {
	// Not inspect, whose failure says the same of a missing image and a missing engine.
	id, err := docker(ctx, "image", "ls", "--quiet", "--no-trunc", ref)
	if err != nil {
		if p := new(problem.Problem); errors.As(err, &p) || ctx.Err() != nil {
			return 0, err
		}
		return 0, problem.New(problem.EnvironmentMissing, "start Docker, then: oidclab doctor", "no container engine answers: %w", err)
	}
	if id == "" {
		return 0, nil
	}
	size, err := docker(ctx, "image", "inspect", "--format", "{{.Size}}", ref)
	if err != nil {
		return 0, err
	}
	return strconv.ParseInt(size, 10, 64)
}

// removeFormer removes the images of ref's repository that have other tags,
// unless a container uses them.
func removeFormer(ctx context.Context, ref string) error {
	repository, _, _ := strings.Cut(ref, ":")
	refs, err := docker(ctx, "image", "ls", "--format", "{{.Repository}}:{{.Tag}}", repository)
	if err != nil {
		return err
	}
	for former := range strings.FieldsSeq(refs) {
		if former == ref {
			continue
		}
		if users, err := docker(ctx, "ps", "--all", "--quiet", "--filter", "ancestor="+former); err != nil || users != "" {
			continue // or its containers would lose the name of their image
		}
		if _, err := docker(ctx, "image", "rm", former); err != nil {
			return err
		}
	}
	return nil
}

// saveImages writes an archive of images, or nothing.
func saveImages(ctx context.Context, path string, refs []string) error {
	unfinished := path + ".unfinished"
	if _, err := docker(ctx, append([]string{"image", "save", "--output", unfinished}, refs...)...); err != nil {
		return errors.Join(err, removeIfThere(unfinished))
	}
	return os.Rename(unfinished, path)
}

func loadArchive(ctx context.Context, path string) error {
	if _, err := os.Stat(path); err != nil {
		return problem.New(problem.Usage, "oidclab images save writes one", "%w", err)
	}
	_, err := docker(ctx, "image", "load", "--quiet", "--input", path)
	if p := new(problem.Problem); err == nil || ctx.Err() != nil || errors.As(err, &p) {
		return err
	}
	return problem.New(problem.Usage, "oidclab images save writes one", "%s can't be loaded: %w", path, err)
}

func removeIfThere(path string) error {
	if err := os.Remove(path); !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}
