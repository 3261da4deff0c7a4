package main

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"

	"kiln.build/cache/archive"
	"kiln.build/cache/tree"
	"kiln.build/exporter/blob"
	"kiln.build/solver"
	"kiln.build/solver/op"
)

type runnerFunc func(context.Context, *solver.Action) (solver.Result, error)

func (f runnerFunc) Run(ctx context.Context, a *solver.Action) (solver.Result, error) {
	return f(ctx, a)
}

// TestAhead runs steps of the image and others: of the first the layers are
// prepared, over what lies below them, and Close waits for that.
func TestAhead(t *testing.T) {
	final, other, last := &solver.Step{Name: "a"}, &solver.Step{Name: "b"}, &solver.Step{Name: "c"}
	below := &solver.Output{Layers: []solver.Layer{{Digest: "sha256:base"}}}
	type made struct{ size, below int }
	got := make(chan made, 10)
	release := make(chan struct{})
	a := &ahead{
		Runner: runnerFunc(func(context.Context, *solver.Action) (solver.Result, error) {
			return solver.Result{Layers: []solver.Layer{{Digest: "sha256:new"}}}, nil
		}),
		final: map[*solver.Step]bool{final: true},
		prepare: func(stack []solver.Layer, below int) error {
			<-release
			got <- made{len(stack), below}
			return errors.New("what goes wrong here is no failure")
		},
		cancel: func() {},
	}
	for _, act := range []*solver.Action{{Step: final}, {Step: other}, {Step: final, Below: below}, {}, {Step: last, Below: below}} {
		if r, err := a.Run(t.Context(), act); err != nil || len(r.Layers) != 1 {
			t.Fatalf("%v, %v", r, err)
		}
	}
	close(release)
	a.Close(nil)
	close(got)
	seen := map[made]int{}
	for m := range got {
		seen[m]++
	}
	if len(seen) != 2 || seen[made{1, 0}] != 1 || seen[made{2, 1}] != 1 {
		t.Errorf("prepared %v", seen)
	}
}

// TestAheadPacks packs large layers of files while they are copied: those of
// the image that nothing can be held up by.
func TestAheadPacks(t *testing.T) {
	last, final, other := &solver.Step{}, &solver.Step{}, &solver.Step{}
	size := int64(packMin)
	layer := func(e ...tree.Entry) *tree.Tree {
		return &tree.Tree{Entries: append(e, tree.Entry{Path: "f", Type: tree.File, Size: size})}
	}
	for i, c := range []struct {
		step *solver.Step
		slow bool
		t    *tree.Tree
		want bool
	}{
		{step: last, t: layer(), want: true},
		{step: final, t: layer(), want: true},
		{step: last, slow: true, t: layer(), want: true},
		{step: final, slow: true, t: layer()},
		{step: other, t: layer()},
		{t: layer()},
		{step: last, t: layer(tree.Entry{Path: "", Type: tree.Dir, Mode: 0o700})},
		{step: last, t: &tree.Tree{Entries: []tree.Entry{{Path: "f", Type: tree.File, Size: size - 1}}}},
	} {
		for _, kept := range []bool{true, false} {
			var packed *tree.Tree
			var err error
			a := &ahead{
				last: map[*solver.Step]bool{last: true}, final: map[*solver.Step]bool{final: true}, slow: c.slow, top: last,
				pack: func(top bool, layer *tree.Tree, from archive.PackOptions, kept func(blob.Blob) error) (blob.Blob, error) {
					if top != (c.step == last) {
						t.Errorf("case %d: top layer: %t", i, top)
					}
					packed, err = layer, kept(blob.Blob{})
					return blob.Blob{}, err
				},
				cancel: func() {},
			}
			k := a.packer(&solver.Action{Step: c.step}, c.t, nil)
			if k != nil {
				k.Kept(kept)
			}
			a.Close(nil)
			if (k != nil) != c.want || c.want && (packed != c.t || (err == nil) != kept) {
				t.Errorf("case %d: feed %v, packed %v, %v", i, k, packed, err)
			}
		}
	}
}

// TestFilesRead asks of some graphs whose files are looked at.
func TestFilesRead(t *testing.T) {
	step := func(name string, o solver.Op, below *solver.Vertex, inputs ...*solver.Vertex) *solver.Vertex {
		return &solver.Vertex{Op: o, Step: &solver.Step{Name: name}, Below: below, Inputs: inputs}
	}
	copying := func(name string, o op.Copy, below, using *solver.Vertex) *solver.Vertex {
		sel := &solver.Vertex{Op: op.Select{}, Inputs: []*solver.Vertex{using}}
		dest := &solver.Vertex{Op: op.Dest{}, Inputs: []*solver.Vertex{below, sel}}
		v := step(name, o, below, dest, sel)
		v.Using = []*solver.Vertex{using}
		return v
	}
	base, other := step("base", op.Image{}, nil), step("other", op.Image{}, nil)
	context := &solver.Vertex{Op: op.Select{}}
	first := copying("first", op.Copy{}, base, context)
	last := copying("last", op.Copy{}, first, context)
	from := copying("from", op.Copy{}, other, first)
	for name, c := range map[string]struct {
		targets []*solver.Vertex
		want    string
	}{
		"copies alone":             {[]*solver.Vertex{last}, ""},
		"a directory on top":       {[]*solver.Vertex{step("mkdir", op.Mkdir{}, last, last)}, ""},
		"a step on top":            {[]*solver.Vertex{step("run", op.Exec{}, last, last)}, "base first last"},
		"a step in between":        {[]*solver.Vertex{copying("last", op.Copy{}, step("run", op.Exec{}, first, first), context)}, "base first"},
		"a copy of it":             {[]*solver.Vertex{from}, "base first"},
		"both":                     {[]*solver.Vertex{last, from}, "base first"},
		"an archive is unpacked":   {[]*solver.Vertex{copying("add", op.Copy{Unpack: true}, last, context)}, "base first last"},
		"another step looks at it": {[]*solver.Vertex{step("run", op.Exec{}, other, other, first)}, "base first other"},
	} {
		var got []string
		for s := range filesRead(c.targets) {
			got = append(got, s.Name)
		}
		slices.Sort(got)
		if strings.Join(got, " ") != c.want {
			t.Errorf("%s: %v, want %s", name, got, c.want)
		}
	}
}

func TestAheadStopsWithTheBuild(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	step := &solver.Step{}
	a := &ahead{
		Runner: runnerFunc(func(context.Context, *solver.Action) (solver.Result, error) {
			return solver.Result{Layers: []solver.Layer{{}}}, nil
		}),
		final:   map[*solver.Step]bool{step: true},
		prepare: func([]solver.Layer, int) error { <-ctx.Done(); return ctx.Err() },
		cancel:  cancel,
	}
	if _, err := a.Run(t.Context(), &solver.Action{Step: step}); err != nil {
		t.Fatal(err)
	}
	a.Close(errors.New("a step failed")) // or it would wait for ever
}
