package cli

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/oidclab/oidclab/lab"
	"github.com/oidclab/oidclab/lab/cluster"
	"github.com/oidclab/oidclab/lab/control"
	"github.com/oidclab/oidclab/lab/problem"
)

func (a *app) logsCommand() *cobra.Command {
	var follow bool
	var pod, clusterID string
	cmd := &cobra.Command{
		Use:   "logs [COMPONENT]",
		Short: "Show the logs of the supervisor, of its components, or of a pod",
		Example: `  oidclab logs                       all, one after the other
  oidclab logs c1/kube-apiserver     one component
  oidclab logs supervisor --follow
  oidclab logs --pod demo/probe-aws-x7k2p`,
		Args: between(0, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if pod != "" {
				if len(args) > 0 {
					return problem.New(problem.Usage, cmd.CommandPath()+" --help", "either --pod or a component, not both")
				}
				return a.showPodLog(cmd.Context(), clusterID, pod, follow)
			}
			dir, err := a.state()
			if err != nil {
				return err
			}
			logs, err := dir.logs()
			if err != nil {
				return err
			}
			if len(logs) == 0 {
				return problem.New(problem.NotRunning, "oidclab up", "lab %s has no logs", dir.name())
			}
			if len(args) == 1 {
				path, ok := logs[args[0]]
				if !ok {
					return problem.New(problem.Usage, "", "there is no log of %q, but of %s", args[0], strings.Join(sortedKeys(logs), ", "))
				}
				return a.showLog(cmd.Context(), path, "", follow)
			}
			if follow {
				return problem.New(problem.Usage, "oidclab logs supervisor --follow", "--follow follows one log; there are %s", strings.Join(sortedKeys(logs), ", "))
			}
			for _, name := range sortedKeys(logs) {
				if err := a.showLog(cmd.Context(), logs[name], name+": ", false); err != nil {
					return err
				}
			}
			return nil
		},
	}
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on until interrupted")
	cmd.Flags().StringVar(&pod, "pod", "", "`namespace/name` of a pod, or namespace/name/container, as kubectl logs shows it")
	clusterFlag(cmd, &clusterID)
	return cmd
}

// showPodLog shows what a pod has written, and with follow what it will write.
func (a *app) showPodLog(ctx context.Context, clusterID, pod string, follow bool) error {
	parts := strings.Split(pod, "/")
	if len(parts) == 2 {
		parts = append(parts, "") // its only container
	}
	if len(parts) != 3 || parts[0] == "" || parts[1] == "" {
		return problem.New(problem.Usage, "oidclab logs --help", "--pod %q is not namespace/name or namespace/name/container", pod)
	}
	return a.withLab(ctx, func(ctx context.Context, _ *control.Client, status lab.Status) error {
		found, err := findCluster(status.Info, clusterID)
		if err != nil {
			return err
		}
		config, err := clientcmd.BuildConfigFromFlags("", found.Kubeconfig)
		if err != nil {
			return err
		}
		api, err := cluster.NewAPI(config)
		if err != nil {
			return err
		}
		stream, err := api.PodLogStream(ctx, parts[0], parts[1], parts[2], follow)
		if err != nil {
			if apierrors.IsNotFound(err) || apierrors.IsBadRequest(err) {
				return problem.New(problem.Usage, "kubectl get pods -A, with the kubeconfig that `oidclab status` shows", "%w", err)
			}
			return err
		}
		_, err = io.Copy(a.Out, stream)
		if err = errors.Join(err, stream.Close()); follow && ctx.Err() != nil {
			return nil
		}
		return err
	})
}

// logs returns the lab's log files by component, such as "supervisor" or "c1/etcd".
func (d stateDir) logs() (map[string]string, error) {
	logs := map[string]string{}
	err := filepath.WalkDir(string(d), func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			if os.IsNotExist(err) {
				return nil
			}
			return err
		}
		if entry.IsDir() && entry.Name() == "pods" { // see --pod
			return filepath.SkipDir
		}
		name, isLog := strings.CutSuffix(entry.Name(), ".log")
		if !isLog || entry.IsDir() {
			return nil
		}
		relative, err := filepath.Rel(filepath.Join(string(d), "clusters"), path)
		if err == nil && !strings.HasPrefix(relative, "..") {
			cluster, _, _ := strings.Cut(relative, string(filepath.Separator))
			name = cluster + "/" + name
		}
		logs[name] = path
		return nil
	})
	return logs, err
}

func (a *app) showLog(ctx context.Context, path, prefix string, follow bool) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() { _ = file.Close() }()
	reader := bufio.NewReader(file)
	for {
		line, err := reader.ReadString('\n')
		if line != "" {
			fmt.Fprint(a.Out, prefix, line)
		}
		switch {
		case err == io.EOF && !follow:
			return nil
		case err == io.EOF:
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(100 * time.Millisecond):
			}
		case err != nil:
			return err
		}
	}
}
