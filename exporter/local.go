package exporter

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"

	"kiln.build/cache/tree"

	"golang.org/x/sys/unix"
)

// exportLocal writes root file systems into a folder, over what is there.
// Files belong to who runs the program, as with docker. Nothing is written
// outside of the folder, whatever links are in it or in the image.
func (e *Exporter) exportLocal(ctx context.Context, o Output, all []Image) error {
	if err := os.MkdirAll(o.Dest, 0o755); err != nil {
		return err
	}
	top, err := os.OpenRoot(o.Dest)
	if err != nil {
		return err
	}
	defer top.Close()
	folders := e.folders(o, all)
	for i, image := range all {
		r, err := e.rootFS(image.Output.Layers)
		if err != nil {
			return err
		}
		defer r.close()
		l := local{r: r, root: top}
		if folders[i] != "" {
			if err := l.dir(folders[i]); err != nil {
				return err
			}
			if l.root, err = top.OpenRoot(folders[i]); err != nil {
				return err
			}
			defer l.root.Close()
		}
		if err := l.write(ctx); err != nil {
			return fmt.Errorf("write %s: %w", path.Join(o.Dest, folders[i]), err)
		}
	}
	return nil
}

type local struct {
	r    *rootFS
	root *os.Root
	dirs []tree.Entry // in walking order
}

func (l *local) write(ctx context.Context) error {
	if err := l.r.walk(ctx, func(e tree.Entry, layer int) error { return l.entry(ctx, e, layer) }); err != nil {
		return err
	}
	// Modes and times of directories come last, the innermost first: writing
	// into them would be refused, and would change the times.
	for i := len(l.dirs) - 1; i >= 0; i-- {
		d := l.dirs[i]
		if err := l.root.Chmod(d.Path, fileMode(d.Mode)); err != nil {
			return err
		}
		t := l.r.mtime(d)
		if err := l.root.Chtimes(d.Path, t, t); err != nil {
			return err
		}
	}
	return nil
}

func (l *local) entry(ctx context.Context, e tree.Entry, layer int) error {
	if e.Type == tree.Dir {
		l.dirs = append(l.dirs, e)
		return l.dir(e.Path)
	}
	if err := l.root.RemoveAll(e.Path); err != nil {
		return err
	}
	switch e.Type {
	case tree.File:
		if e.Hardlink != "" {
			return l.root.Link(e.Hardlink, e.Path)
		}
		return l.file(ctx, e, layer)
	case tree.Symlink:
		if err := l.root.Symlink(e.Link, e.Path); err != nil {
			return err
		}
		return l.inParent(e.Path, func(dir int, name string) error { return l.setTime(dir, name, e) })
	case tree.Fifo:
		return l.node(e, unix.S_IFIFO, 0)
	case tree.Char:
		return l.node(e, unix.S_IFCHR, unix.Mkdev(e.Major, e.Minor))
	case tree.Block:
		return l.node(e, unix.S_IFBLK, unix.Mkdev(e.Major, e.Minor))
	}
	return fmt.Errorf("%q: unknown type %q", e.Path, e.Type)
}

// dir makes a directory unless there is one. What else has the name, a
// symbolic link included, makes room.
func (l *local) dir(name string) error {
	fi, err := l.root.Lstat(name)
	switch {
	case err == nil && fi.IsDir():
		// Others' directories are left to fail by themselves.
		if fi.Mode().Perm()&0o300 != 0o300 {
			return l.root.Chmod(name, fi.Mode().Perm()|0o700)
		}
		return nil
	case err == nil:
		if err := l.root.Remove(name); err != nil {
			return err
		}
	case !errors.Is(err, fs.ErrNotExist):
		return err
	}
	return l.root.Mkdir(name, 0o700)
}

func (l *local) file(ctx context.Context, e tree.Entry, layer int) (err error) {
	f, err := l.root.OpenFile(e.Path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if err = errors.Join(err, f.Close()); err != nil {
			l.root.Remove(e.Path)
		}
	}()
	if err := l.r.content(ctx, f, e, layer); err != nil {
		return err
	}
	if err := f.Chmod(fileMode(e.Mode)); err != nil {
		return err
	}
	t := l.r.mtime(e)
	return l.root.Chtimes(e.Path, t, t)
}

// node makes a device or fifo. Devices need root; without it the export
// fails, as an incomplete one would surprise more.
func (l *local) node(e tree.Entry, kind uint32, dev uint64) error {
	return l.inParent(e.Path, func(dir int, name string) error {
		err := unix.Mknodat(dir, name, kind|0o600, int(dev))
		if err == nil {
			// Apart from the umask, and no link: it was made just now.
			err = unix.Fchmodat(dir, name, e.Mode, 0)
		}
		if err == nil {
			err = l.setTime(dir, name, e)
		}
		if err != nil {
			return &fs.PathError{Op: "mknod", Path: e.Path, Err: err}
		}
		return nil
	})
}

func (l *local) setTime(dir int, name string, e tree.Entry) error {
	ts := unix.NsecToTimespec(l.r.mtime(e).UnixNano())
	return unix.UtimesNanoAt(dir, name, []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW)
}

func (l *local) inParent(name string, fn func(dir int, name string) error) error {
	dir, err := l.root.Open(path.Join(".", path.Dir(name)))
	if err != nil {
		return err
	}
	defer dir.Close()
	return fn(int(dir.Fd()), path.Base(name))
}

// fileMode is a mode of a tree as package os has it.
func fileMode(mode uint32) fs.FileMode {
	m := fs.FileMode(mode & 0o777)
	for bit, flag := range map[uint32]fs.FileMode{unix.S_ISUID: fs.ModeSetuid, unix.S_ISGID: fs.ModeSetgid, unix.S_ISVTX: fs.ModeSticky} {
		if mode&bit != 0 {
			m |= flag
		}
	}
	return m
}
