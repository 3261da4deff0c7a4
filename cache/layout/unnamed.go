package layout

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// unnamed is a file that gets its name once it is whole. Until then it has
// none (O_TMPFILE, open(2)), so that the kernel removes it with the process
// that dies while writing it; on file systems that cannot do that it has a
// temporary one, which Collect removes.
type unnamed struct {
	*os.File
	temp string // its temporary name, if it has one
}

func newUnnamed(dir string) (*unnamed, error) {
	fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_WRONLY|unix.O_CLOEXEC, 0o600)
	if err == nil {
		return &unnamed{File: os.NewFile(uintptr(fd), filepath.Join(dir, "unnamed"))}, nil
	}
	if !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.EISDIR) {
		return nil, &os.PathError{Op: "open unnamed file in", Path: dir, Err: err}
	}
	f, err := os.CreateTemp(dir, tempPrefix)
	if err != nil {
		return nil, err
	}
	return &unnamed{File: f, temp: f.Name()}, nil
}

// name gives the file its name. What has the name already is replaced, by
// way of the name beside, which is the caller's alone.
func (u *unnamed) name(path, beside string) error {
	if u.temp != "" {
		return os.Rename(u.temp, path)
	}
	err := u.link(path)
	if !errors.Is(err, unix.EEXIST) {
		return err
	}
	// There is no call that links over a name.
	if err := errors.Join(removeIfThere(beside), u.link(beside)); err != nil {
		return err
	}
	return errors.Join(os.Rename(beside, path), removeIfThere(beside))
}

// link makes a name for the file through /proc, which needs no privilege.
func (u *unnamed) link(path string) error {
	from := "/proc/self/fd/" + strconv.Itoa(int(u.Fd()))
	if err := unix.Linkat(unix.AT_FDCWD, from, unix.AT_FDCWD, path, unix.AT_SYMLINK_FOLLOW); err != nil {
		return &os.LinkError{Op: "link", Old: from, New: path, Err: err}
	}
	return nil
}

// removeIfThere removes what a rename to an equal file leaves (rename(2)), or
// a process that died.
func removeIfThere(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// flush starts to write a range back without waiting for that.
func (u *unnamed) flush(offset, n int64) {
	// Sync tells what went wrong, and not all file systems can do this.
	_ = unix.SyncFileRange(int(u.Fd()), offset, n, unix.SYNC_FILE_RANGE_WRITE)
}

func (u *unnamed) close() {
	_ = u.Close() // Sync has told all that matters
	if u.temp != "" {
		_ = os.Remove(u.temp) // fails where it was renamed
	}
}
