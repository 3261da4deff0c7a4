package archive

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"path"
	"strings"
	"time"

	"kiln.build/cache/tree"

	"github.com/opencontainers/go-digest"
)

// PackOptions say how a layer is written.
type PackOptions struct {
	// Lower is the stack below the layer. With it, whiteouts are written only
	// for paths that it has, and an opaque directory as one whiteout for each
	// thing that it hides, as BuildKit does. Without it whiteouts are written
	// as they are, and opaque directories with the marker ".wh..wh..opq".
	Lower *tree.Index

	// Epoch, if set, replaces all later times.
	Epoch *time.Time

	// Layer is named in errors.
	Layer digest.Digest

	// Feed, if set, has the contents of the files that [Feeds] tells, and Open
	// opens the others: the directory is not looked at. What is opened is
	// checked, what is fed was.
	Feed *Feed
	Open func(e *tree.Entry) (io.ReadCloser, error)

	spans *spans // are told of what files' contents become
}

// Pack writes the layer in dir, whose tree is t, as a tar stream in canonical
// form: entries in the order of the tree, PAX headers only where a value
// needs them, numeric owners without names, times in whole seconds (rounded
// down, as containerd and BuildKit do), whiteouts with mode and time zero.
// Of the extended attributes only security.capability is written. The top
// directory is written only where its attributes differ from those below.
// Equal trees with equal times and options give equal streams.
//
// All but the contents of files comes from t. They are read from dir, unless
// the options say otherwise, and checked: the error is a [*CorruptError] if
// they are not those of t. What w gets may be as small as a header.
func Pack(ctx context.Context, w io.Writer, dir string, t *tree.Tree, o PackOptions) error {
	fed := o.Feed != nil
	if !fed {
		d, err := openDisk(dir)
		if err != nil {
			return fmt.Errorf("pack layer: %w", err)
		}
		defer d.Close()
		small := newPrefetch(dir, t, o.Layer)
		defer small.Close()
		o.Feed, o.Open = small.Feed, func(e *tree.Entry) (io.ReadCloser, error) { return openFile(d, e.Path) }
	}
	o.Feed.reading.Store(true)
	defer o.Feed.Stop()
	p := &packer{
		o:    o,
		fed:  fed,
		tree: t,
		out:  &tally{w: w},
	}
	p.tw = tar.NewWriter(p.out)
	for i := range t.Entries {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err := p.entry(ctx, i); err != nil {
			return fmt.Errorf("pack layer: %w", err)
		}
	}
	if err := p.tw.Close(); err != nil {
		return fmt.Errorf("pack layer: %w", err)
	}
	return nil
}

type packer struct {
	o    PackOptions
	fed  bool // by someone who has checked all that is fed, and no content
	tree *tree.Tree
	out  *tally
	tw   *tar.Writer
	buf  []byte // for large files

	// hiding is the topmost opaque directory on the way to the entry, or nil:
	// below it every directory hides what the stack has.
	hiding *tree.Entry
}

func (p *packer) entry(ctx context.Context, i int) error {
	e := &p.tree.Entries[i]
	if p.hiding != nil && !inside(e.Path, p.hiding.Path) {
		p.hiding = nil
	}
	if e.Type == tree.Whiteout {
		if p.o.Lower != nil {
			if _, _, ok := p.o.Lower.Lookup(e.Path); !ok {
				return nil
			}
		}
		return p.whiteout(e.Path)
	}
	if base := path.Base(e.Path); strings.HasPrefix(base, whiteoutPrefix) {
		return fmt.Errorf("%q cannot be kept in an image layer: names that start with %q mark deletions", e.Path, whiteoutPrefix)
	}
	if e.Path != "" || p.rootDiffers(e) {
		if err := p.write(ctx, e); err != nil {
			return err
		}
	}
	if e.Type == tree.Dir {
		return p.opaque(i)
	}
	return nil
}

func inside(p, dir string) bool {
	return dir == "" || p == dir || strings.HasPrefix(p, dir+"/")
}

// rootDiffers reports whether the top directory must be written: overlayfs
// always has one, and BuildKit's layers have none.
func (p *packer) rootDiffers(e *tree.Entry) bool {
	below := tree.Entry{Mode: 0o755}
	if p.o.Lower != nil {
		if l, _, ok := p.o.Lower.Lookup(""); ok {
			below = l
		}
	}
	return e.Mode != below.Mode || e.UID != below.UID || e.GID != below.GID
}

