package launch

import (
	"os"
	"os/signal"
	"syscall"

	"golang.org/x/sys/unix"
)

// reap is process 1 of a sandbox with Init: it starts the command, passes
// signals on to it, reaps what is orphaned and ends as the command ends.
func reap() {
	unix.CloseOnExec(Conn)
	signals := make(chan os.Signal, 64)
	signal.Notify(signals)
	attr := &syscall.ProcAttr{Env: os.Environ(), Files: []uintptr{0, 1, 2}, Sys: &syscall.SysProcAttr{Setpgid: true}}
	if _, err := unix.IoctlGetTermios(0, unix.TCGETS); err == nil {
		attr.Sys.Foreground, attr.Sys.Ctty = true, 0
	}
	pid, err := syscall.ForkExec(os.Args[1], os.Args[2:], attr)
	if err != nil {
		m := Message{Kind: KindError}
		f := execError(os.Args[1], err).(*failure)
		m.Step, m.Text, m.Code = f.step, f.text, f.code
		send(m)
		os.Exit(f.code)
	}
	send(Message{Kind: KindExec})
	unix.Close(Conn)
	for s := range signals {
		switch s {
		case unix.SIGCHLD:
			reapAll(pid)
		case unix.SIGURG: // the Go runtime's own
		default:
			syscall.Kill(pid, s.(syscall.Signal))
		}
	}
}

// reapAlone is reap without a parent to tell how the start went.
func reapAlone() {
	file, err := lookup(os.Args[1], os.Getenv("PATH"))
	if f, ok := err.(*failure); ok {
		os.Stderr.WriteString(f.text + "\n")
		os.Exit(f.code)
	}
	os.Args = append([]string{ReaperName, file}, os.Args[1:]...)
	reap()
}

// reapAll waits for whatever has ended, and exits if the command has.
func reapAll(command int) {
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, unix.WNOHANG, nil)
		if err == unix.EINTR {
			continue
		}
		if err != nil || pid <= 0 {
			return
		}
		if pid != command {
			continue
		}
		if status.Signaled() {
			os.Exit(128 + int(status.Signal()))
		}
		os.Exit(status.ExitStatus())
	}
}
