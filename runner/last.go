package runner

import (
	"context"
	"maps"
	"path/filepath"
	"regexp"
	"sync"
	"sync/atomic"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
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
	layer digest.Digest
	tree  *tree.Tree
	dir   string

	linked atomic.Int64 // bytes on disk of what was linked
}

// mainContext is the name of the build context, as in op.Select.
const mainContext = "context"

// linkMin is how many files a layer must have for all this to pay.
const linkMin = 64

// position is what numbers a step: "[build 2/5] COPY . .".
var position = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(` ?\d+/\d+\] `) })

// lastLayer finds the layer that the step of this name made from the same
// context. packed says that it would matter, too, if that has files at all.
func (r *Runner) lastLayer(ctx context.Context, a *solver.Action, files int, packed bool) *lastLayer {
	if files < linkMin && !packed || a.Step == nil || a.Step.Name == "" {
		return nil
	}
	l := &lastLayer{store: r.Store, name: r.Contexts[mainContext].Dir + "\x00" + position().ReplaceAllString(a.Step.Name, "] ")}
	if abs, err := filepath.Abs(l.name); err == nil {
		l.name = abs
	}
	if layer, ok := r.Store.Recall(ctx, l.name); ok {
		if r.Store.Packed(layer.Digest) {
			return l
		}
		t, err := r.Store.Tree(layer.Digest)
		if err == nil {
			l.dir, err = r.Store.LayerDir(ctx, layer.Digest)
		}
		if err == nil {
			l.layer, l.tree = layer.Digest, t
		}
	}
	return l
}

// hasFiles reports whether there is a last layer, and not only its blob.
func (l *lastLayer) hasFiles() bool { return l != nil && l.tree != nil }

// lastDir is a directory of the last layer, and the one that is being made in
// its place. Nil has no files.
type lastDir struct {
	*lastLayer
	from, to int // descriptors
}

// in opens the directory of a path, and the new one at another. Whatever does
// not work is no reason to fail: files are copied then.
func (l *lastLayer) in(path, at string) *lastDir {
	if l == nil || l.tree == nil {
		return nil
	}
	const how = unix.O_PATH | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC
	from, err := unix.Open(filepath.Join(l.dir, path), how, 0)
	if err != nil {
		return nil
	}
	to, err := unix.Open(at, how, 0)
	if err != nil {
		unix.Close(from)
		return nil
	}
	return &lastDir{l, from, to}
}

func (d *lastDir) close() {
	if d != nil {
		unix.Close(d.from)
		unix.Close(d.to)
	}
}

// link makes a file by linking the one at the same path, if that one is like
// it in all that the disk holds, the time included.
func (d *lastDir) link(e *tree.Entry) bool {
	if d == nil {
		return false
	}
	o, ok := d.tree.Lookup(e.Path)
	if !ok || o.Type != tree.File || o.Hardlink != "" || o.Digest != e.Digest || o.Mode != e.Mode ||
		o.UID != e.UID || o.GID != e.GID || o.Mtime != e.Mtime || !maps.Equal(o.Xattrs, e.Xattrs) {
		return false
	}
	// A file can have only so many links (65,000 with ext4).
	name := filepath.Base(e.Path)
	if unix.Linkat(d.from, name, d.to, name, 0) != nil {
		return false
	}
	d.linked.Add(e.Disk())
	return true
}

// tell notes in a draft what was linked.
func (l *lastLayer) tell(d *cache.Draft) {
	if l != nil {
		d.Links(l.layer, l.linked.Load())
	}
}

// replace remembers the layer that was made now.
func (l *lastLayer) replace(d digest.Digest) {
	if l != nil {
		l.store.Remember(l.name, d)
	}
}
