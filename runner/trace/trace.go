// Package trace tells which parts of a layer a step depends on.
//
// A [Layer] is mounted through FUSE in the place of the layer's directory, and
// notes what is asked of it: names that are looked up, also in vain,
// directories that are listed, files that are opened. Together these are all
// that a process can learn of a layer but for times, which no key holds. So
// the step's result is good for any other layer, in the same place of an
// otherwise equal stack, that gives the same answers: see [Fingerprint].
//
// The kernel asks but once and keeps the answer, so nothing is missed only as
// long as it has not been told anything that was not noted: directories are
// read without attributes (no READDIRPLUS), and each mount is used for one
// step.
package trace

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"

	"kiln.build/cache/tree"
)

// Kind is what was asked of a path.
type Kind byte

// The kinds of accesses.
const (
	Name    Kind = 'n' // whether it is there, and its attributes
	Content Kind = 'c' // the bytes of a file
	Listing Kind = 'l' // the names in a directory
)

// Access is something that was asked. Paths are as in package tree.
type Access struct {
	Kind Kind
	Path string
}

func compare(a, b Access) int {
	if c := strings.Compare(a.Path, b.Path); c != 0 {
		return c
	}
	return int(a.Kind) - int(b.Kind)
}

// Layer is a layer whose use is noted.
type Layer struct {
	tree  *tree.Tree
	index *tree.Index
	dir   string

	mu    sync.Mutex
	asked map[Access]bool
	many  bool // more than askedMax was asked: not all was noted
}

// askedMax bounds what is noted of a layer: a step may ask for any number of
// names that are not there.
const askedMax = 200_000

// ErrUnsuited is returned by New for layers of which not everything can be
// told through a [Layer].
var ErrUnsuited = errors.New("the layer cannot be traced")

// New returns a layer with the files of dir, whose listing is t. It must have
// directories, files and symbolic links alone, and no hard links.
func New(t *tree.Tree, dir string) (*Layer, error) {
	for i := range t.Entries {
		e := &t.Entries[i]
		plain := e.Type == tree.Dir && !e.Opaque || e.Type == tree.File && e.Hardlink == "" || e.Type == tree.Symlink
		if !plain {
			return nil, fmt.Errorf("%q: %w", e.Path, ErrUnsuited)
		}
	}
	return &Layer{tree: t, index: tree.NewIndex(t), dir: dir, asked: map[Access]bool{}}, nil
}

// Note adds an access, for what is learnt of the layer in another way than
// through its mount.
func (l *Layer) Note(k Kind, path string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.asked) >= askedMax {
		l.many = true
		return
	}
	l.asked[Access{k, path}] = true
}

// NotePath notes that a path was looked up from the root. It reports whether
// a symbolic link of this layer is on the way, from where the look-up may have
// gone on elsewhere.
func (l *Layer) NotePath(path string) (link bool) {
	l.Note(Name, "")
	path = strings.Trim(path, "/")
	for i := 0; i <= len(path); i++ {
		if i < len(path) && path[i] != '/' || i == 0 {
			continue
		}
		l.Note(Name, path[:i])
		if e, ok := l.tree.Lookup(path[:i]); ok && e.Type == tree.Symlink {
			link = true
		}
	}
	return link
}

// Files counts the regular files, and those that were opened.
func (l *Layer) Files() (all, opened int) {
	for i := range l.tree.Entries {
		if l.tree.Entries[i].Type == tree.File {
			all++
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for a := range l.asked {
		if a.Kind == Content {
			opened++
		}
	}
	return all, opened
}

// Accesses are all that were noted until now, in order. ok is false if that is
// not all: then the trace is of no use.
func (l *Layer) Accesses() (all []Access, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.SortedFunc(maps.Keys(l.asked), compare), !l.many
}

// Fingerprint is a hash of the answers that a layer gives to accesses.
func Fingerprint(accesses []Access, t *tree.Tree) string {
	index := tree.NewIndex(t)
	h := sha256.New()
	var line []byte
	for _, a := range accesses {
		e, ok := t.Lookup(a.Path)
		line = append(line[:0], byte(a.Kind), ' ')
		line = strconv.AppendQuote(line, a.Path)
		switch {
		case !ok:
			line = append(line, " -"...)
		case a.Kind == Name:
			line = appendAttributes(line, e)
		case a.Kind == Content:
			line = append(append(line, ' '), e.Digest...)
		case a.Kind == Listing:
			for _, name := range index.ReadDir(a.Path) {
				line = strconv.AppendQuote(append(line, ' '), name)
				if child, ok := t.Lookup(join(a.Path, name)); ok {
					line = append(line, byte(child.Type))
				}
			}
		}
		h.Write(append(line, '\n'))
	}
	return hex.EncodeToString(h.Sum(nil))
}

// appendAttributes writes what stat(2), readlink(2) and getxattr(2) tell,
// apart from times and numbers of inodes.
func appendAttributes(b []byte, e *tree.Entry) []byte {
	b = fmt.Appendf(b, " %c %o %d:%d", byte(e.Type), e.Mode, e.UID, e.GID)
	switch e.Type {
	case tree.File:
		b = fmt.Appendf(b, " %d", e.Size)
	case tree.Symlink:
		b = fmt.Appendf(b, " %q", e.Link)
	}
	for _, name := range slices.Sorted(maps.Keys(e.Xattrs)) {
		b = fmt.Appendf(b, " %q=%q", name, e.Xattrs[name])
	}
	return b
}

func join(dir, name string) string {
	if dir == "" {
		return name
	}
	return dir + "/" + name
}

// Encode writes accesses as text, a line each.
func Encode(accesses []Access) string {
	var b strings.Builder
	for _, a := range accesses {
		b.WriteByte(byte(a.Kind))
		b.WriteString(strconv.Quote(a.Path))
		b.WriteByte('\n')
	}
	return b.String()
}

// Decode reads what Encode wrote.
func Decode(text string) ([]Access, error) {
	var all []Access
	for line := range strings.Lines(text) {
		line = strings.TrimSuffix(line, "\n")
		if line == "" || !strings.ContainsRune("ncl", rune(line[0])) {
			return nil, fmt.Errorf("trace: line %q", line)
		}
		p, err := strconv.Unquote(line[1:])
		if err != nil {
			return nil, fmt.Errorf("trace: line %q: %w", line, err)
		}
		all = append(all, Access{Kind(line[0]), p})
	}
	return all, nil
}
