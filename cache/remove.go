package cache

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// errStopped is what removeAll returns when it was stopped.
var errStopped = errors.New("stopped")

// removeAll deletes a file or a directory with everything in it; stop, which
// may be nil, ends it early. What it is used for may have been written by a
// container, so it works by descriptors and never follows a link; and it
// never enters a mount, of which the death of a process could have left one:
// deleting the build context through a forgotten bind mount would be worse
// than leaving a directory. Directories without permissions, such as
// overlayfs leaves in its work directory, are no obstacle. Others may delete
// the same at the same time.
func removeAll(path string, stop <-chan struct{}) error {
	parent, err := unix.Open(filepath.Dir(path), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err == unix.ENOENT {
		return nil
	}
	if err != nil {
		return &fs.PathError{Op: "remove", Path: path, Err: err}
	}
	defer unix.Close(parent)
	if err := removeAt(parent, filepath.Base(path), stop); err != nil {
		return &fs.PathError{Op: "remove", Path: path, Err: err}
	}
	return nil
}

func removeAt(parent int, name string, stop <-chan struct{}) error {
	select {
	case <-stop:
		return errStopped
	default:
	}
	err := unix.Unlinkat(parent, name, 0)
	switch err {
	case nil, unix.ENOENT:
		return nil
	case unix.EISDIR, unix.EPERM: // EPERM is what POSIX has for a directory
	default:
		return err
	}
	rmdir := func() error {
		if err := unix.Unlinkat(parent, name, unix.AT_REMOVEDIR); err != nil && err != unix.ENOENT {
			return err
		}
		return nil
	}
	fd, openErr := openBeneath(parent, name)
	if openErr == unix.EACCES {
		// Only a directory of one's own can be changed, and fchmodat follows
		// links: not so on a name that unlinkat has just called a directory,
		// below a directory that no one else may write to.
		if openErr = unix.Fchmodat(parent, name, 0o700, 0); openErr == nil {
			fd, openErr = openBeneath(parent, name)
		}
	}
	switch openErr {
	case nil:
	case unix.ENOENT:
		return nil
	case unix.ENOTDIR: // a file that may not be removed
		return err
	default:
		return openErr
	}
	dir := os.NewFile(uintptr(fd), name)
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return err
	}
	writable := false
	for _, n := range names {
		err := removeAt(fd, n, stop)
		if err == unix.EACCES && !writable {
			writable = true
			if unix.Fchmod(fd, 0o700) == nil {
				err = removeAt(fd, n, stop)
			}
		}
		if err != nil {
			return err
		}
	}
	return rmdir()
}

// openBeneath opens a directory unless something is mounted on it.
func openBeneath(parent int, name string) (int, error) {
	const flags = unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC
	for {
		fd, err := unix.Openat2(parent, name, &unix.OpenHow{Flags: flags, Resolve: unix.RESOLVE_NO_XDEV | unix.RESOLVE_NO_SYMLINKS})
		if err != unix.EINTR && err != unix.EAGAIN {
			return fd, err
		}
	}
}
