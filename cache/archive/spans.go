package archive

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"hash"
	"io"

	"github.com/opencontainers/go-digest"
)

// A span is a part of a stream that is the content of a file, or some of it,
// whose digest is known and was checked. Blocks are named by the digests of
// what they hold where these are known: to hash the bytes once more would take
// as long as all else that a remembered block costs.
type span struct {
	at, size int64 // in the stream
	file     digest.Digest
	from     int64 // where in the file it begins
}

// spans are those of a stream that are not in a block yet, in order. One
// goroutine writes the stream, tells of spans before their bytes, and cuts
// blocks. Nil has none and takes none.
type spans struct {
	list []span
}

// add tells that the next bytes of the stream, from some place on, are a
// file's.
func (s *spans) add(at, size int64, file digest.Digest) {
	if s != nil && size > 0 && file.Algorithm() == digest.SHA256 {
		s.list = append(s.list, span{at, size, file, 0})
	}
}

// cut appends what lies before an end in the stream to a block's list.
func (s *spans) cut(block []span, end int64) []span {
	if s == nil {
		return block
	}
	n := 0
	for n < len(s.list) && s.list[n].at+s.list[n].size <= end {
		n++
	}
	block = append(block, s.list[:n]...)
	if n < len(s.list) && s.list[n].at < end {
		first, rest := s.list[n], &s.list[n]
		first.size = end - first.at
		rest.at, rest.size, rest.from = end, rest.size-first.size, rest.from+first.size
		block = append(block, first)
	}
	s.list = s.list[:copy(s.list, s.list[n:])]
	return block
}

// blockKey names a block that begins at some place in a stream: by its
// bytes, or, where some of these are files', by their digests and the bytes
// between. The two have heads of their own, and others than earlier versions
// wrote, so that no content of the one kind can be made to have the name of
// the other.
func blockKey(codec string, raw []byte, at int64, files []span) (k BlockKey) {
	h := sha256.New()
	io.WriteString(h, "kiln block 2\n")
	io.WriteString(h, codec)
	if len(files) == 0 {
		io.WriteString(h, "bytes\n")
		h.Write(raw)
		h.Sum(k[:0])
		return k
	}
	io.WriteString(h, "digests\n")
	done := at
	for _, f := range files {
		literal(h, raw[done-at:f.at-at])
		var b [1 + 8 + 8 + sha256.Size]byte
		b[0] = 1
		binary.LittleEndian.PutUint64(b[1:], uint64(f.size))
		binary.LittleEndian.PutUint64(b[9:], uint64(f.from))
		hex.Decode(b[17:], []byte(f.file.Encoded()))
		h.Write(b[:])
		done = f.at + f.size
	}
	literal(h, raw[done-at:])
	h.Sum(k[:0])
	return k
}

// literal hashes bytes so that it is clear where they end.
func literal(h hash.Hash, b []byte) {
	if len(b) == 0 {
		return
	}
	var n [1 + 8]byte
	binary.LittleEndian.PutUint64(n[1:], uint64(len(b)))
	h.Write(n[:])
	h.Write(b)
}

// tally counts what was written.
type tally struct {
	w io.Writer
	n int64
}

func (c *tally) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n += int64(n)
	return n, err
}
