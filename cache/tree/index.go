package tree

import (
	"io/fs"
	"slices"
	"sort"
	"sync"
)

// An Index is the merged view of a stack of layers, as overlayfs shows it. It
// may be used by several goroutines; the trees must not be changed any more.
//
// Making one costs nothing: a path is searched in the sorted entries of each
// layer when it is asked for, and only directories that were looked into are
// remembered, each with the range of entries that every layer has below it.
type Index struct {
	trees []*Tree

	mu   sync.RWMutex
	dirs map[string]*dir
}

// dir is a directory of the merged view.
type dir struct {
	entry Entry
	layer int
	parts []part // of the layers that contribute to it, topmost first
}

// part is the range of a layer's entries that lie below a directory.
type part struct {
	layer, lo, hi int
}

// NewIndex returns the view of a stack, the bottom layer first.
func NewIndex(trees ...*Tree) *Index {
	x := &Index{trees: trees, dirs: map[string]*dir{}}
	root := &dir{entry: Entry{Type: Dir, Mode: 0o755}, layer: -1}
	for l := len(trees) - 1; l >= 0; l-- {
		entries := trees[l].Entries
		if len(entries) == 0 {
			continue
		}
		if entries[0].Path != "" {
			root.parts = append(root.parts, part{l, 0, len(entries)})
			continue
		}
		if root.layer < 0 {
			root.entry, root.layer = entries[0], l
		}
		root.parts = append(root.parts, part{l, 1, len(entries)})
		if entries[0].Opaque {
			break
		}
	}
	x.dirs[""] = root
	return x
}

// Lookup returns the entry that the stack shows at a path, and the layer that
// it is from, counted from the bottom. Symbolic links are not followed. The
// path "" is the root, which is there even if no layer has it: a directory
// of mode 0755 owned by 0:0, from layer -1.
//
// An entry's Hardlink speaks of its own layer; in the stack that path may be
// hidden by another file, to which there is no link then.
func (x *Index) Lookup(path string) (e Entry, layer int, ok bool) {
	if path == "" {
		root := x.dirs[""]
		return root.entry, root.layer, true
	}
	parent, name := split(path)
	d := x.dir(parent)
	if d == nil {
		return Entry{}, -1, false
	}
	return x.child(d, parent, name, nil)
}

// ReadDir returns the sorted names of what is in a directory, nil if there is
// no directory.
func (x *Index) ReadDir(path string) []string {
	d := x.dir(path)
	if d == nil {
		return nil
	}
	return x.names(d, path)
}

// Walk calls fn for a path and everything below it, in walking order. What
// fn returns stops the walk and is returned, but [fs.SkipDir] for a directory
// goes on behind its contents, and [fs.SkipAll] ends the walk without error.
// A path that is not there gives [fs.ErrNotExist].
func (x *Index) Walk(path string, fn func(e Entry, layer int) error) error {
	e, layer, ok := x.Lookup(path)
	if !ok {
		return &fs.PathError{Op: "walk", Path: path, Err: fs.ErrNotExist}
	}
	err := fn(e, layer)
	switch {
	case err == fs.SkipAll || err == fs.SkipDir && e.Type == Dir:
		return nil
	case err != nil || e.Type != Dir:
		return err
	}
	err = x.walk(x.dir(path), path, fn)
	if err == fs.SkipAll {
		return nil
	}
	return err
}

