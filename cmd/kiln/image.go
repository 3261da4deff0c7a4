package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"
	"time"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	"github.com/spf13/cobra"
	"kiln.build/cache/registry"
	"kiln.build/exporter/images"
)

// imageCommands are the commands that work on the image store.
func (a *app) imageCommands() []*cobra.Command {
	group := &cobra.Command{
		Use:     "image",
		Short:   "Work on images",
		Example: "  kiln image ls\n  kiln image rm hello",
		Args:    cobra.NoArgs,
		RunE:    func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	ls := a.imagesCommand()
	ls.Use, ls.Aliases = "ls [flags] [REPOSITORY[:TAG]]", []string{"list"}
	ls.Example = strings.ReplaceAll(ls.Example, "kiln images", "kiln image ls")
	rm := a.rmiCommand()
	rm.Use, rm.Aliases = "rm [flags] IMAGE...", []string{"rmi", "remove"}
	inspect := a.inspectCommand("image")
	inspect.Short = "Show all about images, as JSON"
	group.AddCommand(ls, rm, inspect, a.tagCommand(), a.historyCommand(), a.saveCommand(), a.loadCommand(),
		a.importCommand(), a.pullCommand(), a.pushCommand(), a.imagePruneCommand(), a.buildCommand())
	return []*cobra.Command{
		group,
		a.imagesCommand(), a.tagCommand(), a.rmiCommand(), a.historyCommand(), a.inspectCommand(""),
		a.saveCommand(), a.loadCommand(), a.importCommand(), a.pullCommand(), a.pushCommand(),
		a.loginCommand(), a.logoutCommand(),
		a.duCommand(), a.pruneCommand(), a.versionCommand(), a.doctorCommand(),
	}
}

// withImages opens the store for a command that works on images.
func (a *app) withImages(do func(*images.Store) error) (err error) {
	store, err := a.open()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	return do(&images.Store{Cache: store})
}

// imagesFlags are those of kiln images.
type imagesFlags struct {
	all, quiet, noTrunc, digests bool
	format                       string
	filters                      []string
}

func (a *app) imagesCommand() *cobra.Command {
	var f imagesFlags
	c := &cobra.Command{
		Use:   "images [flags] [REPOSITORY[:TAG]]",
		Short: "List images",
		Long: `List images, the newest first.

SIZE is that of the files in all layers, where the layers were unpacked or
built here, and of the compressed layers where not. Filters are
reference=PATTERN, dangling=true|false, label=KEY[=VALUE], before=IMAGE,
since=IMAGE, until=TIME.`,
		Example: `  kiln images
  kiln images -q --filter dangling=true
  kiln images --format '{{.Repository}}:{{.Tag}} {{.Size}}' 'web/*'`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return a.withImages(func(s *images.Store) error { return a.listImages(c.Context(), s, &f, args) })
		},
	}
	fs := c.Flags()
	fs.BoolVarP(&f.all, "all", "a", false, "show all images; those without a name are shown in any case")
	fs.BoolVarP(&f.quiet, "quiet", "q", false, "print only the image IDs")
	fs.BoolVar(&f.noTrunc, "no-trunc", false, "print IDs in full")
	fs.BoolVar(&f.digests, "digests", false, "show the digests of the manifests")
	fs.StringVar(&f.format, "format", "", formatHelp)
	fs.StringArrayVarP(&f.filters, "filter", "f", nil, "show only images that match KEY=VALUE (repeatable)")
	return c
}

// imageRow is a line of kiln images. The fields have the names and the order
// that docker's JSON has.
type imageRow struct {
	Containers   string
	CreatedAt    string
	CreatedSince string
	Digest       string
	ID           string
	Repository   string
	SharedSize   string
	Size         string
	Tag          string
	UniqueSize   string
}

func (a *app) listImages(ctx context.Context, s *images.Store, f *imagesFlags, args []string) error {
	all, err := s.List(ctx)
	if err != nil {
		return err
	}
	filters := f.filters
	if len(args) == 1 {
		filters = append(filters, "reference="+args[0])
	}
	match, err := imageFilter(all, filters)
	if err != nil {
		return err
	}
	var rows []imageRow
	for _, image := range all {
		names := image.Names
		if len(names) == 0 {
			names = []string{""}
		}
		for _, n := range names {
			if match(image, n) {
				rows = append(rows, row(image, n, f.noTrunc))
			}
		}
	}
	if f.quiet && f.format == "" {
		for _, r := range rows {
			if _, err := fmt.Fprintln(a.stdout, r.ID); err != nil {
				return err
			}
		}
		return nil
	}
	columns := "{{.Repository}}\t{{.Tag}}\t{{.ID}}\t{{.CreatedSince}}\t{{.Size}}"
	if f.digests {
		columns = "{{.Repository}}\t{{.Tag}}\t{{.Digest}}\t{{.ID}}\t{{.CreatedSince}}\t{{.Size}}"
	}
	return printRows(a.stdout, f.format, columns, map[string]string{
		"Repository": "REPOSITORY", "Tag": "TAG", "Digest": "DIGEST", "ID": "IMAGE ID",
		"CreatedSince": "CREATED", "CreatedAt": "CREATED AT", "Size": "SIZE",
		"Containers": "CONTAINERS", "SharedSize": "SHARED SIZE", "UniqueSize": "UNIQUE SIZE",
	}, rows)
}

