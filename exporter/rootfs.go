package exporter

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"
	"time"

	"kiln.build/cache/archive"
	"kiln.build/cache/tree"
	"kiln.build/exporter/images"
	"kiln.build/solver"

	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// exportTar writes root file systems as one tar.
func (e *Exporter) exportTar(ctx context.Context, o Output, all []Image) error {
	if o.Dest == "-" && e.Terminal {
		return errors.New("an archive is not written to a terminal: give dest=FILE, or redirect standard output")
	}
	folders := e.folders(o, all)
	return e.writeFile(o.Dest, func(w io.Writer) error {
		tw := tar.NewWriter(w)
		for i, image := range all {
			if err := e.tarRoot(ctx, tw, folders[i], image.Output.Layers); err != nil {
				return err
			}
		}
		return tw.Close()
	})
}

// writeFile writes a file, or to standard output.
func (e *Exporter) writeFile(dest string, write func(io.Writer) error) error {
	if dest == "-" {
		return write(e.Stdout)
	}
	return images.WriteFile(dest, write)
}

// folders are those that the platforms go into, such as "linux_amd64"; ""
// where they are not split.
func (e *Exporter) folders(o Output, all []Image) []string {
	folders := make([]string, len(all))
	split := len(all) > 1
	if o.Split != nil {
		split = *o.Split
	}
	for i, image := range all {
		p := image.Platform
		if p.OS == "" {
			p = image.Config.Platform
		}
		if split {
			folders[i] = strings.ReplaceAll(platforms.Format(platforms.Normalize(p)), "/", "_")
		}
	}
	return folders
}

// A rootFS is the merged view of a stack, in walking order, with hard links
// as they are in that view.
type rootFS struct {
	e      *Exporter
	layers []solver.Layer
	index  *tree.Index
	roots  map[int]*os.Root // of layers that were read from
}

func (e *Exporter) rootFS(layers []solver.Layer) (*rootFS, error) {
	x, err := e.Store.Index(layers)
	if err != nil {
		return nil, err
	}
	return &rootFS{e: e, layers: layers, index: x, roots: map[int]*os.Root{}}, nil
}

func (r *rootFS) close() {
	for _, root := range r.roots {
		root.Close()
	}
}

