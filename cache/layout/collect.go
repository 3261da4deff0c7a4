package layout

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

// Collect deletes all blobs that no entry of the index refers to, directly or
// through manifests and indexes, and what interrupted writes left.
//
// It is safe beside writers: see [Layout.Idle]. It takes some milliseconds for
// a few hundred images. Images whose manifests are missing or corrupt are no
// obstacle: what these referred to is deleted.
func (l *Layout) Collect(ctx context.Context, wait bool) error {
	idle, err := l.Idle(ctx, wait)
	if err != nil {
		return err
	}
	defer idle.Release()
	for _, d := range idle.Blobs {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err := idle.Remove(d); err != nil {
			return fmt.Errorf("collect blobs of %s: %w", l.dir, err)
		}
	}
	return idle.Sweep(ctx)
}

// Idle are the blobs that no entry of the index refers to. While it is held
// no [Lease] is given out, so that they stay idle.
type Idle struct {
	Blobs []digest.Digest

	layout *Layout
	held   *os.File
}

// Idle finds them, once no lease is held. Where one is it waits, or returns
// [ErrBusy]. Release must be called, soon.
func (l *Layout) Idle(ctx context.Context, wait bool) (*Idle, error) {
	held, err := lock(ctx, l.blobsDir(), unix.LOCK_EX, wait)
	if err == nil {
		i := &Idle{layout: l, held: held}
		if i.Blobs, err = l.idle(ctx); err == nil {
			return i, nil
		}
		i.Release()
	}
	return nil, fmt.Errorf("collect blobs of %s: %w", l.dir, err)
}

// Remove deletes one of the blobs.
func (i *Idle) Remove(d digest.Digest) error { return i.layout.Remove(d) }

// Release lets writers go on.
func (i *Idle) Release() { i.held.Close() }

func (l *Layout) idle(ctx context.Context) ([]digest.Digest, error) {
	live, err := l.reachable(ctx)
	if err != nil {
		return nil, err
	}
	algorithms, err := os.ReadDir(filepath.Join(l.dir, v1.ImageBlobsDir))
	if err != nil {
		return nil, err
	}
	var all []digest.Digest
	for _, a := range algorithms {
		blobs, err := os.ReadDir(filepath.Join(l.dir, v1.ImageBlobsDir, a.Name()))
		if err != nil {
			return nil, err
		}
		for _, b := range blobs {
			d := digest.NewDigestFromEncoded(digest.Algorithm(a.Name()), b.Name())
			if !live[d] && d.Validate() == nil {
				all = append(all, d)
			}
		}
	}
	return all, nil
}

// Sweep deletes what interrupted writes left. That no lease is held says that
// no blob is being written; the lock of index.json says the same of that.
func (i *Idle) Sweep(ctx context.Context) error {
	if err := i.layout.sweep(ctx); err != nil {
		return fmt.Errorf("collect blobs of %s: %w", i.layout.dir, err)
	}
	return nil
}

func (l *Layout) sweep(ctx context.Context) error {
	held, err := lock(ctx, filepath.Join(l.dir, v1.ImageLayoutFile), unix.LOCK_EX, true)
	if err != nil {
		return err
	}
	defer held.Close()
	files, err := os.ReadDir(l.dir)
	if err != nil {
		return err
	}
	for _, f := range files {
		if !strings.HasPrefix(f.Name(), tempPrefix) {
			continue
		}
		if err := os.Remove(filepath.Join(l.dir, f.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// reachable finds all that the index refers to.
func (l *Layout) reachable(ctx context.Context) (map[digest.Digest]bool, error) {
	list, err := l.List()
	if err != nil {
		return nil, err
	}
	live := map[digest.Digest]bool{}
	for len(list) > 0 {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		d := list[len(list)-1]
		list = list[:len(list)-1]
		if live[d.Digest] {
			continue
		}
		live[d.Digest] = true
		list = append(list, l.children(d)...)
	}
	return live, nil
}

// Reachable lists the blobs that an image consists of, itself included:
// those of all platforms that are here. Blobs that are missing are listed,
// what they would refer to cannot be.
func (l *Layout) Reachable(desc v1.Descriptor) []v1.Descriptor {
	var all []v1.Descriptor
	seen := map[digest.Digest]bool{}
	list := []v1.Descriptor{desc}
	for len(list) > 0 {
		d := list[0]
		list = list[1:]
		if seen[d.Digest] {
			continue
		}
		seen[d.Digest] = true
		all = append(all, d)
		list = append(list, l.children(d)...)
	}
	return all
}

// children lists what a manifest or index refers to; nothing for other
// blobs and for those that are missing or unreadable.
func (l *Layout) children(d v1.Descriptor) []v1.Descriptor {
	if !IsIndex(d.MediaType) && !IsManifest(d.MediaType) {
		return nil
	}
	b, err := l.ReadBlob(d.Digest)
	if err != nil {
		return nil
	}
	var doc struct {
		Config    *v1.Descriptor
		Layers    []v1.Descriptor
		Manifests []v1.Descriptor
	}
	if err := json.Unmarshal(b, &doc); err != nil {
		return nil
	}
	children := append(doc.Manifests, doc.Layers...)
	if doc.Config != nil {
		children = append(children, *doc.Config)
	}
	return children
}
