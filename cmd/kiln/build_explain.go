package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/opencontainers/go-digest"
	"kiln.build/cache/history"
	"kiln.build/solver"
)

// identity tells this build from others.
func (b *builder) identity() string {
	var id strings.Builder
	where := cmp.Or(b.in.dir, b.in.remote)
	if abs, err := filepath.Abs(where); err == nil && b.in.dir != "" {
		where = abs
	}
	fmt.Fprintf(&id, "%q %q %q", where, b.in.name, b.flags.target)
	for _, p := range b.platforms {
		fmt.Fprintf(&id, " %s/%s/%s", p.OS, p.Architecture, p.Variant)
	}
	return id.String()
}

// manySteps is how many a build must have for it to pay to read what it will
// look up ahead.
const manySteps = 64

// expect has the store read what the last build of these steps looked up.
func (b *builder) expect() {
	identity := b.identity()
	b.store.Expect(func() []digest.Digest {
		keys := history.Keys(b.store, identity)
		if len(keys) < manySteps {
			return nil
		}
		return keys
	})
}

// explainer compares this build with the nearest earlier one.
func (b *builder) explainer(targets []*solver.Vertex) (*history.Explainer, error) {
	names := make([]string, 0, len(b.flags.buildArgs))
	for _, a := range b.flags.buildArgs {
		name, _, _ := strings.Cut(a, "=")
		names = append(names, name)
	}
	return history.New(history.Options{
		Store: b.store, Identity: b.identity(), Dockerfile: b.in.dockerfile, Targets: targets,
		BuildArgs: names, Listing: b.runner.Listing,
	})
}

// remember keeps how the build went, while the images are exported, and tells
// what the flags ask for. What it cannot write is a warning: the build itself
// is done.
func (b *builder) remember(why *history.Explainer, g *solver.Graph, failed error) {
	if b.graph = g; g == nil {
		return
	}
	if !b.flags.dryRun && !errors.Is(failed, context.Canceled) {
		saved := make(chan error, 1)
		go func() { saved <- why.Save(g, failed != nil) }()
		b.remembered = sync.OnceFunc(func() {
			if err := <-saved; err != nil && !b.flags.silent() {
				fmt.Fprintf(b.app.stderr, "warning: history: %s\n", printable(err.Error()))
			}
		})
	}
	if b.flags.explain {
		b.later = append(b.later, func() {
			b.remembered()
			explainSteps(b.app.stderr, why, g)
		})
	}
}

// named are the steps that people know, in the order in which they read them.
func named(g *solver.Graph) []*solver.Evaluation {
	var steps []*solver.Evaluation
	for _, e := range g.Evaluations {
		if e.Named() {
			steps = append(steps, e)
		}
	}
	slices.SortStableFunc(steps, func(x, y *solver.Evaluation) int {
		return cmp.Compare(x.Vertex.Step.Location.Start, y.Vertex.Step.Location.Start)
	})
	return steps
}

// explainSteps tells for each step that ran, or would, all that is different
// from the nearest earlier build.
func explainSteps(w io.Writer, why *history.Explainer, g *solver.Graph) {
	for _, e := range named(g) {
		var lines []string
		switch {
		case e.State == solver.WouldRun && e.Key == "":
			lines = []string{needs(e)}
		case e.State == solver.Hit, e.State == solver.Waiting, e.Vertex.Volatile:
			continue
		default:
			lines = why.Differences(e)
		}
		fmt.Fprintf(w, "%s\n", printable(oneLine(e.Vertex.Step.Name)))
		for _, l := range lines {
			fmt.Fprintf(w, "    %s\n", printable(l))
		}
		if e.Key != "" {
			fmt.Fprintf(w, "    key %s\n", e.Key)
		}
	}
}

// needs tells which steps would have to run before one can be judged.
func needs(e *solver.Evaluation) string {
	seen := map[*solver.Evaluation]bool{}
	var first func(e *solver.Evaluation) *solver.Evaluation
	first = func(e *solver.Evaluation) *solver.Evaluation {
		for _, in := range append(append(slices.Clone(e.Inputs), e.Using...), e.Below) {
			if in == nil || seen[in] || in.Known() {
				continue
			}
			seen[in] = true
			if f := first(in); f != nil {
				return f
			}
			if in.State == solver.WouldRun && in.Named() {
				return in
			}
		}
		return nil
	}
	if f := first(e); f != nil {
		return "needs the result of " + oneLine(f.Vertex.Step.Name)
	}
	return "needs a result that is not there"
}

// dryRunStatus is the exit status of --dry-run if a step would run.
const dryRunStatus = 3

// dryRun tells which steps would run.
func (b *builder) dryRun() error {
	status := 0
	for _, e := range named(b.graph) {
		name := printable(oneLine(e.Vertex.Step.Name))
		if e.State != solver.WouldRun {
			if _, err := fmt.Fprintf(b.app.stdout, "hit   %s\n", name); err != nil {
				return err
			}
			continue
		}
		status = dryRunStatus
		reason := e.Reason
		if e.Key == "" {
			reason = needs(e)
		}
		if _, err := fmt.Fprintf(b.app.stdout, "miss  %s  (%s)\n", name, printable(reason)); err != nil {
			return err
		}
	}
	if status == 0 && slices.ContainsFunc(b.graph.Evaluations, func(e *solver.Evaluation) bool { return e.State == solver.WouldRun }) {
		status = dryRunStatus // of something without a name
	}
	if status == 0 {
		return nil
	}
	return &exitError{code: status}
}

