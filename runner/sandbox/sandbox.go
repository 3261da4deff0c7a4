package sandbox

import (
	"context"
	"os"
	"time"

	"kiln.build/runner/sandbox/cgroup"
	"kiln.build/runner/sandbox/seccomp"
)

// Command is what runs in a sandbox and with which rights: the part of a
// [Spec] that a later [Exec] into a running sandbox has too.
type Command struct {
	// Args is the command and its arguments. A name without a slash is
	// looked up in the PATH of Env, inside the root.
	Args []string

	// Env is the whole environment, K=V. Nothing is added to it.
	Env []string

	// Cwd is the working directory inside the root; empty is "/". It has to
	// exist, and stays inside the root whatever links it contains.
	Cwd string

	// UID, GID and Groups are the numeric ids the command runs with. Groups
	// are the supplementary ones, GID not among them by itself.
	UID, GID int
	Groups   []int

	// Umask is the file mode creation mask; nil is 022.
	Umask *uint32

	// Capabilities are the names ("CAP_CHOWN") that the command may have:
	// its bounding set, and for UID 0 its permitted and effective sets. Nil
	// is [DefaultCapabilities]; an empty slice is none.
	Capabilities []string

	// Ambient are names of Capabilities that a command of another UID keeps.
	Ambient []string

	// Sets, if set, are the capabilities in place of Capabilities and
	// Ambient.
	Sets *CapabilitySets
	// Privileged gives what BuildKit's --security=insecure and docker's
	// --privileged give: all capabilities of the caller, no seccomp filter,
	// no masked or read-only paths, a writable /sys, every device. It is no
	// sandbox any more.
	Privileged bool

	// NoNewPrivs keeps setuid programs and file capabilities from giving
	// rights. In a user namespace these are rights in there only.
	NoNewPrivs bool

	// Seccomp is the system call filter; the zero value is Docker's default
	// profile for Capabilities.
	Seccomp Seccomp

	Rlimits     []Rlimit
	OOMScoreAdj *int

	// Stdin, Stdout and Stderr are given to the command as they are; the
	// caller keeps them and may close its copies once Start returns. Nil is
	// the sandbox's own /dev/null. Unused with a Terminal.
	Stdin, Stdout, Stderr *os.File

	// Terminal gives the command a pseudo terminal made inside the sandbox's
	// own devpts; [Process.Terminal] is its master side.
	Terminal *Size
}

// Spec describes a sandbox and the command in it. The zero value of each
// field is what Docker does for a container, so Root (or RootPath) and Args
// are all that has to be set.
type Spec struct {
	Command

	// Runtime, if set, is the path of an OCI runtime, such as runc, that runs
	// the sandbox in place of this package. Prepare, hooks, Hold and Formats
	// are not for it, and it does not end with its parent: the next process
	// that starts a sandbox ends what was left.
	Runtime string

	// Root is a detached mount (fsmount, open_tree) that becomes the root
	// file system. The mount moves into the sandbox and ends with it; the
	// caller closes its descriptor after Start. Alternatively RootPath names
	// a directory, of which a private clone is made (with what is mounted
	// below it).
	Root     *os.File
	RootPath string

	// ReadonlyRoot makes the root mount read-only. Mount points that are
	// missing are created before that.
	ReadonlyRoot bool

	// Mounts come in this order, after the default ones: proc, sysfs, a
	// tmpfs on /dev with devpts, shm and mqueue, and cgroup. A default mount
	// whose target is among Mounts is left out. Missing mount points are
	// created: see [Process.Created].
	Mounts []Mount

	// NoDefaultMounts leaves the default mounts out: Mounts has all.
	NoDefaultMounts bool

	Hostname   string // empty keeps the caller's
	Domainname string

	// Network, IPC, UTS, PID, Cgroup and Mount are new namespaces unless they
	// say otherwise. A new network namespace has only its loopback, up.
	// Without a new mount namespace the root is attached nowhere, as with
	// chroot(2), which a privileged command gets out of (Linux 6.15).
	Network Namespace
	IPC     Namespace
	UTS     Namespace
	PID     Namespace
	Cgroup  Namespace
	Mount   Namespace

	// UIDMap and GIDMap, if set, put the sandbox into a user namespace of
	// its own.
	UIDMap, GIDMap []IDMap

	// Formats are registered with the kernel for this sandbox alone, which
	// gets a user namespace for that, one that maps all ids to themselves
	// unless UIDMap says otherwise. It needs Linux 6.7.
	Formats []Format

	// MaskedPaths read as empty, ReadonlyPaths cannot be written; nil is
	// Docker's lists ([DefaultMaskedPaths], [DefaultReadonlyPaths]), an
	// empty slice is none. Unused where Privileged.
	MaskedPaths   []string
	ReadonlyPaths []string

	// Devices are added to the default ones (null, zero, full, random,
	// urandom, tty). The sandbox may open no others, where device cgroups
	// can be had.
	Devices []Device

	// Sysctls are written to /proc/sys; only names that belong to a
	// namespace of the sandbox's own are accepted.
	Sysctls map[string]string

	// ShmSize bounds /dev/shm in bytes; zero is 64 MiB.
	ShmSize int64

	Limits Limits
	// Settings are values of the control group that Limits has no field for.
	Settings []cgroup.Setting
	// AllowDevices, if set, are the devices that may be opened, in place of
	// the default ones and Devices; one of type 'a' is all of them.
	AllowDevices []cgroup.Device

	// CgroupName names the sandbox's control groups below Limits.Parent;
	// empty is a new name. Where groups cannot be made and Limits asks for
	// none the sandbox runs without them.
	CgroupName string

	// ControlGroups, if set, are those that are being made already.
	ControlGroups *Groups

	// Accounting puts the sandbox into every controller, so that
	// [cgroup.Group.Stats] has all figures, and not only into those that Limits
	// needs.
	Accounting bool

	// Init runs a minimal init as process 1, which starts the command,
	// forwards signals and reaps what is orphaned. Without it the command is
	// process 1. The command's soft limit on open files is then the hard one,
	// as for every Go program, unless Rlimits has it.
	Init bool

	// Detached lets the sandbox outlive its parent process; else it is
	// killed when that dies, however that dies.
	Detached bool

	// NetworkReady, if set, is called once the namespaces of process pid
	// exist and before anything runs in them, to attach interfaces. An
	// error ends the start.
	NetworkReady func(ctx context.Context, pid int) error

	// Prepare is as NetworkReady, but called when all namespaces are those of
	// the sandbox and before its root is made, for which it is waited: mounts
	// made on RootPath in the namespace of process pid become part of it.
	Prepare func(ctx context.Context, pid int) error
	// CreateHooks run after Prepare, in the sandbox's namespaces but before
	// the host's files are out of sight, with the caller's rights;
	// StartHooks right before the command, with its rights. Each reads what
	// HookInput returns.
	CreateHooks, StartHooks []Hook
	HookInput               func(pid int) []byte
	// Hold, if set, is a FIFO opened for reading and writing: Start returns
	// when all is done but to execute the command, and that happens once a
	// byte is read from it. The sandbox has to be Detached.
	Hold *os.File
	// Propagation is that of the root mount: "" is private; "slave" receives
	// later mounts of the host, "shared" and "unbindable" are as they say.
	Propagation string
}

