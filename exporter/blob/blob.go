// Package blob makes the blobs of layers: the tar streams, compressed or not,
// that manifests list.
//
// A [Maker] packs layers that were built here ([Maker.Pack]), finds those
// that came with an image ([Maker.Origin]) and changes the compression of
// blobs ([Maker.Recompress]). Each blob is made once and remembered in the
// action cache, under a description of what it was made from; a blob that is
// no longer in the image layout is made again. It knows nothing of manifests.
package blob

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"time"

	"kiln.build/cache"
	"kiln.build/cache/archive"
	"kiln.build/cache/layout"
	"kiln.build/cache/tree"
	"kiln.build/solver"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// A Blob is a layer as manifests and configs speak of it.
type Blob struct {
	Descriptor v1.Descriptor `json:"descriptor"`
	DiffID     digest.Digest `json:"diffID"` // of the uncompressed tar stream
}

// A Form is how a blob is written.
type Form struct {
	Compression archive.Compression // empty is archive.Uncompressed
	Level       *int                // nil is the compression's default
}

func (f Form) compression() archive.Compression {
	if f.Compression == "" {
		return archive.Uncompressed
	}
	return f.Compression
}

// level is the level that matters: uncompressed blobs have none.
func (f Form) level() *int {
	if f.compression() == archive.Uncompressed {
		return nil
	}
	return f.Level
}

// A Maker makes blobs and writes them to the store's image layout. It may be
// used by several goroutines. Hold a lease of the layout from the first call
// until an image that has the blobs is tagged.
type Maker struct {
	Store *cache.Store

	// Fetch brings the blob of a base image into the layout; nil where there
	// is no way.
	Fetch func(context.Context, solver.Origin) error

	// Beside gets what is made, where something is: for one layer at a time.
	// Nil is nobody.
	Beside Beside
}

// Beside is where a blob is written to beside the layout, while it is made.
// All of the bytes come, or none: where there is a blob already, or making one
// failed, Finish is not called.
type Beside interface {
	Restart() // what follows is the beginning
	io.Writer
	Finish(v1.Descriptor)
}

// MissingError says that the blob of a base image's layer is gone and could
// not be had again.
type MissingError struct {
	Blob digest.Digest
	Err  error // of fetching it; nil where there is no way to fetch
}

func (e *MissingError) Error() string {
	if e.Err == nil {
		return fmt.Sprintf("layer blob %s of the base image is not in the store: pull or load that image again", e.Blob)
	}
	return fmt.Sprintf("layer blob %s of the base image is not in the store, and fetching it did not work: %v", e.Blob, e.Err)
}

func (e *MissingError) Unwrap() error { return e.Err }

// Origin returns the blob that a layer was unpacked from, fetching it where
// it is not here.
func (m *Maker) Origin(ctx context.Context, l solver.Layer) (Blob, error) {
	o := *l.Origin
	b := Blob{
		Descriptor: v1.Descriptor{MediaType: o.MediaType, Digest: o.Blob, Size: o.Size},
		DiffID:     o.DiffID,
	}
	if m.has(b.Descriptor) {
		return b, nil
	}
	if m.Fetch == nil {
		return b, &MissingError{Blob: o.Blob}
	}
	if err := m.Fetch(ctx, o); err != nil {
		return b, &MissingError{Blob: o.Blob, Err: err}
	}
	return b, nil
}

// has reports whether a blob is in the layout with the size that it must
// have. A blob that was cut short is deleted, so that it can be made again.
func (m *Maker) has(d v1.Descriptor) bool {
	size, err := m.Store.Images().Size(d.Digest)
	if err == nil && d.Size > 0 && size != d.Size {
		m.Store.Images().Remove(d.Digest)
		return false
	}
	return err == nil
}

