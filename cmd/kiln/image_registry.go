package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/opencontainers/go-digest"
	"github.com/spf13/cobra"
	"kiln.build/cache/registry"
	"kiln.build/exporter/images"
)

func (a *app) pullCommand() *cobra.Command {
	var names []string
	var all, quiet bool
	c := &cobra.Command{
		Use:   "pull [flags] NAME[:TAG|@DIGEST]",
		Short: "Fetch an image from a registry",
		Long: `Fetch an image from a registry. Of an image for several platforms that of this
machine is fetched, or those that --platform names. Credentials are those of
docker login; KILN_REGISTRY_MIRRORS=docker.io=http://HOST:PORT,… names mirrors.`,
		Example: "  kiln pull debian:bookworm\n  kiln pull --platform linux/arm64 debian:bookworm",
		Args:    cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			o := registry.PullOptions{All: all}
			for _, n := range names {
				p, err := onePlatform(n)
				if err != nil {
					return err
				}
				o.Platforms = append(o.Platforms, *p)
			}
			ref, err := registry.ParseReference(args[0])
			if err != nil {
				return err
			}
			return a.withImages(func(s *images.Store) error { return a.pull(c.Context(), s, args[0], ref, o, quiet) })
		},
	}
	c.Flags().StringSliceVar(&names, "platform", nil, "platforms to fetch, such as linux/arm64")
	c.Flags().BoolVar(&all, "all-platforms", false, "fetch the images of all platforms")
	c.Flags().BoolVarP(&quiet, "quiet", "q", false, "print only the image's name")
	return c
}

func (a *app) pull(ctx context.Context, s *images.Store, typed string, ref registry.Reference, o registry.PullOptions, quiet bool) error {
	client, err := a.registry()
	if err != nil {
		return err
	}
	defer client.Close()
	if !quiet {
		if ref.Digest == "" && typed == (registry.Reference{Host: ref.Host, Path: ref.Path}).Familiar() {
			fmt.Fprintln(a.stdout, "Using default tag: "+ref.Tag)
		}
		what := ref.Tag
		if ref.Digest != "" {
			what = string(ref.Digest)
		}
		fmt.Fprintf(a.stdout, "%s: Pulling from %s\n", what, ref.Path)
		o.Progress = a.transfers("Pulling fs layer", "Pull complete")
	}
	desc, changed, err := s.Pull(ctx, client, ref, o)
	if err != nil {
		return err
	}
	noteImage(ctx, s, "pull", ref.String())
	if quiet {
		return writeLines(a.stdout, ref.String())
	}
	status := "Image is up to date for "
	if changed {
		status = "Downloaded newer image for "
	}
	return writeLines(a.stdout, "Digest: "+string(desc.Digest), "Status: "+status+ref.Familiar(), ref.String())
}

// transfers prints a line for each blob when its transfer begins and when it
// ends.
func (a *app) transfers(begin, end string) registry.Progress {
	var mu sync.Mutex
	begun, ended := map[string]bool{}, map[string]bool{}
	return func(name string, current, total int64) {
		mu.Lock()
		defer mu.Unlock()
		short := shortID(digest.Digest(name))
		if !begun[name] {
			begun[name] = true
			fmt.Fprintln(a.stdout, short+": "+begin)
		}
		if current >= total && !ended[name] {
			ended[name] = true
			fmt.Fprintln(a.stdout, short+": "+end)
		}
	}
}

func (a *app) pushCommand() *cobra.Command {
	var all, quiet bool
	c := &cobra.Command{
		Use:   "push [flags] NAME[:TAG]",
		Short: "Send an image to the registry that its name says",
		Long: `Send an image to the registry that its name says. Layers that are there already
are not sent. Credentials are those of docker login.`,
		Example: "  kiln tag hello registry.example.com/team/hello:1.2\n  kiln push registry.example.com/team/hello:1.2",
		Args:    cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return a.withImages(func(s *images.Store) error { return a.push(c.Context(), s, args[0], all, quiet) })
		},
	}
	c.Flags().BoolVarP(&all, "all-tags", "a", false, "send all tags of the repository")
	c.Flags().BoolVarP(&quiet, "quiet", "q", false, "print only the image's name")
	return c
}

func (a *app) push(ctx context.Context, s *images.Store, name string, all, quiet bool) error {
	ref, err := registry.ParseReference(name)
	if err != nil {
		return err
	}
	refs := []registry.Reference{ref}
	if all {
		if refs, err = tagsOf(ctx, s, ref); err != nil {
			return err
		}
	}
	client, err := a.registry()
	if err != nil {
		return err
	}
	defer client.Close()
	if !quiet {
		fmt.Fprintf(a.stdout, "The push refers to repository [%s]\n", ref.Name())
	}
	for _, r := range refs {
		var progress registry.Progress
		if !quiet {
			progress = a.transfers("Pushing", "Pushed")
		}
		done, err := s.Push(ctx, client, r.String(), progress)
		if err != nil {
			return err
		}
		noteImage(ctx, s, "push", r.String())
		line := r.String()
		if !quiet {
			line = fmt.Sprintf("%s: digest: %s size: %d", r.Tag, done.Descriptor.Digest, done.Descriptor.Size)
		}
		if err := writeLines(a.stdout, line); err != nil {
			return err
		}
	}
	return nil
}

// tagsOf lists the names that images have in a repository.
func tagsOf(ctx context.Context, s *images.Store, repository registry.Reference) ([]registry.Reference, error) {
	list, err := s.List(ctx)
	if err != nil {
		return nil, err
	}
	var refs []registry.Reference
	for _, image := range list {
		for _, n := range image.Names {
			if ref, err := registry.ParseReference(n); err == nil && ref.Name() == repository.Name() && ref.Digest == "" {
				refs = append(refs, ref)
			}
		}
	}
	if len(refs) == 0 {
		return nil, errors.New("No such image: " + registry.Reference{Host: repository.Host, Path: repository.Path}.Familiar())
	}
	slices.SortFunc(refs, func(x, y registry.Reference) int {
		if x.Tag < y.Tag {
			return -1
		}
		return 1
	})
	return refs, nil
}
