package registry

import (
	"context"
	"fmt"

	"kiln.build/cache/layout"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// Manifest reads the manifest or index that a reference points at, byte for
// byte.
func (c *Client) Manifest(ctx context.Context, ref Reference) (v1.Descriptor, []byte, error) {
	desc, raw, err := c.manifest(ctx, ref)
	if err != nil {
		return desc, nil, fmt.Errorf("read %s: %w", ref.Familiar(), err)
	}
	return desc, raw, nil
}

// Upload sends a blob of a layout to a reference's repository, unless it is
// there already.
func (c *Client) Upload(ctx context.Context, l *layout.Layout, desc v1.Descriptor, ref Reference) error {
	p, err := c.toRepository(l, ref)
	if err != nil {
		return err
	}
	if err := p.to.Upload(ctx, p.repo, p.layer(desc)); err != nil {
		return fmt.Errorf("push to %s: %w", ref.Familiar(), p.explain(ctx, "blob "+desc.Digest.String(), err))
	}
	return nil
}

// PutManifest gives a reference's tag to a manifest whose blobs are there.
func (c *Client) PutManifest(ctx context.Context, mediaType string, raw []byte, ref Reference) error {
	p, err := c.toRepository(nil, ref)
	if err != nil {
		return err
	}
	var to name.Reference = p.repo.Tag(ref.Tag)
	if err := p.to.Put(ctx, to, rawManifest{raw, mediaType}); err != nil {
		return fmt.Errorf("push to %s: %w", ref.Familiar(), p.explain(ctx, "repository "+ref.Path, err))
	}
	return nil
}

func (c *Client) toRepository(l *layout.Layout, ref Reference) (*pusher, error) {
	e := c.hostEndpoint(ref.Host)
	repo, err := e.repository(ref)
	if err != nil {
		return nil, err
	}
	p := &pusher{c: c, l: l, e: e, ref: ref, repo: repo}
	p.to, err = c.pusher(e)
	return p, err
}
