package layout

import (
	"context"
	"fmt"
	"hash"
	"io"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"kiln.build/cache/layout/unnamed"

	"golang.org/x/sys/unix"
)

const (
	// pieceSize is what is read, hashed and written at a time. A piece that
	// is written past the page cache has to begin and end at a multiple of the
	// device's blocks, in the file and in memory.
	pieceSize  = 1 << 20
	pieceCount = 4

	// directFrom is where in a blob writing past the page cache begins. Where
	// the kernel has memory at hand that was used a moment ago, writing 200 MB
	// to memory is a tenth faster; where it has not, as in most virtual
	// machines, which give what is free back to their hosts, that takes twice
	// as long.
	directFrom = 1 << 20

	// dearMemory is what writing a MiB to memory may take of a processor. It
	// takes half a millisecond where memory is at hand, and three or four
	// where each page is to be had from a host.
	dearMemory = 1500 * time.Microsecond

	// weighPieces is after how many pieces that is looked at: what was freed a
	// moment ago is used first, and cheap.
	weighPieces = 4
)

// pour is the copying of a stream into a blob's file. It is read, hashed and
// written at the same time.
//
// With direct, all from some place on, but for the end, goes past the page
// cache (O_DIRECT, open(2)). A blob is on disk before it has a name, so it is
// waited for in any case; what is saved is to copy it to memory first, to find
// memory for that, and to push out what builds read. That costs whoever reads
// the blob next: it is right for blobs that are kept and not used, and for
// others where memory is dear.
type pour struct {
	f      *unnamed.File
	h      hash.Hash // may be nil
	limit  int64     // fail at the first byte over this; negative: none
	direct bool
	from   int64         // where direct begins
	dear   time.Duration // what writing a MiB may cost before direct is set; 0 is anything

	// Of the writer.
	written int64
	flushed int64
	on      bool          // O_DIRECT is set
	cost    time.Duration // of writing to memory since it was last weighed
	weighed int           // how many pieces that were
}

// Pour copies a stream to a file that is empty and its end, and has the disk
// work on it meanwhile. Where memory is dear most of it goes past that. It
// returns the stream's length.
func Pour(ctx context.Context, f *unnamed.File, r io.Reader) (int64, error) {
	p := pour{f: f, limit: -1, dear: dearMemory, from: directFrom}
	return p.copy(ctx, r)
}

// piece is a part of the stream.
type piece struct {
	buf   []byte
	n     int
	users atomic.Int32 // the hasher, the writer
}

// copy reads r to its end and returns its length.
func (p *pour) copy(ctx context.Context, r io.Reader) (int64, error) {
	free := make(chan *piece, pieceCount)
	for range pieceCount {
		free <- &piece{}
	}
	// They have room for all pieces: nobody waits to hand one on.
	hashing, writing := make(chan *piece, pieceCount), make(chan *piece, pieceCount)
	give := func(x *piece) {
		if x.users.Add(-1) == 0 {
			free <- x
		}
	}
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	var g sync.WaitGroup
	g.Go(func() {
		for x := range hashing {
			if p.h != nil {
				p.h.Write(x.buf[:x.n])
			}
			give(x)
		}
	})
	var failed error
	g.Go(func() {
		for x := range writing {
			if failed == nil {
				if failed = p.write(x.buf[:x.n]); failed != nil {
					stop(failed)
				}
			}
			give(x)
		}
	})
	total, err := p.read(ctx, r, free, func(x *piece) {
		x.users.Store(2)
		hashing <- x
		writing <- x
	})
	close(hashing)
	close(writing)
	g.Wait()
	if failed != nil {
		err = failed
	}
	return total, err
}

// read cuts the stream into pieces.
func (p *pour) read(ctx context.Context, r io.Reader, free <-chan *piece, hand func(*piece)) (int64, error) {
	total, size := int64(0), smallPiece
	for {
		if ctx.Err() != nil {
			return total, context.Cause(ctx)
		}
		x := <-free
		if len(x.buf) < size {
			x.buf = unnamed.DirectBuffer(size) // only now: most blobs are small
		}
		n, err := fill(r, x.buf[:size])
		if err != nil && err != io.EOF {
			return total, err
		}
		x.n, total = n, total+int64(n)
		if p.limit >= 0 && total > p.limit {
			return total, fmt.Errorf("content is longer than the %d bytes expected", p.limit)
		}
		hand(x)
		if err == io.EOF {
			return total, nil
		}
		if total%pieceSize == 0 { // large ones begin at multiples of their size
			size = pieceSize
		}
	}
}

// fill reads until b is full. Unlike with io.ReadFull an io.ErrUnexpectedEOF
// is the reader's own, and no end.
func fill(r io.Reader, b []byte) (int, error) {
	n := 0
	for n < len(b) {
		m, err := r.Read(b[n:])
		n += m
		if err != nil {
			return n, err
		}
	}
	return n, nil
}

// smallPiece is what most blobs, which are manifests, are read in.
const smallPiece = 64 << 10

// write writes a piece, and has the disk work on what is not direct: the sync
// at the end then finds little left to do.
func (p *pour) write(b []byte) error {
	if p.dear == 0 || p.direct || len(b) < pieceSize {
		return p.put(b)
	}
	runtime.LockOSThread() // whose clock it is
	start := threadTime()
	err := p.put(b)
	p.cost += threadTime() - start
	runtime.UnlockOSThread()
	if p.weighed++; p.cost > weighPieces*p.dear {
		p.direct = true
	} else if p.weighed == weighPieces {
		p.cost, p.weighed = 0, 0
	}
	return err
}

// threadTime is how much of a processor this thread has had.
func threadTime() time.Duration {
	var ts unix.Timespec
	if unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &ts) != nil {
		return 0
	}
	return time.Duration(ts.Nano())
}

func (p *pour) put(b []byte) error {
	if on := p.direct && len(b) == pieceSize && p.written >= p.from; on != p.on {
		// Not all file systems can do it.
		if p.on = p.f.SetDirect(on) && on; !p.on {
			p.direct, p.dear = false, 0
		}
	}
	_, err := p.f.Write(b)
	if err != nil && p.on {
		p.f.SetDirect(false)
		p.on, p.direct, p.dear = false, false, 0
		_, err = p.f.WriteAt(b, p.written)
		if err == nil {
			_, err = p.f.Seek(p.written+int64(len(b)), io.SeekStart)
		}
	}
	if err != nil {
		return err
	}
	p.written += int64(len(b))
	if p.on {
		p.flushed = p.written
	} else if p.written-p.flushed >= flushAhead {
		p.f.Flush(p.flushed, p.written-p.flushed)
		p.flushed = p.written
	}
	return nil
}

// flushAhead is how much is written to memory before the disk is set to work
// on it.
const flushAhead = 8 << 20
