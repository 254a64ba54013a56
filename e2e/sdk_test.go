package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	awssdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/sts"

	"github.com/oidclab/oidclab/lab"
)

// applicationVariable makes the test binary an application that uses the AWS
// SDK for Go v2 and knows nothing of the lab.
const applicationVariable = "OIDCLAB_E2E_APPLICATION"

// identity is what an application says of itself.
type identity struct{ Arn string }

// application asks AWS who it is, with the SDK's default credential chain.
func application() int {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	cfg, err := config.LoadDefaultConfig(ctx)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	answer, err := sts.NewFromConfig(cfg).GetCallerIdentity(ctx, nil)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	if err := json.NewEncoder(os.Stdout).Encode(identity{awssdk.ToString(answer.Arn)}); err != nil {
		return 1
	}
	return 0
}

// testSDK runs unmodified applications with nothing in their environment but
// what `env --for aws` prints.
func testSDK(t *testing.T, u *user, info lab.Info) {
	variables := map[string]string{}
	decode(t, u.run(t, "env", "--name", labName, "--for", "aws", "-o", "json").want(t, 0), &variables)
	var environment []string
	for _, name := range slices.Sorted(maps.Keys(variables)) {
		environment = append(environment, name+"="+variables[name])
	}
	role := info.AWS.Roles["c1"]
	wantPrefix := strings.Replace(strings.Replace(role, ":iam:", ":sts:", 1), ":role/", ":assumed-role/", 1) + "/"

	t.Run("go", func(t *testing.T) {
		self, err := os.Executable()
		if err != nil {
			t.Fatal(err)
		}
		command := exec.Command(self)
		command.Env = append([]string{applicationVariable + "=1"}, environment...)
		if got := ask(t, command); !strings.HasPrefix(got.Arn, wantPrefix) {
			t.Errorf("got %q, want %s…", got.Arn, wantPrefix)
		}
	})
	t.Run("command line", func(t *testing.T) {
		aws, err := exec.LookPath("aws")
		if err != nil {
			t.Skip("needs the aws command on PATH")
		}
		home := t.TempDir() // it caches credentials there
		command := exec.Command(aws, "sts", "get-caller-identity", "--output", "json")
		command.Env = append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + home}, environment...)
		if root := os.Getenv("PYENV_ROOT"); root != "" { // how a shim of pyenv finds the program
			command.Env = append(command.Env, "PYENV_ROOT="+root)
		} else if root := filepath.Join(os.Getenv("HOME"), ".pyenv"); strings.HasPrefix(aws, root) {
			command.Env = append(command.Env, "PYENV_ROOT="+root)
		}
		if got := ask(t, command); !strings.HasPrefix(got.Arn, wantPrefix) {
			t.Errorf("got %q, want %s…", got.Arn, wantPrefix)
		}
	})
}

func ask(t *testing.T, command *exec.Cmd) (got identity) {
	t.Helper()
	var stdout, stderr bytes.Buffer
	command.Stdout, command.Stderr = &stdout, &stderr
	if err := command.Run(); err != nil {
		t.Fatalf("%v: %s", err, stderr.String())
	}
	if err := json.Unmarshal(stdout.Bytes(), &got); err != nil {
		t.Fatalf("%v in %s", err, stdout.String())
	}
	return got
}
