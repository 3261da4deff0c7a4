package tree

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand"
	"reflect"
	"slices"
	"sort"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
)

func TestCompare(t *testing.T) {
	want := []string{"", "a", "a/b", "a/b/c", "a/b.c", "a/b0", "a-b", "a.", "a.b/c", "aa", "b"}
	for i, a := range want {
		for j, b := range want {
			if got := Compare(a, b); sign(got) != sign(i-j) {
				t.Errorf("Compare(%q, %q) = %d, want the sign of %d", a, b, got, i-j)
			}
		}
	}
}

func sign(n int) int {
	switch {
	case n < 0:
		return -1
	case n > 0:
		return 1
	}
	return 0
}

func TestCompareByComponents(t *testing.T) {
	r := rand.New(rand.NewSource(1))
	for range 20000 {
		a, b := randomPath(r), randomPath(r)
		want := slices.Compare(strings.Split(a, "/"), strings.Split(b, "/"))
		if got := Compare(a, b); sign(got) != want {
			t.Fatalf("Compare(%q, %q) = %d, want %d", a, b, got, want)
		}
	}
}

func randomPath(r *rand.Rand) string {
	const bytes = "a-./b\x01\xffz"
	var comps []string
	for range 1 + r.Intn(3) {
		c := ""
		for range 1 + r.Intn(3) {
			if b := bytes[r.Intn(len(bytes))]; b != '/' {
				c += string([]byte{b})
			}
		}
		if c == "" || c == "." || c == ".." {
			c = "x"
		}
		comps = append(comps, c)
	}
	return strings.Join(comps, "/")
}

