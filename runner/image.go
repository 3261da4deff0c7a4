package runner

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
	"kiln.build/cache"
	"kiln.build/cache/archive"
	"kiln.build/cache/layout"
	"kiln.build/cache/registry"
	"kiln.build/solver"
	"kiln.build/solver/op"
)

// layersAtOnce bounds how many layers of an image are fetched and unpacked at
// a time: inflating keeps a processor busy, and registries dislike more.
const layersAtOnce = 4

// image unpacks the layers of an image that are not in the store yet.
func (r *Runner) image(ctx context.Context, a *solver.Action, o op.Image) (solver.Result, error) {
	layers := make([]solver.Layer, len(o.Layers))
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(layersAtOnce)
	for i, origin := range o.Layers {
		g.Go(func() error {
			l, err := r.unpacked(ctx, a, o.Ref, origin)
			if err != nil {
				return fmt.Errorf("layer %s of %s: %w", origin.Blob, o.Ref, err)
			}
			l.Origin = &origin
			layers[i] = l
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return solver.Result{}, err
	}
	return stack(layers), nil
}

// unpacked is the layer of a blob. Layers are found by the digest of the
// uncompressed archive, so images share them whatever they are called.
func (r *Runner) unpacked(ctx context.Context, a *solver.Action, ref string, o solver.Origin) (solver.Layer, error) {
	act := cache.UnpackAction(o.DiffID)
	if l, ok := r.knownLayer(ctx, act); ok {
		return l, nil
	}
	release, err := r.Store.Lock(ctx, act.Key)
	if err != nil {
		return solver.Layer{}, err
	}
	defer release()
	if l, ok := r.knownLayer(ctx, act); ok {
		return l, nil
	}
	l, err := r.unpackBlob(ctx, a, ref, o)
	var corrupt *layout.CorruptError
	if errors.As(err, &corrupt) && corrupt.Digest == o.Blob && r.Store.Images().Has(o.Blob) {
		// The store's copy is damaged: another one may be had.
		a.Warn(fmt.Sprintf("%v: fetching it again", corrupt))
		if err := r.Store.Images().Remove(o.Blob); err != nil {
			return solver.Layer{}, err
		}
		if l, err = r.unpackBlob(ctx, a, ref, o); err != nil {
			err = fmt.Errorf("%w; it cannot be had again: %w", corrupt, err)
		}
	}
	if err != nil {
		return solver.Layer{}, err
	}
	return l, r.Store.Save(ctx, act, solver.Result{Digest: l.Digest, Layers: []solver.Layer{l}})
}

func (r *Runner) knownLayer(ctx context.Context, act *solver.Action) (solver.Layer, bool) {
	res, err := r.Store.Lookup(ctx, act.Key)
	if err != nil || len(res.Layers) != 1 {
		return solver.Layer{}, false
	}
	return res.Layers[0], true
}

// unpackBlob makes a layer of a blob: of the store's own copy, or while it is
// being fetched and kept.
func (r *Runner) unpackBlob(ctx context.Context, a *solver.Action, ref string, o solver.Origin) (solver.Layer, error) {
	images := r.Store.Images()
	lease, err := images.Lease(ctx)
	if err != nil {
		return solver.Layer{}, err
	}
	defer lease.Release()
	if images.Has(o.Blob) {
		blob, _, err := images.Blob(o.Blob)
		if err != nil {
			return solver.Layer{}, err
		}
		defer blob.Close()
		l, err := r.unpack(ctx, blob, o.DiffID)
		return l, whyBad(ctx, err, blob)
	}
	desc := ocispecs.Descriptor{MediaType: o.MediaType, Digest: o.Blob, Size: o.Size}
	body, err := r.fetch(ctx, ref, desc)
	if err != nil {
		return solver.Layer{}, err
	}
	defer body.Close()
	counted := &counter{r: body, total: o.Size, name: string(o.Blob), a: a}
	toBlob, toUnpack := io.Pipe()
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		_, err := images.Write(ctx, desc, toBlob)
		// Drained, so that the other side is not held up by a blob that
		// another process has written meanwhile.
		if err == nil {
			_, err = io.Copy(io.Discard, toBlob)
		}
		toBlob.CloseWithError(err)
		return err
	})
	var l solver.Layer
	g.Go(func() error {
		var err error
		l, err = r.unpack(ctx, io.TeeReader(counted, toUnpack), o.DiffID)
		err = whyBad(ctx, err, counted)
		toUnpack.CloseWithError(err)
		return err
	})
	return l, g.Wait()
}

