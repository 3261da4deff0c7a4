package registry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"kiln.build/cache/layout"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"
)

// Progress is told how far the transfer of a blob has come: current of total
// bytes of the blob whose digest is name. It is called from several
// goroutines, some times a second for each blob and once at its end.
type Progress func(name string, current, total int64)

// transfers is how many blobs move at a time, as in docker and containerd.
const transfers = 4

// PullOptions say what to pull.
type PullOptions struct {
	// Platforms to pull of an image that has several; none means that of
	// this machine. All pulls every platform, attestations too.
	Platforms []v1.Platform
	All       bool

	// As is the name to tag the image with; empty is that of the reference.
	As string

	Progress Progress // may be nil
}

// Pull copies an image into a layout and tags it there. Blobs that the layout
// has are not fetched again. The tag stands for what the reference points at:
// for an image with several platforms that is the index, though only the
// chosen platforms' blobs are there.
func (c *Client) Pull(ctx context.Context, ref Reference, l *layout.Layout, o PullOptions) (v1.Descriptor, error) {
	desc, err := c.pull(ctx, ref, l, o)
	if err != nil {
		return desc, fmt.Errorf("pull %s: %w", ref.Familiar(), err)
	}
	return desc, nil
}

func (c *Client) pull(ctx context.Context, ref Reference, l *layout.Layout, o PullOptions) (v1.Descriptor, error) {
	lease, err := l.Lease(ctx)
	if err != nil {
		return v1.Descriptor{}, err
	}
	defer lease.Release()
	p := &puller{c: c, ref: ref, l: l, progress: o.Progress}
	target, raw, err := c.manifest(ctx, ref)
	if err != nil {
		return target, err
	}
	manifests, err := p.choose(ctx, target, raw, o)
	if err != nil {
		return target, err
	}
	if err := p.blobs(ctx, manifests); err != nil {
		return target, err
	}
	as := o.As
	if as == "" {
		as = ref.String()
	}
	return target, l.Tag(ctx, as, target)
}

type puller struct {
	c        *Client
	ref      Reference
	l        *layout.Layout
	progress Progress
}

// choose stores the index, if there is one, and the manifests of the chosen
// platforms, which it returns.
func (p *puller) choose(ctx context.Context, target v1.Descriptor, raw []byte, o PullOptions) ([]v1.Manifest, error) {
	if o.All {
		return p.all(ctx, target, raw)
	}
	platforms := make([]*v1.Platform, 0, 1)
	for i := range o.Platforms {
		platforms = append(platforms, &o.Platforms[i])
	}
	if len(platforms) == 0 {
		platforms = append(platforms, nil)
	}
	// Each document that is read on the way to the image is stored.
	fetch := func(ctx context.Context, d v1.Descriptor) ([]byte, error) {
		b := raw
		if d.Digest != target.Digest {
			var err error
			if b, err = p.l.ReadBlob(d.Digest); err == nil {
				return b, nil
			}
			if b, err = p.c.document(ctx, p.ref, d); err != nil {
				return nil, err
			}
		}
		return b, p.store(ctx, d, b)
	}
	var manifests []v1.Manifest
	for _, platform := range platforms {
		image, err := layout.ReadImage(ctx, target, platform, fetch)
		if err != nil {
			return nil, err
		}
		var m v1.Manifest
		if err := json.Unmarshal(image.Manifest, &m); err != nil {
			return nil, err
		}
		manifests = append(manifests, m)
	}
	return manifests, nil
}

// all stores an image's documents for every platform.
func (p *puller) all(ctx context.Context, desc v1.Descriptor, raw []byte) ([]v1.Manifest, error) {
	if err := p.store(ctx, desc, raw); err != nil {
		return nil, err
	}
	if !layout.IsIndex(desc.MediaType) {
		var m v1.Manifest
		if err := json.Unmarshal(raw, &m); err != nil {
			return nil, fmt.Errorf("manifest %s: %w", desc.Digest, err)
		}
		return []v1.Manifest{m}, nil
	}
	var x v1.Index
	if err := json.Unmarshal(raw, &x); err != nil {
		return nil, fmt.Errorf("index %s: %w", desc.Digest, err)
	}
	var manifests []v1.Manifest
	for _, d := range x.Manifests {
		b, err := p.c.document(ctx, p.ref, d)
		if err != nil {
			return nil, err
		}
		m, err := p.all(ctx, d, b)
		if err != nil {
			return nil, err
		}
		manifests = append(manifests, m...)
	}
	return manifests, nil
}

// store keeps a document, in place of one that got corrupt.
func (p *puller) store(ctx context.Context, d v1.Descriptor, b []byte) error {
	var corrupt *layout.CorruptError
	if _, err := p.l.ReadBlob(d.Digest); errors.As(err, &corrupt) {
		if err := p.l.Remove(d.Digest); err != nil {
			return err
		}
	}
	_, err := p.l.WriteBytes(ctx, d.MediaType, b)
	return err
}

// blobs fetches the layers and configs of manifests.
func (p *puller) blobs(ctx context.Context, manifests []v1.Manifest) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(transfers)
	seen := map[string]bool{}
	for _, m := range manifests {
		for _, d := range append([]v1.Descriptor{m.Config}, m.Layers...) {
			if seen[string(d.Digest)] {
				continue
			}
			seen[string(d.Digest)] = true
			g.Go(func() error { return p.blob(ctx, d) })
		}
	}
	return g.Wait()
}

// blob fetches one blob. Bytes that turn out wrong are asked for once more:
// a cache on the way, or a mirror, may have had a bad moment.
func (p *puller) blob(ctx context.Context, d v1.Descriptor) error {
	for try := 1; ; try++ {
		err := p.c.FetchTo(ctx, p.ref, d, p.l, p.progress)
		var corrupt *layout.CorruptError
		if try == 2 || !errors.As(err, &corrupt) {
			return err
		}
	}
}

// FetchTo copies a blob into a layout, unless it is there.
func (c *Client) FetchTo(ctx context.Context, ref Reference, d v1.Descriptor, l *layout.Layout, progress Progress) error {
	meter := newMeter(progress, d)
	if size, err := l.Size(d.Digest); err == nil && (size == d.Size || d.Size == 0) {
		meter.end()
		return nil
	}
	r, err := c.fetch(ctx, ref, d)
	if err != nil {
		return err
	}
	defer r.Close()
	if _, err := l.Write(ctx, d, io.TeeReader(r, meter)); err != nil {
		return err
	}
	meter.end()
	return nil
}

// A meter counts bytes for a Progress.
type meter struct {
	report  Progress
	desc    v1.Descriptor
	current int64
	last    time.Time
}

func newMeter(p Progress, d v1.Descriptor) *meter { return &meter{report: p, desc: d} }

func (m *meter) Write(b []byte) (int, error) {
	m.current += int64(len(b))
	if now := time.Now(); m.report != nil && now.Sub(m.last) >= 100*time.Millisecond {
		m.last = now
		m.report(m.desc.Digest.String(), m.current, m.desc.Size)
	}
	return len(b), nil
}

func (m *meter) end() {
	if m.report != nil {
		m.report(m.desc.Digest.String(), m.desc.Size, m.desc.Size)
	}
}
