package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"
	"kiln.build/runner/container"
	"kiln.build/runner/sandbox"
)

// execFlags are the flags of exec, as typed.
type execFlags struct {
	interactive, tty, detach, privileged bool
	user, workdir                        string
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
	return flagsFail(c)
}

func (a *app) exec(ctx context.Context, f *execFlags, args []string) error {
	k, err := a.container(args[0])
	if err != nil {
		return err
	}
	_, st, err := k.May(container.Exec)
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
	root, closeRoot, err := k.Root(ctx, nil, false)
	if err != nil {
		return cliFailed(err)
	}
	defer closeRoot()
	o := container.CommandOptions{
		Args: args[1:], Env: env, Cwd: f.workdir, User: f.user, Privileged: f.privileged,
		Terminal: f.tty, Size: a.terminalSize(),
	}
	if o.User == "" {
		o.User = k.User
	}
	if o.Cwd == "" {
		o.Cwd = k.Cwd
	}
	cmd, err := k.Command(root, o)
	if err != nil {
		return &exitError{126, err}
	}
	if !f.detach {
		return a.execIn(ctx, st.PID, cmd, f.interactive, f.tty)
	}
	err = k.ExecDetached(ctx, cmd)
	var failed *container.RequestError
	if errors.As(err, &failed) && failed.Code != 0 {
		return &exitError{failed.Code, err}
	}
	return err
}

// execIn runs a command in a sandbox with this process's streams.
func (a *app) execIn(ctx context.Context, pid int, cmd sandbox.Command, interactive, tty bool) error {
	s := &streams{app: a, interactive: interactive, tty: tty}
	if err := s.connect(&cmd); err != nil {
		return cliFailed(err)
	}
	p, err := sandbox.Exec(ctx, pid, cmd)
	s.started(p)
	if err != nil {
		s.wait()
		var failed *sandbox.CommandError
		if errors.As(err, &failed) {
			return &exitError{failed.Code, err}
		}
		return cliFailed(err)
	}
	status, err := p.Wait()
	s.wait()
	switch {
	case err != nil:
		return cliFailed(err)
	case status.Code != 0:
		return &exitError{status.Code, nil}
	}
	return nil
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
