package blob

import (
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"

	"kiln.build/cache"
	"kiln.build/cache/archive"
	"kiln.build/exporter/internal/storetest"
	"kiln.build/solver"
)

var quick = 1

// bigLayer is a layer of many files, one of which has its own content.
func bigLayer(t testing.TB, s *cache.Store, own string) solver.Layer {
	t.Helper()
	words := make([]string, 5000)
	for i := range words {
		words[i] = fmt.Sprintf("%x ", i)
	}
	lines := []string{"d/"}
	for i := range 160 {
		r := rand.New(rand.NewPCG(uint64(i), 1))
		var b strings.Builder
		for b.Len() < 32<<10 {
			b.WriteString(words[r.IntN(len(words))])
		}
		if i == 80 {
			b.WriteString(own)
		}
		lines = append(lines, fmt.Sprintf("d/f%03d %s", i, b.String()))
	}
	return storetest.Layer(t, s, lines...)
}

func packed(t testing.TB, m *Maker, l solver.Layer, f Form) Blob {
	t.Helper()
	b, err := m.Pack(t.Context(), []solver.Layer{l}, 0, f, nil)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestBlocks packs a layer that differs from another in one file. Most of it
// must come from the other's blob, and the result be what it is where
// nothing is known.
func TestBlocks(t *testing.T) {
	for _, c := range []archive.Compression{archive.Gzip, archive.Zstd} {
		f := Form{Compression: c, Level: &quick}
		fresh := storetest.Open(t)
		layer := bigLayer(t, fresh, "x")
		clean := packed(t, &Maker{Store: fresh}, layer, f)
		want := packed(t, &Maker{Store: fresh}, layer, Form{})

		s := storetest.Open(t)
		m := &Maker{Store: s}
		first := packed(t, m, bigLayer(t, s, ""), f)
		if n := len(m.table(t.Context(), first.Descriptor.Digest)); n <= fewBlocks {
			t.Fatalf("%s: a table of %d blocks", c, n)
		}
		known := m.blocks(t.Context())
		defer known.Close()
		var buf []byte
		hits := 0
		got := packed(t, m, bigLayer(t, s, "x"), f)
		again := m.table(t.Context(), clean.Descriptor.Digest)
		for _, e := range again {
			if _, ok := known.Block(buf, e.Key); ok {
				hits++
			}
		}
		if hits < len(again)-2 || hits == len(again) {
			t.Errorf("%s: %d of %d blocks are in the first blob", c, hits, len(again))
		}
		if !slices.Equal(again, (&Maker{Store: fresh}).table(t.Context(), clean.Descriptor.Digest)) {
			t.Errorf("%s: the table is another one where the first blob is known", c)
		}
		if got.Descriptor.Digest != clean.Descriptor.Digest || got.DiffID != want.DiffID {
			t.Errorf("%s: %v where the first blob is known, %v where not", c, got, clean)
		}
		if all := names(t, s, got); strings.Count(all, " ") != 160 || !strings.HasSuffix(all, "d/f159") {
			t.Errorf("%s: it holds %s", c, all)
		}
	}
}

// TestBlocksDamaged damages the blob that blocks are taken from.
func TestBlocksDamaged(t *testing.T) {
	f := Form{Compression: archive.Gzip, Level: &quick}
	fresh := storetest.Open(t)
	clean := packed(t, &Maker{Store: fresh}, bigLayer(t, fresh, "x"), f)
	for what, damage := range map[string]func(path string) error{
		"gone":      os.Remove,
		"cut short": func(path string) error { return os.Truncate(path, 1<<20) },
		"other bytes": func(path string) error {
			return os.WriteFile(path, make([]byte, clean.Descriptor.Size), 0o644)
		},
	} {
		s := storetest.Open(t)
		m := &Maker{Store: s}
		first := packed(t, m, bigLayer(t, s, ""), f)
		if err := damage(s.Images().Path(first.Descriptor.Digest)); err != nil {
			t.Fatal(err)
		}
		if got := packed(t, m, bigLayer(t, s, "x"), f); got.Descriptor.Digest != clean.Descriptor.Digest {
			t.Errorf("%s: %v, want %v", what, got, clean)
		}
	}
}

// BenchmarkOneFileChanged packs a layer of many files in which one is new each
// time.
func BenchmarkOneFileChanged(b *testing.B) {
	s := storetest.Open(b)
	m := &Maker{Store: s}
	f := Form{Compression: archive.Gzip}
	packed(b, m, bigLayer(b, s, ""), f)
	for i := 0; b.Loop(); i++ {
		b.StopTimer()
		l := bigLayer(b, s, fmt.Sprint(i))
		b.StartTimer()
		packed(b, m, l, f)
	}
}
