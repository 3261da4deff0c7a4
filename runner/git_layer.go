package runner

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	"kiln.build/cache/tree"
	"kiln.build/solver"
)

// layer makes a layer of a checked-out directory.
func (g *gitRepo) layer(ctx context.Context, dir string, when *time.Time) (solver.Layer, error) {
	draft, err := g.runner.Store.NewLayer()
	if err != nil {
		return solver.Layer{}, err
	}
	defer draft.Discard()
	if err := moveInto(draft.FS, dir, g.op.Subdir); err != nil {
		return solver.Layer{}, err
	}
	if !g.op.KeepGitDir && g.op.Subdir == "" {
		if err := os.RemoveAll(filepath.Join(draft.FS, ".git")); err != nil {
			return solver.Layer{}, err
		}
	}
	t, err := tree.Scan(ctx, draft.FS, tree.ScanOptions{Plain: true})
	if err != nil {
		return solver.Layer{}, err
	}
	kept := t.Entries[:0]
	for _, e := range t.Entries {
		if !g.keeps(e.Path) {
			if err := os.RemoveAll(filepath.Join(draft.FS, e.Path)); err != nil {
				return solver.Layer{}, err
			}
			continue
		}
		e.UID, e.GID = 0, 0
		switch {
		case e.Type == tree.Symlink:
		case e.Type == tree.Dir, e.Mode&0o100 != 0:
			e.Mode = 0o755
		default:
			e.Mode = 0o644
		}
		if when != nil {
			e.Mtime = when.UnixNano()
		}
		kept = append(kept, e)
	}
	t.Entries = kept
	// From the bottom, since a change to what is in a directory changes its
	// time.
	for i := len(t.Entries) - 1; i >= 0; i-- {
		if e := &t.Entries[i]; e.Path != "" {
			if err := setAttributes(filepath.Join(draft.FS, e.Path), e); err != nil {
				return solver.Layer{}, err
			}
		} else if err := setTime(draft.FS, e.Mtime); err != nil {
			return solver.Layer{}, err
		}
	}
	return draft.Commit(ctx, t)
}

// keeps reports whether a path gets into the layer: the .git of submodules
// leads to what is not there, unless the history is kept.
func (g *gitRepo) keeps(p string) bool {
	if g.op.KeepGitDir && g.op.Subdir == "" {
		return true
	}
	return p != ".git" && !strings.HasSuffix(p, "/.git") && !strings.HasPrefix(p, ".git/") && !strings.Contains(p, "/.git/")
}

// moveInto moves what a directory below dir holds. The way to it is opened
// one name at a time and has no links, which a repository could set up to
// lead out.
func moveInto(to, dir, sub string) error {
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { unix.Close(fd) }()
	for name := range strings.SplitSeq(strings.Trim(filepath.Clean("/"+sub), "/"), "/") {
		if name == "" {
			break
		}
		next, err := unix.Openat(fd, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		switch {
		case errors.Is(err, unix.ENOENT):
			return fmt.Errorf("it has no directory %q", sub)
		case err != nil:
			return fmt.Errorf("%q in it is no directory: no links are followed there", sub)
		}
		unix.Close(fd)
		fd = next
	}
	f, err := os.Open(fmt.Sprintf("/proc/self/fd/%d", fd))
	if err != nil {
		return err
	}
	defer f.Close()
	names, err := f.Readdirnames(-1)
	if err != nil {
		return err
	}
	for _, n := range names {
		if err := unix.Renameat(fd, n, unix.AT_FDCWD, filepath.Join(to, n)); err != nil {
			return &os.PathError{Op: "move", Path: filepath.Join(sub, n), Err: err}
		}
	}
	return nil
}
