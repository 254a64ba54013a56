// Package nodeagent is the node of an embedded cluster: it does for pods what
// kubelet and scheduler do, as far as the identity of workloads goes.
//
// A pod's containers are processes of this machine, each in mount, PID, UTS and
// IPC namespaces of its own: it sees the machine's files, but what it writes to
// the root file system is its own and gone when it ends. Volumes are kept as
// kubelet keeps them, by kubelet's own code where that can be had alone: token
// manager, atomic writer, payloads and ownership.
//
// It is no container runtime. There are no images: of every image only its name
// is known, and a container needs a command, which is a program of this machine.
// The exception is the workload image (see package manifests), which stands for
// the oidclab binary. Containers share the machine's network and its other file
// systems. There are no cgroups, probes, lifecycle hooks, seccomp profiles,
// restartable init containers, `kubectl exec` and port forwarding.
//
// The agent has the rights of a kubelet (user system:node:<name>) and, to bind
// pods to itself, those of the scheduler.
package nodeagent