func row(image *images.Image, name string, noTrunc bool) imageRow {
	r := imageRow{
		Containers: "N/A", SharedSize: "N/A", UniqueSize: "N/A",
		ID: shortID(image.ID), Digest: string(image.Target.Digest), Repository: "<none>", Tag: "<none>",
		CreatedAt: image.Created.Local().Format("2006-01-02 15:04:05 -0700 MST"), CreatedSince: ago(image.Created),
		Size: humanSize(image.Size),
	}
	if noTrunc {
		r.ID = string(image.ID)
	}
	if image.Err != nil {
		r.Size, r.CreatedAt = "N/A", "N/A"
	}
	if ref, err := registry.ParseReference(name); err == nil {
		r.Repository = registry.Reference{Host: ref.Host, Path: ref.Path}.Familiar()
		if ref.Tag != "" {
			r.Tag = ref.Tag
		}
	} else if name != "" {
		r.Repository = name // another tool's
	}
	return r
}

// shortID is an ID as lists show it.
func shortID(d digest.Digest) string {
	hex := d.Encoded()
	return hex[:min(12, len(hex))]
}

// imageFilter makes a function of --filter flags: of several with one key one
// must match, and of all keys.
func imageFilter(all []*images.Image, filters []string) (func(*images.Image, string) bool, error) {
	type test func(*images.Image, string) bool
	tests := map[string][]test{}
	for _, f := range filters {
		key, value, ok := strings.Cut(f, "=")
		if !ok {
			return nil, fmt.Errorf("--filter=%q: must be KEY=VALUE", f)
		}
		t, err := imageTest(all, key, value)
		if err != nil {
			return nil, fmt.Errorf("--filter=%q: %w", f, err)
		}
		tests[key] = append(tests[key], t)
	}
	return func(image *images.Image, name string) bool {
		for _, group := range tests {
			one := false
			for _, t := range group {
				one = one || t(image, name)
			}
			if !one {
				return false
			}
		}
		return true
	}, nil
}

func imageTest(all []*images.Image, key, value string) (func(*images.Image, string) bool, error) {
	switch key {
	case "reference":
		if _, err := path.Match(value, ""); err != nil {
			return nil, err
		}
		return func(_ *images.Image, name string) bool { return matchesReference(value, name) }, nil
	case "dangling":
		if value != "true" && value != "false" && value != "1" && value != "0" {
			return nil, errors.New("must be true or false")
		}
		want := value == "true" || value == "1"
		return func(image *images.Image, _ string) bool { return (len(image.Names) == 0) == want }, nil
	case "label":
		k, v, hasValue := strings.Cut(value, "=")
		return func(image *images.Image, _ string) bool {
			have, ok := image.Config.Config.Labels[k]
			return ok && (!hasValue || have == v)
		}, nil
	case "before", "since":
		other, err := images.Find(all, value)
		if err != nil {
			return nil, err
		}
		return func(image *images.Image, _ string) bool {
			if key == "before" {
				return image.Created.Before(other.Created)
			}
			return image.Created.After(other.Created)
		}, nil
	case "until":
		t, err := timeOrAge(value)
		if err != nil {
			return nil, err
		}
		return func(image *images.Image, _ string) bool { return image.Created.Before(t) }, nil
	}
	return nil, errors.New("unknown key: must be reference, dangling, label, before, since or until")
}

// matchesReference matches a pattern with an image's name as docker does:
// with or without the tag, in the form that people type.
func matchesReference(pattern, name string) bool {
	ref, err := reference.ParseNormalizedNamed(name)
	if err != nil {
		return false
	}
	if ok, err := reference.FamiliarMatch(pattern, ref); err == nil && ok {
		return true
	}
	// "docker.io/library/debian" means debian too.
	if full, err := reference.ParseNormalizedNamed(pattern); err == nil {
		return full.String() == name || reference.IsNameOnly(full) && full.Name() == ref.Name()
	}
	return false
}

// timeOrAge reads a time, or how long ago it was.
func timeOrAge(s string) (time.Time, error) {
	if d, err := time.ParseDuration(s); err == nil {
		return time.Now().Add(-d), nil
	}
	for _, layout := range []string{time.RFC3339Nano, time.RFC3339, "2006-01-02T15:04:05", "2006-01-02"} {
		if t, err := time.ParseInLocation(layout, s, time.Local); err == nil {
			return t, nil
		}
	}
	return time.Time{}, errors.New("must be a time such as 2024-05-01, or an age such as 24h")
}

// writeLines prints lines, and returns the first error.
func writeLines(w io.Writer, lines ...string) error {
	for _, l := range lines {
		if _, err := fmt.Fprintln(w, l); err != nil {
			return err
		}
	}
	return nil
}
