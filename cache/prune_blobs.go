package cache

import (
	"context"
	"errors"
	"slices"

	"github.com/opencontainers/go-digest"

	"kiln.build/cache/layout"
)

// idleBlobs are the blobs of the image layout that no tag needs, among what a
// run of Prune may remove: a blob that was made for the last build is worth
// more than a layer that nobody has used for a month.
type idleBlobs struct {
	items  []*item
	needed map[string]int // how many results need one, by its pin
	idle   *layout.Idle   // nil where images are being written: there are no items
}

// idleBlobs finds them. It never waits, so no order of locks matters.
func (p *pruning) idleBlobs(ctx context.Context, pins map[string]bool) (*idleBlobs, error) {
	b := &idleBlobs{needed: map[string]int{}}
	idle, err := p.s.images.Idle(ctx, false)
	if errors.Is(err, layout.ErrBusy) {
		return b, nil // next time
	}
	if err != nil {
		return nil, err
	}
	b.idle = idle
	for _, it := range p.items {
		if !it.broken {
			b.count(it, 1)
		}
	}
	packed := map[string]*item{} // layers, by their blobs
	for _, it := range p.items {
		if it.Kind == KindLayer && it.links.of != "" && it.of == nil {
			packed[it.links.of.String()] = it
		}
	}
	for _, d := range idle.Blobs {
		it := &item{Usage: Usage{ID: d.String(), Kind: KindImage}, pin: pinned("image", d), path: p.s.images.Path(d)}
		if !pins[pinned("blob", d)] && it.stat() {
			if layer := packed[it.ID]; layer != nil {
				it.heirs = append(it.heirs, layer)
			}
			b.items = append(b.items, it)
		}
	}
	return b, nil
}

// count notes that a result needs its blobs, or no longer does.
func (b *idleBlobs) count(it *item, by int) {
	for _, d := range it.origins {
		b.needed[pinned("image", d)] += by
	}
}

// dropped notes that an action was removed.
func (b *idleBlobs) dropped(it *item) {
	if !it.broken {
		b.count(it, -1)
	}
}

// among merges them with other items, in the order of their last use.
func (b *idleBlobs) among(items []*item) []*item {
	all := slices.Concat(b.items, items)
	slices.SortStableFunc(all, func(a, b *item) int { return a.LastUsed.Compare(b.LastUsed) })
	return all
}

// remove deletes one.
func (b *idleBlobs) remove(it *item) error { return b.idle.Remove(digest.Digest(it.ID)) }

// sweep deletes what interrupted writes of blobs left.
func (b *idleBlobs) sweep(ctx context.Context) error {
	if b.idle == nil {
		return nil
	}
	return b.idle.Sweep(ctx)
}

func (b *idleBlobs) release() {
	if b.idle != nil {
		b.idle.Release()
	}
}
