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

	// Place, if set, is called for a place among the jobs of all processes
	// that share a machine before an action that does more than look is
	// performed. It waits.
	Place func(context.Context) (release func(), err error)

	// Why, if set, is asked for the reason of every action that is about to
	// be performed under a name, for the Started event. All that the
	// evaluation depends on is solved. It is called from many goroutines.
	Why func(*Evaluation) string

	// Reuse, if set, is asked for actions that the Cache has no result for:
	// whether another one's result is good for them. What it gives is saved
	// for the action's own key.
	Reuse func(context.Context, *Action) (Result, bool)

	// Dry performs nothing but what only looks (see [Looker]): a vertex
	// without a cached result is left in the state WouldRun, and whatever
	// needs its output too.
	Dry bool
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
	g, err := s.Evaluate(ctx, targets...)
	if err != nil {
		return nil, err
	}
	outs := make([]Output, len(g.Targets))
	for i, t := range g.Targets {
		outs[i] = t.Output
	}
	return outs, nil
}

// Evaluate is Solve, and tells how everything went, also when it fails; nil
// where the graph itself is wrong.
func (s *Solver) Evaluate(ctx context.Context, targets ...*Vertex) (*Graph, error) {
	nodes, roots, err := plan(targets)
	if err != nil {
		return nil, err
	}
	g := &Graph{Evaluations: make([]*Evaluation, len(nodes)), Targets: make([]*Evaluation, len(roots))}
	for i, n := range nodes {
		g.Evaluations[i] = &n.Evaluation
	}
	for i, n := range roots {
		g.Targets[i] = &n.Evaluation
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
	for _, n := range nodes {
		if n.pending == 0 {
			ready = append(ready, n)
		}
	}
	for _, n := range ready {
		r.start(ctx, n)
	}
	r.wait.Wait()
	if ctx.Err() != nil {
		return g, context.Cause(ctx)
	}
	return g, nil
}

// node is an evaluation on its way.
type node struct {
	Evaluation
	waiters []*node // nodes that have this one among their dependencies
	pending int     // dependencies not solved yet; guarded by run.mu
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
				if s := order[i].Vertex.Step; v.Step != nil && (s == nil || s.Name == "") {
					order[i].Vertex = v // show the work under a name if any equal vertex has one
				}
				continue
			}
			n := &node{Evaluation: Evaluation{Vertex: v, Op: op}}
			for _, d := range v.Inputs {
				n.Inputs = append(n.Inputs, &order[index[d]].Evaluation)
			}
			for _, d := range v.Using {
				n.Using = append(n.Using, &order[index[d]].Evaluation)
			}
			if v.Below != nil {
				n.Below = &order[index[v.Below]].Evaluation
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
	deps := dependencies(v)
	b := make([]byte, 0, 64+len(deps)*72+len(op))
	b = fmt.Appendf(b, "%d %d %t %t %t\n", len(v.Inputs), len(v.Using), v.Below != nil, v.Volatile, v.Fresh)
	for _, d := range deps {
		b = append(append(b, of(d)...), '\n')
	}
	b = append(strconv.AppendInt(b, int64(len(op)), 10), '\n')
	return Digest(append(b, op...))
}

// run is one call of Solve.
type run struct {
	solver *Solver
	cancel context.CancelCauseFunc
	slots  *semaphore.Weighted
	wait   sync.WaitGroup

	mu      sync.Mutex
	flights map[digest.Digest]*flight
	working int     // goroutines
	ready   []*node // that wait for one of them
}

// flight is the evaluation of one action key, shared by all nodes that
// arrive at the same key.
type flight struct {
	done   chan struct{}
	state  State
	result Result
	err    error
}

// workers is how many nodes are worked on at a time beside those that have a
// job slot: far more than looking things up can use, and few enough that a
// graph of thousands of nodes that are ready at once does not have as many
// stacks grow.
const workers = 64

// start solves a node whose dependencies are solved, and then every node
// that waited for it alone. A goroutine lives only while there is a node to
// work on, so memory does not grow with the size of the graph.
func (r *run) start(ctx context.Context, n *node) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.working == workers+r.solver.Jobs {
		r.ready = append(r.ready, n)
		return
	}
	r.working++
	r.wait.Go(func() {
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
	})
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
	if len(ready) == 0 {
		// Another one that waits to be started, or the end.
		if len(r.ready) > 0 {
			ready, r.ready = r.ready[:1:1], r.ready[1:]
		} else {
			r.working--
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
	if !known(n.Inputs...) {
		n.State = WouldRun
		return nil
	}
	a := &Action{Op: n.Vertex.Op, Step: n.Vertex.Step, events: r.solver.Events, vertex: n.Vertex}
	for _, in := range n.Inputs {
		a.Inputs = append(a.Inputs, in.Output)
	}
	for _, in := range n.Using {
		a.Using = append(a.Using, in.Output)
	}
	if n.Below != nil {
		a.Below = &n.Below.Output
	}
	a.Description = describeAction(n.Op, a.Inputs)
	a.Key = Digest(a.Description)
	n.Key = a.Key

	result, err := r.share(ctx, &n.Evaluation, a)
	if err != nil {
		if ctx.Err() != nil {
			if n.State == Broken {
				n.State = Stopped
			}
			return context.Cause(ctx)
		}
		return &Error{Vertex: n.Vertex, Err: err}
	}
	if n.State != WouldRun {
		n.Output = output(a.Below, result)
		n.unknown = n.Below != nil && !n.Below.Known()
	}
	return nil
}

// share evaluates an action once per key. A volatile leaf is never shared by
// key: what it looks at is not in its key.
func (r *run) share(ctx context.Context, e *Evaluation, a *Action) (Result, error) {
	if e.Vertex.Volatile {
		if !known(e.Using...) {
			e.State = WouldRun
			return Result{}, nil
		}
		return r.perform(ctx, e, a)
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
			e.State = f.state
			if f.state == Ran {
				e.State = Hit // performed once for all of the key
			}
			if f.err == nil && e.State == Hit {
				a.emit(Event{Kind: Cached})
			}
			return f.result, f.err
		case <-ctx.Done():
			return Result{}, context.Cause(ctx)
		}
	}
	defer close(f.done)
	f.result, f.err = r.evaluate(ctx, e, a)
	f.state = e.State
	return f.result, f.err
}

// evaluate takes a result from the cache or makes and saves it.
func (r *run) evaluate(ctx context.Context, e *Evaluation, a *Action) (Result, error) {
	cache := r.solver.Cache
	lookup := func() (Result, bool) {
		if e.Vertex.Fresh {
			return Result{}, false
		}
		res, err := cache.Lookup(ctx, a.Key)
		if err != nil {
			return Result{}, false
		}
		e.State = Hit
		a.emit(Event{Kind: Cached})
		return res, true
	}
	if res, ok := lookup(); ok {
		return res, nil
	}
	if res, ok := r.reuse(ctx, e, a); ok {
		return res, nil
	}
	if r.solver.Dry && !canLook(e) {
		e.State = WouldRun
		e.Reason = r.why(e)
		return Result{}, nil
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
	// Another process may have made it while we waited.
	if res, ok := lookup(); ok {
		return res, nil
	}
	res, err := r.perform(ctx, e, a)
	if err != nil {
		return Result{}, err
	}
	if err := cache.Save(ctx, a, res); err != nil {
		a.Warn(fmt.Sprintf("cache: %v", err))
	}
	return res, nil
}

// reuse takes the result of another action if that is as good.
func (r *run) reuse(ctx context.Context, e *Evaluation, a *Action) (Result, bool) {
	if r.solver.Reuse == nil || e.Vertex.Fresh {
		return Result{}, false
	}
	res, ok := r.solver.Reuse(ctx, a)
	if !ok {
		return Result{}, false
	}
	if !r.solver.Dry {
		if err := r.solver.Cache.Save(ctx, a, res); err != nil {
			a.Warn(fmt.Sprintf("cache: %v", err))
		}
	}
	e.State = Hit
	a.emit(Event{Kind: Cached})
	return res, true
}

// perform calls the Runner once a job slot is free.
func (r *run) perform(ctx context.Context, e *Evaluation, a *Action) (Result, error) {
	if err := r.slots.Acquire(ctx, 1); err != nil {
		return Result{}, context.Cause(ctx)
	}
	defer r.slots.Release(1)
	if _, looks := a.Op.(Looker); !looks && r.solver.Place != nil {
		release, err := r.solver.Place(ctx)
		if err != nil {
			if ctx.Err() != nil {
				return Result{}, context.Cause(ctx)
			}
			return Result{}, fmt.Errorf("wait for a place among the jobs: %w", err)
		}
		defer release()
	}
	e.Reason = r.why(e)
	e.Started = a.emit(Event{Kind: Started, Name: e.Reason})
	res, err := r.solver.Runner.Run(ctx, a)
	switch {
	case err == nil:
		e.State = Ran
		e.Ended = a.emit(Event{Kind: Done})
	case ctx.Err() != nil:
		e.State = Stopped
		e.Ended = a.emit(Event{Kind: Canceled})
	default:
		e.State = Broken
		e.Ended = a.emit(Event{Kind: Failed, Err: err})
	}
	return res, err
}

// why asks for the reason of what people are shown.
func (r *run) why(e *Evaluation) string {
	if r.solver.Why == nil || e.Vertex.Step == nil || e.Vertex.Step.Name == "" {
		return ""
	}
	return r.solver.Why(e)
}