func (x *Index) walk(d *dir, path string, fn func(Entry, int) error) error {
	if len(d.parts) == 1 {
		return x.walkPart(d.parts[0], fn)
	}
	for _, name := range x.names(d, path) {
		var sub dir
		e, layer, _ := x.child(d, path, name, &sub)
		err := fn(e, layer)
		if err == fs.SkipDir && e.Type == Dir {
			continue
		}
		if err == nil && e.Type == Dir {
			err = x.walk(&sub, join(path, name), fn)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// walkPart walks a directory to which one layer alone contributes: its
// entries are as they should be, apart from whiteouts.
func (x *Index) walkPart(p part, fn func(Entry, int) error) error {
	entries := x.trees[p.layer].Entries
	for i := p.lo; i < p.hi; i++ {
		e := &entries[i]
		if e.Type == Whiteout {
			continue
		}
		err := fn(*e, p.layer)
		switch {
		case err == fs.SkipDir && e.Type == Dir:
			i = end(entries, i, p.hi) - 1
		case err != nil:
			return err
		}
	}
	return nil
}

// dir returns a directory of the merged view, nil if there is none.
func (x *Index) dir(path string) *dir {
	x.mu.RLock()
	d, ok := x.dirs[path]
	x.mu.RUnlock()
	if ok {
		return d
	}
	parent, name := split(path)
	up := x.dir(parent)
	if up == nil {
		return nil
	}
	d = &dir{}
	e, layer, ok := x.child(up, parent, name, d)
	if !ok || e.Type != Dir {
		return nil
	}
	d.entry, d.layer = e, layer
	x.mu.Lock()
	x.dirs[path] = d
	x.mu.Unlock()
	return d
}

// child looks a name up in a directory. If it is a directory and sub is not
// nil, sub receives its parts.
func (x *Index) child(d *dir, path, name string, sub *dir) (found Entry, layer int, ok bool) {
	off := len(path) + 1
	if path == "" {
		off = 0
	}
	for _, p := range d.parts {
		entries := x.trees[p.layer].Entries
		i := p.lo + sort.Search(p.hi-p.lo, func(i int) bool {
			return Compare(entries[p.lo+i].Path[off:], name) >= 0
		})
		if i == p.hi || entries[i].Path[off:] != name {
			continue
		}
		e := &entries[i]
		switch {
		case e.Type == Whiteout:
			return found, layer, ok
		case ok && e.Type != Dir: // hidden, and with it everything below it
			return found, layer, ok
		case !ok:
			found, layer, ok = *e, p.layer, true
		}
		if e.Type != Dir || sub == nil {
			return found, layer, ok
		}
		if hi := end(entries, i, p.hi); hi > i+1 {
			sub.parts = append(sub.parts, part{p.layer, i + 1, hi})
		}
		if e.Opaque {
			return found, layer, ok
		}
	}
	if !ok {
		return Entry{}, -1, false
	}
	return found, layer, true
}

// end returns the index behind the last entry below entries[i], at most hi.
func end(entries []Entry, i, hi int) int {
	path := entries[i].Path
	// Most directories are small: steps that double find the range in which
	// to search.
	step := 1
	lo := i + 1
	for lo+step < hi && within(entries[lo+step].Path, path) {
		lo += step
		step *= 2
	}
	top := min(lo+step, hi)
	return lo + sort.Search(top-lo, func(k int) bool { return !within(entries[lo+k].Path, path) })
}

// names merges the names that the layers have in a directory.
func (x *Index) names(d *dir, path string) []string {
	off := len(path) + 1
	if path == "" {
		off = 0
	}
	names := []string{}
	var hidden map[string]bool // whiteouts seen in the layers so far
	for k, p := range d.parts {
		entries := x.trees[p.layer].Entries
		var gone []string
		for i := p.lo; i < p.hi; {
			e := &entries[i]
			name := e.Path[off:]
			switch {
			case e.Type == Whiteout:
				if k+1 < len(d.parts) {
					gone = append(gone, name)
				}
			case !hidden[name]:
				names = append(names, name)
			}
			if e.Type == Dir {
				i = end(entries, i, p.hi)
			} else {
				i++
			}
		}
		if len(gone) > 0 && hidden == nil {
			hidden = map[string]bool{}
		}
		for _, name := range gone {
			hidden[name] = true
		}
	}
	if len(d.parts) > 1 {
		slices.Sort(names)
		names = slices.Compact(names)
	}
	return names
}
