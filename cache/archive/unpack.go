package archive

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math"
	"path"
	"strings"
	"time"

	"kiln.build/cache/tree"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// UnpackOptions say what an archive means.
type UnpackOptions struct {
	// Layer reads an image layer: names that start with ".wh." delete, and
	// become whiteouts and opaque directories as overlayfs has them. Without
	// it they are ordinary files, as they are for ADD, which also leaves the
	// attributes of the top directory alone.
	Layer bool

	// Under is a relative path below the directory for all entries. Neither
	// their names nor links below it can lead out of it; missing directories
	// are made. The tree's paths start with it.
	Under string

	// Onto tells what the directory holds; nil says that it is empty. The
	// tree that Unpack returns includes it.
	Onto *tree.Tree

	// Owner, if set, owns all entries, whatever the archive says.
	Owner *Owner

	// DiffID, if set, receives the digest of the uncompressed stream.
	DiffID *digest.Digest

	// MaxBytes bounds what is written, each entry counting 512 bytes besides
	// its content. Zero does not bound.
	MaxBytes int64

	// Lower is the stack that the layer goes onto, and LowerDirs the
	// directories of its layers, bottom first. Symbolic links below are
	// followed on the way to an entry, directories that the archive implies
	// without listing them are made like those below, and hard links to files
	// below become copies. Both may be nil.
	Lower     *tree.Index
	LowerDirs []string

	// Implied is the time of directories that are only implied and not
	// below, in nanoseconds since 1970.
	Implied int64
}

// Owner is a user and group.
type Owner struct{ UID, GID int }

// Unpack writes the tar stream r, which may be compressed with gzip, zstd,
// bzip2 or xz, below dir and returns the tree of all that dir holds then.
// Contents, modes, owners, times (to the nanosecond), device nodes, hard
// links and the extended attributes security.capability and user.* are kept.
//
// Of several entries with one name the last wins. Directories that have no
// entry get mode 0755, owner 0:0 and the time Implied. Without root's privileges
// owners, capabilities and device nodes that the kernel refuses are in the
// tree only. Names are taken relative to dir: neither "..", nor absolute
// names, nor links, nor anything else in the archive leads outside.
//
// The stream is read to its end, in a goroutine that has ended when Unpack
// returns: a read that blocks must end with ctx. After an error dir holds
// anything.
func Unpack(ctx context.Context, r io.Reader, dir string, o UnpackOptions) (*tree.Tree, error) {
	plain, err := Decompress(ctx, r)
	if err != nil {
		return nil, fmt.Errorf("unpack archive: %w", err)
	}
	defer plain.Close()
	d, err := openDisk(dir)
	if err != nil {
		return nil, fmt.Errorf("unpack archive: %w", err)
	}
	defer d.Close()
	u := &unpacker{
		o:      o,
		disk:   d,
		root:   &node{attr: &tree.Entry{Type: tree.Dir, Mode: 0o755}},
		linked: map[*tree.Entry]bool{},
		buf:    make([]byte, 256<<10),
	}
	stream := newReadAhead(plain, o.DiffID != nil)
	t, err := u.unpack(ctx, stream)
	stream.Close()
	if err != nil {
		return nil, fmt.Errorf("unpack archive: %w", err)
	}
	if o.DiffID != nil {
		*o.DiffID = stream.Digest()
	}
	return t, nil
}

type unpacker struct {
	o       UnpackOptions
	disk    *disk
	root    *node
	top     *node // what names and links cannot lead out of: the directory at Under
	rootSet bool  // the root has attributes of its own
	linked  map[*tree.Entry]bool
	written int64
	buf     []byte

	// The directory used last; nil after anything on the way to it may have
	// changed.
	lastDir string
	last    *node
}

func (u *unpacker) unpack(ctx context.Context, stream *readAhead) (*tree.Tree, error) {
	u.top = u.root
	if u.o.Onto != nil {
		if err := u.load(u.o.Onto); err != nil {
			return nil, err
		}
	}
	top, err := u.dir(clean(u.o.Under))
	if err != nil {
		return nil, err
	}
	u.top, u.last = top, nil
	tr := tar.NewReader(stream)
	for {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		hdr, err := tr.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return nil, err
		}
		if err := u.entry(ctx, hdr, tr); err != nil {
			return nil, fmt.Errorf("entry %q: %w", hdr.Name, err)
		}
	}
	// Padding after the end belongs to the stream, and a reader that
	// verifies its source does so at the very end.
	if err := stream.Drain(); err != nil {
		return nil, err
	}
	return u.finish()
}