// opaque writes what a directory hides of the stack below.
func (p *packer) opaque(i int) error {
	e := &p.tree.Entries[i]
	if e.Opaque && p.hiding == nil {
		p.hiding = e
	}
	if p.hiding == nil {
		return nil
	}
	if p.o.Lower == nil {
		if !e.Opaque {
			return nil
		}
		return p.marker(path.Join(e.Path, whiteoutOpaque))
	}
	own := map[string]bool{}
	for j := i + 1; j < len(p.tree.Entries) && inside(p.tree.Entries[j].Path, e.Path); j++ {
		name := strings.TrimPrefix(p.tree.Entries[j].Path[len(e.Path):], "/")
		if !strings.Contains(name, "/") {
			own[name] = true
		}
	}
	for _, name := range p.o.Lower.ReadDir(e.Path) {
		if own[name] {
			continue // replaced, or a whiteout of its own
		}
		if err := p.whiteout(path.Join(e.Path, name)); err != nil {
			return err
		}
	}
	return nil
}

func (p *packer) whiteout(name string) error {
	dir, base := path.Split(name)
	return p.marker(dir + whiteoutPrefix + base)
}

func (p *packer) marker(name string) error {
	return p.tw.WriteHeader(&tar.Header{
		Format: tar.FormatPAX, Typeflag: tar.TypeReg, Name: name, ModTime: time.Unix(0, 0),
	})
}

func (p *packer) write(ctx context.Context, e *tree.Entry) error {
	hdr := &tar.Header{
		Format:  tar.FormatPAX,
		Name:    e.Path,
		Mode:    int64(e.Mode),
		Uid:     e.UID,
		Gid:     e.GID,
		ModTime: p.time(e.Mtime),
	}
	switch e.Type {
	case tree.Dir:
		hdr.Typeflag, hdr.Name = tar.TypeDir, e.Path+"/"
		if e.Path == "" {
			hdr.Name = "./"
		}
	case tree.File:
		hdr.Typeflag, hdr.Size = tar.TypeReg, e.Size
		if e.Hardlink != "" {
			hdr.Typeflag, hdr.Linkname, hdr.Size = tar.TypeLink, e.Hardlink, 0
		}
	case tree.Symlink:
		hdr.Typeflag, hdr.Linkname = tar.TypeSymlink, e.Link
	case tree.Fifo:
		hdr.Typeflag = tar.TypeFifo
	case tree.Char, tree.Block:
		hdr.Typeflag = tar.TypeChar
		if e.Type == tree.Block {
			hdr.Typeflag = tar.TypeBlock
		}
		hdr.Devmajor, hdr.Devminor = int64(e.Major), int64(e.Minor)
	default:
		return fmt.Errorf("%q has the unknown type %q", e.Path, e.Type)
	}
	if v, ok := e.Xattrs["security.capability"]; ok {
		hdr.PAXRecords = map[string]string{xattrPrefix + "security.capability": v}
	}
	if err := p.tw.WriteHeader(hdr); err != nil {
		return fmt.Errorf("%q: %w", e.Path, err)
	}
	if hdr.Typeflag == tar.TypeReg {
		return p.content(ctx, e)
	}
	return nil
}

func (p *packer) time(ns int64) time.Time {
	t := time.Unix(0, ns)
	if p.o.Epoch != nil && t.After(*p.o.Epoch) {
		t = *p.o.Epoch
	}
	return t.Truncate(time.Second)
}

// content copies a file's bytes into the stream and checks them.
func (p *packer) content(ctx context.Context, e *tree.Entry) error {
	switch {
	case e.Size == 0 && p.fed:
		return nil
	case Feeds(e):
		b, err := p.o.Feed.content(ctx, e)
		if err == nil {
			p.o.spans.add(p.out.n, e.Size, e.Digest)
			_, err = p.tw.Write(b)
		}
		return err
	case p.buf == nil:
		p.buf = make([]byte, 256<<10)
	}
	corrupt := func(reason string) error { return &CorruptError{Path: e.Path, Layer: p.o.Layer, Reason: reason} }
	f, err := p.o.Open(e)
	if err != nil {
		return corrupt(err.Error())
	}
	defer f.Close()
	p.o.spans.add(p.out.n, e.Size, e.Digest)
	h := sha256.New()
	var n int64
	for {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		m, err := f.Read(p.buf)
		if err == io.EOF {
			break
		}
		if err != nil {
			return fmt.Errorf("read %q: %w", e.Path, err)
		}
		if n += int64(m); n > e.Size {
			return corrupt(fmt.Sprintf("it is longer than %d bytes", e.Size))
		}
		h.Write(p.buf[:m])
		if _, err := p.tw.Write(p.buf[:m]); err != nil {
			return err
		}
	}
	if n != e.Size {
		return corrupt(fmt.Sprintf("it has %d of %d bytes", n, e.Size))
	}
	if got := digest.NewDigest(digest.SHA256, h); got != e.Digest {
		return corrupt("its bytes have the digest " + got.String())
	}
	return nil
}

// openFile opens a regular file below a disk's root; see openRegular.
func openFile(d *disk, name string) (*os.File, error) {
	fd, err := openRegular(d, name)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), name), nil
}
