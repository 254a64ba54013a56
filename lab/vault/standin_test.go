package vault

import (
	"crypto/tls"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/oidclab/oidclab/lab/pki"
	"github.com/oidclab/oidclab/lab/proc"
)

// The test binary, called by one of these names, stands in for the Vault
// program where a real one cannot be made to fail in the way that is wanted.
var standIns = map[string]func(serverConfig) error{
	"vault":          func(c serverConfig) error { return standIn(c, true) },
	containedVault:   func(c serverConfig) error { return standIn(c, true) },
	"vault-sealed":   func(c serverConfig) error { return standIn(c, false) },
	"vault-impostor": impostor,
	"vault-exits":    func(serverConfig) error { return fmt.Errorf("configuration: the stand-in gives up") },
	"vault-mute":     func(serverConfig) error { return wait() },
}

// containedVault is the stand-in in a container, whose environment is another.
const containedVault = "vault-contained"

func TestMain(m *testing.M) {
	if run, ok := standIns[filepath.Base(os.Args[0])]; ok {
		config, err := standInConfig(os.Args[1:])
		if err == nil {
			err = run(config)
		}
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	goleak.VerifyTestMain(m)
}

// program returns the path of a stand-in.
func program(t *testing.T, name string) string {
	t.Helper()
	binary, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(t.TempDir(), name)
	if err := os.Symlink(binary, link); err != nil {
		t.Fatal(err)
	}
	return link
}

func standInConfig(args []string) (config serverConfig, err error) {
	path, ok := strings.CutPrefix(args[len(args)-1], "-config=")
	if len(args) != 2 || args[0] != "server" || !ok {
		return config, fmt.Errorf("arguments %q", args)
	}
	if env := os.Environ(); filepath.Base(os.Args[0]) != containedVault && (len(env) != 1 || env[0] != "HOME="+filepath.Dir(path)) {
		return config, fmt.Errorf("environment %q", env)
	}
	content, err := os.ReadFile(path)
	if err != nil {
		return config, err
	}
	return config, json.Unmarshal(content, &config)
}

// standIn answers what starts a Vault, as vault/api has it.
func standIn(config serverConfig, unseals bool) error {
	tcp := config.Listener["tcp"]
	cert, err := tls.LoadX509KeyPair(tcp.TLSCertFile, tcp.TLSKeyFile)
	if err != nil {
		return err
	}
	listener, err := net.Listen("tcp", tcp.Address)
	if err != nil {
		return fmt.Errorf("listener of type tcp: %w", err)
	}
	initialized, sealed := false, true
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/sys/health", func(w http.ResponseWriter, r *http.Request) {
		if !initialized && r.URL.Query().Get("uninitcode") == "299" || sealed && r.URL.Query().Get("sealedcode") == "299" {
			w.WriteHeader(299)
		}
		fmt.Fprintf(w, `{"initialized":%t,"sealed":%t,"standby":%t,"version":"0.0.0-standin"}`, initialized, sealed, sealed)
	})
	mux.HandleFunc("PUT /v1/sys/init", func(w http.ResponseWriter, r *http.Request) {
		var request struct {
			Shares    int `json:"secret_shares"`
			Threshold int `json:"secret_threshold"`
		}
		if err := json.NewDecoder(r.Body).Decode(&request); err != nil || initialized || request.Shares != 1 || request.Threshold != 1 {
			http.Error(w, `{"errors":["bad init"]}`, http.StatusBadRequest)
			return
		}
		initialized = true
		fmt.Fprintf(w, `{"keys":["c0ffee"],"keys_base64":["wP/u"],"root_token":%q}`, standInRoot)
	})
	mux.HandleFunc("PUT /v1/sys/unseal", func(w http.ResponseWriter, r *http.Request) {
		var request struct{ Key string }
		if err := json.NewDecoder(r.Body).Decode(&request); err != nil || request.Key != "c0ffee" {
			http.Error(w, `{"errors":["invalid key"]}`, http.StatusBadRequest)
			return
		}
		sealed = !unseals
		fmt.Fprintf(w, `{"sealed":%t,"t":1,"n":1,"progress":0}`, sealed)
	})
	server := &http.Server{Handler: mux, TLSConfig: &tls.Config{Certificates: []tls.Certificate{cert}}}
	return server.ServeTLS(listener, "", "")
}

// impostor serves under a root that is not the lab's.
func impostor(config serverConfig) error {
	ca, err := pki.New("impostor")
	if err != nil {
		return err
	}
	if err := writeCertificate(filepath.Dir(config.Listener["tcp"].TLSCertFile), loopback, ca); err != nil {
		return err
	}
	return standIn(config, true)
}

// wait returns when the supervisor is gone.
func wait() error {
	_, err := os.NewFile(proc.LifelineFD, "lifeline").Read(make([]byte, 1))
	return err
}

const standInRoot = "hvs.stand-in-root-token"
