package images

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"

	"kiln.build/cache/archive"
	"kiln.build/cache/layout"
	"kiln.build/cache/registry"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// Loaded is an image that was loaded.
type Loaded struct {
	ID    digest.Digest
	Names []string // in full form
}

// Load reads the images of an archive, compressed or not, as docker save and
// tools that write OCI image layouts make it. The archive is read once, from
// its beginning to its end. Blobs are kept as they are; what does not match
// its digest or diff ID is an error, and then no name has changed.
func (s *Store) Load(ctx context.Context, r io.Reader) ([]Loaded, error) {
	loaded, err := s.load(ctx, r)
	if err != nil {
		return nil, fmt.Errorf("load images: %w", err)
	}
	return loaded, nil
}

func (s *Store) load(ctx context.Context, r io.Reader) ([]Loaded, error) {
	lease, err := s.layout().Lease(ctx)
	if err != nil {
		return nil, err
	}
	defer lease.Release()
	plain, err := archive.Decompress(ctx, r)
	if err != nil {
		return nil, err
	}
	defer plain.Close()
	l := loader{s: s, files: map[string]v1.Descriptor{}, links: map[string]string{}, documents: map[string][]byte{}}
	if err := l.read(ctx, plain); err != nil {
		return nil, err
	}
	found, err := l.images(ctx)
	if err != nil {
		return nil, err
	}
	return s.keep(ctx, found)
}

// LoadFolder reads the images of an OCI image layout.
func (s *Store) LoadFolder(ctx context.Context, dir string) ([]Loaded, error) {
	from, err := layout.OpenExisting(dir)
	if err != nil {
		return nil, fmt.Errorf("load images: %w", err)
	}
	lease, err := s.layout().Lease(ctx)
	if err != nil {
		return nil, fmt.Errorf("load images: %w", err)
	}
	defer lease.Release()
	list, err := from.List()
	if err != nil {
		return nil, fmt.Errorf("load images: %w", err)
	}
	var found []Export
	for _, d := range list {
		for _, b := range from.Reachable(d) {
			if !from.Has(b.Digest) {
				continue
			}
			if err := copyBlob(ctx, from, s.layout(), b.Digest, nil); err != nil {
				return nil, fmt.Errorf("load images: %w", err)
			}
		}
		found = append(found, Export{Image: d, Names: annotatedNames(d)})
	}
	loaded, err := s.keep(ctx, found)
	if err != nil {
		return nil, fmt.Errorf("load images: %w", err)
	}
	return loaded, nil
}

// keep checks images whose blobs are in the layout, and names them.
func (s *Store) keep(ctx context.Context, found []Export) ([]Loaded, error) {
	if len(found) == 0 {
		return nil, errors.New("there are no images in it")
	}
	for i := range found {
		d := &found[i].Image
		// What other tools noted there is about their index, not about ours.
		d.Annotations = nil
		if err := s.complete(ctx, *d, 0); err != nil {
			return nil, err
		}
	}
	var loaded []Loaded
	byImage := map[digest.Digest]int{}
	for _, x := range found {
		i, ok := byImage[x.Image.Digest]
		if !ok {
			i = len(loaded)
			byImage[x.Image.Digest] = i
			loaded = append(loaded, Loaded{ID: s.read(ctx, x.Image).ID})
		}
		if len(x.Names) == 0 {
			if err := s.Keep(ctx, x.Image); err != nil {
				return loaded, err
			}
		}
		for _, n := range x.Names {
			if err := s.Name(ctx, n, x.Image); err != nil {
				return loaded, err
			}
			loaded[i].Names = append(loaded[i].Names, n)
		}
	}
	return loaded, nil
}

