package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"

	"github.com/moby/term"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
	"kiln.build/runner/container"
	"kiln.build/runner/sandbox"
)

func (a *app) runCommand() *cobra.Command {
	var f runFlags
	c := &cobra.Command{
		Use:   "run [flags] IMAGE [COMMAND] [ARG...]",
		Short: "Run a command in a new container",
		Long: `Run a command in a new container.

Exit status: that of the command; 125 if kiln itself failed, 126 if the command
could not be run, 127 if it was not found, 128 + n if signal n ended it.`,
		Example: `  kiln run --rm hello
  kiln run --rm -it debian:bookworm bash
  kiln run -d --name web -p 127.0.0.1:8080:80 nginx`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			f.note(c)
			return cliFailed(a.run(c.Context(), &f, args))
		},
	}
	c.Flags().BoolVarP(&f.detach, "detach", "d", false, "run in the background and print the container's ID")
	c.Flags().StringVar(&f.detachKeys, "detach-keys", "", "keys that leave a terminal (default ctrl-p,ctrl-q)")
	c.Flags().StringSliceVarP(&f.attach, "attach", "a", nil, "show only: stdin, stdout, stderr (repeatable)")
	c.Flags().BoolVar(&f.sigProxy, "sig-proxy", true, "hand signals on to the container")
	c.Flags().Bool("help", false, "help for run")
	f.register(c.Flags())
	return c
}

func (a *app) run(ctx context.Context, f *runFlags, args []string) error {
	keys, err := detachKeys(f.detachKeys)
	if err != nil {
		return err
	}
	if f.interactive && f.tty && !f.detach {
		if err := a.terminal(); err != nil {
			return err
		}
	}
	shown, err := a.shown(f)
	if err != nil {
		return err
	}
	m, err := a.newMonitor(!f.detach)
	if err != nil {
		return err
	}
	k, err := a.forRun(ctx, f, args)
	if err != nil {
		m.abandon()
		return err
	}
	if !f.detach {
		if shown.stdout == io.Discard && shown.stderr == io.Discard {
			fmt.Fprintln(a.stdout, k.ID) // nothing else tells of it
		}
		return shown.foreground(ctx, m, k, len(f.attach) == 0 || slices.Contains(f.attach, "stdin"), keys, f.sigProxy)
	}
	if err := m.start(k, sandbox.Size{}); err != nil {
		return err
	}
	m.release()
	return writeLines(a.stdout, k.ID)
}

// shown is the program with those of its streams that --attach asks for.
func (a *app) shown(f *runFlags) (*app, error) {
	if len(f.attach) == 0 {
		return a, nil
	}
	if f.detach {
		return nil, errors.New("conflicting options: cannot specify both --attach and --detach")
	}
	x := *a
	for i, s := range f.attach {
		if s = strings.ToLower(s); !slices.Contains([]string{"stdin", "stdout", "stderr"}, s) {
			return nil, fmt.Errorf("invalid argument %q for --attach: must be stdin, stdout or stderr", s)
		}
		f.attach[i] = s
	}
	if !slices.Contains(f.attach, "stdout") {
		x.stdout = io.Discard
	}
	if !slices.Contains(f.attach, "stderr") {
		x.stderr = io.Discard
	}
	return &x, nil
}

func (a *app) forRun(ctx context.Context, f *runFlags, args []string) (*container.Container, error) {
	store, err := a.open()
	if err != nil {
		return nil, err
	}
	defer store.Close()
	return a.newContainer(ctx, store, f, args)
}

// terminal reports an error if standard input is none.
func (a *app) terminal() error {
	in, ok := a.stdin.(*os.File)
	if !ok || !term.IsTerminal(in.Fd()) {
		return errors.New("the input device is not a TTY")
	}
	return nil
}

// foreground starts a container and shows it until it ends.
func (a *app) foreground(ctx context.Context, m *monitorProcess, k *container.Container, stdin bool, keys []byte, proxy bool) error {
	asked := ctx
	ctx = context.WithoutCancel(ctx)
	// Signals go to the command, which decides what they mean; those that
	// come before it runs wait for it.
	signals := catchSignals(proxy)
	defer signal.Stop(signals)
	if err := m.start(k, a.terminalSize()); err != nil {
		return err
	}
	w := &watching{app: a, k: k, conn: m.watch, from: m.watch, stdin: stdin && k.Stdin, keys: keys}
	if !proxy {
		w.quit = asked.Done()
	}
	if left, err := w.follow(ctx, signals); err != nil || left {
		m.release()
		return err
	}
	return ended(m.wait(), nil)
}

// catchSignals begins to catch changes of the terminal's size and, if these
// are handed on to a container, other signals.
func catchSignals(all bool) chan os.Signal {
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, unix.SIGWINCH)
	if all {
		signal.Notify(signals, unix.SIGINT, unix.SIGTERM, unix.SIGHUP, unix.SIGQUIT, unix.SIGUSR1, unix.SIGUSR2,
			unix.SIGALRM, unix.SIGCONT, unix.SIGTSTP, unix.SIGTTIN, unix.SIGTTOU)
	}
	return signals
}

// forwardSignals calls send for signals that were caught, and resize for
// changes of the terminal's size, until done is closed, or one that should end
// the program has come so often that it has to be meant for this one.
func forwardSignals(done <-chan struct{}, signals <-chan os.Signal, send func(syscall.Signal), resize func()) (enough bool) {
	for asked := 0; asked < 3; {
		select {
		case <-done:
			return false
		case s := <-signals:
			n, ok := s.(syscall.Signal)
			switch {
			case s == unix.SIGWINCH:
				resize()
			case ok:
				send(n)
			}
			if s == unix.SIGINT || s == unix.SIGTERM {
				asked++
			}
		}
	}
	return true
}

// terminalSize is that of the terminal that output goes to, zero if none.
func (a *app) terminalSize() sandbox.Size {
	if out, ok := a.stdout.(*os.File); ok {
		if ws, err := term.GetWinsize(out.Fd()); err == nil {
			return sandbox.Size{Rows: ws.Height, Cols: ws.Width}
		}
	}
	return sandbox.Size{}
}

// ended is the outcome of a container for this program.
func ended(code int, err error) error {
	var start *container.StartError
	switch {
	case errors.As(err, &start):
		return &exitError{start.Code, err}
	case err != nil:
		return cliFailed(err)
	case code != 0:
		return &exitError{code, nil}
	}
	return nil
}
