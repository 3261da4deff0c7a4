package solver

import (
	"context"
	"errors"
	"fmt"
	"math/rand"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
)

// textOp yields its text and its inputs' digests, hashed; or a constant, to
// show early cutoff; or an error.
type textOp struct {
	Text  string
	Const string // if set, the content whatever the inputs are
	Fail  bool
	Layer bool
}

func (o textOp) Describe(d *Description) {
	d.Line("op", "text")
	d.Line("text", o.Text)
	d.Line("const", o.Const)
	d.Bool("fail", o.Fail)
	d.Bool("layer", o.Layer)
}

var errForced = errors.New("forced")

// evaluate is what the op means: the Runner's answer, and the model's.
func evaluate(o textOp, inputs []digest.Digest) (Result, error) {
	if o.Fail {
		return Result{}, errForced
	}
	text := o.Const
	if text == "" {
		text = fmt.Sprint(o.Text, inputs)
	}
	r := Result{Digest: digest.FromString(text)}
	if o.Layer {
		r.Layers = []Layer{{Digest: r.Digest}}
	}
	return r, nil
}

type fakeRunner struct {
	ran   atomic.Int64
	mu    sync.Mutex
	texts []string
	hold  func(ctx context.Context, a *Action) error
}

func (f *fakeRunner) Run(ctx context.Context, a *Action) (Result, error) {
	f.ran.Add(1)
	o := a.Op.(textOp)
	f.mu.Lock()
	f.texts = append(f.texts, o.Text)
	f.mu.Unlock()
	if f.hold != nil {
		if err := f.hold(ctx, a); err != nil {
			return Result{}, err
		}
	}
	var in []digest.Digest
	for _, i := range a.Inputs {
		in = append(in, i.Digest)
	}
	return evaluate(o, in)
}

// fakeCache is a map that can forget and fail.
type fakeCache struct {
	mu     sync.Mutex
	kept   map[digest.Digest]Result
	locked map[digest.Digest]bool
	broken bool // every call fails
}

func newFakeCache() *fakeCache {
	return &fakeCache{kept: map[digest.Digest]Result{}, locked: map[digest.Digest]bool{}}
}

func (c *fakeCache) Lookup(_ context.Context, key digest.Digest) (Result, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.broken {
		return Result{}, errors.New("broken")
	}
	r, ok := c.kept[key]
	if !ok {
		return Result{}, ErrMiss
	}
	return r, nil
}

func (c *fakeCache) Lock(_ context.Context, key digest.Digest) (func(), error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.broken {
		return nil, errors.New("broken")
	}
	if c.locked[key] {
		panic("one process locked a key twice")
	}
	c.locked[key] = true
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.locked, key)
	}, nil
}

func (c *fakeCache) Save(_ context.Context, a *Action, r Result) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.broken {
		return errors.New("broken")
	}
	c.kept[a.Key] = r
	return nil
}

var (
	_ Cache  = (*fakeCache)(nil)
	_ Runner = (*fakeRunner)(nil)
)

func solve(t *testing.T, c Cache, r Runner, targets ...*Vertex) []Output {
	t.Helper()
	s := &Solver{Cache: c, Runner: r, Jobs: 4}
	outs, err := s.Solve(t.Context(), targets...)
	if err != nil {
		t.Fatalf("solve: %v", err)
	}
	return outs
}

func TestEqualDefinitionsRunOnce(t *testing.T) {
	leaf := func() *Vertex { return &Vertex{Op: textOp{Text: "leaf"}} }
	a := &Vertex{Op: textOp{Text: "a"}, Inputs: []*Vertex{leaf()}}
	b := &Vertex{Op: textOp{Text: "b"}, Inputs: []*Vertex{leaf(), leaf()}}
	r := &fakeRunner{}
	solve(t, newFakeCache(), r, a, b, a)
	if got := r.ran.Load(); got != 3 {
		t.Errorf("ran %d actions %q, want leaf, a, b once each", got, r.texts)
	}
}

func TestSecondSolveIsCached(t *testing.T) {
	g := &Vertex{Op: textOp{Text: "top"}, Inputs: []*Vertex{{Op: textOp{Text: "leaf"}}}}
	c, r := newFakeCache(), &fakeRunner{}
	first := solve(t, c, r, g)
	second := solve(t, c, r, g)
	if r.ran.Load() != 2 || first[0].Digest != second[0].Digest {
		t.Errorf("ran %d, digests %s and %s", r.ran.Load(), first[0].Digest, second[0].Digest)
	}
}

