package main

import (
	"context"
	"errors"
	"testing"

	"kiln.build/solver"
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

// TestAheadSyncs begins to sync after large layers, where there is a need.
func TestAheadSyncs(t *testing.T) {
	size, synced := int64(syncAhead-1), 0
	a := &ahead{
		Runner: runnerFunc(func(context.Context, *solver.Action) (solver.Result, error) {
			return solver.Result{Layers: []solver.Layer{{Size: size}}}, nil
		}),
		sync:   func() error { synced++; return nil },
		cancel: func() {},
	}
	run := func() {
		t.Helper()
		if _, err := a.Run(t.Context(), &solver.Action{}); err != nil {
			t.Fatal(err)
		}
		a.wait.Wait()
	}
	if run(); synced != 0 {
		t.Error("a small layer is synced by itself")
	}
	size++
	if run(); synced != 1 {
		t.Errorf("a large layer is synced %d times", synced)
	}
	a.sync = nil
	run()
	a.Close(nil)
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
