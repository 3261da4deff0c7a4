package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/moby/term"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
	"kiln.build/cache"
	"kiln.build/cache/archive"
	"kiln.build/exporter/images"
	"kiln.build/runner/container"
)

func (a *app) diffCommand() *cobra.Command {
	return &cobra.Command{
		Use: "diff CONTAINER", Short: "List what a container has changed in its file system", Args: cobra.ExactArgs(1),
		Long:    "List what a container has changed in its file system: A is added, C changed, D\ndeleted.",
		Example: "  kiln diff web",
		RunE: func(c *cobra.Command, args []string) error {
			return a.withContainer(args[0], func(store *cache.Store, k *container.Container) error {
				all, err := k.Changes(c.Context(), store)
				if err != nil {
					return err
				}
				out := tamed(a.stdout)
				for _, x := range all {
					if _, err := fmt.Fprintf(out, "%c %s\n", x.Kind, x.Path); err != nil {
						return err
					}
				}
				return nil
			})
		},
	}
}

// withContainer opens the store for work on a container's files.
func (a *app) withContainer(name string, f func(*cache.Store, *container.Container) error) error {
	store, err := a.open()
	if err != nil {
		return err
	}
	defer store.Close()
	k, err := a.container(name)
	if err != nil {
		return err
	}
	return f(store, k)
}

func (a *app) exportCommand() *cobra.Command {
	var file string
	c := &cobra.Command{
		Use: "export [flags] CONTAINER", Short: "Write a container's file system as a tar archive", Args: cobra.ExactArgs(1),
		Example: "  kiln export -o web.tar web",
		RunE: func(c *cobra.Command, args []string) error {
			if out, ok := a.stdout.(*os.File); ok && file == "" && term.IsTerminal(out.Fd()) {
				return errors.New("cowardly refusing to save to a terminal: use the -o flag or redirect")
			}
			return a.withContainer(args[0], func(store *cache.Store, k *container.Container) error {
				root, closeRoot, err := k.Root(c.Context(), store, false)
				if err != nil {
					return err
				}
				defer closeRoot()
				k.Note("export")
				write := func(w io.Writer) error { return container.WriteTar(w, root, container.TarOptions{OneDevice: true}) }
				if file == "" {
					return write(a.stdout)
				}
				return images.WriteFile(file, write)
			})
		},
	}
	c.Flags().StringVarP(&file, "output", "o", "", "file to write (default standard output)")
	return c
}

// cpFlags are the flags of cp, as typed.
type cpFlags struct{ archive, follow, quiet bool }

func (a *app) cpCommand() *cobra.Command {
	var f cpFlags
	c := &cobra.Command{
		Use:   "cp [flags] CONTAINER:PATH PATH|-\n  kiln cp [flags] PATH|- CONTAINER:PATH",
		Short: "Copy files between a container and this machine", Args: cobra.ExactArgs(2),
		Long: `Copy files between a container and this machine. "-" is a tar archive on
standard output or input. A source that ends with "/." gives what is in it.`,
		Example: "  kiln cp web:/etc/nginx .\n  kiln cp site/. web:/var/www",
		RunE: func(c *cobra.Command, args []string) error {
			if args[0] == "" {
				return errors.New("source can not be empty")
			}
			if args[1] == "" {
				return errors.New("destination can not be empty")
			}
			if out, ok := a.stdout.(*os.File); !c.Flags().Changed("quiet") && !(ok && term.IsTerminal(out.Fd())) {
				f.quiet = true
			}
			from, fromPath, out := containerPath(args[0])
			to, toPath, in := containerPath(args[1])
			switch {
			case out && in:
				return errors.New("copying between containers is not supported")
			case out:
				return a.withContainer(from, func(s *cache.Store, k *container.Container) error {
					return a.copyOut(c.Context(), s, k, fromPath, toPath, f)
				})
			case in:
				return a.withContainer(to, func(s *cache.Store, k *container.Container) error {
					return a.copyIn(c.Context(), s, k, fromPath, toPath, f)
				})
			}
			return errors.New("must specify at least one container source")
		},
	}
	c.Flags().BoolVarP(&f.archive, "archive", "a", false, "keep users and groups")
	c.Flags().BoolVarP(&f.follow, "follow-link", "L", false, "follow a link in the last place of the source")
	c.Flags().BoolVarP(&f.quiet, "quiet", "q", false, "do not say how much was copied (only told at a terminal)")
	return c
}

