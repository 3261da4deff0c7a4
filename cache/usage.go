package cache

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"kiln.build/cache/layout"
	"kiln.build/cache/tree"
)

// Kind is what a row of [Usage] is about.
type Kind string

// The kinds of things in a store.
const (
	KindLayer   Kind = "layer"
	KindAction  Kind = "action"
	KindBlob    Kind = "blob"
	KindMount   Kind = "mount"   // a directory of a cache mount
	KindImage   Kind = "image"   // a blob of the image layout
	KindContext Kind = "context" // the stat cache of a local context
)

// Usage tells of one thing in the store.
type Usage struct {
	ID   string // a digest; of a mount its id, of a context its path
	Kind Kind

	Size     int64 // on disk, in bytes; of a layer an estimate
	Created  time.Time
	LastUsed time.Time // within an hour

	// InUse says that it will not be pruned now: a running process uses it,
	// or for blobs of images that a tag needs it.
	InUse bool

	// Shared says that more than one action has it as a result.
	Shared bool

	// Description tells where it is from, such as the name of the step.
	Description string
}

// item is a row with what pruning needs to know.
type item struct {
	Usage
	pin      string          // its line among the pins, "" for what has none
	path     string          // of layers, actions, blobs and contexts
	promises []string        // of actions, in the form of pins
	layers   []digest.Digest // of actions
	origins  []digest.Digest // of actions: blobs their layers are exported as
	broken   bool            // an action whose promises cannot be kept
	slot     mountSlot
	links    links   // of layers
	of       *item   // the layer whose files they are, nil where it is gone
	heirs    []*item // layers that have links of this one's files, or of this blob
}

// Usage lists everything in the store. What is made or removed meanwhile may
// be missing or listed.
func (s *Store) Usage(ctx context.Context) ([]Usage, error) {
	items, err := s.survey(ctx)
	if err != nil {
		return nil, err
	}
	pins, err := s.allPins()
	if err != nil {
		return nil, err
	}
	images, err := s.imageBlobs(ctx)
	if err != nil {
		return nil, err
	}
	rows := make([]Usage, 0, len(items)+len(images))
	for _, it := range items {
		it.InUse = it.InUse || pins[it.pin]
		rows = append(rows, it.Usage)
	}
	return append(rows, images...), nil
}

