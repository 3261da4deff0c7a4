package container

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"kiln.build/cache"
	"kiln.build/runner/sandbox"
)

// Monitor runs containers. It is used by the process that stays for as long
// as the container runs.
type Monitor struct {
	Store *cache.Store

	// CDIDirs are the folders in which devices are described.
	CDIDirs []string

	// Attach joins a process's network namespace to networks, and publishes
	// ports; it is called for containers that have networks.
	Attach func(ctx context.Context, w Wiring) (*Endpoint, error)

	// Stdin, Stdout and Stderr are the streams of whoever watches from the
	// start in this process; they may be nil. With a terminal everything is
	// on Stdout.
	Stdin          io.Reader
	Stdout, Stderr io.Writer

	// Watcher is a connected unix socket whose other end is somebody in
	// another process who watches from the start. May be nil.
	Watcher *os.File

	// Size is the terminal's at first; zero is 24 by 80.
	Size sandbox.Size

	// Started is called when the command runs for the first time, Ended with
	// its exit status when it has ended for the first time and is to be
	// started again, or the container has removed itself and only its files
	// are left to be deleted. May be nil.
	Started func(*sandbox.Process)
	Ended   func(code int)
}

// StartError says that a container's command could not be started; Code is
// what docker run exits with then.
type StartError struct {
	Code int
	Err  error
}

func (e *StartError) Error() string { return e.Err.Error() }
func (e *StartError) Unwrap() error { return e.Err }

// Run starts a container, and again as its policy says, and waits until it
// has ended for good. The result is its last exit status; the error is a
// [*StartError] if it did not come to run, and [ErrRunning] or a
// [*StateError] if its state does not allow it.
func (m *Monitor) Run(ctx context.Context, c *Container) (code int, err error) {
	l, st, err := c.lock(ctx, Start)
	if errors.Is(err, errNothingToDo) {
		return 0, ErrRunning
	}
	if err != nil {
		return 0, err
	}
	w := &watch{
		m: m, c: c, fresh: st.Status == Created,
		st:    State{Status: st.Status, Stubs: st.Stubs},
		wake:  make(chan struct{}),
		over:  make(chan struct{}),
		conns: map[*net.UnixConn]bool{},
	}
	defer w.finish(l)
	w.makeGroups()
	defer func() { err = errors.Join(err, w.groups.Discard()) }()
	if m.Watcher != nil {
		if err := w.attached(m.Watcher); err != nil {
			return 0, &StartError{125, err}
		}
	}
	if err := w.listen(ctx); err != nil {
		return 0, &StartError{125, err}
	}
	if err := w.refresh(); err != nil {
		return 0, &StartError{125, err}
	}
	code, err = w.live(ctx)
	if !c.AutoRemove {
		return code, err
	}
	gone, failed := c.hide(true)
	if err = errors.Join(err, failed); err == nil && m.Ended != nil {
		m.Ended(code)
	}
	return code, errors.Join(err, removeAll(gone))
}

// watch is a monitor at work on one container.
type watch struct {
	m        *Monitor
	c        *Container
	fresh    bool // the container has never run before
	watchers audience
	stdin    input
	listener *net.UnixListener
	wg       sync.WaitGroup // of the listener, its connections, and detached commands

	// Control groups that nobody has taken yet, and the limits they were made
	// with; nil for none.
	groups *sandbox.Groups
	limits sandbox.Limits

	mu     sync.Mutex
	st     State
	proc   *sandbox.Process // nil between two runs
	wired  *wired           // likewise, and where there is no network
	held   bool             // it is not to be started again
	wake   chan struct{}    // closed by hold
	conns  map[*net.UnixConn]bool
	closed bool

	code int           // the last exit status,
	over chan struct{} // once this is closed
}

// finish gives the container free, then answers those who wait: whoever
// hears of the end can remove or start the container.
func (w *watch) finish(l *fileLock) {
	if w.listener != nil {
		_ = os.Remove(filepath.Join(w.c.dir, "control"))
		_ = w.listener.Close()
	}
	l.unlock()
	close(w.over)
	w.watchers.leave()
	w.mu.Lock()
	w.closed = true
	for u := range w.conns {
		// Who has not asked yet is not waited for; answers still go out.
		_ = u.SetReadDeadline(time.Unix(1, 0))
		_ = u.SetWriteDeadline(time.Now().Add(time.Second))
	}
	w.mu.Unlock()
	w.wg.Wait()
}

