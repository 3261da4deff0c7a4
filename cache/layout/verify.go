package layout

import (
	"hash"
	"io"
	"os"

	"github.com/opencontainers/go-digest"
)

// A verifier reads a blob and compares its bytes with its digest.
type verifier struct {
	f    *os.File
	want digest.Digest
	hash hash.Hash
}

var _ io.WriterTo = (*verifier)(nil)

func (v *verifier) Read(p []byte) (int, error) {
	n, err := v.f.Read(p)
	v.hash.Write(p[:n])
	if err == io.EOF {
		if err := v.verdict(); err != nil {
			return n, err
		}
	}
	return n, err
}

// verdict is on all that was read.
func (v *verifier) verdict() error {
	if got := digest.NewDigest(v.want.Algorithm(), v.hash); got != v.want {
		return &CorruptError{Digest: v.want, Reason: "its bytes have the digest " + got.String()}
	}
	return nil
}

const (
	copyChunk  = 512 << 10
	copyChunks = 4
)

// WriteTo implements [io.WriterTo], by which io.Copy copies: the bytes are
// hashed on another processor while they are written.
func (v *verifier) WriteTo(w io.Writer) (int64, error) {
	free := make(chan []byte, copyChunks)
	for range copyChunks {
		free <- nil // made when it is needed: most blobs are small
	}
	filled := make(chan []byte, copyChunks)
	hashed := make(chan struct{})
	go func() {
		defer close(hashed)
		for b := range filled {
			v.hash.Write(b)
			free <- b[:cap(b)]
		}
	}()
	total, err := v.pass(w, free, filled)
	close(filled)
	<-hashed
	if err == nil {
		err = v.verdict()
	}
	return total, err
}

// pass writes the file to w and hands every chunk to the hasher, which gives
// it back. No one changes a chunk meanwhile.
func (v *verifier) pass(w io.Writer, free <-chan []byte, filled chan<- []byte) (int64, error) {
	var total int64
	for {
		b := <-free
		if b == nil {
			b = make([]byte, copyChunk)
		}
		n, err := v.f.Read(b)
		filled <- b[:n] // never blocks: it has room for all chunks
		if n > 0 {
			m, err := w.Write(b[:n])
			total += int64(m)
			if err != nil {
				return total, err
			}
		}
		if err == io.EOF {
			return total, nil
		}
		if err != nil {
			return total, err
		}
	}
}

func (v *verifier) Close() error { return v.f.Close() }
