package layout

import (
	"context"
	"fmt"
	"hash"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"kiln.build/cache/layout/unnamed"
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

// A Pour writes a stream to a file that is empty. It is cut into pieces, which
// are hashed and written while whoever has the stream makes the next ones: a
// Pour is the writer, and not a reader of a pipe, so that the stream needs no
// goroutine of its own, which would wait for a processor in each piece.
//
// With direct, all from some place on, but for the end, goes past the page
// cache (O_DIRECT, open(2)). A blob is on disk before it has a name, so it is
// waited for in any case; what is saved is to copy it to memory first, to find
// memory for that, and to push out what builds read. That costs whoever reads
// the blob next: it is right for blobs that are kept and not used, and for
// others where memory is dear.
//
// One goroutine uses it at a time. Close must be called.
type Pour struct {
	f      *unnamed.File
	h      hash.Hash // may be nil
	limit  int64     // fail at the first byte over this; negative: none
	direct bool
	from   int64         // where direct begins
	dear   time.Duration // what writing a MiB may cost before direct is set; 0 is anything

	// Of who writes to it.
	ctx     context.Context
	free    chan *piece // nil before the first byte, and after the end
	hashing chan *piece
	writing chan *piece
	current *piece // that is being filled; nil for none
	size    int    // of the next one
	total   int64

	// Of the goroutines that hash and write.
	running sync.WaitGroup
	stop    context.CancelCauseFunc // of ctx
	failed  error                   // of the writer
	written int64
	flushed int64
	on      bool          // O_DIRECT is set
	cost    time.Duration // of writing to memory since it was last weighed
	weighed int           // how many pieces that were
}

// NewPour returns what writes to a file, and has the disk work on it
// meanwhile. Where memory is dear most of it goes past that.
func NewPour(ctx context.Context, f *unnamed.File) *Pour {
	return &Pour{f: f, ctx: ctx, limit: -1, dear: dearMemory, from: directFrom}
}

// piece is a part of the stream.
type piece struct {
	buf   []byte
	n     int
	users atomic.Int32 // the hasher, the writer
}

// smallPiece is what most blobs, which are manifests, are written in.
const smallPiece = 64 << 10

// begin starts what hashes and what writes.
func (p *Pour) begin() {
	p.ctx, p.stop = context.WithCancelCause(p.ctx)
	p.size = smallPiece
	p.free = make(chan *piece, pieceCount)
	for range pieceCount {
		p.free <- &piece{}
	}
	// They have room for all pieces: nobody waits to hand one on.
	p.hashing, p.writing = make(chan *piece, pieceCount), make(chan *piece, pieceCount)
	free, hashing, writing := p.free, p.hashing, p.writing
	give := func(x *piece) {
		if x.users.Add(-1) == 0 {
			free <- x
		}
	}
	p.running.Go(func() {
		for x := range hashing {
			if p.h != nil {
				p.h.Write(x.buf[:x.n])
			}
			give(x)
		}
	})
	p.running.Go(func() {
		for x := range writing {
			if p.failed == nil {
				if p.failed = p.write(x.buf[:x.n]); p.failed != nil {
					p.stop(p.failed)
				}
			}
			give(x)
		}
	})
}

// room is what can be filled next.
func (p *Pour) room() ([]byte, error) {
	if p.free == nil {
		p.begin()
	}
	if p.current == nil {
		if p.ctx.Err() != nil {
			return nil, context.Cause(p.ctx)
		}
		x := <-p.free
		if len(x.buf) < p.size {
			x.buf = unnamed.DirectBuffer(p.size) // only now: most blobs are small
		}
		x.n, p.current = 0, x
	}
	return p.current.buf[p.current.n:p.size], nil
}

// filled says how much of the room was.
func (p *Pour) filled(n int) error {
	x := p.current
	x.n += n
	if p.total += int64(n); p.limit >= 0 && p.total > p.limit {
		return fmt.Errorf("content is longer than the %d bytes expected", p.limit)
	}
	if x.n == p.size {
		p.hand()
		if p.total%pieceSize == 0 { // large ones begin at multiples of their size
			p.size = pieceSize
		}
	}
	return nil
}

// hand hands the piece on.
func (p *Pour) hand() {
	x := p.current
	p.current = nil
	x.users.Store(2)
	p.hashing <- x
	p.writing <- x
}

// Write takes more of the stream. After an error no more comes of it.
func (p *Pour) Write(b []byte) (int, error) {
	done := 0
	for done < len(b) {
		room, err := p.room()
		if err != nil {
			return done, err
		}
		n := copy(room, b[done:])
		done += n
		if err := p.filled(n); err != nil {
			return done, err
		}
	}
	return done, nil
}

// ReadFrom takes what r holds, up to its end.
func (p *Pour) ReadFrom(r io.Reader) (int64, error) {
	before := p.total
	for {
		room, err := p.room()
		if err != nil {
			return p.total - before, err
		}
		n, err := r.Read(room)
		if tooLong := p.filled(n); tooLong != nil {
			return p.total - before, tooLong
		}
		if err == io.EOF {
			return p.total - before, nil
		}
		if err != nil {
			return p.total - before, err
		}
	}
}

// Close ends the stream and waits until all of it is hashed and written. A
// further Close does nothing.
func (p *Pour) Close() error {
	if p.free == nil {
		return nil
	}
	if p.current != nil && p.current.n > 0 {
		p.hand()
	}
	p.free = nil
	close(p.hashing)
	close(p.writing)
	p.running.Wait()
	p.stop(nil)
	if p.on { // what is written to the file next has any length
		p.f.SetDirect(false)
		p.on = false
	}
	return p.failed
}

// write writes a piece, and has the disk work on what is not direct: the sync
// at the end then finds little left to do.
func (p *Pour) write(b []byte) error {
	if p.dear == 0 || p.direct || len(b) < pieceSize {
		return p.put(b)
	}
	var err error
	p.cost += unnamed.Busy(func() { err = p.put(b) })
	if p.weighed++; p.cost > weighPieces*p.dear {
		p.direct = true
	} else if p.weighed == weighPieces {
		p.cost, p.weighed = 0, 0
	}
	return err
}

func (p *Pour) put(b []byte) error {
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