// containerPath takes CONTAINER:PATH apart. A path of this machine may hold a
// colon if it starts with "." or "/".
func containerPath(s string) (name, path string, ok bool) {
	if filepath.IsAbs(s) || strings.HasPrefix(s, ".") {
		return "", s, false
	}
	name, path, ok = strings.Cut(s, ":")
	if !ok {
		return "", s, false
	}
	return name, path, true
}

// copyOut copies from a container to this machine.
func (a *app) copyOut(ctx context.Context, store *cache.Store, k *container.Container, from, to string, f cpFlags) error {
	root, closeRoot, err := k.Files(ctx, store, false)
	if err != nil {
		return err
	}
	defer closeRoot()
	src, err := container.OpenSource(root, from, f.follow)
	if err != nil {
		return copyFailed(k, err)
	}
	defer src.Close()
	k.Note("archive-path")
	if to == "-" {
		return src.WriteAlone(a.stdout)
	}
	host, err := os.OpenFile("/", unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer host.Close()
	if to, err = absolute(to); err != nil {
		return err
	}
	err = src.CopyTo(host, to, container.ReadOptions{Owners: f.archive, UID: os.Getuid(), GID: os.Getgid(), KeepDirs: true})
	var missing *container.MissingError
	if errors.As(err, &missing) {
		return fmt.Errorf("invalid output path: directory %q does not exist", missing.Path)
	}
	return a.copied(src, to, f, err)
}

// copied tells how much was copied, to whom sits at a terminal.
func (a *app) copied(src *container.Source, to string, f cpFlags, err error) error {
	if err != nil || f.quiet {
		return err
	}
	_, err = fmt.Fprintf(a.stderr, "Successfully copied %s (transferred %s) to %s\n", humanSize(src.Bytes.Content), humanSize(src.Bytes.Stream), to)
	return err
}

// copyFailed is an error about a container's files in docker's words.
func copyFailed(k *container.Container, err error) error {
	var missing *container.MissingError
	switch {
	case errors.As(err, &missing):
		return fmt.Errorf("%w in container %s", missing, k.Name)
	case errors.Is(err, unix.EROFS) && k.ReadOnly:
		return fmt.Errorf("container rootfs is marked read-only: %w", err)
	case errors.Is(err, unix.EROFS):
		return fmt.Errorf("mounted volume is marked read-only: %w", err)
	}
	return err
}

// copyIn copies from this machine to a container.
func (a *app) copyIn(ctx context.Context, store *cache.Store, k *container.Container, from, to string, f cpFlags) error {
	root, closeRoot, err := k.Files(ctx, store, true)
	if err != nil {
		return err
	}
	defer closeRoot()
	k.Note("extract-to-dir")
	o := container.ReadOptions{Owners: f.archive, KeepDirs: true}
	if from == "-" {
		dir, err := container.OpenDir(root, to)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return copyFailed(k, &container.MissingError{Path: path.Clean("/" + to)})
		case errors.Is(err, unix.ENOTDIR):
			return fmt.Errorf(`destination "%s:%s" must be a directory`, k.Name, to)
		case err != nil:
			return fmt.Errorf("copy to container %s: %w", k.Name, err)
		}
		defer dir.Close()
		in, err := archive.Decompress(ctx, a.stdin)
		if err != nil {
			return fmt.Errorf("read archive: %w", err)
		}
		defer in.Close()
		return copyFailed(k, container.ReadTar(in, dir, container.ReadOptions{Owners: true, KeepDirs: true}))
	}
	host, err := os.OpenFile("/", unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer host.Close()
	if from, err = absolute(from); err != nil {
		return err
	}
	src, err := container.OpenSource(host, from, f.follow)
	if errors.Is(err, fs.ErrNotExist) {
		return &os.PathError{Op: "lstat", Path: filepath.Clean(from), Err: unix.ENOENT}
	}
	if err != nil {
		return err
	}
	defer src.Close()
	return a.copied(src, k.Name+":"+to, f, copyFailed(k, src.CopyTo(root, to, o)))
}

// absolute makes a path absolute and keeps an end that means something.
func absolute(p string) (string, error) {
	abs, err := filepath.Abs(p)
	switch {
	case err != nil:
		return "", err
	case p == "." || strings.HasSuffix(p, "/."):
		return abs + "/.", nil
	case strings.HasSuffix(p, "/"):
		return abs + "/", nil
	}
	return abs, nil
}
