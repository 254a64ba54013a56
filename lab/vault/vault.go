// Package vault runs a real Vault server, as a child process or in a container,
// and configures it as a relying party of the lab's clusters.
//
// The program is somebody else's: Vault is licensed under the BUSL and is not
// part of oidclab. It serves HTTPS with a certificate of the lab and keeps
// everything in memory, so what it held is gone with its process. A Vault that
// died is therefore reported, not started again: an empty one would refuse
// tokens for reasons that nobody could tell from federation.
package vault

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"github.com/hashicorp/vault/api"

	"github.com/oidclab/oidclab/lab/pki"
	"github.com/oidclab/oidclab/lab/proc"
)

const (
	loopback = "127.0.0.1"

	// Vault cannot take over an open listener, so somebody else can get the
	// port between its choice and Vault's start.
	maxPortAttempts = 3

	// Storage is memory: there is nothing to bring to an orderly end.
	stopGrace = time.Second
)

// Config is what Start needs.
type Config struct {
	Program   string     // see Find; not for a container
	Container *Container // nil means a child process
	Address   string     // IP address to listen on; empty means 127.0.0.1
	Dir       string     // of configuration, key and log; created with mode 0700
	CA        *pki.CA
	Log       *slog.Logger // nil means none
}

// Server is a running Vault: initialized, unsealed and, after Configure, ready
// for logins.
type Server struct {
	instance  instance // nil until it has been started
	url       string
	logFile   string
	transport *http.Transport
	root      *api.Client // with the root token, which is nowhere else
}

// instance is what runs Vault: a process or a container.
type instance interface {
	Status() proc.Status
	// Stop returns when it is gone, may be called in any phase, and again.
	Stop(ctx context.Context) error
}

// Start starts a Vault server on a free port, initializes and unseals it. The
// context bounds the start only. On an error nothing is left running.
func Start(ctx context.Context, cfg Config) (*Server, error) {
	return start(ctx, cfg, freePort)
}

func start(ctx context.Context, cfg Config, choosePort func(address string) (int, error)) (*Server, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Address == "" {
		cfg.Address = loopback
	}
	if err := writeCertificate(cfg.Dir, cfg.Address, cfg.CA); err != nil {
		return nil, err
	}
	for attempt := 1; ; attempt++ {
		port, err := choosePort(cfg.Address)
		if err != nil {
			return nil, err
		}
		server, err := run(ctx, cfg, port)
		if err == nil {
			return server, nil
		}
		if !taken(cfg.Address, port) || ctx.Err() != nil {
			return nil, err
		}
		if attempt == maxPortAttempts {
			return nil, fmt.Errorf("vault: other processes took each of the %d ports that were tried, %d last: %w", attempt, port, err)
		}
		cfg.Log.Warn("vault: another process took the port; trying the next one", "port", port)
	}
}

// run starts Vault on the given port and opens it.
func run(ctx context.Context, cfg Config, port int) (_ *Server, err error) {
	address := net.JoinHostPort(cfg.Address, strconv.Itoa(port))
	s := &Server{
		url:     "https://" + address,
		logFile: filepath.Join(cfg.Dir, "vault.log"),
		transport: &http.Transport{
			TLSClientConfig:   &tls.Config{RootCAs: cfg.CA.Pool(), MinVersion: tls.VersionTLS12},
			ForceAttemptHTTP2: true,
		},
	}
	defer func() {
		if err != nil {
			// The caller's context may be over; what was started must still be stopped.
			err = errors.Join(err, s.Stop(context.WithoutCancel(ctx)))
		}
	}()
	if s.root, err = NewClient(s.url, &http.Client{Transport: s.transport}); err != nil {
		return nil, err
	}
	if cfg.Container != nil {
		err = s.startContainer(ctx, cfg, address)
	} else {
		err = s.startProcess(ctx, cfg, address)
	}
	if err != nil {
		return nil, err
	}
	if err := s.open(ctx); err != nil {
		return nil, err
	}
	return s, nil
}

