package registry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"

	"kiln.build/cache/layout"

	"github.com/google/go-containerregistry/pkg/name"
	ggcr "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"
)

// PushOptions say how to push.
type PushOptions struct {
	// Origin tells where a blob came from, so that a registry can take it
	// over from a repository of its own. May be nil.
	Origin func(digest.Digest) (Reference, bool)

	Progress Progress // may be nil
}

// Push copies an image from a layout to where ref says, and returns the
// descriptor that ref then has. Blobs that are there already are not sent,
// manifests follow when all that they need is there, and the tag comes last.
//
// Of an index only some of whose platforms are in the layout, as Pull leaves
// them, the one image that is there is pushed; with several it is an error.
func (c *Client) Push(ctx context.Context, l *layout.Layout, desc v1.Descriptor, ref Reference, o PushOptions) (v1.Descriptor, error) {
	desc, err := c.push(ctx, l, desc, ref, o)
	if err != nil {
		return desc, fmt.Errorf("push %s: %w", ref.Familiar(), err)
	}
	return desc, nil
}

func (c *Client) push(ctx context.Context, l *layout.Layout, desc v1.Descriptor, ref Reference, o PushOptions) (v1.Descriptor, error) {
	if ref.Digest != "" {
		return desc, errors.New("a digest cannot be pushed to; give a tag")
	}
	lease, err := l.Lease(ctx) // the blobs must stay until they are sent
	if err != nil {
		return desc, err
	}
	defer lease.Release()
	desc, err = present(l, desc)
	if err != nil {
		return desc, err
	}
	e := c.hostEndpoint(ref.Host)
	repo, err := e.repository(ref)
	if err != nil {
		return desc, err
	}
	p := &pusher{c: c, l: l, e: e, ref: ref, repo: repo, o: o}
	if p.to, err = c.pusher(e); err != nil {
		return desc, err
	}
	if err := p.blobs(ctx, desc); err != nil {
		return desc, err
	}
	var to name.Reference = repo.Tag(ref.Tag)
	if ref.Tag == "" { // known by its digest alone
		to = repo.Digest(desc.Digest.String())
	}
	return desc, p.manifests(ctx, desc, to)
}

// present returns what can be pushed of an image: all of it, or of an index
// the only image whose blobs are there.
func present(l *layout.Layout, desc v1.Descriptor) (v1.Descriptor, error) {
	b, err := l.ReadBlob(desc.Digest)
	if err != nil || !layout.IsIndex(desc.MediaType) {
		return desc, err
	}
	var x v1.Index
	if err := json.Unmarshal(b, &x); err != nil {
		return desc, fmt.Errorf("index %s: %w", desc.Digest, err)
	}
	var there []v1.Descriptor
	missing := 0
	for _, d := range x.Manifests {
		if complete(l, d) {
			there = append(there, d)
		} else {
			missing++
		}
	}
	switch {
	case missing == 0:
		return desc, nil
	case len(there) == 1:
		return there[0], nil
	case len(there) == 0:
		return desc, fmt.Errorf("no platform of the image is here in full")
	}
	return desc, fmt.Errorf("only %d of the image's %d platforms are here; pull the others too, or push one platform's image", len(there), len(x.Manifests))
}

func complete(l *layout.Layout, desc v1.Descriptor) bool {
	for _, d := range l.Reachable(desc) {
		if !l.Has(d.Digest) && !layout.IsForeign(d.MediaType) {
			return false
		}
	}
	return true
}

// pusher returns the one that authenticates for all repositories of a host.
func (c *Client) pusher(e *endpoint) (*remote.Pusher, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if p, ok := c.pushers[e.host]; ok {
		return p, nil
	}
	p, err := remote.NewPusher(
		remote.WithTransport(c.wire(e)),
		remote.WithAuthFromKeychain(c.keychain),
		remote.WithUserAgent(c.o.UserAgent),
		remote.WithRetryBackoff(remote.Backoff{Duration: c.o.Pause, Factor: 2, Jitter: 0.25, Steps: maxTries}),
		remote.WithRetryPredicate(passingError),
		remote.WithRetryStatusCodes(), // wire does that for reads, the pusher for uploads
	)
	if err != nil {
		return nil, err
	}
	c.pushers[e.host] = p
	return p, nil
}

