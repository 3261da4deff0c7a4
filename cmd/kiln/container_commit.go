package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/spf13/cobra"
	"kiln.build/cache"
	"kiln.build/cache/archive"
	"kiln.build/cache/registry"
	"kiln.build/exporter"
	"kiln.build/exporter/images"
	"kiln.build/runner/container"
	"kiln.build/solver"
)

// commitFlags are the flags of commit, as typed.
type commitFlags struct {
	author, message string
	changes         []string
	pause, noPause  bool
}

func (a *app) commitCommand() *cobra.Command {
	var f commitFlags
	c := &cobra.Command{
		Use: "commit [flags] CONTAINER [NAME[:TAG]]", Short: "Make an image of a container's changes", Args: cobra.RangeArgs(1, 2),
		Example: "  kiln commit -m 'with curl' web web:curl",
		RunE: func(c *cobra.Command, args []string) error {
			return a.withContainer(args[0], func(store *cache.Store, k *container.Container) error {
				return a.commit(c.Context(), store, k, &f, args[1:])
			})
		},
	}
	c.Flags().StringVarP(&f.author, "author", "a", "", "author of the image")
	c.Flags().StringVarP(&f.message, "message", "m", "", "what was done, for the history")
	c.Flags().StringArrayVarP(&f.changes, "change", "c", nil, "Dockerfile instruction for the image's config, such as 'ENV A=b' (repeatable)")
	c.Flags().BoolVarP(&f.pause, "pause", "p", true, "pause the container meanwhile")
	c.Flags().BoolVar(&f.noPause, "no-pause", false, "same as --pause=false")
	return c
}

func (a *app) commit(ctx context.Context, store *cache.Store, k *container.Container, f *commitFlags, name []string) error {
	out := exporter.Output{Type: exporter.TypeImage}
	if len(name) > 0 {
		ref, err := registry.ParseReference(name[0])
		if err != nil {
			return err
		}
		out.Names = []string{ref.String()}
	}
	config, err := imageConfig(store, k)
	if err != nil {
		return err
	}
	config.Author = f.author
	config.History = append(config.History, v1.History{
		CreatedBy: strings.Join(k.Args, " "), Author: f.author, Comment: f.message,
	})
	config.Config.Cmd, config.Config.Entrypoint = k.Args[len(k.Entrypoint):], k.Entrypoint
	config.Config.Env, config.Config.WorkingDir, config.Config.User = k.Env, k.Cwd, k.User
	config.Config.Labels, config.Config.StopSignal = k.Labels, k.StopSignal
	// What inspect shows of these is what the container was made with.
	shown := inspectConfig(k)
	config.Config.ExposedPorts, config.Config.Volumes, config.Config.Healthcheck = shown.ExposedPorts, shown.Volumes, shown.Healthcheck
	if err := images.Change(&config.Config, f.changes); err != nil {
		return err
	}
	layer, err := a.commitLayer(ctx, store, k, f.pause && !f.noPause)
	if err != nil {
		return err
	}
	layers := append(slices.Clone(k.Layers), layer)
	x := &exporter.Exporter{Store: store, Stdout: a.stdout}
	r, err := x.Export(ctx, out, []exporter.Image{{Output: solver.Output{Layers: layers}, Config: config}})
	if err != nil {
		return fmt.Errorf("commit container %s: %w", k.Name, err)
	}
	k.Note("commit", "comment", f.message, "imageID", r.ID.String(), "imageRef", strings.Join(out.Names, ","))
	return writeLines(a.stdout, r.ID.String())
}

// imageConfig reads the config of the container's image, which may have lost
// its names since.
func imageConfig(store *cache.Store, k *container.Container) (config dockerspec.DockerOCIImage, err error) {
	r, _, err := store.Images().Blob(k.ImageID)
	if err != nil {
		return config, fmt.Errorf("config of image %s: %w", k.Image, err)
	}
	defer r.Close()
	if err := json.NewDecoder(r).Decode(&config); err != nil {
		return config, fmt.Errorf("config of image %s: %w", k.Image, err)
	}
	return config, nil
}

// commitLayer copies the container's changes into the store.
func (a *app) commitLayer(ctx context.Context, store *cache.Store, k *container.Container, pause bool) (layer solver.Layer, err error) {
	if st, err := k.State(); err != nil {
		return layer, err
	} else if pause && st.Status == container.Running {
		if err := k.Pause(ctx); err != nil {
			return layer, fmt.Errorf("%w (--pause=false commits what runs)", err)
		}
		defer func() { err = errors.Join(err, k.Unpause(context.WithoutCancel(ctx))) }()
	}
	dir, t, err := k.Layer(ctx)
	if err != nil {
		return layer, err
	}
	defer dir.Close()
	d, err := store.NewLayer()
	if err != nil {
		return layer, err
	}
	defer d.Discard()
	rd, wr := io.Pipe()
	done := make(chan error, 1)
	go func() {
		w := bufio.NewWriterSize(wr, 256<<10)
		err := archive.Pack(ctx, w, fmt.Sprintf("/proc/self/fd/%d", dir.Fd()), t, archive.PackOptions{})
		if err == nil {
			err = w.Flush()
		}
		_ = wr.CloseWithError(err)
		done <- err
	}()
	unpacked, err := archive.Unpack(ctx, rd, d.FS, archive.UnpackOptions{Layer: true})
	_ = rd.CloseWithError(err)
	if err := errors.Join(err, <-done); err != nil {
		return layer, fmt.Errorf("commit container %s: %w", k.Name, err)
	}
	layer, err = d.Commit(ctx, unpacked)
	layer.Created = time.Now().UTC()
	return layer, err
}
