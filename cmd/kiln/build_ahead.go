package main

import (
	"context"
	"errors"
	"io"
	"os"
	"slices"
	"sync"

	"kiln.build/cache/archive"
	"kiln.build/cache/tree"
	"kiln.build/exporter"
	"kiln.build/exporter/blob"
	"kiln.build/runner"
	"kiln.build/solver"
	"kiln.build/solver/op"

	"github.com/moby/term"
	"github.com/opencontainers/go-digest"
)

// exporter is what writes the build's results, made once.
func (b *builder) exporter() (*exporter.Exporter, error) {
	if b.x != nil {
		return b.x, nil
	}
	epoch, err := b.flags.epoch()
	if err != nil {
		return nil, err
	}
	out, _ := b.app.stdout.(*os.File)
	x := &exporter.Exporter{
		Store: b.store, Client: b.runner.Registry, Fetch: b.runner.FetchBlob, Epoch: epoch, Stdout: b.app.stdout,
		Terminal: out != nil && term.IsTerminal(out.Fd()),
	}
	if slices.ContainsFunc(b.cacheTo, func(c remoteCache) bool { return c.kind == "inline" }) {
		x.Inline = b.remote.Inline
	}
	b.x = x
	return x, nil
}

// ahead is a Runner that makes the blobs of an image's layers while the next
// steps run, and those of files that are copied while they are. What does not
// work is left to the export, which tells why, as is what someone prunes
// meanwhile: a lease would hold that up for as long as the build takes.
type ahead struct {
	solver.Runner
	final   map[*solver.Step]bool // of the images, but for the last ones, after which nothing runs
	last    map[*solver.Step]bool
	prepare func(stack []solver.Layer, below int) error
	read    map[*solver.Step]bool // their files are looked at
	top     *solver.Step          // of the first image: archives begin with its layer
	pack    func(top bool, t *tree.Tree, from archive.PackOptions, kept func(blob.Blob) error) (blob.Blob, error)
	slow    bool               // pack compresses: what reads must not wait for it
	cancel  context.CancelFunc // of prepare
	wait    sync.WaitGroup
}

// ahead wraps the runner. Close must be called.
func (b *builder) ahead(ctx context.Context, targets []*solver.Vertex) (*ahead, error) {
	x, err := b.exporter()
	if err != nil {
		return nil, err
	}
	a := &ahead{Runner: b.runner, final: map[*solver.Step]bool{}, last: map[*solver.Step]bool{}}
	// The context that Run gets ends when the last step has.
	ctx, a.cancel = context.WithCancel(ctx)
	a.prepare = func(stack []solver.Layer, below int) error {
		for _, o := range b.outputs {
			if err := x.Prepare(ctx, o, stack, below); err != nil {
				return err
			}
		}
		return nil
	}
	if i := slices.IndexFunc(b.outputs, func(o exporter.Output) bool { return !o.Files() }); i >= 0 && !b.flags.dryRun {
		o := b.outputs[i]
		a.slow = x.Compresses(o)
		a.pack = func(top bool, t *tree.Tree, from archive.PackOptions, kept func(blob.Blob) error) (blob.Blob, error) {
			return x.Feed(ctx, o, top, t, from, kept)
		}
		b.runner.Packer = a.packer
	}
	// Sinks send what layers are made of.
	if !slices.ContainsFunc(b.outputs, exporter.Output.Files) && !slices.ContainsFunc(b.cacheTo, func(c remoteCache) bool { return c.kind != "inline" }) {
		a.read = filesRead(targets)
	}
	for i, t := range targets {
		if i == 0 {
			a.top = t.Step
		}
		if t.Step != nil {
			a.last[t.Step] = true
		}
		for v := t.Below; v != nil; v = v.Below {
			if v.Step != nil {
				a.final[v.Step] = true
			}
		}
	}
	return a, nil
}

// Run implements [solver.Runner].
func (a *ahead) Run(ctx context.Context, act *solver.Action) (solver.Result, error) {
	res, err := a.Runner.Run(ctx, act)
	if err != nil || len(res.Layers) == 0 || !a.final[act.Step] {
		return res, err
	}
	var stack []solver.Layer
	if act.Below != nil {
		stack = append(stack, act.Below.Layers...)
	}
	below := len(stack)
	stack = append(stack, res.Layers...)
	a.wait.Go(func() { _ = a.prepare(stack, below) })
	return res, nil
}

const (
	// packMin is the size from which a layer is packed while it is copied.
	packMin = 1 << 20

	// feedBatches is how many batches of files wait to be packed.
	feedBatches = 8
)

// packer implements [runner.Packer].
func (a *ahead) packer(act *solver.Action, t *tree.Tree, open func(*tree.Entry) (io.ReadCloser, error)) *runner.Packing {
	wanted := a.last[act.Step] || a.final[act.Step] && !a.slow
	if act.Step == nil || !wanted || t.Size() < packMin || !blob.Alone(t) {
		return nil
	}
	feed := archive.NewFeed(feedBatches)
	settled := make(chan bool, 1)
	type result struct {
		digest digest.Digest
		err    error
	}
	made := make(chan result, 2)
	a.wait.Go(func() {
		b, err := a.pack(act.Step == a.top, t, archive.PackOptions{Feed: feed, Open: open}, func(b blob.Blob) error {
			made <- result{b.Descriptor.Digest, nil}
			if !<-settled {
				return errors.New("the layer did not come about")
			}
			return nil
		})
		made <- result{b.Descriptor.Digest, err}
	})
	k := &runner.Packing{Feed: feed, Kept: func(kept bool) { settled <- kept }}
	if a.read != nil && !a.read[act.Step] && blob.Same(t) {
		k.Blob = func(ctx context.Context) (digest.Digest, error) {
			select {
			case r := <-made:
				return r.digest, r.err
			case <-ctx.Done():
				return "", context.Cause(ctx)
			}
		}
	}
	return k
}

// filesRead tells whose layers' files are looked at while a graph is
// evaluated: what a step runs on or copies from. Who puts something on top
// needs the listings alone. Where this is wrong, files are made when they are
// needed.
func filesRead(targets []*solver.Vertex) map[*solver.Step]bool {
	read := map[*solver.Step]bool{}
	marked := map[*solver.Vertex]bool{}
	mark := func(stacks ...*solver.Vertex) {
		for _, v := range stacks {
			for ; v != nil && !marked[v]; v = v.Below {
				marked[v] = true
				if v.Step != nil {
					read[v.Step] = true
				}
			}
		}
	}
	seen := map[*solver.Vertex]bool{}
	todo := slices.Clone(targets)
	for len(todo) > 0 {
		v := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		if v == nil || seen[v] {
			continue
		}
		seen[v] = true
		todo = append(append(append(todo, v.Inputs...), v.Using...), v.Below)
		switch o := v.Op.(type) {
		case op.Dest, op.Mkdir, op.Select:
		case op.Copy:
			mark(v.Using...)
			if o.Unpack { // hard links in archives name what is below
				mark(v.Below)
			}
		default:
			mark(v.Inputs...)
			mark(v.Using...)
			mark(v.Below)
		}
	}
	return read
}

// Close waits for what was begun, and stops that if the build failed.
func (a *ahead) Close(failed error) {
	if failed != nil {
		a.cancel()
	}
	a.wait.Wait()
	a.cancel()
}

var _ solver.Runner = (*ahead)(nil)
