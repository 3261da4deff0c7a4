package tree

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime"
	"strconv"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// ScanOptions say how a directory is read. The zero value reads the upper
// directory of an overlay and hashes all files.
type ScanOptions struct {
	// Plain reads an ordinary directory, not one in overlay form: a 0:0
	// character device is a device, extended attributes are left out, and
	// sockets are empty files, which is what docker makes of them.
	Plain bool

	// NoHash leaves the digests of files empty.
	NoHash bool

	// Known, if set, answers the digests of files that need not be read, and
	// learns the others.
	Known Digests

	// Filter, if set, is asked for each path but the root whether it is in
	// the tree, and for a directory whether its contents are looked at: for
	// all that is in a directory first, then for what is below that. A
	// directory that is looked at but not kept, and below which something is
	// kept, is in the tree as well: a tree has no gaps.
	Filter func(path string, t Type) (keep, descend bool)
}

// Digests remembers digests of files by path and attributes. It must be safe
// for concurrent use.
type Digests interface {
	// Lookup returns the digest of a file that has not changed.
	Lookup(path string, st *unix.Stat_t) (digest.Digest, bool)

	// Put is called with the digest of a file that was read whole and whose
	// attributes were those of st before and after; seen is the time before.
	Put(path string, st *unix.Stat_t, d digest.Digest, seen time.Time)
}

// ErrRedirected says that a directory uses overlayfs features (redirect_dir,
// metacopy) with which it does not hold all that it stands for.
var ErrRedirected = errors.New("the overlay was mounted with redirect_dir or metacopy; mount it with redirect_dir=off,metacopy=off")

// Scan lists a directory. It opens everything by descriptor and name without
// following links, so nothing outside is ever read, whatever is in there.
// In overlay form sockets are left out, as in every image format. Files are
// hashed by as many goroutines as there are processors, and all have ended
// when Scan returns.
//
// In overlay form whiteouts, opaque marks and the kept extended attributes
// (security.capability, user.*) are read as well; overlayfs' own are not kept.
func Scan(ctx context.Context, dir string, o ScanOptions) (*Tree, error) {
	t, err := scan(ctx, dir, o)
	if err != nil {
		return nil, fmt.Errorf("scan %s: %w", dir, err)
	}
	return t, nil
}

func scan(ctx context.Context, dir string, o ScanOptions) (*Tree, error) {
	// The directory itself is the caller's word; what is in it is not.
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("open", err)
	}
	root := &openDir{fd: fd}
	root.users.Store(1)
	defer root.done()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, os.NewSyscallError("fstat", err)
	}
	group, groupCtx := errgroup.WithContext(ctx)
	group.SetLimit(runtime.NumCPU())
	s := &scanner{o: o, ctx: groupCtx, group: group, links: map[inode]*Entry{}}
	e := s.entry("", &st)
	if err := s.attributes(e, fdXattrs(fd)); err != nil {
		return nil, err
	}
	err = s.dir(root.list(), "")
	s.flush()
	if failed := group.Wait(); failed != nil {
		err = failed // which is what stopped the listing, if that failed too
	}
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		return nil, err
	}
	t := &Tree{Entries: make([]Entry, len(s.entries))}
	for i, e := range s.entries {
		t.Entries[i] = *e
		if e.Hardlink != "" {
			first := s.links[s.inodes[e]]
			t.Entries[i].Digest, t.Entries[i].Size = first.Digest, first.Size
		}
	}
	return t, nil
}

type scanner struct {
	o       ScanOptions
	ctx     context.Context
	group   *errgroup.Group
	entries []*Entry
	links   map[inode]*Entry // first entries of files with several links
	inodes  map[*Entry]inode // of the other entries of those
	slab    []Entry

	pending      []pendingFile
	pendingBytes int64
}

type inode struct{ dev, ino uint64 }

// entry appends an entry with what stat tells.
func (s *scanner) entry(path string, st *unix.Stat_t) *Entry {
	if len(s.slab) == cap(s.slab) {
		s.slab = make([]Entry, 0, min(512, 8+2*cap(s.slab)))
	}
	s.slab = append(s.slab, Entry{
		Path:  path,
		Type:  typeOf(st.Mode),
		Mode:  st.Mode & 0o7777,
		UID:   int(st.Uid),
		GID:   int(st.Gid),
		Mtime: st.Mtim.Sec*1e9 + st.Mtim.Nsec,
	})
	e := &s.slab[len(s.slab)-1]
	s.entries = append(s.entries, e)
	return e
}

func typeOf(mode uint32) Type {
	switch mode & unix.S_IFMT {
	case unix.S_IFDIR:
		return Dir
	case unix.S_IFREG:
		return File
	case unix.S_IFLNK:
		return Symlink
	case unix.S_IFCHR:
		return Char
	case unix.S_IFBLK:
		return Block
	case unix.S_IFIFO:
		return Fifo
	}
	return 0 // a socket
}

// dir goes through what is in a directory, in order.
func (s *scanner) dir(l *dirList, path string) error {
	if s.ctx.Err() != nil {
		return context.Cause(s.ctx)
	}
	if l.err != nil {
		return pathError(l.op, path, l.err)
	}
	kids, err := s.choose(l, path)
	if err != nil {
		return err
	}
	ahead := lookahead{dir: l.dir, kids: kids}
	defer ahead.end()
	for i := range kids {
		ahead.start()
		if err := s.name(l.dir, &kids[i], &ahead); err != nil {
			return err
		}
	}
	return nil
}

