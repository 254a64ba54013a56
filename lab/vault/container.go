package vault

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"
	"github.com/testcontainers/testcontainers-go"

	"github.com/oidclab/oidclab/lab/problem"
	"github.com/oidclab/oidclab/lab/proc"
)

const (
	containerPort = "8200/tcp"
	containerDir  = "/vault/config" // where hashicorp/vault's image has it, too
	readyInterval = 100 * time.Millisecond
	statusTimeout = 5 * time.Second // bounds a question to the container engine
	maxLog        = 16 << 20        // bytes of Vault's log that are kept
)

// Container says how to run Vault in a container. testcontainers-go runs it; its
// reaper needs an image of its own, so the process's environment must have
// TESTCONTAINERS_RYUK_DISABLED=true where that image can't be had.
type Container struct {
	Image   string            // hashicorp/vault's, or one whose entrypoint is a vault program
	Network string            // Docker network; from it Vault reaches issuers and clusters
	Labels  map[string]string // by which a container is found that nobody stopped
}

// startContainer starts Vault in a container whose port is published as
// address, and waits until it answers.
func (s *Server) startContainer(ctx context.Context, cfg Config, address string) error {
	if _, err := newConfig(containerDir, "0.0.0.0:8200", s.url).write(cfg.Dir); err != nil {
		return err
	}
	var files []testcontainers.ContainerFile
	for _, name := range []string{configFile, certFile, keyFile} {
		content, err := os.ReadFile(filepath.Join(cfg.Dir, name))
		if err != nil {
			return fmt.Errorf("vault: %w", err)
		}
		files = append(files, testcontainers.ContainerFile{Reader: bytes.NewReader(content), ContainerFilePath: containerDir + "/" + name, FileMode: 0o600})
	}
	binding, err := publishedAs(address)
	if err != nil {
		return err
	}
	started, err := testcontainers.Run(ctx, cfg.Container.Image,
		testcontainers.WithCmd("server", "-config="+containerDir+"/"+configFile),
		testcontainers.WithEnv(map[string]string{"SKIP_SETCAP": "true"}), // of hashicorp/vault's entrypoint: memory is not locked
		testcontainers.WithFiles(files...),
		testcontainers.WithExposedPorts(containerPort),
		testcontainers.WithLabels(cfg.Container.Labels),
		testcontainers.WithLogger(log.New(io.Discard, "", 0)),
		// It reads files that only root can; hashicorp/vault's entrypoint becomes somebody else after that.
		testcontainers.WithConfigModifier(func(c *container.Config) { c.User = "0:0" }),
		testcontainers.WithHostConfigModifier(func(c *container.HostConfig) {
			c.PortBindings = binding
			c.NetworkMode = container.NetworkMode(cfg.Container.Network)
		}),
	)
	if started != nil {
		s.instance = &contained{container: started, log: s.logFile}
	}
	if err != nil {
		return problem.New(problem.EnvironmentMissing, "oidclab doctor, or: oidclab up --vault none", "vault: container of %s: %w", cfg.Container.Image, err)
	}
	return s.awaitContainer(ctx)
}

func publishedAs(address string) (network.PortMap, error) {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, fmt.Errorf("vault: %w", err)
	}
	ip, err := netip.ParseAddr(host)
	if err != nil {
		return nil, fmt.Errorf("vault: %w", err)
	}
	return network.PortMap{network.MustParsePort(containerPort): {{HostIP: ip, HostPort: port}}}, nil
}

// awaitContainer returns once Vault answers, or its container has ended.
func (s *Server) awaitContainer(ctx context.Context) error {
	ticker := time.NewTicker(readyInterval)
	defer ticker.Stop()
	for {
		err := s.serving(ctx)
		if err == nil {
			return nil
		}
		if status := s.instance.Status(); status.State == proc.Stopped {
			return fmt.Errorf("vault: the container has ended: %s; its log is %s", status.Reason, s.logFile)
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return fmt.Errorf("vault: the container is not ready: %w; the last reason: %w", context.Cause(ctx), err)
		}
	}
}

// contained is a Vault in a container.
type contained struct {
	container *testcontainers.DockerContainer
	log       string // file that keeps its log

	mu   sync.Mutex
	gone bool
}

// Status implements instance.
func (c *contained) Status() proc.Status {
	status := proc.Status{Name: "vault", State: proc.Running}
	ctx, cancel := context.WithTimeout(context.Background(), statusTimeout)
	defer cancel()
	state, err := c.container.State(ctx)
	switch {
	case err != nil:
		status.State, status.Reason = proc.Stopped, err.Error()
	case !state.Running:
		status.State, status.Reason = proc.Stopped, fmt.Sprintf("exit code %d %s", state.ExitCode, state.Error)
		_ = c.keepLog(ctx) // for the reader of the reason
	default:
		status.PID = state.Pid
	}
	return status
}

// Stop implements instance.
func (c *contained) Stop(ctx context.Context) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.gone {
		return nil
	}
	err := c.keepLog(ctx)
	if removeErr := c.container.Terminate(ctx, testcontainers.StopTimeout(stopGrace)); removeErr != nil {
		return errors.Join(err, fmt.Errorf("vault: container: %w", removeErr))
	}
	c.gone = true
	return err
}

// keepLog writes what Vault has logged to the log file.
func (c *contained) keepLog(ctx context.Context) (err error) {
	logs, err := c.container.Logs(ctx)
	if err != nil {
		return fmt.Errorf("vault: log: %w", err)
	}
	defer func() { err = errors.Join(err, logs.Close()) }()
	content, err := io.ReadAll(io.LimitReader(logs, maxLog))
	if err != nil {
		return fmt.Errorf("vault: log: %w", err)
	}
	return writeFile(c.log, content)
}