func TestSort(t *testing.T) {
	tr := Tree{Entries: []Entry{{Path: "b", Mode: 1}, {Path: "a/c"}, {Path: "a"}, {Path: "b", Mode: 2}, {Path: ""}}}
	tr.Sort()
	var got []string
	for _, e := range tr.Entries {
		got = append(got, fmt.Sprint(e.Path, " ", e.Mode))
	}
	want := []string{" 0", "a 0", "a/c 0", "b 2"}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

// randomTree makes a valid tree. Names are few, so that trees overlap.
func randomTree(r *rand.Rand, n int, whiteouts bool) *Tree {
	t := &Tree{}
	dirs := []string{""}
	seen := map[string]bool{"": true}
	if r.Intn(3) > 0 {
		t.Entries = append(t.Entries, Entry{Type: Dir, Mode: uint32(r.Intn(0o10000)), UID: r.Intn(3)})
	}
	for range n {
		p := join(dirs[r.Intn(len(dirs))], string("abc.-"[r.Intn(5)])+[]string{"", "x", "\n"}[r.Intn(3)])
		if p[strings.LastIndexByte(p, '/')+1:] == "." || seen[p] {
			continue
		}
		seen[p] = true
		e := Entry{
			Path: p, Mode: uint32(r.Intn(0o10000)), UID: r.Intn(100000), GID: r.Intn(3),
			Mtime: r.Int63() - r.Int63(),
		}
		if r.Intn(5) == 0 {
			e.Xattrs = map[string]string{"user.a": "1", "security.capability": string([]byte{0, byte(r.Intn(256))})}
		}
		if r.Intn(9) == 0 {
			e.Source = randomPath(r)
		}
		switch k := r.Intn(12); {
		case k < 5:
			e.Type, e.Opaque = Dir, whiteouts && r.Intn(6) == 0
			dirs = append(dirs, p)
		case k < 8:
			e.Type, e.Size = File, r.Int63n(1<<40)
			e.Digest = digest.FromString(fmt.Sprint(r.Int63()))
		case k == 8:
			e.Type, e.Mode, e.Link = Symlink, 0o777, randomPath(r)
		case k == 9:
			e.Type, e.Major, e.Minor = []Type{Char, Block}[r.Intn(2)], uint32(1+r.Intn(300)), uint32(r.Intn(1<<20))
		case k == 10 && whiteouts:
			e = Entry{Path: p, Type: Whiteout}
		default:
			e.Type = Fifo
		}
		t.Entries = append(t.Entries, e)
	}
	t.Sort()
	for i := range t.Entries { // a few hard links
		e := &t.Entries[i]
		if e.Type != File || r.Intn(3) > 0 {
			continue
		}
		for j := i + 1; j < min(i+6, len(t.Entries)); j++ {
			if l := &t.Entries[j]; l.Type == File && e.Hardlink == "" {
				path := l.Path
				*l = *e
				l.Path, l.Hardlink = path, e.Path
				break
			}
		}
	}
	return t
}

func TestEncodeDecode(t *testing.T) {
	for seed := range 300 {
		r := rand.New(rand.NewSource(int64(seed)))
		want := randomTree(r, r.Intn(200), true)
		if err := want.Check(); err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		var b bytes.Buffer
		if err := want.Encode(&b); err != nil {
			t.Fatal(err)
		}
		enc := slices.Clone(b.Bytes())
		got, err := Decode(&b)
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		if len(got.Entries)+len(want.Entries) > 0 && !reflect.DeepEqual(got.Entries, want.Entries) {
			t.Fatalf("seed %d: got\n%+v\nwant\n%+v", seed, got, want)
		}
		if got.Digest() != want.Digest() {
			t.Errorf("seed %d: the digest changed", seed)
		}
		s, err := ReadSummary(enc[:min(len(enc), SummaryLen)])
		if err != nil || s.Entries != len(want.Entries) || s.Size != want.Size() || s.Disk != want.Disk() {
			t.Errorf("seed %d: summary %+v, %v", seed, s, err)
		}
		if len(enc) > 20 {
			i := r.Intn(len(enc))
			enc[i] ^= 1 << r.Intn(8)
			if _, err := Parse(enc); err == nil {
				t.Errorf("seed %d: a bit flipped at %d is not seen", seed, i)
			}
		}
	}
}

// TestReadRoot compares the first entry with the whole, however little of the
// tree there is.
func TestReadRoot(t *testing.T) {
	for seed := range 20 {
		tr := randomTree(rand.New(rand.NewSource(int64(seed))), seed, seed%2 == 0)
		enc := tr.Append(nil)
		want := len(tr.Entries) > 0 && tr.Entries[0].Path == ""
		e, ok, err := ReadRoot(enc)
		if err != nil || ok != want || ok && !reflect.DeepEqual(e, tr.Entries[0]) {
			t.Fatalf("seed %d: got %+v, %t, %v", seed, e, ok, err)
		}
		for n := range enc {
			if cut, cutOK, err := ReadRoot(enc[:n]); err == nil && (cutOK != want || !reflect.DeepEqual(cut, e)) {
				t.Fatalf("seed %d: %d bytes give %+v, %t", seed, n, cut, cutOK)
			}
		}
	}
}

func TestDigest(t *testing.T) {
	base := func() *Tree {
		return &Tree{Entries: []Entry{
			{Type: Dir, Mode: 0o755},
			{Path: "bin", Type: Dir, Mode: 0o755},
			{Path: "bin/sh", Type: File, Mode: 0o755, Size: 3, Digest: digest.FromString("abc"), Mtime: 5},
			{Path: "bin/su", Type: Symlink, Mode: 0o777, Link: "sh"},
			{Path: "dev", Type: Char, Mode: 0o600, Major: 1, Minor: 3},
		}}
	}
	want := base().Digest()
	same := map[string]func(*Tree){
		"mtime":        func(t *Tree) { t.Entries[2].Mtime = 77 },
		"source":       func(t *Tree) { t.Entries[2].Source = "elsewhere" },
		"link mode":    func(t *Tree) { t.Entries[3].Mode = 0o644 },
		"empty xattrs": func(t *Tree) { t.Entries[2].Xattrs = map[string]string{} },
	}
	other := map[string]func(*Tree){
		"path":     func(t *Tree) { t.Entries[4].Path = "dew" },
		"mode":     func(t *Tree) { t.Entries[2].Mode = 0o4755 },
		"uid":      func(t *Tree) { t.Entries[2].UID = 1 },
		"gid":      func(t *Tree) { t.Entries[2].GID = 1 },
		"content":  func(t *Tree) { t.Entries[2].Digest = digest.FromString("abd") },
		"hardlink": func(t *Tree) { t.Entries[2].Hardlink = "bin/a" },
		"link":     func(t *Tree) { t.Entries[3].Link = "s" },
		"minor":    func(t *Tree) { t.Entries[4].Minor = 4 },
		"type":     func(t *Tree) { t.Entries[4].Type = Block },
		"xattr":    func(t *Tree) { t.Entries[2].Xattrs = map[string]string{"user.a": "b"} },
		"opaque":   func(t *Tree) { t.Entries[1].Opaque = true },
		"one less": func(t *Tree) { t.Entries = t.Entries[:4] },
	}
	for name, change := range same {
		tr := base()
		if change(tr); tr.Digest() != want {
			t.Errorf("%s changes the digest", name)
		}
	}
	seen := map[digest.Digest]string{want: "nothing"}
	for name, change := range other {
		tr := base()
		change(tr)
		if before, ok := seen[tr.Digest()]; ok {
			t.Errorf("changing %s gives the digest of changing %s", name, before)
		}
		seen[tr.Digest()] = name
	}
}

func TestCheck(t *testing.T) {
	d := digest.FromString("")
	tests := map[string][]Entry{
		"out of order":             {{Path: "b", Type: Fifo}, {Path: "a", Type: Fifo}},
		"repeated":                 {{Path: "a", Type: Fifo}, {Path: "a", Type: Fifo}},
		"parent missing":           {{Path: "a/b", Type: Fifo}},
		"parent is a file":         {{Path: "a", Type: File, Digest: d}, {Path: "a/b", Type: Fifo}},
		"parent is a namesake":     {{Path: "a", Type: Dir}, {Path: "a/b", Type: Dir}, {Path: "b/b", Type: Fifo}},
		"unclean":                  {{Path: "a/../b", Type: Fifo}},
		"absolute":                 {{Path: "/a", Type: Fifo}},
		"zero byte":                {{Path: "a\x00", Type: Fifo}},
		"no digest":                {{Path: "a", Type: File}},
		"no target":                {{Path: "a", Type: Symlink}},
		"no type":                  {{Path: "a"}},
		"mode":                     {{Path: "a", Type: Fifo, Mode: 0o10000}},
		"hard link to nothing":     {{Path: "a", Type: File, Digest: d, Hardlink: "b"}},
		"hard link to other bytes": {{Path: "a", Type: File, Digest: digest.FromString("x")}, {Path: "b", Type: File, Digest: d, Hardlink: "a"}},
		"hidden root":              {{Type: Whiteout}},
	}
	for name, entries := range tests {
		if err := (&Tree{Entries: entries}).Check(); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestDecodeErrors(t *testing.T) {
	good := randomTree(rand.New(rand.NewSource(4)), 40, true).Append(nil)
	for i := range good {
		if _, err := Parse(good[:i]); err == nil {
			t.Fatalf("cut at %d of %d: no error", i, len(good))
		}
	}
	future := append([]byte("kiln tree 2\n"), good[len(magic):]...)
	if _, err := Parse(future); err == nil || errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), `"kiln tree 2"`) {
		t.Errorf("future version: %v", err)
	}
	if _, err := Parse([]byte("something else\n")); !errors.Is(err, ErrCorrupt) {
		t.Errorf("other file: %v", err)
	}
}

func FuzzDecode(f *testing.F) {
	for seed := range 5 {
		enc := randomTree(rand.New(rand.NewSource(int64(seed))), 10*seed, true).Append(nil)
		f.Add(enc[:len(enc)-4])
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		// The checksum would keep the fuzzer out: it is made here.
		d := &decoder{b: b}
		if d.version() != nil {
			return
		}
		n := d.number(1 << 12)
		tr := &Tree{}
		for before := ""; n > 0 && d.failed == ""; n-- {
			var e Entry
			if d.entry(&e, before, len(tr.Entries) == 0); d.failed == "" {
				tr.Entries = append(tr.Entries, e)
				before = e.Path
			}
		}
		if !sort.SliceIsSorted(tr.Entries, func(i, j int) bool { return Compare(tr.Entries[i].Path, tr.Entries[j].Path) < 0 }) {
			t.Fatal("decoded entries are out of order")
		}
		again, err := Parse(tr.Append(nil))
		if err != nil {
			t.Fatal(err)
		}
		if again.Digest() != tr.Digest() {
			t.Fatal("encoding changed the tree")
		}
	})
}

