package cache

import (
	"io/fs"

	"golang.org/x/sys/unix"
)

// readFile reads a small regular file. It does without what package os adds
// for files that can block, which is half of the system calls: a build of
// which everything is cached does little else.
func readFile(path string) ([]byte, error) {
	fail := func(op string, err error) ([]byte, error) { return nil, &fs.PathError{Op: op, Path: path, Err: err} }
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	for err == unix.EINTR {
		fd, err = unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	}
	if err != nil {
		return fail("open", err)
	}
	defer unix.Close(fd)
	var b []byte
	for size := 2 << 10; ; size *= 2 {
		b = append(make([]byte, 0, size), b...)
		for len(b) < cap(b) {
			n, err := unix.Read(fd, b[len(b):cap(b)])
			if err == unix.EINTR {
				continue
			}
			if err != nil {
				return fail("read", err)
			}
			if n == 0 {
				return b, nil
			}
			b = b[:len(b)+n]
		}
	}
}