// Pack returns the blob of layers[i], which has no Origin. Below it are the
// layers before it. No time in it is later than epoch, if that is set.
func (m *Maker) Pack(ctx context.Context, layers []solver.Layer, i int, f Form, epoch *time.Time) (Blob, error) {
	l := layers[i]
	p := pack{layer: l.Digest, form: f, epoch: epoch}
	// Most layers delete nothing, and their blobs do not depend on what lies
	// below. Which do is known only from the tree, which need not be read
	// where the blob is there: ask for both.
	if b, ok := m.lookup(ctx, p); ok {
		return b, nil
	}
	q := p
	q.lower = solver.StackDigest(layers[:i])
	if b, ok := m.lookup(ctx, q); ok {
		return b, nil
	}
	t, err := m.Store.Tree(l.Digest)
	if err != nil {
		return Blob{}, err
	}
	o := archive.PackOptions{Epoch: epoch, Layer: l.Digest}
	if dependsOnLower(t) {
		p = q
		if o.Lower, err = m.Store.Index(layers[:i]); err != nil {
			return Blob{}, err
		}
	}
	return m.once(ctx, p, func() (Blob, error) { return m.pack(ctx, p, l, t, o) })
}

// Feed returns the blob of a layer, the listing t, while it is being made:
// the contents of its files come with from. At the end kept is asked whether
// the layer became what was fed; without that nothing is remembered. It is not
// asked where there is such a blob already. The layer's blob must not depend on
// those below: see [Alone].
func (m *Maker) Feed(ctx context.Context, l solver.Layer, t *tree.Tree, from archive.PackOptions, f Form, epoch *time.Time, kept func(Blob) error) (Blob, error) {
	defer from.Feed.Stop()
	from.Epoch, from.Layer = epoch, l.Digest
	p := pack{layer: l.Digest, form: f, epoch: epoch}
	return m.once(ctx, p, func() (Blob, error) {
		b, err := m.packBlob(ctx, p, t, from)
		if err == nil {
			err = kept(b)
		}
		if err == nil {
			m.rememberLayer(ctx, l, t, nil, b.DiffID)
		}
		return b, err
	})
}

// Alone reports whether the blob of a layer is the same on any stack.
func Alone(t *tree.Tree) bool { return !dependsOnLower(t) }

// Same reports whether unpacking the blob of such a layer gives the layer
// itself, wherever it lies.
func Same(t *tree.Tree) bool { return same(t, nil) }

// pack makes the blob of a layer.
func (m *Maker) pack(ctx context.Context, p pack, l solver.Layer, t *tree.Tree, o archive.PackOptions) (Blob, error) {
	// Compressing what was packed before is cheaper than packing again.
	plain := p
	plain.form = Form{}
	if b, ok := m.lookup(ctx, plain); ok && p.form.compression() != archive.Uncompressed {
		return m.compress(ctx, b, p.form)
	}
	b, err := m.packBlob(ctx, p, t, o)
	var corrupt *archive.CorruptError
	if errors.As(err, &corrupt) {
		// The step that made it runs again in the next build.
		return Blob{}, errors.Join(err, m.Store.Invalidate(l.Digest))
	}
	if err == nil {
		m.rememberLayer(ctx, l, t, o.Lower, b.DiffID)
	}
	return b, err
}

// packBlob writes the blob of a layer.
func (m *Maker) packBlob(ctx context.Context, p pack, t *tree.Tree, o archive.PackOptions) (Blob, error) {
	pb := archive.BlobOptions{PackOptions: o, Compression: p.form.compression(), Level: p.form.level()}
	var known *blocks
	if p.form.compression() != archive.Uncompressed && t.Size() > worthBlocks {
		known = m.blocks(ctx)
		defer known.Close()
		pb.Blocks = known
	}
	if m.Beside != nil {
		m.Beside.Restart()
		pb.Beside = m.Beside
	}
	dir := ""
	if o.Feed == nil {
		var err error
		if dir, err = m.Store.LayerDir(ctx, p.layer); err != nil {
			return Blob{}, err
		}
	}
	desc, diffID, err := archive.PackBlob(ctx, m.Store.Images(), dir, t, pb)
	if err == nil && m.Beside != nil {
		m.Beside.Finish(desc)
	}
	if err == nil && known != nil {
		known.save(ctx, desc.Digest)
	}
	return Blob{Descriptor: desc, DiffID: diffID}, err
}

