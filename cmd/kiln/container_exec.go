package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/spf13/cobra"
	"kiln.build/runner/container"
)

// execFlags are the flags of exec, as typed.
type execFlags struct {
	interactive, tty, detach, privileged bool
	user, workdir, keys                  string
	env, envFiles                        []string
}

func (a *app) execCommand() *cobra.Command {
	var f execFlags
	c := &cobra.Command{
		Use: "exec [flags] CONTAINER COMMAND [ARG...]", Short: "Run another command in a running container", Args: cobra.MinimumNArgs(2),
		Example: "  kiln exec -it web sh",
		RunE:    func(c *cobra.Command, args []string) error { return a.exec(c.Context(), &f, args) },
	}
	fs := c.Flags()
	fs.SetInterspersed(false)
	fs.BoolVarP(&f.interactive, "interactive", "i", false, "keep standard input open")
	fs.BoolVarP(&f.tty, "tty", "t", false, "give the command a terminal")
	fs.BoolVarP(&f.detach, "detach", "d", false, "do not wait for the command")
	fs.BoolVar(&f.privileged, "privileged", false, "give the command all rights")
	fs.StringVarP(&f.user, "user", "u", "", "user[:group]")
	fs.StringVarP(&f.workdir, "workdir", "w", "", "working folder")
	fs.StringArrayVarP(&f.env, "env", "e", nil, "variable, NAME=VALUE (repeatable)")
	fs.StringArrayVar(&f.envFiles, "env-file", nil, "file with variables, one a line (repeatable)")
	fs.StringVar(&f.keys, "detach-keys", "", "keys that leave a terminal (default ctrl-p,ctrl-q)")
	return c
}

func (a *app) exec(ctx context.Context, f *execFlags, args []string) error {
	keys, err := detachKeys(f.keys)
	if err != nil {
		return err
	}
	k, err := a.container(args[0])
	if err != nil {
		return err
	}
	_, _, err = k.May(container.Exec)
	if err != nil {
		return err
	}
	if f.tty && f.interactive && !f.detach {
		if err := a.terminal(); err != nil {
			return err
		}
	}
	env, err := (&runFlags{env: f.env, envFiles: f.envFiles}).environment(k.Env)
	if err != nil {
		return cliFailed(err)
	}
	o := container.CommandOptions{
		Args: args[1:], Env: env, Cwd: cmp.Or(f.workdir, k.Cwd), User: cmp.Or(f.user, k.User), Privileged: f.privileged,
		Terminal: f.tty, Size: a.terminalSize(),
	}
	if f.detach {
		return execFailed(k.ExecDetached(ctx, o))
	}
	s := &streams{app: a, interactive: f.interactive, tty: f.tty, keys: keys, left: make(chan struct{})}
	if err := s.connect(); err != nil {
		return cliFailed(err)
	}
	x, err := k.Exec(ctx, o, s.ends)
	if err != nil {
		s.started(nil)
		s.wait()
		return execFailed(err)
	}
	s.started(x.Terminal)
	waiting, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() { // ends with the command, or with this process
		select {
		case <-s.left:
			cancel()
		case <-waiting.Done():
		}
	}()
	stop := context.AfterFunc(waiting, x.Leave)
	defer stop()
	code, err := x.Wait()
	switch {
	case ctx.Err() != nil:
		return &exitError{130, nil} // left by Ctrl-C; it goes on, as with docker
	case waiting.Err() != nil:
		s.giveBack()
		return errors.New("read escape sequence") // and status 1, as with docker
	}
	s.wait()
	switch {
	case err != nil:
		return cliFailed(err)
	case code != 0:
		return &exitError{code, nil}
	}
	if failed := s.failed.Load(); failed != nil {
		return *failed
	}
	return nil
}

// execFailed gives the error of a command that could not be started docker's
// exit status.
func execFailed(err error) error {
	var failed *container.RequestError
	if errors.As(err, &failed) && failed.Code != 0 {
		return &exitError{failed.Code, err}
	}
	return err
}

func (a *app) portCommand() *cobra.Command {
	return &cobra.Command{
		Use: "port CONTAINER [PORT[/PROTO]]", Short: "Show a container's published ports", Args: cobra.RangeArgs(1, 2),
		Example: "  kiln port web 80",
		RunE: func(_ *cobra.Command, args []string) error {
			k, err := a.container(args[0])
			if err != nil {
				return err
			}
			st, err := k.State()
			if err != nil {
				return err
			}
			shown := false
			slices.SortFunc(st.Ports, func(a, b container.Port) int {
				return cmp.Or(cmp.Compare(a.Container, b.Container), cmp.Compare(a.Proto, b.Proto), cmp.Compare(a.Host(), b.Host()))
			})
			for _, p := range st.Ports {
				switch at := p.ContainerPort(); {
				case len(args) == 1:
					fmt.Fprintf(a.stdout, "%s -> %s\n", at, p.Host())
				case args[1] == at || args[1]+"/tcp" == at:
					fmt.Fprintln(a.stdout, p.Host())
					shown = true
				}
			}
			if len(args) == 2 && !shown {
				return fmt.Errorf("no public port '%s' published for %s", args[1], k.Name)
			}
			return nil
		},
	}
}