// entry unpacks one entry.
func (u *unpacker) entry(ctx context.Context, hdr *tar.Header, r io.Reader) error {
	switch hdr.Typeflag {
	case tar.TypeXGlobalHeader, 'V': // comments of git and of GNU tar -V
		return nil
	}
	if err := u.count(512); err != nil {
		return err
	}
	if strings.ContainsRune(hdr.Name, 0) {
		return errors.New("the name holds a zero byte")
	}
	name := clean(hdr.Name)
	if name == "" {
		return u.rootEntry(hdr)
	}
	dir, base := path.Split(name)
	parent, err := u.dir(strings.TrimSuffix(dir, "/"))
	if err != nil {
		return err
	}
	if u.o.Layer && strings.HasPrefix(base, whiteoutPrefix) {
		return u.whiteout(parent, base)
	}
	if hdr.Typeflag == tar.TypeLink {
		return u.hardLink(ctx, parent, base, hdr)
	}
	attr, err := u.attr(hdr)
	if err != nil {
		return err
	}
	switch attr.Type {
	case tree.Dir:
		_, err := u.mkdir(parent, base, attr)
		return err
	case tree.File:
		return u.file(ctx, parent, base, attr, r)
	default:
		return u.special(parent, base, attr)
	}
}

// count takes n bytes from what the caller allows.
func (u *unpacker) count(n int64) error {
	u.written += n
	if u.o.MaxBytes > 0 && u.written > u.o.MaxBytes {
		return fmt.Errorf("the archive unpacks to more than %d bytes", u.o.MaxBytes)
	}
	return nil
}

func (u *unpacker) rootEntry(hdr *tar.Header) error {
	if hdr.Typeflag != tar.TypeDir {
		return errors.New("the top of an archive must be a directory")
	}
	if !u.o.Layer {
		return nil
	}
	attr, err := u.attr(hdr)
	if err != nil {
		return err
	}
	attr.Opaque = u.root.attr.Opaque
	u.root.attr, u.rootSet = attr, true
	return nil
}

// attr translates a header. Hard links are left out.
func (u *unpacker) attr(hdr *tar.Header) (*tree.Entry, error) {
	e := &tree.Entry{
		Mode:  uint32(hdr.Mode) & 0o7777,
		UID:   hdr.Uid,
		GID:   hdr.Gid,
		Mtime: nanoseconds(hdr.ModTime),
	}
	if u.o.Owner != nil {
		e.UID, e.GID = u.o.Owner.UID, u.o.Owner.GID
	}
	// The last id means "leave as it is" to chown(2).
	if e.UID < 0 || e.GID < 0 || int64(e.UID) >= math.MaxUint32 || int64(e.GID) >= math.MaxUint32 {
		return nil, fmt.Errorf("owner %d:%d is out of range", e.UID, e.GID)
	}
	switch hdr.Typeflag {
	case tar.TypeReg, 0, tar.TypeCont, tar.TypeGNUSparse:
		e.Type, e.Size = tree.File, hdr.Size
	case tar.TypeDir, 'D': // D: GNU tar --incremental
		e.Type = tree.Dir
	case tar.TypeSymlink:
		e.Type, e.Link, e.Mode = tree.Symlink, hdr.Linkname, 0o777
	case tar.TypeFifo:
		e.Type = tree.Fifo
	case tar.TypeChar, tar.TypeBlock:
		e.Type = tree.Char
		if hdr.Typeflag == tar.TypeBlock {
			e.Type = tree.Block
		}
		if hdr.Devmajor < 0 || hdr.Devmajor >= 1<<12 || hdr.Devminor < 0 || hdr.Devminor >= 1<<20 {
			return nil, fmt.Errorf("device number %d:%d is out of range", hdr.Devmajor, hdr.Devminor)
		}
		e.Major, e.Minor = uint32(hdr.Devmajor), uint32(hdr.Devminor)
		if e.Type == tree.Char && e.Major == 0 && e.Minor == 0 {
			// On disk this is how overlayfs marks a deleted file.
			if !u.o.Layer {
				return nil, errors.New("character device 0:0 is a mark of overlayfs and no device")
			}
			*e = tree.Entry{Type: tree.Whiteout}
		}
	default:
		return nil, fmt.Errorf("type %q is not supported", hdr.Typeflag)
	}
	for k, v := range hdr.PAXRecords {
		if name, ok := strings.CutPrefix(k, xattrPrefix); ok && keepXattr(name, e.Type) {
			if e.Xattrs == nil {
				e.Xattrs = map[string]string{}
			}
			e.Xattrs[name] = v
		}
	}
	return e, nil
}

