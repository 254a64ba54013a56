package nodeagent

import (
	"runtime"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/oidclab/oidclab/lab/nodeagent/sandbox"
)

// maxPods is kubelet's default.
const maxPods = 110

// describe returns the node. Its server of logs listens on port.
func (a *agent) describe(port int32) *corev1.Node {
	var system unix.Utsname
	_ = unix.Uname(&system) // does not fail
	capacity := corev1.ResourceList{
		corev1.ResourcePods: *resource.NewQuantity(maxPods, resource.DecimalSI),
		corev1.ResourceCPU:  *resource.NewQuantity(int64(runtime.NumCPU()), resource.DecimalSI),
	}
	var memory unix.Sysinfo_t
	if unix.Sysinfo(&memory) == nil {
		capacity[corev1.ResourceMemory] = *resource.NewQuantity(int64(memory.Totalram)*int64(memory.Unit), resource.BinarySI)
	}
	ready := corev1.NodeCondition{
		Type: corev1.NodeReady, Status: corev1.ConditionTrue, Reason: "NodeAgentReady", Message: "pods run as processes of this machine",
		LastTransitionTime: metav1.NewTime(time.Now()), LastHeartbeatTime: metav1.NewTime(time.Now()),
	}
	if err := sandbox.Supported(); err != nil {
		ready.Status, ready.Reason, ready.Message = corev1.ConditionFalse, "NamespacesRefused", err.Error()
	}
	return &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: a.node, Labels: map[string]string{
			corev1.LabelHostname: a.node, corev1.LabelOSStable: runtime.GOOS, corev1.LabelArchStable: runtime.GOARCH,
		}},
		Status: corev1.NodeStatus{
			Capacity: capacity, Allocatable: capacity, Conditions: []corev1.NodeCondition{ready},
			Addresses:       []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: nodeAddress}},
			DaemonEndpoints: corev1.NodeDaemonEndpoints{KubeletEndpoint: corev1.DaemonEndpoint{Port: port}},
			NodeInfo: corev1.NodeSystemInfo{
				OperatingSystem: runtime.GOOS, Architecture: runtime.GOARCH, KernelVersion: unix.ByteSliceToString(system.Release[:]),
				OSImage: "this machine", KubeletVersion: "oidclab", ContainerRuntimeVersion: "oidclab://processes",
			},
		},
	}
}
