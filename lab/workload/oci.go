package workload

import (
	"context"

	"github.com/oidclab/oidclab/lab"
	"github.com/oidclab/oidclab/lab/problem"
)

// oci is both ways to an identity at Oracle's cloud: the token exchange, which
// its SDK can only be told of in code, and so by variables of ours; and that of
// the pods of OKE, if the lab has it.
func (w Workload) oci(ctx context.Context) ([]Variable, error) {
	variables, err := w.ociIdentity(ctx)
	if err != nil {
		return nil, err
	}
	variables = append(variables, Variable{"OIDCLAB_OCI_URL", w.Info.OCI.URL}) // of identity domain and object storage
	if w.Info.OCI.PodHost != "" {
		pod, err := w.okePod(ctx)
		if err != nil {
			return nil, err
		}
		variables = append(variables, pod...)
	}
	return append(variables, w.roots()...), nil
}

// ociIdentity is what an application tells the SDK about itself.
func (w Workload) ociIdentity(ctx context.Context) ([]Variable, error) {
	file, err := w.Files.Token(ctx, w.Info.OCI.Audience)
	return []Variable{
		{"OIDCLAB_OCI_TOKEN_FILE", file},
		{"OIDCLAB_OCI_CLIENT_ID", w.Info.OCI.Clients[w.Cluster.ID].ID},
		{"OIDCLAB_OCI_CLIENT_SECRET_FILE", w.Info.OCI.Clients[w.Cluster.ID].SecretFile},
	}, err
}

// okePod is how the SDK finds the identity of a pod of OKE: by Oracle's own
// variables, but for the token, which is like the one that every pod has.
func (w Workload) okePod(ctx context.Context) ([]Variable, error) {
	file, err := w.Files.Token(ctx, w.Info.OCI.PodAudiences[w.Cluster.ID])
	return []Variable{
		{"OCI_RESOURCE_PRINCIPAL_VERSION", "2.2"},
		{"OCI_RESOURCE_PRINCIPAL_REGION", w.Info.OCI.Region},
		{"OCI_KUBERNETES_SERVICE_ACCOUNT_CERT_PATH", w.Files.CA()},
		{"OIDCLAB_OCI_POD_TOKEN_FILE", file}, // for DefaultServiceAccountTokenProvider.WithSaTokenPath
		// The SDK turns to port 12250 of the host of the Kubernetes API.
		{"KUBERNETES_SERVICE_HOST", w.Info.OCI.PodHost},
	}, err
}

// WithoutOKE returns the problem of a lab that has no endpoint for pods of OKE.
func WithoutOKE(info lab.Info) error {
	return problem.New(problem.EnvironmentMissing, "oidclab down the lab that has the port, then up", "lab %s has no endpoint for pods of OKE: %s", info.Name, info.Absent[lab.OKEPods])
}
