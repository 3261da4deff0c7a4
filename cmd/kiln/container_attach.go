package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"syscall"

	"github.com/moby/term"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
	"kiln.build/runner/container"
	"kiln.build/runner/sandbox"
)

func (a *app) attachCommand() *cobra.Command {
	var noStdin, proxy bool
	var keys string
	c := &cobra.Command{
		Use: "attach [flags] CONTAINER", Short: "Watch a running container, and type into it", Args: cobra.ExactArgs(1),
		Long: `Watch a running container, and type into it. It ends with the container and
its exit status, or is left by keys in a terminal (ctrl-p ctrl-q).`,
		Example: "  kiln attach web",
		RunE: func(c *cobra.Command, args []string) error {
			k, err := a.container(args[0])
			if err != nil {
				return err
			}
			leave, err := detachKeys(keys)
			if err != nil {
				return err
			}
			return a.attach(c.Context(), k, !noStdin, leave, proxy)
		},
	}
	c.Flags().BoolVar(&noStdin, "no-stdin", false, "only watch")
	c.Flags().BoolVar(&proxy, "sig-proxy", true, "hand signals on to the container")
	c.Flags().StringVar(&keys, "detach-keys", "", "keys that leave a terminal (default ctrl-p,ctrl-q)")
	return c
}

// detachKeys reads the keys that leave a terminal.
func detachKeys(s string) ([]byte, error) {
	if s == "" {
		s = "ctrl-p,ctrl-q"
	}
	keys, err := term.ToBytes(s)
	if err != nil {
		return nil, fmt.Errorf("invalid detach keys (%s): %w", s, err)
	}
	return keys, nil
}

// attach shows a container that runs until its end, and ends as it does.
func (a *app) attach(ctx context.Context, k *container.Container, stdin bool, keys []byte, proxy bool) error {
	if _, _, err := k.May(container.Attach); err != nil {
		return err
	}
	stdin = stdin && k.Stdin
	if stdin && k.Terminal {
		if err := a.terminal(); err != nil {
			return err
		}
	}
	asked := ctx
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	x, err := k.Attach(ctx, stdin)
	if err != nil {
		return err
	}
	defer x.Conn.Close()
	k.Note("attach")
	// Asked before the end, since the container may be gone after it.
	code := make(chan int, 1)
	go func() {
		n, err := k.Wait(ctx)
		if err != nil {
			n = 1
		}
		code <- n
	}()
	if s := a.terminalSize(); k.Terminal && s.Rows > 0 {
		// Programs draw their screen anew when its size changes.
		_ = k.Resize(ctx, sandbox.Size{Rows: s.Rows + 1, Cols: s.Cols})
		_ = k.Resize(ctx, s)
	}
	w := &watching{app: a, k: k, conn: x.Conn, from: x.Reader, stdin: stdin, keys: keys}
	if !proxy {
		w.quit = asked.Done()
	}
	signals := catchSignals(proxy)
	defer signal.Stop(signals)
	if left, err := w.follow(ctx, signals); err != nil || left {
		return err
	}
	return ended(<-code, nil)
}

// watching is a connection to a container's streams, at this terminal.
type watching struct {
	app   *app
	k     *container.Container
	conn  *net.UnixConn
	from  io.Reader
	stdin bool
	keys  []byte
	quit  <-chan struct{} // closed by a signal, where these are not handed on
}

// follow copies between this program's streams and the container's until the
// container's end; or until the detach keys are typed, and left is true then.
func (w *watching) follow(ctx context.Context, signals <-chan os.Signal) (left bool, err error) {
	if w.stdin && w.k.Terminal {
		in := w.app.stdin.(*os.File)
		old, err := term.SetRawTerminal(in.Fd())
		if err != nil {
			return false, err
		}
		defer func() { err = errors.Join(err, term.RestoreTerminal(in.Fd(), old)) }()
	}
	signal.Ignore(unix.SIGPIPE)
	done := make(chan struct{})
	defer close(done)
	enough := make(chan struct{})
	go func() {
		if forwardSignals(done, signals, func(s syscall.Signal) { _ = w.k.Kill(ctx, s) }, func() {
			if w.k.Terminal {
				_ = w.k.Resize(ctx, w.app.terminalSize())
			}
		}) {
			close(enough)
		}
	}()
	keys := make(chan struct{})
	go func() { // ends with the input, or with this process
		if w.typed() {
			close(keys)
		}
	}()
	output := make(chan error, 1)
	go func() { // ends with the connection
		if w.k.Terminal {
			_, err := io.Copy(unspliced{w.app.stdout}, w.from)
			output <- err
			return
		}
		output <- container.Copy(unspliced{w.app.stdout}, unspliced{w.app.stderr}, w.from)
	}()
	select {
	case <-keys:
		fmt.Fprint(w.app.stderr, "\r\nread escape sequence\r\n")
		return true, nil
	case err := <-output:
		switch {
		case errors.Is(err, unix.ECONNRESET):
			err = nil // all output came, and what was typed was not all read
		case errors.Is(err, unix.EPIPE):
			// Nobody reads any more. The container goes on, as with docker.
			return true, &exitError{1, err}
		}
		return false, err
	case <-w.quit:
		return true, &exitError{130, nil}
	case <-enough:
		return true, &exitError{1, errors.New("got 3 SIGTERM/SIGINTs, forcefully exiting")}
	}
}

// unspliced is a writer and no more. Of a file package io would make use of
// splice(2), which not every file takes: /dev/full for one.
type unspliced struct{ io.Writer }

// typed hands typed input on, and reports whether the detach keys came.
func (w *watching) typed() bool {
	if !w.stdin {
		_ = w.conn.CloseWrite()
		return false
	}
	in := w.app.stdin
	if w.k.Terminal {
		in = term.NewEscapeProxy(in, w.keys)
	}
	_, err := io.Copy(w.conn, in)
	var escape term.EscapeError
	if errors.As(err, &escape) {
		return true
	}
	_ = w.conn.CloseWrite()
	return false
}
