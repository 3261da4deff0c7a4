package main

import (
	"errors"
	"io"
	"os"
	"os/signal"
	"sync"
	"sync/atomic"

	"github.com/moby/term"
	"golang.org/x/sys/unix"
)

// streams connects this process's streams to those of a command in a sandbox.
type streams struct {
	app              *app
	interactive, tty bool
	keys             []byte        // that leave a terminal
	left             chan struct{} // closed when they were typed

	ends    [3]*os.File // given to the command, closed here once it runs
	copies  sync.WaitGroup
	failed  atomic.Pointer[error] // why output could not be written
	restore func()
}

// connect makes the command's streams: pipes, unless it has a terminal. The ends
// of this machine's own terminal are never handed into a sandbox.
func (s *streams) connect() error {
	if s.tty {
		if in, ok := s.app.stdin.(*os.File); ok && s.interactive {
			if !term.IsTerminal(in.Fd()) {
				return errors.New("the input device is not a TTY")
			}
			old, err := term.SetRawTerminal(in.Fd())
			if err != nil {
				return err
			}
			s.restore = func() { _ = term.RestoreTerminal(in.Fd(), old) }
		}
		return nil
	}
	for i, to := range map[int]io.Writer{1: s.app.stdout, 2: s.app.stderr} {
		rd, wr, err := os.Pipe()
		if err != nil {
			return err
		}
		s.ends[i] = wr
		s.copies.Go(func() {
			if _, err := io.Copy(unspliced{to}, rd); err != nil {
				s.failed.CompareAndSwap(nil, &err)
				_, _ = io.Copy(io.Discard, rd) // lest the command waits for us
			}
		})
	}
	if s.interactive {
		rd, wr, err := os.Pipe()
		if err != nil {
			return err
		}
		s.ends[0] = rd
		go func() { // ends with the input, or with this process
			_, _ = io.Copy(wr, s.app.stdin)
			_ = wr.Close()
		}()
	}
	return nil
}

// started is called once the command runs, with its terminal if it has one, or
// if it does not run.
func (s *streams) started(t *os.File) {
	for _, f := range s.ends {
		if f != nil {
			_ = f.Close()
		}
	}
	if t == nil {
		return
	}
	resize := func() {
		if out, ok := s.app.stdout.(*os.File); ok {
			if ws, err := term.GetWinsize(out.Fd()); err == nil {
				_ = term.SetWinsize(t.Fd(), ws)
			}
		}
	}
	resize()
	changed := make(chan os.Signal, 1)
	signal.Notify(changed, unix.SIGWINCH)
	go func() { // ends with this process
		for range changed {
			resize()
		}
	}()
	s.copies.Go(func() { _, _ = io.Copy(s.app.stdout, t) })
	if s.interactive {
		go func() { // ends with the input, or with this process
			_, err := io.Copy(t, term.NewEscapeProxy(s.app.stdin, s.keys))
			var escape term.EscapeError
			if errors.As(err, &escape) {
				close(s.left)
			}
		}()
	}
}

// wait waits for the end of the output and gives the terminal back.
func (s *streams) wait() {
	s.copies.Wait()
	s.giveBack()
}

// giveBack makes the terminal what it was.
func (s *streams) giveBack() {
	if s.restore != nil {
		s.restore()
	}
}
