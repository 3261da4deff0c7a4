package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"
	"kiln.build/runner/container"
)

// volumeCommand is for the folders that outlive containers.
func (a *app) volumeCommand() *cobra.Command {
	group := &cobra.Command{Use: "volume", Short: "Manage volumes: folders that outlive containers", Example: "  kiln volume ls"}
	group.AddCommand(a.volumeCreate(), a.volumeList(), a.volumeRemove(), a.volumePrune())
	return group
}

func (a *app) volumeCreate() *cobra.Command {
	return &cobra.Command{
		Use: "create NAME", Short: "Make a volume", Args: cobra.ExactArgs(1), Example: "  kiln volume create data",
		RunE: func(_ *cobra.Command, args []string) error {
			set, err := a.containers()
			if err != nil {
				return err
			}
			if _, err := set.VolumeDir(args[0]); err != nil {
				return err
			}
			return writeLines(a.stdout, args[0])
		},
	}
}

func (a *app) volumeList() *cobra.Command {
	var quiet bool
	var format string
	c := &cobra.Command{
		Use: "ls [flags]", Aliases: []string{"list"}, Short: "List volumes", Args: cobra.NoArgs, Example: "  kiln volume ls",
		RunE: func(*cobra.Command, []string) error {
			set, err := a.containers()
			if err != nil {
				return err
			}
			all, err := set.Volumes()
			if err != nil {
				return err
			}
			type row struct{ Driver, Name, Mountpoint string }
			rows := []row{}
			for _, v := range all {
				rows = append(rows, row{"local", v.Name, v.Dir})
			}
			if quiet {
				format = "{{.Name}}"
			}
			return printRows(a.stdout, format, "{{.Driver}}\t{{.Name}}",
				map[string]string{"Driver": "DRIVER", "Name": "VOLUME NAME", "Mountpoint": "MOUNTPOINT"}, rows)
		},
	}
	c.Flags().BoolVarP(&quiet, "quiet", "q", false, "only names")
	c.Flags().StringVar(&format, "format", "", formatHelp)
	return c
}

func (a *app) volumeRemove() *cobra.Command {
	var force bool
	c := &cobra.Command{
		Use: "rm [flags] VOLUME...", Aliases: []string{"remove"}, Short: "Remove volumes that no container has", Args: cobra.MinimumNArgs(1),
		Example: "  kiln volume rm data",
		RunE: func(c *cobra.Command, args []string) error {
			set, err := a.containers()
			if err != nil {
				return err
			}
			var errs []error
			for _, n := range args {
				err := set.RemoveVolume(c.Context(), n)
				if errors.Is(err, container.ErrNoVolume) && force {
					err = nil
				}
				if err != nil {
					errs = append(errs, err)
					continue
				}
				fmt.Fprintln(a.stdout, n)
			}
			return errors.Join(errs...)
		},
	}
	c.Flags().BoolVarP(&force, "force", "f", false, "one that is not there is no error")
	return c
}

func (a *app) volumePrune() *cobra.Command {
	var force, all bool
	c := &cobra.Command{
		Use: "prune [flags]", Short: "Remove volumes without a name that no container has", Args: cobra.NoArgs,
		Example: "  kiln volume prune -f",
		RunE: func(c *cobra.Command, _ []string) error {
			what := "anonymous volumes not used by at least one container"
			if all {
				what = "volumes not used by at least one container"
			}
			if ok, err := a.confirm(force, "This will remove all "+what+"."); err != nil || !ok {
				return err
			}
			set, err := a.containers()
			if err != nil {
				return err
			}
			list, err := set.Volumes()
			if err != nil {
				return err
			}
			var freed int64
			for _, v := range list {
				if !all && !v.Anonymous {
					continue
				}
				n := v.Size()
				err := set.RemoveVolume(c.Context(), v.Name)
				if errors.Is(err, container.ErrVolumeInUse) || errors.Is(err, container.ErrNoVolume) {
					continue
				}
				if err != nil {
					return err
				}
				freed += n
				fmt.Fprintln(a.stdout, v.Name)
			}
			return writeLines(a.stdout, "Total reclaimed space: "+humanSize(freed))
		},
	}
	c.Flags().BoolVarP(&force, "force", "f", false, "do not ask")
	c.Flags().BoolVarP(&all, "all", "a", false, "those with a name, too")
	return c
}
