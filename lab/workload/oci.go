package workload

import "context"

// oci is both ways to an identity at Oracle's cloud: the token exchange, which
// its SDK can only be told of in code, and so by variables of ours; and that of
// the pods of OKE, by Oracle's own variables, if the lab has it.
func (w Workload) oci(ctx context.Context) ([]Variable, error) {
	variables, err := w.ociIdentity(ctx)
	if err != nil {
		return nil, err
	}
	info := w.Info.OCI
	variables = append(variables, Variable{"OIDCLAB_OCI_URL", info.URL}) // of identity domain and object storage
	if info.PodHost != "" {
		file, err := w.Files.Token(ctx, info.PodAudiences[w.Cluster.ID])
		if err != nil {
			return nil, err
		}
		variables = append(variables,
			Variable{"OCI_RESOURCE_PRINCIPAL_VERSION", "2.2"},
			Variable{"OCI_RESOURCE_PRINCIPAL_REGION", info.Region},
			Variable{"OCI_KUBERNETES_SERVICE_ACCOUNT_CERT_PATH", w.Files.CA()},
			Variable{"OIDCLAB_OCI_POD_TOKEN_FILE", file}, // for DefaultServiceAccountTokenProvider.WithSaTokenPath
			// The SDK turns to port 12250 of the host of the Kubernetes API.
			Variable{"KUBERNETES_SERVICE_HOST", info.PodHost},
		)
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