func TestEarlyCutoff(t *testing.T) {
	// mid changes (its text does) but yields the same content, so top, which
	// sees only the content, does not run again.
	graph := func(text string) *Vertex {
		mid := &Vertex{Op: textOp{Text: text, Const: "same"}}
		return &Vertex{Op: textOp{Text: "top"}, Inputs: []*Vertex{mid}}
	}
	c, r := newFakeCache(), &fakeRunner{}
	solve(t, c, r, graph("one"))
	solve(t, c, r, graph("two"))
	if got := strings.Join(r.texts, " "); got != "one top two" {
		t.Errorf("ran %q, want \"one top two\"", got)
	}
}

func TestBelowIsNotInTheKey(t *testing.T) {
	graph := func(base string) *Vertex {
		return &Vertex{
			Op:    textOp{Text: "copy", Layer: true},
			Below: &Vertex{Op: textOp{Text: base, Layer: true}},
			Using: []*Vertex{{Op: textOp{Text: "using " + base}}},
		}
	}
	c, r := newFakeCache(), &fakeRunner{}
	one := solve(t, c, r, graph("base1"))[0]
	two := solve(t, c, r, graph("base2"))[0]
	if n := strings.Count(strings.Join(r.texts, ","), "copy"); n != 1 {
		t.Errorf("copy ran %d times, want once", n)
	}
	if len(one.Layers) != 2 || len(two.Layers) != 2 || one.Layers[1] != two.Layers[1] || one.Layers[0] == two.Layers[0] {
		t.Errorf("stacks %v and %v: want the copy's layer over each base", one.Layers, two.Layers)
	}
	if one.Digest == two.Digest {
		t.Error("different stacks have one digest")
	}
}

func TestVolatileIsAlwaysLookedAt(t *testing.T) {
	g := &Vertex{Op: textOp{Text: "top"}, Inputs: []*Vertex{{Op: textOp{Text: "dir"}, Volatile: true}}}
	c, r := newFakeCache(), &fakeRunner{}
	solve(t, c, r, g)
	solve(t, c, r, g)
	if got := strings.Join(r.texts, " "); got != "dir top dir" {
		t.Errorf("ran %q, want \"dir top dir\"", got)
	}
}

func TestFreshRunsAndSaves(t *testing.T) {
	c, r := newFakeCache(), &fakeRunner{}
	solve(t, c, r, &Vertex{Op: textOp{Text: "v"}, Fresh: true})
	solve(t, c, r, &Vertex{Op: textOp{Text: "v"}, Fresh: true})
	solve(t, c, r, &Vertex{Op: textOp{Text: "v"}})
	if r.ran.Load() != 2 {
		t.Errorf("ran %d, want 2: twice fresh, then cached", r.ran.Load())
	}
}

func TestBrokenCacheDoesNotFailTheBuild(t *testing.T) {
	c, r := newFakeCache(), &fakeRunner{}
	c.broken = true
	solve(t, c, r, &Vertex{Op: textOp{Text: "v"}})
	if r.ran.Load() != 1 {
		t.Errorf("ran %d, want 1", r.ran.Load())
	}
}

func TestCycle(t *testing.T) {
	a := &Vertex{Op: textOp{Text: "a"}}
	b := &Vertex{Op: textOp{Text: "b"}, Using: []*Vertex{a}}
	a.Below = b
	s := &Solver{Cache: newFakeCache(), Runner: &fakeRunner{}}
	if _, err := s.Solve(t.Context(), b); err == nil || !strings.Contains(err.Error(), "cycle") {
		t.Errorf("got %v, want an error naming the cycle", err)
	}
}

func TestFirstFailureStopsTheRest(t *testing.T) {
	started := make(chan struct{})
	r := &fakeRunner{hold: func(ctx context.Context, a *Action) error {
		if a.Op.(textOp).Text == "slow" {
			close(started)
			<-ctx.Done()
			return ctx.Err()
		}
		<-started
		return nil
	}}
	bad := &Vertex{Op: textOp{Text: "bad", Fail: true}, Step: &Step{Name: "RUN bad"}}
	s := &Solver{Cache: newFakeCache(), Runner: r, Jobs: 2}
	_, err := s.Solve(t.Context(), &Vertex{Op: textOp{Text: "slow"}}, bad)
	var e *Error
	if !errors.As(err, &e) || e.Vertex != bad || !errors.Is(err, errForced) {
		t.Errorf("got %v, want the failure of RUN bad", err)
	}
}

func TestJobsBound(t *testing.T) {
	var running, most atomic.Int64
	r := &fakeRunner{hold: func(context.Context, *Action) error {
		n := running.Add(1)
		for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
		}
		time.Sleep(time.Millisecond)
		running.Add(-1)
		return nil
	}}
	var targets []*Vertex
	for i := range 20 {
		targets = append(targets, &Vertex{Op: textOp{Text: fmt.Sprint(i)}})
	}
	s := &Solver{Cache: newFakeCache(), Runner: r, Jobs: 3}
	if _, err := s.Solve(t.Context(), targets...); err != nil {
		t.Fatal(err)
	}
	if most.Load() > 3 {
		t.Errorf("%d actions ran at once, want 3 at most", most.Load())
	}
}

