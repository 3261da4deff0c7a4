// Package unnamed writes files that are there whole or not at all.
package unnamed

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A File gets its name once it is whole. Until then it has none (O_TMPFILE,
// open(2)), so that the kernel removes it with the process that dies while
// writing it; on file systems that cannot do that it has a temporary one, with
// the prefix that New was told.
type File struct {
	*os.File
	temp string // its temporary name, if it has one
}

// New makes a file of mode 0600 in the directory of a path, which is what
// errors call it. Close must be called.
func New(path, prefix string) (*File, error) {
	u, err := Nameless(path)
	if err == nil || !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.EISDIR) {
		return u, err
	}
	f, err := os.CreateTemp(filepath.Dir(path), prefix)
	if err != nil {
		return nil, err
	}
	return &File{File: f, temp: f.Name()}, nil
}

// Nameless is New that fails where the file would have a temporary name.
func Nameless(path string) (*File, error) {
	fd, err := unix.Open(filepath.Dir(path), unix.O_TMPFILE|unix.O_WRONLY|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return &File{File: os.NewFile(uintptr(fd), path)}, nil
}

// SetName gives the file its name, when all is written. What has the name
// already is replaced, by way of the name beside, which is the caller's alone.
func (f *File) SetName(path, beside string) error {
	if f.temp != "" {
		return os.Rename(f.temp, path)
	}
	err := f.link(path)
	if !errors.Is(err, unix.EEXIST) {
		return err
	}
	// There is no call that links over a name.
	if err := errors.Join(removeIfThere(beside), f.link(beside)); err != nil {
		return err
	}
	return errors.Join(os.Rename(beside, path), removeIfThere(beside))
}

// link makes a name for the file through /proc, which needs no privilege.
func (f *File) link(path string) error {
	from := "/proc/self/fd/" + strconv.Itoa(int(f.Fd()))
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

// Flush starts to write a range back without waiting for that.
func (f *File) Flush(offset, n int64) {
	// Sync tells what went wrong, and not all file systems can do this.
	_ = unix.SyncFileRange(int(f.Fd()), offset, n, unix.SYNC_FILE_RANGE_WRITE)
}

// SetDirect switches writing past the page cache, and reports whether that
// worked.
func (f *File) SetDirect(on bool) bool {
	flags, err := unix.FcntlInt(f.Fd(), unix.F_GETFL, 0)
	if err != nil {
		return false
	}
	if on {
		flags |= unix.O_DIRECT
	} else {
		flags &^= unix.O_DIRECT
	}
	_, err = unix.FcntlInt(f.Fd(), unix.F_SETFL, flags)
	return err == nil
}

// DirectAlign is what reads and writes past the page cache begin and end at a
// multiple of, in the file and in memory: no device has larger blocks.
const DirectAlign = 4096

// DirectBuffer makes a buffer for them.
func DirectBuffer(size int) []byte {
	b := make([]byte, size+DirectAlign)
	skip := -int(uintptr(unsafe.Pointer(unsafe.SliceData(b)))) & (DirectAlign - 1)
	return b[skip : skip+size : skip+size]
}

// Busy calls f and returns how much of a processor that took: of reading and
// writing memory, what it takes the kernel to have that memory, too, which in
// a virtual machine may have to come from the host.
func Busy(f func()) time.Duration {
	runtime.LockOSThread() // whose clock it is
	defer runtime.UnlockOSThread()
	start := threadTime()
	f()
	return threadTime() - start
}

// threadTime is how much of a processor this thread has had.
func threadTime() time.Duration {
	var ts unix.Timespec
	if unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &ts) != nil {
		return 0
	}
	return time.Duration(ts.Nano())
}

// Close ends writing. What has no name goes. Network file systems may tell only
// here what went wrong, if nobody has called Sync.
func (f *File) Close() error {
	err := f.File.Close()
	if f.temp != "" {
		_ = os.Remove(f.temp) // fails where it was renamed
	}
	return err
}