// CapabilitySets are a process's sets of capabilities.
type CapabilitySets struct {
	Bounding, Permitted, Effective, Inheritable, Ambient []string
}

// Hook is a program to run at some point of a start. It has to end well and
// within Timeout, where that is not 0.
type Hook struct {
	Path      string
	Args, Env []string
	Timeout   time.Duration
}

// Namespace says which namespace a sandbox gets: a new one (the zero value),
// the host's, or one that is joined.
type Namespace struct {
	Host bool
	Join *os.File // such as /proc/PID/ns/net, opened; the caller keeps it
}

// IDMap maps Size ids from Inside on to those from Outside on.
type IDMap struct {
	Inside, Outside, Size int
}

// Mount is one mount of a sandbox. It has FD, or Source, or Type.
type Mount struct {
	// Target is the absolute path in the sandbox; links on the way resolve
	// inside the root. The mount point is a file where the source is not a
	// directory.
	Target string

	// FD is a detached mount (fsmount, open_tree) to be moved to Target. It
	// can be used once; the caller closes it after Start.
	FD *os.File
	// Part is what of FD is mounted, a path in it; empty is all of it.
	Part string

	// Source is a path of this machine to bind; its mounts below come along
	// where Recursive.
	Source    string
	Recursive bool

	// Type is "tmpfs", "proc", "sysfs", "devpts", "mqueue" or "cgroup".
	Type string
	// Name is what the list of mounts shows as the source of one with a Type;
	// empty is its Type.
	Name string

	ReadOnly, NoSuid, NoDev, NoExec  bool
	NoAtime, StrictAtime, NoDirAtime bool
	NoSymFollow                      bool

	// Propagation of a bind mount: "" is private, "slave" receives later
	// mounts of the host, "shared" keeps an FD's as it is.
	Propagation string

	// Of a tmpfs: Size bounds it, in bytes; Mode 0 is 01777; Options are
	// passed on, "key" or "key=value".
	Size     int64
	Mode     uint32
	UID, GID int
	Options  []string
}

// Device is a device node of a sandbox.
type Device struct {
	Path         string // in the sandbox, such as "/dev/fuse"
	Type         byte   // 'c', 'b', or 'p' for a FIFO; 0 is 'c'
	Major, Minor uint32
	Mode         uint32 // permission bits; zero is 0666
	UID, GID     int
	Access       string // what is allowed, of "rwm"; empty is all
}

// Format is a kind of programs that another program runs.
type Format struct {
	Name        string
	Magic, Mask []byte // of a program's first bytes; equally long
	Interpreter string // path of a static program of this machine
}

// Rlimit is a resource limit, Name as in "nofile".
type Rlimit struct {
	Name       string
	Soft, Hard uint64
}

// Size is that of a terminal, in characters.
type Size struct {
	Rows, Cols uint16
}

// Limits bound what a sandbox may use; zero values do not bound. Limits that
// cannot be had on this machine are an error.
type Limits = cgroup.Limits

// Group is a sandbox's control group.
type Group = cgroup.Group

// Seccomp is a choice of system call filter.
type Seccomp struct {
	// Unconfined is no filter.
	Unconfined bool

	// Profile is a profile in docker's JSON form; empty is the default one.
	Profile []byte
	// Rules, if set, are the profile.
	Rules *seccomp.Profile
}

// Status is how a sandbox's command ended.
type Status struct {
	// Code is the exit status; 128 + Signal where a signal ended it.
	Code   int
	Signal int // 0 if none

	// OOMKilled says that the kernel killed something in the sandbox for
	// want of memory.
	OOMKilled bool

	// What the command and all it waited for used.
	User, System time.Duration
	MaxRSS       int64 // bytes, of the largest process
}

// CommandError says that a sandbox could be made, but not its command be
// started. Code is 127 where it was not found and 126 where it may not or
// cannot be executed, as shells and docker have it.
type CommandError struct {
	Message string
	Code    int
}

func (e *CommandError) Error() string { return e.Message }
