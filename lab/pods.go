package lab

import (
	"github.com/oidclab/oidclab/fixtures/manifests"
	"github.com/oidclab/oidclab/lab/images"
	"github.com/oidclab/oidclab/lab/nodeagent/sandbox"
)

// Pods is what the lab lacks if Info.Absent says so under this name: nodes that
// run pods of the workload image.
const Pods = "pods"

// describePods says whether pods of the workload image run, and under which name
// the nodes know it.
func (l *Lab) describePods() {
	switch l.spec.Engine {
	case Embedded:
		if err := sandbox.Supported(); err != nil {
			l.info.Absent[Pods] = err.Error()
			return
		}
		l.info.WorkloadImage = manifests.Image
	case Kind:
		ref, err := images.WorkloadRef(l.spec.Command[0])
		if err != nil {
			l.info.Absent[Pods] = err.Error()
			return
		}
		l.info.WorkloadImage = ref
	}
}
