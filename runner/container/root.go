package container

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"

	"golang.org/x/sys/unix"
	"kiln.build/cache"
	"kiln.build/runner/overlay"
)

// mountRoot mounts the container's file system: its own changes over its
// image. The image's layers stay as long as the process does.
func (r *run) mountRoot(ctx context.Context) (*os.File, error) {
	if r.fresh && r.st.Started.IsZero() {
		e, ok, err := r.m.Store.TopDir(r.c.Layers)
		if err != nil {
			return nil, err
		}
		if ok {
			if err := errors.Join(os.Chown(r.c.fsDir(), e.UID, e.GID), unix.Chmod(r.c.fsDir(), e.Mode)); err != nil {
				return nil, err
			}
		}
	}
	return r.c.mount(ctx, r.m.Store, true)
}

// mount mounts the container's file system, nowhere. Only one mount at a time
// may be able to write.
func (c *Container) mount(ctx context.Context, store *cache.Store, write bool) (*os.File, error) {
	if err := store.Pin(ctx, c.Digests()...); err != nil {
		return nil, err
	}
	o := overlay.Options{}
	var err error
	if o.Lower, err = store.LayerDirs(ctx, c.Layers); err != nil {
		return nil, err
	}
	if o.Empty, err = store.Scratch("empty"); err != nil {
		return nil, err
	}
	if !write {
		o.Lower = append(o.Lower, c.fsDir())
		return overlay.Mount(o)
	}
	o.Upper, o.Work = c.fsDir(), filepath.Join(c.dir, "work")
	o.Durable = !c.AutoRemove
	// A volatile mount leaves a mark that forbids mounting again, for fear
	// that the machine lost power meanwhile.
	if err := os.RemoveAll(filepath.Join(o.Work, "work", "incompat")); err != nil {
		return nil, err
	}
	return overlay.Mount(o)
}

// Root opens the root directory of the container's file system: that of the
// container as it runs, with all that is mounted there, or else a mount of
// its own, for which it needs the store. The caller calls closeRoot when
// nothing uses it any more; a container that did not run cannot be started
// before where write is set.
func (c *Container) Root(ctx context.Context, store *cache.Store, write bool) (root *os.File, closeRoot func(), err error) {
	root, _, closeRoot, err = c.openRoot(ctx, store, write)
	return root, closeRoot, err
}

// openRoot is Root, and says whether it is that of the container as it runs.
func (c *Container) openRoot(ctx context.Context, store *cache.Store, write bool) (root *os.File, live bool, closeRoot func(), err error) {
	for ctx.Err() == nil {
		st, err := c.State()
		if err != nil {
			return nil, false, nil, err
		}
		if st.Status == Running || st.Status == Paused {
			f, err := c.openLive(ctx)
			if errors.Is(err, errEnded) {
				continue
			}
			return f, true, func() { _ = f.Close() }, err
		}
		if store == nil {
			_, err := c.may(Exec, st.Status)
			return nil, false, nil, err
		}
		if !write {
			f, err := c.mount(ctx, store, false)
			return f, false, func() { _ = f.Close() }, err
		}
		if st.Status == Restarting {
			_, err := c.may(Exec, st.Status)
			return nil, false, nil, err
		}
		l, _, err := c.lock(ctx, Remove)
		var started *StateError
		if errors.As(err, &started) {
			continue
		}
		if err != nil {
			return nil, false, nil, err
		}
		f, err := c.mount(ctx, store, true)
		if err != nil {
			l.unlock()
			return nil, false, nil, err
		}
		return f, false, func() { _ = f.Close(); l.unlock() }, nil
	}
	return nil, false, nil, context.Cause(ctx)
}

// openLive has the monitor open the root of the container's command. The
// error is errEnded if that has ended.
func (c *Container) openLive(ctx context.Context) (*os.File, error) {
	k, files, err := c.dial(ctx, request{Do: doRoot}, nil)
	if err != nil {
		return nil, err
	}
	_ = k.Close()
	if len(files) != 1 {
		closeAll(files)
		return nil, errors.New("the monitor did not hand the root out")
	}
	return files[0], nil
}

// makeDir makes a directory inside of a root, and those above it, where they
// are missing.
func makeDir(root *os.File, p string) error {
	f, err := openIn(root, p, unix.O_PATH)
	if err == nil {
		return f.Close() // what it is will be seen by who uses it
	}
	if p = path.Clean("/" + p); !errors.Is(err, fs.ErrNotExist) || p == "/" {
		return err
	}
	if err := makeDir(root, path.Dir(p)); err != nil {
		return err
	}
	parent, err := openIn(root, path.Dir(p), unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer parent.Close()
	if err := unix.Mkdirat(int(parent.Fd()), path.Base(p), 0o755); err != nil && err != unix.EEXIST {
		return &os.PathError{Op: "mkdir", Path: p, Err: err}
	}
	return nil
}

// openRegular opens a regular file inside of a root for reading; see reopen.
func openRegular(root *os.File, p string) (*os.File, error) {
	f, err := openIn(root, p, unix.O_PATH)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return reopen(f)
}

// reopen opens for reading what is open for its path alone, if that is a
// regular file. A container can put a device node in a file's place, and
// although no process of its own can open it, this one could: which starts a
// watchdog, and rewinds a tape.
func reopen(f *os.File) (*os.File, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return nil, &os.PathError{Op: "stat", Path: f.Name(), Err: err}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil, &os.PathError{Op: "open", Path: f.Name(), Err: errNotRegular}
	}
	fd, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", f.Fd()), unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: f.Name(), Err: err}
	}
	return os.NewFile(uintptr(fd), f.Name()), nil
}

var errNotRegular = errors.New("not a regular file")

// openIn opens a path inside of a root; links lead nowhere else.
func openIn(root *os.File, p string, flags int) (*os.File, error) {
	if p = path.Clean("/" + p)[1:]; p == "" {
		p = "."
	}
	how := unix.OpenHow{Flags: uint64(flags | unix.O_CLOEXEC), Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS}
	for {
		fd, err := unix.Openat2(int(root.Fd()), p, &how)
		if err == unix.EINTR || err == unix.EAGAIN { // something was renamed meanwhile
			continue
		}
		if err != nil {
			return nil, &os.PathError{Op: "open", Path: "/" + p, Err: err}
		}
		return os.NewFile(uintptr(fd), "/"+p), nil
	}
}
