package cache

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"kiln.build/cache/tree"
	"kiln.build/solver"
)

// A Draft is a layer being made. It is ended by Commit or Discard, and by
// the death of its process.
type Draft struct {
	FS   string // empty: an overlay's upper directory, or where to unpack to
	Work string // empty, on the same file system: the overlay's work directory

	// Found is set by Commit: an equal layer was there already.
	Found bool

	links     links
	packed    bool
	described *tree.Tree // its listing is in dir
	digest    digest.Digest

	store *Store
	dir   string
	ended sync.Once
}

// NewLayer begins a layer.
func (s *Store) NewLayer() (*Draft, error) {
	if s.ro {
		return nil, ErrReadOnly
	}
	dir := s.temp("layer")
	d := &Draft{FS: filepath.Join(dir, "fs"), store: s, dir: dir}
	err := os.Mkdir(dir, 0o700)
	if err == nil {
		err = os.Mkdir(d.FS, 0o700)
	}
	if err == nil {
		// A root file system's root is open to all; the umask has no say.
		err = os.Chmod(d.FS, 0o755)
	}
	if err == nil {
		d.Work, err = s.takeWork()
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("begin layer: %w", err), removeAll(dir, nil))
	}
	return d, nil
}

// takeWork returns an empty directory, as a rule one that was used before:
// see lock.go for why.
func (s *Store) takeWork() (string, error) {
	s.mu.Lock()
	if n := len(s.works); n > 0 {
		dir := s.works[n-1]
		s.works = s.works[:n-1]
		s.mu.Unlock()
		return dir, nil
	}
	s.mu.Unlock()
	return s.Scratch("work")
}

