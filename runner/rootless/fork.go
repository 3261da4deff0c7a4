package rootless

import (
	"errors"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The child has to stop between making its user namespace and executing the
// program, for the parent to map its ids: executed before, it would have no
// id, and so no capabilities, in there. Package syscall can wait only for
// maps that it writes itself. So the fork is made here, with the runtime's
// own functions for it, and the child makes nothing but system calls.

//go:linkname beforeFork syscall.runtime_BeforeFork
func beforeFork()

//go:linkname afterFork syscall.runtime_AfterFork
func afterFork()

//go:linkname afterForkInChild syscall.runtime_AfterForkInChild
func afterForkInChild()

// child is this program in its namespace.
type child struct {
	pid             int
	report, proceed [2]int // pipes: child to parent, parent to child
	exe             *byte
	argv, envv      []*byte
	result          [2]int32
}

// The steps of the child.
var steps = []string{"", "make a user namespace", "make a mount namespace", "become root of the user namespace", "execute kiln again"}

func newChild() (*child, error) {
	c := &child{}
	err := errors.Join(unix.Pipe2(c.report[:], unix.O_CLOEXEC), unix.Pipe2(c.proceed[:], unix.O_CLOEXEC))
	if err == nil {
		c.exe, err = syscall.BytePtrFromString("/proc/self/exe")
	}
	if err == nil {
		c.argv, err = syscall.SlicePtrFromStrings(os.Args)
	}
	if err == nil {
		c.envv, err = syscall.SlicePtrFromStrings(append(os.Environ(), entered+"=1"))
	}
	if err != nil {
		return nil, fmt.Errorf("enter a user namespace: %w", err)
	}
	return c, nil
}

// start forks, and returns once the child executes the program.
func (c *child) start() error {
	// The child is killed when the thread that forked it ends: that of main,
	// which does not.
	runtime.LockOSThread()
	syscall.ForkLock.Lock()
	pid, errno := c.fork()
	syscall.ForkLock.Unlock()
	unix.Close(c.report[1])
	unix.Close(c.proceed[0])
	defer unix.Close(c.report[0])
	defer unix.Close(c.proceed[1])
	if errno != 0 {
		return fmt.Errorf("enter a user namespace: fork: %w", errno)
	}
	c.pid = int(pid)
	err := c.follow()
	if err != nil {
		unix.Kill(c.pid, unix.SIGKILL)
		unix.Wait4(c.pid, nil, 0, nil)
	}
	return err
}

// follow maps the child's ids when it asks for that, and waits for the exec.
func (c *child) follow() error {
	for {
		var r [2]int32
		n, err := unix.Read(c.report[0], unsafe.Slice((*byte)(unsafe.Pointer(&r)), unsafe.Sizeof(r)))
		switch {
		case err == unix.EINTR:
		case err != nil:
			return fmt.Errorf("enter a user namespace: %w", err)
		case n == 0:
			return nil // closed by the exec
		case r[0] != 0:
			return explain(steps[r[0]], syscall.Errno(r[1]))
		default:
			if err := mapIDs(c.pid); err != nil {
				return err
			}
			if _, err := unix.Write(c.proceed[1], []byte{1}); err != nil {
				return fmt.Errorf("enter a user namespace: %w", err)
			}
		}
	}
}

// run passes signals on until the child ends, and returns its exit code.
func (c *child) run() int {
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, unix.SIGTERM, unix.SIGHUP, unix.SIGUSR1, unix.SIGUSR2, unix.SIGINT, unix.SIGQUIT)
	// What a terminal sends goes to the child without us.
	tty, err := unix.Open("/dev/tty", unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NOCTTY, 0)
	terminal := err == nil
	if terminal {
		unix.Close(tty)
	}
	go func() {
		for s := range signals {
			if terminal && (s == unix.SIGINT || s == unix.SIGQUIT || s == unix.SIGHUP) {
				continue
			}
			unix.Kill(c.pid, s.(syscall.Signal))
		}
	}()
	for {
		var status unix.WaitStatus
		_, err := unix.Wait4(c.pid, &status, 0, nil)
		switch {
		case err == unix.EINTR:
		case err != nil:
			fmt.Fprintln(os.Stderr, "kiln: wait for the user namespace:", err)
			return 125
		case status.Signaled():
			return 128 + int(status.Signal())
		default:
			return status.ExitStatus()
		}
	}
}

//go:norace
//go:nosplit
//go:noinline
func (c *child) fork() (uintptr, syscall.Errno) {
	beforeFork()
	pid, _, errno := syscall.RawSyscall6(syscall.SYS_CLONE, uintptr(unix.SIGCHLD), 0, 0, 0, 0, 0)
	if errno != 0 || pid != 0 {
		afterFork()
		return pid, errno
	}
	afterForkInChild()
	c.main()
	return 0, 0
}

//go:norace
//go:nosplit
//go:noinline
func (c *child) main() {
	// One after the other, to know which is refused: AppArmor allows the
	// first and takes the rights to do anything with it.
	if _, _, e := syscall.RawSyscall(unix.SYS_UNSHARE, unix.CLONE_NEWUSER, 0, 0); e != 0 {
		c.die(1, e)
	}
	if _, _, e := syscall.RawSyscall(unix.SYS_UNSHARE, unix.CLONE_NEWNS, 0, 0); e != 0 {
		c.die(2, e)
	}
	// With its own end open it would wait for ever for a parent that was killed.
	syscall.RawSyscall(syscall.SYS_CLOSE, uintptr(c.proceed[1]), 0, 0)
	c.tell(0, 0)
	for {
		n, _, e := syscall.RawSyscall(syscall.SYS_READ, uintptr(c.proceed[0]), uintptr(unsafe.Pointer(&c.result)), 1)
		if e == unix.EINTR {
			continue
		}
		if n != 1 {
			c.exit()
		}
		break
	}
	_, _, e := syscall.RawSyscall(unix.SYS_SETRESGID, 0, 0, 0)
	if e == 0 {
		_, _, e = syscall.RawSyscall(unix.SYS_SETRESUID, 0, 0, 0)
	}
	if e == 0 {
		// Becoming another user has cleared it, if anybody had set it.
		_, _, e = syscall.RawSyscall6(syscall.SYS_PRCTL, unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0, 0)
	}
	if e != 0 {
		c.die(3, e)
	}
	_, _, e = syscall.RawSyscall(syscall.SYS_EXECVE, uintptr(unsafe.Pointer(c.exe)),
		uintptr(unsafe.Pointer(&c.argv[0])), uintptr(unsafe.Pointer(&c.envv[0])))
	c.die(4, e)
}

//go:norace
//go:nosplit
//go:noinline
func (c *child) tell(step int32, e syscall.Errno) {
	c.result[0], c.result[1] = step, int32(e)
	syscall.RawSyscall(syscall.SYS_WRITE, uintptr(c.report[1]), uintptr(unsafe.Pointer(&c.result)), unsafe.Sizeof(c.result))
}

//go:norace
//go:nosplit
//go:noinline
func (c *child) die(step int32, e syscall.Errno) {
	c.tell(step, e)
	c.exit()
}

//go:norace
//go:nosplit
//go:noinline
func (c *child) exit() {
	for {
		syscall.RawSyscall(syscall.SYS_EXIT_GROUP, 1, 0, 0)
	}
}
