package solver

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/semaphore"
)

// Solver evaluates graphs. The fields must not change while Solve runs;
// Solve may be called by several goroutines.
type Solver struct {
	Cache  Cache
	Runner Runner
	Events Sink // may be nil

	// Jobs is how many actions may run at a time; zero means one.
	Jobs int
}

// Error is the failure of a vertex. Others that were stopped because of it
// are not reported.
type Error struct {
	Vertex *Vertex
	Err    error
}

func (e *Error) Error() string {
	if e.Vertex.Step != nil && e.Vertex.Step.Name != "" {
		return e.Vertex.Step.Name + ": " + e.Err.Error()
	}
	return e.Err.Error()
}

func (e *Error) Unwrap() error { return e.Err }

// Solve returns the outputs of the targets, in order. With the first failure
// everything else is stopped, and Solve returns once all it started has
// ended: the error is an [*Error] naming the vertex that failed, or the
// context's cause.
func (s *Solver) Solve(ctx context.Context, targets ...*Vertex) ([]Output, error) {
	g, roots, err := plan(targets)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	r := &run{
		solver:  s,
		cancel:  cancel,
		slots:   semaphore.NewWeighted(int64(max(1, s.Jobs))),
		flights: map[digest.Digest]*flight{},
	}
	var ready []*node // collected first: started nodes change pending
	for _, n := range g {
		if n.pending == 0 {
			ready = append(ready, n)
		}
	}
	for _, n := range ready {
		r.start(ctx, n)
	}
	r.wait.Wait()
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	outs := make([]Output, len(roots))
	for i, n := range roots {
		outs[i] = n.out
	}
	return outs, nil
}

// node is one definition in the graph: all equal vertices.
type node struct {
	v       *Vertex
	op      string // its description
	inputs  []*node
	using   []*node
	below   *node
	waiters []*node // nodes that have this one among their dependencies
	pending int     // dependencies not solved yet; guarded by run.mu
	out     Output  // set before waiters are told
}

// plan finds the distinct definitions reachable from the targets, in an
// order in which dependencies come first. It walks without recursion: stages
// can be chained to any depth.
func plan(targets []*Vertex) (order, roots []*node, err error) {
	type frame struct {
		v    *Vertex
		deps []*Vertex
		next int
	}
	const visiting = -1
	index := map[*Vertex]int{} // into order, or visiting
	byDefinition := map[digest.Digest]int{}
	definitions := []digest.Digest{}

	for _, t := range targets {
		stack := []frame{{v: t, deps: dependencies(t)}}
		if _, ok := index[t]; ok {
			stack = nil
		} else {
			index[t] = visiting
		}
		for len(stack) > 0 {
			f := &stack[len(stack)-1]
			if f.next < len(f.deps) {
				d := f.deps[f.next]
				f.next++
				i, seen := index[d]
				if seen && i == visiting {
					return nil, nil, &Error{Vertex: d, Err: errors.New("the build graph has a cycle")}
				}
				if !seen {
					index[d] = visiting
					stack = append(stack, frame{v: d, deps: dependencies(d)})
				}
				continue
			}
			v := f.v
			stack = stack[:len(stack)-1]
			op := Describe(v.Op)
			def := definition(v, op, func(d *Vertex) digest.Digest { return definitions[index[d]] })
			if i, ok := byDefinition[def]; ok {
				index[v] = i
				if s := order[i].v.Step; v.Step != nil && (s == nil || s.Name == "") {
					order[i].v = v // show the work under a name if any equal vertex has one
				}
				continue
			}
			n := &node{v: v, op: op}
			for _, d := range v.Inputs {
				n.inputs = append(n.inputs, order[index[d]])
			}
			for _, d := range v.Using {
				n.using = append(n.using, order[index[d]])
			}
			if v.Below != nil {
				n.below = order[index[v.Below]]
			}
			for _, d := range f.deps {
				dep := order[index[d]]
				dep.waiters = append(dep.waiters, n)
				n.pending++
			}
			index[v] = len(order)
			byDefinition[def] = len(order)
			order = append(order, n)
			definitions = append(definitions, def)
		}
		roots = append(roots, order[index[t]])
	}
	return order, roots, nil
}

// dependencies lists what must be solved before v; it may repeat vertices.
func dependencies(v *Vertex) []*Vertex {
	deps := make([]*Vertex, 0, len(v.Inputs)+len(v.Using)+1)
	deps = append(deps, v.Inputs...)
	deps = append(deps, v.Using...)
	if v.Below != nil {
		deps = append(deps, v.Below)
	}
	return deps
}

// definition identifies a vertex by what it is and what it is applied to.
func definition(v *Vertex, op string, of func(*Vertex) digest.Digest) digest.Digest {
	h := digest.Canonical.Digester()
	w := h.Hash()
	fmt.Fprintf(w, "%d %d %t %t %t\n", len(v.Inputs), len(v.Using), v.Below != nil, v.Volatile, v.Fresh)
	for _, d := range dependencies(v) {
		w.Write([]byte(of(d)))
		w.Write([]byte{'\n'})
	}
	w.Write([]byte(strconv.Itoa(len(op)) + "\n" + op))
	return h.Digest()
}

