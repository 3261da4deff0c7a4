package main

import (
	"context"
	"os"
	"slices"
	"sync"

	"kiln.build/exporter"
	"kiln.build/solver"

	"github.com/moby/term"
)

// exporter is what writes the build's results.
func (b *builder) exporter() (*exporter.Exporter, error) {
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
	return x, nil
}

// ahead is a Runner that makes the blobs of an image's layers while the next
// steps run. What does not work is left to the export, which tells why, as is
// what someone prunes meanwhile: a lease would hold that up for as long as
// the build takes.
type ahead struct {
	solver.Runner
	final   map[*solver.Step]bool // of the images, but for the last ones, after which nothing runs
	prepare func(stack []solver.Layer, below int) error
	sync    func() error       // nil where no image is tagged at the end
	cancel  context.CancelFunc // of prepare
	wait    sync.WaitGroup
}

// ahead wraps the runner. Close must be called.
func (b *builder) ahead(ctx context.Context, targets []*solver.Vertex) (*ahead, error) {
	x, err := b.exporter()
	if err != nil {
		return nil, err
	}
	a := &ahead{Runner: b.runner, final: map[*solver.Step]bool{}}
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
	if slices.ContainsFunc(b.outputs, exporter.Output.InStore) {
		a.sync = func() error { return b.store.Sync(ctx) }
	}
	for _, t := range targets {
		for v := t.Below; v != nil; v = v.Below {
			if v.Step != nil {
				a.final[v.Step] = true
			}
		}
	}
	return a, nil
}

// syncAhead is the size from which a step's layers are made safe from a power
// loss at once. The tag at the end waits for that, and for little then.
const syncAhead = 16 << 20

// Run implements [solver.Runner].
func (a *ahead) Run(ctx context.Context, act *solver.Action) (solver.Result, error) {
	res, err := a.Runner.Run(ctx, act)
	if err != nil {
		return res, err
	}
	var size int64
	for _, l := range res.Layers {
		size += l.Size
	}
	if size >= syncAhead && a.sync != nil {
		a.wait.Go(func() { _ = a.sync() })
	}
	if len(res.Layers) == 0 || !a.final[act.Step] {
		return res, nil
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

// Close waits for what was begun, and stops that if the build failed.
func (a *ahead) Close(failed error) {
	if failed != nil {
		a.cancel()
	}
	a.wait.Wait()
	a.cancel()
}

var _ solver.Runner = (*ahead)(nil)
