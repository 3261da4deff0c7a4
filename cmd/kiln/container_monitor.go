package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"runtime/debug"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"kiln.build/runner/container"
	"kiln.build/runner/sandbox"
)

// A monitor is this program executed again, for one container and as long as
// that lives, under the name kiln-monitor; it never builds the tree of
// commands, so that it stays small. It is started while the command that wants it
// still looks for the image, since two processes are ready sooner than one
// after the other. On descriptor 3 it is told which container is meant, and
// answers once the command runs, or cannot; and, if somebody watches from the
// start (descriptor 4), again when the command has ended. Where it is told
// nothing it ends.

// monitorOrder is what a monitor is to do.
type monitorOrder struct {
	ID   string       `json:"id"`
	Size sandbox.Size `json:"size,omitzero"`
}

// monitorAnswer is what a monitor says.
type monitorAnswer struct {
	Error   string `json:"error,omitempty"`
	Code    int    `json:"code,omitempty"`
	Running bool   `json:"running,omitempty"` // already: ErrRunning
	Exit    int    `json:"exit,omitempty"`    // second answer
}

// monitor is a monitor process, which does not end with this one.
type monitor struct {
	talk    *os.File
	answers *json.Decoder
	watch   *net.UnixConn // the container's streams; nil if nobody watches
	cmd     *exec.Cmd
}

// socketpair makes a pair of connected sockets, of which this process keeps
// the first.
func socketpair(name string) (ours, theirs *os.File, err error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("make a pair of sockets: %w", err)
	}
	return os.NewFile(uintptr(pair[0]), name), os.NewFile(uintptr(pair[1]), name), nil
}

// newMonitor starts a monitor, which then waits for its order. The caller
// ends with start, or with abandon.
func (a *app) newMonitor(watched bool) (*monitor, error) {
	if _, err := a.containers(); err != nil { // from here on in a user namespace, if need be
		return nil, cliFailed(err)
	}
	self, err := os.Executable()
	if err != nil {
		return nil, cliFailed(err)
	}
	talk, theirs, err := socketpair("monitor")
	if err != nil {
		return nil, cliFailed(err)
	}
	defer theirs.Close()
	m := &monitor{talk: talk, answers: json.NewDecoder(talk)}
	m.cmd = &exec.Cmd{
		Path: self, Args: []string{monitorName, a.root}, Dir: "/",
		ExtraFiles: []*os.File{theirs}, SysProcAttr: &syscall.SysProcAttr{Setsid: true},
	}
	if watched {
		watching, err := m.watched()
		if err != nil {
			return nil, cliFailed(errors.Join(err, talk.Close()))
		}
		defer watching.Close()
		m.cmd.ExtraFiles = append(m.cmd.ExtraFiles, watching)
		m.cmd.Args = append(m.cmd.Args, "watched")
	}
	if err := m.cmd.Start(); err != nil {
		m.close()
		return nil, cliFailed(fmt.Errorf("start a monitor: %w", err))
	}
	return m, nil
}

// watched makes the connection for the container's streams and returns the
// monitor's end.
func (m *monitor) watched() (*os.File, error) {
	ours, theirs, err := socketpair("watch")
	if err != nil {
		return nil, err
	}
	defer ours.Close()
	c, err := net.FileConn(ours)
	if err != nil {
		return nil, errors.Join(err, theirs.Close())
	}
	m.watch = c.(*net.UnixConn) // what the pair consists of
	return theirs, nil
}

// start has the monitor run a container, and waits until the command runs.
// The error is [container.ErrRunning], or has docker's exit status.
func (m *monitor) start(k *container.Container, size sandbox.Size) error {
	var first monitorAnswer
	err := json.NewEncoder(m.talk).Encode(monitorOrder{k.ID, size})
	if err == nil {
		err = m.answers.Decode(&first)
	}
	switch {
	case err == nil && first.Error == "" && !first.Running:
		return nil
	case err == nil && first.Running:
		err = container.ErrRunning
	case err == nil:
		err = &exitError{first.Code, errors.New(first.Error)}
	default:
		err = cliFailed(fmt.Errorf("the container's monitor ended: %w", err))
	}
	m.abandon()
	return err
}

