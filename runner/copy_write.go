package runner

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
	"kiln.build/cache/archive"
	"kiln.build/cache/tree"
)

// tree is the listing of the layer that is planned. There is nothing more to be
// planned then: the entries are the listing's.
func (p *plan) tree() (*tree.Tree, error) {
	t := &tree.Tree{Entries: p.entries}
	p.entries = nil
	t.Sort()
	dropDanglingLinks(t)
	return t, t.Check()
}

// open opens the source of a planned file.
func (p *plan) open(e *tree.Entry) (io.ReadCloser, error) {
	o := p.picked[p.at[e.Path]]
	return o.sel.from.open(o.from)
}

// source is what a planned file is called where it comes from.
func (p *plan) source(e *tree.Entry) string { return sourceOf(p.picked[p.at[e.Path]].from) }

// all makes what is planned below dir, which is empty, and returns its listing.
func (p *plan) all(ctx context.Context, dir string) (*tree.Tree, error) {
	t, err := p.tree()
	if err == nil {
		err = p.write(ctx, dir, t, nil, nil)
	}
	return t, err
}

// write makes the planned tree t below dir, which is empty. Files that the
// last layer of its kind has are linked from there. What is read is fed.
func (p *plan) write(ctx context.Context, dir string, t *tree.Tree, last *lastLayer, feed *Packing) error {
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(2 * runtime.NumCPU())
	var err error
	for i := 0; i < len(t.Entries) && err == nil; {
		if n := filesOf(t.Entries[i:]); n > 0 {
			files := t.Entries[i : i+n]
			to := feed.next(files)
			g.Go(func() error { return p.files(gctx, dir, files, last, to) })
			i += n
			continue
		}
		err = makeNode(filepath.Join(dir, t.Entries[i].Path), &t.Entries[i])
		i++
	}
	if err = errors.Join(err, g.Wait()); err != nil {
		return err
	}
	for i := range t.Entries {
		if e := &t.Entries[i]; e.Type == tree.File && e.Hardlink != "" {
			if err := os.Link(filepath.Join(dir, e.Hardlink), filepath.Join(dir, e.Path)); err != nil {
				return err
			}
		}
	}
	// Last, since what is made in a directory changes its time.
	for i := len(t.Entries) - 1; i >= 0; i-- {
		if e := &t.Entries[i]; e.Type == tree.Dir {
			if err := setTime(filepath.Join(dir, e.Path), e.Mtime); err != nil {
				return err
			}
		}
	}
	return nil
}

// filesOf is how many files a list begins with that one goroutine is to make:
// some of one directory, in which the kernel lets only one at a time make
// anything, and no more than a batch of a feed.
func filesOf(entries []tree.Entry) int {
	isFile := func(e *tree.Entry) bool { return e.Type == tree.File && e.Hardlink == "" }
	n, size := 0, int64(0)
	for n < min(len(entries), archive.BatchFiles) && isFile(&entries[n]) && parent(entries[n].Path) == parent(entries[0].Path) {
		if archive.Feeds(&entries[n]) {
			size += entries[n].Size
		}
		if n > 0 && size > archive.BatchBytes {
			break
		}
		n++
	}
	return n
}

