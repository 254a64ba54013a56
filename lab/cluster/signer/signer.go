// Package signer is the external signer of a kube-apiserver: it serves the gRPC
// API k8s.io/externaljwt/apis/v1 (KEP-740) on a Unix socket from a set of keys.
// The API server assembles and checks the claims; the signer adds header and
// signature. Keys rotate without a restart of the API server.
package signer

import (
	"context"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"
	externaljwt "k8s.io/externaljwt/apis/v1"

	"github.com/oidclab/oidclab/lab/keys"
	"github.com/oidclab/oidclab/lab/trace"
)

// maxExpiration is the longest life of a token the signer agrees to.
const maxExpiration = 24 * time.Hour

// maxSocketPath is what fits into sun_path with its final zero byte (unix(7)).
const maxSocketPath = 107

// Config is what a signer needs.
type Config struct {
	Socket  string // path of the socket, which must not exist, in a directory of mode 0700; at most 107 bytes (unix(7))
	Keys    *keys.Set
	Trace   *trace.Log    // gets an event for each signature; may be nil
	Refresh time.Duration // how often the API server fetches keys, in whole seconds; 0 means 1 s
}

// Signer is a running signer.
type Signer struct {
	server *grpc.Server
	served chan struct{} // closed when the server has ended
}

// Start listens on the socket and serves until Stop.
func Start(config Config) (*Signer, error) {
	if config.Refresh == 0 {
		config.Refresh = time.Second
	}
	if config.Refresh < time.Second || config.Refresh%time.Second != 0 {
		return nil, fmt.Errorf("signer: refresh %s is not a whole number of seconds", config.Refresh)
	}
	directory := filepath.Dir(config.Socket)
	info, err := os.Stat(directory)
	if err != nil {
		return nil, fmt.Errorf("signer: %w", err)
	}
	if info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("signer: %s is open to others (mode %#o), who could have tokens signed; chmod it to 0700", directory, info.Mode().Perm())
	}
	if len(config.Socket) > maxSocketPath {
		return nil, fmt.Errorf("signer: the socket path %s has %d bytes, but unix(7) allows %d; use a shorter state directory", config.Socket, len(config.Socket), maxSocketPath)
	}
	listener, err := net.Listen("unix", config.Socket)
	if err != nil {
		return nil, fmt.Errorf("signer: %w", err)
	}
	if err := os.Chmod(config.Socket, 0o600); err != nil {
		return nil, errors.Join(fmt.Errorf("signer: %w", err), listener.Close())
	}
	s := &Signer{server: grpc.NewServer(), served: make(chan struct{})}
	externaljwt.RegisterExternalJWTSignerServer(s.server, &service{config: config})
	go func() {
		defer close(s.served)
		_ = s.server.Serve(listener) // ends when the listener is closed, which is what Stop does
	}()
	return s, nil
}

// Stop ends the signer and removes its socket. It may be called again.
func (s *Signer) Stop() {
	s.server.Stop()
	<-s.served
}

// service is the gRPC API.
type service struct {
	externaljwt.UnimplementedExternalJWTSignerServer
	config Config
}

// Sign adds header and signature to claims.
func (s *service) Sign(_ context.Context, request *externaljwt.SignJWTRequest) (*externaljwt.SignJWTResponse, error) {
	claims, err := base64.RawURLEncoding.Strict().DecodeString(request.GetClaims())
	if err != nil {
		return nil, status.Errorf(codes.InvalidArgument, "claims are not unpadded base64url: %v", err)
	}
	signed, err := s.config.Keys.Sign(claims)
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	s.config.Trace.Add(trace.Event{
		Journey: trace.JourneyOf(signed.Token()),
		Station: "signer",
		Step:    "mint",
		Name:    signed.KeyID,
		Outcome: trace.OK,
		Detail:  describe(claims),
	})
	return &externaljwt.SignJWTResponse{Header: signed.Header, Signature: signed.Signature}, nil
}

// FetchKeys returns every key of the set.
func (s *service) FetchKeys(context.Context, *externaljwt.FetchKeysRequest) (*externaljwt.FetchKeysResponse, error) {
	inSet, changed := s.config.Keys.InKeySet()
	response := &externaljwt.FetchKeysResponse{
		// The API server rebuilds its documents whenever this changes.
		DataTimestamp:      timestamppb.New(changed),
		RefreshHintSeconds: int64(s.config.Refresh / time.Second),
	}
	for _, key := range inSet {
		der, err := x509.MarshalPKIXPublicKey(key.Public)
		if err != nil {
			return nil, status.Errorf(codes.Internal, "key %s: %v", key.ID, err)
		}
		response.Keys = append(response.Keys, &externaljwt.Key{KeyId: key.ID, Key: der})
	}
	return response, nil
}

// Metadata says how long tokens may live.
func (s *service) Metadata(context.Context, *externaljwt.MetadataRequest) (*externaljwt.MetadataResponse, error) {
	return &externaljwt.MetadataResponse{MaxTokenExpirationSeconds: int64(maxExpiration / time.Second)}, nil
}

// describe shows who a token is for, and for how long.
func describe(claims []byte) string {
	var c struct {
		Subject  string          `json:"sub"`
		Audience json.RawMessage `json:"aud"`
		Expiry   float64         `json:"exp"`
	}
	if err := json.Unmarshal(claims, &c); err != nil {
		return ""
	}
	var audiences []string
	if json.Unmarshal(c.Audience, &audiences) != nil {
		var one string
		_ = json.Unmarshal(c.Audience, &one) // neither a list nor a string: shown as none
		audiences = []string{one}
	}
	return fmt.Sprintf("sub %s, aud %s, exp %s", c.Subject, strings.Join(audiences, " "),
		time.Unix(int64(c.Expiry), 0).UTC().Format(time.RFC3339))
}
