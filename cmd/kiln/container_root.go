package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"

	"github.com/containerd/platforms"
	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"kiln.build/cache"
	"kiln.build/cache/registry"
	"kiln.build/exporter/images"
	"kiln.build/runner"
	"kiln.build/solver"
)

// imageRoot is what a container is made of.
type imageRoot struct {
	layers []solver.Layer
	config dockerspec.DockerOCIImage
	id     digest.Digest
}

// imageRoot finds an image by name or ID, pulls it unless told not to, and
// unpacks the layers that are not unpacked yet.
func (a *app) imageRoot(ctx context.Context, store *cache.Store, name string, f *runFlags) (*imageRoot, error) {
	p := platforms.Normalize(platforms.DefaultSpec())
	if f.platform != "" {
		var err error
		if p, err = platforms.Parse(f.platform); err != nil {
			return nil, fmt.Errorf("--platform=%s: %w", f.platform, err)
		}
	}
	r := &runner.Runner{Store: store}
	defer r.Close()
	var err error
	if r.Registry, err = a.registry(); err != nil {
		return nil, err
	}
	root, layers, err := a.findImage(ctx, store, r.Registry, name, f, p)
	if err != nil {
		return nil, err
	}
	if have := root.config.Platform; f.platform == "" && have.Architecture != "" && !platforms.Default().Match(have) {
		fmt.Fprintf(a.stderr, "WARNING: The requested image's platform (%s) does not match the detected host platform (%s) and no specific platform was requested\n",
			platforms.Format(platforms.Normalize(have)), platforms.Format(p))
	}
	if root.layers, err = r.Unpack(ctx, name, layers); err != nil {
		return nil, err
	}
	// What a container is of must be there before all is made safe for it.
	_, err = store.LayerDirs(ctx, root.layers)
	return root, err
}

// findImage finds an image that is for the platform, if one is asked for, and
// pulls it as --pull says.
func (a *app) findImage(ctx context.Context, store *cache.Store, from *registry.Client, name string, f *runFlags, p v1.Platform) (*imageRoot, []solver.Origin, error) {
	set := images.Store{Cache: store}
	if f.pull != "always" {
		root, layers, err := readImage(ctx, set, name, p, f.platform != "")
		var other *platformError
		if err == nil || f.pull == "never" || !errors.Is(err, fs.ErrNotExist) && !errors.As(err, &other) {
			return root, layers, err
		}
		if other != nil {
			// There may be one where it came from.
			if pullErr := a.pullFor(ctx, set, from, name, f); pullErr != nil {
				return nil, nil, fmt.Errorf("%w, and cannot be pulled: %w", err, pullErr)
			}
			return readImage(ctx, set, name, p, true)
		}
	}
	if err := a.pullFor(ctx, set, from, name, f); err != nil {
		return nil, nil, err
	}
	return readImage(ctx, set, name, p, f.platform != "")
}

// pullFor pulls the image of a container.
func (a *app) pullFor(ctx context.Context, set images.Store, from *registry.Client, name string, f *runFlags) error {
	ref, err := registry.ParseReference(name)
	if err != nil {
		return err
	}
	if !f.quiet && f.pull != "always" {
		fmt.Fprintf(a.stderr, "Unable to find image '%s' locally\n", ref.Familiar())
	}
	_, err = from.Pull(ctx, ref, set.Cache.Images(), registry.PullOptions{})
	return err
}

// platformError says that an image is for other machines than was asked for.
type platformError struct{ name, want, have string }

func (e *platformError) Error() string {
	return fmt.Sprintf("image with reference %s was found but its platform (%s) does not match the specified platform (%s)", e.name, e.have, e.want)
}

// readImage reads an image that is in the store.
func readImage(ctx context.Context, set images.Store, name string, p v1.Platform, strict bool) (*imageRoot, []solver.Origin, error) {
	found, err := set.Find(ctx, name)
	if err != nil {
		return nil, nil, err
	}
	img, err := set.Cache.Images().Image(ctx, found.Image.Target, &p)
	if err != nil {
		return nil, nil, err
	}
	root := &imageRoot{id: img.ConfigDescriptor.Digest}
	if err := json.Unmarshal(img.Config, &root.config); err != nil {
		return nil, nil, fmt.Errorf("config of image %s: %w", name, err)
	}
	if have := root.config.Platform; strict && have.Architecture != "" && !platforms.Only(p).Match(have) {
		return nil, nil, &platformError{name, platforms.Format(platforms.Normalize(p)), platforms.Format(platforms.Normalize(have))}
	}
	layers := make([]solver.Origin, 0, len(img.Layers))
	for _, l := range img.Layers {
		layers = append(layers, solver.Origin{DiffID: l.DiffID, MediaType: l.MediaType, Blob: l.Digest, Size: l.Size})
	}
	return root, layers, nil
}
