package runner

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"kiln.build/cache/layout"
	"kiln.build/cache/registry"
	"kiln.build/solver"
	"kiln.build/solver/op"
)

// layoutScheme starts references to images in an OCI layout on this machine:
// oci-layout:///absolute/path, :TAG or @DIGEST after it.
const layoutScheme = "oci-layout://"

// Image is a base image that was found.
type Image struct {
	Ref      string // where its blobs are fetched from
	Digest   digest.Digest
	Platform ocispecs.Platform
	Config   []byte
	Layers   []solver.Origin
}

// Op is the vertex of the image's root file system.
func (i *Image) Op() op.Image { return op.Image{Ref: i.Ref, Layers: i.Layers} }

// ResolveImage finds an image for a platform: in the store under its name
// (unless pull is set), else in its registry. One in the store that is for
// another platform is the last resort. What a registry says is kept in the
// store, so that a reference with a digest needs the network only once.
func (r *Runner) ResolveImage(ctx context.Context, ref string, p ocispecs.Platform, pull bool) (*Image, error) {
	img, err := r.resolveImage(ctx, ref, p, pull)
	if err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.origins == nil {
		r.origins = map[digest.Digest]origin{}
	}
	for _, o := range img.Layers {
		r.origins[o.Blob] = origin{o, img.Ref}
		r.origins[o.DiffID] = origin{o, img.Ref}
	}
	return img, nil
}

// origin is a layer of an image that was resolved, and the image's reference.
type origin struct {
	solver.Origin
	ref string
}

// Origin is where the blob of a layer can be had from: of a layer that came
// with another form of an image that was resolved, that image's blob.
func (r *Runner) Origin(o solver.Origin) solver.Origin {
	if r.Store.Images().Has(o.Blob) {
		return o
	}
	known, ok := r.origin(o)
	if !ok {
		return o
	}
	return known.Origin
}

func (r *Runner) origin(o solver.Origin) (origin, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	known, ok := r.origins[o.Blob]
	if !ok {
		known, ok = r.origins[o.DiffID]
	}
	return known, ok
}

// FetchBlob brings the blob of a layer of an image that was resolved before
// into the store.
func (r *Runner) FetchBlob(ctx context.Context, o solver.Origin) error {
	known, ok := r.origin(o)
	if !ok || known.Blob != o.Blob {
		return errors.New("the image that it is from is not known")
	}
	desc := ocispecs.Descriptor{MediaType: o.MediaType, Digest: o.Blob, Size: o.Size}
	body, err := r.fetch(ctx, known.ref, desc)
	if err != nil {
		return err
	}
	defer body.Close()
	_, err = r.Store.Images().Write(ctx, desc, body)
	return err
}

// UnpackLayer brings a layer of an image that was resolved before into the
// store.
func (r *Runner) UnpackLayer(ctx context.Context, o solver.Origin) (solver.Layer, error) {
	known, ok := r.origin(o)
	if !ok && !r.Store.Images().Has(o.Blob) {
		return solver.Layer{}, errors.New("the image that it is from is not known")
	}
	if ok {
		o = r.Origin(o)
	}
	return r.unpacked(ctx, &solver.Action{}, known.ref, o)
}

func (r *Runner) resolveImage(ctx context.Context, ref string, p ocispecs.Platform, pull bool) (*Image, error) {
	if path, ok := strings.CutPrefix(ref, layoutScheme); ok {
		return resolveLayout(ctx, ref, path, p)
	}
	parsed, err := registry.ParseReference(ref)
	if err != nil {
		return nil, err
	}
	img, storedErr := r.stored(ctx, parsed, p)
	pinned := parsed.Digest != ""
	suits := img != nil && (img.Platform.OS == "" || platforms.Only(p).Match(img.Platform))
	if img != nil && (pinned || suits && !pull) {
		return img, nil
	}
	if storedErr != nil && !replaceable(storedErr) {
		return nil, storedErr
	}
	if r.Registry == nil {
		if img != nil {
			return img, nil
		}
		return nil, storedErr
	}
	found, err := r.Registry.Resolve(ctx, parsed, &p)
	switch {
	case err == nil:
		return imageOf(parsed.String(), &found.Image), r.keepDocuments(ctx, &found.Image)
	case img != nil && !pull:
		return img, nil
	case !errors.Is(storedErr, fs.ErrNotExist) && storedErr != nil:
		return nil, fmt.Errorf("%w (in the store: %w)", err, storedErr)
	}
	return nil, err
}

