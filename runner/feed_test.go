package runner

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"kiln.build/cache/archive"
	"kiln.build/cache/tree"
	"kiln.build/solver"
	"kiln.build/solver/op"
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

func (p *packing) packer(_ *solver.Action, t *tree.Tree, open func(*tree.Entry) (io.ReadCloser, error)) *Packing {
	if p.before != nil {
		p.before()
	}
	f := archive.NewFeed(1)
	p.stream.Reset()
	p.err = make(chan error, 1)
	go func() {
		p.err <- archive.Pack(p.t.Context(), &p.stream, "", t, archive.PackOptions{Feed: f, Open: open})
	}()
	return &Packing{Feed: f, Kept: func(kept bool) {
		p.kept = append(p.kept, kept)
		p.done = <-p.err
	}}
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
		if err := archive.Pack(t.Context(), &want, layerDir(t, b.store, top), list, archive.PackOptions{}); err != nil {
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

// aloner makes the blobs of layers of which nothing else is wanted.
type aloner struct {
	b      *bed
	before func()                                     // what is fed is read
	after  func(digest.Digest) (digest.Digest, error) // the blob was made
	kept   []bool
}

func (p *aloner) packer(_ *solver.Action, t *tree.Tree, open func(*tree.Entry) (io.ReadCloser, error)) *Packing {
	if p.before != nil {
		p.before()
	}
	type made struct {
		desc v1.Descriptor
		err  error
	}
	blob, done := make(chan made, 1), make(chan bool)
	f := archive.NewFeed(2)
	go func() {
		defer close(done)
		desc, _, err := archive.PackBlob(p.b.t.Context(), p.b.store.Images(), "", t, archive.BlobOptions{PackOptions: archive.PackOptions{Feed: f, Open: open}})
		f.Stop()
		blob <- made{desc, err}
	}()
	return &Packing{
		Feed: f,
		Kept: func(kept bool) {
			p.kept = append(p.kept, kept)
			<-done
		},
		Blob: func(context.Context) (digest.Digest, error) {
			m := <-blob
			if m.err == nil && p.after != nil {
				return p.after(m.desc.Digest)
			}
			return m.desc.Digest, m.err
		},
	}
}

// TestPackAlone makes layers whose files nobody is about to look at.
func TestPackAlone(t *testing.T) {
	b := newBed(t)
	for i := range 150 {
		b.put(fmt.Sprintf("f 644 0:0 src/d%d/f%d %s", i%3, i, strings.Repeat("x", i*100)))
	}
	b.put("f 644 0:0 src/large "+strings.Repeat("y", archive.SmallFile+1), "l 777 0:0 src/link d0", "f 600 0:0 src/empty ")
	p := &aloner{b: b}
	b.setup = func(r *Runner) { r.Packer = p.packer }
	copying := func() *solver.Vertex {
		v := copyTo("/at/", "src").vertex()
		v.Step = &solver.Step{Name: "[1/1] COPY"}
		return v
	}
	seen := 0
	check := func(what string, packed, kept bool) digest.Digest {
		t.Helper()
		seen++
		b.put(fmt.Sprintf("f 644 0:0 src/d1/f70 changed %d", seen))
		out := b.build(copying())
		top := out.Layers[len(out.Layers)-1].Digest
		if b.store.Packed(top) != packed {
			t.Errorf("%s: packed is %t", what, !packed)
		}
		if len(p.kept) != 1 || p.kept[0] != kept {
			t.Errorf("%s: it was kept: %v", what, p.kept)
		}
		p.kept, p.after = nil, nil
		return top
	}
	content := func(top digest.Digest) {
		t.Helper()
		dir := layerDir(t, b.store, top)
		if got, err := os.ReadFile(filepath.Join(dir, "at/d1/f70")); err != nil || string(got) != fmt.Sprintf("changed %d", seen) {
			t.Errorf("content %q, %v", got, err)
		}
		if b.store.Packed(top) {
			t.Error("it has files and no files")
		}
	}
	check("new", true, true)
	content(check("changed, which nobody looked at", true, true))
	content(check("changed, whose last files were looked at", false, true))

	p.after = func(digest.Digest) (digest.Digest, error) { return digest.FromString("pruned meanwhile"), nil }
	if err := os.RemoveAll(filepath.Join(b.store.Root(), "history/last")); err != nil {
		t.Fatal(err)
	}
	content(check("without its blob", false, false))
	content(check("after that", false, true))

	// A file changes between being selected and being copied.
	for name, text := range map[string]string{"d1/f70": "AGAIN!!", "large": strings.Repeat("Y", archive.SmallFile+1)} {
		b := newBed(t)
		p := &aloner{b: b}
		b.setup = func(r *Runner) { r.Packer = p.packer }
		b.put("f 644 0:0 src/"+name+" "+strings.ToLower(text), "f 644 0:0 src/other other")
		p.before = func() { b.put("f 644 0:0 src/" + name + " " + text) }
		_, err := b.try(t.Context(), copying())
		wantError(t, name, err, "src/"+name, "changed while the build was running")
		if len(p.kept) != 1 || p.kept[0] {
			t.Errorf("%s: it was kept: %v", name, p.kept)
		}
	}
}

// TestPackAloneRead looks at the files of such a layer in the same build.
func TestPackAloneRead(t *testing.T) {
	b := newBed(t)
	b.put("f 644 0:0 src/f content")
	p := &aloner{b: b}
	b.setup = func(r *Runner) { r.Packer = p.packer }
	out := b.build(copyTo("/at/", "src").vertex())
	if !b.store.Packed(out.Layers[len(out.Layers)-1].Digest) {
		t.Fatal("the layer is not packed")
	}
	b.build(copying{dst: "/again/", sel: op.Select{Sources: []string{"/at/f"}}, from: copyTo("/at/", "src").vertex()}.vertex())
	if b.store.Packed(out.Layers[len(out.Layers)-1].Digest) {
		t.Error("its files were not needed")
	}
}
