package cache

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"kiln.build/solver"
)

// TestLinksCountOnce makes layers of links: what they take is counted where
// it is, and the count follows when layers go in any order.
func TestLinksCountOnce(t *testing.T) {
	root := t.TempDir()
	s := reopen(t, root, Options{})
	const size = 1 << 20
	var layers []solver.Layer
	link := func(from solver.Layer, change string) solver.Layer {
		d, err := s.NewLayer()
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"big", "other"} {
			at := filepath.Join(d.FS, name)
			if from.Digest == "" || name == "other" {
				n := size
				if name == "other" {
					n = 4096
				}
				err = os.WriteFile(at, []byte(strings.Repeat(change, n)), 0o600)
			} else {
				err = os.Link(filepath.Join(layerDir(t, s, from.Digest), name), at)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		if from.Digest != "" {
			d.Links(from.Digest, size)
		}
		l := commitDraft(t, d)
		save(t, s, "step "+change, solver.Result{Layers: []solver.Layer{l}})
		return l
	}
	var last solver.Layer
	for _, change := range []string{"1", "2", "3"} {
		last = link(last, change)
		layers = append(layers, last)
	}
	check := func() {
		t.Helper()
		if got := total(t, s); got < size || got >= size+256<<10 {
			t.Errorf("the store counts %d bytes, want %d and a little", got, size)
		}
		disk, err := treeSize(t.Context(), filepath.Join(root, "layers"))
		if err != nil || disk < size || disk >= size+256<<10 {
			t.Errorf("the layers take %d bytes, %v", disk, err)
		}
	}
	check()
	closeTest(t, s)
	s = openTest(t, root, Options{})
	rest := slices.Clone(layers)
	for _, i := range []int{1, 0, 0} { // the one in the middle first
		gone := rest[i]
		before := total(t, s)
		r, err := s.Prune(t.Context(), PruneOptions{Filters: map[string][]string{"type": {"layer"}, "id": {gone.Digest.String()}}})
		if err != nil {
			t.Fatal(err)
		}
		if s.hasLayer(gone.Digest) == nil {
			t.Fatal("a layer was not removed")
		}
		if after := total(t, s); r.Left != after || before-r.Bytes != after {
			t.Errorf("the report says %d - %d = %d, %d are left", before, r.Bytes, r.Left, after)
		}
		if rest = slices.Delete(rest, i, i+1); len(rest) > 0 {
			check()
		}
	}
	if got := total(t, s); got > 256<<10 {
		t.Errorf("%d bytes are left of nothing", got)
	}
}

// TestLinksMadeAgain removes a layer and makes it again, of links of the one
// that had links of it: neither hides the other.
func TestLinksMadeAgain(t *testing.T) {
	s := openTest(t, t.TempDir(), Options{})
	const size = 1 << 20
	put := func(own string, from solver.Layer) solver.Layer {
		t.Helper()
		d, err := s.NewLayer()
		if err != nil {
			t.Fatal(err)
		}
		big := filepath.Join(d.FS, "big")
		if from.Digest == "" {
			err = os.WriteFile(big, make([]byte, size), 0o600)
		} else {
			err = os.Link(filepath.Join(layerDir(t, s, from.Digest), "big"), big)
			d.Links(from.Digest, size)
		}
		if err == nil {
			err = os.WriteFile(filepath.Join(d.FS, "own"), []byte(own), 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(20 * time.Millisecond) // longer than a tick of the clock that files have
		return commitDraft(t, d)
	}
	first := put("1", solver.Layer{})
	second := put("2", first)
	if err := s.Invalidate(first.Digest); err != nil {
		t.Fatal(err)
	}
	if again := put("1", second); again.Digest != first.Digest {
		t.Fatalf("another layer: %s, %s", again.Digest, first.Digest)
	}
	if got := total(t, s); got < size || got >= size+256<<10 {
		t.Errorf("the store counts %d bytes, want %d and a little", got, size)
	}
}
