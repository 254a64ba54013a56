package controlplane

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net/url"

	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/storage/wal"
)

// walSegment is how much disk space etcd takes in advance, twice, in bytes:
// enough for a lab, and an eighth of its default.
const walSegment = 8 << 20

// nobody is what the member advertises, in the form host:port that etcd insists
// on. There are no other members, and clients are told the socket.
const nobody = "nobody:0"

// runEtcd runs a single member that listens on Unix sockets only.
func runEtcd(ctx context.Context, args []string) error {
	config := embed.NewConfig()
	flags := flag.NewFlagSet(Etcd, flag.ContinueOnError)
	flags.StringVar(&config.Dir, "data-dir", "", "directory of the data")
	client := flags.String("client-socket", "", "socket for clients, relative to the working directory")
	peer := flags.String("peer-socket", "", "socket for other members, of which there are none")
	if err := flags.Parse(args); err != nil {
		return fmt.Errorf("%s: %w", Etcd, err)
	}
	config.ListenClientUrls, config.ListenPeerUrls = unixURL(*client), unixURL(*peer)
	config.AdvertiseClientUrls, config.AdvertisePeerUrls = unixURL(nobody), unixURL(nobody)
	config.InitialCluster = config.InitialClusterFromName(config.Name)
	config.UnsafeNoFsync = true // survives the end of the process, not that of the machine; neither does the lab
	config.LogLevel = "warn"
	config.WarningUnaryRequestDuration = embed.DefaultWarningUnaryRequestDuration // the zero value warns of every request
	config.EnableGRPCGateway = false
	// The only member need not wait for others before it elects itself.
	config.TickMs, config.ElectionMs = 10, 100

	wal.SegmentSizeBytes = walSegment // of this process, which runs nothing else
	server, err := embed.StartEtcd(config)
	if err != nil {
		return fmt.Errorf("%s: %w", Etcd, err)
	}
	defer server.Close()
	select {
	case err := <-server.Err():
		return fmt.Errorf("%s: %w", Etcd, err)
	case <-server.Server.StopNotify():
		return errors.New(Etcd + ": stopped by itself")
	case <-ctx.Done():
		return nil
	}
}

// unixURL names a socket by a path relative to the working directory, which
// keeps it below the length limit of socket addresses (unix(7)).
func unixURL(socket string) []url.URL { return []url.URL{{Scheme: "unix", Host: socket}} }
