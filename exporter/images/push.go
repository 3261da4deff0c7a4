package images

import (
	"context"
	"encoding/json"
	"fmt"

	"kiln.build/cache/archive"
	"kiln.build/cache/layout"
	"kiln.build/cache/registry"
	"kiln.build/exporter/blob"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// Pull fetches an image and gives it the reference's name. An image that had
// the name before, and has no other, stays without one. It reports whether
// anything is new.
func (s *Store) Pull(ctx context.Context, c *registry.Client, ref registry.Reference, o registry.PullOptions) (desc v1.Descriptor, changed bool, err error) {
	lease, err := s.layout().Lease(ctx)
	if err != nil {
		return desc, false, err
	}
	defer lease.Release()
	old, oldErr := s.layout().Resolve(ref.String())
	if desc, err = c.Pull(ctx, ref, s.layout(), o); err != nil {
		return desc, false, s.discard(err)
	}
	if oldErr != nil {
		return desc, true, nil
	}
	if old.Digest == desc.Digest {
		return desc, false, nil
	}
	return desc, true, s.Keep(ctx, old)
}

// Pushed is an image in a registry.
type Pushed struct {
	Ref        registry.Reference // with the digest
	Descriptor v1.Descriptor
}

// Push sends the image that has a name to where that name says. Layers that
// are here uncompressed are compressed for it, once; so the digest there is
// not that of the store, but the image's ID is.
func (s *Store) Push(ctx context.Context, c *registry.Client, name string, progress registry.Progress) (Pushed, error) {
	ref, err := registry.ParseReference(name)
	if err != nil {
		return Pushed{}, err
	}
	all, err := s.List(ctx)
	if err != nil {
		return Pushed{}, err
	}
	found, ok := findName(all, ref)
	if !ok {
		return Pushed{}, fmt.Errorf("push %s: %w", ref.Familiar(), &NotFoundError{Name: ref.Familiar()})
	}
	lease, err := s.layout().Lease(ctx)
	if err != nil {
		return Pushed{}, err
	}
	defer lease.Release()
	desc, err := s.compressed(ctx, found.Target)
	if err != nil {
		return Pushed{}, s.discard(fmt.Errorf("push %s: %w", ref.Familiar(), err))
	}
	desc, err = c.Push(ctx, s.layout(), desc, ref, registry.PushOptions{Progress: progress})
	if err != nil {
		return Pushed{}, s.discard(err)
	}
	ref.Digest = desc.Digest
	return Pushed{Ref: ref, Descriptor: desc}, nil
}

// compressed returns an image whose layers are all compressed: the given one
// if they are.
func (s *Store) compressed(ctx context.Context, desc v1.Descriptor) (v1.Descriptor, error) {
	b, err := s.layout().ReadBlob(desc.Digest)
	if err != nil {
		return desc, err
	}
	if !layout.IsIndex(desc.MediaType) {
		return s.compressedManifest(ctx, desc, b)
	}
	var index v1.Index
	if err := json.Unmarshal(b, &index); err != nil {
		return desc, fmt.Errorf("index %s: %w", desc.Digest, err)
	}
	changed := false
	for i, m := range index.Manifests {
		if !s.layout().Has(m.Digest) || layout.IsAttestation(m) {
			continue
		}
		if index.Manifests[i], err = s.compressed(ctx, m); err != nil {
			return desc, err
		}
		changed = changed || index.Manifests[i].Digest != m.Digest
	}
	if !changed {
		return desc, nil
	}
	return s.rewritten(ctx, desc, index)
}

func (s *Store) compressedManifest(ctx context.Context, desc v1.Descriptor, raw []byte) (v1.Descriptor, error) {
	var m v1.Manifest
	if err := json.Unmarshal(raw, &m); err != nil {
		return desc, fmt.Errorf("manifest %s: %w", desc.Digest, err)
	}
	image, err := s.layout().Image(ctx, desc, nil)
	if err != nil {
		return desc, err
	}
	maker := blob.Maker{Store: s.Cache}
	changed := false
	for i, l := range image.Layers {
		if blob.CompressionOf(l.MediaType) != archive.Uncompressed {
			continue
		}
		z, err := maker.Recompress(ctx, blob.Blob{Descriptor: l.Descriptor, DiffID: l.DiffID}, blob.Form{Compression: archive.Gzip})
		if err != nil {
			return desc, err
		}
		z.Descriptor.Annotations = l.Annotations
		if m.MediaType == layout.DockerManifest {
			z.Descriptor.MediaType = layout.DockerLayer
		}
		m.Layers[i], changed = z.Descriptor, true
	}
	if !changed {
		return desc, nil
	}
	return s.rewritten(ctx, desc, m)
}

// rewritten stores a changed document, and returns its descriptor with all
// else as it was.
func (s *Store) rewritten(ctx context.Context, was v1.Descriptor, document any) (v1.Descriptor, error) {
	now, err := s.writeJSON(ctx, was.MediaType, document)
	was.Digest, was.Size = now.Digest, now.Size
	return was, err
}
