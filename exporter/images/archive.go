package images

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"time"

	"kiln.build/cache/layout"
	"kiln.build/cache/registry"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// containerdName is the annotation in which containerd, BuildKit and docker
// keep the full name of an image in an archive's index.
const containerdName = "io.containerd.image.name"

// An Export is an image to be written, with names in full form.
type Export struct {
	Image v1.Descriptor
	Names []string
}

// ArchiveOptions say how an archive is written.
type ArchiveOptions struct {
	// Docker adds manifest.json, by which docker load and all older tools
	// read it.
	Docker bool
}

// dockerManifest is an entry of manifest.json
// (https://github.com/moby/docker-image-spec/blob/main/v1.2.md#combined-image-json--filesystem-changeset-format).
type dockerManifest struct {
	Config   string
	RepoTags []string
	Layers   []string
}

// WriteArchive writes images of a layout as a tar of an OCI image layout: the
// top layer of the first image, the other blobs by name, the index. Every blob
// is checked while it is read. Equal images give equal bytes.
func WriteArchive(ctx context.Context, l *layout.Layout, w io.Writer, o ArchiveOptions, exports ...Export) error {
	a, err := newArchiver(ctx, l, o, exports)
	if err != nil {
		return err
	}
	return a.write(ctx, w, o)
}

// ArchiveContent names what WriteArchive would write: archives of equal
// content are equal. No blob of a layer is read.
func ArchiveContent(ctx context.Context, l *layout.Layout, o ArchiveOptions, exports ...Export) (digest.Digest, error) {
	a, err := newArchiver(ctx, l, o, exports)
	if err != nil {
		return "", err
	}
	b, err := json.Marshal(struct {
		Version  int // of how archives are written
		Blobs    []digest.Digest
		Index    []v1.Descriptor
		Docker   bool
		Manifest []dockerManifest
	}{2, slices.Sorted(maps.Keys(a.blobs)), a.index, o.Docker, a.manifest})
	return digest.FromBytes(b), err
}

func newArchiver(ctx context.Context, l *layout.Layout, o ArchiveOptions, exports []Export) (*archiver, error) {
	a := &archiver{l: l, blobs: map[digest.Digest][]byte{}}
	for _, x := range exports {
		if err := a.add(ctx, x, o); err != nil {
			return nil, err
		}
	}
	a.first = a.topLayer()
	return a, nil
}

type archiver struct {
	l        *layout.Layout
	blobs    map[digest.Digest][]byte // nil: to be read from the layout
	index    []v1.Descriptor
	manifest []dockerManifest
	first    v1.Descriptor // the blob that comes first, empty where any may
}

func (a *archiver) add(ctx context.Context, x Export, o ArchiveOptions) error {
	target, err := a.present(x.Image)
	if err != nil {
		return err
	}
	target.Annotations = maps.Clone(target.Annotations)
	delete(target.Annotations, v1.AnnotationRefName)
	for _, d := range a.l.Reachable(target) {
		if _, made := a.blobs[d.Digest]; !made && (!layout.IsForeign(d.MediaType) || a.l.Has(d.Digest)) {
			a.blobs[d.Digest] = nil
		}
	}
	if made := a.blobs[target.Digest]; made != nil { // a reduced index
		var index v1.Index
		if err := json.Unmarshal(made, &index); err != nil {
			return err
		}
		for _, m := range index.Manifests {
			for _, d := range a.l.Reachable(m) {
				a.blobs[d.Digest] = nil
			}
		}
	}
	a.index = append(a.index, named(target, x.Names)...)
	if !o.Docker {
		return nil
	}
	// manifest.json knows no platforms: that of this machine, else the first.
	image, err := platform(ctx, a.l, x.Image)
	if err != nil {
		return err
	}
	m := dockerManifest{Config: blobName(image.ConfigDescriptor.Digest), RepoTags: tags(x.Names), Layers: []string{}}
	for _, l := range image.Layers {
		m.Layers = append(m.Layers, blobName(l.Digest))
	}
	a.manifest = append(a.manifest, m)
	return nil
}

