package runner

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"

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
// (unless pull is set), else in its registry. What a registry says is kept in
// the store, so that a reference with a digest needs the network only once.
func (r *Runner) ResolveImage(ctx context.Context, ref string, p ocispecs.Platform, pull bool) (*Image, error) {
	if path, ok := strings.CutPrefix(ref, layoutScheme); ok {
		return resolveLayout(ctx, ref, path, p)
	}
	parsed, err := registry.ParseReference(ref)
	if err != nil {
		return nil, err
	}
	img, err := r.stored(ctx, parsed, p)
	if err == nil && (!pull || parsed.Digest != "") {
		return img, nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	if r.Registry == nil {
		return nil, fmt.Errorf("%s is not in the store", parsed)
	}
	found, err := r.Registry.Resolve(ctx, parsed, &p)
	if err != nil {
		return nil, err
	}
	for _, doc := range []struct {
		desc ocispecs.Descriptor
		data []byte
	}{{found.Descriptor, found.Manifest}, {found.ConfigDescriptor, found.Config}} {
		if _, err := r.Store.Images().WriteBytes(ctx, doc.desc.MediaType, doc.data); err != nil {
			return nil, err
		}
	}
	return imageOf(parsed.String(), &found.Image), nil
}

// stored finds an image by its tag in the store, or by the digest of its
// manifest.
func (r *Runner) stored(ctx context.Context, ref registry.Reference, p ocispecs.Platform) (*Image, error) {
	images := r.Store.Images()
	desc, err := images.Resolve(ref.String())
	if err != nil && ref.Digest != "" && images.Has(ref.Digest) {
		data, readErr := images.ReadBlob(ref.Digest)
		if readErr != nil {
			return nil, readErr
		}
		desc = ocispecs.Descriptor{MediaType: mediaType(data), Digest: ref.Digest, Size: int64(len(data))}
		err = nil
	}
	if err != nil {
		return nil, err
	}
	img, err := images.Image(ctx, desc, &p)
	if err != nil {
		return nil, err
	}
	return imageOf(ref.String(), img), nil
}

func mediaType(manifest []byte) string {
	if strings.Contains(string(manifest), `"manifests"`) {
		return ocispecs.MediaTypeImageIndex
	}
	return ocispecs.MediaTypeImageManifest
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
