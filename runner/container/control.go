package container

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
	"kiln.build/runner/sandbox"
)

// The monitor answers on a socket in the container's folder, to whoever may
// enter that. A connection carries one request and one answer, each a line of
// JSON. After that of "attach" follow, towards the monitor, what is typed,
// up to the end of that half; and back, what is printed: as it is where the
// container has a terminal, else in docker's frames (see [frame]).

// What can be asked.
const (
	doAttach  = "attach"
	doResize  = "resize"  // the terminal
	doWait    = "wait"    // for the end: the answer comes then
	doHold    = "hold"    // start the container no more
	doPause   = "pause"   // freeze it
	doUnpause = "unpause" // thaw it
	doExec    = "exec"    // another command
	doRoot    = "root"    // the root directory, which comes with the answer
	doTop     = "top"     // list the processes
	doChange  = "change"  // name, limits, policy or networks
)

type request struct {
	Do      string       `json:"do"`
	Stdin   bool         `json:"stdin,omitempty"`
	Size    sandbox.Size `json:"size,omitzero"`
	Exec    *execRequest `json:"exec,omitempty"`
	Changes *changes     `json:"changes,omitempty"`
}

// changes are what can change about a container while it runs.
type changes struct {
	Name     string         `json:"name"`
	Limits   sandbox.Limits `json:"limits"`
	Restart  Policy         `json:"restart"`
	Networks []Membership   `json:"networks"`
}

type answer struct {
	Error string `json:"error,omitempty"`
	Code  int    `json:"code,omitempty"` // of wait, or of exec

	Processes []Process `json:"processes,omitempty"`
}

// errEnded says that there is no monitor any more.
var errEnded = errors.New("the container has ended")

// socketAddress is the path of the socket for net: sockets' names are short,
// folders' may be long.
func socketAddress(dir *os.File) *net.UnixAddr {
	return &net.UnixAddr{Net: "unix", Name: "/proc/self/fd/" + strconv.Itoa(int(dir.Fd())) + "/control"}
}

func openPath(dir string) (*os.File, error) {
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: dir, Err: err}
	}
	return os.NewFile(uintptr(fd), dir), nil
}

// conn is a connection to a monitor, after the answer.
type conn struct {
	*net.UnixConn
	r *bufio.Reader
}

func (c *conn) Read(p []byte) (int, error) { return c.r.Read(p) }

// RequestError is why a monitor did not do what it was asked.
type RequestError struct {
	Message string
	Code    int // what docker exits with, where that is not 1
}

func (e *RequestError) Error() string { return e.Message }

// ask sends a request and reads the answer.
func (c *Container) ask(ctx context.Context, q request, a *answer) error {
	k, files, err := c.dial(ctx, q, a)
	if err != nil {
		return err
	}
	closeAll(files)
	return k.Close()
}

