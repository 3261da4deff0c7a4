package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
	"kiln.build/cache"
	"kiln.build/runner/container"
	"kiln.build/runner/monitor"
	"kiln.build/runner/monitor/monitorbin"
	"kiln.build/runner/rootless"
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

// monitorProcess is a monitor, which does not end with this one.
type monitorProcess struct {
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
func (a *app) newMonitor(watched bool) (*monitorProcess, error) {
	if _, err := a.containers(); err != nil { // from here on in a user namespace, if need be
		return nil, cliFailed(err)
	}
	program, err := a.monitorProgram()
	if err != nil {
		return nil, cliFailed(err)
	}
	talk, theirs, err := socketpair("monitor")
	if err != nil {
		return nil, cliFailed(err)
	}
	defer theirs.Close()
	m := &monitorProcess{talk: talk, answers: json.NewDecoder(talk)}
	m.cmd = &exec.Cmd{
		Path: program, Args: []string{monitor.Name, a.root}, Dir: "/",
		ExtraFiles: []*os.File{theirs}, SysProcAttr: &syscall.SysProcAttr{Setsid: true},
	}
	if watched {
		watching, err := m.watched()
		if err != nil {
			return nil, cliFailed(errors.Join(err, talk.Close()))
		}
		defer watching.Close()
		m.cmd.ExtraFiles = append(m.cmd.ExtraFiles, watching)
		m.cmd.Args = append(m.cmd.Args, monitor.Watched)
	}
	err = m.cmd.Start()
	if self, selfErr := os.Executable(); err != nil && selfErr == nil && program != self {
		// Another version may just have replaced it, or a rule forbid it.
		m.cmd = &exec.Cmd{Path: self, Args: m.cmd.Args, Dir: m.cmd.Dir, ExtraFiles: m.cmd.ExtraFiles, SysProcAttr: m.cmd.SysProcAttr}
		err = m.cmd.Start()
	}
	if err != nil {
		m.close()
		return nil, cliFailed(fmt.Errorf("start a monitor: %w", err))
	}
	return m, nil
}

// monitorProgram is what to execute: the small program if that serves here,
// else this one. The store is not open yet, and may be none.
func (a *app) monitorProgram() (string, error) {
	if rootless.Current() == rootless.Root && cache.Is(a.root) {
		// A file system may forbid to execute anything (noexec).
		path, err := monitorbin.Install(filepath.Join(a.root, "programs"))
		if err == nil && unix.Access(path, unix.X_OK) == nil {
			return path, nil
		}
	}
	return os.Executable()
}

// watched makes the connection for the container's streams and returns the
// monitor's end.
func (m *monitorProcess) watched() (*os.File, error) {
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
func (m *monitorProcess) start(k *container.Container, size sandbox.Size) error {
	var first monitor.Answer
	err := json.NewEncoder(m.talk).Encode(monitor.Order{ID: k.ID, Size: size})
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
func (m *monitorProcess) abandon() {
	m.close()
	_ = m.cmd.Wait() // it has nothing more to say
}

func (m *monitorProcess) close() {
	_ = m.talk.Close()
	if m.watch != nil {
		_ = m.watch.Close()
	}
}

// release leaves the monitor alone.
func (m *monitorProcess) release() {
	m.close()
	_ = m.cmd.Process.Release()
}

// wait returns the container's exit status, at its first end.
func (m *monitorProcess) wait() int {
	defer m.release()
	var last monitor.Answer
	if err := m.answers.Decode(&last); err != nil {
		return 128 + int(unix.SIGKILL) // the monitor was killed
	}
	return last.Exit
}
