package e2e

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/oidclab/oidclab/lab"
)

// testSecrets shows that what gives access is where it was asked for and in
// files that only their owner can read, and nowhere else.
func testSecrets(t *testing.T, u *user, info lab.Info) {
	secrets := map[string]string{}
	token := func(what string, args ...string) string {
		t.Helper()
		token := strings.TrimSpace(u.run(t, append([]string{"token"}, args...)...).want(t, 0).stdout)
		secrets[what] = signature(t, token)
		return token
	}
	accepted := token("token", "mint", "--name", labName, "--audience", "oidclab")
	refused := token("refused token", "mint", "--name", labName, "--audience", "oidclab", "--serviceaccount", "other")
	forged := token("forged token", "forge", "--name", labName, "--audience", "oidclab", "--tampered")
	u.feed(t, refused, "exchange", "generic", "--name", labName, "--token", "-", "--trace").want(t, 6)
	u.feed(t, forged, "exchange", "generic", "--name", labName, "--token", "-").want(t, 6)
	u.feed(t, forged, "token", "verify", "--name", labName, "--profile", "all").want(t, 6)

	var generic struct {
		Credentials struct {
			AccessToken string `json:"access_token"`
		} `json:"credentials"`
	}
	decode(t, u.feed(t, accepted, "exchange", "generic", "--name", labName, "--token", "-", "-o", "json").want(t, 0), &generic)
	secrets["access token"] = signature(t, generic.Credentials.AccessToken)
	var aws struct {
		Credentials struct{ SecretAccessKey, SessionToken string } `json:"credentials"`
	}
	decode(t, u.run(t, "exchange", "aws", "--name", labName, "-o", "json").want(t, 0), &aws)
	secrets["AWS secret key"], secrets["AWS session token"] = aws.Credentials.SecretAccessKey, aws.Credentials.SessionToken
	variables := map[string]string{}
	decode(t, u.run(t, "env", "--name", labName, "-o", "json").want(t, 0), &variables)
	for _, name := range []string{"AWS_WEB_IDENTITY_TOKEN_FILE", "OIDCLAB_TOKEN_FILE", "OIDCLAB_VAULT_TOKEN_FILE"} {
		if file := variables[name]; file != "" {
			data, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			secrets[name] = signature(t, strings.TrimSpace(string(data)))
		}
	}
	if info.Vault != nil {
		var vault struct {
			Credentials struct{ ClientToken string } `json:"credentials"`
		}
		decode(t, u.run(t, "exchange", "vault", "--name", labName, "-o", "json").want(t, 0), &vault)
		secrets["vault token"] = vault.Credentials.ClientToken
	}
	for what, secret := range secrets {
		if len(secret) < 20 {
			t.Fatalf("the %s is too short to be searched for: %q", what, secret)
		}
	}
	find := func(place, text string) {
		for what, secret := range secrets {
			if strings.Contains(text, secret) {
				t.Errorf("%s holds the %s", place, what)
			}
		}
	}

	for _, args := range [][]string{
		{"status"}, {"status", "-o", "json"}, {"list", "-o", "json"}, {"up"}, {"env"}, {"keys", "list", "-o", "json"},
		{"trace", "--all"}, {"trace", "--all", "-o", "json"}, {"logs"}, {"exchange", "aws", "--trace"},
	} {
		r := u.run(t, append(args, "--name", labName)...).want(t, 0)
		find("the output of "+strings.Join(args, " "), r.stdout+r.stderr)
	}

	err := filepath.WalkDir(u.dir(labName), func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		status, err := entry.Info()
		if err != nil {
			return err
		}
		mode := status.Mode()
		if entry.IsDir() && mode.Perm() != 0o700 {
			t.Errorf("%s has mode %s, want 0700", path, mode)
		}
		if !mode.IsRegular() {
			return nil
		}
		// The certificate of the authority is the only file for others.
		if path != info.CAFile && mode.Perm() != 0o600 {
			t.Errorf("%s has mode %s, want 0600", path, mode)
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if path == info.CAFile && strings.Contains(string(data), "PRIVATE KEY") {
			t.Errorf("%s holds a private key", path)
		}
		if filepath.Dir(path) != filepath.Join(u.dir(labName), "tokens") {
			find(path, string(data))
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

// signature returns the third part of a JWT, which makes it worth something.
func signature(t *testing.T, token string) string {
	t.Helper()
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		t.Fatalf("not a JWT: %q", token)
	}
	return parts[2]
}