// dial is ask for a connection that goes on. The end of ctx ends waiting for
// the answer, not what comes after it. The error is errEnded where there is
// no monitor to answer, or not yet. Files go along with the request, and may
// come with the answer.
func (c *Container) dial(ctx context.Context, q request, a *answer, files ...*os.File) (*conn, []*os.File, error) {
	if a == nil {
		a = new(answer)
	}
	u, err := c.connect()
	if err != nil {
		return nil, nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = u.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	var k *conn
	var got []*os.File
	if err = send(u, q, files...); err == nil {
		k, got, err = receive(u, a)
	}
	if err != nil {
		err = errEnded
	} else if a.Error != "" {
		err = &RequestError{a.Error, a.Code}
	}
	if !stop() {
		err = context.Cause(ctx)
	}
	if err != nil {
		closeAll(got)
		_ = u.Close()
		return nil, nil, err
	}
	return k, got, nil
}

func (c *Container) connect() (*net.UnixConn, error) {
	dir, err := openPath(c.dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, errEnded
	}
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	u, err := net.DialUnix("unix", nil, socketAddress(dir))
	if err != nil {
		if locked(c.lockPath()) {
			// Its monitor has the lock, and no socket yet or no more. Who
			// looks at the state next sees which.
			time.Sleep(time.Millisecond)
		}
		return nil, errEnded
	}
	return u, nil
}

// listen makes the socket. The caller holds the container's lock.
func (w *watch) listen(ctx context.Context) error {
	dir, err := openPath(w.c.dir)
	if err != nil {
		return err
	}
	defer dir.Close()
	if err := os.Remove(filepath.Join(w.c.dir, "control")); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	l, err := net.ListenUnix("unix", socketAddress(dir))
	if err != nil {
		return fmt.Errorf("listen in the container's folder: %w", err)
	}
	l.SetUnlinkOnClose(false) // the name leads through a descriptor that is closed by then
	w.listener = l
	w.wg.Go(func() {
		for {
			u, err := l.AcceptUnix()
			if err != nil {
				return
			}
			w.wg.Go(func() { w.serve(ctx, u) })
		}
	})
	return nil
}

// serve answers one request.
func (w *watch) serve(ctx context.Context, u *net.UnixConn) {
	defer u.Close()
	if !w.track(u) {
		return
	}
	defer w.untrack(u)
	var q request
	k, files, err := receive(u, &q)
	if err != nil {
		return
	}
	if q.Do == doExec {
		w.serveExec(ctx, k, q.Exec, files)
		return
	}
	closeAll(files)
	switch q.Do {
	case doAttach:
		w.serveAttach(k, q)
	case doWait:
		w.serveWait(k)
	case doHold:
		w.hold()
		reply(k, nil)
	case doPause:
		reply(k, w.setFrozen(true))
	case doUnpause:
		reply(k, w.setFrozen(false))
	case doResize:
		reply(k, w.resize(q.Size))
	case doChange:
		reply(k, w.change(ctx, q.Changes))
	case doRoot:
		w.serveRoot(k)
	case doTop:
		w.serveTop(k)
	default:
		reply(k, fmt.Errorf("request %q is not known", q.Do))
	}
}

// reply sends an answer; whoever has left meanwhile does not miss it.
func reply(k *conn, err error) {
	var a answer
	if err != nil {
		a.Error = err.Error()
		var cmd *sandbox.CommandError
		if errors.As(err, &cmd) {
			a.Code = cmd.Code
		}
	}
	_ = send(k.UnixConn, a)
}

// serveWait answers at the container's end, unless the other side leaves.
func (w *watch) serveWait(k *conn) {
	left := make(chan struct{})
	go func() { // ends with the connection, which serve closes
		_, _ = k.r.ReadByte()
		close(left)
	}()
	select {
	case <-w.over:
		_ = send(k.UnixConn, answer{Code: w.code})
	case <-left:
	}
}

// serveRoot hands the root of the container's command out: another process
// of a user without rights may not open it itself.
func (w *watch) serveRoot(k *conn) {
	p, err := w.command(Top)
	var root *os.File
	if err == nil {
		root, err = p.Root()
	}
	if err != nil {
		reply(k, err)
		return
	}
	defer root.Close()
	_ = send(k.UnixConn, answer{}, root)
}

// command is the container's command, if its state allows the verb.
func (w *watch) command(v Verb) (*sandbox.Process, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if _, err := w.c.may(v, w.st.Status); err != nil {
		return nil, err
	}
	if w.proc == nil {
		return nil, errEnded
	}
	return w.proc, nil
}

// serveTop lists the processes, for the same reason.
func (w *watch) serveTop(k *conn) {
	p, err := w.command(Top)
	var a answer
	if err == nil {
		a.Processes, err = processes(p.PID())
	}
	if err == nil {
		err = p.Signal(0) // else the number may be another's
	}
	if err != nil {
		reply(k, err)
		return
	}
	_ = send(k.UnixConn, a)
}

// track remembers a connection for the end, and refuses it after.
func (w *watch) track(u *net.UnixConn) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return false
	}
	w.conns[u] = true
	return true
}

func (w *watch) untrack(u *net.UnixConn) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.conns, u)
}
