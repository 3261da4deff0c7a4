package tree

import (
	"context"
	"crypto/sha256"
	"errors"
	"hash"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// file sees to a regular file's digest and attributes, as a rule in a
// goroutine of the group.
func (s *scanner) file(d *openDir, name string, e *Entry, st *unix.Stat_t) error {
	e.Size = st.Size
	if st.Nlink > 1 {
		id := inode{st.Dev, st.Ino}
		if first := s.links[id]; first != nil {
			e.Hardlink = first.Path
			if s.inodes == nil {
				s.inodes = map[*Entry]inode{}
			}
			s.inodes[e] = id
			// Attributes belong to the inode, but a worker may not have read
			// those of the first link yet.
			return s.attributes(e, pathXattrs(procPath(d.fd, name)))
		}
		s.links[id] = e
	}
	switch {
	case s.o.NoHash:
	case s.o.Plain && st.Size == 0:
		e.Digest = digest.FromBytes(nil)
	case s.o.Known != nil:
		e.Digest, _ = s.o.Known.Lookup(e.Path, st)
	}
	if s.o.Plain && (s.o.NoHash || e.Digest != "") {
		return nil
	}
	d.users.Add(1)
	s.pending = append(s.pending, pendingFile{d, name, e})
	if s.pendingBytes += st.Size; len(s.pending) == batchFiles || s.pendingBytes >= batchBytes {
		s.flush()
	}
	return nil
}

// pendingFile is a file that is still to be read.
type pendingFile struct {
	dir  *openDir
	name string
	e    *Entry
}

// Files are handed to workers some at a time: to hand one on takes as long as
// to read a small one.
const (
	batchFiles = 32
	batchBytes = 256 << 10
)

// flush has the pending files read, which waits while all workers are busy.
func (s *scanner) flush() {
	files := s.pending
	if len(files) == 0 {
		return
	}
	s.pending, s.pendingBytes = nil, 0
	s.group.Go(func() error {
		var first error
		for _, f := range files {
			if first == nil {
				first = s.read(f.dir, f.name, f.e)
			}
			f.dir.done()
		}
		return first
	})
}

// buffers are for reading files. Larger ones are not faster: hashing is what
// takes the time.
var buffers = sync.Pool{New: func() any { b := make([]byte, 256<<10); return &b }}

var hashers = sync.Pool{New: func() any { return sha256.New() }}

// read hashes a file and reads its attributes.
func (s *scanner) read(d *openDir, name string, e *Entry) error {
	if s.ctx.Err() != nil {
		return context.Cause(s.ctx)
	}
	// Should a fifo have taken the file's place, opening must not wait.
	fd, err := openQuietly(d.fd, name, unix.O_RDONLY|unix.O_NONBLOCK)
	if err != nil {
		return pathError("open", e.Path, err)
	}
	defer unix.Close(fd)
	if err := s.attributes(e, fdXattrs(fd)); err != nil {
		return err
	}
	if s.o.NoHash || e.Digest != "" {
		return nil
	}
	seen := time.Now()
	var before, after unix.Stat_t
	if err := unix.Fstat(fd, &before); err != nil {
		return pathError("stat", e.Path, err)
	}
	if typeOf(before.Mode) != File {
		return pathError("read", e.Path, errors.New("it is no longer a regular file"))
	}
	if e.Digest, e.Size, err = s.hash(fd, before.Size); err != nil {
		return pathError("read", e.Path, err)
	}
	if s.o.Known == nil {
		return nil
	}
	if err := unix.Fstat(fd, &after); err != nil {
		return pathError("stat", e.Path, err)
	}
	if before.Size == e.Size && after.Size == e.Size && before.Mtim == after.Mtim && before.Ctim == after.Ctim {
		s.o.Known.Put(e.Path, &before, e.Digest, seen)
	}
	return nil
}

// hash reads a file to its end, which is to be expected at a size.
func (s *scanner) hash(fd int, expected int64) (digest.Digest, int64, error) {
	h := hashers.Get().(hash.Hash)
	defer hashers.Put(h)
	h.Reset()
	buf := buffers.Get().(*[]byte)
	defer buffers.Put(buf)
	var size int64
	for {
		var n int
		err := retry(func() (err error) { n, err = unix.Read(fd, *buf); return err })
		if err != nil {
			return "", 0, err
		}
		h.Write((*buf)[:n])
		size += int64(n)
		// Less than there is room for is the end, if that was to come. (A file
		// that grew meanwhile has another time than before.)
		if n == 0 || size == expected && n < len(*buf) {
			var sum [sha256.Size]byte
			d := encoded(h.Sum(sum[:0]))
			return digest.Digest(d[:]), size, nil
		}
		if s.ctx.Err() != nil {
			return "", 0, context.Cause(s.ctx)
		}
	}
}

// refused says that a file could not be opened without its time of access
// being changed, which is for its owner and for root.
var refused atomic.Bool

// openQuietly is openat that leaves the time of access alone where it may: to
// change it takes a tenth of what it takes to read a small file, and means
// nothing to those who use it.
func openQuietly(at int, name string, flags int) (int, error) {
	if !refused.Load() {
		fd, err := openat(at, name, flags|unix.O_NOATIME)
		if err != unix.EPERM {
			return fd, err
		}
		refused.Store(true)
	}
	return openat(at, name, flags)
}
