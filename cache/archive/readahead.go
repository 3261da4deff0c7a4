package archive

import (
	"crypto/sha256"
	"hash"
	"io"
	"sync"
	"sync/atomic"

	"github.com/opencontainers/go-digest"
)

// readAhead reads a stream in a goroutine of its own, and hashes it in
// another, so that inflating, hashing and writing files overlap.
type readAhead struct {
	full    chan *chunk // read, not consumed; closed at the end of the stream
	free    chan *chunk
	stop    chan struct{}
	current *chunk
	rest    []byte // of current
	err     error  // why full was closed; set before that
	hash    hash.Hash
	wait    sync.WaitGroup
}

type chunk struct {
	buf   []byte
	n     int
	users atomic.Int32 // the reader, the hasher
}

const (
	chunkSize  = 512 << 10
	chunkCount = 6
)

// newReadAhead starts to read r. Close must be called.
func newReadAhead(r io.Reader, hashed bool) *readAhead {
	a := &readAhead{
		full: make(chan *chunk, chunkCount),
		free: make(chan *chunk, chunkCount),
		stop: make(chan struct{}),
	}
	for range chunkCount {
		a.free <- &chunk{buf: make([]byte, chunkSize)}
	}
	var hashing chan *chunk
	if hashed {
		a.hash = sha256.New()
		hashing = make(chan *chunk, chunkCount)
		a.wait.Go(func() {
			for c := range hashing {
				a.hash.Write(c.buf[:c.n])
				a.release(c)
			}
		})
	}
	a.wait.Go(func() {
		a.err = a.fill(r, hashing)
		close(a.full)
		if hashing != nil {
			close(hashing)
		}
	})
	return a
}

func (a *readAhead) fill(r io.Reader, hashing chan<- *chunk) error {
	for {
		var c *chunk
		select {
		case c = <-a.free:
		case <-a.stop:
			return io.ErrClosedPipe
		}
		var err error
		for c.n = 0; c.n < len(c.buf) && err == nil; {
			select {
			case <-a.stop:
				return io.ErrClosedPipe
			default:
			}
			var n int
			n, err = r.Read(c.buf[c.n:])
			c.n += n
		}
		c.users.Store(1)
		if hashing != nil {
			c.users.Store(2)
			hashing <- c // never blocks: it has room for all chunks
		}
		a.full <- c // likewise
		if err != nil {
			return err
		}
	}
}

func (a *readAhead) release(c *chunk) {
	if c.users.Add(-1) == 0 {
		a.free <- c
	}
}

func (a *readAhead) Read(p []byte) (int, error) {
	for len(a.rest) == 0 {
		if a.current != nil {
			a.release(a.current)
			a.current = nil
		}
		c, ok := <-a.full
		if !ok {
			return 0, a.err
		}
		a.current, a.rest = c, c.buf[:c.n]
	}
	n := copy(p, a.rest)
	a.rest = a.rest[n:]
	return n, nil
}

// Drain reads to the end of the stream.
func (a *readAhead) Drain() error {
	_, err := io.Copy(io.Discard, struct{ io.Reader }{a})
	return err
}

// Close stops reading and waits until it has stopped.
func (a *readAhead) Close() {
	close(a.stop)
	a.wait.Wait()
}

// Digest is that of the whole stream, once it was read to its end and Close
// was called.
func (a *readAhead) Digest() digest.Digest { return digest.NewDigest(digest.SHA256, a.hash) }