// run is one call of Solve.
type run struct {
	solver *Solver
	cancel context.CancelCauseFunc
	slots  *semaphore.Weighted
	wait   sync.WaitGroup

	mu      sync.Mutex
	flights map[digest.Digest]*flight
}

// flight is the evaluation of one action key, shared by all nodes that
// arrive at the same key.
type flight struct {
	done   chan struct{}
	result Result
	err    error
}

// start solves a node whose dependencies are solved, and then every node
// that waited for it alone. A goroutine lives only while its node is worked
// on, so memory does not grow with the depth of the graph.
func (r *run) start(ctx context.Context, n *node) {
	r.wait.Add(1)
	go func() {
		defer r.wait.Done()
		for n != nil {
			if ctx.Err() != nil {
				return
			}
			if err := r.solve(ctx, n); err != nil {
				r.cancel(err)
				return
			}
			n = r.next(ctx, n)
		}
	}()
}

// next tells the waiters of a solved node, starts those that became ready,
// and returns one of them for the caller to go on with.
func (r *run) next(ctx context.Context, n *node) *node {
	var ready []*node
	r.mu.Lock()
	for _, w := range n.waiters {
		if w.pending--; w.pending == 0 {
			ready = append(ready, w)
		}
	}
	r.mu.Unlock()
	if len(ready) == 0 {
		return nil
	}
	for _, w := range ready[1:] {
		r.start(ctx, w)
	}
	return ready[0]
}

func (r *run) solve(ctx context.Context, n *node) error {
	a := &Action{Op: n.v.Op, Step: n.v.Step, events: r.solver.Events, vertex: n.v}
	for _, in := range n.inputs {
		a.Inputs = append(a.Inputs, in.out)
	}
	for _, in := range n.using {
		a.Using = append(a.Using, in.out)
	}
	if n.below != nil {
		a.Below = &n.below.out
	}
	a.Description = describeAction(n.op, a.Inputs)
	a.Key = digest.FromString(a.Description)

	result, err := r.share(ctx, n.v, a)
	if err != nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return &Error{Vertex: n.v, Err: err}
	}
	n.out = output(a.Below, result)
	return nil
}

// share evaluates an action once per key. A volatile leaf is never shared by
// key: what it looks at is not in its key.
func (r *run) share(ctx context.Context, v *Vertex, a *Action) (Result, error) {
	if v.Volatile {
		return r.perform(ctx, a)
	}
	r.mu.Lock()
	f, ok := r.flights[a.Key]
	if !ok {
		f = &flight{done: make(chan struct{})}
		r.flights[a.Key] = f
	}
	r.mu.Unlock()
	if ok {
		select {
		case <-f.done:
			if f.err == nil {
				a.emit(Event{Kind: Cached})
			}
			return f.result, f.err
		case <-ctx.Done():
			return Result{}, context.Cause(ctx)
		}
	}
	defer close(f.done)
	f.result, f.err = r.evaluate(ctx, v, a)
	return f.result, f.err
}

// evaluate takes a result from the cache or makes and saves it.
func (r *run) evaluate(ctx context.Context, v *Vertex, a *Action) (Result, error) {
	cache := r.solver.Cache
	if !v.Fresh {
		if res, err := cache.Lookup(ctx, a.Key); err == nil {
			a.emit(Event{Kind: Cached})
			return res, nil
		}
	}
	release, err := cache.Lock(ctx, a.Key)
	if err != nil {
		if ctx.Err() != nil {
			return Result{}, context.Cause(ctx)
		}
		a.Warn(fmt.Sprintf("cache lock: %v", err))
		release = func() {}
	}
	defer release()
	if !v.Fresh {
		// Another process may have made it while we waited.
		if res, err := cache.Lookup(ctx, a.Key); err == nil {
			a.emit(Event{Kind: Cached})
			return res, nil
		}
	}
	res, err := r.perform(ctx, a)
	if err != nil {
		return Result{}, err
	}
	if err := cache.Save(ctx, a, res); err != nil {
		a.Warn(fmt.Sprintf("cache: %v", err))
	}
	return res, nil
}

// perform calls the Runner once a job slot is free.
func (r *run) perform(ctx context.Context, a *Action) (Result, error) {
	if err := r.slots.Acquire(ctx, 1); err != nil {
		return Result{}, context.Cause(ctx)
	}
	defer r.slots.Release(1)
	a.emit(Event{Kind: Started})
	res, err := r.solver.Runner.Run(ctx, a)
	switch {
	case err == nil:
		a.emit(Event{Kind: Done})
	case ctx.Err() != nil:
		a.emit(Event{Kind: Canceled})
	default:
		a.emit(Event{Kind: Failed, Err: err})
	}
	return res, err
}
