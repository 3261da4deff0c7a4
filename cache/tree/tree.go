// Package tree lists what is in a layer or a selection of files.
//
// A [Tree] is a sorted list of entries, one for each path; its digest is
// that of a layer. [Scan] makes one from a directory, Encode and [Decode]
// keep it in a file, and an [Index] is the merged view of the trees of a
// stack, which answers what is at a path without touching the disk.
//
// Trees describe content; where the bytes are is the business of package
// cache.
package tree

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"sort"
	"strings"

	"github.com/opencontainers/go-digest"
)

// Type is what an entry is.
type Type byte

// The types of entries. Whiteout hides a path of the layers below.
const (
	Dir      Type = 'd'
	File     Type = 'f'
	Symlink  Type = 'l'
	Char     Type = 'c'
	Block    Type = 'b'
	Fifo     Type = 'p'
	Whiteout Type = 'w'
)

func (t Type) String() string {
	switch t {
	case Dir:
		return "directory"
	case File:
		return "file"
	case Symlink:
		return "symbolic link"
	case Char:
		return "character device"
	case Block:
		return "block device"
	case Fifo:
		return "fifo"
	case Whiteout:
		return "whiteout"
	}
	return fmt.Sprintf("type %q", byte(t))
}

// An Entry is one path of a layer or a selection. Fields that do not belong
// to its type are zero; a whiteout has its path alone, and the mode of a
// symbolic link, which Linux does not have, is not in the digest.
type Entry struct {
	// Path is slash-separated, relative and clean; "" is the root itself. It
	// may hold any byte but NUL.
	Path string

	Type     Type
	Mode     uint32 // permission, setuid, setgid and sticky bits
	UID, GID int

	Size   int64         // of a File
	Digest digest.Digest // of a File's content

	Link string // target of a Symlink

	// Hardlink is the first path, in walking order, of the File's hard-link
	// group in this tree; "" where this is the first or the only one. Size
	// and Digest are set all the same.
	Hardlink string

	Major, Minor uint32 // of a Char or Block

	// Xattrs are those that the layer keeps. The map must not be changed
	// once the entry is shared.
	Xattrs map[string]string

	// Opaque marks a Dir that hides everything below it in the stack.
	Opaque bool

	// Mtime is the modification time in nanoseconds since the epoch. It is
	// not in the digest.
	Mtime int64

	// Source is, in a selection, the path of the bytes in the place that
	// they were chosen from; "" where it equals Path. It is not in the
	// digest.
	Source string
}

// Name is the last component of the entry's path, "" for the root.
func (e *Entry) Name() string { return e.Path[strings.LastIndexByte(e.Path, '/')+1:] }

// A Tree is the listing of a layer or a selection, sorted by [Compare]: a
// directory comes directly before its contents. Every directory on the way
// to an entry is an entry itself; only the root may be missing.
type Tree struct {
	Entries []Entry
}

// Compare orders paths in walking order: component by component, bytewise.
func Compare(a, b string) int {
	n := min(len(a), len(b))
	for i := range n {
		if x, y := a[i], b[i]; x != y {
			// A slash ends a component, so it is less than every byte that
			// a component can have.
			switch {
			case x == '/':
				return -1
			case y == '/' || x > y:
				return 1
			}
			return -1
		}
	}
	return len(a) - len(b)
}

// Sort brings the entries into walking order. Of entries with equal paths,
// the last one stays.
func (t *Tree) Sort() {
	less := func(a, b Entry) int { return Compare(a.Path, b.Path) }
	if slices.IsSortedFunc(t.Entries, less) && !t.repeats() {
		return
	}
	slices.SortStableFunc(t.Entries, less)
	kept := t.Entries[:0]
	for i, e := range t.Entries {
		if i+1 < len(t.Entries) && t.Entries[i+1].Path == e.Path {
			continue
		}
		kept = append(kept, e)
	}
	clear(t.Entries[len(kept):])
	t.Entries = kept
}

func (t *Tree) repeats() bool {
	for i := 1; i < len(t.Entries); i++ {
		if t.Entries[i].Path == t.Entries[i-1].Path {
			return true
		}
	}
	return false
}

// Lookup finds the entry of a path.
func (t *Tree) Lookup(path string) (*Entry, bool) {
	if i, ok := t.Position(path); ok {
		return &t.Entries[i], true
	}
	return nil, false
}

// Position is the place of a path among the entries.
func (t *Tree) Position(path string) (int, bool) {
	i := sort.Search(len(t.Entries), func(i int) bool { return Compare(t.Entries[i].Path, path) >= 0 })
	return i, i < len(t.Entries) && t.Entries[i].Path == path
}

// Size is the sum of the sizes of the regular files, those of a hard-link
// group counted once.
func (t *Tree) Size() int64 {
	var n int64
	for i := range t.Entries {
		if e := &t.Entries[i]; e.Type == File && e.Hardlink == "" {
			n += e.Size
		}
	}
	return n
}

// block is what file systems commonly allocate at once.
const block = 4096

// Disk estimates the space that the tree takes on disk: whole blocks for
// files and directories. Holes and compression are not known to it.
func (t *Tree) Disk() int64 {
	var n int64
	for i := range t.Entries {
		n += t.Entries[i].Disk()
	}
	return n
}

