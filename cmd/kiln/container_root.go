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
	platform, pull := f.platform, f.pull
	p := platforms.Normalize(platforms.DefaultSpec())
	if platform != "" {
		var err error
		if p, err = platforms.Parse(platform); err != nil {
			return nil, fmt.Errorf("--platform=%s: %w", platform, err)
		}
	}
	r := &runner.Runner{Store: store}
	defer r.Close()
	var err error
	if r.Registry, err = a.registry(); err != nil {
		return nil, err
	}
	set := images.Store{Cache: store}
	found, err := set.Find(ctx, name)
	if pull == "always" || errors.Is(err, fs.ErrNotExist) && pull != "never" {
		ref, refErr := registry.ParseReference(name)
		if refErr != nil {
			return nil, refErr
		}
		if !f.quiet && errors.Is(err, fs.ErrNotExist) {
			fmt.Fprintf(a.stderr, "Unable to find image '%s' locally\n", ref.Familiar())
		}
		if _, err := r.Registry.Pull(ctx, ref, store.Images(), registry.PullOptions{}); err != nil {
			return nil, err
		}
		found, err = set.Find(ctx, name)
	}
	if err != nil {
		return nil, err
	}
	img, err := store.Images().Image(ctx, found.Image.Target, &p)
	if err != nil {
		return nil, err
	}
	root := &imageRoot{id: img.ConfigDescriptor.Digest}
	if err := json.Unmarshal(img.Config, &root.config); err != nil {
		return nil, fmt.Errorf("config of image %s: %w", name, err)
	}
	layers := make([]solver.Origin, 0, len(img.Layers))
	for _, l := range img.Layers {
		layers = append(layers, solver.Origin{DiffID: l.DiffID, MediaType: l.MediaType, Blob: l.Digest, Size: l.Size})
	}
	res, err := r.Unpack(ctx, name, layers)
	if err != nil {
		return nil, err
	}
	root.layers = res
	return root, nil
}
