package container

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
	"kiln.build/cache"
	"kiln.build/cache/tree"
	"kiln.build/runner/overlay"
)

// Change is a path in which a container's file system differs from its
// image's.
type Change struct {
	Kind byte // 'A' added, 'C' changed, 'D' deleted
	Path string
}

// Changes lists what the container has changed in its file system, in the
// order of paths. What kiln made for its own mounts is left out.
func (c *Container) Changes(ctx context.Context, store *cache.Store) ([]Change, error) {
	stubs, err := c.stubs()
	if err != nil {
		return nil, err
	}
	dir, err := c.upper()
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	upper, err := c.scan(ctx, dir, stubs, true)
	if err != nil {
		return nil, err
	}
	lower, err := store.Index(c.Layers)
	if err != nil {
		return nil, err
	}
	var changes []Change
	for i := range upper.Entries {
		e := &upper.Entries[i]
		if e.Path == "" {
			continue
		}
		_, _, below := lower.Lookup(e.Path)
		switch {
		case e.Type == tree.Whiteout && below:
			changes = append(changes, Change{'D', "/" + e.Path})
		case e.Type == tree.Whiteout:
		case !below && !passage(upper, i, stubs):
			changes = append(changes, Change{'A', "/" + e.Path})
		case below && !passage(upper, i, stubs):
			changes = append(changes, Change{'C', "/" + e.Path})
		}
		if !e.Opaque || !below {
			continue
		}
		for _, n := range lower.ReadDir(e.Path) {
			p := path.Join(e.Path, n)
			if x, ok := upper.Lookup(p); !ok || x.Type == tree.Whiteout {
				changes = append(changes, Change{'D', "/" + p})
			}
		}
	}
	slices.SortStableFunc(changes, func(a, b Change) int { return strings.Compare(a.Path, b.Path) })
	return changes, nil
}

// passage reports whether a directory is in the upper layer only because a
// mount point was made in it: it has such, and nothing else.
func passage(t *tree.Tree, i int, stubs map[string]bool) bool {
	e := &t.Entries[i]
	within := func(p string) bool { return strings.HasPrefix(p, e.Path+"/") }
	if e.Type != tree.Dir || e.Opaque {
		return false
	}
	for j := i + 1; j < len(t.Entries) && within(t.Entries[j].Path); j++ {
		if !passage(t, j, stubs) {
			return false
		}
	}
	for s := range stubs {
		if s == e.Path || within(s) {
			return true
		}
	}
	return false
}

// stubs are the mount points that were made in the container's root.
func (c *Container) stubs() (map[string]bool, error) {
	st, err := c.State()
	if err != nil {
		return nil, err
	}
	stubs := map[string]bool{}
	for _, s := range st.Stubs {
		stubs[path.Clean("/" + s)[1:]] = true
	}
	return stubs, nil
}

// upper opens the directory that has the container's changes, through a mount
// by which no device can be opened: the container, if it runs, may put one in a
// file's place (see reopen).
func (c *Container) upper() (*os.File, error) {
	f, err := overlay.Clone(c.fsDir())
	if err != nil {
		return nil, err
	}
	attr := &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_NODEV}
	if err := unix.MountSetattr(int(f.Fd()), "", unix.AT_EMPTY_PATH, attr); err != nil {
		return nil, errors.Join(os.NewSyscallError("mount_setattr", err), f.Close())
	}
	return f, nil
}

// scan reads the container's changes, but not the empty files that were made
// as mount points for it.
func (c *Container) scan(ctx context.Context, dir *os.File, stubs map[string]bool, quick bool) (*tree.Tree, error) {
	t, err := tree.Scan(ctx, fmt.Sprintf("/proc/self/fd/%d", dir.Fd()), tree.ScanOptions{
		NoHash: quick,
		Filter: func(p string, t tree.Type) (keep, descend bool) {
			if !stubs[p] {
				return true, true
			}
			// A directory is kept if there is anything below it.
			return t != tree.Dir && !c.emptyFile(p), true
		},
	})
	if err != nil {
		return nil, fmt.Errorf("read the changes of container %s: %w", c.Name, err)
	}
	return t, nil
}

func (c *Container) emptyFile(p string) bool {
	fi, err := os.Lstat(filepath.Join(c.fsDir(), p))
	return err != nil || fi.Mode().IsRegular() && fi.Size() == 0
}

// Layer returns the container's changes as a layer's tree, and the directory
// that has them, which the caller closes. The container should not change them
// meanwhile: pause it.
func (c *Container) Layer(ctx context.Context) (dir *os.File, t *tree.Tree, err error) {
	stubs, err := c.stubs()
	if err != nil {
		return nil, nil, err
	}
	if dir, err = c.upper(); err != nil {
		return nil, nil, err
	}
	if t, err = c.scan(ctx, dir, stubs, false); err != nil {
		return nil, nil, errors.Join(err, dir.Close())
	}
	return dir, t, nil
}

// SpaceUsed is the size of what the container has changed, in bytes.
func (c *Container) SpaceUsed() int64 { return size(c.fsDir()) }
