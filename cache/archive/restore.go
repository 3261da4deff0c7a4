package archive

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"runtime"
	"strings"
	"sync"

	"kiln.build/cache/tree"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// Restore makes the files of a layer, whose listing is t, from its archive as
// [Pack] writes it, compressed or not. Contents are checked against the
// listing, all else is as that says, with times that an archive rounds. dir is
// empty. An error that is the archive's is a [*CorruptError]; after one dir
// holds anything. Without root's privileges owners, capabilities and devices
// that the kernel refuses are left out.
func Restore(ctx context.Context, r io.Reader, dir string, t *tree.Tree) error {
	plain, err := Decompress(ctx, r)
	if err != nil {
		return unreadable(ctx, "", err)
	}
	defer plain.Close()
	stream := newReadAhead(plain, false)
	defer stream.Close()
	a := &tarContents{ctx: ctx, tr: tar.NewReader(stream)}
	if err := restore(ctx, dir, t, a, !privileged()); err != nil {
		return err
	}
	if hdr, err := a.tr.Next(); err == nil {
		return &CorruptError{Path: hdr.Name, Reason: "the archive has more than the listing"}
	} else if err != io.EOF {
		return unreadable(ctx, "", err)
	}
	return nil
}

// unreadable is the error of an archive that could not be read.
func unreadable(ctx context.Context, path string, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if errors.Is(err, unix.EIO) { // the disk's fault: it may be well
		return err
	}
	return &CorruptError{Path: path, Reason: err.Error()}
}

// contents are those of a layer's files, in the order of its listing.
type contents interface {
	// next is called for each entry but the root, and returns the content of
	// one that is a file and no further hard link.
	next(e *tree.Entry) (io.Reader, error)

	// broken is the error of a content that could not be read.
	broken(e *tree.Entry, err error) error
}

// tarContents are contents in an archive.
type tarContents struct {
	ctx context.Context
	tr  *tar.Reader
}

func (a *tarContents) next(e *tree.Entry) (io.Reader, error) {
	hdr, err := a.tr.Next()
	if err == io.EOF {
		return nil, &CorruptError{Path: e.Path, Reason: "the archive ends before it"}
	}
	if err != nil {
		return nil, unreadable(a.ctx, e.Path, err)
	}
	if strings.TrimSuffix(hdr.Name, "/") != e.Path {
		return nil, &CorruptError{Path: e.Path, Reason: fmt.Sprintf("the archive has %q in its place", hdr.Name)}
	}
	content := e.Type == tree.File && e.Hardlink == ""
	if content != (hdr.Typeflag == tar.TypeReg) || content && hdr.Size != e.Size {
		return nil, &CorruptError{Path: e.Path, Reason: fmt.Sprintf("the archive has one of type %q and %d bytes", hdr.Typeflag, hdr.Size)}
	}
	return a.tr, nil
}

func (a *tarContents) broken(e *tree.Entry, err error) error { return unreadable(a.ctx, e.Path, err) }

