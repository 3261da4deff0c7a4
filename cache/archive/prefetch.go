package archive

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"runtime"
	"sync"

	"kiln.build/cache/tree"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// prefetch reads and checks the small files of a layer ahead of the stream
// that they go into, several at a time: opening them takes longer than
// copying their bytes.
type prefetch struct {
	order chan *batch // in the order of the stream
	work  chan *batch
	stop  chan struct{}
	wait  sync.WaitGroup
	spare sync.Pool // of *batch

	// Of the consumer.
	current *batch
	next    int
}

// batch is some files one after the other.
type batch struct {
	files []*tree.Entry
	ends  []int // of each file in data
	errs  []error
	data  []byte
	done  chan struct{}
}

const (
	// smallFile is the largest that is read ahead.
	smallFile = 256 << 10

	batchBytes = 1 << 20
	batchFiles = 64
)

// ahead reports whether a file's content is read ahead.
func ahead(e *tree.Entry) bool {
	return e.Type == tree.File && e.Hardlink == "" && e.Size > 0 && e.Size <= smallFile
}

// newPrefetch starts to read the small files of t. Close must be called.
func newPrefetch(dir string, t *tree.Tree, layer digest.Digest) *prefetch {
	workers := min(runtime.GOMAXPROCS(0), 8)
	p := &prefetch{
		order: make(chan *batch, workers+1),
		work:  make(chan *batch, workers+1),
		stop:  make(chan struct{}),
	}
	p.wait.Go(func() {
		defer close(p.work)
		defer close(p.order)
		p.produce(t)
	})
	for range workers {
		p.wait.Go(func() { p.read(dir, layer) })
	}
	return p
}

// produce hands out batches.
func (p *prefetch) produce(t *tree.Tree) {
	b, size := p.batch(), int64(0)
	send := func() bool {
		for _, to := range []chan *batch{p.order, p.work} {
			select {
			case to <- b:
			case <-p.stop:
				return false
			}
		}
		b, size = p.batch(), 0
		return true
	}
	for i := range t.Entries {
		e := &t.Entries[i]
		if !ahead(e) {
			continue
		}
		if len(b.files) > 0 && (size+e.Size > batchBytes || len(b.files) == batchFiles) && !send() {
			return
		}
		b.files = append(b.files, e)
		size += e.Size
	}
	if len(b.files) > 0 {
		send()
	}
}

func (p *prefetch) batch() *batch {
	b, _ := p.spare.Get().(*batch)
	if b == nil {
		b = &batch{}
	}
	clear(b.files)
	*b = batch{files: b.files[:0], ends: b.ends[:0], errs: b.errs[:0], data: b.data[:0], done: make(chan struct{})}
	return b
}

// read fills batches.
func (p *prefetch) read(dir string, layer digest.Digest) {
	d, err := openDisk(dir)
	if err == nil {
		defer d.Close()
	}
	for b := range p.work {
		for _, e := range b.files {
			ferr := err
			if ferr == nil {
				b.data, ferr = readChecked(b.data, d, e, layer)
			}
			b.ends = append(b.ends, len(b.data))
			b.errs = append(b.errs, ferr)
		}
		close(b.done)
	}
}

// Content is that of the next small file, valid until the next call.
func (p *prefetch) Content(ctx context.Context) ([]byte, error) {
	for p.current == nil || p.next == len(p.current.files) {
		if p.current != nil {
			p.spare.Put(p.current)
			p.current = nil
		}
		b, ok := <-p.order
		if !ok {
			return nil, io.ErrUnexpectedEOF
		}
		select {
		case <-b.done:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
		p.current, p.next = b, 0
	}
	i := p.next
	p.next++
	start := 0
	if i > 0 {
		start = p.current.ends[i-1]
	}
	return p.current.data[start:p.current.ends[i]], p.current.errs[i]
}

// Close stops reading and waits until it has stopped.
func (p *prefetch) Close() {
	close(p.stop)
	p.wait.Wait()
}

// readChecked appends the content of a small file, and fails unless it is
// what the tree says.
func readChecked(buf []byte, d *disk, e *tree.Entry, layer digest.Digest) ([]byte, error) {
	corrupt := func(reason string) error { return &CorruptError{Path: e.Path, Layer: layer, Reason: reason} }
	fd, err := openRegular(d, e.Path)
	if err != nil {
		return buf, corrupt(err.Error())
	}
	defer unix.Close(fd)
	start := len(buf)
	end := start + int(e.Size)
	if cap(buf) <= end {
		grown := make([]byte, start, max(end+1, batchBytes+1))
		copy(grown, buf)
		buf = grown
	}
	buf = buf[:end+1] // one more byte would show that the file is longer
	n := start
	for n <= end {
		m, err := unix.Read(fd, buf[n:])
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return buf[:start], fmt.Errorf("read %q: %w", e.Path, err)
		}
		if m == 0 {
			break
		}
		if n += m; n == end {
			break // a read that stops short of the byte more is at the end
		}
	}
	switch {
	case n > end:
		return buf[:start], corrupt(fmt.Sprintf("it is longer than %d bytes", e.Size))
	case n < end:
		return buf[:start], corrupt(fmt.Sprintf("it has %d of %d bytes", n-start, e.Size))
	}
	if got := sha256.Sum256(buf[start:end]); digest.NewDigestFromBytes(digest.SHA256, got[:]) != e.Digest {
		return buf[:start], corrupt("its bytes have the digest " + digest.NewDigestFromBytes(digest.SHA256, got[:]).String())
	}
	return buf[:end], nil
}

// openRegular opens a regular file below a disk's root. Anything else is
// refused before it can block or act.
func openRegular(d *disk, name string) (int, error) {
	parent, base, err := d.in(name)
	if err != nil {
		return -1, err
	}
	fd, err := unix.Openat(parent, base, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, &fs.PathError{Op: "open", Path: name, Err: err}
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFREG {
		unix.Close(fd)
		return -1, errors.Join(fmt.Errorf("%q is not a regular file", name), err)
	}
	return fd, nil
}
