package archive

import (
	"crypto/sha256"
	"errors"
	"hash/crc32"
	"io"
	"runtime"
	"sync"
)

// A stream is compressed in blocks that know nothing of each other: several
// at a time, and each only once where a [Blocks] remembers it. Where one
// block ends and the next begins follows from the content alone (cut.go), so
// equal streams give equal bytes on any machine, whatever is remembered.
//
// In gzip a block is a run of deflate blocks that ends at a byte (as zlib's
// Z_SYNC_FLUSH makes them); all are in one member, so that readers which
// stop after the first read everything. In zstd a block is a frame.

// A BlockKey names a block: what went in, and how it is compressed.
type BlockKey [sha256.Size]byte

// Blocks remembers compressed blocks. Its methods are called from several
// goroutines.
type Blocks interface {
	// Block returns a compressed block, appended to buf, if it is known. It
	// must be the very bytes that were put.
	Block(buf []byte, k BlockKey) ([]byte, bool)

	// Made tells of a block that has become part of the output, at an offset.
	// Calls come in order.
	Made(k BlockKey, offset int64, compressed []byte)
}

// codec is one way to compress blocks.
type codec struct {
	name   string // with the level: part of keys
	header []byte
	footer func(crc uint32, size int64) []byte // nil is none
	encode func(dst, raw []byte) ([]byte, error)
	cut    cutter
}

// blockWriter compresses a stream block by block. It implements
// io.WriteCloser; Close must be called in any case and does not close w.
type blockWriter struct {
	w      io.Writer
	codec  codec
	blocks Blocks // may be nil
	spans  *spans // of the stream; may be nil

	raw    []byte // of the block that is being filled
	at     int64  // where in the stream that begins
	header []byte // of the entry that begins, as far as it is known
	skip   int64  // bytes until the next header
	plain  bool   // not a tar, or after its end
	crc    uint32
	size   int64
	closed bool

	order  chan *block   // being compressed, in the order of the stream
	slots  chan struct{} // one for each that may be worked on
	ended  chan struct{} // closed when all of order is written
	mu     sync.Mutex
	err    error
	spare  chan *block // written ones, whose memory is used again
	offset int64       // written to w
}

const firstBuffer = 64 << 10

type block struct {
	raw, out []byte
	at       int64 // in the stream
	files    []span
	key      BlockKey
	err      error
	done     chan struct{}
}

func newBlockWriter(w io.Writer, c codec, blocks Blocks, s *spans) *blockWriter {
	n := runtime.GOMAXPROCS(0)
	b := &blockWriter{
		w: w, codec: c, blocks: blocks, spans: s,
		order: make(chan *block, n+1), slots: make(chan struct{}, n), ended: make(chan struct{}), spare: make(chan *block, n+3),
	}
	go b.drain()
	b.put(c.header)
	return b
}

// put hands bytes that need no work to the output.
func (b *blockWriter) put(out []byte) {
	if len(out) == 0 {
		return
	}
	done := make(chan struct{})
	close(done)
	b.order <- &block{out: out, done: done}
}

func (b *blockWriter) Write(p []byte) (int, error) {
	if b.closed {
		return 0, errors.New("write after close")
	}
	if err := b.failure(); err != nil {
		return 0, err
	}
	b.crc = crc32.Update(b.crc, crc32.IEEETable, p)
	b.size += int64(len(p))
	n := len(p)
	for len(p) > 0 {
		p = b.take(p)
	}
	return n, nil
}

// take moves bytes from p to blocks and returns the rest.
func (b *blockWriter) take(p []byte) []byte {
	if b.skip == 0 && !b.plain {
		n := min(tarBlock-len(b.header), len(p))
		b.header = append(b.header, p[:n]...)
		if len(b.header) == tarBlock {
			b.entry()
		}
		return p[n:]
	}
	n := min(len(p), b.codec.cut.most-len(b.raw))
	if !b.plain {
		n = int(min(int64(n), b.skip))
		b.skip -= int64(n)
	}
	b.fill(p[:n])
	return p[n:]
}

// entry takes the header of an entry, or what is in the place of one.
func (b *blockWriter) entry() {
	size, ok := entrySize(b.header)
	if b.skip, b.plain = size, !ok; ok && b.codec.cut.cuts(b.header, size, len(b.raw)) {
		b.submit()
	}
	b.fill(b.header) // there is room: all is in units of tarBlock
	b.header = b.header[:0]
}

// fill adds bytes to the block, whose end they may be.
func (b *blockWriter) fill(p []byte) {
	if need := len(b.raw) + len(p); need > cap(b.raw) {
		// Most layers are small; others get all they can use at once.
		size := b.codec.cut.most
		if cap(b.raw) == 0 && need <= firstBuffer {
			size = firstBuffer
		}
		b.raw = append(make([]byte, 0, max(size, need)), b.raw...)
	}
	b.raw = append(b.raw, p...)
	if len(b.raw) == b.codec.cut.most {
		b.submit()
	}
}

// submit lets the block that was filled be compressed.
func (b *blockWriter) submit() {
	if len(b.raw) == 0 {
		return
	}
	var k *block
	select {
	case k = <-b.spare:
	default:
		k = &block{}
	}
	k.at, b.at = b.at, b.at+int64(len(b.raw))
	k.files = b.spans.cut(k.files[:0], b.at)
	k.raw, b.raw = b.raw, k.raw[:0]
	k.out, k.err, k.done = k.out[:0], nil, make(chan struct{})
	b.order <- k
	b.slots <- struct{}{}
	go func() {
		b.compress(k)
		<-b.slots
		close(k.done)
	}()
}

func (b *blockWriter) compress(k *block) {
	if b.blocks != nil {
		k.key = blockKey(b.codec.name, k.raw, k.at, k.files)
		var ok bool
		if k.out, ok = b.blocks.Block(k.out, k.key); ok {
			return
		}
	}
	k.out, k.err = b.codec.encode(k.out[:0], k.raw)
}

// drain writes blocks as they become ready.
func (b *blockWriter) drain() {
	defer close(b.ended)
	for k := range b.order {
		<-k.done
		err := k.err
		if err == nil && b.failure() == nil {
			_, err = b.w.Write(k.out)
		}
		if err != nil {
			b.fail(err)
		}
		if b.blocks != nil && len(k.raw) > 0 && b.failure() == nil {
			b.blocks.Made(k.key, b.offset, k.out)
		}
		b.offset += int64(len(k.out))
		if len(k.raw) > 0 {
			select {
			case b.spare <- k:
			default:
			}
		}
	}
}

func (b *blockWriter) failure() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.err
}

func (b *blockWriter) fail(err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.err == nil {
		b.err = err
	}
}

func (b *blockWriter) Close() error {
	if b.closed {
		return b.failure()
	}
	b.fill(b.header)
	b.submit()
	b.closed = true
	if f := b.codec.footer; f != nil {
		b.put(f(b.crc, b.size))
	}
	close(b.order)
	<-b.ended
	return b.failure()
}
