package runner

import (
	"io"

	"kiln.build/cache/archive"
	"kiln.build/cache/tree"
	"kiln.build/solver"
)

// A Packer wants the contents of a layer's files while they are copied, such
// as one that makes the layer's blob meanwhile. It is asked before the layer t
// is made, and returns nil where it wants none of it; open opens the source of
// a file until the Runner is closed. When the layer is there,
// kept is called once: whether it is the one that was fed. It is not where
// making it failed, or one like it but for times was made meanwhile.
type Packer func(a *solver.Action, t *tree.Tree, open func(*tree.Entry) (io.ReadCloser, error)) (f *archive.Feed, kept func(bool))

// feed is what a [Packer] asked for. Nil is nothing.
type feed struct {
	to   *archive.Feed
	kept func(bool)
}

func (r *Runner) feed(a *solver.Action, p *plan, t *tree.Tree) *feed {
	if r.Packer == nil {
		return nil
	}
	if f, kept := r.Packer(a, t, p.open); f != nil {
		return &feed{to: f, kept: kept}
	}
	return nil
}

// next is a batch for those of some files that are fed, nil where there are
// none or nobody wants more.
func (f *feed) next(files []tree.Entry) *archive.Batch {
	if f == nil {
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
	return f.to.Next(fed)
}

// end ends the feeding, with the error that did.
func (f *feed) end(err error) {
	if f != nil {
		f.to.End(err)
	}
}

// settle tells whether the layer is there as it was fed.
func (f *feed) settle(kept bool) {
	if f != nil {
		f.kept(kept)
	}
}