func benchTree(n int) *Tree {
	t := &Tree{Entries: []Entry{{Type: Dir, Mode: 0o755}}}
	for i := 0; len(t.Entries) < n; i++ {
		d := fmt.Sprintf("usr/share/doc%d", i%7)
		for _, p := range []string{"usr", "usr/share", d, fmt.Sprintf("%s/package-%d", d, i)} {
			t.Entries = append(t.Entries, Entry{Path: p, Type: Dir, Mode: 0o755})
		}
		for k := range 9 {
			p := fmt.Sprintf("%s/package-%d/some-file-%d.txt", d, i, k)
			t.Entries = append(t.Entries, Entry{Path: p, Type: File, Mode: 0o644, Size: 100, Digest: digest.FromString(p), Mtime: 1700000000123456789})
		}
	}
	t.Sort()
	return t
}

func BenchmarkEncode(b *testing.B) {
	t := benchTree(20000)
	var n int
	for b.Loop() {
		n = len(t.Append(nil))
	}
	b.ReportMetric(float64(n)/float64(len(t.Entries)), "B/entry")
}

func BenchmarkDecode(b *testing.B) {
	enc := benchTree(20000).Append(nil)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Parse(enc); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkDigest(b *testing.B) {
	t := benchTree(20000)
	for b.Loop() {
		t.Digest()
	}
}
