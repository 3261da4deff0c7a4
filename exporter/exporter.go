// Package exporter turns the result of a build, a stack of layers and an
// image config, into what people asked for.
//
// [Exporter.Assemble] makes an image in the store's OCI layout: blobs of the
// layers (package blob), the config with its history, the manifest, and an
// index over several platforms. [Exporter.Export] does that and then what an
// [Output] says: tag it, push it, write it as an archive or a folder; or
// write the bare root file system. Equal input gives equal bytes, so
// exporting what was exported before writes nothing.
//
// What there is to do with images that are in the store is in package images.
package exporter

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"kiln.build/cache"
	"kiln.build/cache/archive"
	"kiln.build/cache/layout"
	"kiln.build/cache/registry"
	"kiln.build/exporter/blob"
	"kiln.build/exporter/images"
	"kiln.build/solver"

	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// An Exporter exports results of builds. It may be used by several goroutines.
type Exporter struct {
	Store *cache.Store

	// Client pushes; nil where nothing is to be pushed.
	Client *registry.Client

	// Fetch brings the blob of a base image into the store's layout; nil
	// where there is no way.
	Fetch func(context.Context, solver.Origin) error

	// Inline, if set, returns a field for the configs of images: the cache of
	// the build that made a stack, for others that have the image.
	Inline func(stack []solver.Layer) (key string, value []byte, err error)

	// Epoch, if set, is the latest time in anything that is exported.
	Epoch *time.Time

	// Stdout receives what goes to "-".
	Stdout io.Writer

	// Terminal says that Stdout is one, to which no archive is written.
	Terminal bool

	// Progress may be nil; see [registry.Progress].
	Progress registry.Progress

	mu    sync.Mutex
	heads map[string]*images.Head // of archives, by path
}

// An Image is the result of a build for one platform.
type Image struct {
	// Output is the stack of layers.
	Output solver.Output

	// Config lacks RootFS, Created, and the times of new history entries;
	// all that is filled in.
	Config dockerspec.DockerOCIImage

	// Platform of the image; empty is what Config says.
	Platform v1.Platform
}

// A Result says what was exported.
type Result struct {
	// Descriptor of the manifest, or of the index over several platforms;
	// zero for bare files.
	Descriptor v1.Descriptor

	// ID is the digest of the config, "" for several platforms.
	ID digest.Digest

	// Names that the image was given, in full form.
	Names []string

	// Pushed are the references that were pushed, with their digests.
	Pushed []registry.Reference
}

// Export writes images, one for each platform, to an output.
//
// A base image's blob that turns out to be damaged is fetched again, and one
// of ours is made again.
func (e *Exporter) Export(ctx context.Context, o Output, platforms []Image) (Result, error) {
	r, err := e.export(ctx, o, platforms)
	var corrupt *layout.CorruptError
	if errors.As(err, &corrupt) && e.Store.Images().Remove(corrupt.Digest) == nil {
		r, err = e.export(ctx, o, platforms)
	}
	if err != nil {
		return r, fmt.Errorf("export to %s: %w", o.Type, err)
	}
	return r, nil
}

func (e *Exporter) export(ctx context.Context, o Output, platforms []Image) (Result, error) {
	if len(platforms) == 0 {
		return Result{}, errors.New("there is nothing to export")
	}
	switch {
	case o.Type == TypeCacheOnly:
		return Result{}, nil
	case o.Type == TypeTar:
		return Result{}, e.exportTar(ctx, o, platforms)
	case o.Type == TypeLocal:
		return Result{}, e.exportLocal(ctx, o, platforms)
	case (o.Type == TypeOCI || o.Type == TypeDocker) && o.Dest == "-" && e.Terminal:
		return Result{}, errors.New("an archive is not written to a terminal: give dest=FILE, or redirect standard output")
	case (o.Push || o.Type == TypeRegistry) && e.Client == nil:
		return Result{}, errors.New("there is no registry client")
	case (o.Push || o.Type == TypeRegistry) && len(o.Names) == 0:
		return Result{}, errors.New("pushing needs a name: give --tag or name=NAME")
	}
	lease, err := e.Store.Images().Lease(ctx)
	if err != nil {
		return Result{}, err
	}
	defer lease.Release()
	head := e.head(o)
	defer e.drop(o)
	var beside blob.Beside
	if head != nil {
		beside = head
	}
	r, err := e.assembleAll(ctx, e.form(o), platforms, beside)
	if err != nil {
		return r, err
	}
	switch {
	case o.InStore():
		err = e.exportImage(ctx, o, &r)
	case o.Type == TypeRegistry:
		err = e.push(ctx, o, &r)
	default:
		err = e.exportArchive(ctx, o, head, &r, len(platforms))
	}
	return r, err
}