// rememberLayer sees to it that the archive of a layer is never unpacked
// where it was made. Not to remember it costs time later, and nothing now.
func (m *Maker) rememberLayer(ctx context.Context, l solver.Layer, t *tree.Tree, lower *tree.Index, diffID digest.Digest) {
	if same(t, lower) {
		l.Origin = nil
		_ = m.Store.Save(ctx, cache.UnpackAction(diffID), solver.Result{Digest: l.Digest, Layers: []solver.Layer{l}})
	}
}

// worthBlocks is the size of a layer from which blocks are remembered.
const worthBlocks = 4 << 20

// same reports whether unpacking a layer's blob would give the layer itself.
// It would not where the layer hides what is below some directory, which the
// blob says by naming what there was, where it deletes what is not there, or
// has extended attributes that blobs do not keep.
func same(t *tree.Tree, lower *tree.Index) bool {
	for i := range t.Entries {
		e := &t.Entries[i]
		if e.Opaque {
			return false
		}
		if e.Type == tree.Whiteout {
			if _, _, ok := lower.Lookup(e.Path); !ok {
				return false
			}
		}
		for name := range e.Xattrs {
			if name != "security.capability" {
				return false
			}
		}
	}
	return true
}

// dependsOnLower reports whether the tar stream of a layer is shaped by what
// lies below it: whiteouts are written for what is there only, and the top
// directory where it differs.
func dependsOnLower(t *tree.Tree) bool {
	for i := range t.Entries {
		e := &t.Entries[i]
		switch {
		case e.Type == tree.Whiteout, e.Opaque:
			return true
		case e.Path == "" && (e.Mode != 0o755 || e.UID != 0 || e.GID != 0):
			return true
		}
	}
	return false
}

// Recompress returns a blob with the same content in another form: itself if
// it has that form already, whatever level it was made with.
func (m *Maker) Recompress(ctx context.Context, b Blob, f Form) (Blob, error) {
	if CompressionOf(b.Descriptor.MediaType) == f.compression() {
		return b, nil
	}
	return m.once(ctx, recompress{diffID: b.DiffID, form: f}, func() (Blob, error) { return m.compress(ctx, b, f) })
}

// compress writes a blob in another form. The content is checked against the
// diff ID on the way.
func (m *Maker) compress(ctx context.Context, b Blob, f Form) (Blob, error) {
	images := m.Store.Images()
	r, size, err := images.Blob(b.Descriptor.Digest)
	if err != nil {
		return Blob{}, err
	}
	defer r.Close()
	var known *blocks
	var remember archive.Blocks
	if f.compression() != archive.Uncompressed && size > worthBlocks {
		known = m.blocks(ctx)
		defer known.Close()
		remember = known
	}
	if m.Beside != nil {
		m.Beside.Restart()
	}
	desc, err := images.Make(ctx, f.compression().MediaType(), m.Beside != nil, func(blob io.Writer) error {
		if m.Beside != nil {
			blob = io.MultiWriter(blob, m.Beside)
		}
		// Reading a blob checks its digest, which is the diff ID of one
		// that is not compressed.
		checked := b.Descriptor.Digest == b.DiffID && CompressionOf(b.Descriptor.MediaType) == archive.Uncompressed
		plain := r
		if !checked {
			var err error
			if plain, err = archive.Decompress(ctx, r); err != nil {
				return err
			}
			defer plain.Close()
		}
		level := archive.DefaultLevel
		if l := f.level(); l != nil {
			level = *l
		}
		z, err := archive.CompressWith(blob, f.compression(), level, remember)
		if err != nil {
			return err
		}
		h := digest.Canonical.Digester()
		to := io.Writer(z)
		if !checked {
			to = io.MultiWriter(h.Hash(), z)
		}
		_, err = io.CopyBuffer(struct{ io.Writer }{to}, struct{ io.Reader }{plain}, make([]byte, 256<<10))
		if err == nil {
			// What follows the compressed stream is part of the blob.
			_, err = io.Copy(io.Discard, r)
		}
		if err == nil && !checked && h.Digest() != b.DiffID {
			err = &layout.CorruptError{Digest: b.Descriptor.Digest, Reason: fmt.Sprintf("its content has the digest %s, not %s", h.Digest(), b.DiffID)}
		}
		return errors.Join(err, z.Close())
	})
	if err != nil {
		return Blob{}, fmt.Errorf("compress layer blob %s: %w", b.Descriptor.Digest, err)
	}
	if m.Beside != nil {
		m.Beside.Finish(desc)
	}
	if known != nil {
		known.save(ctx, desc.Digest)
	}
	return Blob{Descriptor: desc, DiffID: b.DiffID}, nil
}

