package archive

import (
	"errors"
	"fmt"
	"io/fs"
	"runtime"
	"sync"

	"kiln.build/cache/tree"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// prefetch reads and checks the small files of a layer for a Feed, several at
// a time.
type prefetch struct {
	*Feed
	work chan work
	wait sync.WaitGroup
}

type work struct {
	files []*tree.Entry
	to    *Batch
}

// newPrefetch starts to read the small files of t. Close must be called.
func newPrefetch(dir string, t *tree.Tree, layer digest.Digest) *prefetch {
	workers := min(runtime.GOMAXPROCS(0), 8)
	p := &prefetch{Feed: NewFeed(workers + 1), work: make(chan work, workers+1)}
	p.reading.Store(true)
	p.wait.Go(func() {
		p.produce(t)
		p.End(nil)
		close(p.work)
	})
	for range workers {
		p.wait.Go(func() { p.read(dir, layer) })
	}
	return p
}

// produce hands out batches.
func (p *prefetch) produce(t *tree.Tree) {
	var files []*tree.Entry
	size := int64(0)
	send := func() bool {
		b := p.Next(files)
		if b != nil {
			p.work <- work{files, b}
		}
		files, size = nil, 0
		return b != nil
	}
	for i := range t.Entries {
		e := &t.Entries[i]
		if !Feeds(e) {
			continue
		}
		if len(files) > 0 && (size+e.Size > BatchBytes || len(files) == BatchFiles) && !send() {
			return
		}
		files = append(files, e)
		size += e.Size
	}
	if len(files) > 0 {
		send()
	}
}

// read fills batches.
func (p *prefetch) read(dir string, layer digest.Digest) {
	d, err := openDisk(dir)
	if err == nil {
		defer d.Close()
	}
	for w := range p.work {
		for _, e := range w.files {
			ferr := err
			if ferr == nil {
				w.to.Data, ferr = readChecked(w.to.Data, d, e, layer)
			}
			w.to.Next(ferr)
		}
		w.to.Done()
	}
}

// Close stops reading and waits until it has stopped.
func (p *prefetch) Close() {
	p.Stop()
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
		grown := make([]byte, start, max(end+1, BatchBytes+1))
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
	if !tree.Holds(e, buf[start:end]) {
		return buf[:start], corrupt("its bytes have the digest " + digest.FromBytes(buf[start:end]).String())
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
	const flags = unix.O_RDONLY | unix.O_NOFOLLOW | unix.O_NONBLOCK | unix.O_CLOEXEC
	fd, err := -1, error(unix.EPERM)
	if !d.noisy { // to change times of access takes time
		fd, err = unix.Openat(parent, base, flags|unix.O_NOATIME, 0)
	}
	if err == unix.EPERM {
		d.noisy = true
		fd, err = unix.Openat(parent, base, flags, 0)
	}
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