// present is what there is of an image: of an index whose platforms are only
// partly here, as a pull leaves it, an index of those, or the one manifest.
func (a *archiver) present(desc v1.Descriptor) (v1.Descriptor, error) {
	if !layout.IsIndex(desc.MediaType) {
		return desc, nil
	}
	b, err := a.l.ReadBlob(desc.Digest)
	if err != nil {
		return desc, err
	}
	var index v1.Index
	if err := json.Unmarshal(b, &index); err != nil {
		return desc, fmt.Errorf("index %s: %w", desc.Digest, err)
	}
	all := len(index.Manifests)
	index.Manifests = slices.DeleteFunc(index.Manifests, func(d v1.Descriptor) bool { return !a.l.Has(d.Digest) })
	switch {
	case len(index.Manifests) == all:
		return desc, nil
	case len(index.Manifests) == 0:
		return desc, fmt.Errorf("image %s: no platform's manifest is in the store: pull it again", desc.Digest)
	case len(index.Manifests) == 1:
		return index.Manifests[0], nil
	}
	if b, err = json.Marshal(index); err != nil {
		return desc, err
	}
	desc.Digest, desc.Size = digest.FromBytes(b), int64(len(b))
	a.blobs[desc.Digest] = b
	return desc, nil
}

// named returns a descriptor for each name, as containerd writes them.
func named(desc v1.Descriptor, names []string) []v1.Descriptor {
	if len(names) == 0 {
		return []v1.Descriptor{desc}
	}
	all := make([]v1.Descriptor, len(names))
	for i, n := range names {
		d := desc
		d.Annotations = maps.Clone(desc.Annotations)
		if d.Annotations == nil {
			d.Annotations = map[string]string{}
		}
		d.Annotations[containerdName] = n
		if ref, err := registry.ParseReference(n); err == nil && ref.Tag != "" {
			d.Annotations[v1.AnnotationRefName] = ref.Tag
		}
		all[i] = d
	}
	return all
}

// tags are those names that manifest.json can hold.
func tags(names []string) []string {
	var all []string
	for _, n := range names {
		if ref, err := registry.ParseReference(n); err == nil && ref.Tag != "" {
			ref.Digest = ""
			all = append(all, ref.Familiar())
		}
	}
	return all
}

func blobName(d digest.Digest) string {
	return v1.ImageBlobsDir + "/" + d.Algorithm().String() + "/" + d.Encoded()
}

// topLayer is the blob of the last layer of the first image.
func (a *archiver) topLayer() v1.Descriptor {
	for _, d := range a.index {
		for range 2 { // an index leads to a manifest, and that to layers
			var doc struct{ Manifests, Layers []v1.Descriptor }
			b := a.blobs[d.Digest]
			if b == nil {
				b, _ = a.l.ReadBlob(d.Digest)
			}
			if json.Unmarshal(b, &doc) != nil {
				break
			}
			if n := len(doc.Layers); n > 0 {
				top := doc.Layers[n-1]
				if made, there := a.blobs[top.Digest]; there && made == nil {
					return top
				}
				break
			}
			if len(doc.Manifests) == 0 {
				break
			}
			d = doc.Manifests[0]
		}
	}
	return v1.Descriptor{}
}

// folders writes the headers of those that blobs are in.
func folders(tw *tar.Writer) error {
	for _, dir := range []string{"blobs/", "blobs/sha256/"} {
		if err := tw.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: dir, Mode: 0o755, ModTime: time.Unix(0, 0)}); err != nil {
			return err
		}
	}
	return nil
}

func fileHeader(name string, size int64) *tar.Header {
	return &tar.Header{Typeflag: tar.TypeReg, Name: name, Size: size, Mode: 0o444, ModTime: time.Unix(0, 0)}
}

func blobHeader(d digest.Digest, size int64) *tar.Header { return fileHeader(blobName(d), size) }

// write writes the archive.
func (a *archiver) write(ctx context.Context, w io.Writer, o ArchiveOptions) error {
	tw := tar.NewWriter(w)
	if err := folders(tw); err != nil {
		return err
	}
	if a.first.Digest != "" {
		if err := a.blob(tw, a.first.Digest); err != nil {
			return err
		}
	}
	return a.rest(ctx, tw, o)
}

