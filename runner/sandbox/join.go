package sandbox

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"kiln.build/runner/sandbox/launch"
)

// A user namespace can be joined only by a process with a single thread, and
// every process of a Go program has several once its runtime is up. So the
// process that joins is forked without package syscall's help and makes
// nothing but system calls until it executes the init: memory must not be
// allocated, no stack grown, no lock taken. The three functions of the
// runtime are those that package syscall forks with; they are on the list of
// names that stay open to others (go.dev/issue/67401).

//go:linkname beforeFork syscall.runtime_BeforeFork
func beforeFork()

//go:linkname afterFork syscall.runtime_AfterFork
func afterFork()

//go:linkname afterForkInChild syscall.runtime_AfterForkInChild
func afterForkInChild()

// joiner is what the forked process works with, made before the fork.
type joiner struct {
	pidfd   int
	flags   uintptr // namespaces to join
	program int
	report  int // pipe: result goes there
	clone   cloneArgs
	files   []int
	argv    []*byte
	envv    []*byte
	empty   *byte
	result  [2]int64
}

// cloneArgs are those of clone3(2), in the form of Linux 5.7.
type cloneArgs struct {
	flags, pidfd, childTID, parentTID, exitSignal, stack, stackSize, tls, setTID, setTIDSize, cgroup uint64
}

// joinNamespaces are those that an exec enters.
var joinNamespaces = []struct {
	flag int
	name string
}{
	{unix.CLONE_NEWUSER, "user"}, {unix.CLONE_NEWNS, "mnt"}, {unix.CLONE_NEWPID, "pid"}, {unix.CLONE_NEWNET, "net"},
	{unix.CLONE_NEWIPC, "ipc"}, {unix.CLONE_NEWUTS, "uts"}, {unix.CLONE_NEWCGROUP, "cgroup"},
}

// otherNamespaces are the flags of the namespaces that a process does not
// share with this one. One that it shares must not be joined: from the inside
// of a user namespace the kernel allows nobody to join the machine's own.
func otherNamespaces(pid int) (flags int, err error) {
	for _, ns := range joinNamespaces {
		var a, b unix.Stat_t
		if err := unix.Stat("/proc/self/ns/"+ns.name, &a); err != nil {
			return 0, err
		}
		if err := unix.Stat("/proc/"+strconv.Itoa(pid)+"/ns/"+ns.name, &b); err != nil {
			return 0, err
		}
		if a.Dev != b.Dev || a.Ino != b.Ino {
			flags |= ns.flag
		}
	}
	return flags, nil
}

// join starts the init in these namespaces of the process pidfd, and in the
// control groups if placed says so.
func join(pidfd, flags int, files []*os.File, g groups) (pid int, placed bool, err error) {
	program, err := initFile()
	if err != nil {
		return 0, false, err
	}
	var pipe [2]int
	if err := unix.Pipe2(pipe[:], unix.O_CLOEXEC); err != nil {
		return 0, false, fmt.Errorf("join the sandbox: %w", err)
	}
	defer unix.Close(pipe[0])
	j := &joiner{pidfd: pidfd, flags: uintptr(flags), program: int(program.Fd()), report: pipe[1]}
	for _, f := range files {
		j.files = append(j.files, int(f.Fd()))
	}
	// Neither has a NUL byte.
	j.argv, _ = syscall.SlicePtrFromStrings([]string{launch.Name})
	j.envv, _ = syscall.SlicePtrFromStrings(initEnv)
	j.empty, _ = syscall.BytePtrFromString("")
	j.clone.exitSignal = uint64(unix.SIGCHLD)
	if g.V2 != "" {
		dir, err := os.Open(g.V2)
		if err != nil {
			return 0, false, fmt.Errorf("open control group: %w", err)
		}
		defer dir.Close()
		j.clone.flags, j.clone.cgroup = unix.CLONE_INTO_CGROUP, uint64(dir.Fd())
	}
	var helper uintptr
	var errno syscall.Errno
	var left error
	onForkThread(func() {
		if leave, err := g.Enter(); err == nil {
			placed = true
			defer func() { left = leave() }()
		}
		syscall.ForkLock.Lock()
		defer syscall.ForkLock.Unlock()
		if helper, errno = j.fork(); errno != 0 && g.V2 != "" {
			// Not allowed, or not known here: then it is moved.
			placed, j.clone.flags, j.clone.cgroup = false, 0, 0
			helper, errno = j.fork()
		}
	})
	unix.Close(pipe[1])
	runtime.KeepAlive(files)
	if errno != 0 {
		return 0, false, errors.Join(fmt.Errorf("join the sandbox: fork: %w", errno), left)
	}
	pid, err = readResult(pipe[0])
	if _, _, werr := reap(int(helper)); err == nil && werr != nil {
		err = fmt.Errorf("join the sandbox: %w", werr)
	}
	if err == nil && left != nil {
		_ = unix.Kill(pid, unix.SIGKILL)
		_, _, _ = reap(pid)
		err = fmt.Errorf("leave the sandbox's control groups: %w", left)
	}
	return pid, placed, err
}

// The steps of a joiner, for messages.
var joinSteps = []string{"", "hide from the sandbox", "join the namespaces", "clone into them", "pass descriptors", "execute the init", "become root in it"}

