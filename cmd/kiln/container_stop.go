package main

import (
	"errors"
	"fmt"
	"io/fs"
	"sync"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"kiln.build/runner/container"
)

func (a *app) stopCommand() *cobra.Command {
	var f stopFlags
	c := &cobra.Command{
		Use: "stop [flags] CONTAINER...", Short: "Ask containers to end, and kill them if they do not", Args: cobra.MinimumNArgs(1),
		Example: "  kiln stop -t 5 web",
		RunE: func(c *cobra.Command, args []string) error {
			o, err := f.options(c)
			if err != nil {
				return err
			}
			return a.together(c.Context(), args, func(k *container.Container) error { return k.Stop(c.Context(), o) })
		},
	}
	f.register(c.Flags())
	return c
}

// stopFlags are the flags of stop and restart, as typed.
type stopFlags struct {
	signal  string
	seconds int
}

func (f *stopFlags) register(fs *pflag.FlagSet) {
	fs.StringVarP(&f.signal, "signal", "s", "", "signal that asks it to end (default the container's own)")
	fs.IntVarP(&f.seconds, "timeout", "t", 10, "seconds to wait before killing; -1 for ever (default the container's own, 10)")
	fs.IntVar(&f.seconds, "time", 10, "same as --timeout")
	_ = fs.MarkHidden("time") // it is there: its name until docker 28
}

func (f *stopFlags) options(c *cobra.Command) (o container.StopOptions, err error) {
	if c.Flags().Changed("timeout") || c.Flags().Changed("time") {
		o.Seconds = &f.seconds
	}
	if f.signal != "" {
		o.Signal, err = container.ParseSignal(f.signal)
	}
	return o, err
}

func (a *app) killCommand() *cobra.Command {
	var name string
	c := &cobra.Command{
		Use: "kill [flags] CONTAINER...", Short: "Send a signal to containers", Args: cobra.MinimumNArgs(1),
		Example: "  kiln kill -s HUP web",
		RunE: func(c *cobra.Command, args []string) error {
			sig, err := container.ParseSignal(name)
			if err != nil {
				return err
			}
			return a.together(c.Context(), args, func(k *container.Container) error { return k.Kill(c.Context(), sig) })
		},
	}
	c.Flags().StringVarP(&name, "signal", "s", "KILL", "the signal, by name or number")
	return c
}

func (a *app) pauseCommand() *cobra.Command {
	return &cobra.Command{
		Use: "pause CONTAINER...", Short: "Freeze containers", Args: cobra.MinimumNArgs(1),
		Example: "  kiln pause web",
		RunE: func(c *cobra.Command, args []string) error {
			return a.together(c.Context(), args, func(k *container.Container) error { return k.Pause(c.Context()) })
		},
	}
}

func (a *app) unpauseCommand() *cobra.Command {
	return &cobra.Command{
		Use: "unpause CONTAINER...", Short: "Let frozen containers go on", Args: cobra.MinimumNArgs(1),
		Example: "  kiln unpause web",
		RunE: func(c *cobra.Command, args []string) error {
			return a.together(c.Context(), args, func(k *container.Container) error { return k.Unpause(c.Context()) })
		},
	}
}

func (a *app) waitCommand() *cobra.Command {
	return &cobra.Command{
		Use: "wait CONTAINER...", Short: "Wait until containers have ended, and print their exit statuses", Args: cobra.MinimumNArgs(1),
		Example: "  kiln wait job && echo done",
		RunE: func(c *cobra.Command, args []string) error {
			set, err := a.containers()
			if err != nil {
				return err
			}
			// All at once: one that removes itself has a status only until then.
			codes, errs := make([]int, len(args)), make([]error, len(args))
			done := make([]sync.WaitGroup, len(args))
			for i, n := range args {
				done[i].Go(func() {
					errs[i] = doTo(set, n, func(k *container.Container) (err error) {
						codes[i], err = k.Wait(c.Context())
						return err
					})
				})
			}
			for i := range args {
				if done[i].Wait(); errs[i] == nil {
					fmt.Fprintln(a.stdout, codes[i])
				}
			}
			return errors.Join(errs...)
		},
	}
}

func (a *app) rmCommand() *cobra.Command {
	var o container.RemoveOptions
	c := &cobra.Command{
		Use: "rm [flags] CONTAINER...", Aliases: []string{"remove"}, Short: "Remove containers", Args: cobra.MinimumNArgs(1),
		Example: "  kiln rm -f web",
		RunE: func(c *cobra.Command, args []string) error {
			if o.Force {
				var err error
				if args, err = a.present(args); err != nil {
					return err
				}
			}
			return a.together(c.Context(), args, func(k *container.Container) error { return k.Remove(c.Context(), o) })
		},
	}
	c.Flags().BoolVarP(&o.Force, "force", "f", false, "kill what runs")
	c.Flags().BoolVarP(&o.Volumes, "volumes", "v", false, "remove their volumes that have no names, too")
	return c
}

// present leaves names out that no container has. It tells of them, but with
// --force that is no failure, as with docker.
func (a *app) present(names []string) ([]string, error) {
	set, err := a.containers()
	if err != nil {
		return nil, err
	}
	var all []string
	for _, n := range names {
		if _, err := set.Find(n); errors.Is(err, fs.ErrNotExist) {
			fmt.Fprintf(a.stderr, "kiln: %v\n", err)
			continue
		}
		all = append(all, n)
	}
	return all, nil
}

func (a *app) renameCommand() *cobra.Command {
	return &cobra.Command{
		Use: "rename CONTAINER NAME", Short: "Give a container another name", Args: cobra.ExactArgs(2),
		Example: "  kiln rename amber_jug web",
		RunE: func(c *cobra.Command, args []string) error {
			set, err := a.containers()
			if err != nil {
				return err
			}
			k, err := set.Find(args[0])
			if err != nil {
				return err
			}
			return set.Rename(c.Context(), k, args[1])
		},
	}
}

func (a *app) containerPrune() *cobra.Command {
	var force bool
	var filters []string
	c := &cobra.Command{
		Use: "prune [flags]", Short: "Remove all containers that do not run", Args: cobra.NoArgs,
		Example: "  kiln container prune -f",
		RunE: func(c *cobra.Command, _ []string) error {
			if ok, err := a.confirm(force, "This will remove all stopped containers."); err != nil || !ok {
				return err
			}
			set, err := a.containers()
			if err != nil {
				return err
			}
			list, err := set.List()
			if err != nil {
				return err
			}
			keep, err := psFilter(list, filters)
			if err != nil {
				return err
			}
			var freed int64
			var gone []string
			for _, k := range list {
				st, err := k.State()
				if err != nil || st.Status.Live() || !keep(k, st) {
					continue // one that is gone is none to remove
				}
				n := k.SpaceUsed()
				if err := k.Remove(c.Context(), container.RemoveOptions{}); err != nil {
					var started *container.StateError
					if errors.As(err, &started) {
						continue
					}
					return err
				}
				freed += n
				gone = append(gone, k.ID)
			}
			if len(gone) > 0 {
				gone = append(append([]string{"Deleted Containers:"}, gone...), "")
			}
			return writeLines(a.stdout, append(gone, "Total reclaimed space: "+humanSize(freed))...)
		},
	}
	c.Flags().BoolVarP(&force, "force", "f", false, "do not ask")
	c.Flags().StringArrayVar(&filters, "filter", nil, "remove only those that match, as for ps (repeatable)")
	return c
}
