package blob

import (
	"io"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"kiln.build/cache/layout/unnamed"

	"golang.org/x/sys/unix"
)

// ranges reads parts of a blob, each once. What is in memory comes from there,
// as long as that is cheap. The rest goes past the page cache (O_DIRECT,
// open(2)), where it could only take the place of what someone needs again: the
// next time these bytes are read from the blob that is being made. It may be
// used by several goroutines.
type ranges struct {
	file   *os.File
	direct *os.File // nil where it cannot be had

	dear atomic.Bool // what is in memory is not worth what it takes

	mu    sync.Mutex
	bytes int           // read from memory since that was last weighed
	cost  time.Duration // of a processor, for them
}

const (
	// dearMemory is what a MiB from memory may take of a processor. It takes a
	// quarter of a millisecond, and three where the host of a virtual machine
	// has taken pages back that nobody had looked at for a while. From a disk it
	// takes as long, but hardly any of a processor.
	dearMemory = time.Millisecond

	// weighBytes is after how much that is looked at.
	weighBytes = 4 << 20
)

func openRanges(path string) (*ranges, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	r := &ranges{file: f}
	if fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECT|unix.O_CLOEXEC, 0); err == nil {
		r.direct = os.NewFile(uintptr(fd), path)
	}
	return r, nil
}

func (r *ranges) close() {
	r.file.Close()
	if r.direct != nil {
		r.direct.Close()
	}
}

// readAt fills b.
func (r *ranges) readAt(b []byte, offset int64) error {
	if !r.dear.Load() {
		n := r.readCached(b, offset)
		if n == len(b) {
			return nil
		}
		b, offset = b[n:], offset+int64(n)
	}
	if r.direct != nil && r.readPast(b, offset) {
		return nil
	}
	_, err := r.file.ReadAt(b, offset)
	return err
}

// readCached reads what is in memory, up to the first that is not.
func (r *ranges) readCached(b []byte, offset int64) (n int) {
	cost := unnamed.Busy(func() {
		// Not all file systems can tell what is in memory: nothing is read then.
		n, _ = unix.Preadv2(int(r.file.Fd()), [][]byte{b}, offset, unix.RWF_NOWAIT)
	})
	n = max(n, 0)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.bytes, r.cost = r.bytes+n, r.cost+cost
	if r.bytes >= weighBytes {
		if r.direct != nil && r.cost > time.Duration(r.bytes>>20)*dearMemory {
			r.dear.Store(true)
		}
		r.bytes, r.cost = 0, 0
	}
	return n
}

// pastBuffers are for direct reads.
var pastBuffers = sync.Pool{New: func() any { return new([]byte) }}

// readPast reads past the page cache, and reports whether that worked.
func (r *ranges) readPast(b []byte, offset int64) bool {
	skip := offset % unnamed.DirectAlign
	size := (int(skip) + len(b) + unnamed.DirectAlign - 1) / unnamed.DirectAlign * unnamed.DirectAlign
	p := pastBuffers.Get().(*[]byte)
	defer pastBuffers.Put(p)
	if len(*p) < size {
		*p = unnamed.DirectBuffer(size)
	}
	n, err := r.direct.ReadAt((*p)[:size], offset-skip)
	if err != nil && err != io.EOF || n < int(skip)+len(b) {
		return false
	}
	copy(b, (*p)[skip:])
	return true
}