// TestRandomGraphs compares Solve with a plain recursive evaluation, over
// graphs with shared nodes, failures and a cache that forgets.
func TestRandomGraphs(t *testing.T) {
	for seed := range int64(300) {
		rnd := rand.New(rand.NewSource(seed))
		var vs []*Vertex
		pick := func() []*Vertex {
			var in []*Vertex
			for len(vs) > 0 && rnd.Intn(3) > 0 {
				in = append(in, vs[rnd.Intn(len(vs))])
			}
			return in
		}
		for range 1 + rnd.Intn(40) {
			o := textOp{Text: fmt.Sprint(rnd.Intn(12)), Fail: rnd.Intn(60) == 0, Layer: rnd.Intn(2) == 0}
			if rnd.Intn(4) == 0 {
				o.Const = "const"
			}
			v := &Vertex{Op: o, Inputs: pick(), Using: pick(), Fresh: rnd.Intn(8) == 0, Volatile: rnd.Intn(8) == 0}
			if in := pick(); len(in) > 0 {
				v.Below = in[0]
			}
			vs = append(vs, v)
		}
		target := vs[len(vs)-1]
		want, wantErr := model(target, map[*Vertex]Output{})
		c := newFakeCache()
		for round := range 3 {
			s := &Solver{Cache: c, Runner: &fakeRunner{}, Jobs: 1 + rnd.Intn(5)}
			outs, err := s.Solve(t.Context(), target)
			if (err != nil) != (wantErr != nil) || err == nil && outs[0].Digest != want.Digest {
				t.Fatalf("seed %d round %d: got %v, %v; want %v, %v", seed, round, outs, err, want, wantErr)
			}
			cancelled(t, c, target, rnd.Intn(6), want)
			for k := range c.kept { // forget some
				if rnd.Intn(3) == 0 {
					delete(c.kept, k)
				}
			}
			checkDryRun(t, c, target, want, wantErr)
		}
	}
}

// cancelled solves while the context is cancelled as the n-th action runs.
func cancelled(t *testing.T, c Cache, target *Vertex, n int, want Output) {
	t.Helper()
	ctx, cancel := context.WithCancelCause(t.Context())
	defer cancel(nil)
	stop := errors.New("stop")
	var begun, running atomic.Int64
	s := &Solver{Cache: c, Jobs: 3, Runner: &fakeRunner{hold: func(ctx context.Context, _ *Action) error {
		running.Add(1)
		defer running.Add(-1)
		if begun.Add(1) == int64(n) {
			cancel(stop)
			<-ctx.Done()
			return ctx.Err()
		}
		return nil
	}}}
	outs, err := s.Solve(ctx, target)
	if running.Load() != 0 {
		t.Fatal("actions run after Solve has returned")
	}
	switch {
	case err == nil && outs[0].Digest != want.Digest:
		t.Fatalf("a solve that was cancelled late gave %v, want %v", outs, want)
	case err != nil && !errors.Is(err, stop) && !errors.Is(err, errForced):
		t.Fatalf("a cancelled solve: %v", err)
	}
}

// checkDryRun checks that a dry run performs only what is looked at anew, that
// its outputs are right, and that it says what a solve would run.
func checkDryRun(t *testing.T, c *fakeCache, target *Vertex, want Output, wantErr error) {
	t.Helper()
	r := &fakeRunner{hold: func(_ context.Context, a *Action) error {
		if !a.vertex.Volatile {
			t.Errorf("a dry run performed %q", a.Description)
		}
		return nil
	}}
	s := &Solver{Cache: c, Runner: r, Jobs: 3, Dry: true}
	g, err := s.Evaluate(t.Context(), target)
	if err != nil {
		if wantErr == nil {
			t.Fatalf("dry run: %v", err)
		}
		return
	}
	would := false
	for _, e := range g.Evaluations {
		if e.State == WouldRun {
			would = true
		}
		for _, d := range append(append([]*Evaluation{}, e.Inputs...), e.Using...) {
			if e.State == Ran && !d.Known() {
				t.Error("something ran without its inputs")
			}
		}
	}
	if !would && wantErr == nil && g.Targets[0].Output.Digest != want.Digest {
		t.Errorf("a dry run that hits gives %v, want %v", g.Targets[0].Output.Digest, want.Digest)
	}
	if !g.Targets[0].Known() {
		return
	}
	// What it knows of a target it knows without anything having to run.
	if wantErr == nil && g.Targets[0].Output.Digest != want.Digest {
		t.Errorf("a dry run gives %v, want %v", g.Targets[0].Output.Digest, want.Digest)
	}
}