// graphNode is a vertex in --graph's JSON.
type graphNode struct {
	ID       int      `json:"id"`
	Name     string   `json:"name,omitempty"`
	Op       []string `json:"op"` // lines of its description
	Inputs   []int    `json:"inputs"`
	Using    []int    `json:"using,omitempty"`
	Below    *int     `json:"below,omitempty"`
	Key      string   `json:"key,omitempty"`
	Output   string   `json:"output,omitempty"`
	State    string   `json:"state"`
	Reason   string   `json:"reason,omitempty"`
	Seconds  float64  `json:"seconds"`
	Critical bool     `json:"critical,omitempty"` // on the path that took longest
	Line     int      `json:"line,omitempty"`     // in the Dockerfile
}

// writeGraph writes what --graph asks for.
func (b *builder) writeGraph() error {
	path := b.flags.graph
	if path == "" || b.graph == nil {
		return nil
	}
	nodes, seconds := graphNodes(b.graph)
	write := func(path string, text []byte) error {
		if err := os.WriteFile(path, text, 0o644); err != nil {
			return fmt.Errorf("--graph: %w", err)
		}
		return nil
	}
	ext := filepath.Ext(path)
	base := path
	if ext == ".dot" || ext == ".json" {
		base = strings.TrimSuffix(path, ext)
	} else {
		ext = ""
	}
	if ext != ".dot" {
		text, err := json.MarshalIndent(map[string]any{"criticalSeconds": seconds, "vertices": nodes}, "", "  ")
		if err != nil {
			return err
		}
		if err := write(base+".json", append(text, '\n')); err != nil {
			return err
		}
	}
	if ext != ".json" {
		return write(base+".dot", dot(nodes))
	}
	return nil
}

// graphNodes lists a graph's vertices and finds the critical path: the chain
// of dependencies whose durations add up to the most.
func graphNodes(g *solver.Graph) (nodes []graphNode, seconds float64) {
	at := map[*solver.Evaluation]int{}
	before := make([]int, len(g.Evaluations))    // the dependency that ended last
	total := make([]float64, len(g.Evaluations)) // of the longest chain that ends here
	last := -1
	for i, e := range g.Evaluations {
		at[e] = i
		n := graphNode{ID: i, Op: strings.Split(strings.TrimSuffix(e.Op, "\n"), "\n"), Inputs: []int{}, Key: string(e.Key), State: e.State.String(), Reason: e.Reason, Seconds: e.Duration().Seconds()}
		if e.Vertex.Step != nil {
			n.Name, n.Line = e.Vertex.Step.Name, e.Vertex.Step.Location.Start
		}
		if e.Known() {
			n.Output = string(e.Output.Digest)
		}
		before[i] = -1
		follow := func(d *solver.Evaluation) int {
			j := at[d]
			if before[i] < 0 || total[j] > total[before[i]] {
				before[i] = j
			}
			return j
		}
		for _, in := range e.Inputs {
			n.Inputs = append(n.Inputs, follow(in))
		}
		for _, in := range e.Using {
			n.Using = append(n.Using, follow(in))
		}
		if e.Below != nil {
			j := follow(e.Below)
			n.Below = &j
		}
		total[i] = n.Seconds
		if before[i] >= 0 {
			total[i] += total[before[i]]
		}
		if last < 0 || total[i] > total[last] {
			last = i
		}
		nodes = append(nodes, n)
	}
	for i := last; i >= 0; i = before[i] {
		nodes[i].Critical = true
		seconds = max(seconds, total[i])
	}
	return nodes, seconds
}

// dot draws a graph for graphviz: what was performed is filled, the critical
// path is red, and what only lends bytes or lies below is dashed.
func dot(nodes []graphNode) []byte {
	var s strings.Builder
	s.WriteString("digraph build {\n\trankdir=LR;\n\tnode [shape=box, fontname=\"sans-serif\"];\n")
	for _, n := range nodes {
		label := n.Name
		if label == "" {
			label = strings.ReplaceAll(strings.TrimPrefix(n.Op[0], "op "), `"`, "")
		}
		label = printable(oneLine(label)) + "\n" + n.State
		if n.Seconds > 0 {
			label += fmt.Sprintf(" %.3fs", n.Seconds)
		}
		if n.Key != "" {
			label += "\n" + strings.TrimPrefix(n.Key, "sha256:")[:12]
		}
		attributes := fmt.Sprintf("label=%s", dotQuote(label))
		if n.State == solver.Ran.String() || n.State == solver.WouldRun.String() {
			attributes += `, style=filled, fillcolor="#ffe9b3"`
		}
		if n.Critical {
			attributes += `, color=red`
		}
		fmt.Fprintf(&s, "\tn%d [%s];\n", n.ID, attributes)
	}
	for _, n := range nodes {
		for _, in := range n.Inputs {
			fmt.Fprintf(&s, "\tn%d -> n%d;\n", in, n.ID)
		}
		for _, in := range n.Using {
			fmt.Fprintf(&s, "\tn%d -> n%d [style=dotted];\n", in, n.ID)
		}
		if n.Below != nil {
			fmt.Fprintf(&s, "\tn%d -> n%d [style=dashed];\n", *n.Below, n.ID)
		}
	}
	s.WriteString("}\n")
	return []byte(s.String())
}

// dotQuote is a string of the dot language, which knows no escapes but those
// of quotes and, in labels, of backslashes and lines.
func dotQuote(s string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`).Replace(s) + `"`
}
