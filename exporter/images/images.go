// Package images works on the images in the local store: it lists and finds
// them, gives and takes names, saves them to archives and loads them from
// there, makes one of a root file system, and pushes them.
//
// An [Image] is a manifest, or an index over several platforms, in the
// store's OCI layout; its ID is the digest of its config, as in docker. Images
// are immutable; names move. An image that lost its last name to another is
// kept without one until it is pruned.
//
// How images come out of builds is the business of package exporter.
package images

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"time"

	"kiln.build/cache"
	"kiln.build/cache/layout"
	"kiln.build/cache/registry"

	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// A Store is the image part of a store. Its methods may be used by several
// goroutines.
type Store struct {
	Cache *cache.Store
}

func (s *Store) layout() *layout.Layout { return s.Cache.Images() }

// An Image is one of the store. Of an image for several platforms, the
// fields that a platform has are those of this machine's, or of the first
// that is here.
type Image struct {
	ID     digest.Digest // of the config
	Target v1.Descriptor // what the names stand for: a manifest or an index
	Names  []string      // in full form, in the order in which they were given

	// Documents of the platform; nil where Err is set.
	Documents *layout.Image
	Config    dockerspec.DockerOCIImage

	Created time.Time // zero where unknown
	Size    int64     // of its layers, see LayerSize

	// Err says why the image cannot be read; ID is then the digest of Target.
	Err error
}

// NotFoundError says that there is no such image.
type NotFoundError struct{ Name string }

func (e *NotFoundError) Error() string { return "No such image: " + e.Name }

// Is makes the error match [fs.ErrNotExist].
func (e *NotFoundError) Is(target error) bool { return target == fs.ErrNotExist }

// List returns all images, the newest first.
func (s *Store) List(ctx context.Context) ([]*Image, error) {
	entries, err := s.layout().List()
	if err != nil {
		return nil, err
	}
	var all []*Image
	byTarget := map[digest.Digest]*Image{}
	for _, d := range entries {
		if err := ctx.Err(); err != nil {
			return nil, context.Cause(ctx)
		}
		image := byTarget[d.Digest]
		if image == nil {
			image = s.read(ctx, d)
			byTarget[d.Digest] = image
			all = append(all, image)
		}
		image.addName(d)
	}
	slices.SortStableFunc(all, func(a, b *Image) int {
		if c := b.Created.Compare(a.Created); c != 0 {
			return c
		}
		return cmp.Compare(a.ID, b.ID)
	})
	return all, nil
}

// read makes an Image, without names, of an entry of the layout.
func (s *Store) read(ctx context.Context, d v1.Descriptor) *Image {
	d.Annotations = nil
	image := &Image{ID: d.Digest, Target: d}
	documents, err := platform(ctx, s.layout(), d)
	if err == nil {
		err = json.Unmarshal(documents.Config, &image.Config)
	}
	if err != nil {
		image.Err = fmt.Errorf("read image %s: %w", d.Digest, err)
		return image
	}
	image.Documents = documents
	image.ID = documents.ConfigDescriptor.Digest
	for _, l := range documents.Layers {
		image.Size += s.LayerSize(l)
	}
	if image.Config.Created != nil {
		image.Created = *image.Config.Created
	}
	return image
}

// LayerSize is the size of the files in a layer, in bytes, where it was
// unpacked or built here, else that of its blob.
func (s *Store) LayerSize(l layout.Layer) int64 {
	r, err := s.Cache.Record(cache.UnpackAction(l.DiffID).Key)
	if err == nil && len(r.Result.Layers) == 1 {
		return r.Result.Layers[0].Size
	}
	return l.Size
}

// Layers lists the layers of the store that all images consist of, as far as
// they are there: what pruning must spare so that images run at once.
func (s *Store) Layers(ctx context.Context) ([]digest.Digest, error) {
	all, err := s.List(ctx)
	if err != nil {
		return nil, err
	}
	var layers []digest.Digest
	for _, image := range all {
		if image.Err != nil {
			continue
		}
		for _, l := range image.Documents.Layers {
			if r, err := s.Cache.Record(cache.UnpackAction(l.DiffID).Key); err == nil {
				for _, have := range r.Result.Layers {
					layers = append(layers, have.Digest)
				}
			}
		}
	}
	return layers, nil
}

// platform reads an image for this machine's platform, or for one whose
// manifest is here.
func platform(ctx context.Context, l *layout.Layout, d v1.Descriptor) (*layout.Image, error) {
	documents, err := l.Image(ctx, d, nil)
	if err == nil || !layout.IsIndex(d.MediaType) {
		return documents, err
	}
	children, readErr := manifests(l, d)
	if readErr != nil {
		return nil, err
	}
	for _, m := range children {
		if other, otherErr := l.Image(ctx, m, m.Platform); otherErr == nil {
			return other, nil
		}
	}
	return nil, err
}

