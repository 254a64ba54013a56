package nodeagent

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// APIServerUser is the common name of the API server's client certificate: only
// it may read logs here, and it asks nobody who may not.
const APIServerUser = "kube-apiserver-kubelet-client"

// followInterval is how often a log is read that somebody follows.
const followInterval = 100 * time.Millisecond

// logServer serves GET /containerLogs/{namespace}/{pod}/{container} as kubelet
// does, so that `kubectl logs` works.
type logServer struct {
	listener net.Listener
	server   *http.Server
}

func certPool(file string) (*x509.CertPool, error) {
	pem, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("%s holds no certificate", file)
	}
	return pool, nil
}

func (a *agent) serveLogs(o options) (*logServer, error) {
	config, err := o.tls()
	if err != nil {
		return nil, err
	}
	listener, err := tls.Listen("tcp", net.JoinHostPort(nodeAddress, "0"), config)
	if err != nil {
		return nil, err
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /containerLogs/{namespace}/{pod}/{container}", a.serveLog)
	s := &logServer{listener: listener, server: &http.Server{
		Handler: onlyAPIServer(mux), ErrorLog: log.New(io.Discard, "", 0), ReadHeaderTimeout: 10 * time.Second,
	}}
	go func() { _ = s.server.Serve(listener) }() // ends with close
	return s, nil
}

func onlyAPIServer(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.TLS == nil || len(r.TLS.VerifiedChains) == 0 || r.TLS.VerifiedChains[0][0].Subject.CommonName != APIServerUser {
			http.Error(w, "only the API server may ask", http.StatusForbidden)
			return
		}
		next.ServeHTTP(w, r)
	})
}

func (s *logServer) port() int32 { return int32(s.listener.Addr().(*net.TCPAddr).Port) }

func (s *logServer) close() error { return s.server.Close() }

func (a *agent) serveLog(w http.ResponseWriter, r *http.Request) {
	for _, option := range []string{"sinceSeconds", "sinceTime", "timestamps"} {
		if value := r.FormValue(option); value != "" && value != "false" {
			http.Error(w, "the node agent keeps no times of log lines: "+option+" is not supported", http.StatusBadRequest)
			return
		}
	}
	worker := a.find(r.PathValue("namespace"), r.PathValue("pod"))
	if worker == nil {
		http.Error(w, "pod not found", http.StatusNotFound)
		return
	}
	file, ended, err := worker.log(r.PathValue("container"), r.FormValue("previous") == "true")
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	reader, err := os.Open(file)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	defer func() { _ = reader.Close() }()
	if lines, err := strconv.Atoi(r.FormValue("tailLines")); err == nil {
		if err := seekTail(reader, lines); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
	}
	var content io.Reader = reader
	if limit, err := strconv.ParseInt(r.FormValue("limitBytes"), 10, 64); err == nil {
		content = io.LimitReader(reader, limit)
	}
	w.Header().Set("Content-Type", "text/plain")
	if r.FormValue("follow") != "true" {
		_, _ = io.Copy(w, content)
		return
	}
	follow(r.Context(), w, content, ended)
}

// follow copies until the container has ended and everything has been copied.
func follow(ctx context.Context, w http.ResponseWriter, content io.Reader, ended <-chan struct{}) {
	ticker := time.NewTicker(followInterval)
	defer ticker.Stop()
	for last := false; ; {
		if _, err := io.Copy(w, content); err != nil {
			return
		}
		_ = http.NewResponseController(w).Flush()
		if last {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-ended:
			last = true
		case <-ticker.C:
		}
	}
}

// seekTail moves to the begin of the last n lines.
func seekTail(file *os.File, n int) error {
	const block = 4096
	end, err := file.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	buffer := make([]byte, block)
	for position, lines := end, 0; position > 0; {
		size := min(position, block)
		position -= size
		if _, err := file.ReadAt(buffer[:size], position); err != nil {
			return err
		}
		for i := size - 1; i >= 0; i-- {
			if buffer[i] != '\n' || position+i == end-1 { // the newline of the last line
				continue
			}
			if lines++; lines == n {
				_, err := file.Seek(position+i+1, io.SeekStart)
				return err
			}
		}
	}
	if n == 0 {
		return nil
	}
	_, err = file.Seek(0, io.SeekStart)
	return err
}

// find returns the worker of a pod, or nil.
func (a *agent) find(namespace, name string) *worker {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, w := range a.workers {
		if pod := w.latest(); pod.Namespace == namespace && pod.Name == name {
			return w
		}
	}
	return nil
}

// log returns the log file of a container's current or previous run, and what is
// closed when the current one has ended.
func (w *worker) log(container string, previous bool) (file string, ended <-chan struct{}, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	c, ok := w.containers[container]
	if !ok {
		return "", nil, fmt.Errorf("container %s is not valid for pod %s", container, w.pod.Name)
	}
	run := c.status.RestartCount
	if previous {
		run--
	}
	file = w.logFile(container, run)
	if _, err := os.Stat(file); err != nil {
		return "", nil, notStarted(c, w.pod, previous)
	}
	return file, c.ended, nil
}

func notStarted(c *container, pod *corev1.Pod, previous bool) error {
	if previous {
		return fmt.Errorf("previous terminated container %q in pod %q not found", c.spec.Name, pod.Name)
	}
	reason := "it has not started"
	if waiting := c.status.State.Waiting; waiting != nil {
		reason = waiting.Reason
		if waiting.Message != "" {
			reason += ": " + waiting.Message
		}
	}
	return errors.New("container \"" + c.spec.Name + "\" in pod \"" + pod.Name + "\" is waiting to start: " + reason)
}

func (w *worker) logFile(container string, run int32) string {
	return filepath.Join(w.dir, "logs", container, strconv.Itoa(int(run))+".log")
}