// TestReasons asks for the reason of what runs, and of nothing else.
func TestReasons(t *testing.T) {
	named := func(text string, in ...*Vertex) *Vertex {
		return &Vertex{Op: textOp{Text: text}, Inputs: in, Step: &Step{Name: text}}
	}
	a := named("a")
	b := named("b", a, &Vertex{Op: textOp{Text: "hidden"}})
	c := newFakeCache()
	solve(t, c, &fakeRunner{}, a)
	var asked []string
	s := &Solver{Cache: c, Runner: &fakeRunner{}, Why: func(e *Evaluation) string {
		asked = append(asked, e.Vertex.Step.Name)
		if e.Key == "" || e.Inputs[0].State != Hit {
			t.Errorf("its key is %q, its input a %v", e.Key, e.Inputs[0].State)
		}
		return "for a reason"
	}}
	g, err := s.Evaluate(t.Context(), b)
	if err != nil {
		t.Fatal(err)
	}
	if fmt.Sprint(asked) != "[b]" || g.Targets[0].Reason != "for a reason" || g.Targets[0].State != Ran {
		t.Errorf("asked for %q, got %q", asked, g.Targets[0].Reason)
	}
}

// TestPlace waits for a place before work and not before a look.
func TestPlace(t *testing.T) {
	placed := 0
	s := &Solver{Cache: newFakeCache(), Runner: runnerFunc(func(context.Context, *Action) (Result, error) {
		return Result{Digest: digest.FromString("x")}, nil
	}), Place: func(context.Context) (func(), error) { placed++; return func() { placed += 10 }, nil }}
	if _, err := s.Solve(t.Context(), &Vertex{Op: textOp{Text: "work"}, Inputs: []*Vertex{{Op: lookOp{}}}}); err != nil {
		t.Fatal(err)
	}
	if placed != 11 {
		t.Errorf("placed and released as %d, want 11", placed)
	}
	s.Place = func(context.Context) (func(), error) { return nil, errForced }
	if _, err := s.Solve(t.Context(), &Vertex{Op: textOp{Text: "other"}}); !errors.Is(err, errForced) {
		t.Errorf("without a place: %v", err)
	}
}

type lookOp struct{}

func (lookOp) Describe(d *Description) { d.Line("op", "look") }
func (lookOp) Looks()                  {}

// runnerFunc is a function as a Runner.
type runnerFunc func(context.Context, *Action) (Result, error)

func (f runnerFunc) Run(ctx context.Context, a *Action) (Result, error) { return f(ctx, a) }

// model evaluates a vertex one after the other, without any cache.
func model(v *Vertex, done map[*Vertex]Output) (Output, error) {
	if o, ok := done[v]; ok {
		return o, nil
	}
	var in []digest.Digest
	for _, d := range v.Inputs {
		o, err := model(d, done)
		if err != nil {
			return Output{}, err
		}
		in = append(in, o.Digest)
	}
	for _, d := range v.Using {
		if _, err := model(d, done); err != nil {
			return Output{}, err
		}
	}
	var below *Output
	if v.Below != nil {
		o, err := model(v.Below, done)
		if err != nil {
			return Output{}, err
		}
		below = &o
	}
	r, err := evaluate(v.Op.(textOp), in)
	if err != nil {
		return Output{}, err
	}
	done[v] = output(below, r)
	return done[v], nil
}

func TestDescriptionLinesCannotBeForged(t *testing.T) {
	a := Describe(textOp{Text: "x\"\nconst \"y"})
	b := Describe(textOp{Text: "x", Const: "y"})
	if a == b || strings.Count(a, "\n") != strings.Count(b, "\n") {
		t.Errorf("a value spoke for another line:\n%s", a)
	}
}

// BenchmarkCached solves a graph of 100,000 vertices in 1,000 chains with
// everything cached.
func BenchmarkCached(b *testing.B) {
	var targets []*Vertex
	for i := range 1000 {
		v := &Vertex{Op: textOp{Text: fmt.Sprint("leaf", i)}}
		for j := range 99 {
			v = &Vertex{Op: textOp{Text: fmt.Sprint(i, " ", j), Layer: j%9 == 0}, Inputs: []*Vertex{v}, Below: v}
		}
		targets = append(targets, v)
	}
	c := newFakeCache()
	s := &Solver{Cache: c, Runner: &fakeRunner{}, Jobs: 4}
	if _, err := s.Solve(b.Context(), targets...); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := s.Solve(b.Context(), targets...); err != nil {
			b.Fatal(err)
		}
	}
}