// startProcess starts Vault as a child process, and waits until it answers.
func (s *Server) startProcess(ctx context.Context, cfg Config, address string) error {
	path, err := newConfig(cfg.Dir, address, s.url).write(cfg.Dir)
	if err != nil {
		return err
	}
	process, err := proc.Start(ctx, proc.Spec{
		Name:      "vault",
		Path:      cfg.Program,
		Args:      []string{"server", "-config=" + path},
		Env:       []string{"HOME=" + cfg.Dir}, // else Vault looks for its settings in that of the user
		Dir:       cfg.Dir,
		LogFile:   s.logFile,
		Ready:     s.serving,
		Restart:   proc.Never,
		StopGrace: stopGrace,
	})
	if err != nil {
		return err
	}
	s.instance = process
	return nil
}

// serving returns nil as soon as Vault answers, sealed or not.
func (s *Server) serving(ctx context.Context) error {
	_, err := s.root.Sys().HealthWithContext(ctx)
	return plain(err)
}

// open initializes and unseals a Vault whose storage is empty.
func (s *Server) open(ctx context.Context) error {
	keys, err := s.root.Sys().InitWithContext(ctx, &api.InitRequest{SecretShares: 1, SecretThreshold: 1})
	if err != nil {
		return fmt.Errorf("vault: init: %w; its log is %s", plain(err), s.logFile)
	}
	if len(keys.Keys) != 1 || keys.RootToken == "" {
		return fmt.Errorf("vault: init: the answer has %d unseal keys, want 1 and a root token; its log is %s", len(keys.Keys), s.logFile)
	}
	status, err := s.root.Sys().UnsealWithContext(ctx, keys.Keys[0])
	if err != nil {
		return fmt.Errorf("vault: unseal: %w; its log is %s", plain(err), s.logFile)
	}
	if status.Sealed {
		return fmt.Errorf("vault: still sealed after its only unseal key was given; its log is %s", s.logFile)
	}
	s.root.SetToken(keys.RootToken)
	return nil
}

// URL returns the origin of the server, such as "https://127.0.0.1:41733".
func (s *Server) URL() string { return s.url }

// Status returns the state of the process or container.
func (s *Server) Status() proc.Status { return s.instance.Status() }

// Healthy returns nil if Vault runs and is unsealed, and otherwise why it
// cannot take logins.
func (s *Server) Healthy(ctx context.Context) error {
	if status := s.Status(); status.State != proc.Running {
		return fmt.Errorf("vault: %s (%s), and what it held in memory is gone; run: oidclab down, then: oidclab up", status.State, status.Reason)
	}
	health, err := s.root.Sys().HealthWithContext(ctx)
	switch {
	case err != nil:
		return fmt.Errorf("vault: health: %w", plain(err))
	case !health.Initialized || health.Sealed || health.Standby:
		return fmt.Errorf("vault: not ready: initialized %t, sealed %t, standby %t", health.Initialized, health.Sealed, health.Standby)
	}
	return nil
}

// Stop ends Vault. It returns when it is gone, may be called in any phase, and
// again.
func (s *Server) Stop(ctx context.Context) error {
	defer s.transport.CloseIdleConnections()
	if s.instance == nil {
		return nil
	}
	return s.instance.Stop(ctx)
}

func freePort(address string) (int, error) {
	listener, err := net.Listen("tcp", net.JoinHostPort(address, "0"))
	if err != nil {
		return 0, fmt.Errorf("vault: no free port: %w", err)
	}
	port := listener.Addr().(*net.TCPAddr).Port
	return port, listener.Close()
}

// taken says whether another process listens on the port.
func taken(address string, port int) bool {
	listener, err := net.Listen("tcp", net.JoinHostPort(address, strconv.Itoa(port)))
	if err != nil {
		return errors.Is(err, syscall.EADDRINUSE)
	}
	_ = listener.Close()
	return false
}