// restore makes the files of a listing below a directory, which is empty. It
// reads contents in one goroutine, and makes small files in others.
func restore(ctx context.Context, dir string, t *tree.Tree, from contents, loose bool) error {
	d, err := openDisk(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	d.loose = loose
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(2 * runtime.NumCPU())
	w := &restorer{ctx: ctx, dir: dir, disk: d, from: from, group: g}
	err = w.entries(t)
	if err == nil {
		w.flush()
	}
	if failed := g.Wait(); failed != nil && (err == nil || errors.Is(err, context.Canceled)) {
		err = failed // which is what stopped the others
	}
	if err != nil {
		return err
	}
	// Files have several names once they are there, and directories their
	// attributes inside out, since what is made in one changes its time.
	for _, e := range w.links {
		if err := d.link(e.Hardlink, e.Path); err != nil {
			return err
		}
	}
	for i := len(t.Entries) - 1; i >= 0; i-- {
		if e := &t.Entries[i]; e.Type == tree.Dir {
			if err := d.setAttributes(e.Path, attributesOf(e)); err != nil {
				return err
			}
		}
	}
	return nil
}

type restorer struct {
	ctx   context.Context
	dir   string
	disk  *disk
	from  contents
	group *errgroup.Group
	links []*tree.Entry

	batch *Batch    // small files that are to be made
	spare sync.Pool // of *Batch
}

func (w *restorer) entries(t *tree.Tree) error {
	for i := range t.Entries {
		if w.ctx.Err() != nil {
			return context.Cause(w.ctx)
		}
		e := &t.Entries[i]
		if e.Path == "" {
			continue
		}
		content, err := w.from.next(e)
		switch {
		case err != nil:
		case e.Type == tree.File && e.Hardlink != "":
			w.links = append(w.links, e)
		case Feeds(e):
			err = w.small(e, content)
		case e.Type == tree.File:
			err = w.large(e, content)
		default:
			err = w.disk.restore(e)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// restore makes an entry that is no file, with its attributes unless it is a
// directory.
func (d *disk) restore(e *tree.Entry) error {
	var err error
	switch e.Type {
	case tree.Dir:
		return d.mkdir(e.Path)
	case tree.Symlink:
		err = d.symlink(e.Link, e.Path)
	case tree.Fifo:
		err = d.mknod(e.Path, unix.S_IFIFO|0o600, 0)
	case tree.Char:
		err = d.mknod(e.Path, unix.S_IFCHR|0o600, unix.Mkdev(e.Major, e.Minor))
	case tree.Block:
		err = d.mknod(e.Path, unix.S_IFBLK|0o600, unix.Mkdev(e.Major, e.Minor))
	case tree.Whiteout:
		return d.mknod(e.Path, unix.S_IFCHR, 0)
	default:
		err = fmt.Errorf("%q: %s", e.Path, e.Type)
	}
	if d.loose && errors.Is(err, unix.EPERM) && (e.Type == tree.Char || e.Type == tree.Block) {
		return nil // it is in the listing alone
	}
	if err != nil {
		return err
	}
	return d.setAttributes(e.Path, attributesOf(e))
}

// small reads a file into the batch.
func (w *restorer) small(e *tree.Entry, content io.Reader) error {
	if w.batch == nil {
		w.batch, _ = w.spare.Get().(*Batch)
		if w.batch == nil {
			w.batch = &Batch{Data: make([]byte, 0, BatchBytes+SmallFile)}
		}
	}
	b := w.batch
	start := len(b.Data)
	b.Data = b.Data[:start+int(e.Size)]
	if _, err := io.ReadFull(content, b.Data[start:]); err != nil {
		return w.from.broken(e, err)
	}
	b.files = append(b.files, e)
	if b.Next(nil); len(b.files) == BatchFiles || len(b.Data) >= BatchBytes {
		w.flush()
	}
	return nil
}

// flush has the batch's files made.
func (w *restorer) flush() {
	b := w.batch
	if b == nil {
		return
	}
	w.batch = nil
	w.group.Go(func() error {
		d, err := openDisk(w.dir)
		if err != nil {
			return err
		}
		defer d.Close()
		d.loose = w.disk.loose
		defer func() {
			clear(b.files)
			*b = Batch{files: b.files[:0], ends: b.ends[:0], errs: b.errs[:0], Data: b.Data[:0]}
			w.spare.Put(b)
		}()
		start := 0
		for i, e := range b.files {
			if w.ctx.Err() != nil {
				return context.Cause(w.ctx)
			}
			data := b.Data[start:b.ends[i]]
			start = b.ends[i]
			if !tree.Holds(e, data) {
				return notAsListed(e)
			}
			if err := d.restoreFile(e, func(fd int) error { return writeAll(fd, data) }); err != nil {
				return err
			}
		}
		return nil
	})
}

// large makes a file that is not to be held in memory.
func (w *restorer) large(e *tree.Entry, content io.Reader) error {
	return w.disk.restoreFile(e, func(fd int) error {
		h := sha256.New()
		buf := make([]byte, min(e.Size, 256<<10))
		for left := e.Size; left > 0; {
			if w.ctx.Err() != nil {
				return context.Cause(w.ctx)
			}
			b := buf[:min(left, int64(len(buf)))]
			if _, err := io.ReadFull(content, b); err != nil {
				return w.from.broken(e, err)
			}
			h.Write(b)
			if err := writeAll(fd, b); err != nil {
				return err
			}
			left -= int64(len(b))
		}
		if digest.NewDigest(digest.SHA256, h) != e.Digest {
			return notAsListed(e)
		}
		return nil
	})
}

func notAsListed(e *tree.Entry) error {
	return &CorruptError{Path: e.Path, Reason: "it is not what the layer's listing says"}
}

// restoreFile makes a file, of a content that write brings, with its attributes.
func (d *disk) restoreFile(e *tree.Entry, write func(fd int) error) error {
	fd, err := d.create(e.Path)
	if err != nil {
		return err
	}
	err = write(fd)
	if err == nil {
		err = d.setOpen(fd, e)
	}
	return errors.Join(err, os.NewSyscallError("close", unix.Close(fd)))
}

// setOpen is setAttributes of an open file. Owners that are as they should be
// are not set: that goes into the file system's journal.
func (d *disk) setOpen(fd int, e *tree.Entry) error {
	if len(e.Xattrs) > 0 {
		return d.setAttributes(e.Path, attributesOf(e))
	}
	failed := func(op string, err error) error {
		return &os.PathError{Op: op, Path: path.Clean("/" + e.Path), Err: err}
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return failed("stat", err)
	}
	if int(st.Uid) != e.UID || int(st.Gid) != e.GID {
		if err := unix.Fchown(fd, e.UID, e.GID); err != nil && !d.tolerates(err) {
			return failed("chown", err)
		}
	}
	if err := unix.Fchmod(fd, e.Mode); err != nil && !(e.Mode&^0o777 != 0 && d.tolerates(err)) {
		return failed("chmod", err)
	}
	ts := unix.NsecToTimespec(e.Mtime)
	if err := unix.UtimesNanoAt(fd, "", []unix.Timespec{ts, ts}, unix.AT_EMPTY_PATH); err != nil {
		return d.setAttributes(e.Path, attributesOf(e)) // before Linux 5.8
	}
	return nil
}
