package launch

import (
	"strconv"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// lookup finds the command as execvp does, with docker's words for what goes
// wrong.
func lookup(name, path string) (string, error) {
	const step = "start the command"
	refuse := func(code int, why string) error {
		return &failure{step: step, text: "exec: " + strconv.Quote(name) + ": " + why, code: code}
	}
	if strings.Contains(name, "/") {
		var st unix.Stat_t
		if err := unix.Stat(name, &st); err != nil {
			if absent(err) {
				return "", refuse(127, "stat "+name+": "+err.Error())
			}
			return "", refuse(126, "stat "+name+": "+err.Error())
		}
		if st.Mode&unix.S_IFMT == unix.S_IFDIR {
			return "", refuse(126, "is a directory")
		}
		if !executable(name) {
			return "", refuse(126, "permission denied")
		}
		return name, nil
	}
	denied := false
	for _, dir := range strings.Split(path, ":") {
		if dir == "" {
			dir = "."
		}
		p := dir + "/" + name
		var st unix.Stat_t
		if unix.Stat(p, &st) != nil || st.Mode&unix.S_IFMT == unix.S_IFDIR {
			continue
		}
		if executable(p) {
			return p, nil
		}
		denied = true
	}
	if denied {
		return "", refuse(126, "permission denied")
	}
	return "", refuse(127, "executable file not found in $PATH")
}

func executable(path string) bool {
	return unix.Faccessat(unix.AT_FDCWD, path, unix.X_OK, unix.AT_EACCESS) == nil
}

// exec becomes the command.
func (l *launch) exec() error {
	var path string
	for _, e := range l.Env {
		if p, ok := strings.CutPrefix(e, "PATH="); ok {
			path = p
		}
	}
	// As the command's user, whom the modes on the way have to let pass.
	file, err := lookup(l.Args[0], path)
	if err != nil {
		return err
	}
	if err := l.hold(); err != nil {
		return err
	}
	resetSignals()
	if l.Init >= 0 {
		return l.execReaper(file)
	}
	if err := send(Message{Kind: KindExec}); err != nil && !l.held {
		return fail("tell the parent", "", err)
	}
	return execError(file, unix.Exec(file, l.Args, l.Env))
}

// resetSignals has the command begin with each signal's default. Those that
// have a handler here get it by execve anyway; but the Go runtime leaves
// SIGHUP and SIGINT ignored, and the two that are the C library's own, if the
// caller ignored them: a background job of a shell without job control, nohup,
// or make (32 and 33). A seccomp profile that forbids the call leaves them so.
func resetSignals() {
	var byDefault [4]uint64         // struct sigaction: SIG_DFL, no flags, an empty mask
	for s := range lastSignal + 1 { // it refuses 0, SIGKILL and SIGSTOP
		_, _, _ = unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(s), uintptr(unsafe.Pointer(&byDefault)), 0, 8, 0, 0)
	}
}

// lastSignal is the kernel's _NSIG on the architectures that there are filters
// for.
const lastSignal = 64

func execError(file string, err error) error {
	return &failure{step: "start the command", text: "exec " + file + ": " + err.Error(), code: 126}
}

// execReaper becomes process 1's init, which starts the command. It is this
// program again, so that every thread of it has the rights of the command
// and not just the one that gave them up. Descriptor Conn goes along, to say
// whether the command could be started; the file is the sealed memfd, of
// which the sandbox sees a read-only /proc/1/exe.
func (l *launch) execReaper(file string) error {
	if _, err := unix.FcntlInt(Conn, unix.F_SETFD, 0); err != nil {
		return fail("keep the connection", "", err)
	}
	args := append([]string{ReaperName, file}, l.Args...)
	argv, err := syscall.SlicePtrFromStrings(args)
	if err != nil {
		return fail("start the init", "", err)
	}
	envv, err := syscall.SlicePtrFromStrings(l.Env)
	if err != nil {
		return fail("start the init", "", err)
	}
	_, _, e := unix.RawSyscall6(unix.SYS_EXECVEAT, uintptr(l.Init), uintptr(bytePtr("")),
		uintptr(unsafe.Pointer(&argv[0])), uintptr(unsafe.Pointer(&envv[0])), unix.AT_EMPTY_PATH, 0)
	return fail("start the init", "", e)
}