// readResult reads {0, pid} and {step, errno}, in any order, up to the end. A
// child that could not execute the init is reaped: unreaped it would keep the
// sandbox from ending.
func readResult(fd int) (int, error) {
	var pid int
	var failed error
	for {
		var r [2]int64
		n, err := unix.Read(fd, unsafe.Slice((*byte)(unsafe.Pointer(&r)), unsafe.Sizeof(r)))
		switch {
		case err == unix.EINTR:
		case err != nil:
			return 0, fmt.Errorf("join the sandbox: %w", err)
		case n == 0 && failed != nil:
			if pid != 0 {
				reap(pid)
			}
			return 0, failed
		case n == 0 && pid == 0:
			return 0, errors.New("join the sandbox: the helper was killed")
		case n == 0:
			return pid, nil
		case r[0] == 0:
			pid = int(r[1])
		default:
			failed = fmt.Errorf("join the sandbox: %s: %w", joinSteps[r[0]], syscall.Errno(r[1]))
		}
	}
}

// fork returns in the parent only, with the helper's pid.
//
//go:norace
//go:nosplit
//go:noinline
func (j *joiner) fork() (uintptr, syscall.Errno) {
	beforeFork()
	var pid uintptr
	var errno syscall.Errno
	if j.clone.flags != 0 {
		pid, _, errno = syscall.RawSyscall6(unix.SYS_CLONE3, uintptr(unsafe.Pointer(&j.clone)), unsafe.Sizeof(j.clone), 0, 0, 0, 0)
	} else {
		pid, _, errno = syscall.RawSyscall6(syscall.SYS_CLONE, uintptr(unix.SIGCHLD), 0, 0, 0, 0, 0)
	}
	if errno != 0 || pid != 0 {
		afterFork()
		return pid, errno
	}
	afterForkInChild()
	j.child()
	return 0, 0
}

// child joins the namespaces and clones, since a joined PID namespace is for
// children only. The clone is a child of our parent, which waits for it.
//
//go:norace
//go:nosplit
//go:noinline
func (j *joiner) child() {
	// Before the sandbox can see this process: else it could be traced, and
	// through it the host reached (CVE-2016-9962).
	_, _, e := syscall.RawSyscall6(syscall.SYS_PRCTL, unix.PR_SET_DUMPABLE, 0, 0, 0, 0, 0)
	if e != 0 {
		j.die(1, e)
	}
	if e = j.place(); e != 0 {
		j.die(4, e)
	}
	_, _, e = syscall.RawSyscall(unix.SYS_SETNS, uintptr(j.pidfd), j.flags, 0)
	if e != 0 {
		j.die(2, e)
	}
	if j.flags&unix.CLONE_NEWUSER != 0 {
		// An id that is not mapped would lose its capabilities at the exec.
		_, _, e = syscall.RawSyscall(unix.SYS_SETRESGID, 0, 0, 0)
		if e == 0 {
			_, _, e = syscall.RawSyscall(unix.SYS_SETRESUID, 0, 0, 0)
		}
		if e != 0 {
			j.die(6, e)
		}
	}
	pid, _, e := syscall.RawSyscall6(syscall.SYS_CLONE, unix.CLONE_PARENT, 0, 0, 0, 0, 0)
	if e != 0 {
		j.die(3, e)
	}
	if pid == 0 {
		_, _, e = syscall.RawSyscall6(unix.SYS_EXECVEAT, uintptr(j.program), uintptr(unsafe.Pointer(j.empty)),
			uintptr(unsafe.Pointer(&j.argv[0])), uintptr(unsafe.Pointer(&j.envv[0])), unix.AT_EMPTY_PATH, 0)
		j.die(5, e)
	}
	j.tell(0, int64(pid))
	for {
		syscall.RawSyscall(syscall.SYS_EXIT_GROUP, 0, 0, 0)
	}
}

// place puts the files at descriptors 0, 1, 2 and so on, as package syscall
// does: out of the way first, then each to its number.
//
//go:norace
//go:nosplit
//go:noinline
func (j *joiner) place() syscall.Errno {
	n := uintptr(len(j.files))
	for _, p := range [...]*int{&j.pidfd, &j.program, &j.report} {
		if uintptr(*p) >= n {
			continue
		}
		fd, _, e := syscall.RawSyscall(syscall.SYS_FCNTL, uintptr(*p), unix.F_DUPFD_CLOEXEC, n)
		if e != 0 {
			return e
		}
		*p = int(fd)
	}
	for i := range j.files {
		fd, _, e := syscall.RawSyscall(syscall.SYS_FCNTL, uintptr(j.files[i]), unix.F_DUPFD_CLOEXEC, n)
		if e != 0 {
			return e
		}
		j.files[i] = int(fd)
	}
	for i := range j.files {
		if _, _, e := syscall.RawSyscall(syscall.SYS_DUP3, uintptr(j.files[i]), uintptr(i), 0); e != 0 {
			return e
		}
	}
	return 0
}

//go:norace
//go:nosplit
//go:noinline
func (j *joiner) tell(a, b int64) {
	j.result[0], j.result[1] = a, b
	syscall.RawSyscall(syscall.SYS_WRITE, uintptr(j.report), uintptr(unsafe.Pointer(&j.result)), unsafe.Sizeof(j.result))
}

//go:norace
//go:nosplit
//go:noinline
func (j *joiner) die(step int64, e syscall.Errno) {
	j.tell(step, int64(e))
	for {
		syscall.RawSyscall(syscall.SYS_EXIT_GROUP, 1, 0, 0)
	}
}
