package launch

import (
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// prepared lets the parent, and then the hooks, see the namespaces before
// the root is made.
func (l *launch) prepared() error {
	if l.Prepare {
		if err := send(Message{Kind: KindNamespaces}); err != nil {
			return fail("tell the parent", "", err)
		}
		if err := l.ready(); err != nil {
			return err
		}
	}
	return l.hooks(l.CreateHooks)
}

// hold waits until the command is to be executed. Its rights are those of the
// command, so all it takes is to read.
func (l *launch) hold() error {
	if l.Hold < 0 {
		return nil
	}
	if err := send(Message{Kind: KindHeld}); err != nil {
		return fail("tell the parent", "", err)
	}
	l.held = true
	var b [1]byte
	for {
		n, err := unix.Read(l.Hold, b[:])
		if err == unix.EINTR {
			continue
		}
		if err == nil && n == 0 {
			err = unix.EPIPE
		}
		if err != nil {
			return fail("wait for the start", "", err)
		}
		return l.hooks(l.StartHooks)
	}
}

func (l *launch) hooks(hooks []Hook) error {
	for i := range hooks {
		if err := l.hook(&hooks[i]); err != nil {
			return fail("run hook "+hooks[i].Path, "", err)
		}
	}
	return nil
}

// exit is the status of a hook that did not end well.
type exit int

func (e exit) Error() string { return "exit status " + strconv.Itoa(int(e)) }

// hook runs one hook, with the input on its standard input.
func (l *launch) hook(h *Hook) error {
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		return err
	}
	args := h.Args
	if len(args) == 0 {
		args = []string{h.Path}
	}
	pid, err := syscall.ForkExec(h.Path, args, &syscall.ProcAttr{Env: h.Env, Files: []uintptr{uintptr(p[0]), 2, 2}})
	unix.Close(p[0])
	if err != nil {
		unix.Close(p[1])
		return err
	}
	// It fits into the pipe; a hook need not read it.
	unix.Write(p[1], l.HookInput)
	unix.Close(p[1])
	if h.Timeout > 0 {
		if err := within(pid, h.Timeout); err != nil {
			unix.Kill(pid, unix.SIGKILL)
			unix.Wait4(pid, nil, 0, nil)
			return err
		}
	}
	for {
		var status unix.WaitStatus
		_, err := unix.Wait4(pid, &status, 0, nil)
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			return err
		case status.Signaled():
			return exit(128 + int(status.Signal()))
		case status.ExitStatus() != 0:
			return exit(status.ExitStatus())
		}
		return nil
	}
}

// within waits for a process to end, for some milliseconds.
func within(pid, ms int) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, ms)
		switch {
		case err == unix.EINTR:
		case err != nil:
			return err
		case n == 0:
			return unix.ETIMEDOUT
		default:
			return nil
		}
	}
}