// complete checks that all of an image is here: of an index the platforms
// whose manifests are, and at least one.
func (s *Store) complete(ctx context.Context, d v1.Descriptor, depth int) error {
	if !s.layout().Has(d.Digest) {
		return fmt.Errorf("image %s: its manifest is missing", d.Digest)
	}
	if layout.IsIndex(d.MediaType) {
		all, err := manifests(s.layout(), d)
		if err != nil {
			return err
		}
		here := 0
		for _, m := range all {
			if !s.layout().Has(m.Digest) || depth > 3 {
				continue
			}
			here++
			if err := s.complete(ctx, m, depth+1); err != nil {
				return err
			}
		}
		if here == 0 {
			return fmt.Errorf("image index %s: no platform's manifest is there", d.Digest)
		}
		return nil
	}
	image, err := s.layout().Image(ctx, d, nil)
	if err != nil {
		return err
	}
	for i, l := range image.Layers {
		if !s.layout().Has(l.Digest) && !layout.IsForeign(l.MediaType) {
			return fmt.Errorf("image %s: layer %d, blob %s, is missing", d.Digest, i, l.Digest)
		}
	}
	return nil
}

// annotatedNames is the name that an entry of an index has. Many tools write
// just a tag, which names nothing.
func annotatedNames(d v1.Descriptor) []string {
	for _, n := range []string{d.Annotations[containerdName], d.Annotations[v1.AnnotationRefName]} {
		if !strings.ContainsAny(n, "/:@") {
			continue
		}
		if ref, err := registry.ParseReference(n); err == nil {
			return []string{ref.String()}
		}
	}
	return nil
}

// maxEntries bounds what a hostile archive makes us remember.
const maxEntries = 200_000

// loader reads an archive: files become blobs as they come, and what they
// are is found out when all are there.
type loader struct {
	s         *Store
	files     map[string]v1.Descriptor // of those written as blobs
	links     map[string]string        // as docker before version 25 saves layers that occur again
	documents map[string][]byte
}

func (l *loader) read(ctx context.Context, r io.Reader) error {
	tr := tar.NewReader(r)
	for n := 0; ; n++ {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		hdr, err := tr.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return fmt.Errorf("read archive: %w", err)
		}
		if n >= maxEntries {
			return fmt.Errorf("the archive has more than %d entries", maxEntries)
		}
		if err := l.entry(ctx, hdr, tr); err != nil {
			return fmt.Errorf("entry %q: %w", hdr.Name, err)
		}
	}
	// A checksum of the compressed stream, if any, is at its end.
	_, err := io.Copy(io.Discard, r)
	return err
}

func (l *loader) entry(ctx context.Context, hdr *tar.Header, r io.Reader) error {
	name := path.Clean("/" + hdr.Name)[1:]
	switch hdr.Typeflag {
	case tar.TypeSymlink:
		l.links[name] = path.Join("/", path.Dir(name), hdr.Linkname)[1:]
		return nil
	case tar.TypeLink:
		l.links[name] = path.Clean("/" + hdr.Linkname)[1:]
		return nil
	case tar.TypeReg:
	default:
		return nil
	}
	switch name {
	case "manifest.json", v1.ImageIndexFile, v1.ImageLayoutFile, "repositories":
		if hdr.Size > 64<<20 {
			return errors.New("is too large")
		}
		b, err := io.ReadAll(r)
		l.documents[name] = b
		return err
	}
	var want v1.Descriptor
	if dir, hex := path.Split(name); dir == "blobs/sha256/" {
		want = v1.Descriptor{Digest: digest.NewDigestFromEncoded(digest.SHA256, hex), Size: hdr.Size}
		if want.Digest.Validate() != nil {
			return nil // no blob
		}
	}
	desc, err := l.s.layout().Write(ctx, want, r)
	if err != nil {
		return err
	}
	l.files[name] = desc
	return nil
}

// file finds the blob that a path of the archive became.
func (l *loader) file(name string) (v1.Descriptor, error) {
	clean := path.Clean("/" + name)[1:]
	for range 10 {
		if d, ok := l.files[clean]; ok {
			return d, nil
		}
		to, ok := l.links[clean]
		if !ok {
			break
		}
		clean = to
	}
	return v1.Descriptor{}, fmt.Errorf("%q is not in the archive", name)
}

