package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"runtime/debug"
	"syscall"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
	"kiln.build/runner/container"
	"kiln.build/runner/sandbox"
)

// A monitor is this program executed again, for one container and as long as
// that lives: `kiln monitor ID`. On descriptor 3 it answers once the command
// runs, or cannot; and, if somebody watches from the start (descriptor 4),
// again when the command has ended.

// monitorAnswer is what a monitor says.
type monitorAnswer struct {
	Error   string `json:"error,omitempty"`
	Code    int    `json:"code,omitempty"`
	Running bool   `json:"running,omitempty"` // already: ErrRunning
	Exit    int    `json:"exit,omitempty"`    // second answer
}

// spawnOptions say how a monitor is started.
type spawnOptions struct {
	watcher *os.File // its end of a socket, closed here
	size    sandbox.Size
}

// monitor is a monitor process, which does not end with this one.
type monitor struct {
	answers *json.Decoder
	pipe    *os.File
	cmd     *exec.Cmd
}

// spawn starts a monitor and waits until the container's command runs. The
// error is [container.ErrRunning], or has docker's exit status.
func (a *app) spawn(k *container.Container, o spawnOptions) (*monitor, error) {
	if o.watcher != nil {
		defer o.watcher.Close()
	}
	self, err := os.Executable()
	if err != nil {
		return nil, cliFailed(err)
	}
	rd, wr, err := os.Pipe()
	if err != nil {
		return nil, cliFailed(err)
	}
	c := exec.Command(self, "--root", a.root, "monitor", k.ID, fmt.Sprint(o.size.Rows), fmt.Sprint(o.size.Cols))
	c.ExtraFiles = []*os.File{wr}
	if o.watcher != nil {
		c.ExtraFiles = append(c.ExtraFiles, o.watcher)
		c.Args = append(c.Args, "--watched")
	}
	c.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	c.Dir = "/"
	err = c.Start()
	_ = wr.Close()
	if err != nil {
		return nil, cliFailed(errors.Join(err, rd.Close()))
	}
	m := &monitor{answers: json.NewDecoder(rd), pipe: rd, cmd: c}
	var first monitorAnswer
	if err := m.answers.Decode(&first); err != nil {
		_ = rd.Close()
		return nil, cliFailed(fmt.Errorf("the container's monitor ended: %w", errors.Join(c.Wait(), err)))
	}
	if first.Error == "" && !first.Running {
		return m, nil
	}
	_ = rd.Close()
	_ = c.Wait() // it has said why it ends
	if first.Running {
		return nil, container.ErrRunning
	}
	return nil, &exitError{first.Code, errors.New(first.Error)}
}

// release leaves the monitor alone.
func (m *monitor) release() {
	_ = m.pipe.Close()
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

func (a *app) monitorCommand() *cobra.Command {
	var watched bool
	c := &cobra.Command{
		Use: "monitor ID ROWS COLS", Hidden: true, Args: cobra.ExactArgs(3),
		RunE: func(c *cobra.Command, args []string) error {
			m := &container.Monitor{Attach: attachNetwork}
			for i, to := range []*uint16{&m.Size.Rows, &m.Size.Cols} {
				if _, err := fmt.Sscan(args[i+1], to); err != nil {
					return err
				}
			}
			unix.CloseOnExec(3)
			answers := os.NewFile(3, "answers")
			if watched {
				unix.CloseOnExec(4)
				m.Watcher = os.NewFile(4, "watcher")
			}
			a.monitor(c.Context(), args[0], m, answers)
			return nil
		},
	}
	c.Flags().BoolVar(&watched, "watched", false, "somebody watches, on descriptor 4")
	return c
}

func (a *app) monitor(ctx context.Context, id string, m *container.Monitor, answers *os.File) {
	signal.Ignore(unix.SIGHUP, unix.SIGINT, unix.SIGQUIT, unix.SIGTERM, unix.SIGPIPE)
	// It has little to do and lives long: memory counts more than time.
	debug.SetGCPercent(20)
	say := func(x monitorAnswer) { _ = json.NewEncoder(answers).Encode(x) } // to nobody, perhaps
	watched := m.Watcher != nil
	told := false
	m.Started = func(*sandbox.Process) {
		say(monitorAnswer{})
		if !watched {
			_ = answers.Close()
		}
		debug.FreeOSMemory()
	}
	m.Ended = func(code int) {
		told = true
		say(monitorAnswer{Exit: code})
	}
	code, err := a.monitored(context.WithoutCancel(ctx), id, m)
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

func (a *app) monitored(ctx context.Context, id string, m *container.Monitor) (int, error) {
	store, err := a.open()
	if err != nil {
		return 0, err
	}
	defer store.Close()
	k, err := a.container(id)
	if err != nil {
		return 0, err
	}
	m.Store = store
	return m.Run(ctx, k)
}
