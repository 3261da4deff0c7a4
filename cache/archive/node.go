package archive

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"

	"kiln.build/cache/tree"

	"golang.org/x/sys/unix"
)

// A node is a path that was unpacked. The nodes mirror what is on disk, so
// that links are followed without asking the disk and the tree need not be
// read back.
type node struct {
	path   string
	parent *node // nil for the root
	kids   map[string]*node

	// attr is the entry without its Path. Hard links share it.
	attr *tree.Entry
}

func (n *node) is(t tree.Type) bool { return n != nil && n.attr.Type == t }

// add makes a node the child of n in place of any other.
func (n *node) add(name string, attr *tree.Entry) *node {
	kid := &node{path: path.Join(n.path, name), parent: n, attr: attr}
	if n.kids == nil {
		n.kids = map[string]*node{}
	}
	n.kids[name] = kid
	return kid
}

// sorted lists the children in the order of trees.
func (n *node) sorted() []*node {
	kids := make([]*node, 0, len(n.kids))
	for _, k := range n.kids {
		kids = append(kids, k)
	}
	slices.SortFunc(kids, func(a, b *node) int { return strings.Compare(a.path, b.path) })
	return kids
}

// clean makes an archive's name relative and takes "." and ".." away; ".."
// at the top stays at the top. The root is "".
func clean(name string) string { return path.Clean("/" + name)[1:] }

// maxLinks is how many symbolic links a path may lead through, as in Linux.
const maxLinks = 40

// walk finds a directory. Symbolic links made by the archive itself, or
// below, are followed inside the top, as containerd and docker do: archives
// exist that unpack "lib -> usr/lib" and then "lib/x". Where missing is nil,
// what is not there is an error, else missing makes it.
func (u *unpacker) walk(dir string, missing func(parent *node, name string) (*node, error)) (*node, error) {
	cur := u.top
	links := 0
	rest := strings.Split(dir, "/")
	for len(rest) > 0 {
		name := rest[0]
		rest = rest[1:]
		switch name {
		case "", ".":
			continue
		case "..":
			if cur != u.top {
				cur = cur.parent
			}
			continue
		}
		kid := cur.kids[name]
		target, below := "", false
		if kid == nil {
			var err error
			if target, below, err = u.linkInLower(cur, name); err != nil {
				return nil, err
			}
		}
		switch {
		case kid.is(tree.Symlink), below:
			if links++; links > maxLinks {
				return nil, &fs.PathError{Op: "follow links", Path: dir, Err: unix.ELOOP}
			}
			if !below {
				target = kid.attr.Link
			}
			if strings.HasPrefix(target, "/") {
				cur = u.top
			}
			rest = append(strings.Split(target, "/"), rest...)
		case kid.is(tree.Dir):
			cur = kid
		case kid != nil && !kid.is(tree.Whiteout):
			return nil, fmt.Errorf("%q is not a directory", kid.path)
		case missing == nil:
			return nil, fs.ErrNotExist
		default:
			made, err := missing(cur, name)
			if err != nil {
				return nil, err
			}
			cur = made
		}
	}
	return cur, nil
}

// linkInLower is the target of a symbolic link that the layers below have at
// a name, if they have one. A name that is taken below by what a directory
// cannot be made over is an error.
func (u *unpacker) linkInLower(parent *node, name string) (target string, ok bool, err error) {
	if u.o.Lower == nil || parent.hidesLower() {
		return "", false, nil
	}
	p := path.Join(parent.path, name)
	switch e, _, ok := u.o.Lower.Lookup(p); {
	case !ok || e.Type == tree.Dir:
		return "", false, nil
	case e.Type == tree.Symlink:
		return e.Link, true, nil
	}
	return "", false, fmt.Errorf("%q is not a directory", p)
}

// hidesLower reports whether nothing of the layers below is seen in a
// directory.
func (n *node) hidesLower() bool {
	for ; n != nil; n = n.parent {
		if n.attr.Opaque {
			return true
		}
	}
	return false
}

// dir finds the directory for an entry and makes what is missing of it.
func (u *unpacker) dir(dir string) (*node, error) {
	if u.last != nil && u.lastDir == dir {
		return u.last, nil
	}
	n, err := u.walk(dir, u.implicit)
	if err != nil {
		return nil, err
	}
	u.lastDir, u.last = dir, n
	return n, nil
}

