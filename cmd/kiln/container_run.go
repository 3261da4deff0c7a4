package main

import (
	"context"
	"errors"
	"os"
	"os/signal"
	"syscall"

	"github.com/moby/term"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
	"kiln.build/cache"
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
	c.Flags().Bool("help", false, "help for run")
	f.register(c.Flags())
	return flagsFail(c)
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
	store, err := a.open()
	if err != nil {
		return err
	}
	defer store.Close()
	k, err := a.newContainer(ctx, store, f, args)
	if err != nil {
		return err
	}
	if !f.detach {
		return a.foreground(ctx, store, k, true, keys)
	}
	m, err := a.spawn(k, spawnOptions{})
	if err != nil {
		return err
	}
	m.release()
	return writeLines(a.stdout, k.ID)
}

// terminal reports an error if standard input is none.
func (a *app) terminal() error {
	in, ok := a.stdin.(*os.File)
	if !ok || !term.IsTerminal(in.Fd()) {
		return errors.New("the input device is not a TTY")
	}
	return nil
}

// foreground runs a container and shows it. The monitor is this process,
// which is the fastest; but another one where the container may outlive this
// command, that can be left by keys or is started again by its policy.
func (a *app) foreground(ctx context.Context, store *cache.Store, k *container.Container, stdin bool, keys []byte) error {
	if k.Terminal && k.Stdin && stdin || k.Restart.Name != "" {
		return a.spawnAttached(ctx, k, stdin, keys)
	}
	m := &container.Monitor{Store: store, Attach: attachNetwork, Stdout: a.stdout, Stderr: a.stderr, Size: a.terminalSize()}
	if k.Stdin && stdin {
		m.Stdin = a.stdin
	}
	// A reader who leaves ends neither the container nor its log.
	signal.Ignore(unix.SIGPIPE)
	done := make(chan struct{})
	m.Started = func(p *sandbox.Process) {
		forwardSignals(done, true, func(s syscall.Signal) { _ = p.Signal(s) }, func() {
			if k.Terminal {
				_ = p.Resize(a.terminalSize())
			}
		})
	}
	// Signals go to the command, which decides what they mean.
	code, err := m.Run(context.WithoutCancel(ctx), k)
	close(done)
	return ended(code, err)
}

// forwardSignals calls send for signals that are handed on to a container,
// if at all, and resize for changes of the terminal's size, until done is
// closed.
func forwardSignals(done <-chan struct{}, all bool, send func(syscall.Signal), resize func()) {
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, unix.SIGWINCH)
	if all {
		signal.Notify(signals, unix.SIGINT, unix.SIGTERM, unix.SIGHUP, unix.SIGQUIT, unix.SIGUSR1, unix.SIGUSR2,
			unix.SIGALRM, unix.SIGCONT, unix.SIGTSTP, unix.SIGTTIN, unix.SIGTTOU)
	}
	go func() {
		defer signal.Stop(signals)
		for {
			select {
			case <-done:
				return
			case s := <-signals:
				if s == unix.SIGWINCH {
					resize()
				} else if n, ok := s.(syscall.Signal); ok {
					send(n)
				}
			}
		}
	}()
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