// CompressionOf is the compression that a media type stands for, "" for one
// that is not known.
func CompressionOf(mediaType string) archive.Compression {
	switch mediaType {
	case v1.MediaTypeImageLayer, layout.DockerLayerTar:
		return archive.Uncompressed
	case v1.MediaTypeImageLayerGzip, layout.DockerLayer, layout.DockerForeign:
		return archive.Gzip
	case v1.MediaTypeImageLayerZstd:
		return archive.Zstd
	}
	return ""
}

// lookup returns a blob that was made before and is still there.
func (m *Maker) lookup(ctx context.Context, op solver.Op) (Blob, bool) {
	r, err := m.Store.Lookup(ctx, action(op).Key)
	if err != nil {
		return Blob{}, false
	}
	var b Blob
	if err := json.Unmarshal(r.Data, &b); err != nil || !m.has(b.Descriptor) {
		return Blob{}, false
	}
	m.Store.BlobUsed(b.Descriptor.Digest)
	return b, true
}

// once makes a blob unless someone has, here or in another process.
func (m *Maker) once(ctx context.Context, op solver.Op, produce func() (Blob, error)) (Blob, error) {
	if b, ok := m.lookup(ctx, op); ok {
		return b, nil
	}
	a := action(op)
	release, err := m.Store.Lock(ctx, a.Key)
	if err != nil {
		return Blob{}, err
	}
	defer release()
	if b, ok := m.lookup(ctx, op); ok {
		return b, nil
	}
	b, err := produce()
	if err != nil {
		return Blob{}, err
	}
	data, err := json.Marshal(b)
	if err != nil {
		return Blob{}, err
	}
	// Not to remember it costs time later, and nothing now.
	_ = m.Store.Save(ctx, a, solver.Result{Digest: b.Descriptor.Digest, Data: data})
	return b, nil
}

// descriptionVersion heads the descriptions of blobs. Raising it makes all
// blobs be made again: do so when the form of tar streams or compressed
// blobs changes.
const descriptionVersion = "kiln blob 2\n"

func action(op solver.Op) *solver.Action {
	text := descriptionVersion + solver.Describe(op)
	return &solver.Action{Key: digest.FromString(text), Description: text, Op: op}
}

// pack is the making of a layer's blob, as an action.
type pack struct {
	layer digest.Digest
	lower digest.Digest // of the stack below, where that matters
	form  Form
	epoch *time.Time
}

func (p pack) Describe(d *solver.Description) {
	d.Line("op", "pack")
	d.Line("layer", string(p.layer))
	if p.lower != "" {
		d.Line("lower", string(p.lower))
	}
	p.form.describe(d)
	if p.epoch != nil {
		d.Line("epoch", strconv.FormatInt(p.epoch.Unix(), 10))
	}
}

// recompress is the changing of a blob's compression, as an action.
type recompress struct {
	diffID digest.Digest
	form   Form
}

func (r recompress) Describe(d *solver.Description) {
	d.Line("op", "recompress")
	d.Line("diff id", string(r.diffID))
	r.form.describe(d)
}

func (f Form) describe(d *solver.Description) {
	d.Line("compression", string(f.compression()))
	if l := f.level(); l != nil {
		d.Line("level", strconv.Itoa(*l))
	}
}

var (
	_ solver.Op = pack{}
	_ solver.Op = recompress{}
)
