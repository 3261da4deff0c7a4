package container

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"kiln.build/runner/sandbox"
)

// The streams of frames.
const (
	stdout = 1
	stderr = 2
)

// frame puts docker's header before a piece of output: the stream, three
// zeros, and the length in four bytes, big-endian.
func frame(stream byte, p []byte) []byte {
	b := make([]byte, 8, 8+len(p))
	b[0] = stream
	binary.BigEndian.PutUint32(b[4:], uint32(len(p)))
	return append(b, p...)
}

// stall is how long a watcher may not read before it is dropped. The
// container waits for it until then.
const stall = 10 * time.Second

// watcher is someone attached.
type watcher struct {
	raw  bool
	gone chan struct{} // closed when it is dropped

	mu   sync.Mutex // held while writing, so that frames stay whole
	conn net.Conn
}

func (x *watcher) write(stream byte, p []byte) error {
	if !x.raw {
		p = frame(stream, p)
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	_ = x.conn.SetWriteDeadline(time.Now().Add(stall))
	_, err := x.conn.Write(p)
	return err
}

// audience is all who are attached.
type audience struct {
	mu   sync.Mutex
	here map[*watcher]bool
}

func (a *audience) add(x *watcher) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.here == nil {
		a.here = map[*watcher]bool{}
	}
	a.here[x] = true
}

func (a *audience) drop(x *watcher) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.here[x] {
		close(x.gone)
		delete(a.here, x)
	}
}

func (a *audience) all() []*watcher {
	a.mu.Lock()
	defer a.mu.Unlock()
	all := make([]*watcher, 0, len(a.here))
	for x := range a.here {
		all = append(all, x)
	}
	return all
}

// write hands output to all.
func (a *audience) write(stream byte, p []byte) {
	for _, x := range a.all() {
		if x.write(stream, p) != nil {
			a.drop(x)
		}
	}
}

// leave drops all, once all that was printed has been handed to them.
func (a *audience) leave() {
	for _, x := range a.all() {
		a.drop(x)
	}
}

// serveAttach hands output out and input in until either side ends.
func (w *watch) serveAttach(k *conn, q request) {
	x := &watcher{conn: k.UnixConn, raw: w.c.Terminal, gone: make(chan struct{})}
	x.mu.Lock() // output comes after the answer
	w.mu.Lock()
	_, err := w.c.may(Attach, w.st.Status)
	if err == nil {
		w.watchers.add(x)
	}
	w.mu.Unlock()
	reply(k, err)
	x.mu.Unlock()
	if err == nil {
		w.follow(k, x, q.Stdin)
	}
}

// follow hands in what someone types until they are dropped.
func (w *watch) follow(k io.Reader, x *watcher, stdin bool) {
	go func() { // ends with the connection, which the caller closes
		if !stdin {
			_, _ = io.Copy(io.Discard, k)
			return
		}
		if _, err := io.Copy(&w.stdin, k); err != nil {
			_, _ = io.Copy(io.Discard, k) // what the command reads no more
		}
		if w.c.StdinOnce {
			w.stdin.close()
		}
	}()
	<-x.gone
}

// attached takes the connection of someone who watches from the start.
func (w *watch) attached(f *os.File) error {
	c, err := net.FileConn(f)
	_ = f.Close()
	if err != nil {
		return fmt.Errorf("take the connection: %w", err)
	}
	u, ok := c.(*net.UnixConn)
	if !ok {
		return errors.Join(errors.New("take the connection: not a unix socket"), c.Close())
	}
	x := &watcher{conn: u, raw: w.c.Terminal, gone: make(chan struct{})}
	w.watchers.add(x)
	w.track(u)
	w.wg.Go(func() {
		defer u.Close()
		defer w.untrack(u)
		w.follow(u, x, w.c.Stdin)
	})
	return nil
}

// input is the standard input of the command that runs, nothing between two.
type input struct {
	mu sync.Mutex
	w  io.WriteCloser
}

func (i *input) set(w io.WriteCloser) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.w = w
}

func (i *input) Write(p []byte) (int, error) {
	i.mu.Lock()
	w := i.w
	i.mu.Unlock()
	if w == nil {
		return len(p), nil
	}
	return w.Write(p)
}

// pipe tells a pipe from a terminal, which has no end.
type pipe struct{ *os.File }

// close ends the input.
func (i *input) close() {
	i.mu.Lock()
	defer i.mu.Unlock()
	if p, ok := i.w.(pipe); ok {
		_ = p.Close()
		i.w = nil
	}
}

// Attachment is a connection to a container's streams. Reading ends with the
// container's output; the caller closes Conn. With a terminal the output is
// as it is, else it consists of frames: see [Copy].
type Attachment struct {
	io.Reader
	Conn *net.UnixConn
}

// Attach connects to a container that runs.
func (c *Container) Attach(ctx context.Context, stdin bool) (*Attachment, error) {
	if _, _, err := c.May(Attach); err != nil {
		return nil, err
	}
	k, _, err := c.dial(ctx, request{Do: doAttach, Stdin: stdin}, nil)
	if errors.Is(err, errEnded) {
		if _, _, refused := c.May(Attach); refused != nil {
			err = refused
		}
	}
	if err != nil {
		return nil, err
	}
	return &Attachment{Reader: k, Conn: k.UnixConn}, nil
}

// Resize changes the size of the container's terminal.
func (c *Container) Resize(ctx context.Context, s sandbox.Size) error {
	return c.ask(ctx, request{Do: doResize, Size: s}, nil)
}

// Copy takes frames apart until the end of the stream.
func Copy(out, errs io.Writer, r io.Reader) error {
	var head [8]byte
	for {
		if _, err := io.ReadFull(r, head[:]); err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		w := out
		if head[0] == stderr {
			w = errs
		}
		if _, err := io.CopyN(w, r, int64(binary.BigEndian.Uint32(head[4:]))); err != nil {
			return err
		}
	}
}