// keepXattr reports whether an archive may set an extended attribute. Those
// of overlayfs would let it redirect or reveal files of other layers.
func keepXattr(name string, t tree.Type) bool {
	switch {
	case t != tree.File && t != tree.Dir:
		return false // user.* is for these alone (xattr(7))
	case name == "security.capability":
		return t == tree.File
	}
	return strings.HasPrefix(name, "user.") && !strings.HasPrefix(name, "user.overlay.")
}

// nanoseconds since 1970 up to 2262, the times that a tree can hold.
func nanoseconds(t time.Time) int64 {
	switch {
	case t.Before(time.Unix(0, 0)):
		return 0
	case t.After(time.Unix(0, math.MaxInt64)):
		return math.MaxInt64
	}
	return t.UnixNano()
}

// replace forgets what is at a name, before something else is put there. On
// disk it is removed when the name turns out to be taken.
func (u *unpacker) replace(parent *node, base string) string {
	if old := parent.kids[base]; old.is(tree.Dir) || old.is(tree.Symlink) {
		u.last = nil
	}
	delete(parent.kids, base)
	return path.Join(parent.path, base)
}

func (u *unpacker) file(ctx context.Context, parent *node, base string, attr *tree.Entry, r io.Reader) error {
	p := u.replace(parent, base)
	fd, err := u.disk.create(p)
	if err != nil {
		return err
	}
	attr.Digest, err = u.content(ctx, fd, r, attr.Size)
	if attr.Size >= flushFile {
		// The disk may begin: a sync follows. What this cannot do, that does.
		_ = unix.SyncFileRange(fd, 0, attr.Size, unix.SYNC_FILE_RANGE_WRITE)
	}
	if err = errors.Join(err, unix.Close(fd)); err != nil {
		return err
	}
	parent.add(base, attr)
	return u.disk.setAttributes(p, attributesOf(attr))
}

// flushFile is the size of files from which it pays to set the disk to work
// on each.
const flushFile = 128 << 10

// content copies size bytes into a file.
func (u *unpacker) content(ctx context.Context, fd int, r io.Reader, size int64) (digest.Digest, error) {
	if err := u.count(size); err != nil {
		return "", err
	}
	h := sha256.New()
	for left := size; left > 0; {
		if ctx.Err() != nil {
			return "", context.Cause(ctx)
		}
		b := u.buf[:min(left, int64(len(u.buf)))]
		if _, err := io.ReadFull(r, b); err != nil {
			if err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return "", err
		}
		h.Write(b)
		if err := writeAll(fd, b); err != nil {
			return "", err
		}
		left -= int64(len(b))
	}
	return digest.NewDigest(digest.SHA256, h), nil
}

func writeAll(fd int, b []byte) error {
	for len(b) > 0 {
		n, err := unix.Write(fd, b)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return fmt.Errorf("write: %w", err)
		}
		b = b[n:]
	}
	return nil
}

// special makes what is neither directory nor regular file.
func (u *unpacker) special(parent *node, base string, attr *tree.Entry) error {
	p := u.replace(parent, base)
	var err error
	switch attr.Type {
	case tree.Symlink:
		err = u.disk.symlink(attr.Link, p)
		u.last = nil
	case tree.Fifo:
		err = u.disk.mknod(p, unix.S_IFIFO|0o600, 0)
	case tree.Char:
		err = u.disk.mknod(p, unix.S_IFCHR|0o600, unix.Mkdev(attr.Major, attr.Minor))
	case tree.Block:
		err = u.disk.mknod(p, unix.S_IFBLK|0o600, unix.Mkdev(attr.Major, attr.Minor))
	case tree.Whiteout:
		// Anyone may make this one (mknod(2), Linux 5.8).
		err = u.disk.mknod(p, unix.S_IFCHR, 0)
	}
	refused := (attr.Type == tree.Char || attr.Type == tree.Block) && u.disk.loose && errors.Is(err, unix.EPERM)
	if err != nil && !refused {
		return err
	}
	parent.add(base, attr)
	if refused || attr.Type == tree.Whiteout {
		return nil
	}
	return u.disk.setAttributes(p, attributesOf(attr))
}