// files makes files of one directory, and hands on the contents of small ones
// unless to is nil.
func (p *plan) files(ctx context.Context, dir string, files []tree.Entry, last *lastLayer, to *archive.Batch) error {
	if to != nil {
		defer to.Done()
	}
	in := parent(files[0].Path)
	links := last.in(in, filepath.Join(dir, in))
	defer links.close()
	buf := buffers.Get().(*[]byte)
	defer buffers.Put(buf)
	for i := range files {
		if err := ctx.Err(); err != nil {
			return err
		}
		e := &files[i]
		fed := to != nil && archive.Feeds(e)
		if !fed && links.link(e) {
			continue
		}
		at := filepath.Join(dir, e.Path)
		if e.Size > int64(len(*buf)) && !fed {
			if err := p.copyLarge(ctx, at, e, *buf); err != nil {
				return err
			}
			continue
		}
		content, err := (*buf)[:0], error(nil)
		if fed {
			content = to.Data
		}
		start := len(content)
		content, err = p.read(content, e)
		if fed {
			to.Data = content
			to.Next(err)
		}
		if err == nil && !(fed && links.link(e)) {
			err = p.writeFile(at, e, content[start:])
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// dropDanglingLinks makes hard links whose first file is not in the tree
// files of their own, the next one taking the first one's place.
func dropDanglingLinks(t *tree.Tree) {
	first := map[string]string{}
	for i := range t.Entries {
		e := &t.Entries[i]
		if e.Hardlink == "" {
			continue
		}
		if to, ok := t.Lookup(e.Hardlink); ok && to.Type == tree.File && to.Hardlink == "" && tree.Compare(e.Hardlink, e.Path) < 0 && to.Digest == e.Digest && to.Mode == e.Mode {
			continue
		}
		if head, ok := first[e.Hardlink]; ok {
			e.Hardlink = head
			continue
		}
		first[e.Hardlink] = e.Path
		e.Hardlink = ""
	}
}

// makeNode makes anything but the content of a file.
func makeNode(at string, e *tree.Entry) error {
	var err error
	switch e.Type {
	case tree.Dir:
		if e.Path != "" {
			err = os.Mkdir(at, 0o700)
		}
	case tree.Symlink:
		err = os.Symlink(e.Link, at)
	case tree.Fifo:
		err = unix.Mkfifo(at, 0o600)
	case tree.Char:
		err = unix.Mknod(at, unix.S_IFCHR|0o600, int(unix.Mkdev(e.Major, e.Minor)))
	case tree.Block:
		err = unix.Mknod(at, unix.S_IFBLK|0o600, int(unix.Mkdev(e.Major, e.Minor)))
	case tree.File: // a hard link: made once the files are there
		return nil
	}
	if err != nil {
		return fmt.Errorf("make /%s: %w", e.Path, err)
	}
	return setAttributes(at, e)
}

// setAttributes sets owner, mode, extended attributes and time, in the order
// in which the kernel does not undo them.
func setAttributes(at string, e *tree.Entry) error {
	if err := os.Lchown(at, e.UID, e.GID); err != nil {
		return err
	}
	if e.Type != tree.Symlink {
		if err := unix.Chmod(at, e.Mode); err != nil {
			return &os.PathError{Op: "chmod", Path: at, Err: err}
		}
	}
	for name, value := range e.Xattrs {
		if err := unix.Lsetxattr(at, name, []byte(value), 0); err != nil && !errors.Is(err, unix.ENOTSUP) {
			return &os.PathError{Op: "set " + name + " of", Path: at, Err: err}
		}
	}
	return setTime(at, e.Mtime)
}

func setTime(at string, ns int64) error {
	ts := unix.NsecToTimespec(ns)
	if err := unix.UtimesNanoAt(unix.AT_FDCWD, at, []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return &os.PathError{Op: "set time of", Path: at, Err: err}
	}
	return nil
}

// buffers are reused: a copy is mostly of small files.
var buffers = sync.Pool{New: func() any { b := make([]byte, 128<<10); return &b }}

// noContent is the digest of empty files, which are not opened: they may be
// sockets.
var noContent = digest.FromBytes(nil)

// changedMeanwhile is the error of a source that is not what was selected.
func (p *plan) changedMeanwhile(e *tree.Entry) error {
	return fmt.Errorf("%q changed while the build was running: run it again", "/"+p.source(e))
}

// read appends the content of a small file, and checks that it is what was
// selected.
func (p *plan) read(buf []byte, e *tree.Entry) ([]byte, error) {
	if e.Digest == noContent {
		return buf, nil
	}
	src, err := p.open(e)
	if err != nil {
		return buf, err
	}
	defer src.Close()
	start := len(buf)
	end := start + int(e.Size)
	buf = slices.Grow(buf, int(e.Size)+1)[:end+1] // one more byte would show that the file is longer
	for n := start; n < end; {
		m, err := src.Read(buf[n:])
		if n += m; n > end || err == io.EOF && n < end {
			return buf[:start], p.changedMeanwhile(e)
		}
		if err != nil && err != io.EOF {
			return buf[:start], fmt.Errorf("copy %q: %w", "/"+p.source(e), err)
		}
	}
	if !tree.Holds(e, buf[start:end]) {
		return buf[:start], p.changedMeanwhile(e)
	}
	return buf[:end], nil
}

// create makes a file, which must not be there.
func create(at string, e *tree.Entry) (*rawFile, error) {
	return openRaw(at, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW, e.Mode&0o777)
}

// writeFile makes a file of a content.
func (p *plan) writeFile(at string, e *tree.Entry, content []byte) error {
	dst, err := create(at, e)
	if err != nil {
		return err
	}
	_, err = dst.Write(content)
	if err == nil {
		err = dst.setAttributes(e.UID, e.GID, e.Mode, e.Xattrs, e.Mtime)
	}
	if err := errors.Join(err, dst.Close()); err != nil {
		return fmt.Errorf("copy %q: %w", "/"+p.source(e), err)
	}
	return nil
}

// copyLarge copies a file through a buffer and checks on the way that its
// content is what was selected.
func (p *plan) copyLarge(ctx context.Context, at string, e *tree.Entry, buf []byte) error {
	src, err := p.open(e)
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := create(at, e)
	if err != nil {
		return err
	}
	h := sha256.New()
	for err == nil {
		var n int
		n, err = src.Read(buf)
		h.Write(buf[:n])
		if _, werr := dst.Write(buf[:n]); werr != nil {
			err = werr
		} else if err == nil {
			err = ctx.Err()
		}
	}
	if err == io.EOF {
		err = dst.setAttributes(e.UID, e.GID, e.Mode, e.Xattrs, e.Mtime)
	}
	if err := errors.Join(err, dst.Close()); err != nil {
		return fmt.Errorf("copy %q: %w", "/"+p.source(e), err)
	}
	if digest.NewDigest(digest.SHA256, h) != e.Digest {
		return p.changedMeanwhile(e)
	}
	return nil
}
