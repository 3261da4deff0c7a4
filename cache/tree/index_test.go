package tree

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand"
	"reflect"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// naive merges trees the slow and obvious way: layer by layer into a map.
func naive(trees []*Tree) map[string]located {
	m := map[string]located{"": {Entry{Type: Dir, Mode: 0o755}, -1}}
	remove := func(path string, self bool) {
		for p := range m {
			if p == path && self || p != "" && (path == "" || strings.HasPrefix(p, path+"/")) {
				delete(m, p)
			}
		}
	}
	for l, t := range trees {
		// What a layer hides is of the layers below, so hiding comes first.
		for _, e := range t.Entries {
			switch {
			case e.Type == Whiteout:
				remove(e.Path, true)
			case e.Type != Dir || e.Opaque:
				remove(e.Path, e.Path != "")
			case e.Path != "" && m[e.Path].e.Type != Dir:
				remove(e.Path, true)
			}
		}
		for _, e := range t.Entries {
			if e.Type != Whiteout {
				m[e.Path] = located{e, l}
			}
		}
	}
	return m
}

type located struct {
	e     Entry
	layer int
}

func TestIndexAgainstNaiveMerge(t *testing.T) {
	for seed := range 400 {
		r := rand.New(rand.NewSource(int64(seed)))
		var trees []*Tree
		for range r.Intn(6) {
			trees = append(trees, randomTree(r, r.Intn(60), true))
		}
		want := naive(trees)
		paths := make([]string, 0, len(want))
		for p := range want {
			paths = append(paths, p)
		}
		slices.SortFunc(paths, Compare)

		x := NewIndex(trees...)
		var walked []string
		err := x.Walk("", func(e Entry, layer int) error {
			walked = append(walked, e.Path)
			if w := want[e.Path]; layer != w.layer || !reflect.DeepEqual(e, w.e) {
				t.Errorf("seed %d: walk %q: got %+v of %d, want %+v of %d", seed, e.Path, e, layer, w.e, w.layer)
			}
			return nil
		})
		if err != nil || !slices.Equal(walked, paths) {
			t.Fatalf("seed %d: walked %q, %v, want %q", seed, walked, err, paths)
		}
		ask := slices.Clone(paths)
		for range 50 {
			ask = append(ask, randomPath(r))
		}
		for _, tr := range trees {
			for _, e := range tr.Entries {
				ask = append(ask, e.Path)
			}
		}
		r.Shuffle(len(ask), func(i, j int) { ask[i], ask[j] = ask[j], ask[i] })
		x = NewIndex(trees...)
		for _, p := range ask {
			w, present := want[p]
			e, layer, ok := x.Lookup(p)
			if ok != present || ok && (layer != w.layer || !reflect.DeepEqual(e, w.e)) {
				t.Fatalf("seed %d: Lookup(%q) = %+v, %d, %t, want %+v, %t", seed, p, e, layer, ok, w, present)
			}
			var names []string
			if present && w.e.Type == Dir {
				names = []string{}
				for _, q := range paths {
					if dir, name := split(q); q != "" && dir == p {
						names = append(names, name)
					}
				}
			}
			if got := x.ReadDir(p); !reflect.DeepEqual(got, names) {
				t.Fatalf("seed %d: ReadDir(%q) = %q, want %q", seed, p, got, names)
			}
			var below, wantBelow []string
			err := x.Walk(p, func(e Entry, _ int) error { below = append(below, e.Path); return nil })
			for _, q := range paths {
				if q == p || p == "" || within(q, p) {
					wantBelow = append(wantBelow, q)
				}
			}
			if !slices.Equal(below, wantBelow) || present != (err == nil) {
				t.Fatalf("seed %d: Walk(%q): %q, %v, want %q", seed, p, below, err, wantBelow)
			}
		}
	}
}

func TestWalkSkips(t *testing.T) {
	x := NewIndex(listing("a/", "a/b/", "a/b/c", "a/d", "e"), listing("a/", "a/x"))
	for _, x := range []*Index{x, NewIndex(x.trees[0])} {
		var got []string
		err := x.Walk("", func(e Entry, _ int) error {
			got = append(got, e.Path)
			switch e.Path {
			case "a/b":
				return fs.SkipDir
			case "a/d":
				return fs.SkipAll
			}
			return nil
		})
		if want := []string{"", "a", "a/b", "a/d"}; err != nil || !slices.Equal(got, want) {
			t.Errorf("got %q, %v, want %q", got, err, want)
		}
	}
	stop := errors.New("stop")
	if err := x.Walk("a", func(Entry, int) error { return stop }); err != stop {
		t.Errorf("got %v, want %v", err, stop)
	}
}