// whiteout takes a name that starts with ".wh.". It hides what lower layers
// have, never what this one has, wherever in the stream that comes.
func (u *unpacker) whiteout(parent *node, base string) error {
	if base == whiteoutOpaque {
		parent.attr.Opaque = true
		if parent == u.root {
			u.rootSet = true
		}
		return nil
	}
	if strings.HasPrefix(base, whiteoutMeta) {
		return nil
	}
	name := strings.TrimPrefix(base, whiteoutPrefix)
	if name == "" || name == "." || name == ".." {
		return errors.New("the name of a deleted file is missing")
	}
	switch old := parent.kids[name]; {
	case old == nil:
		return u.special(parent, name, &tree.Entry{Type: tree.Whiteout})
	case old.is(tree.Dir):
		old.attr.Opaque = true
	}
	return nil
}

// hardLink makes another name of a file that the archive has.
func (u *unpacker) hardLink(ctx context.Context, parent *node, base string, hdr *tar.Header) error {
	target := clean(hdr.Linkname)
	old := u.find(target)
	if old == nil {
		return u.linkBelow(ctx, parent, base, path.Join(u.top.path, target), hdr)
	}
	if old.is(tree.Dir) || old.is(tree.Whiteout) {
		return fmt.Errorf("hard link to %q: not a file", hdr.Linkname)
	}
	p := path.Join(parent.path, base)
	if p != old.path {
		u.replace(parent, base)
		if err := u.disk.link(old.path, p); err != nil && !u.notOnDisk(old, err) {
			return err
		}
		parent.add(base, old.attr)
		u.linked[old.attr] = true
	}
	return u.linkAttributes(p, old.attr, hdr)
}

// notOnDisk reports whether a link failed for a device node that we had no
// permission to make.
func (u *unpacker) notOnDisk(n *node, err error) bool {
	return (n.is(tree.Char) || n.is(tree.Block)) && u.disk.loose && errors.Is(err, unix.ENOENT)
}

// linkAttributes applies the attributes in a hard link's header, which are
// those of the file and of all its names.
func (u *unpacker) linkAttributes(p string, attr *tree.Entry, hdr *tar.Header) error {
	plain := *hdr
	plain.Typeflag = tar.TypeReg
	own, err := u.attr(&plain)
	if err != nil {
		return err
	}
	if attr.Type != tree.File {
		return nil
	}
	attr.Mode, attr.UID, attr.GID, attr.Mtime = own.Mode, own.UID, own.GID, own.Mtime
	if own.Xattrs != nil {
		attr.Xattrs = own.Xattrs
	}
	return u.disk.setAttributes(p, attributesOf(attr))
}

// linkBelow copies the file of a lower layer that a hard link names: the
// names cannot share an inode across layers.
func (u *unpacker) linkBelow(ctx context.Context, parent *node, base, target string, hdr *tar.Header) error {
	missing := fmt.Errorf("hard link to %q, which is not in the archive", hdr.Linkname)
	if u.o.Lower == nil {
		return missing
	}
	_, e, layer, err := u.o.Lower.Resolve(target, false)
	if err != nil || e.Type != tree.File || layer >= len(u.o.LowerDirs) {
		return missing
	}
	lower, err := openDisk(u.o.LowerDirs[layer])
	if err != nil {
		return err
	}
	defer lower.Close()
	f, err := openFile(lower, e.Path)
	if err != nil {
		return err
	}
	defer f.Close()
	attr := e
	attr.Path, attr.Hardlink, attr.Source = "", "", ""
	if err := u.file(ctx, parent, base, &attr, f); err != nil {
		return err
	}
	if attr.Digest != e.Digest {
		return &CorruptError{Path: e.Path, Reason: "its bytes have the digest " + attr.Digest.String()}
	}
	return u.linkAttributes(path.Join(parent.path, base), &attr, hdr)
}