// blob writes a blob.
func (a *archiver) blob(tw *tar.Writer, d digest.Digest) error {
	if made := a.blobs[d]; made != nil {
		return addFile(tw, blobName(d), int64(len(made)), bytes.NewReader(made))
	}
	r, size, err := a.l.Blob(d)
	if err != nil {
		return err
	}
	defer r.Close()
	if err := addFile(tw, blobName(d), size, r); err != nil {
		return fmt.Errorf("write %s: %w", blobName(d), err)
	}
	return nil
}

func addFile(tw *tar.Writer, name string, size int64, r io.Reader) error {
	if err := tw.WriteHeader(fileHeader(name, size)); err != nil {
		return err
	}
	_, err := io.Copy(tw, r)
	return err
}

// rest writes what comes after the first blob.
func (a *archiver) rest(ctx context.Context, tw *tar.Writer, o ArchiveOptions) error {
	for _, d := range slices.Sorted(maps.Keys(a.blobs)) {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if d == a.first.Digest {
			continue
		}
		if err := a.blob(tw, d); err != nil {
			return err
		}
	}
	document := func(name string, v any) error {
		b, err := json.Marshal(v)
		if err != nil {
			return err
		}
		return addFile(tw, name, int64(len(b)), bytes.NewReader(b))
	}
	err := document(v1.ImageIndexFile, v1.Index{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageIndex, Manifests: a.index,
	})
	if err == nil && o.Docker {
		err = document("manifest.json", a.manifest)
	}
	if err == nil {
		err = document(v1.ImageLayoutFile, v1.ImageLayout{Version: v1.ImageLayoutVersion})
	}
	if err != nil {
		return err
	}
	return tw.Close()
}

// WriteFolder copies images of a layout into another, which is made where
// there is none.
func WriteFolder(ctx context.Context, from *layout.Layout, dir string, exports ...Export) error {
	to, err := layout.Open(dir)
	if err != nil {
		return err
	}
	lease, err := to.Lease(ctx)
	if err != nil {
		return err
	}
	defer lease.Release()
	a := archiver{l: from, blobs: map[digest.Digest][]byte{}}
	for _, x := range exports {
		if err := a.add(ctx, x, ArchiveOptions{}); err != nil {
			return err
		}
	}
	for _, d := range slices.Sorted(maps.Keys(a.blobs)) {
		if err := copyBlob(ctx, from, to, d, a.blobs[d]); err != nil {
			return err
		}
	}
	for _, d := range a.index {
		if err := to.Tag(ctx, layout.RefName(d), d); err != nil {
			return err
		}
	}
	return nil
}

func copyBlob(ctx context.Context, from, to *layout.Layout, d digest.Digest, made []byte) error {
	desc := v1.Descriptor{Digest: d}
	if made != nil {
		_, err := to.Write(ctx, desc, bytes.NewReader(made))
		return err
	}
	r, size, err := from.Blob(d)
	if err != nil {
		return err
	}
	defer r.Close()
	desc.Size = size
	_, err = to.Write(ctx, desc, r)
	return err
}

// Save writes images, found by the names given, as an archive that docker
// load reads. An image named by its ID is saved without names.
func (s *Store) Save(ctx context.Context, w io.Writer, names ...string) error {
	lease, err := s.layout().Lease(ctx)
	if err != nil {
		return err
	}
	defer lease.Release()
	all, err := s.List(ctx)
	if err != nil {
		return err
	}
	var exports []Export
	for _, name := range names {
		f, err := Find(all, name)
		if err != nil {
			return err
		}
		i := slices.IndexFunc(exports, func(x Export) bool { return x.Image.Digest == f.Target.Digest })
		if i < 0 {
			i = len(exports)
			exports = append(exports, Export{Image: f.Target})
		}
		if f.Name != "" && !slices.Contains(exports[i].Names, f.Name) {
			exports[i].Names = append(exports[i].Names, f.Name)
		}
	}
	return s.discard(WriteArchive(ctx, s.layout(), w, ArchiveOptions{Docker: true}, exports...))
}

// discard deletes a blob that an error says is corrupt, so that it is fetched
// or made again by whoever can.
func (s *Store) discard(err error) error {
	var corrupt *layout.CorruptError
	if !errors.As(err, &corrupt) {
		return err
	}
	if removeErr := s.layout().Remove(corrupt.Digest); removeErr != nil {
		return errors.Join(err, removeErr)
	}
	return fmt.Errorf("%w; it was deleted: build, pull or load the image again", err)
}
