package remote

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"kiln.build/cache/layout"
	"kiln.build/solver"
)

// InlineKey is the field of an image's config that holds the cache of the
// build that made it: JSON of an inlined, compressed with zstd, in base64.
const InlineKey = "kiln.cache.v1"

// inlined is a cache in an image. All content that it has is in the image's
// layers.
type inlined struct {
	Entries []entry                        `json:"entries"`
	Layers  map[digest.Digest]inlinedLayer `json:"layers"`
}

type inlinedLayer struct {
	At  int  `json:"at"` // position in the image
	Top *top `json:"top,omitempty"`
}

// Inline is the cache of this build for the config of an image with these
// layers.
func (c *Cache) Inline(stack []solver.Layer) (key string, value []byte, err error) {
	x := inlined{Layers: map[digest.Digest]inlinedLayer{}}
	for i, l := range stack {
		if l.Origin != nil {
			continue
		}
		t, err := c.o.Store.Tree(l.Digest)
		if err != nil {
			return "", nil, err
		}
		in := inlinedLayer{At: i}
		if e, ok := t.Lookup(""); ok {
			in.Top = &top{Mode: e.Mode, UID: e.UID, GID: e.GID, Mtime: e.Mtime}
		}
		x.Layers[l.Digest] = in
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	x.Entries = c.inline
	value, err = packJSON(x)
	return InlineKey, value, err
}

// index makes an index of the cache in an image.
func (x *inlined) index(layers []v1.Descriptor) *index {
	all := &index{Version: 1, Entries: x.Entries, Pieces: map[digest.Digest]piece{}}
	for d, in := range x.Layers {
		if in.At >= 0 && in.At < len(layers) {
			l := layers[in.At]
			all.Pieces[d] = piece{Object: l.Digest, Size: l.Size, Length: l.Size, Tar: true, Top: in.Top}
		}
	}
	return all
}

// inlineIndex reads the caches in an image, of all its platforms.
func (r *Registry) inlineIndex(ctx context.Context, desc v1.Descriptor, raw []byte) (*index, error) {
	all := &index{Version: 1, Pieces: map[digest.Digest]piece{}}
	manifests := [][]byte{raw}
	if layout.IsIndex(desc.MediaType) {
		var x v1.Index
		if err := json.Unmarshal(raw, &x); err != nil {
			return nil, err
		}
		manifests = nil
		for _, m := range x.Manifests {
			if layout.IsAttestation(m) {
				continue
			}
			ref := r.Ref
			ref.Digest = m.Digest
			_, b, err := r.Client.Manifest(ctx, ref)
			if err != nil {
				return nil, err
			}
			manifests = append(manifests, b)
		}
	}
	for _, b := range manifests {
		x, layers, err := r.inlined(ctx, b)
		if err != nil {
			return nil, err
		}
		one := x.index(layers)
		all.Entries = append(all.Entries, one.Entries...)
		for d, p := range one.Pieces {
			all.Pieces[d] = p
		}
	}
	return all, nil
}

// configMax bounds an image's config, in bytes.
const configMax = 16 << 20

func (r *Registry) inlined(ctx context.Context, raw []byte) (*inlined, []v1.Descriptor, error) {
	var m v1.Manifest
	if err := json.Unmarshal(raw, &m); err != nil {
		return nil, nil, err
	}
	body, err := r.Client.Fetch(ctx, r.Ref, m.Config)
	if err != nil {
		return nil, nil, err
	}
	defer body.Close()
	b, err := io.ReadAll(io.LimitReader(body, configMax))
	if err != nil {
		return nil, nil, err
	}
	var config map[string]json.RawMessage
	if err := json.Unmarshal(b, &config); err != nil {
		return nil, nil, err
	}
	field, ok := config[InlineKey]
	if !ok {
		return nil, nil, fmt.Errorf("the image has no cache in it: build it with --cache-to type=inline: %w", fs.ErrNotExist)
	}
	var packed []byte
	x := &inlined{}
	if err := errors.Join(json.Unmarshal(field, &packed), unpackJSON(packed, x)); err != nil {
		return nil, nil, err
	}
	return x, m.Layers, nil
}