type pusher struct {
	c    *Client
	l    *layout.Layout
	e    *endpoint
	ref  Reference
	repo name.Repository
	o    PushOptions
	to   *remote.Pusher
}

// blobs sends all but the manifests.
func (p *pusher) blobs(ctx context.Context, desc v1.Descriptor) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(transfers)
	for _, d := range p.l.Reachable(desc) {
		if layout.IsIndex(d.MediaType) || layout.IsManifest(d.MediaType) {
			continue
		}
		if layout.IsForeign(d.MediaType) && !p.l.Has(d.Digest) {
			continue // stays where its URLs say
		}
		g.Go(func() error {
			if err := p.to.Upload(ctx, p.repo, p.layer(d)); err != nil {
				return p.explain(ctx, "blob "+d.Digest.String(), err)
			}
			newMeter(p.o.Progress, d).end()
			return nil
		})
	}
	return g.Wait()
}

func (p *pusher) explain(ctx context.Context, what string, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	var status *transport.Error
	if errors.As(err, &status) && status.StatusCode == http.StatusNotFound {
		// There is nothing that a push could fail to find but the repository.
		return fmt.Errorf("%s: %s: %w", p.e, what, err)
	}
	return explain(p.e, what, err)
}

// layer is a blob as the pusher wants it, with the repository that it can be
// mounted from where that is known.
func (p *pusher) layer(d v1.Descriptor) ggcr.Layer {
	l := &blobLayer{l: p.l, desc: d, progress: p.o.Progress}
	if p.o.Origin == nil {
		return l
	}
	from, ok := p.o.Origin(d.Digest)
	if !ok || from.Host != p.ref.Host || from.Path == p.ref.Path {
		return l
	}
	repo, err := p.e.repository(from)
	if err != nil {
		return l
	}
	return &remote.MountableLayer{Layer: l, Reference: repo.Digest(d.Digest.String())}
}

// manifests sends the manifests of an index by their digests and then the
// one that the tag is for.
func (p *pusher) manifests(ctx context.Context, desc v1.Descriptor, tag name.Reference) error {
	raw, err := p.l.ReadBlob(desc.Digest)
	if err != nil {
		return err
	}
	if layout.IsIndex(desc.MediaType) {
		var x v1.Index
		if err := json.Unmarshal(raw, &x); err != nil {
			return fmt.Errorf("index %s: %w", desc.Digest, err)
		}
		for _, d := range x.Manifests {
			if err := p.manifests(ctx, d, p.repo.Digest(d.Digest.String())); err != nil {
				return err
			}
		}
	}
	if err := p.to.Put(ctx, tag, rawManifest{raw, desc.MediaType}); err != nil {
		return p.explain(ctx, "repository "+p.ref.Path, err)
	}
	return nil
}

type rawManifest struct {
	raw       []byte
	mediaType string
}

func (m rawManifest) RawManifest() ([]byte, error)        { return m.raw, nil }
func (m rawManifest) MediaType() (types.MediaType, error) { return types.MediaType(m.mediaType), nil }

// blobLayer is a blob of a layout for go-containerregistry.
type blobLayer struct {
	l        *layout.Layout
	desc     v1.Descriptor
	progress Progress
}

var _ ggcr.Layer = (*blobLayer)(nil)

func (b *blobLayer) Digest() (ggcr.Hash, error) { return ggcr.NewHash(b.desc.Digest.String()) }
func (b *blobLayer) Size() (int64, error)       { return b.desc.Size, nil }

// MediaType is never that of a foreign layer: what we have we may send.
func (b *blobLayer) MediaType() (types.MediaType, error) { return types.OCILayer, nil }

func (b *blobLayer) Compressed() (io.ReadCloser, error) {
	r, _, err := b.l.Blob(b.desc.Digest)
	if err != nil {
		return nil, err
	}
	return struct {
		io.Reader
		io.Closer
	}{io.TeeReader(r, newMeter(b.progress, b.desc)), r}, nil
}

// DiffID and Uncompressed are not asked for in an upload.
func (b *blobLayer) DiffID() (ggcr.Hash, error) { return ggcr.Hash{}, errors.ErrUnsupported }

func (b *blobLayer) Uncompressed() (io.ReadCloser, error) { return nil, errors.ErrUnsupported }
