package main

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"kiln.build/runner/container"
)

// volumeCommand is for the folders that outlive containers.
func (a *app) volumeCommand() *cobra.Command {
	group := &cobra.Command{Use: "volume", Short: "Manage volumes: folders that outlive containers", Example: "  kiln volume ls"}
	group.AddCommand(a.volumeCreate(), a.volumeList(), a.volumeInspectCommand(), a.volumeRemove(), a.volumePrune())
	return group
}

func (a *app) volumeCreate() *cobra.Command {
	var f runFlags
	var driver string
	var options []string
	c := &cobra.Command{
		Use: "create [flags] [NAME]", Short: "Make a volume", Args: cobra.MaximumNArgs(1),
		Example: "  kiln volume create --label owner=me data",
		RunE: func(_ *cobra.Command, args []string) error {
			if driver != "local" {
				return fmt.Errorf("--driver=%s: plugin %q not found: volumes are local", driver, driver)
			}
			var k container.Config
			if err := f.applyLabels(&k); err != nil {
				return err
			}
			store, err := a.open() // makes it, where this is the first command
			if err != nil {
				return err
			}
			defer store.Close()
			set, err := a.containers()
			if err != nil {
				return err
			}
			opts, err := readVolumeOptions(options)
			if err != nil {
				return err
			}
			name := container.AnonymousName()
			if len(args) > 0 {
				name = args[0]
			}
			if old, err := set.Volume(name); err == nil && len(opts) > 0 && !maps.Equal(old.Options, opts) {
				return fmt.Errorf("create %s: volume already exists but options differ", name)
			}
			if _, err := set.CreateVolume(name, k.Labels, opts); err != nil {
				return err
			}
			return writeLines(a.stdout, name)
		},
	}
	c.Flags().StringVarP(&driver, "driver", "d", "local", "local: there are no others")
	c.Flags().StringArrayVar(&f.labels, "label", nil, "label, NAME=VALUE (repeatable)")
	c.Flags().StringArrayVarP(&options, "opt", "o", nil, "type=none, o=bind and device=PATH make it another folder of this machine (repeatable)")
	return c
}

func readVolumeOptions(list []string) (map[string]string, error) {
	var o map[string]string
	for _, s := range list {
		key, value, _ := strings.Cut(s, "=")
		if o == nil {
			o = map[string]string{}
		}
		o[key] = value
	}
	return o, container.CheckVolumeOptions(o)
}

// volumeRow is a volume as volume ls shows it; the names are docker's.
type volumeRow struct {
	Availability, Driver, Group, Labels, Links, Mountpoint, Name, Scope, Size, Status string

	labels map[string]string
}

// Label is the value of a label, as docker's templates have it.
func (r volumeRow) Label(name string) string { return r.labels[name] }

func (a *app) volumeList() *cobra.Command {
	var quiet bool
	var format string
	var filters []string
	c := &cobra.Command{
		Use: "ls [flags]", Aliases: []string{"list"}, Short: "List volumes", Args: cobra.NoArgs,
		Example: "  kiln volume ls --filter dangling=true",
		RunE: func(*cobra.Command, []string) error {
			set, err := a.containers()
			if err != nil {
				return err
			}
			all, err := set.Volumes()
			if err != nil {
				return err
			}
			users, err := set.List()
			if err != nil {
				return err
			}
			keep, err := volumeFilter(filters, users)
			if err != nil {
				return err
			}
			rows := []volumeRow{}
			for _, v := range all {
				if !keep(v) {
					continue
				}
				var labels []string
				for _, n := range slices.Sorted(maps.Keys(v.Labels)) {
					labels = append(labels, n+"="+v.Labels[n])
				}
				rows = append(rows, volumeRow{
					Driver: "local", Labels: strings.Join(labels, ","), Mountpoint: v.Dir, Name: v.Name, Scope: "local", labels: v.Labels,
					Availability: "N/A", Group: "N/A", Links: "N/A", Size: "N/A", Status: "N/A", // what docker says of them here
				})
			}
			if quiet && format == "" {
				format = "{{.Name}}"
			}
			return printRows(a.stdout, format, "{{.Driver}}\t{{.Name}}", map[string]string{
				"Driver": "DRIVER", "Name": "VOLUME NAME", "Mountpoint": "MOUNTPOINT", "Labels": "LABELS", "Scope": "SCOPE",
				"Availability": "AVAILABILITY", "Group": "GROUP", "Links": "LINKS", "Size": "SIZE", "Status": "STATUS",
			}, rows)
		},
	}
	c.Flags().BoolVarP(&quiet, "quiet", "q", false, "only names")
	c.Flags().StringVar(&format, "format", "", formatHelp)
	c.Flags().StringArrayVarP(&filters, "filter", "f", nil, "dangling, driver, label, name =VALUE (repeatable)")
	return c
}