// images finds out what images the archive has.
func (l *loader) images(ctx context.Context) ([]Export, error) {
	var docker []dockerManifest
	if b := l.documents["manifest.json"]; b != nil {
		if err := json.Unmarshal(b, &docker); err != nil {
			return nil, fmt.Errorf("manifest.json: %w", err)
		}
	}
	if b := l.documents[v1.ImageIndexFile]; b != nil {
		var index v1.Index
		if err := json.Unmarshal(b, &index); err != nil {
			return nil, fmt.Errorf("%s: %w", v1.ImageIndexFile, err)
		}
		if found, ok := l.fromIndex(ctx, index, docker); ok {
			return found, nil
		}
	}
	if docker == nil {
		if l.documents["repositories"] != nil {
			return nil, errors.New("the archive is in the format of docker before version 1.10; load and save it with a later one")
		}
		return nil, errors.New("it has neither manifest.json nor index.json: it is no archive of images (kiln import reads root file systems)")
	}
	var found []Export
	for i, m := range docker {
		x, err := l.fromDocker(ctx, m)
		if err != nil {
			return nil, fmt.Errorf("manifest.json: image %d: %w", i, err)
		}
		found = append(found, x)
	}
	return found, nil
}

// fromIndex takes the images that index.json lists, with names from
// manifest.json where it has none itself. It reports false if one of them is
// not in the archive.
func (l *loader) fromIndex(ctx context.Context, index v1.Index, docker []dockerManifest) ([]Export, bool) {
	var found []Export
	for _, d := range index.Manifests {
		if layout.IsAttestation(d) {
			continue
		}
		if !l.s.layout().Has(d.Digest) {
			return nil, false
		}
		x := Export{Image: d, Names: annotatedNames(d)}
		if len(x.Names) == 0 {
			id := l.s.read(ctx, d).ID
			for _, m := range docker {
				if c, err := l.file(m.Config); err == nil && c.Digest == id {
					x.Names = fullNames(m.RepoTags)
				}
			}
		}
		found = append(found, x)
	}
	return found, len(found) > 0
}

func fullNames(tags []string) []string {
	var all []string
	for _, t := range tags {
		if ref, err := registry.ParseReference(t); err == nil {
			all = append(all, ref.String())
		}
	}
	return all
}

// fromDocker makes a manifest for an image that manifest.json lists.
func (l *loader) fromDocker(ctx context.Context, m dockerManifest) (Export, error) {
	x := Export{Names: fullNames(m.RepoTags)}
	config, err := l.file(m.Config)
	if err != nil {
		return x, err
	}
	config.MediaType = v1.MediaTypeImageConfig
	b, err := l.s.layout().ReadBlob(config.Digest)
	if err != nil {
		return x, err
	}
	var parsed v1.Image
	if err := json.Unmarshal(b, &parsed); err != nil {
		return x, fmt.Errorf("config %q: %w", m.Config, err)
	}
	if len(parsed.RootFS.DiffIDs) != len(m.Layers) {
		return x, fmt.Errorf("it has %d layers, its config %d", len(m.Layers), len(parsed.RootFS.DiffIDs))
	}
	manifest := v1.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: v1.MediaTypeImageManifest,
		Config:    config,
		Layers:    make([]v1.Descriptor, len(m.Layers)),
	}
	for i, name := range m.Layers {
		d, err := l.file(name)
		if err != nil {
			return x, err
		}
		if manifest.Layers[i], err = l.layer(ctx, d, parsed.RootFS.DiffIDs[i]); err != nil {
			return x, fmt.Errorf("layer %q: %w", name, err)
		}
	}
	if b, err = json.Marshal(manifest); err != nil {
		return x, err
	}
	x.Image, err = l.s.layout().WriteBytes(ctx, manifest.MediaType, b)
	p := parsed.Platform
	x.Image.Platform = &p
	return x, err
}

// layer finds out how a layer's blob is compressed and checks its content.
func (l *loader) layer(ctx context.Context, d v1.Descriptor, diffID digest.Digest) (v1.Descriptor, error) {
	if d.Digest == diffID {
		d.MediaType = v1.MediaTypeImageLayer
		return d, nil
	}
	r, _, err := l.s.layout().Blob(d.Digest)
	if err != nil {
		return d, err
	}
	defer r.Close()
	b, err := ingest(ctx, l.s.layout(), r)
	if err != nil {
		return d, err
	}
	if b.DiffID != diffID {
		return d, fmt.Errorf("its content has the digest %s, and its config says %s", b.DiffID, diffID)
	}
	return b.Descriptor, nil
}