// survey lists all that Prune may remove itself.
func (s *Store) survey(ctx context.Context) ([]*item, error) {
	var items []*item
	made := map[string][]*item{} // by what they promise
	err := s.Records(ctx, func(r *Record) error {
		it := &item{
			Usage: Usage{ID: r.Key.String(), Kind: KindAction, Created: r.Created, LastUsed: r.LastUsed, Description: r.describe()},
			pin:   pinned("action", r.Key), path: s.hashed("actions", r.Key), promises: r.promises(),
		}
		it.Size, _ = diskSize(it.path)
		for _, l := range r.Result.Layers {
			it.layers = append(it.layers, l.Digest)
			if l.Origin != nil {
				it.origins = append(it.origins, l.Origin.Blob)
			}
		}
		if r.Result.Blob != "" {
			it.origins = append(it.origins, r.Result.Blob)
		}
		for _, p := range it.promises {
			made[p] = append(made[p], it)
		}
		it.broken = s.broken(r)
		items = append(items, it)
		return nil
	})
	if err != nil {
		return nil, err
	}
	describe := func(it *item) {
		makers := made[it.pin]
		it.Shared = len(makers) > 1
		var last time.Time
		for _, a := range makers {
			if a.Created.After(last) {
				it.Description, last = a.Description, a.Created
			}
		}
	}
	layers, err := s.layerItems(ctx)
	if err != nil {
		return nil, err
	}
	for _, it := range layers {
		describe(it)
	}
	items = append(items, layers...)
	err = s.eachHashed(ctx, "blobs", func(d digest.Digest, path string) error {
		it := &item{Usage: Usage{ID: d.String(), Kind: KindBlob}, pin: pinned("blob", d), path: path}
		if it.stat() {
			describe(it)
			items = append(items, it)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	more, err := s.mountItems(ctx)
	if err != nil {
		return nil, err
	}
	contexts, err := s.contextItems()
	return append(append(items, more...), contexts...), err
}

// broken reports whether an action's promises cannot be kept.
func (s *Store) broken(r *Record) bool {
	for _, l := range r.Result.Layers {
		if errors.Is(s.hasLayer(l.Digest), fs.ErrNotExist) {
			return true
		}
	}
	return r.Result.Blob != "" && !s.hasBlob(r.Result.Blob)
}

// describe tells in a line what an action was.
func (r *Record) describe() string {
	if r.Name != "" {
		return r.Name
	}
	var words []string
	for line := range strings.Lines(r.Description) {
		for _, label := range []string{"op", "path", "source", "context", "url", "remote"} {
			if value, ok := strings.CutPrefix(line, label+" "); ok {
				words = append(words, strings.Trim(value, "\"\n"))
			}
		}
	}
	return strings.Join(words, " ")
}

func (s *Store) layerItems(ctx context.Context) ([]*item, error) {
	entries, err := os.ReadDir(s.path("layers"))
	if err != nil {
		return nil, err
	}
	var items []*item
	for _, e := range entries {
		if err := cause(ctx); err != nil {
			return nil, err
		}
		d := digest.NewDigestFromEncoded(digest.SHA256, e.Name())
		if valid(d) != nil {
			continue
		}
		it := &item{Usage: Usage{ID: d.String(), Kind: KindLayer}, pin: pinned("layer", d), path: s.layerPath(d)}
		var dir, listing unix.Stat_t
		treePath := filepath.Join(it.path, "tree")
		if unix.Stat(it.path, &dir) != nil {
			continue
		}
		// The directory was last changed when the layer was made.
		it.Created = time.Unix(dir.Mtim.Unix())
		it.LastUsed = it.Created
		if unix.Stat(treePath, &listing) == nil {
			it.LastUsed = time.Unix(listing.Mtim.Unix())
			if it.Size = listing.Blocks * 512; !s.packedItem(it) {
				it.Size += layerSize(treePath)
				it.links = readLinks(it.path)
			}
		}
		items = append(items, it)
	}
	countOnce(items)
	return items, nil
}

// packedItem tells of a packed layer what its blob takes, which counts as the
// layer's once the image layout does not have it any more.
func (s *Store) packedItem(it *item) bool {
	var own, images unix.Stat_t
	if exists(it.path+"/fs") || unix.Lstat(it.path+"/"+packedBlob, &own) != nil {
		return false
	}
	sum, _ := os.ReadFile(it.path + "/" + packedSum)
	blob := digest.NewDigestFromEncoded(digest.SHA256, strings.TrimSpace(string(sum)))
	if valid(blob) == nil && unix.Lstat(s.images.Path(blob), &images) == nil && images.Ino == own.Ino && images.Dev == own.Dev {
		it.links = links{blob, own.Blocks * 512}
	} else {
		it.Size += own.Blocks * 512
	}
	return true
}

// layerSize is what the head of a tree tells.
func layerSize(path string) int64 {
	f, err := os.Open(path)
	if err != nil {
		return 0
	}
	defer f.Close()
	head := make([]byte, tree.SummaryLen)
	n, _ := f.ReadAt(head, 0)
	summary, _ := tree.ReadSummary(head[:n])
	return summary.Disk
}

func (s *Store) mountItems(ctx context.Context) ([]*item, error) {
	slots, err := s.mounts()
	if err != nil {
		return nil, err
	}
	var items []*item
	for _, slot := range slots {
		path := filepath.Join(slot.dir, slot.name)
		it := &item{Usage: Usage{
			ID: slot.o.ID, Kind: KindMount, LastUsed: slot.used, InUse: slot.busy(), Description: "cache mount " + slot.o.ID,
		}, slot: slot}
		if it.Size, err = treeSize(ctx, path); err != nil {
			return nil, err
		}
		if it.Created, err = born(path); err != nil {
			it.Created = slot.used
		}
		items = append(items, it)
	}
	return items, nil
}

// treeSize is the space that the files below a directory take.
func treeSize(ctx context.Context, dir string) (int64, error) {
	type inode struct{ dev, ino uint64 }
	seen := map[inode]bool{}
	var total int64
	err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		var st unix.Stat_t
		if err != nil || unix.Lstat(path, &st) != nil {
			return nil // changed while we look
		}
		if st.Nlink > 1 && st.Mode&unix.S_IFMT != unix.S_IFDIR {
			id := inode{st.Dev, st.Ino}
			if seen[id] {
				return nil
			}
			seen[id] = true
		}
		total += st.Blocks * 512
		return nil
	})
	return total, err
}

func (s *Store) contextItems() ([]*item, error) {
	entries, err := os.ReadDir(s.path("contexts"))
	if err != nil {
		return nil, err
	}
	var items []*item
	for _, e := range entries {
		it := &item{Usage: Usage{ID: e.Name(), Kind: KindContext}, path: s.path("contexts", e.Name())}
		if !it.stat() {
			continue
		}
		if dir, err := statCacheDir(it.path); err == nil {
			it.ID, it.Description = dir, "stat cache of "+dir
		}
		items = append(items, it)
	}
	return items, nil
}

// imageBlobs lists the blobs of the image layout.
func (s *Store) imageBlobs(ctx context.Context) ([]Usage, error) {
	entries, err := os.ReadDir(filepath.Join(s.images.Dir(), "blobs", "sha256"))
	if err != nil {
		return nil, err
	}
	unused := map[digest.Digest]bool{}
	switch idle, err := s.images.Idle(ctx, false); {
	case errors.Is(err, layout.ErrBusy): // then all count as used
	case err != nil:
		return nil, err
	default:
		idle.Release()
		for _, d := range idle.Blobs {
			unused[d] = true
		}
	}
	var rows []Usage
	for _, e := range entries {
		d := digest.NewDigestFromEncoded(digest.SHA256, e.Name())
		it := item{Usage: Usage{ID: d.String(), Kind: KindImage, InUse: !unused[d]}, path: s.images.Path(d)}
		if valid(d) == nil && it.stat() {
			rows = append(rows, it.Usage)
		}
	}
	return rows, nil
}

// stat fills in size and times of a file; false if it has gone.
func (it *item) stat() bool {
	var st unix.Stat_t
	if unix.Stat(it.path, &st) != nil {
		return false
	}
	it.Size, it.LastUsed = st.Blocks*512, time.Unix(st.Mtim.Unix())
	var err error
	if it.Created, err = born(it.path); err != nil || it.Created.After(it.LastUsed) {
		it.Created = it.LastUsed
	}
	return true
}

func diskSize(path string) (int64, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return 0, err
	}
	return st.Blocks * 512, nil
}

// born is when a file was made, where the file system knows.
func born(path string) (time.Time, error) {
	var st unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, path, unix.AT_SYMLINK_NOFOLLOW, unix.STATX_BTIME, &st); err != nil {
		return time.Time{}, err
	}
	if st.Mask&unix.STATX_BTIME == 0 {
		return time.Time{}, unix.ENOTSUP
	}
	return time.Unix(st.Btime.Sec, int64(st.Btime.Nsec)), nil
}