// abandon ends a monitor that runs nothing.
func (m *monitor) abandon() {
	m.close()
	_ = m.cmd.Wait() // it has nothing more to say
}

func (m *monitor) close() {
	_ = m.talk.Close()
	if m.watch != nil {
		_ = m.watch.Close()
	}
}

// release leaves the monitor alone.
func (m *monitor) release() {
	m.close()
	_ = m.cmd.Process.Release()
}

// wait returns the container's exit status, at its first end.
func (m *monitor) wait() int {
	defer m.release()
	var last monitorAnswer
	if err := m.answers.Decode(&last); err != nil {
		return 128 + int(unix.SIGKILL) // the monitor was killed
	}
	return last.Exit
}

// monitorName is the program's name as a monitor.
const monitorName = "kiln-monitor"

// monitorMain is what the program does under that name. Its arguments are the
// store's folder, and "watched" if somebody watches from the start.
func monitorMain(ctx context.Context, args []string) {
	signal.Ignore(unix.SIGHUP, unix.SIGINT, unix.SIGQUIT, unix.SIGTERM, unix.SIGPIPE)
	a := &app{stdin: os.Stdin, stdout: os.Stdout, stderr: os.Stderr, root: args[1]}
	unix.CloseOnExec(3)
	sandbox.Warm()
	m := &container.Monitor{Attach: a.attachNetworks, CDIDirs: cdiDirs()}
	if len(args) > 2 {
		unix.CloseOnExec(4)
		m.Watcher = os.NewFile(4, "watcher")
	}
	a.monitor(ctx, m, os.NewFile(3, "talk"))
}

// settled is after how long a monitor gives memory back that only its start
// needed.
const settled = 500 * time.Millisecond

func (a *app) monitor(ctx context.Context, m *container.Monitor, talk *os.File) {
	say := func(x monitorAnswer) { _ = json.NewEncoder(talk).Encode(x) } // to nobody, perhaps
	watched := m.Watcher != nil
	told := false
	m.Started = func(*sandbox.Process) {
		say(monitorAnswer{})
		if !watched {
			_ = talk.Close()
		}
	}
	// It has little to do and may live long: memory counts more than time
	// then. A command that ends at once does not wait for that.
	thrift := time.AfterFunc(settled, func() {
		debug.SetGCPercent(20)
		debug.FreeOSMemory()
	})
	defer thrift.Stop()
	m.Ended = func(code int) {
		told = true
		say(monitorAnswer{Exit: code})
	}
	code, err := a.monitored(context.WithoutCancel(ctx), m, talk)
	var start *container.StartError
	switch {
	case errors.Is(err, container.ErrRunning):
		say(monitorAnswer{Running: true})
	case errors.As(err, &start):
		say(monitorAnswer{Code: start.Code, Error: err.Error()})
	case err != nil:
		say(monitorAnswer{Code: 125, Error: err.Error()})
	case !told:
		say(monitorAnswer{Exit: code})
	}
}

func (a *app) monitored(ctx context.Context, m *container.Monitor, talk *os.File) (int, error) {
	store, err := a.open()
	if err != nil {
		return 0, err
	}
	defer store.Close()
	m.Store = store
	var order monitorOrder
	if err := json.NewDecoder(talk).Decode(&order); err != nil {
		return 0, err // there is nothing to run
	}
	set, err := a.containers()
	if err != nil {
		return 0, err
	}
	k, err := set.Open(order.ID)
	if err != nil {
		return 0, err
	}
	// For who looks at processes; the kernel cuts it to 15 characters.
	_ = os.WriteFile("/proc/self/comm", []byte("kiln "+k.Name), 0)
	m.Size = order.Size
	return m.Run(ctx, k)
}