// head is the beginning of an output's archive, nil where none can be written
// ahead.
func (e *Exporter) head(o Output) *images.Head {
	if (o.Type != TypeOCI && o.Type != TypeDocker) || o.Folder || o.Dest == "-" {
		return nil
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	h, ok := e.heads[o.Dest]
	if !ok {
		h = images.NewHead(o.Dest)
		if e.heads == nil {
			e.heads = map[string]*images.Head{}
		}
		e.heads[o.Dest] = h
	}
	return h
}

// drop removes the beginning of an archive that has become one, or does not.
func (e *Exporter) drop(o Output) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.heads[o.Dest].Discard()
	delete(e.heads, o.Dest)
}

// Close removes what was written of archives that did not come about.
func (e *Exporter) Close() {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, h := range e.heads {
		h.Discard()
	}
	clear(e.heads)
}

// form is how an output's images are written.
func (e *Exporter) form(o Output) Form {
	f := Form{ForceCompression: o.ForceCompression, DockerTypes: o.DockerTypes, Annotations: o.Annotations}
	switch {
	case o.Form != nil:
		f.Layers = *o.Form
	case o.InStore() && !o.Push:
		// Making and reading them costs no compression, here where space
		// is cheap; a push compresses once.
		f.Layers.Compression = archive.Uncompressed
	default:
		f.Layers.Compression = archive.Gzip
	}
	return f
}

// Compresses reports whether an output's own layers are compressed.
func (e *Exporter) Compresses(o Output) bool {
	return !o.Files() && e.form(o).Layers.Compression != archive.Uncompressed
}

// exportImage puts the image into the local store.
func (e *Exporter) exportImage(ctx context.Context, o Output, r *Result) error {
	store := images.Store{Cache: e.Store}
	if len(o.Names) == 0 {
		if err := store.Keep(ctx, r.Descriptor); err != nil {
			return err
		}
	}
	for _, name := range o.Names {
		if err := store.Name(ctx, name, r.Descriptor); err != nil {
			return err
		}
	}
	r.Names = o.Names
	if o.Push {
		return e.push(ctx, o, r)
	}
	return nil
}

// push sends the image to the registry of each name.
func (e *Exporter) push(ctx context.Context, o Output, r *Result) error {
	for _, name := range o.Names {
		ref, err := registry.ParseReference(name)
		if err != nil {
			return err
		}
		to := ref
		if o.ByDigest {
			to.Tag = ""
		}
		desc, err := e.Client.Push(ctx, e.Store.Images(), r.Descriptor, to, registry.PushOptions{Progress: e.Progress})
		if err != nil {
			return err
		}
		to.Digest = desc.Digest
		r.Pushed = append(r.Pushed, to)
	}
	r.Names = o.Names
	return nil
}

// exportArchive writes the image as an OCI image layout, in a tar or as a
// folder, or as what docker load reads.
func (e *Exporter) exportArchive(ctx context.Context, o Output, head *images.Head, r *Result, platforms int) error {
	if o.Type == TypeDocker && platforms > 1 {
		return errors.New("type docker takes one platform only: build for one, or use type=oci")
	}
	x := images.Export{Image: r.Descriptor, Names: o.Names}
	r.Names = o.Names
	layoutOf := e.Store.Images()
	if o.Folder {
		return images.WriteFolder(ctx, layoutOf, o.Dest, x)
	}
	options := images.ArchiveOptions{Docker: o.Type == TypeDocker}
	if o.Dest == "-" {
		return images.WriteArchive(ctx, layoutOf, e.Stdout, options, x)
	}
	content, err := images.ArchiveContent(ctx, layoutOf, options, x)
	if err != nil {
		return err
	}
	if e.unchanged(ctx, o.Dest, content) {
		return nil
	}
	if err = images.WriteArchiveFile(ctx, layoutOf, o.Dest, head, options, x); err == nil {
		e.wrote(ctx, o.Dest, content)
	}
	return err
}

// blobs is the maker of layer blobs.
func (e *Exporter) blobs() *blob.Maker { return &blob.Maker{Store: e.Store, Fetch: e.Fetch} }
