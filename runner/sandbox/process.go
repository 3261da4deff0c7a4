package sandbox

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Process is a command in a sandbox. Its methods may be called from several
// goroutines.
type Process struct {
	pid      int
	pidfd    *os.File
	terminal *os.File
	created  []string
	group    groups
	formats  *os.File     // a binfmt_misc instance, kept for as long as it is used
	remove   func() error // what else there is to remove at the end; may be nil
	own      bool         // the sandbox is this process's: its groups end with it
	stop     func() bool  // ends the watch over the context of Start

	mu    sync.Mutex // guards ended, and pidfd being open
	ended bool

	wait   sync.Once
	status Status
	err    error
}

// PID returns the process id, as this process sees it.
func (p *Process) PID() int { return p.pid }

// PidFD returns a descriptor of the process (pidfd_open(2)), readable once it
// has ended. It belongs to p and is closed by Wait.
func (p *Process) PidFD() *os.File { return p.pidfd }

// Root opens the root directory that the command sees, for its path alone.
func (p *Process) Root() (*os.File, error) {
	f, err := os.OpenFile(fmt.Sprintf("/proc/%d/root", p.pid), unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, fmt.Errorf("open the root: %w", err)
	}
	// The number was p's then if p has not been waited for yet: else it may be
	// that of a process of the host by now, with the host's root.
	if err := p.Signal(0); err != nil {
		return nil, errors.Join(fmt.Errorf("open the root: %w", err), f.Close())
	}
	return f, nil
}

// Created returns the paths, outermost first, that were made in the root as
// mount points for lack of them; they are still there when the sandbox has
// ended.
func (p *Process) Created() []string { return p.created }

// Terminal returns the master side of the command's terminal, nil if it has
// none. The caller closes it.
func (p *Process) Terminal() *os.File { return p.terminal }

// Resize changes the size of the terminal.
func (p *Process) Resize(s Size) error {
	if p.terminal == nil {
		return errors.New("resize the terminal: there is none")
	}
	size := &unix.Winsize{Row: s.Rows, Col: s.Cols}
	if err := unix.IoctlSetWinsize(int(p.terminal.Fd()), unix.TIOCSWINSZ, size); err != nil {
		return fmt.Errorf("resize the terminal: %w", err)
	}
	return nil
}

// Group returns the sandbox's control group, to freeze it, to change limits
// and for figures. It has no directories where none could be made.
func (p *Process) Group() *Group { return p.group.Group }

// Signal sends a signal to the command.
func (p *Process) Signal(s unix.Signal) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	err := error(unix.ESRCH)
	if !p.ended {
		err = unix.PidfdSendSignal(int(p.pidfd.Fd()), s, nil, 0)
	}
	if err != nil {
		return fmt.Errorf("send signal %d: %w", s, err)
	}
	return nil
}

// end says that the process has been waited for: its descriptor and number
// stand for nothing from here on.
func (p *Process) end() {
	p.stop()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ended = true
	p.pidfd.Close()
	if p.formats != nil {
		p.formats.Close()
	}
}

// Kill kills the command and with it, where it is the sandbox's first, all
// of the sandbox. A process that has ended is no error.
func (p *Process) Kill() error {
	err := p.Signal(unix.SIGKILL)
	if errors.Is(err, unix.ESRCH) {
		err = nil
	}
	if p.own && err == nil {
		err = p.group.Kill()
	}
	return err
}

// Release leaves a Detached sandbox to itself: the context of Start is no
// longer watched, and Wait must not be called. Its control group is for
// others to remove.
func (p *Process) Release() { p.stop() }

// Wait waits until the command has ended and, where it is the sandbox's
// first, nothing of the sandbox is left: no process, no control group. Later
// calls return the same.
func (p *Process) Wait() (Status, error) {
	p.wait.Do(func() { p.status, p.err = p.await() })
	return p.status, p.err
}

func (p *Process) await() (Status, error) {
	status, usage, err := reap(p.pid)
	if err != nil {
		return Status{}, fmt.Errorf("wait for process %d: %w", p.pid, err)
	}
	s := Status{
		Code:   status.ExitStatus(),
		User:   time.Duration(usage.Utime.Nano()),
		System: time.Duration(usage.Stime.Nano()),
		MaxRSS: usage.Maxrss << 10,
	}
	if status.Signaled() {
		s.Signal = int(status.Signal())
		s.Code = 128 + s.Signal
	}
	p.end()
	if !p.own {
		return s, nil
	}
	s.OOMKilled = p.group.OOMKills() > 0
	// The first process has taken all of its PID namespace with it. In the
	// host's PID namespace, or where the command moved a process to another
	// group, this does it.
	err = p.group.Remove()
	if p.remove != nil {
		err = errors.Join(err, p.remove())
	}
	return s, err
}

// reap waits for a child.
func reap(pid int) (unix.WaitStatus, unix.Rusage, error) {
	for {
		var status unix.WaitStatus
		var usage unix.Rusage
		_, err := unix.Wait4(pid, &status, 0, &usage)
		if err != unix.EINTR {
			return status, usage, err
		}
	}
}