// volumeFilter reads filters. Of several values of a key one must match, but
// of labels all.
func volumeFilter(filters []string, users []*container.Container) (func(container.Volume) bool, error) {
	tests := map[string][]func(container.Volume) bool{}
	for _, f := range filters {
		key, value, ok := strings.Cut(f, "=")
		if !ok {
			return nil, fmt.Errorf("invalid filter %q: must be KEY=VALUE", f)
		}
		var t func(container.Volume) bool
		switch key {
		case "dangling":
			want, err := strconv.ParseBool(value)
			if err != nil {
				return nil, fmt.Errorf("invalid filter 'dangling=%s'", value)
			}
			t = func(v container.Volume) bool { return (len(container.VolumeUsers(users, v.Name)) == 0) == want }
		case "driver":
			t = func(container.Volume) bool { return value == "local" }
		case "name":
			t = func(v container.Volume) bool { return strings.Contains(v.Name, value) }
		case "label", "label!":
			name, want, has := strings.Cut(value, "=")
			wanted := key == "label"
			t = func(v container.Volume) bool {
				got, ok := v.Labels[name]
				return (ok && (!has || got == want)) == wanted
			}
			key = f
		default:
			return nil, fmt.Errorf("invalid filter '%s'", key)
		}
		tests[key] = append(tests[key], t)
	}
	return func(v container.Volume) bool {
		for _, any := range tests {
			if !slices.ContainsFunc(any, func(t func(container.Volume) bool) bool { return t(v) }) {
				return false
			}
		}
		return true
	}, nil
}

// volumeDetails is what kiln volume inspect shows; the names are docker's.
type volumeDetails struct {
	CreatedAt  string
	Driver     string
	Labels     map[string]string
	Mountpoint string
	Name       string
	Options    map[string]string
	Scope      string
}

func (a *app) volumeInspectCommand() *cobra.Command {
	c := a.inspectCommand("volume")
	c.Use, c.Short = "inspect [flags] VOLUME...", "Show all about volumes, as JSON"
	c.Example = "  kiln volume inspect data\n  kiln volume inspect -f '{{.Mountpoint}}' data"
	return c
}

// volumeInspect returns all about a volume, and whether there is one of that
// name.
func (a *app) volumeInspect(name string) (any, bool, error) {
	set, err := a.containers()
	if err != nil {
		return nil, false, err
	}
	v, err := set.Volume(name)
	if errors.Is(err, container.ErrNoVolume) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, err
	}
	return volumeDetails{
		CreatedAt: v.Created.Format(time.RFC3339), Driver: "local", Labels: v.Labels, Mountpoint: v.Dir, Name: v.Name, Scope: "local", Options: v.Options,
	}, true, nil
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
	var filters []string
	c := &cobra.Command{
		Use: "prune [flags]", Short: "Remove volumes without a name that no container has", Args: cobra.NoArgs,
		Example: "  kiln volume prune -f --filter label!=keep",
		RunE: func(c *cobra.Command, _ []string) error {
			what := "anonymous volumes not used by at least one container"
			if all {
				what = "volumes not used by at least one container"
			}
			keep, err := volumeFilter(filters, nil)
			if err != nil {
				return err
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
			var gone []string
			for _, v := range list {
				if !all && !v.Anonymous || !keep(v) {
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
				gone = append(gone, v.Name)
			}
			set.Note("volume", "prune", "", "reclaimed", strconv.FormatInt(freed, 10))
			if len(gone) > 0 {
				gone = append(append([]string{"Deleted Volumes:"}, gone...), "")
			}
			return writeLines(a.stdout, append(gone, "Total reclaimed space: "+humanSize(freed))...)
		},
	}
	c.Flags().BoolVarP(&force, "force", "f", false, "do not ask")
	c.Flags().BoolVarP(&all, "all", "a", false, "those with a name, too")
	c.Flags().StringArrayVar(&filters, "filter", nil, "label=NAME[=VALUE], label!=NAME[=VALUE] (repeatable)")
	return c
}