// listing makes a tree: "dir/", "file", "link->target", "-hidden", "!opaque/".
func listing(paths ...string) *Tree {
	t := &Tree{}
	for _, p := range paths {
		e := Entry{Type: File, Path: p, Mode: 0o644}
		switch {
		case strings.Contains(p, "->"):
			e.Type = Symlink
			e.Path, e.Link, _ = strings.Cut(p, "->")
		case strings.HasPrefix(p, "-"):
			e = Entry{Type: Whiteout, Path: p[1:]}
		case strings.HasSuffix(p, "/"):
			e.Type, e.Opaque = Dir, strings.HasPrefix(p, "!")
			e.Path = strings.Trim(p, "!/")
		}
		t.Entries = append(t.Entries, e)
	}
	t.Sort()
	return t
}

func TestResolve(t *testing.T) {
	x := NewIndex(
		listing("usr/", "usr/bin/", "usr/bin/sh", "bin->usr/bin", "abs->/usr/bin", "up->../../usr", "usr/self->.",
			"loop1->loop2", "loop2->loop1", "dangling->usr/none/x", "chain->bin", "file", "tofile->file", "slash->usr/bin/",
			"gone/", "gone/f", "usr/back->../file", "fileslash->file/"),
		listing("-gone", "usr/", "usr/new"),
	)
	tests := []struct {
		path     string
		noFollow bool
		want     string
		err      error
	}{
		{path: "", want: ""},
		{path: "/", want: ""},
		{path: "..", want: ""},
		{path: "../../usr/./bin//sh", want: "usr/bin/sh"},
		{path: "/bin/sh", want: "usr/bin/sh"},
		{path: "bin", want: "usr/bin"},
		{path: "bin", noFollow: true, want: "bin"},
		{path: "bin/", noFollow: true, want: "usr/bin"},
		{path: "abs/sh", want: "usr/bin/sh"},
		{path: "abs/../..", want: ""},
		{path: "bin/../new", want: "usr/new"},
		{path: "up/bin/sh", want: "usr/bin/sh"},
		{path: "usr/self/self/bin", want: "usr/bin"},
		{path: "chain/sh", want: "usr/bin/sh"},
		{path: "slash", want: "usr/bin"},
		{path: "usr/back", want: "file"},
		{path: "loop1", err: unix.ELOOP, want: ""},
		{path: "loop1", noFollow: true, want: "loop1"},
		{path: "file/x", err: unix.ENOTDIR, want: "file"},
		{path: "file/", err: unix.ENOTDIR, want: "file"},
		{path: "file/..", err: unix.ENOTDIR, want: "file"},
		{path: "fileslash", err: unix.ENOTDIR, want: "file"},
		{path: "tofile/x", err: unix.ENOTDIR, want: "file"},
		{path: "gone/f", err: fs.ErrNotExist, want: "gone/f"},
		{path: "bin/a/b/../c", err: fs.ErrNotExist, want: "usr/bin/a/c"},
		{path: "dangling", err: fs.ErrNotExist, want: "usr/none/x"},
		{path: "dangling/y", err: fs.ErrNotExist, want: "usr/none/x/y"},
		{path: "dangling", noFollow: true, want: "dangling"},
	}
	for _, tt := range tests {
		got, e, _, err := x.Resolve(tt.path, !tt.noFollow)
		if got != tt.want || !errors.Is(err, tt.err) || tt.err == nil && (err != nil || e.Path != tt.want) {
			t.Errorf("Resolve(%q, %t) = %q, %q, %v, want %q, %v", tt.path, !tt.noFollow, got, e.Path, err, tt.want, tt.err)
		}
	}
	_, _, _, err := x.Resolve("/bin/a/b", true)
	var missing *NotFoundError
	if !errors.As(err, &missing) || missing.Parent != "usr/bin" || missing.Rest != "a/b" {
		t.Errorf("got %+v", missing)
	}
	if want := "resolve /bin/a/b: /usr/bin/a/b does not exist"; err.Error() != want {
		t.Errorf("got %q, want %q", err, want)
	}
}

func BenchmarkIndex(b *testing.B) {
	base := benchTree(20000)
	trees := []*Tree{base}
	for i := range 20 {
		trees = append(trees, listing("usr/", "usr/share/", fmt.Sprintf("usr/share/doc%d/", i%7), fmt.Sprintf("usr/share/doc%d/f%d", i%7, i)))
	}
	b.Run("New+Lookup", func(b *testing.B) {
		for b.Loop() {
			if _, _, ok := NewIndex(trees...).Lookup("usr/share/doc3/package-3/some-file-5.txt"); !ok {
				b.Fatal("not found")
			}
		}
	})
	b.Run("Lookup", func(b *testing.B) {
		x := NewIndex(trees...)
		i := 0
		for b.Loop() {
			if _, _, ok := x.Lookup(base.Entries[i].Path); !ok {
				b.Fatal("not found")
			}
			i = (i + 97) % len(base.Entries)
		}
	})
	b.Run("Walk", func(b *testing.B) {
		n := 0
		for b.Loop() {
			n = 0
			_ = NewIndex(trees...).Walk("", func(Entry, int) error { n++; return nil })
		}
		b.ReportMetric(float64(n), "entries")
	})
}
