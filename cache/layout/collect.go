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

// CollectOptions says what to delete.
type CollectOptions struct {
	// Keep spares blobs that nothing in the index refers to; nil spares none.
	Keep func(digest.Digest) bool

	// NoWait returns [ErrBusy] if blobs are being written, instead of
	// waiting for that to end.
	NoWait bool

	// DryRun only reports what would be deleted.
	DryRun bool
}

// Collected is what a collection deleted.
type Collected struct {
	Blobs []digest.Digest
	Bytes int64
}

// Collect deletes all blobs that no entry of the index refers to, directly or
// through manifests and indexes, and what interrupted writes left.
//
// It is safe beside writers: it waits until no [Lease] is held, and none is
// given out while it runs. It takes some milliseconds for a few hundred
// images. Images whose manifests are missing or corrupt are no obstacle:
// what these referred to is deleted.
func (l *Layout) Collect(ctx context.Context, o CollectOptions) (Collected, error) {
	held, err := lock(ctx, l.blobsDir(), unix.LOCK_EX, !o.NoWait)
	if err != nil {
		return Collected{}, fmt.Errorf("collect blobs of %s: %w", l.dir, err)
	}
	defer held.Close()
	done, err := l.collect(ctx, o)
	if err != nil {
		return done, fmt.Errorf("collect blobs of %s: %w", l.dir, err)
	}
	return done, nil
}

func (l *Layout) collect(ctx context.Context, o CollectOptions) (Collected, error) {
	var done Collected
	live, err := l.reachable(ctx)
	if err != nil {
		return done, err
	}
	algorithms, err := os.ReadDir(filepath.Join(l.dir, v1.ImageBlobsDir))
	if err != nil {
		return done, err
	}
	for _, a := range algorithms {
		blobs, err := os.ReadDir(filepath.Join(l.dir, v1.ImageBlobsDir, a.Name()))
		if err != nil {
			return done, err
		}
		for _, b := range blobs {
			if ctx.Err() != nil {
				return done, context.Cause(ctx)
			}
			d := digest.NewDigestFromEncoded(digest.Algorithm(a.Name()), b.Name())
			if live[d] || d.Validate() != nil || (o.Keep != nil && o.Keep(d)) {
				continue
			}
			fi, err := b.Info()
			if err != nil {
				return done, err
			}
			if !o.DryRun {
				if err := os.Remove(l.Path(d)); err != nil {
					return done, err
				}
			}
			done.Blobs = append(done.Blobs, d)
			done.Bytes += fi.Size()
		}
	}
	if o.DryRun {
		return done, nil
	}
	return done, l.sweep(ctx)
}

// sweep deletes temporary files. That no lease is held says that no blob is
// being written; the lock of index.json says the same of that.
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
