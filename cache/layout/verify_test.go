package layout

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"testing"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// noise is content that tells one place from another.
func noise(n int) []byte {
	b := make([]byte, n)
	r := rand.NewChaCha8([32]byte{1})
	r.Read(b)
	return b
}

// TestCopyBlob copies blobs of several sizes, from their beginning and after
// something was read.
func TestCopyBlob(t *testing.T) {
	l := open(t)
	for _, size := range []int{0, 1, copyChunk, copyChunk + 1, (copyChunks+3)*copyChunk - 1} {
		content := noise(size)
		d := store(t, l, "text/plain", content).Digest
		for _, first := range []int{0, 1, 1000} {
			r, _, err := l.Blob(d)
			if err != nil {
				t.Fatal(err)
			}
			var got bytes.Buffer
			if _, err := io.CopyN(&got, r, int64(min(first, size))); err != nil {
				t.Fatal(err)
			}
			n, err := io.Copy(&got, r)
			if err != nil || n != int64(size-min(first, size)) || !bytes.Equal(got.Bytes(), content) {
				t.Errorf("%d bytes, %d of them read first: %d copied, %v", size, first, n, err)
			}
			r.Close()
		}
	}
}

// TestCopyCorruptBlob changes one bit of each part of a blob, and its length.
func TestCopyCorruptBlob(t *testing.T) {
	l := open(t)
	content := noise(3*copyChunk + 100)
	desc := store(t, l, "text/plain", content)
	try := func(what string, now []byte) {
		t.Helper()
		if err := os.WriteFile(l.Path(desc.Digest), now, 0o644); err != nil {
			t.Fatal(err)
		}
		r, _, err := l.Blob(desc.Digest)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		var corrupt *CorruptError
		if _, err := io.Copy(struct{ io.Writer }{io.Discard}, r); !errors.As(err, &corrupt) || corrupt.Digest != desc.Digest {
			t.Errorf("%s: got %v, want a CorruptError", what, err)
		}
	}
	for at := 0; at < len(content); at += copyChunk {
		now := bytes.Clone(content)
		now[at] ^= 1
		try("a bit changed", now)
	}
	try("cut short", content[:len(content)-1])
	try("empty", nil)
	try("longer", append(bytes.Clone(content), 0))
}

// full is a writer that takes some bytes.
type full struct{ room int }

var errFull = errors.New("no space")

func (f *full) Write(p []byte) (int, error) {
	n := min(len(p), f.room)
	f.room -= n
	if n < len(p) {
		return n, errFull
	}
	return n, nil
}

func TestCopyBlobToFull(t *testing.T) {
	l := open(t)
	d := store(t, l, v1.MediaTypeImageLayer, noise(5*copyChunk)).Digest
	r, _, err := l.Blob(d)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if n, err := io.Copy(&full{2*copyChunk + 5}, r); n != 2*copyChunk+5 || !errors.Is(err, errFull) {
		t.Errorf("%d bytes, %v", n, err)
	}
}
