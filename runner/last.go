package runner

import (
	"context"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"sync"

	"github.com/opencontainers/go-digest"
	"kiln.build/cache"
	"kiln.build/cache/tree"
	"kiln.build/solver"
)

// lastLayer is the layer that a step like this one made the last time, of
// which most files are usually still the same. Linking a file costs a tenth of
// copying it, and no space. What is linked was checked when it was copied, and
// files of layers never change. Nil has no files.
type lastLayer struct {
	store *cache.Store
	name  string // that it is remembered by
	tree  *tree.Tree
	dir   string
}

// mainContext is the name of the build context, as in op.Select.
const mainContext = "context"

// linkMin is how many files a layer must have for all this to pay.
const linkMin = 64

// position is what numbers a step: "[build 2/5] COPY . .".
var position = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(` ?\d+/\d+\] `) })

// lastLayer finds the layer that the step of this name made from the same
// context.
func (r *Runner) lastLayer(ctx context.Context, a *solver.Action, files int) *lastLayer {
	if files < linkMin || a.Step == nil || a.Step.Name == "" {
		return nil
	}
	l := &lastLayer{store: r.Store, name: r.Contexts[mainContext].Dir + "\x00" + position().ReplaceAllString(a.Step.Name, "] ")}
	if abs, err := filepath.Abs(l.name); err == nil {
		l.name = abs
	}
	if layer, ok := r.Store.Recall(ctx, l.name); ok {
		if t, err := r.Store.Tree(layer.Digest); err == nil {
			l.tree, l.dir = t, r.Store.LayerDir(layer.Digest)
		}
	}
	return l
}

// link makes a file by linking the one at the same path, if that one is like
// it in all that the disk holds, the time included.
func (l *lastLayer) link(e *tree.Entry, at string) bool {
	if l == nil || l.tree == nil {
		return false
	}
	o, ok := l.tree.Lookup(e.Path)
	if !ok || o.Type != tree.File || o.Hardlink != "" || o.Digest != e.Digest || o.Mode != e.Mode ||
		o.UID != e.UID || o.GID != e.GID || o.Mtime != e.Mtime || !maps.Equal(o.Xattrs, e.Xattrs) {
		return false
	}
	// A file can have only so many links (65,000 with ext4).
	return os.Link(filepath.Join(l.dir, o.Path), at) == nil
}

// replace remembers the layer that was made now.
func (l *lastLayer) replace(d digest.Digest) {
	if l != nil {
		l.store.Remember(l.name, d)
	}
}