// Disk estimates the space that the entry takes on disk.
func (e *Entry) Disk() int64 {
	switch {
	case e.Type == Dir:
		return block
	case e.Type == File && e.Hardlink == "":
		return (e.Size + block - 1) / block * block
	}
	return 0
}

// Check reports the first thing that makes a tree no tree: entries out of
// order, unclean paths, missing parents, files without a digest, hard links
// that lead nowhere.
func (t *Tree) Check() error {
	for i := range t.Entries {
		e := &t.Entries[i]
		if err := e.check(); err != nil {
			return fmt.Errorf("tree entry %q: %w", e.Path, err)
		}
		if i > 0 && Compare(t.Entries[i-1].Path, e.Path) >= 0 {
			return fmt.Errorf("tree entry %q: out of order after %q", e.Path, t.Entries[i-1].Path)
		}
	}
	// In walking order the directories on the way to an entry are the
	// entries before it that are a prefix of it: a stack.
	var parents []string
	for i := range t.Entries {
		e := &t.Entries[i]
		for len(parents) > 0 && !within(e.Path, parents[len(parents)-1]) {
			parents = parents[:len(parents)-1]
		}
		want, _ := split(e.Path)
		have := ""
		if len(parents) > 0 {
			have = parents[len(parents)-1]
		}
		if e.Path != "" && want != have {
			return fmt.Errorf("tree entry %q: directory %q is missing", e.Path, want)
		}
		if e.Type == Dir && e.Path != "" {
			parents = append(parents, e.Path)
		}
		if e.Hardlink != "" {
			first, ok := t.Lookup(e.Hardlink)
			if !ok || first.Type != File || first.Hardlink != "" || Compare(e.Hardlink, e.Path) >= 0 || first.Digest != e.Digest {
				return fmt.Errorf("tree entry %q: %q is not the first of its hard links", e.Path, e.Hardlink)
			}
		}
	}
	return nil
}

func (e *Entry) check() error {
	if err := checkPath(e.Path); err != nil {
		return err
	}
	switch e.Type {
	case Dir, Char, Block, Fifo:
	case Whiteout:
		if e.Path == "" {
			return fmt.Errorf("the root cannot be hidden")
		}
	case Symlink:
		if e.Link == "" || strings.IndexByte(e.Link, 0) >= 0 {
			return fmt.Errorf("link target %q is not valid", e.Link)
		}
	case File:
		if err := validDigest(e.Digest); err != nil {
			return fmt.Errorf("digest %q: %w", e.Digest, err)
		}
		if e.Size < 0 {
			return fmt.Errorf("size %d is below zero", e.Size)
		}
	default:
		return fmt.Errorf("%s is not known", e.Type)
	}
	if e.Path == "" && e.Type != Dir && e.Type != File {
		return fmt.Errorf("the root cannot be a %s", e.Type)
	}
	if e.Mode&^0o7777 != 0 {
		return fmt.Errorf("mode %#o has bits beyond 07777", e.Mode)
	}
	return nil
}

// checkPath refuses paths that are not relative and clean.
func checkPath(path string) error {
	if path == "" {
		return nil
	}
	start := 0
	for i := 0; i <= len(path); i++ {
		if i < len(path) && path[i] == 0 {
			return fmt.Errorf("a path cannot hold a zero byte")
		}
		if i < len(path) && path[i] != '/' {
			continue
		}
		switch path[start:i] {
		case "", ".", "..":
			return fmt.Errorf("the path is not relative and clean")
		}
		start = i + 1
	}
	return nil
}

// within reports whether path lies below dir, which is not the root.
func within(path, dir string) bool {
	return len(path) > len(dir) && path[len(dir)] == '/' && path[:len(dir)] == dir
}

// split cuts a path into its directory and its last component.
func split(path string) (dir, name string) {
	i := strings.LastIndexByte(path, '/')
	return path[:max(i, 0)], path[i+1:]
}

func join(dir, name string) string {
	if dir == "" {
		return name
	}
	return dir + "/" + name
}

// Holds reports whether a content is that of a file.
func Holds(e *Entry, content []byte) bool {
	sum := sha256.Sum256(content)
	d := encoded(sum[:])
	return string(d[:]) == string(e.Digest) // this allocates nothing
}

// encoded is a SHA-256 as a digest has it.
func encoded(sum []byte) (d [len("sha256:") + 2*sha256.Size]byte) {
	hex.Encode(d[copy(d[:], "sha256:"):], sum)
	return d
}

// validDigest is Validate without a regular expression for the digests that
// trees have as a rule.
func validDigest(d digest.Digest) error {
	hex, ok := strings.CutPrefix(string(d), sha256Prefix)
	if !ok || len(hex) != 64 || !isHex(hex) {
		return d.Validate()
	}
	return nil
}

// isHex reports whether all of a text are digits 0-9 and a-f. There is nothing
// to be foreseen in them: looking each up is ten times faster than comparing.
func isHex(text string) bool {
	all := byte(1)
	for i := range len(text) {
		all &= hexDigits[text[i]]
	}
	return all == 1
}

// hexDigits has a one for each of them.
var hexDigits = func() (is [256]byte) {
	for _, c := range []byte("0123456789abcdef") {
		is[c] = 1
	}
	return is
}()
