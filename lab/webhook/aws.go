package webhook

import (
	"encoding/csv"
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// What AWS's webhook heeds.
const (
	AWSRoleARN              = awsPrefix + "role-arn"               // annotation of the service account; enables it
	AWSAudience             = awsPrefix + "audience"               // of the service account
	AWSSTSRegionalEndpoints = awsPrefix + "sts-regional-endpoints" // of the service account
	AWSExpiration           = awsPrefix + "token-expiration"       // of pod or service account; the pod's wins
	AWSSkipContainers       = awsPrefix + "skip-containers"        // of the pod: a line of CSV

	// AWSSkip is a label of pods. The API server skips those that have it, with
	// any value. There is none for namespaces.
	AWSSkip = awsPrefix + "skip-pod-identity-webhook"

	awsPrefix    = "eks.amazonaws.com/"
	awsVolume    = "aws-iam-token"
	awsMountPath = "/var/run/secrets/eks.amazonaws.com/serviceaccount"
	awsTokenPath = "token"
	awsAudience  = "sts.amazonaws.com"
)

// The life of a token in seconds. What an annotation says is raised to the
// minimum, and ignored if it is not a number.
const (
	awsExpiration    = 86400
	awsMinExpiration = 600
)

// AWSSettings are flags of AWS's webhook.
type AWSSettings struct {
	Region      string // --aws-default-region; empty means that none is injected
	RegionalSTS bool   // --sts-regional-endpoint
}

// AWS returns the profile of amazon-eks-pod-identity-webhook.
func AWS(settings AWSSettings) Profile {
	return Profile{
		Name:               "aws",
		Webhook:            "pod-identity-webhook.amazonaws.com",
		Path:               "/mutate",
		ReviewVersions:     []string{"v1beta1"},
		FailurePolicy:      admissionregistrationv1.Ignore,
		MatchPolicy:        admissionregistrationv1.Equivalent,
		ReinvocationPolicy: admissionregistrationv1.NeverReinvocationPolicy,
		ObjectSelector:     metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{doesNotExist(AWSSkip)}},
		TokenFile:          path.Join(awsMountPath, awsTokenPath),
		Audience:           awsAudience,
		conflicts:          keepExisting,
		withoutAccount: func(account string, lookup error) error {
			if apierrors.IsNotFound(lookup) {
				return nil
			}
			return fmt.Errorf("service account %s: %w", account, lookup)
		},
		want: settings.want,
	}
}

func (s AWSSettings) want(pod *corev1.Pod, account *corev1.ServiceAccount) (*injection, error) {
	role := account.Annotations[AWSRoleARN]
	if role == "" {
		return nil, nil
	}
	audience, ok := account.Annotations[AWSAudience]
	if !ok {
		audience = awsAudience
	}
	regional, err := strconv.ParseBool(account.Annotations[AWSSTSRegionalEndpoints])
	if err != nil {
		regional = s.RegionalSTS
	}
	expiration := awsExpirationOf(pod.Annotations, awsExpirationOf(account.Annotations, awsExpiration))

	identity := []corev1.EnvVar{{Name: "AWS_ROLE_ARN", Value: role}, {Name: "AWS_WEB_IDENTITY_TOKEN_FILE", Value: path.Join(awsMountPath, awsTokenPath)}}
	region := []corev1.EnvVar{{Name: "AWS_DEFAULT_REGION", Value: s.Region}, {Name: "AWS_REGION", Value: s.Region}}
	endpoints := []corev1.EnvVar{{Name: "AWS_STS_REGIONAL_ENDPOINTS", Value: "regional"}}
	var env [][]corev1.EnvVar
	if regional {
		env = append(env, endpoints)
	}
	if s.Region != "" {
		env = append(env, region)
	}
	env = append(env, identity)
	skipped := awsSkipped(pod)
	return &injection{
		volume:    tokenVolume(awsVolume, awsTokenPath, audience, expiration),
		mountPath: awsMountPath,
		env:       env,
		skip: func(c *corev1.Container) bool {
			complete := has(c, identity) && has(c, region) && has(c, endpoints)
			return complete || slices.Contains(skipped, c.Name)
		},
	}, nil
}

// awsExpirationOf returns what annotations say, in seconds.
func awsExpirationOf(annotations map[string]string, otherwise int64) int64 {
	seconds, err := strconv.ParseInt(annotations[AWSExpiration], 10, 64)
	if err != nil {
		return otherwise
	}
	return max(seconds, awsMinExpiration)
}

// awsSkipped returns the names of the containers that the pod wants to be left
// alone. What is not CSV names none.
func awsSkipped(pod *corev1.Pod) []string {
	names, err := csv.NewReader(strings.NewReader(pod.Annotations[AWSSkipContainers])).Read()
	if err != nil {
		return nil
	}
	return names
}
