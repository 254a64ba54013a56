package vault

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/oidclab/oidclab/lab/pki"
)

const (
	configFile = "vault.json"
	certFile   = "vault.crt"
	keyFile    = "vault.key"
)

// serverConfig is Vault's configuration file in its JSON form
// (Vault documentation, "Vault configuration parameters").
type serverConfig struct {
	Storage           map[string]struct{} `json:"storage"`
	Listener          map[string]listener `json:"listener"`
	APIAddr           string              `json:"api_addr"`
	DisableClustering bool                `json:"disable_clustering"` // otherwise Vault may listen on the next port, too
	DisableMlock      bool                `json:"disable_mlock"`      // needs a privilege, and keeps no secret worth it
	UI                bool                `json:"ui"`
	LogLevel          string              `json:"log_level"`
}

type listener struct {
	Address     string `json:"address"`
	TLSCertFile string `json:"tls_cert_file"`
	TLSKeyFile  string `json:"tls_key_file"`
}

// newConfig returns the configuration of a server that listens on address, host
// and port, is known as url, and finds its certificate in dir.
func newConfig(dir, address, url string) serverConfig {
	return serverConfig{
		Storage: map[string]struct{}{"inmem": {}},
		Listener: map[string]listener{"tcp": {
			Address:     address,
			TLSCertFile: filepath.Join(dir, certFile),
			TLSKeyFile:  filepath.Join(dir, keyFile),
		}},
		APIAddr:           url,
		DisableClustering: true,
		DisableMlock:      true,
		LogLevel:          "info",
	}
}

// write writes the configuration to dir.
func (c serverConfig) write(dir string) (path string, err error) {
	content, err := json.MarshalIndent(c, "", "  ")
	if err != nil {
		return "", fmt.Errorf("vault: configuration: %w", err)
	}
	path = filepath.Join(dir, configFile)
	return path, writeFile(path, content)
}

// writeCertificate writes the server's certificate and key to dir, which it
// makes if need be.
func writeCertificate(dir, address string, ca *pki.CA) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("vault: %w", err)
	}
	leaf, err := ca.Server(address, "localhost")
	if err != nil {
		return fmt.Errorf("vault: %w", err)
	}
	if err := writeFile(filepath.Join(dir, certFile), leaf.CertPEM); err != nil {
		return err
	}
	return writeFile(filepath.Join(dir, keyFile), leaf.KeyPEM)
}

// writeFile makes a file that only its owner can read, whatever was there before.
func writeFile(path string, content []byte) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("vault: %w", err)
	}
	if err := os.WriteFile(path, content, 0o600); err != nil {
		return fmt.Errorf("vault: %w", err)
	}
	return nil
}
