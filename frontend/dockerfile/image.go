package dockerfile

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/containerd/platforms"
	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"
	"kiln.build/frontend"
	"kiln.build/solver"
	"kiln.build/solver/op"
)

// resolveJobs is how many images are resolved at a time: enough to hide the
// round trips, few enough not to be throttled by a registry.
const resolveJobs = 8

// image is a base image of the build, resolved once.
type image struct {
	ref      string
	platform ocispecs.Platform

	// Set by resolve.
	found  *frontend.Image
	config dockerspec.DockerOCIImage

	vertex *solver.Vertex // for what copies or mounts from it
}

// want notes an image to be resolved.
func (b *build) want(ref string, p ocispecs.Platform) (*image, error) {
	if !strings.Contains(ref, "://") {
		if err := b.checkRef(ref); err != nil {
			return nil, err
		}
	}
	key := platforms.FormatAll(p) + " " + ref
	if b.images[key] == nil {
		b.images[key] = &image{ref: ref, platform: p}
	}
	return b.images[key], nil
}

// findImages resolves the images that stages need and that are not known
// yet, in parallel.
func (b *build) findImages(ctx context.Context, used []*stage) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(resolveJobs)
	begun := map[*image]bool{}
	resolve := func(img *image, s *stage, at location) {
		if img == nil || begun[img] || img.found != nil {
			return
		}
		begun[img] = true
		g.Go(func() error { return b.at(at, b.hintAtStages(img.ref, s, img.resolve(ctx, b.Resolver))) })
	}
	for _, s := range used {
		resolve(s.base.image, s, s.Location)
		for _, c := range s.commands {
			for _, src := range c.sources {
				resolve(src.image, s, c.Location())
			}
		}
	}
	return g.Wait()
}

func (i *image) resolve(ctx context.Context, r frontend.Resolver) error {
	found, err := r.ResolveImage(ctx, i.ref, i.platform)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(found.Config, &i.config); err != nil {
		return fmt.Errorf("config of image %s: %w", found.Ref, err)
	}
	i.config.Created = nil
	i.config.RootFS = ocispecs.RootFS{}
	i.config.History = matchLayers(i.config.History, len(found.Layers))
	i.found = found
	return nil
}

// hintAtStages adds to the failure of an image whose name may have been
// meant as a stage's.
func (b *build) hintAtStages(ref string, s *stage, err error) error {
	if err == nil {
		return nil
	}
	if all := b.byName[strings.ToLower(ref)]; len(all) > 0 {
		return fmt.Errorf("%w (stage %s is defined only after stage %s)", err, all[0], s)
	}
	if n := near(ref, b.stageNames()); n != "" {
		return fmt.Errorf("%w (did you mean the stage %s?)", err, n)
	}
	return err
}

// matchLayers makes a history have just one entry for each layer beside the
// empty ones, as [frontend.Result] promises; some images do not.
func matchLayers(history []ocispecs.History, layers int) []ocispecs.History {
	all := slices.Clone(history)
	n := 0
	for i := range all {
		if all[i].EmptyLayer {
			continue
		}
		if n++; n > layers {
			all[i].EmptyLayer = true
		}
	}
	for ; n < layers; n++ {
		all = append(all, ocispecs.History{Comment: "layer of the base image without a history entry"})
	}
	return all
}

// name is the image's reference with its digest, as a step shows it.
func (i *image) name() string {
	if i.found.Digest == "" || strings.Contains(i.found.Ref, "@") {
		return i.found.Ref
	}
	return i.found.Ref + "@" + string(i.found.Digest)
}

// root is the vertex of the image's root file system. One without layers is
// as good as scratch.
func (i *image) root(step *solver.Step) *solver.Vertex {
	if len(i.found.Layers) == 0 {
		return &solver.Vertex{Op: op.Scratch{}}
	}
	return &solver.Vertex{Op: op.Image{Ref: i.found.Ref, Layers: i.found.Layers}, Step: step}
}

// stack is the root that a COPY or a mount takes files from, or nil for a
// local context.
func (b *build) stack(src source, at location) *solver.Vertex {
	switch {
	case src.stage != nil:
		return src.stage.root
	case src.image != nil:
		if src.image.vertex == nil {
			src.image.vertex = src.image.root(b.step("FROM "+src.image.name(), at))
		}
		return src.image.vertex
	case src.context == "":
		return &solver.Vertex{Op: op.Scratch{}}
	case b.Contexts[src.context].Root != nil:
		return b.contextRoot(src.context, b.step(b.contextStep(src.context), at))
	}
	return nil
}
