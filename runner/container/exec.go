package container

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"sync"

	"kiln.build/runner/sandbox"
)

// Execution is another command in a container that runs. Its monitor is the
// command's parent, so it goes on if whoever asked for it is killed.
type Execution struct {
	// Terminal is the master side of its terminal, nil if it has none. The
	// caller closes it.
	Terminal *os.File

	conn *conn
}

// execRequest is what a monitor is told about a command.
type execRequest struct {
	Options CommandOptions `json:"options"`
	Detach  bool           `json:"detach,omitempty"`
	Streams []int          `json:"streams,omitempty"` // which of 0, 1 and 2 the files are that come along
}

// Exec runs another command in the container. Streams are its input, output
// and errors, nil for nothing; it has none of them with a terminal. The
// caller keeps them. The error has docker's exit status if the command could
// not be started: see [RequestError].
func (c *Container) Exec(ctx context.Context, o CommandOptions, streams [3]*os.File) (*Execution, error) {
	return c.exec(ctx, execRequest{Options: o}, streams)
}

// ExecDetached is Exec for a command that nobody watches or waits for.
func (c *Container) ExecDetached(ctx context.Context, o CommandOptions) error {
	x, err := c.exec(ctx, execRequest{Options: o, Detach: true}, [3]*os.File{})
	if err != nil {
		return err
	}
	return x.conn.Close()
}

func (c *Container) exec(ctx context.Context, q execRequest, streams [3]*os.File) (*Execution, error) {
	if _, _, err := c.May(Exec); err != nil {
		return nil, err
	}
	var files []*os.File
	for i, f := range streams {
		if f != nil {
			q.Streams, files = append(q.Streams, i), append(files, f)
		}
	}
	k, passed, err := c.dial(ctx, request{Do: doExec, Exec: &q}, nil, files...)
	if errors.Is(err, errEnded) {
		if _, _, refused := c.May(Exec); refused != nil {
			err = refused
		}
	}
	if err != nil {
		return nil, err
	}
	x := &Execution{conn: k}
	for i, f := range passed {
		if i == 0 && q.Options.Terminal {
			x.Terminal = f
		} else {
			_ = f.Close()
		}
	}
	return x, nil
}

// Wait returns the command's exit status: that of a killed one if its monitor
// was killed.
func (x *Execution) Wait() (int, error) {
	defer x.conn.Close()
	line, err := x.conn.r.ReadBytes('\n')
	if err != nil {
		return 137, nil //nolint:nilerr // the container is gone, and all in it
	}
	var a answer
	if err := json.Unmarshal(line, &a); err != nil {
		return 0, fmt.Errorf("read how the command ended: %w", err)
	}
	if a.Error != "" {
		return 0, &RequestError{a.Error, a.Code}
	}
	return a.Code, nil
}

// Leave ends waiting. The command goes on.
func (x *Execution) Leave() { _ = x.conn.Close() }

// serveExec runs a command that ends with the container, at the latest, since
// its PID namespace ends with the container's first process.
func (w *watch) serveExec(ctx context.Context, k *conn, q *execRequest, files []*os.File) {
	if q == nil || len(files) > len(q.Streams) {
		closeAll(files)
		reply(k, errors.New("exec: no command"))
		return
	}
	p, id, err := w.startExec(ctx, q, files)
	closeAll(files)
	if err != nil {
		reply(k, err)
		return
	}
	text := strings.Join(q.Options.Args, " ")
	w.note("exec_create: "+text, "execID", id)
	w.note("exec_start: "+text, "execID", id)
	t := p.Terminal()
	switch {
	case q.Detach:
		reply(k, nil)
		_ = k.Close()
	case t != nil:
		_ = send(k.UnixConn, answer{}, t) // whoever has left does not miss it
	default:
		_ = send(k.UnixConn, answer{})
	}
	var copies sync.WaitGroup
	ended := make(chan struct{})
	if t != nil {
		copies.Go(func() { keepTerminal(k, t, ended) })
	}
	status, err := p.Wait()
	w.note("exec_die", "execID", id, "exitCode", strconv.Itoa(status.Code))
	if !q.Detach {
		a := answer{Code: status.Code}
		if err != nil {
			a.Error = err.Error()
		}
		_ = send(k.UnixConn, a)
	}
	close(ended)
	_ = k.Close()
	copies.Wait()
}

// keepTerminal keeps a command's terminal open: it would be hung up if whoever
// watches left. From then on what it prints is read here, lest it blocks; what
// it printed last, if they stayed until its end, is theirs to read.
func keepTerminal(k *conn, t *os.File, ended <-chan struct{}) {
	defer t.Close()
	_, _ = k.r.ReadByte() // nothing comes: this is the end of the connection
	select {
	case <-ended:
	default:
		_, _ = io.Copy(io.Discard, t)
	}
}

func (w *watch) startExec(ctx context.Context, q *execRequest, files []*os.File) (*sandbox.Process, string, error) {
	first, err := w.command(Exec)
	if err != nil {
		return nil, "", err
	}
	root, err := first.Root()
	if err != nil {
		return nil, "", err
	}
	defer root.Close()
	cmd, err := w.c.Command(root, q.Options)
	if err != nil {
		return nil, "", &sandbox.CommandError{Message: err.Error(), Code: 126}
	}
	for i, n := range q.Streams {
		if i >= len(files) || n < 0 || n > 2 {
			return nil, "", errors.New("exec: a stream is missing")
		}
		*[]**os.File{&cmd.Stdin, &cmd.Stdout, &cmd.Stderr}[n] = files[i]
	}
	p, err := first.Exec(ctx, cmd)
	var failed *sandbox.CommandError
	if err != nil && !errors.As(err, &failed) {
		err = &sandbox.CommandError{Message: err.Error(), Code: 126} // such as a working directory that is not there
	}
	var id [32]byte
	_, _ = rand.Read(id[:]) // never fails
	return p, hex.EncodeToString(id[:]), err
}
