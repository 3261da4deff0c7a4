package archive

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"runtime"
	"sync"
	"testing"
	"time"
)

// remembered is a Blocks in memory that counts.
type remembered struct {
	mu          sync.Mutex
	blocks      map[BlockKey][]byte
	hit, missed int
	out         []byte // what Made tells, put together
}

func (m *remembered) Block(buf []byte, k BlockKey) ([]byte, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	b, ok := m.blocks[k]
	if !ok {
		m.missed++
		return buf, false
	}
	m.hit++
	return append(buf, b...), true
}

func (m *remembered) Made(k BlockKey, offset int64, compressed []byte) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.blocks[k] = bytes.Clone(compressed)
	m.out = append(m.out[:min(int(offset), len(m.out))], compressed...)
}

// manyFiles is a tar of files whose sizes differ, of which one has other
// content, and as many bytes more.
func manyFiles(t *testing.T, n, other, more int) []byte {
	t.Helper()
	var b bytes.Buffer
	tw := tar.NewWriter(&b)
	for i := range n {
		r := mathrand.New(mathrand.NewPCG(uint64(i), 1))
		data := make([]byte, 5000+r.IntN(10000))
		if i == other {
			r = mathrand.New(mathrand.NewPCG(uint64(n), 1))
			data = append(data, make([]byte, more)...)
		}
		for j := range data {
			data[j] = byte(r.IntN(20))
		}
		if err := tw.WriteHeader(&tar.Header{Name: fmt.Sprintf("d/f%05d", i), Size: int64(len(data)), Mode: 0o644}); err != nil {
			t.Fatal(err)
		}
		if _, err := tw.Write(data); err != nil {
			t.Fatal(err)
		}
	}
	if err := tw.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func compress(t *testing.T, data []byte, c Compression, piece int, blocks Blocks) []byte {
	t.Helper()
	var b bytes.Buffer
	z, err := CompressWith(&b, c, DefaultLevel, blocks)
	if err != nil {
		t.Fatal(err)
	}
	for len(data) > 0 {
		n := min(piece, len(data))
		if _, err := z.Write(data[:n]); err != nil {
			t.Fatal(err)
		}
		data = data[n:]
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// TestBlocksAreRemembered changes one file of many: the other blocks are not
// compressed again, and the result is the same as if nothing were known.
func TestBlocksAreRemembered(t *testing.T) {
	const n = 1500
	for _, c := range []Compression{Gzip, Zstd} {
		m := &remembered{blocks: map[BlockKey][]byte{}}
		first := compress(t, manyFiles(t, n, -1, 0), c, 1000, m)
		all := m.missed
		if m.hit != 0 || all < 5 {
			t.Fatalf("%s: %d blocks, %d known at first", c, all, m.hit)
		}
		if !bytes.Contains(first, m.out) {
			t.Errorf("%s: what was told of the blocks is not in the output", c)
		}
		for _, more := range []int{0, 1, 3000} { // bytes by which a file grows
			m.hit, m.missed = 0, 0
			data := manyFiles(t, n, 70, more)
			known := compress(t, data, c, 300000, m)
			if m.missed == 0 || m.missed > 3 {
				t.Errorf("%s: one file changed, by %d bytes: %d of %d blocks made anew", c, more, m.missed, all)
			}
			if got := compress(t, data, c, 7, nil); !bytes.Equal(got, known) {
				t.Errorf("%s: what is remembered shows in the output", c)
			}
		}
	}
}

// TestGzipIsOneMember reads the output as readers do that stop after the
// first member, which is allowed to many.
func TestGzipIsOneMember(t *testing.T) {
	for name, data := range map[string][]byte{
		"empty": nil, "short": []byte("x"), "a tar": manyFiles(t, 700, -1, 0), "zeros": make([]byte, 5<<20), "one block": make([]byte, 2<<20),
	} {
		r, err := gzip.NewReader(bytes.NewReader(compress(t, data, Gzip, 1<<20, nil)))
		if err != nil {
			t.Fatal(err)
		}
		r.Multistream(false)
		if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, data) {
			t.Errorf("%s: %d of %d bytes, %v", name, len(got), len(data), err)
		}
	}
}

// brokenWriter fails after some bytes.
type brokenWriter int

func (w *brokenWriter) Write(p []byte) (int, error) {
	if *w -= brokenWriter(len(p)); *w < 0 {
		return 0, io.ErrShortWrite
	}
	return len(p), nil
}

func TestCompressTellsWriteErrors(t *testing.T) {
	before := runtime.NumGoroutine()
	for _, c := range []Compression{Gzip, Zstd} {
		w := brokenWriter(100 << 10)
		z, err := Compress(&w, c, DefaultLevel)
		if err != nil {
			t.Fatal(err)
		}
		data := manyFiles(t, 500, -1, 0)
		for range 20 {
			if _, err = z.Write(data); err != nil {
				break
			}
		}
		if cerr := z.Close(); cerr != io.ErrShortWrite || err != io.ErrShortWrite {
			t.Errorf("%s: Write %v, Close %v", c, err, cerr)
		}
		if _, err := z.Write(data); err == nil {
			t.Errorf("%s: a write after Close is accepted", c)
		}
	}
	// Close does not wait for blocks that nobody wants any more.
	for deadline := time.Now().Add(20 * time.Second); runtime.NumGoroutine() > before && time.Now().Before(deadline); {
		time.Sleep(time.Millisecond)
	}
	if n := runtime.NumGoroutine(); n > before {
		t.Errorf("%d goroutines more than before", n-before)
	}
}