// implicit makes a directory that the archive has no entry for. It is like
// the one in the layers below, if there is one, since this one hides that.
func (u *unpacker) implicit(parent *node, name string) (*node, error) {
	if u.o.Layer && strings.HasPrefix(name, whiteoutPrefix) {
		return nil, fmt.Errorf("%q: names that start with %q mark deletions", path.Join(parent.path, name), whiteoutPrefix)
	}
	attr := &tree.Entry{Type: tree.Dir, Mode: 0o755, Mtime: u.o.Implied}
	if u.o.Lower != nil && !parent.hidesLower() {
		if e, _, ok := u.o.Lower.Lookup(path.Join(parent.path, name)); ok && e.Type == tree.Dir {
			attr = &tree.Entry{Type: tree.Dir, Mode: e.Mode, UID: e.UID, GID: e.GID, Mtime: e.Mtime, Xattrs: e.Xattrs}
		}
	}
	return u.mkdir(parent, name, attr)
}

// mkdir makes a directory, or changes the attributes of one that is there.
func (u *unpacker) mkdir(parent *node, name string, attr *tree.Entry) (*node, error) {
	old := parent.kids[name]
	if old.is(tree.Dir) {
		attr.Opaque = old.attr.Opaque
		old.attr = attr
		return old, nil
	}
	// A whiteout in the same layer hides what is below, whichever came first.
	attr.Opaque = old.is(tree.Whiteout)
	u.last = nil
	if err := u.disk.mkdir(path.Join(parent.path, name)); err != nil {
		return nil, err
	}
	return parent.add(name, attr), nil
}

// find returns the node at a path, links on the way followed, or nil.
func (u *unpacker) find(p string) *node {
	if p == "" {
		return u.top
	}
	dir, base := path.Split(p)
	n, err := u.walk(dir, nil)
	if err != nil {
		return nil
	}
	return n.kids[base]
}

// load makes nodes of what the directory holds already.
func (u *unpacker) load(t *tree.Tree) error {
	attrs := map[string]*tree.Entry{}
	for _, e := range t.Entries {
		attr := e
		attr.Path, attr.Hardlink, attr.Source = "", "", ""
		p := &attr
		if e.Path == "" && e.Type != tree.Dir {
			return errors.New("tree: the root is not a directory")
		}
		if e.Path == "" {
			u.root.attr, u.rootSet = p, true
			continue
		}
		if e.Hardlink != "" {
			first, ok := attrs[e.Hardlink]
			if !ok {
				return fmt.Errorf("tree: %q is a hard link to %q, which does not come before it", e.Path, e.Hardlink)
			}
			p = first
			u.linked[p] = true
		}
		dir, base := path.Split(e.Path)
		parent := u.find(strings.TrimSuffix(dir, "/"))
		if !parent.is(tree.Dir) {
			return fmt.Errorf("tree: %q has no directory", e.Path)
		}
		attrs[e.Path] = p
		parent.add(base, p)
	}
	return nil
}

// finish gives the directories their attributes, the deepest first, and
// returns the tree.
func (u *unpacker) finish() (*tree.Tree, error) {
	t := &tree.Tree{}
	first := map[*tree.Entry]string{} // of each group of hard links
	var visit func(n *node) error
	visit = func(n *node) error {
		if n != u.root || u.rootSet {
			e := *n.attr
			e.Path = n.path
			if e.Type == tree.File && u.linked[n.attr] {
				if p, ok := first[n.attr]; ok {
					e.Hardlink = p
				} else {
					first[n.attr] = n.path
				}
			}
			t.Entries = append(t.Entries, e)
		}
		if !n.is(tree.Dir) {
			return nil
		}
		kids := n.sorted()
		for _, k := range kids {
			if err := visit(k); err != nil {
				return err
			}
		}
		for _, k := range kids {
			if !k.is(tree.Dir) {
				continue
			}
			if err := u.disk.setAttributes(k.path, attributesOf(k.attr)); err != nil {
				return err
			}
		}
		return nil
	}
	if err := visit(u.root); err != nil {
		return nil, err
	}
	if u.rootSet {
		if err := u.disk.setAttributes("", attributesOf(u.root.attr)); err != nil {
			return nil, err
		}
	}
	return t, nil
}

func attributesOf(e *tree.Entry) attributes {
	return attributes{
		mode: e.Mode, uid: e.UID, gid: e.GID, mtime: e.Mtime, xattrs: e.Xattrs,
		opaque: e.Opaque, nochmod: e.Type == tree.Symlink,
	}
}