// manifests lists the images of an index, without attestations.
func manifests(l *layout.Layout, index v1.Descriptor) ([]v1.Descriptor, error) {
	b, err := l.ReadBlob(index.Digest)
	if err != nil {
		return nil, err
	}
	var x v1.Index
	if err := json.Unmarshal(b, &x); err != nil {
		return nil, fmt.Errorf("index %s: %w", index.Digest, err)
	}
	return slices.DeleteFunc(x.Manifests, layout.IsAttestation), nil
}

// A Found image, and how it was named.
type Found struct {
	*Image

	// Name is the full name that it was found by, "" if by its ID.
	Name string
}

// Find looks up an image by name, as in "hello" or "hello@sha256:…", or by
// its ID or the beginning of that. The error wraps a [*NotFoundError] where
// there is none such.
func (s *Store) Find(ctx context.Context, name string) (Found, error) {
	if f, ok, err := s.named(ctx, name); ok || err != nil {
		return f, err
	}
	all, err := s.List(ctx)
	if err != nil {
		return Found{}, err
	}
	return Find(all, name)
}

// named finds an image by its whole name and reads no other: there may be
// thousands.
func (s *Store) named(ctx context.Context, name string) (Found, bool, error) {
	ref, err := registry.ParseReference(name)
	if err != nil || digest.Digest(name).Validate() == nil {
		return Found{}, false, nil
	}
	d, err := s.layout().Resolve(ref.String())
	if errors.Is(err, fs.ErrNotExist) {
		return Found{}, false, nil
	}
	if err != nil {
		return Found{}, false, err
	}
	image := s.read(ctx, d)
	entries, err := s.layout().Entries(d.Digest)
	if err != nil {
		return Found{}, false, err
	}
	for _, e := range entries {
		image.addName(e)
	}
	return Found{Image: image, Name: ref.String()}, true, nil
}

// addName adds the name of an entry of the layout.
func (i *Image) addName(d v1.Descriptor) {
	if name := layout.RefName(d); name != "" && !slices.Contains(i.Names, name) {
		i.Names = append(i.Names, name)
	}
}

// Find looks an image up in a list, as [Store.Find] does.
func Find(all []*Image, name string) (Found, error) {
	if d := digest.Digest(name); d.Validate() == nil {
		for _, image := range all {
			if image.ID == d || image.Target.Digest == d {
				return Found{Image: image}, nil
			}
		}
		return Found{}, &NotFoundError{Name: name}
	}
	ref, refErr := registry.ParseReference(name)
	if refErr == nil {
		if f, ok := findName(all, ref); ok {
			return f, nil
		}
	}
	hex := strings.TrimPrefix(name, "sha256:")
	if hex != "" && strings.Trim(hex, "0123456789abcdef") == "" {
		return findPrefix(all, name, hex)
	}
	if refErr != nil && !errors.Is(refErr, fs.ErrNotExist) {
		return Found{}, refErr
	}
	return Found{}, &NotFoundError{Name: name}
}

func findName(all []*Image, ref registry.Reference) (Found, bool) {
	for _, image := range all {
		for _, n := range image.Names {
			if n == ref.String() {
				return Found{Image: image, Name: n}, true
			}
			if ref.Digest == "" || ref.Digest != image.Target.Digest {
				continue
			}
			if own, err := registry.ParseReference(n); err == nil && own.Name() == ref.Name() {
				return Found{Image: image, Name: n}, true
			}
		}
	}
	return Found{}, false
}

func findPrefix(all []*Image, name, hex string) (Found, error) {
	var found *Image
	for _, image := range all {
		if !strings.HasPrefix(image.ID.Encoded(), hex) && !strings.HasPrefix(image.Target.Digest.Encoded(), hex) {
			continue
		}
		if found != nil && found.ID != image.ID {
			return Found{}, fmt.Errorf("multiple images have IDs that start with %q: give more of it", name)
		}
		// Of two forms of one image, the one with a name.
		if found == nil || len(found.Names) == 0 {
			found = image
		}
	}
	if found == nil {
		return Found{}, &NotFoundError{Name: name}
	}
	return Found{Image: found}, nil
}

// Platforms lists those of an image for several platforms that are here; nil
// for one that has no index.
func (s *Store) Platforms(image *Image) ([]v1.Platform, error) {
	if !layout.IsIndex(image.Target.MediaType) {
		return nil, nil
	}
	all, err := manifests(s.layout(), image.Target)
	if err != nil {
		return nil, err
	}
	var here []v1.Platform
	for _, m := range all {
		if m.Platform != nil && s.layout().Has(m.Digest) {
			here = append(here, *m.Platform)
		}
	}
	return here, nil
}