// root is the directory of a layer, which nothing that is opened in it
// leaves.
func (r *rootFS) root(ctx context.Context, layer int) (*os.Root, error) {
	if root := r.roots[layer]; root != nil {
		return root, nil
	}
	dir, err := r.e.Store.LayerDir(ctx, r.layers[layer].Digest)
	if err != nil {
		return nil, err
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	r.roots[layer] = root
	return root, nil
}

// walk calls fn for every path but the root. Of a hard-link group the first
// path that can be seen is the file, and Hardlink of the others is that path:
// the first of the layer may be hidden by layers above.
func (r *rootFS) walk(ctx context.Context, fn func(e tree.Entry, layer int) error) error {
	type group struct {
		layer int
		first string
	}
	seen := map[group]string{}
	linked := map[group]bool{}
	// Only groups need to be remembered, and which files begin one is known
	// from the others.
	for l, layer := range r.layers {
		t, err := r.e.Store.Tree(layer.Digest)
		if err != nil {
			return err
		}
		for i := range t.Entries {
			if h := t.Entries[i].Hardlink; h != "" {
				linked[group{l, h}] = true
			}
		}
	}
	return r.index.Walk("", func(e tree.Entry, layer int) error {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if e.Path == "" {
			return nil
		}
		if e.Type == tree.File && len(linked) > 0 {
			g := group{layer, e.Hardlink}
			if e.Hardlink == "" {
				g.first = e.Path
			}
			if linked[g] {
				e.Hardlink = seen[g]
				if e.Hardlink == "" {
					seen[g] = e.Path
				}
			}
		}
		return fn(e, layer)
	})
}

// mtime is an entry's, not later than the epoch.
func (r *rootFS) mtime(e tree.Entry) time.Time {
	return *clamp(time.Unix(0, e.Mtime), r.e.Epoch)
}

// content copies a file's bytes and checks them against the tree. A file
// that is not what the tree says makes its layer go, to be built again.
func (r *rootFS) content(ctx context.Context, w io.Writer, e tree.Entry, layer int) error {
	err := r.copyContent(ctx, w, e, layer)
	var corrupt *archive.CorruptError
	if errors.As(err, &corrupt) {
		err = errors.Join(err, r.e.Store.Invalidate(r.layers[layer].Digest))
	}
	return err
}

func (r *rootFS) copyContent(ctx context.Context, w io.Writer, e tree.Entry, layer int) error {
	d := r.layers[layer].Digest
	corrupt := func(reason string) error {
		return &archive.CorruptError{Path: e.Path, Layer: d, Reason: reason}
	}
	root, err := r.root(ctx, layer)
	if err != nil {
		return err
	}
	f, err := root.OpenFile(e.Path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return corrupt(err.Error())
	}
	defer f.Close()
	h := digest.Canonical.Digester()
	n, err := io.Copy(io.MultiWriter(h.Hash(), w), io.LimitReader(contextReader{ctx, f}, e.Size+1))
	switch {
	case err != nil && !errors.Is(err, tar.ErrWriteTooLong):
		return err
	case n > e.Size || err != nil:
		return corrupt(fmt.Sprintf("it is longer than %d bytes", e.Size))
	case n < e.Size:
		return corrupt(fmt.Sprintf("it has %d of %d bytes", n, e.Size))
	case h.Digest() != e.Digest:
		return corrupt("its bytes have the digest " + h.Digest().String())
	}
	return nil
}

type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (c contextReader) Read(p []byte) (int, error) {
	if c.ctx.Err() != nil {
		return 0, context.Cause(c.ctx)
	}
	return c.r.Read(p)
}

// tarRoot writes a stack's root file system. As in BuildKit's, the root
// itself is not in it.
func (e *Exporter) tarRoot(ctx context.Context, tw *tar.Writer, under string, layers []solver.Layer) error {
	r, err := e.rootFS(layers)
	if err != nil {
		return err
	}
	defer r.close()
	if under != "" {
		if err := tw.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: under + "/", Mode: 0o755, ModTime: time.Unix(0, 0)}); err != nil {
			return err
		}
	}
	return r.walk(ctx, func(entry tree.Entry, layer int) error {
		hdr := &tar.Header{
			Format:  tar.FormatPAX,
			Name:    path.Join(under, entry.Path),
			Mode:    int64(entry.Mode),
			Uid:     entry.UID,
			Gid:     entry.GID,
			ModTime: r.mtime(entry).Truncate(time.Second),
		}
		switch entry.Type {
		case tree.Dir:
			hdr.Typeflag = tar.TypeDir
			hdr.Name += "/"
		case tree.Symlink:
			hdr.Typeflag, hdr.Linkname = tar.TypeSymlink, entry.Link
		case tree.Fifo:
			hdr.Typeflag = tar.TypeFifo
		case tree.Char, tree.Block:
			hdr.Typeflag = tar.TypeChar
			if entry.Type == tree.Block {
				hdr.Typeflag = tar.TypeBlock
			}
			hdr.Devmajor, hdr.Devminor = int64(entry.Major), int64(entry.Minor)
		case tree.File:
			hdr.Typeflag, hdr.Size = tar.TypeReg, entry.Size
			if entry.Hardlink != "" {
				hdr.Typeflag, hdr.Size, hdr.Linkname = tar.TypeLink, 0, path.Join(under, entry.Hardlink)
			}
		default:
			return fmt.Errorf("%q: unknown type %q", entry.Path, entry.Type)
		}
		if v, ok := entry.Xattrs["security.capability"]; ok {
			hdr.PAXRecords = map[string]string{"SCHILY.xattr.security.capability": v}
		}
		if err := tw.WriteHeader(hdr); err != nil {
			return fmt.Errorf("%q: %w", entry.Path, err)
		}
		if hdr.Typeflag == tar.TypeReg {
			return r.content(ctx, tw, entry, layer)
		}
		return nil
	})
}
