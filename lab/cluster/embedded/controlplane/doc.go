// Package controlplane links etcd, kube-apiserver and kube-controller-manager
// and runs one of them as the current process. Kubernetes' servers keep much of
// their state in process globals, so each has a process of its own: the same
// binary, executed again by package embedded.
//
// This is the only package that links Kubernetes' servers. The node agent, which
// is none of them, is run by the same command.
package controlplane
