package archive

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	mathrand "math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"kiln.build/cache/layout"
	"kiln.build/cache/tree"

	"github.com/opencontainers/go-digest"
)

// TestSpansCut cuts random streams of files into random blocks: the parts are
// those of the stream, each once and in order.
func TestSpansCut(t *testing.T) {
	r := mathrand.New(mathrand.NewPCG(1, 2))
	for range 500 {
		s := &spans{}
		type part struct {
			file byte // 0 is none
			from int64
		}
		var want, got []part
		file := byte(0)
		cut := int64(0)
		block := func() {
			end := cut + r.Int64N(int64(len(want))-cut+1)
			all := make([]part, end-cut)
			last := cut
			for _, f := range s.cut(nil, end) {
				if f.at < last || f.at+f.size > end {
					t.Fatalf("a part at %d of %d bytes in a block from %d to %d", f.at, f.size, cut, end)
				}
				last = f.at + f.size
				for i := range f.size {
					all[f.at-cut+i] = part{f.file.Encoded()[0], f.from + i}
				}
			}
			got, cut = append(got, all...), end
		}
		for range 1 + r.IntN(10) {
			for range r.IntN(4) {
				want = append(want, part{})
			}
			size := r.Int64N(9)
			file++
			s.add(int64(len(want)), size, digest.NewDigestFromEncoded(digest.SHA256, string([]byte{file})))
			for i := range size {
				want = append(want, part{file, i})
			}
			if r.IntN(2) == 0 {
				block()
			}
		}
		for cut < int64(len(want)) {
			block()
		}
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Fatalf("got\n%v, want\n%v", got, want)
		}
		if len(s.list) > 0 {
			t.Fatalf("left are %v", s.list)
		}
	}
}

// TestBlockKeys gives different blocks different names, and equal ones the
// same at any place.
func TestBlockKeys(t *testing.T) {
	a, b := digest.FromString("aaaa"), digest.FromString("bbbb")
	seen := map[BlockKey]string{}
	add := func(what string, k BlockKey) {
		if other, ok := seen[k]; ok {
			t.Errorf("%s has the name of %s", what, other)
		}
		seen[k] = what
	}
	add("bytes", blockKey("c\n", []byte("xaaaay"), 0, nil))
	add("another codec", blockKey("d\n", []byte("xaaaay"), 0, nil))
	file := func(at int64, d digest.Digest, from int64) []span { return []span{{at, 4, d, from}} }
	add("a file", blockKey("c\n", []byte("xaaaay"), 0, file(1, a, 0)))
	add("another file", blockKey("c\n", []byte("xbbbby"), 0, file(1, b, 0)))
	add("another part of it", blockKey("c\n", []byte("xaaaay"), 0, file(1, a, 4)))
	add("other bytes before", blockKey("c\n", []byte("zaaaay"), 0, file(1, a, 0)))
	add("other bytes behind", blockKey("c\n", []byte("xaaaaz"), 0, file(1, a, 0)))
	add("bytes on the other side", blockKey("c\n", []byte("aaaaxy"), 0, file(0, a, 0)))
	if blockKey("c\n", []byte("xaaaay"), 0, file(1, a, 0)) != blockKey("c\n", []byte("xaaaay"), 700, file(701, a, 0)) {
		t.Error("a block's name depends on where it is")
	}
	// A content that is written like the name of another block.
	var evil []byte
	evil = append(evil, 0)
	evil = binary.LittleEndian.AppendUint64(evil, 1)
	evil = append(evil, 'x', 1)
	evil = binary.LittleEndian.AppendUint64(evil, 4)
	evil = binary.LittleEndian.AppendUint64(evil, 0)
	evil, _ = hex.AppendDecode(evil, []byte(a.Encoded()))
	evil = append(evil, 0)
	evil = binary.LittleEndian.AppendUint64(evil, 1)
	evil = append(evil, 'y')
	add("content like a name", blockKey("c\n", evil, 0, nil))
	add("content like a name and its head", blockKey("c\n", append([]byte("digests\n"), evil...), 0, nil))
}

// TestPackedBlocksAreRemembered packs a layer whose files differ in size, up to
// some that have blocks of their own, again and again with one changed: the
// other blocks are not compressed again, and nothing of what is remembered
// shows.
func TestPackedBlocksAreRemembered(t *testing.T) {
	dir := t.TempDir()
	r := mathrand.New(mathrand.NewPCG(3, 4))
	write := func(i, size int) {
		data := make([]byte, size)
		for j := range data {
			data[j] = byte(r.IntN(20))
		}
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("f%03d", i)), data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	const n = 300
	for i := range n {
		write(i, []int{0, 100, 20_000, 60_000}[i%4])
	}
	write(100, SmallFile+1)
	write(200, 9<<20)
	for _, c := range []Compression{Gzip, Zstd} {
		m := &remembered{blocks: map[BlockKey][]byte{}}
		l, err := layout.Open(filepath.Join(t.TempDir(), "images"))
		if err != nil {
			t.Fatal(err)
		}
		all := 0
		for turn, changed := range []int{-1, -1, 50, 100, 200} {
			if changed >= 0 {
				write(changed, []int{50: 30_000, 100: SmallFile + 1, 200: 9 << 20}[changed])
			}
			tr, err := tree.Scan(t.Context(), dir, tree.ScanOptions{})
			if err != nil {
				t.Fatal(err)
			}
			m.hit, m.missed = 0, 0
			known, id, err := PackBlob(t.Context(), l, dir, tr, BlobOptions{Compression: c, Blocks: m})
			if err != nil {
				t.Fatal(err)
			}
			hit, missed := m.hit, m.missed
			fresh, freshID, err := PackBlob(t.Context(), l, dir, tr, BlobOptions{Compression: c})
			if err != nil {
				t.Fatal(err)
			}
			if known.Digest != fresh.Digest || id != freshID {
				t.Errorf("%s, %d: what is remembered shows", c, changed)
			}
			var plain bytes.Buffer
			if err := Pack(t.Context(), &plain, dir, tr, PackOptions{}); err != nil {
				t.Fatal(err)
			}
			if digest.FromBytes(plain.Bytes()) != id {
				t.Errorf("%s, %d: the diff ID is another's", c, changed)
			}
			switch {
			case turn == 0:
				all = missed
			case changed < 0 && (missed != 0 || hit != all):
				t.Errorf("%s: nothing changed, %d blocks known, %d made of %d", c, hit, missed, all)
			case changed >= 0 && (missed == 0 || missed > 7):
				t.Errorf("%s: file %d changed: %d of %d blocks made anew", c, changed, missed, all)
			}
		}
	}
}