// live runs the container until it is not to be started again.
func (w *watch) live(ctx context.Context) (int, error) {
	var wait backoff
	for {
		began := time.Now()
		code, err := w.once(ctx)
		again := w.again(code, err)
		if failed := w.ended(code, err, again); failed != nil {
			return code, errors.Join(err, failed)
		}
		w.watchers.leave()
		if !again {
			return code, err
		}
		if w.m.Ended != nil && w.st.Restarts == 1 {
			w.m.Ended(code)
		}
		select {
		case <-time.After(wait.next(time.Since(began))):
			continue
		case <-w.wake:
		case <-ctx.Done():
		}
		return code, w.update(func(st *State) { st.Status, st.Stopped = Exited, true })
	}
}

// again decides about a run that has ended. What could not be started for
// the first time is not tried again, as with docker.
func (w *watch) again(code int, err error) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.held || err != nil && w.st.Started.IsZero() {
		return false
	}
	if err != nil {
		code = 125
	}
	return w.c.Restart.again(code, w.st.Restarts)
}

// ended writes down how one run of the container ended.
func (w *watch) ended(code int, err error, again bool) error {
	w.stdin.set(nil)
	w.code = code
	ran, oom, began := false, false, time.Time{}
	failed := w.update(func(st *State) {
		ran, oom, began = w.proc != nil, st.OOM, st.Started
		w.proc = nil
		st.Status, st.PID, st.IP, st.Gateway, st.Networks, st.Ports = Exited, 0, "", "", nil, nil
		st.ExitCode, st.Finished, st.Stopped = code, time.Now().UTC(), w.held
		if st.Health != nil { // as docker has it: nobody looks any more
			h := *st.Health
			h.Status, st.Health = Unhealthy, &h
		}
		if err != nil {
			st.Error, st.ExitCode = err.Error(), 125
			var start *StartError
			if errors.As(err, &start) {
				st.ExitCode = start.Code
			}
			w.code = st.ExitCode
			if w.fresh && st.Started.IsZero() {
				st.Status, st.Finished = Created, time.Time{}
			}
		}
		if again {
			st.Status = Restarting
			st.Restarts++
		}
	})
	if oom {
		w.note("oom")
	}
	if ran {
		w.note("die", "exitCode", strconv.Itoa(w.code), "execDuration", strconv.Itoa(int(time.Since(began).Seconds())))
	}
	return failed
}

// note writes an event of the container down.
func (w *watch) note(action string, attributes ...string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.c.Note(action, attributes...)
}

// update changes the state, here and on disk.
func (w *watch) update(f func(*State)) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	f(&w.st)
	if err := w.c.setState(w.st); err != nil {
		return fmt.Errorf("write down the state of container %s: %w", w.c.Name, err)
	}
	return nil
}

// hold has the container not be started again.
func (w *watch) hold() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.held {
		w.held = true
		close(w.wake)
	}
}

// setFrozen pauses the container, or goes on with it.
func (w *watch) setFrozen(frozen bool) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	verb, status, change := Unpause, Running, (*sandbox.Group).Thaw
	if frozen {
		verb, status, change = Pause, Paused, (*sandbox.Group).Freeze
	}
	if _, err := w.c.may(verb, w.st.Status); err != nil {
		return err
	}
	if w.proc == nil {
		return errEnded
	}
	if err := change(w.proc.Group()); err != nil {
		return fmt.Errorf("%s container %s: %w", verb, w.c.Name, err)
	}
	before := w.st.Status
	w.st.Status = status
	if err := w.c.setState(w.st); err != nil {
		// What nobody can be told of is not done.
		w.st.Status = before
		undo := (*sandbox.Group).Thaw
		if !frozen {
			undo = (*sandbox.Group).Freeze
		}
		return errors.Join(fmt.Errorf("%s container %s: %w", verb, w.c.Name, err), undo(w.proc.Group()))
	}
	w.c.Note(string(verb))
	return nil
}

// refresh reads what was changed before the monitor could be told.
func (w *watch) refresh() error {
	now, err := open(w.c.dir)
	if err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.c.Name, w.c.Limits, w.c.Restart, w.c.Networks = now.Name, now.Limits, now.Restart, now.Networks
	return nil
}

// change takes over what can change about a container that runs, or nothing
// of it if the machine refuses.
func (w *watch) change(ctx context.Context, to *changes) error {
	if to == nil {
		return errors.New("change: nothing is said")
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.proc != nil && to.Limits != w.c.Limits {
		if err := w.proc.Group().Update(to.Limits); err != nil {
			return fmt.Errorf("cannot update container %s: %w", w.c.ID, errors.Join(err, w.proc.Group().Update(w.c.Limits)))
		}
	}
	w.c.Name, w.c.Limits, w.c.Restart, w.c.Networks = to.Name, to.Limits, to.Restart, to.Networks
	return w.rewire(ctx)
}

// resize changes the size of the terminal, of this run and the next.
func (w *watch) resize(s sandbox.Size) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.m.Size = s; w.proc == nil || !w.c.Terminal {
		return nil
	}
	return w.proc.Resize(s)
}
