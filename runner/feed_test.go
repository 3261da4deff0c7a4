package runner

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"kiln.build/cache/archive"
	"kiln.build/cache/tree"
	"kiln.build/solver"
)

// packing packs what it is fed.
type packing struct {
	t      *testing.T
	before func() // what is fed is read
	stream bytes.Buffer
	err    chan error
	kept   []bool
	done   error // of packing
}

func (p *packing) packer(_ *solver.Action, t *tree.Tree, open func(*tree.Entry) (io.ReadCloser, error)) (*archive.Feed, func(bool)) {
	if p.before != nil {
		p.before()
	}
	f := archive.NewFeed(1)
	p.stream.Reset()
	p.err = make(chan error, 1)
	go func() {
		p.err <- archive.Pack(p.t.Context(), &p.stream, "", t, archive.PackOptions{Feed: f, Open: open})
	}()
	return f, func(kept bool) {
		p.kept = append(p.kept, kept)
		p.done = <-p.err
	}
}

// TestFeed packs layers while they are copied, all of their files and most of
// them linked, and gets what packing them afterwards gives.
func TestFeed(t *testing.T) {
	b := newBed(t)
	for i := range 150 {
		b.put(fmt.Sprintf("f 644 0:0 src/d%d/f%d %s", i%3, i, strings.Repeat("x", i*100)))
	}
	b.put("f 644 0:0 src/large "+strings.Repeat("y", archive.SmallFile+1), "l 777 0:0 src/link d0", "f 600 0:0 src/empty ")
	if err := os.Link(filepath.Join(b.dir, "src/d1/f1"), filepath.Join(b.dir, "src/second")); err != nil {
		t.Fatal(err)
	}
	p := &packing{t: t}
	b.setup = func(r *Runner) { r.Packer = p.packer }
	copying := func() *solver.Vertex {
		v := copyTo("/at/", "src").vertex()
		v.Step = &solver.Step{Name: "[1/1] COPY"}
		return v
	}
	check := func(what string, kept bool) {
		t.Helper()
		out := b.build(copying())
		if err := p.done; err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		top := out.Layers[len(out.Layers)-1].Digest
		list, err := b.store.Tree(top)
		if err != nil {
			t.Fatal(err)
		}
		var want bytes.Buffer
		if err := archive.Pack(t.Context(), &want, b.store.LayerDir(top), list, archive.PackOptions{}); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(want.Bytes(), p.stream.Bytes()) {
			t.Errorf("%s: what was fed makes another archive, of %d bytes and not %d", what, p.stream.Len(), want.Len())
		}
		if len(p.kept) != 1 || p.kept[0] != kept {
			t.Errorf("%s: it was kept: %v", what, p.kept)
		}
		p.kept = nil
	}
	check("all new", true)
	b.put("f 644 0:0 src/d1/f70 changed")
	check("one new", true)
	if err := os.RemoveAll(filepath.Join(b.store.Root(), "actions")); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(b.store.Root(), "actions"), 0o700); err != nil {
		t.Fatal(err)
	}
	check("there already", false)

	// A file changes between being selected and being copied.
	b.put("f 644 0:0 src/d1/f70 again!!")
	p.before = func() { b.put("f 644 0:0 src/d1/f70 AGAIN!!") }
	_, err := b.try(t.Context(), copying())
	wantError(t, "changed", err, "src/d1/f70", "changed while the build was running")
	if p.done == nil {
		t.Error("a layer was packed that could not be made")
	}
	if len(p.kept) != 1 || p.kept[0] {
		t.Errorf("it was kept: %v", p.kept)
	}
}
