package workload

import (
	"context"
	"path"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/oidclab/oidclab/fixtures"
	"github.com/oidclab/oidclab/fixtures/manifests"
	"github.com/oidclab/oidclab/lab"
	"github.com/oidclab/oidclab/lab/problem"
)

// Kinds are the kinds of manifests.
func Kinds() []string { return []string{"deployment", "job", "cronjob"} }

// Parties are the relying parties that manifests are for: those that
// `oidclab probe` knows.
func Parties() []string { return []string{"aws", "gcp", "azure", "stackit", "oci", "vault", "generic"} }

// Manifest is a workload whose pod exchanges its token at a relying party.
type Manifest struct {
	Kind           string // one of Kinds
	Party          string // one of Parties
	Namespace      string
	ServiceAccount string
}

// Objects returns the workload, and before it the ConfigMaps that it needs. A
// kind or a party that there is not is a [problem.Usage].
func (m Manifest) Objects(ctx context.Context, info lab.Info, cluster lab.ClusterInfo) ([]runtime.Object, error) {
	if !slices.Contains(Parties(), m.Party) {
		return nil, m.unknown("for %q, but for %s", m.Party, Parties())
	}
	files := &podFiles{content: map[string]string{}}
	variables, err := m.environment(ctx, Workload{Info: info, Cluster: cluster, Files: files})
	if err != nil {
		return nil, err
	}
	environment := map[string]string{}
	for _, v := range variables {
		if v.Value != "" {
			environment[v.Name] = v.Value
		}
	}
	workload, err := m.workload(info, files.audience)
	if err != nil {
		return nil, err
	}
	objects := []runtime.Object{m.configMap(m.environmentConfigMap(), environment)}
	if len(files.content) > 0 {
		objects = append(objects, m.configMap(m.filesConfigMap(), files.content))
	}
	return append(objects, workload), nil
}

// environment is that of any workload, but at oci that of pods of OKE alone: the
// token exchange needs a client's secret.
func (m Manifest) environment(ctx context.Context, w Workload) ([]Variable, error) {
	if m.Party != "oci" {
		return w.Environment(ctx, m.Party)
	}
	if w.Info.OCI.PodHost == "" {
		return nil, WithoutOKE(w.Info)
	}
	variables, err := w.okePod(ctx)
	return append(variables, w.roots()...), err
}

func (m Manifest) name() string { return "probe-" + m.Party }

func (m Manifest) environmentConfigMap() string { return "oidclab-" + m.Party }

func (m Manifest) filesConfigMap() string { return m.environmentConfigMap() + "-files" }

func (m Manifest) configMap(name string, data map[string]string) *corev1.ConfigMap {
	return &corev1.ConfigMap{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "ConfigMap"},
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: m.Namespace},
		Data:       data,
	}
}

func (m Manifest) workload(info lab.Info, audience string) (runtime.Object, error) {
	switch m.Kind {
	case "deployment":
		deployment, err := manifests.Deployment()
		if err != nil {
			return nil, err
		}
		m.describe(&deployment.ObjectMeta)
		deployment.Spec.Selector.MatchLabels[nameLabel] = m.name()
		m.fill(&deployment.Spec.Template, info, audience)
		return deployment, nil
	case "job":
		job, err := manifests.Job()
		if err != nil {
			return nil, err
		}
		m.describe(&job.ObjectMeta)
		m.fill(&job.Spec.Template, info, audience)
		return job, nil
	case "cronjob":
		cronJob, err := manifests.CronJob()
		if err != nil {
			return nil, err
		}
		m.describe(&cronJob.ObjectMeta)
		m.fill(&cronJob.Spec.JobTemplate.Spec.Template, info, audience)
		return cronJob, nil
	}
	return nil, m.unknown("of a %q, but of %s", m.Kind, Kinds())
}

func (m Manifest) unknown(format, name string, known []string) error {
	return problem.New(problem.Usage, "oidclab manifests --help", "there is no manifest "+format, name, strings.Join(known, ", "))
}

const nameLabel = "app.kubernetes.io/name"

func (m Manifest) describe(meta *metav1.ObjectMeta) {
	meta.Name, meta.Namespace = m.name(), m.Namespace
}

// fill makes the pod one of this party and lab.
func (m Manifest) fill(pod *corev1.PodTemplateSpec, info lab.Info, audience string) {
	pod.Labels[nameLabel] = m.name()
	pod.Spec.ServiceAccountName = m.ServiceAccount
	container := &pod.Spec.Containers[0]
	if info.WorkloadImage != "" {
		container.Image = info.WorkloadImage
	}
	container.Args[slices.Index(container.Args, "generic")] = m.Party
	container.Args = append(container.Args, probeFlags(info, m.Party)...)
	container.EnvFrom[0].ConfigMapRef.Name = m.environmentConfigMap()
	for _, volume := range pod.Spec.Volumes {
		for _, source := range volume.Projected.Sources {
			switch {
			case source.ServiceAccountToken != nil:
				source.ServiceAccountToken.Audience = audience
			case source.ConfigMap.Optional != nil:
				source.ConfigMap.Name = m.filesConfigMap()
			}
		}
	}
}

// probeFlags are those with which a probe reads the lab's resource of a party.
func probeFlags(info lab.Info, party string) []string {
	switch party {
	case "aws":
		return []string{"--resource=s3://" + info.AWS.Bucket + "/" + info.AWS.Object}
	case "gcp":
		return []string{"--resource=" + info.GCP.URL + "/storage/v1/b/" + info.GCP.Bucket + "/o/" + info.GCP.Object + "?alt=media"}
	case "azure":
		return []string{"--resource=" + info.Azure.Authority + "/" + info.Azure.Container + "/" + info.Azure.Blob, "--disable-instance-discovery"}
	case "stackit":
		return []string{"--resource=" + info.STACKIT.URL + "/v2/projects/" + info.STACKIT.Project}
	case "oci":
		return []string{"--resource=" + info.OCI.URL + "/n/" + info.OCI.Namespace + "/b/" + info.OCI.Bucket + "/o/" + info.OCI.Object}
	case "vault":
		return []string{"--resource=" + info.Vault.Secret}
	}
	return nil
}

// podFiles are the files of a pod of the manifests.
type podFiles struct {
	audience string            // of the token: that of the first who asks
	content  map[string]string // by name
}

func (f *podFiles) CA() string { return path.Join(manifests.FilesPath, fixtures.CAKey) }

func (f *podFiles) Token(_ context.Context, audience string) (string, error) {
	if f.audience == "" {
		f.audience = audience
	}
	return manifests.TokenPath, nil
}

func (f *podFiles) Config(_ context.Context, _, name string, content []byte) (string, error) {
	f.content[name] = string(content)
	return path.Join(manifests.FilesPath, name), nil
}

func (f *podFiles) Scratch(context.Context, string, string) (string, error) { return "", nil }