// replaceable reports whether what is wrong with an image in the store can be
// mended by its registry.
func replaceable(err error) bool {
	var corrupt *layout.CorruptError
	var platform *layout.PlatformError
	return errors.Is(err, fs.ErrNotExist) || errors.As(err, &corrupt) || errors.As(err, &platform)
}

// keepDocuments stores what describes an image.
func (r *Runner) keepDocuments(ctx context.Context, img *layout.Image) error {
	for _, doc := range []struct {
		desc ocispecs.Descriptor
		data []byte
	}{{img.Target, img.Index}, {img.Descriptor, img.Manifest}, {img.ConfigDescriptor, img.Config}} {
		if doc.data == nil {
			continue
		}
		if _, err := r.Store.Images().WriteBytes(ctx, doc.desc.MediaType, doc.data); err != nil {
			return err
		}
	}
	return nil
}

// stored finds an image by its tag in the store, or by the digest of its
// manifest. Documents that are corrupt are dropped.
func (r *Runner) stored(ctx context.Context, ref registry.Reference, p ocispecs.Platform) (*Image, error) {
	images := r.Store.Images()
	img, err := func() (*layout.Image, error) {
		desc, err := images.Resolve(ref.String())
		if err != nil && ref.Digest != "" && images.Has(ref.Digest) {
			desc, err = ocispecs.Descriptor{Digest: ref.Digest}, nil
		}
		if err != nil {
			return nil, err
		}
		return images.Image(ctx, desc, &p)
	}()
	var corrupt *layout.CorruptError
	if errors.As(err, &corrupt) {
		err = errors.Join(err, images.Remove(corrupt.Digest))
	}
	if err != nil {
		return nil, err
	}
	return imageOf(ref.String(), img), nil
}

func imageOf(ref string, img *layout.Image) *Image {
	found := &Image{Ref: ref, Digest: img.Descriptor.Digest, Platform: img.Platform, Config: img.Config}
	for _, l := range img.Layers {
		found.Layers = append(found.Layers, solver.Origin{DiffID: l.DiffID, MediaType: l.MediaType, Blob: l.Digest, Size: l.Size})
	}
	return found
}

// openLayout opens the layout in DIR, DIR:TAG or DIR@DIGEST, and returns what
// comes after the directory.
func openLayout(path string) (*layout.Layout, string, error) {
	dir, which := path, ""
	if d, dgst, ok := strings.Cut(path, "@"); ok {
		dir, which = d, dgst
	} else if i := strings.LastIndexByte(path, ':'); i > strings.LastIndexByte(path, '/') {
		dir, which = path[:i], path[i+1:]
	}
	l, err := layout.OpenExisting(dir)
	return l, which, err
}

// resolveLayout finds an image in a layout: by digest, by tag, or the only
// one that is there.
func resolveLayout(ctx context.Context, ref, path string, p ocispecs.Platform) (*Image, error) {
	l, which, err := openLayout(path)
	if err != nil {
		return nil, err
	}
	all, err := l.List()
	if err != nil {
		return nil, err
	}
	var found []ocispecs.Descriptor
	for _, d := range all {
		name := layout.RefName(d)
		if which == "" || string(d.Digest) == which || name == which || strings.HasSuffix(name, ":"+which) {
			found = append(found, d)
		}
	}
	switch {
	case len(found) == 0:
		return nil, fmt.Errorf("%s: no such image in the layout", ref)
	case len(found) > 1 && which == "":
		return nil, fmt.Errorf("%s: the layout has %d images: name one with :TAG or @DIGEST", ref, len(found))
	}
	img, err := l.Image(ctx, found[0], &p)
	if err != nil {
		return nil, err
	}
	return imageOf(ref, img), nil
}
