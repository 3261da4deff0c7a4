// Package oci is the runtime-spec side of the sandbox: it runs OCI bundles on
// package sandbox, with the operations of a runtime's command line ([Runtime]
// has create, start, state, kill and delete).
//
// The container that Create leaves behind is the sandbox's init, which waits
// at a FIFO in the state folder; Start writes to that. No process stays
// beside it, so whoever adopts orphans is its parent.
//
// What the engine cannot do is an error and never ignored: a user namespace
// that is joined, time namespaces, AppArmor profiles and SELinux labels,
// Intel RDT, and id-mapped mounts.
package oci
