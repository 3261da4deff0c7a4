package cache

import (
	"io/fs"
	"slices"
	"sync"

	"golang.org/x/sys/unix"
)

// readFile reads a small regular file and appends it to buf. It does without
// what package os adds for files that can block, which is half of the system
// calls: a build of which everything is cached does little else.
func readFile(path string, buf []byte) ([]byte, fileID, error) {
	fail := func(op string, err error) ([]byte, fileID, error) {
		return buf, fileID{}, &fs.PathError{Op: op, Path: path, Err: err}
	}
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	for err == unix.EINTR {
		fd, err = unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	}
	if err != nil {
		return fail("open", err)
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return fail("stat", err)
	}
	buf = slices.Grow(buf, int(min(st.Size, 1<<30))+1) // one more: the end is seen at once
	for {
		if len(buf) == cap(buf) {
			buf = slices.Grow(buf, len(buf))
		}
		n, err := unix.Read(fd, buf[len(buf):cap(buf)])
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return fail("read", err)
		}
		if n == 0 {
			return buf, idOf(&st), nil
		}
		buf = buf[:len(buf)+n]
	}
}

// fileID tells a file from what replaces it, and from itself after a change.
type fileID struct {
	ino          uint64
	size         int64
	mtime, ctime unix.Timespec
}

func idOf(st *unix.Stat_t) fileID { return fileID{st.Ino, st.Size, st.Mtim, st.Ctim} }

// readBuffers are for files that are decoded at once.
var readBuffers = sync.Pool{New: func() any { b := make([]byte, 0, 8<<10); return &b }}