// whyBad finds out whether a blob could not be unpacked because it is
// corrupt: its digest is known only at its end.
func whyBad(ctx context.Context, err error, rest io.Reader) error {
	if err == nil || ctx.Err() != nil || errors.Is(err, unix.ENOSPC) {
		return err
	}
	var corrupt *layout.CorruptError
	if _, readErr := io.Copy(io.Discard, rest); errors.As(readErr, &corrupt) {
		return corrupt
	}
	return err
}

// unpack makes a layer of an archive and checks that it is the right one.
func (r *Runner) unpack(ctx context.Context, from io.Reader, want digest.Digest) (solver.Layer, error) {
	draft, err := r.Store.NewLayer()
	if err != nil {
		return solver.Layer{}, err
	}
	defer draft.Discard()
	var got digest.Digest
	t, err := archive.Unpack(ctx, from, draft.FS, archive.UnpackOptions{Layer: true, DiffID: &got})
	if err != nil {
		return solver.Layer{}, fmt.Errorf("unpack: %w", err)
	}
	if want != "" && got != want {
		return solver.Layer{}, fmt.Errorf("unpack: the archive is %s, and the image's config says %s", got, want)
	}
	return draft.Commit(ctx, t)
}

// fetch reads a blob from where an image came from.
func (r *Runner) fetch(ctx context.Context, ref string, desc ocispecs.Descriptor) (io.ReadCloser, error) {
	if path, ok := strings.CutPrefix(ref, layoutScheme); ok {
		l, _, err := openLayout(path)
		if err != nil {
			return nil, err
		}
		body, _, err := l.Blob(desc.Digest)
		return body, err
	}
	if r.Registry == nil {
		return nil, errors.New("it is not in the store, and there is no registry to fetch it from")
	}
	parsed, err := registry.ParseReference(ref)
	if err != nil {
		return nil, err
	}
	return r.Registry.Fetch(ctx, parsed, desc)
}

// counter reports the progress of a transfer.
type counter struct {
	r           io.Reader
	name        string
	done, total int64
	a           *solver.Action
	told        int64
}

// progressStep is how many bytes are read between two reports.
const progressStep = 1 << 20

func (c *counter) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.done += int64(n)
	if c.done-c.told >= progressStep || err == io.EOF && c.told != c.done {
		c.told = c.done
		c.a.Progress(c.name, c.done, c.total)
	}
	return n, err
}

// tar makes a layer of an archive on this machine.
func (r *Runner) tar(ctx context.Context, o op.Tar) (solver.Result, error) {
	f, err := os.Open(o.Path)
	if err != nil {
		return solver.Result{}, err
	}
	defer f.Close()
	l, err := r.unpack(ctx, f, "")
	if err != nil {
		name := o.Path
		if o.Digest != "" { // a copy of kiln's own
			name = "the archive of the build context"
		}
		return solver.Result{}, fmt.Errorf("%s: %w", name, err)
	}
	// It is unpacked in every build: the archive's own time keeps the image
	// the same while the archive is.
	if fi, err := f.Stat(); err == nil {
		l.Created = fi.ModTime().UTC()
	}
	return stack([]solver.Layer{l}), nil
}

// Unpack returns the layers of an image, making those that are not in the
// store yet from their blobs.
func (r *Runner) Unpack(ctx context.Context, ref string, layers []solver.Origin) ([]solver.Layer, error) {
	res, err := r.Run(ctx, &solver.Action{Op: op.Image{Ref: ref, Layers: layers}})
	return res.Layers, err
}