// child is a name in a directory that is in the tree, or has something below
// it that may be.
type child struct {
	name, at      string
	t             Type
	st            *unix.Stat_t
	keep, descend bool
}

// choose decides what of a directory is looked at.
func (s *scanner) choose(l *dirList, path string) ([]child, error) {
	kids := make([]child, 0, len(l.names))
	for i, name := range l.names {
		c := child{name: name, at: join(path, name), st: &l.stats[i], keep: true, descend: true}
		if err := l.failed[i]; err != nil {
			if s.o.Plain && err == unix.ENOENT {
				continue // gone since the directory was read
			}
			return nil, pathError("stat", c.at, err)
		}
		switch c.t = typeOf(c.st.Mode); {
		case c.t == 0 && !s.o.Plain:
			continue
		case c.t == 0:
			c.t, c.st.Size = File, 0
			c.st.Mode = c.st.Mode&^unix.S_IFMT | unix.S_IFREG
		}
		if s.o.Filter != nil {
			c.keep, c.descend = s.o.Filter(c.at, c.t)
		}
		if c.keep || c.t == Dir && c.descend {
			kids = append(kids, c)
		}
	}
	return kids, nil
}

func (s *scanner) name(d *openDir, c *child, ahead *lookahead) error {
	before := len(s.entries)
	e := s.entry(c.at, c.st)
	switch c.t {
	case Dir:
		if err := s.subdir(d, c, e, ahead); err != nil {
			return err
		}
		if !c.keep && len(s.entries) == before+1 {
			s.entries = s.entries[:before]
		}
		return nil
	case File:
		return s.file(d, c.name, e, c.st)
	case Char, Block:
		e.Major, e.Minor = unix.Major(c.st.Rdev), unix.Minor(c.st.Rdev)
		if c.t == Char && c.st.Rdev == 0 && !s.o.Plain {
			*e = Entry{Path: c.at, Type: Whiteout}
			return nil
		}
	case Symlink:
		link, err := readlink(d.fd, c.name, int(c.st.Size))
		if err != nil {
			return pathError("read link", c.at, err)
		}
		e.Link = link
	}
	return s.attributes(e, pathXattrs(procPath(d.fd, c.name)))
}

func (s *scanner) subdir(parent *openDir, c *child, e *Entry, ahead *lookahead) error {
	if !c.descend {
		if s.o.Plain {
			return nil
		}
		fd, err := openat(parent.fd, c.name, unix.O_RDONLY|unix.O_DIRECTORY)
		if err != nil {
			return pathError("open", e.Path, err)
		}
		defer unix.Close(fd)
		return s.attributes(e, fdXattrs(fd))
	}
	l := ahead.take()
	defer l.close()
	if l.dir == nil {
		return pathError(l.op, e.Path, l.err)
	}
	if err := s.attributes(e, fdXattrs(l.dir.fd)); err != nil {
		return err
	}
	return s.dir(l, e.Path)
}

// attributes reads what extended attributes tell of an entry.
func (s *scanner) attributes(e *Entry, x xattrs) error {
	if s.o.Plain {
		return nil
	}
	names, err := x.names()
	if err != nil {
		return pathError("list attributes of", e.Path, err)
	}
	for _, name := range names {
		note, overlay := overlayNote(name)
		if overlay && (note == "redirect" || note == "metacopy") {
			return pathError("attribute "+name+" of", e.Path, ErrRedirected)
		}
		if overlay && (note != "opaque" || e.Type != Dir) || !overlay && !kept(name) {
			continue
		}
		value, ok, err := x.value(name)
		switch {
		case err != nil:
			return pathError("read attribute "+name+" of", e.Path, err)
		case overlay:
			e.Opaque = e.Opaque || value == "y"
		case ok:
			if e.Xattrs == nil {
				e.Xattrs = map[string]string{}
			}
			e.Xattrs[name] = value
		}
	}
	return nil
}

func readlink(fd int, name string, size int) (string, error) {
	for size = max(size, 64); ; size *= 2 {
		buf := make([]byte, size+1)
		n, err := unix.Readlinkat(fd, name, buf)
		if err != nil {
			return "", err
		}
		if n < len(buf) {
			return string(buf[:n]), nil
		}
	}
}

// procPath names a file in an open directory for calls that have no form with
// a descriptor; the last component is not followed by those used here.
func procPath(fd int, name string) string {
	return "/proc/self/fd/" + strconv.Itoa(fd) + "/" + name
}

func openat(at int, name string, flags int) (int, error) {
	var fd int
	err := retry(func() (err error) {
		fd, err = unix.Openat(at, name, flags|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		return err
	})
	return fd, err
}

// retry repeats a call that a signal interrupted.
func retry(f func() error) error {
	for {
		if err := f(); err != unix.EINTR {
			return err
		}
	}
}

func pathError(op, path string, err error) error {
	if path == "" {
		path = "."
	}
	return &fs.PathError{Op: op, Path: path, Err: err}
}
