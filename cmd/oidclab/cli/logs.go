package cli

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/oidclab/oidclab/lab/problem"
)

func (a *app) logsCommand() *cobra.Command {
	var follow bool
	cmd := &cobra.Command{
		Use:   "logs [COMPONENT]",
		Short: "Show the logs of the supervisor and its components",
		Example: `  oidclab logs                       all, one after the other
  oidclab logs c1/kube-apiserver     one component
  oidclab logs supervisor --follow`,
		Args: between(0, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
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
	return cmd
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
