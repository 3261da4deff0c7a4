package runner

import (
	"context"
	"io"
	"runtime"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"
	"kiln.build/cache/archive"
	"kiln.build/cache/tree"
	"kiln.build/solver"
)

// A Packer wants the contents of a layer's files while they are copied, such
// as one that makes the layer's blob meanwhile. It is asked before the layer t
// is made, and returns nil where it wants none of it; open opens the source of
// a file until the Runner is closed.
type Packer func(a *solver.Action, t *tree.Tree, open func(*tree.Entry) (io.ReadCloser, error)) *Packing

// Packing is what a [Packer] does with a layer.
type Packing struct {
	Feed *archive.Feed // gets the contents

	// Kept is called once at the end: whether the layer that is there is the
	// one that was fed. It is not where making it failed, or one like it but
	// for times was made meanwhile.
	Kept func(bool)

	// Blob, unless it is nil, says that nobody is about to look at the
	// layer's files: it need not have any (see [cache.Draft.Pack]). It waits
	// for the blob, after the end of the feed.
	Blob func(context.Context) (digest.Digest, error)
}

// feed is what a Packer asked for. Nil is nothing.
func (r *Runner) feed(a *solver.Action, p *plan, t *tree.Tree) *Packing {
	if r.Packer == nil {
		return nil
	}
	return r.Packer(a, t, p.open)
}

// alone reports whether the layer's blob is all that is wanted.
func (k *Packing) alone() bool { return k != nil && k.Blob != nil }

// next is a batch for those of some files that are fed, nil where there are
// none or nobody wants more.
func (k *Packing) next(files []tree.Entry) *archive.Batch {
	if k == nil {
		return nil
	}
	var fed []*tree.Entry
	for i := range files {
		if archive.Feeds(&files[i]) {
			fed = append(fed, &files[i])
		}
	}
	if len(fed) == 0 {
		return nil
	}
	return k.Feed.Next(fed)
}

// end ends the feeding, with the error that did.
func (k *Packing) end(err error) {
	if k != nil {
		k.Feed.End(err)
	}
}

// settle tells whether the layer is there as it was fed.
func (k *Packing) settle(kept bool) {
	if k != nil {
		k.Kept(kept)
	}
}

// pack makes the planned layer t of its blob alone. Where that does not work
// for a reason that is not the sources', ok is false, and the layer is to be
// made of files.
func (r *Runner) pack(ctx context.Context, p *plan, t *tree.Tree, to *Packing) (l solver.Layer, ok bool, err error) {
	kept := false
	defer func() { to.settle(kept) }()
	draft, err := r.Store.NewLayer()
	if err != nil {
		to.end(err)
		return l, false, err
	}
	defer draft.Discard()
	var g errgroup.Group
	g.Go(func() error { return draft.Describe(t) })
	g.Go(func() error {
		err := p.feed(ctx, t, to)
		to.end(err)
		return err
	})
	if err := g.Wait(); err != nil {
		return l, false, err
	}
	blob, err := to.Blob(ctx)
	if err != nil {
		return l, false, ctx.Err()
	}
	if draft.Pack(blob) != nil { // pruned meanwhile, or no links here
		return l, false, nil
	}
	l, err = draft.Commit(ctx, t)
	kept = err == nil && !draft.Found
	return l, err == nil, err
}

// feed reads the contents of small files, and checks them.
func (p *plan) feed(ctx context.Context, t *tree.Tree, to *Packing) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(2 * runtime.NumCPU())
	for i := 0; i < len(t.Entries) && ctx.Err() == nil; {
		var files []*tree.Entry
		for size := int64(0); i < len(t.Entries) && len(files) < archive.BatchFiles && size < archive.BatchBytes; i++ {
			if e := &t.Entries[i]; archive.Feeds(e) {
				files = append(files, e)
				size += e.Size
			}
		}
		if len(files) == 0 {
			break
		}
		b := to.Feed.Next(files)
		if b == nil {
			break // the blob is there, or does not come
		}
		g.Go(func() error {
			defer b.Done()
			for _, e := range files {
				var err error
				if ctx.Err() == nil {
					b.Data, err = p.read(b.Data, e)
				} else {
					err = context.Cause(ctx)
				}
				b.Next(err)
				if err != nil {
					return err
				}
			}
			return nil
		})
	}
	return g.Wait()
}
