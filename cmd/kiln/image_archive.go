package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/containerd/platforms"
	"github.com/moby/term"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/spf13/cobra"
	"kiln.build/exporter/images"
)

// isTerminal reports whether a stream of the program is one.
func isTerminal(stream any) bool {
	f, ok := stream.(*os.File)
	return ok && term.IsTerminal(f.Fd())
}

func (a *app) saveCommand() *cobra.Command {
	var output string
	c := &cobra.Command{
		Use:   "save [flags] IMAGE...",
		Short: "Save images to an archive",
		Long: `Save images to an archive that kiln load, docker load, podman load and skopeo
read. It is a tar of an OCI image layout with docker's manifest.json besides.`,
		Example: "  kiln save -o images.tar hello web:1.2\n  kiln save hello | gzip > hello.tar.gz",
		Args:    cobra.MinimumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if output == "" && isTerminal(a.stdout) {
				return errors.New("refusing to save to a terminal: use --output FILE, or redirect standard output")
			}
			return a.withImages(func(s *images.Store) error {
				write := func(w io.Writer) error { return s.Save(c.Context(), w, args...) }
				if output == "" || output == "-" {
					return write(a.stdout)
				}
				return images.WriteFile(output, write)
			})
		},
	}
	c.Flags().StringVarP(&output, "output", "o", "", "file to write (default standard output)")
	return c
}

func (a *app) loadCommand() *cobra.Command {
	var input string
	var quiet bool
	c := &cobra.Command{
		Use:   "load [flags]",
		Short: "Load images from an archive or an OCI image layout",
		Long: `Load images from an archive that kiln save, docker save, podman save or skopeo
made, compressed or not, or from a folder that is an OCI image layout.`,
		Example: "  kiln load -i images.tar\n  ssh host docker save hello | kiln load",
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if input == "" && isTerminal(a.stdin) {
				return errors.New("standard input is a terminal: use --input FILE, or redirect it")
			}
			return a.withImages(func(s *images.Store) error { return a.load(c.Context(), s, input) })
		},
	}
	c.Flags().StringVarP(&input, "input", "i", "", "file or folder to read (default standard input)")
	c.Flags().BoolVarP(&quiet, "quiet", "q", false, "without effect: no progress is shown")
	return c
}

func (a *app) load(ctx context.Context, s *images.Store, input string) error {
	loaded, err := a.loadFrom(ctx, s, input)
	if err != nil {
		return err
	}
	for _, l := range loaded {
		noteImage(ctx, s, "load", string(l.ID))
		for _, n := range l.Names {
			fmt.Fprintln(a.stdout, "Loaded image: "+images.Familiar(n))
		}
		if len(l.Names) == 0 {
			fmt.Fprintln(a.stdout, "Loaded image ID: "+string(l.ID))
		}
	}
	return nil
}

func (a *app) loadFrom(ctx context.Context, s *images.Store, input string) ([]images.Loaded, error) {
	if input == "" || input == "-" {
		return s.Load(ctx, a.stdin)
	}
	f, err := os.Open(input)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if fi, err := f.Stat(); err == nil && fi.IsDir() {
		return s.LoadFolder(ctx, input)
	}
	return s.Load(ctx, f)
}

func (a *app) importCommand() *cobra.Command {
	var o images.ImportOptions
	var platform string
	c := &cobra.Command{
		Use:   "import [flags] FILE|- [NAME[:TAG]]",
		Short: "Make an image of a root file system",
		Long: `Make an image of one layer of a tar archive of a root file system, compressed
or not, and print its ID.`,
		Example: `  kiln import debian.tar debian:bookworm
  mmdebstrap bookworm - | kiln import -c 'CMD ["bash"]' -m 'made by mmdebstrap' - debian`,
		Args: cobra.RangeArgs(1, 2),
		RunE: func(c *cobra.Command, args []string) error {
			if len(args) == 2 {
				o.Name = args[1]
			}
			o.From = args[0]
			var err error
			if o.Platform, err = onePlatform(platform); err != nil {
				return err
			}
			if o.Created, err = importTime(); err != nil {
				return err
			}
			return a.importImage(c.Context(), args[0], o)
		},
	}
	c.Flags().StringArrayVarP(&o.Changes, "change", "c", nil, "Dockerfile instruction to apply, such as 'ENV A=b' (repeatable)")
	c.Flags().StringVarP(&o.Message, "message", "m", "", "comment for the image's history")
	c.Flags().StringVar(&platform, "platform", "", "platform of the image (default this machine's)")
	return c
}

// importTime is now, or SOURCE_DATE_EPOCH.
func importTime() (time.Time, error) {
	t, err := (&buildFlags{}).epoch()
	if err != nil || t == nil {
		return time.Now(), err
	}
	return *t, nil
}

func (a *app) importImage(ctx context.Context, source string, o images.ImportOptions) error {
	in := a.stdin
	switch {
	case strings.Contains(source, "://"):
		return fmt.Errorf("%s: URLs are not read: curl -L %s | kiln import - NAME", source, source)
	case source != "-":
		f, err := os.Open(source)
		if err != nil {
			return err
		}
		defer f.Close()
		in = f
	case isTerminal(a.stdin):
		return errors.New("standard input is a terminal: redirect it, or name a file")
	}
	return a.withImages(func(s *images.Store) error {
		id, err := s.Import(ctx, in, o)
		if err != nil {
			return err
		}
		name := o.Name
		if name == "" {
			name = string(id)
		}
		noteImage(ctx, s, "import", name)
		return writeLines(a.stdout, string(id))
	})
}

// onePlatform parses a --platform flag that takes one; nil is none.
func onePlatform(s string) (*v1.Platform, error) {
	if s == "" {
		return nil, nil
	}
	p, err := platforms.Parse(s)
	if err != nil {
		return nil, fmt.Errorf("--platform=%s: %w", s, err)
	}
	p = platforms.Normalize(p)
	return &p, nil
}
