package main

import (
	"context"
	"errors"

	"github.com/spf13/cobra"
	"kiln.build/runner/container"
	"kiln.build/runner/sandbox"
)

// startFlags are the flags of start, as typed.
type startFlags struct {
	attach, interactive, policies, proxy bool
	keys                                 string
}

func (a *app) startCommand() *cobra.Command {
	var f startFlags
	c := &cobra.Command{
		Use: "start [flags] CONTAINER...", Short: "Start containers that were created or have ended",
		Example: "  kiln start -a job\n  kiln start --restart-policies   # at boot: what should run",
		Args: func(c *cobra.Command, args []string) error {
			if f.policies {
				return cobra.NoArgs(c, args)
			}
			return cobra.MinimumNArgs(1)(c, args)
		},
		RunE: func(c *cobra.Command, args []string) error {
			switch {
			case f.policies:
				return a.startPolicies(c.Context())
			case f.attach || f.interactive:
				return a.startAttached(c.Context(), &f, args)
			}
			return a.each(c.Context(), args, a.start)
		},
	}
	c.Flags().BoolVarP(&f.attach, "attach", "a", false, "show its output, and end with its exit status")
	c.Flags().BoolVarP(&f.interactive, "interactive", "i", false, "give it standard input too")
	c.Flags().BoolVar(&f.proxy, "sig-proxy", true, "hand signals on to the container")
	c.Flags().BoolVar(&f.policies, "restart-policies", false, "start what should run by its restart policy and does not")
	c.Flags().StringVar(&f.keys, "detach-keys", "", "keys that leave a terminal (default ctrl-p,ctrl-q)")
	return c
}

// start starts a container in the background.
func (a *app) start(k *container.Container) error {
	if do, _, err := k.May(container.Start); err != nil || !do {
		return err
	}
	m, err := a.newMonitor(false)
	if err != nil {
		return err
	}
	if err := m.start(k, sandbox.Size{}); err != nil {
		if errors.Is(err, container.ErrRunning) {
			return nil
		}
		return err
	}
	m.release()
	return nil
}

func (a *app) startAttached(ctx context.Context, f *startFlags, names []string) error {
	if len(names) > 1 {
		return errors.New("you cannot start and attach multiple containers at once")
	}
	keys, err := detachKeys(f.keys)
	if err != nil {
		return err
	}
	k, err := a.container(names[0])
	if err != nil {
		return err
	}
	do, _, err := k.May(container.Start)
	if err != nil {
		return err
	}
	if !do {
		return a.attach(ctx, k, f.interactive, keys, f.proxy)
	}
	if f.interactive && k.Terminal && k.Stdin {
		if err := a.terminal(); err != nil {
			return err
		}
	}
	m, err := a.newMonitor(true)
	if err != nil {
		return err
	}
	return a.foreground(ctx, m, k, f.interactive, keys, f.proxy)
}

func (a *app) startPolicies(ctx context.Context) error {
	set, err := a.containers()
	if err != nil {
		return err
	}
	list, err := set.List()
	if err != nil {
		return err
	}
	var names []string
	for _, k := range list {
		wants, err := k.WantsStart()
		if err != nil {
			return err
		}
		if wants {
			names = append(names, k.Name)
		}
	}
	return a.each(ctx, names, a.start)
}

func (a *app) restartCommand() *cobra.Command {
	var f stopFlags
	c := &cobra.Command{
		Use: "restart [flags] CONTAINER...", Short: "Stop containers and start them again", Args: cobra.MinimumNArgs(1),
		Example: "  kiln restart web",
		RunE: func(c *cobra.Command, args []string) error {
			o, err := f.options(c)
			if err != nil {
				return err
			}
			return a.each(c.Context(), args, func(k *container.Container) error {
				if err := k.Stop(c.Context(), o); err != nil {
					return err
				}
				if err := a.start(k); err != nil {
					return err
				}
				k.Note("restart")
				return nil
			})
		},
	}
	f.register(c.Flags())
	return c
}
