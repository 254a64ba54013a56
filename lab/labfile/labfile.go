// Package labfile reads lab.yaml: a lab as a file, for `oidclab up -f`. It is
// strict: a key that it does not know, or that is there twice, is an error that
// names the line.
package labfile

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/oidclab/oidclab/lab"
	"github.com/oidclab/oidclab/lab/problem"
	"github.com/oidclab/oidclab/lab/sts"
)

// What a file must say of itself.
const (
	APIVersion = "oidclab.dev/v1alpha1"
	Kind       = "Lab"
)

// Example is a file with everything in it.
const Example = `apiVersion: oidclab.dev/v1alpha1
kind: Lab
spec:
  engine: auto           # what runs the clusters: auto, embedded or kind
  image: kindest/node:v1.37.0    # of kind's nodes; nothing means the one that oidclab chooses
  clusters: 2            # 1 to 9
  issuerStyle: oke       # of issuer URLs: excloud, oke, eks, gardener or aks
  signer: external       # who signs tokens: external (the lab) or static (the API server, with key files)
  port: 8443             # of the issuer front; 0 or nothing means any free one
  vault: none            # auto, none, the path of a vault program, or container:IMAGE
  aws:
    clientIDs: [sts.amazonaws.com]
    roles:               # beside the lab's own, c1-app, c2-app, ...
      - name: readers
        maxSessionDuration: 2h
        trustPolicy:     # an IAM document; ${issuer:c1} is c1's issuer without https://
          Version: "2012-10-17"
          Statement:
            - Effect: Allow
              Principal: {Federated: "arn:aws:iam::111122223333:oidc-provider/${issuer:c1}"}
              Action: sts:AssumeRoleWithWebIdentity
              Condition:
                StringEquals: {"${issuer:c1}:aud": sts.amazonaws.com}
                StringLike: {"${issuer:c1}:sub": "system:serviceaccount:demo:*"}
        policy:          # what it may do at S3; nothing means read the lab's bucket
          Version: "2012-10-17"
          Statement:
            - {Effect: Allow, Action: "s3:GetObject", Resource: "arn:aws:s3:::demo/*"}
  generic:
    audiences: [oidclab]
    targets:             # beside the lab's own, urn:oidclab:greeter
      - name: urn:example:orders
        trust:
          - cluster: c2
            conditions:
              - {operator: StringEquals, claim: sub, values: ["system:serviceaccount:demo:app"]}
`

type file struct {
	APIVersion string `yaml:"apiVersion"`
	Kind       string `yaml:"kind"`
	Spec       struct {
		Engine      string `yaml:"engine"`
		Image       string `yaml:"image"`
		Clusters    int    `yaml:"clusters"`
		Signer      string `yaml:"signer"`
		IssuerStyle string `yaml:"issuerStyle"`
		Port        int    `yaml:"port"`
		Vault       string `yaml:"vault"`
		AWS         struct {
			ClientIDs []string `yaml:"clientIDs"`
			Roles     []struct {
				Name               string        `yaml:"name"`
				MaxSessionDuration time.Duration `yaml:"maxSessionDuration"`
				TrustPolicy        any           `yaml:"trustPolicy"`
				Policy             any           `yaml:"policy"`
			} `yaml:"roles"`
		} `yaml:"aws"`
		Generic struct {
			Audiences []string `yaml:"audiences"`
			Targets   []struct {
				Name  string `yaml:"name"`
				Trust []struct {
					Cluster    string `yaml:"cluster"`
					Conditions []struct {
						Operator string   `yaml:"operator"`
						Claim    string   `yaml:"claim"`
						Values   []string `yaml:"values"`
					} `yaml:"conditions"`
				} `yaml:"trust"`
			} `yaml:"targets"`
		} `yaml:"generic"`
	} `yaml:"spec"`
}

// File is what a lab.yaml says.
type File struct {
	Engine      string // empty if it does not say
	Image       string // empty if it does not say
	Clusters    int    // 0 if it does not say
	Signer      string // empty if it does not say
	IssuerStyle string // empty if it does not say
	Port        int    // 0 if it does not say
	Vault       string // empty if it does not say
	AWS         lab.AWSSpec
	Generic     lab.GenericSpec
}

// Read reads a lab.yaml. What is wrong with it is a [problem.BadConfig].
func Read(r io.Reader, name string) (File, error) {
	f, err := read(r)
	if err != nil {
		return File{}, problem.New(problem.BadConfig, "oidclab up --help shows an example", "%s: %w", name, err)
	}
	return f, nil
}

func read(r io.Reader) (File, error) {
	data, err := io.ReadAll(io.LimitReader(r, 1<<20))
	if err != nil {
		return File{}, err
	}
	decoder := yaml.NewDecoder(bytes.NewReader(data))
	decoder.KnownFields(true)
	var parsed file
	if err := decoder.Decode(&parsed); errors.Is(err, io.EOF) {
		return File{}, errors.New("it is empty")
	} else if err != nil {
		return File{}, plain(err)
	}
	if err := decoder.Decode(new(any)); !errors.Is(err, io.EOF) {
		return File{}, errors.New("it holds more than one document")
	}
	if parsed.APIVersion != APIVersion || parsed.Kind != Kind {
		return File{}, fmt.Errorf("it is %q of %q, not %q of %q", parsed.Kind, parsed.APIVersion, Kind, APIVersion)
	}
	spec := parsed.Spec
	f := File{Engine: spec.Engine, Image: spec.Image, Clusters: spec.Clusters, Signer: spec.Signer, IssuerStyle: spec.IssuerStyle, Port: spec.Port, Vault: spec.Vault}
	f.AWS.ClientIDs = spec.AWS.ClientIDs
	for _, role := range spec.AWS.Roles {
		read := lab.AWSRole{Name: role.Name, MaxSessionDuration: role.MaxSessionDuration}
		if read.TrustPolicy, err = json.Marshal(role.TrustPolicy); err != nil {
			return File{}, fmt.Errorf("the trust policy of role %q: %w", role.Name, err)
		}
		if role.Policy != nil {
			if read.Policy, err = json.Marshal(role.Policy); err != nil {
				return File{}, fmt.Errorf("the policy of role %q: %w", role.Name, err)
			}
		}
		f.AWS.Roles = append(f.AWS.Roles, read)
	}
	f.Generic.Audiences = spec.Generic.Audiences
	for _, target := range spec.Generic.Targets {
		t := lab.GenericTarget{Name: target.Name}
		for _, trust := range target.Trust {
			statement := lab.GenericTrust{Cluster: trust.Cluster}
			for _, c := range trust.Conditions {
				statement.Conditions = append(statement.Conditions, sts.Condition{Operator: sts.Operator(c.Operator), Claim: c.Claim, Values: c.Values})
			}
			t.Trust = append(t.Trust, statement)
		}
		f.Generic.Targets = append(f.Generic.Targets, t)
	}
	return f, nil
}

// plain returns an error of the decoder in one line, without the Go types that
// it names.
func plain(err error) error {
	var wrong *yaml.TypeError
	if !errors.As(err, &wrong) {
		return err
	}
	var texts []string
	for _, text := range wrong.Errors {
		text, _, _ = strings.Cut(text, " in type ")
		texts = append(texts, text)
	}
	return errors.New(strings.Join(texts, "; "))
}
