package exporter

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"kiln.build/cache/archive"
	"kiln.build/cache/layout"
	"kiln.build/cache/tree"
	"kiln.build/exporter/blob"
	"kiln.build/solver"

	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"
)

// A Form says how images are written. The zero value has uncompressed layers
// and the media types of the OCI.
type Form struct {
	Layers blob.Form

	// ForceCompression gives the layers of base images that form too, which
	// otherwise only those get that are uncompressed.
	ForceCompression bool

	// DockerTypes writes Docker's media types.
	DockerTypes bool

	Annotations []Annotation
}

// Assemble makes an image for each platform, and an index where there are
// several, in the store's layout, and returns what they are. Nothing is
// tagged: hold a lease of the layout until it is.
func (e *Exporter) Assemble(ctx context.Context, f Form, all []Image) (Result, error) {
	return e.assembleAll(ctx, f, all, nil)
}

// assembleAll is Assemble that writes the top layer of the first image, if it
// is made now, beside.
func (e *Exporter) assembleAll(ctx context.Context, f Form, all []Image, beside blob.Beside) (Result, error) {
	if len(all) == 1 {
		for _, p := range []Place{OnIndex, OnIndexDescriptor} {
			if len(annotationsAt(f.Annotations, p, v1.Platform{})) > 0 {
				return Result{}, fmt.Errorf("annotations on the %s need several platforms: an image for one has no index", p)
			}
		}
		m, err := e.assemble(ctx, f, all[0], beside)
		return Result{Descriptor: m.descriptor, ID: m.id}, err
	}
	manifests := make([]v1.Descriptor, len(all))
	g, groupCtx := errgroup.WithContext(ctx)
	for i := range all {
		g.Go(func() error {
			var to blob.Beside
			if i == 0 {
				to = beside
			}
			m, err := e.assemble(groupCtx, f, all[i], to)
			manifests[i] = m.descriptor
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return Result{}, err
	}
	index := v1.Index{
		Versioned:   specs.Versioned{SchemaVersion: 2},
		MediaType:   v1.MediaTypeImageIndex,
		Manifests:   manifests,
		Annotations: annotationsAt(f.Annotations, OnIndex, v1.Platform{}),
	}
	if f.DockerTypes {
		index.MediaType = layout.DockerIndex
	}
	desc, err := e.writeJSON(ctx, index.MediaType, index)
	desc.Annotations = annotationsAt(f.Annotations, OnIndexDescriptor, v1.Platform{})
	return Result{Descriptor: desc}, err
}

type manifest struct {
	descriptor v1.Descriptor
	id         digest.Digest
}

// assemble makes one platform's image.
func (e *Exporter) assemble(ctx context.Context, f Form, image Image, beside blob.Beside) (manifest, error) {
	blobs, err := e.layers(ctx, f, image.Output.Layers, beside)
	if err != nil {
		return manifest{}, err
	}
	config := image.Config
	config.RootFS = v1.RootFS{Type: "layers", DiffIDs: make([]digest.Digest, len(blobs))}
	for i, b := range blobs {
		config.RootFS.DiffIDs[i] = b.DiffID
	}
	config.History = completeHistory(config.History, image.Output.Layers, e.Epoch)
	config.Created = nil
	if n := len(config.History); n > 0 {
		config.Created = config.History[n-1].Created
	}
	if image.Platform.OS != "" {
		config.Platform = image.Platform
	}
	m := v1.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: v1.MediaTypeImageManifest,
		Config:    v1.Descriptor{MediaType: v1.MediaTypeImageConfig},
	}
	if f.DockerTypes {
		m.MediaType, m.Config.MediaType = layout.DockerManifest, layout.DockerConfig
	}
	if m.Config, err = e.writeConfig(ctx, m.Config.MediaType, config, image.Output.Layers); err != nil {
		return manifest{}, err
	}
	m.Layers = make([]v1.Descriptor, len(blobs))
	for i, b := range blobs {
		m.Layers[i] = b.Descriptor
		m.Layers[i].MediaType = mediaType(b.Descriptor.MediaType, f.DockerTypes)
	}
	m.Annotations = annotationsAt(f.Annotations, OnManifest, config.Platform)
	desc, err := e.writeJSON(ctx, m.MediaType, m)
	if err != nil {
		return manifest{}, err
	}
	p := platforms.Normalize(config.Platform)
	desc.Platform = &p
	desc.Annotations = annotationsAt(f.Annotations, OnManifestDescriptor, config.Platform)
	return manifest{descriptor: desc, id: m.Config.Digest}, nil
}

// writeConfig writes an image's config, with the build's cache in it if that is
// asked for.
func (e *Exporter) writeConfig(ctx context.Context, mediaType string, config any, stack []solver.Layer) (v1.Descriptor, error) {
	if e.Inline == nil {
		return e.writeJSON(ctx, mediaType, config)
	}
	raw, err := json.Marshal(config)
	if err != nil {
		return v1.Descriptor{}, err
	}
	key, value, err := e.Inline(stack)
	if err != nil {
		return v1.Descriptor{}, err
	}
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(raw, &fields); err != nil {
		return v1.Descriptor{}, err
	}
	if fields[key], err = json.Marshal(value); err != nil {
		return v1.Descriptor{}, err
	}
	return e.writeJSON(ctx, mediaType, fields)
}

// layers makes the blobs of a stack, several at a time.
func (e *Exporter) layers(ctx context.Context, f Form, stack []solver.Layer, beside blob.Beside) ([]blob.Blob, error) {
	all := make([]blob.Blob, len(stack))
	g, ctx := errgroup.WithContext(ctx)
	// Each compresses on all processors; a few at a time hide waiting for
	// the disk.
	g.SetLimit(4)
	for i := range stack {
		m := e.blobs()
		if i == len(stack)-1 {
			m.Beside = beside
		}
		g.Go(func() error {
			var err error
			all[i], err = e.layer(ctx, m, f, stack, i)
			return err
		})
	}
	return all, g.Wait()
}

func (e *Exporter) layer(ctx context.Context, m *blob.Maker, f Form, stack []solver.Layer, i int) (blob.Blob, error) {
	if stack[i].Origin == nil {
		return m.Pack(ctx, stack, i, f.Layers, e.Epoch)
	}
	b, err := m.Origin(ctx, stack[i])
	// Layers that a local base image has uncompressed are like ours.
	if err != nil || !f.ForceCompression && blob.CompressionOf(b.Descriptor.MediaType) != archive.Uncompressed {
		return b, err
	}
	return m.Recompress(ctx, b, f.Layers)
}

// Prepare makes the blobs of a stack, from layer below on, ahead of the
// export, while other vertices are still being solved.
func (e *Exporter) Prepare(ctx context.Context, o Output, stack []solver.Layer, below int) error {
	if o.Files() {
		return nil
	}
	m, f := e.blobs(), e.form(o)
	for i := below; i < len(stack); i++ {
		if _, err := e.layer(ctx, m, f, stack, i); err != nil {
			return err
		}
	}
	return nil
}

// Feed makes the blob of a layer while that is being made, for an output that
// is no files: see [blob.Maker.Feed]. top says that it is the top layer of the
// first image, with which archives begin. Close must be called.
func (e *Exporter) Feed(ctx context.Context, o Output, top bool, t *tree.Tree, from archive.PackOptions, kept func(blob.Blob) error) (blob.Blob, error) {
	l := solver.Layer{Digest: t.Digest(), Size: t.Size(), Created: time.Now().UTC().Round(0)}
	m := e.blobs()
	if h := e.head(o); top && h != nil {
		m.Beside = h
	}
	return m.Feed(ctx, l, t, from, e.form(o).Layers, e.Epoch, kept)
}

// mediaType is a layer's in the family that the manifest is of. The blob is
// the same in both.
func mediaType(t string, docker bool) string {
	pairs := [][2]string{
		{v1.MediaTypeImageLayer, layout.DockerLayerTar},
		{v1.MediaTypeImageLayerGzip, layout.DockerLayer},
	}
	from, to := 1, 0
	if docker {
		from, to = 0, 1
	}
	if i := slices.IndexFunc(pairs, func(p [2]string) bool { return p[from] == t }); i >= 0 {
		return pairs[i][to]
	}
	return t
}

func (e *Exporter) writeJSON(ctx context.Context, mediaType string, v any) (v1.Descriptor, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return v1.Descriptor{}, err
	}
	return e.Store.Images().WriteBytes(ctx, mediaType, b)
}
