package container

import (
	"context"
	"errors"
	"io"
	"os"
	"slices"
	"sync"
	"time"

	"kiln.build/runner/sandbox"
)

// run is one start of a container, up to its end.
type run struct {
	*watch
	spec    sandbox.Spec
	root    *os.File
	host    *Container // whose network it has; nil for its own
	log     *logger
	ends    []*os.File // given to the sandbox, closed here once it has them
	copies  sync.WaitGroup
	closers []func() error
}

// once runs the container's command and returns its exit status.
func (w *watch) once(ctx context.Context) (int, error) {
	r := &run{watch: w}
	defer r.close()
	groups, err := r.takeGroups()
	if err != nil {
		return 0, &StartError{125, err}
	}
	if err := r.prepare(ctx); err != nil {
		r.given()
		r.copies.Wait()
		return 0, &StartError{125, errors.Join(err, groups.Discard())}
	}
	r.spec.ControlGroups = groups
	p, err := sandbox.Start(ctx, r.spec)
	r.given()
	if err != nil {
		r.copies.Wait()
		var cmd *sandbox.CommandError
		if errors.As(err, &cmd) {
			return 0, &StartError{cmd.Code, err}
		}
		return 0, &StartError{125, err}
	}
	// Its own descriptors keep the root from now on, as long as it runs.
	_ = r.root.Close()
	r.terminal(p)
	first := w.st.Started.IsZero()
	err = w.update(func(st *State) { r.running(st, p) })
	if err != nil {
		_ = p.Kill()
	} else {
		w.note("start")
		w.mu.Lock()
		err = w.rewire(ctx) // what has changed since it was wired
		w.mu.Unlock()
		if first && w.m.Started != nil {
			w.m.Started(p)
		}
	}
	checking, done := context.WithCancel(ctx)
	var checks sync.WaitGroup
	if w.c.Health != nil {
		checks.Go(func() { r.check(checking, p) })
	}
	status, waitErr := p.Wait()
	done()
	checks.Wait()
	r.copies.Wait()
	w.mu.Lock()
	w.st.OOM = status.OOMKilled
	w.mu.Unlock()
	return status.Code, errors.Join(err, waitErr)
}

// running is the state from now on.
func (r *run) running(st *State, p *sandbox.Process) {
	r.proc = p
	if r.held { // stopped while it was being started
		_ = p.Kill()
	}
	st.Status, st.PID, st.Started, st.Finished = Running, p.PID(), time.Now().UTC(), time.Time{}
	r.wired.describe(st)
	st.Error, st.ExitCode, st.OOM = "", 0, false
	if st.Health = nil; r.c.Health != nil {
		st.Health = &HealthState{Status: Starting}
	}
	for _, s := range p.Created() {
		if !slices.Contains(st.Stubs, s) {
			st.Stubs = append(st.Stubs, s)
		}
	}
}

func (r *run) onClose(f func() error) { r.closers = append(r.closers, f) }

func (r *run) close() {
	for _, f := range slices.Backward(r.closers) {
		_ = f() // descriptors and interfaces, which end with the process anyway
	}
}

// prepare makes all that the sandbox needs.
func (r *run) prepare(ctx context.Context) error {
	var err error
	if r.root, err = r.mountRoot(ctx); err != nil {
		return err
	}
	r.onClose(r.root.Close)
	if err := r.makeSpec(ctx); err != nil {
		return err
	}
	if w := r.wiring(); w != nil {
		r.spec.NetworkReady = func(ctx context.Context, pid int) error { return r.wire(ctx, *w, pid) }
	}
	if r.log, err = r.c.openLog(); err != nil {
		return err
	}
	r.onClose(r.log.close)
	if r.c.Terminal {
		return nil
	}
	return r.pipes()
}

// pipes makes the streams of a command without a terminal.
func (r *run) pipes() error {
	for _, s := range []struct {
		end    **os.File
		stream byte
		to     io.Writer
	}{{&r.spec.Stdout, stdout, r.m.Stdout}, {&r.spec.Stderr, stderr, r.m.Stderr}} {
		rd, wr, err := os.Pipe()
		if err != nil {
			return err
		}
		*s.end = wr
		r.ends = append(r.ends, wr)
		r.copies.Go(func() { r.copy(rd, s.stream, s.to) })
	}
	if !r.c.Stdin {
		return nil
	}
	rd, wr, err := os.Pipe()
	if err != nil {
		return err
	}
	r.spec.Stdin = rd
	r.ends = append(r.ends, rd)
	r.onClose(func() error { return ignoreClosed(wr.Close()) })
	r.feed(pipe{wr})
	return nil
}

func ignoreClosed(err error) error {
	if errors.Is(err, os.ErrClosed) {
		return nil
	}
	return err
}

// given closes what the sandbox has now.
func (r *run) given() {
	for _, f := range r.ends {
		_ = f.Close()
	}
	r.ends = nil
}

// terminal takes the streams of a command that has one.
func (r *run) terminal(p *sandbox.Process) {
	t := p.Terminal()
	if t == nil {
		return
	}
	r.copies.Go(func() { r.copy(t, stdout, r.m.Stdout) })
	if r.c.Stdin {
		r.feed(t)
	}
}

// feed makes w the command's input.
func (r *run) feed(w io.WriteCloser) {
	r.stdin.set(w)
	if r.m.Stdin == nil || r.st.Restarts > 0 {
		return
	}
	go func() { // ends with the input, or with this process
		_, _ = io.Copy(&r.stdin, r.m.Stdin)
		r.stdin.close()
	}()
}

// copy hands what the container prints to its log and to all who watch.
func (r *run) copy(from *os.File, name byte, to io.Writer) {
	log := &stream{l: r.log, name: map[byte]string{stdout: "stdout", stderr: "stderr"}[name]}
	buf := make([]byte, 32<<10)
	for {
		n, err := from.Read(buf)
		if n > 0 {
			if to != nil {
				if _, err := to.Write(buf[:n]); err != nil {
					to = nil // nobody watches any more; the log goes on
				}
			}
			r.watchers.write(name, buf[:n])
			_, _ = log.Write(buf[:n]) // a full disk must not stop the container
		}
		if err != nil {
			break
		}
	}
	_ = log.flush()
	_ = from.Close()
}
