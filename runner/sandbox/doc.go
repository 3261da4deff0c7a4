// Package sandbox runs one process in namespaces of its own, from a plain
// [Spec]: the sandbox behind RUN and behind containers. It knows nothing of
// images, layers or builds.
//
// [Start] makes a sandbox, [Exec] runs another command in one, [Process] is
// either. Sub-packages: launch is the inside of the start, init its small
// program, seccomp compiles system call filters, cgroup handles control
// groups. A program that uses the package calls [MaybeInit] first in main,
// and so do its tests in TestMain.
//
// # How a sandbox starts
//
// The parent makes the control groups with their limits, clones a process
// into new namespaces and the version 2 group, from a thread that is in the
// version 1 groups for that long (moving the process into any of them
// afterwards costs a grace period of RCU), and has it execute the init: a
// sealed memfd with a program that depends on golang.org/x/sys alone. Then it
// sends the configuration through a socket. The filter has been
// compiled by then, once for all sandboxes with equal rights. The init makes
// the sandbox and becomes the command; the socket closes with the exec, which
// tells the parent that all went well. Errors come back through it with the
// name of the step.
//
// # Order, and what depends on it
//
// Numbers are those of the steps in launch/launch.go; the init has all rights
// of the caller until 9, and no process of the sandbox exists before 13.
//
//  1. Hide (not dumpable), before anything else: whoever could trace the init
//     would have its descriptors and rights. Only with Exec is there anybody.
//  2. Read the configuration. The parent sends it after the control groups
//     are joined, so
//  3. the control group namespace, made now, has these groups as its roots;
//     made with the clone it would show the caller's.
//  4. Open all that is of the host, as detached mounts: root, binds, new file
//     systems, device nodes in a user namespace, the mask. Paths of the host
//     mean nothing later; and the kernel grants a new procfs or sysfs in a
//     user namespace only while a whole one is in sight.
//  5. Write sysctls through the new procfs, which is attached nowhere yet: no
//     mount of the sandbox can stand in the way of the write. Register
//     emulators while their paths still mean something.
//  6. Make all mounts private, attach the root, pivot_root, detach the old
//     root. From here on no path leads to the host, and what is resolved is
//     resolved by openat2 in the root, without magic links.
//  7. Attach the mounts to descriptors of their mount points, the tmpfs of
//     /dev populated before. Then make what is read-only so, then mask: after
//     the user's mounts, so that none of them lies on a mask.
//  8. New session and session keyring; terminal and null device by
//     descriptor; wait for the parent, which has attached the network.
//  9. Drop the bounding set (needs CAP_SETPCAP), set groups, group and user
//     (CAP_SETGID, CAP_SETUID) with the capabilities kept over that, set the
//     parent-death signal again, which the change of ids has cleared.
//  10. Enter the working directory, as the command's user; check that it is
//     inside.
//  11. Mark all descriptors close-on-exec once more. Load the filter before the capabilities go, since without no_new_privs
//     that takes CAP_SYS_ADMIN; with no_new_privs, load it after.
//  12. Cut the capabilities to the command's, clear and raise the ambient ones.
//  13. Look the command up as its user, wait at the FIFO of Spec.Hold where
//     there is one, execute.
//
// # Ends
//
// The command is process 1 of its PID namespace (or the init is, with
// Spec.Init, executed anew so that all its threads have the command's rights
// only), so the kernel kills everything in there when it ends. Wait removes
// the control groups, killing what is in them.
//
// A sandbox that is not Detached dies with its parent by the parent-death
// signal. That comes when the thread that cloned ends, so one thread, locked
// for the life of the process, clones all of them. A command that executes a
// setuid program as process 1, or clears the signal by prctl, evades it; its
// control group bears the parent's name and start time, and the next process
// that starts a sandbox kills and removes it.
//
// # Choices
//
// The init runs from a sealed memfd, and not from a read-only bind or overlay
// mount of the program, because a seal holds against everybody for ever and
// needs no mount. A program without an embedded init (plain go build) is
// copied into one once per process.
//
// Exec joins with a process forked without package syscall's help, since a
// user namespace can only be joined by a process of one thread: see join.go.
package sandbox
