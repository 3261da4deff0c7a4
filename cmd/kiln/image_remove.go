package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	"github.com/spf13/cobra"
	"kiln.build/cache"
	"kiln.build/exporter/images"
	"kiln.build/runner/container"
)

func (a *app) tagCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "tag SOURCE[:TAG] NAME[:TAG]",
		Short:   "Give an image one more name",
		Example: "  kiln tag hello registry.example.com/team/hello:1.2\n  kiln tag 3f1c0a hello:old",
		Args:    cobra.ExactArgs(2),
		RunE: func(c *cobra.Command, args []string) error {
			return a.withImages(func(s *images.Store) error {
				if err := s.Tag(c.Context(), args[0], args[1]); err != nil {
					return err
				}
				noteImage(c.Context(), s, "tag", args[1])
				return nil
			})
		},
	}
}

func (a *app) rmiCommand() *cobra.Command {
	var force, noPrune bool
	c := &cobra.Command{
		Use:   "rmi [flags] IMAGE...",
		Short: "Remove images",
		Long: `Remove images. By a name, that name is taken away, and the image with its
last name; by an ID, the image with all of its names. The space of layers that
nothing needs any more is freed by kiln prune.`,
		Example: "  kiln rmi hello\n  kiln rmi -f 3f1c0a",
		Args:    cobra.MinimumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return a.withImages(func(s *images.Store) error { return a.removeImages(c.Context(), s, args, force) })
		},
	}
	c.Flags().BoolVarP(&force, "force", "f", false, "remove images that containers use or that have several names")
	c.Flags().BoolVar(&noPrune, "no-prune", false, "without effect: images have no parents here")
	return c
}

func (a *app) removeImages(ctx context.Context, s *images.Store, names []string, force bool) error {
	var failed []error
	for _, name := range names {
		done, err := s.Remove(ctx, name, images.RemoveOptions{Force: force, Users: imageUsers(s.Cache)})
		var missing *images.NotFoundError
		if force && errors.As(err, &missing) {
			fmt.Fprintln(a.stderr, err)
			continue
		}
		if err != nil {
			failed = append(failed, err)
			continue
		}
		noteRemoved(s, done)
		if err := a.printRemoved(done); err != nil {
			return err
		}
	}
	return errors.Join(failed...)
}

func (a *app) printRemoved(r images.Removed) error {
	var lines []string
	for _, n := range r.Untagged {
		lines = append(lines, "Untagged: "+images.Familiar(n))
	}
	if r.Deleted != "" {
		lines = append(lines, "Deleted: "+string(r.Deleted))
	}
	return writeLines(a.stdout, lines...)
}

// containers is the set of a store's containers.
func containers(store *cache.Store) container.Set {
	return container.Set{Dir: filepath.Join(store.Root(), "containers")}
}

// imageUsers tells which containers were made from an image, or mount it.
func imageUsers(store *cache.Store) func(digest.Digest) ([]string, error) {
	return func(id digest.Digest) ([]string, error) {
		all, err := containers(store).List()
		if err != nil {
			return nil, err
		}
		var users []string
		for _, c := range all {
			if c.ImageID == id || slices.ContainsFunc(c.Binds, func(b container.Bind) bool { return b.ImageID == id && id != "" }) {
				users = append(users, fmt.Sprintf("container %s (%s)", c.ID[:12], c.Name))
			}
		}
		return users, nil
	}
}

func (a *app) imagePruneCommand() *cobra.Command {
	var all, force bool
	var filters []string
	c := &cobra.Command{
		Use:   "prune [flags]",
		Short: "Remove images without a name",
		Long: `Remove images that have no name and that no container was made from, with
--all those that have names too, and free the space of their layers.`,
		Example: "  kiln image prune\n  kiln image prune --all --force --filter until=240h",
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			what := "all images without a name"
			if all {
				what = "all images that no container was made from"
			}
			if ok, err := a.confirm(force, "This will remove "+what+"."); err != nil || !ok {
				return err
			}
			return a.withImages(func(s *images.Store) error { return a.pruneImages(c.Context(), s, all, filters) })
		},
	}
	c.Flags().BoolVarP(&all, "all", "a", false, "remove images with names too")
	c.Flags().BoolVarP(&force, "force", "f", false, "do not ask")
	c.Flags().StringArrayVar(&filters, "filter", nil, "remove only images that match label=KEY[=VALUE] or until=TIME (repeatable)")
	return c
}

func (a *app) pruneImages(ctx context.Context, s *images.Store, all bool, filters []string) error {
	list, err := s.List(ctx)
	if err != nil {
		return err
	}
	match, err := imageFilter(list, filters)
	if err != nil {
		return err
	}
	done, err := s.Prune(ctx, images.PruneOptions{
		All:   all,
		Match: func(i *images.Image) bool { return match(i, "") },
		Users: imageUsers(s.Cache),
	})
	if len(done) > 0 {
		fmt.Fprintln(a.stdout, "Deleted Images:")
	}
	for _, r := range done {
		noteRemoved(s, r)
		if err := a.printRemoved(r); err != nil {
			return err
		}
	}
	if err != nil {
		return err
	}
	// Only blobs: the build cache is not what was asked about.
	report, err := s.Cache.Prune(ctx, cache.PruneOptions{
		All: true, Filters: map[string][]string{"type": {string(cache.KindImage)}}, Roots: roots(ctx, s),
	})
	if err != nil {
		return err
	}
	return writeLines(a.stdout, "", "Total reclaimed space: "+humanSize(report.Bytes))
}

// roots are the layers that images and containers need.
func roots(ctx context.Context, s *images.Store) func() ([]digest.Digest, error) {
	return func() ([]digest.Digest, error) {
		layers, err := s.Layers(ctx)
		if err != nil {
			return nil, err
		}
		all, err := containers(s.Cache).List()
		if err != nil {
			return nil, err
		}
		for _, c := range all {
			layers = append(layers, c.Digests()...)
		}
		return layers, nil
	}
}

// confirm asks whether to go on.
func (a *app) confirm(force bool, warning string) (bool, error) {
	if force {
		return true, nil
	}
	if _, err := fmt.Fprintf(a.stdout, "WARNING! %s\nAre you sure you want to continue? [y/N] ", warning); err != nil {
		return false, err
	}
	var answer string
	_, _ = fmt.Fscanln(a.stdin, &answer) // nothing typed is no
	answer = strings.ToLower(answer)
	return answer == "y" || answer == "yes", nil
}
