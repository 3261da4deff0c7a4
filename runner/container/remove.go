package container

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
	"kiln.build/runner/sandbox/cgroup"
)

// RemoveOptions say how a container is removed.
type RemoveOptions struct {
	Force   bool // kill it if it runs
	Volumes bool // anonymous ones, too
}

// Remove deletes a container.
func (c *Container) Remove(ctx context.Context, o RemoveOptions) error {
	verb := Remove
	if o.Force {
		verb = ForceRemove
	}
	l, _, err := c.lock(ctx, verb)
	for errors.Is(err, errLive) { // again where somebody else starts it
		if err := c.end(ctx, unix.SIGKILL); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		l, _, err = c.lock(ctx, verb)
	}
	if o.Force && errors.Is(err, fs.ErrNotExist) {
		return nil // it was to remove itself
	}
	if err != nil {
		return err
	}
	defer l.unlock()
	return c.remove(o.Volumes || c.AutoRemove)
}

// remove deletes the container. The caller holds the lock.
func (c *Container) remove(volumes bool) error {
	gone, err := c.hide(volumes)
	return errors.Join(err, removeAll(gone))
}

// hide removes the container but for its folder, which gets another name, so
// that a half-deleted one is never seen; "" is none. The caller holds the
// lock, and keeps it until the folder is deleted, so that nobody else does.
func (c *Container) hide(volumes bool) (gone string, err error) {
	if c.HostPID || c.PIDOf != "" {
		// Processes that did not end with a monitor that was killed.
		if sys, err := cgroup.Detect(); err == nil {
			sys.Sweep(c.Limits.Parent)
		}
	}
	gone = filepath.Join(filepath.Dir(c.dir), ".old-"+c.ID)
	if err := os.Rename(c.dir, gone); err != nil {
		return "", err
	}
	var errs []error
	for _, b := range c.Binds {
		if volumes && b.Anonymous && !c.set().used(b.Volume) {
			errs = append(errs, os.RemoveAll(filepath.Dir(b.Source)))
			c.set().Note("volume", "destroy", b.Volume, "driver", "local")
		}
	}
	c.Note("destroy")
	return gone, errors.Join(errs...)
}

// removeAll deletes a container's folder, of which "" is none, its lock last.
func removeAll(dir string) error {
	if dir == "" {
		return nil
	}
	// overlayfs leaves a directory in "work" that not even its owner may read.
	_ = os.Chmod(filepath.Join(dir, "work", "work"), 0o700)
	err := os.RemoveAll(filepath.Join(dir, "fs")) // which may take long
	if err == nil {
		err = os.RemoveAll(dir)
	}
	// Whoever was on the way to the lock when the folder lost its name makes
	// the file in it anew, and finds no container. There are only so many.
	for tries := 0; errors.Is(err, unix.ENOTEMPTY) && tries < 100; tries++ {
		err = os.RemoveAll(dir)
	}
	return err
}

// forgotten removes a container that was to remove itself at its end, and
// whose monitor was killed before it could. It reports whether there is no
// such container any more.
func (c *Container) forgotten() bool {
	if !c.AutoRemove {
		return false
	}
	st, err := c.State()
	if err != nil || st.Status != Exited {
		return errors.Is(err, fs.ErrNotExist)
	}
	l, err := tryLock(c.lockPath())
	if err != nil {
		return errors.Is(err, fs.ErrNotExist)
	}
	defer l.unlock()
	if st, err := c.readState(); err != nil || settled(st).Status != Exited {
		return errors.Is(err, fs.ErrNotExist) // removed, or started again
	}
	return c.remove(true) == nil
}