// giveWork keeps a work directory for the next draft. What overlayfs left in
// it goes: a volatile mount's mark would make the next mount fail.
func (s *Store) giveWork(dir string) {
	entries, err := os.ReadDir(dir)
	for _, e := range entries {
		err = errors.Join(err, removeAll(filepath.Join(dir, e.Name()), nil))
	}
	if err != nil {
		return // Close deletes it, if anyone can
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.works = append(s.works, dir)
}

// Discard removes the draft, on which nothing may be mounted any more. After
// Commit, or a second time, it does nothing.
func (d *Draft) Discard() error {
	var err error
	d.ended.Do(func() {
		d.store.giveWork(d.Work)
		err = removeAll(d.dir, nil)
	})
	return err
}

// Commit makes the draft a layer, whose listing is t, and pins it. Nothing
// may be mounted on the draft or write to it any more, and t must not be
// changed. Where an equal layer is there already, that one stays. The draft
// is gone in any case, after an error too.
func (d *Draft) Commit(ctx context.Context, t *tree.Tree) (solver.Layer, error) {
	var l solver.Layer
	err := errors.New("the draft was committed or discarded before")
	d.ended.Do(func() {
		d.store.giveWork(d.Work)
		l, err = d.commit(ctx, t)
		if removed := removeAll(d.dir, nil); err == nil {
			err = removed
		}
	})
	if err != nil {
		return solver.Layer{}, fmt.Errorf("commit layer: %w", err)
	}
	return l, nil
}

// Describe writes the listing down that Commit is going to be given: where
// there is something else to wait for, that saves some time then.
func (d *Draft) Describe(t *tree.Tree) error {
	if err := t.Check(); err != nil {
		return err
	}
	if d.described != nil {
		if err := os.Remove(filepath.Join(d.dir, "tree")); err != nil {
			return err
		}
	}
	if err := writeFile(filepath.Join(d.dir, "tree"), t.Append(nil)); err != nil {
		return err
	}
	d.described, d.digest = t, t.Digest()
	return nil
}

func (d *Draft) commit(ctx context.Context, t *tree.Tree) (solver.Layer, error) {
	s := d.store
	if d.described != t {
		if err := d.Describe(t); err != nil {
			return solver.Layer{}, err
		}
	}
	l := solver.Layer{Digest: d.digest, Size: t.Size(), Created: time.Now().UTC().Round(0)}
	if err := d.links.write(d.dir); err != nil {
		return l, err
	}
	leave, err := s.enter(ctx)
	if err != nil {
		return l, err
	}
	defer leave()
	if err := s.pin(pinned("layer", l.Digest)); err != nil {
		return l, err
	}
	switch err := s.sound(ctx, l.Digest); {
	case err == nil:
		s.touch(filepath.Join(s.layerPath(l.Digest), "tree"))
		d.Found = true
		return l, nil
	case !errors.Is(err, fs.ErrNotExist): // it may be there, and could not be read
		return l, err
	}
	unmark, err := s.mark("layer-" + l.Digest.Encoded())
	if err != nil {
		return l, err
	}
	to := s.layerPath(l.Digest)
	err = os.Rename(d.dir, to)
	if occupied(err) {
		unmark()
		if s.hasLayer(l.Digest) == nil {
			d.Found = true // someone else was faster
			return l, nil
		}
		// What is there is no layer: someone meddled.
		if err := s.Invalidate(l.Digest); err != nil {
			return l, err
		}
		if unmark, err = s.mark("layer-" + l.Digest.Encoded()); err != nil {
			return l, err
		}
		err = os.Rename(d.dir, to)
	}
	if err != nil {
		unmark()
		return l, err
	}
	s.remember(l.Digest, t)
	if !d.packed { // the image layout has counted the blob
		s.bound.grew(t.Disk() - d.links.bytes)
	}
	return l, nil
}

func occupied(err error) bool {
	return errors.Is(err, unix.EEXIST) || errors.Is(err, unix.ENOTEMPTY) || errors.Is(err, unix.ENOTDIR)
}

func (s *Store) layerPath(d digest.Digest) string { return s.root + "/layers/" + d.Encoded() }

// hasLayer returns nil if a layer is there with its tree.
func (s *Store) hasLayer(d digest.Digest) error {
	if err := valid(d); err != nil {
		return err
	}
	var st unix.Stat_t
	// A packed layer that is being unpacked gets its files before it loses
	// its blob: look for them once more.
	for _, names := range [][]string{{"tree"}, {"fs", packedBlob, "fs"}} {
		var err error
		for _, name := range names {
			path := s.layerPath(d) + "/" + name
			if err = unix.Lstat(path, &st); err == nil {
				break
			}
			err = &fs.PathError{Op: "stat", Path: path, Err: err}
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// Tree is the listing of a layer, shared by all who ask: it must not be
// changed. A damaged one makes the layer go, so that it is made again.
func (s *Store) Tree(d digest.Digest) (*tree.Tree, error) {
	if err := valid(d); err != nil {
		return nil, err
	}
	s.mu.Lock()
	t := s.trees[d]
	s.mu.Unlock()
	if t != nil {
		return t, nil
	}
	b, err := os.ReadFile(filepath.Join(s.layerPath(d), "tree"))
	if err != nil {
		return nil, fmt.Errorf("read tree of layer %s: %w", d, err)
	}
	if t, err = tree.Parse(b); err != nil {
		err = fmt.Errorf("read tree of layer %s: %w", d, err)
		if errors.Is(err, tree.ErrCorrupt) && !s.ro {
			err = errors.Join(err, s.Invalidate(d))
		}
		return nil, err
	}
	return s.remember(d, t), nil
}

// remember keeps a tree in memory and returns the one that is kept.
func (s *Store) remember(d digest.Digest, t *tree.Tree) *tree.Tree {
	s.mu.Lock()
	defer s.mu.Unlock()
	if have := s.trees[d]; have != nil {
		return have
	}
	s.trees[d] = t
	return t
}

// Index is the merged view of a stack of layers.
func (s *Store) Index(layers []solver.Layer) (*tree.Index, error) {
	trees := make([]*tree.Tree, len(layers))
	for i, l := range layers {
		t, err := s.Tree(l.Digest)
		if err != nil {
			return nil, err
		}
		trees[i] = t
	}
	return tree.NewIndex(trees...), nil
}

// rootHead is how much of a tree is read for its root.
const rootHead = 4096

// TopDir is what a stack of layers says about its root directory, and whether
// it says anything. Unlike an index of the stack it costs the same for any
// number of files.
func (s *Store) TopDir(layers []solver.Layer) (tree.Entry, bool, error) {
	for _, l := range slices.Backward(layers) {
		e, ok, err := s.layerRoot(l.Digest)
		if err != nil || ok {
			return e, ok, err
		}
	}
	return tree.Entry{}, false, nil
}

func (s *Store) layerRoot(d digest.Digest) (tree.Entry, bool, error) {
	if err := valid(d); err != nil {
		return tree.Entry{}, false, err
	}
	if f, err := os.Open(filepath.Join(s.layerPath(d), "tree")); err == nil {
		defer f.Close()
		head := make([]byte, rootHead)
		n, _ := f.ReadAt(head, 0) // fewer are enough, or an error below
		if e, ok, err := tree.ReadRoot(head[:n]); err == nil {
			return e, ok, nil
		}
	}
	t, err := s.Tree(d)
	if err != nil || len(t.Entries) == 0 {
		return tree.Entry{}, false, err
	}
	return t.Entries[0], t.Entries[0].Path == "", nil
}

// Invalidate makes a layer go, for one whose files were found not to be what
// its tree says. Actions that promise it miss from now on.
func (s *Store) Invalidate(d digest.Digest) error {
	if s.ro {
		return ErrReadOnly
	}
	if err := valid(d); err != nil {
		return err
	}
	s.mu.Lock()
	delete(s.trees, d)
	s.mu.Unlock()
	// Its files may be links of other layers' (see Remember): what is made in
	// its place must not link them again.
	_ = os.RemoveAll(s.path("history", "last"))
	// The files go when this process ends: a sandbox may have them mounted.
	err := os.Rename(s.layerPath(d), s.temp("invalid"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("invalidate layer %s: %w", d, err)
	}
	return nil
}
