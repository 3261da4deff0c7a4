package history

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/docker/go-units"
	"github.com/opencontainers/go-digest"
	"kiln.build/cache"
	"kiln.build/cache/tree"
	"kiln.build/solver"
)

// Options say what is being built.
type Options struct {
	Store *cache.Store

	// Identity tells builds apart: those of equal identity are compared
	// first. It names the context, the Dockerfile, the target and platforms.
	Identity string

	Dockerfile []byte
	Targets    []*solver.Vertex
	BuildArgs  []string // names given on the command line

	// Listing returns the files of a selection from a local context, nil
	// where it is not known.
	Listing func(solver.Output) *tree.Tree
}

// An Explainer says why the steps of a build run, compared with the nearest
// earlier build. Its methods may be called from many goroutines.
type Explainer struct {
	o    Options
	dir  string
	path string // of the record

	load    sync.Once
	earlier []*build // the last failed one, if any, before the last that succeeded
	pairs   []map[string]int

	mu    sync.Mutex
	found map[pair][]string
	lists map[digest.Digest]*tree.Tree
}

// pair is a comparison of an evaluation with a step of an earlier build.
type pair struct {
	e        *solver.Evaluation
	b        *build
	position int
}

// New returns the explainer of a build. It reads nothing yet.
func New(o Options) (*Explainer, error) {
	dir, err := o.Store.HistoryDir()
	if err != nil {
		return nil, err
	}
	return &Explainer{o: o, dir: dir, path: recordPath(dir, o.Identity), found: map[pair][]string{}, lists: map[digest.Digest]*tree.Tree{}}, nil
}

// Keys are those of all steps of the last build of an identity, in the order
// in which they depend on each other.
func Keys(s *cache.Store, identity string) []digest.Digest {
	dir, err := s.HistoryDir()
	if err != nil {
		return nil
	}
	path := recordPath(dir, identity)
	h, _, err := readFile(path + failedSuffix) // which is there if that was the last one
	if err != nil {
		if h, _, err = readFile(path); err != nil {
			return nil
		}
	}
	keys := make([]digest.Digest, 0, len(h.keys)/keyLen)
	for key := range slices.Chunk(h.keys, keyLen) {
		keys = append(keys, digest.NewDigestFromBytes(digest.SHA256, key))
	}
	return keys
}

func recordPath(dir, identity string) string {
	return filepath.Join(dir, digest.FromString(identity).Encoded())
}

// prepare reads what is remembered and pairs the steps with earlier ones.
func (x *Explainer) prepare() {
	names := x.names()
	for _, b := range []*build{load(x.path + failedSuffix), load(x.path)} {
		if b != nil {
			x.earlier = append(x.earlier, b)
		}
	}
	if len(x.earlier) == 0 {
		var short []string
		for _, n := range names {
			short = append(short, shortHash(n))
		}
		if b := alike(x.dir, digest.FromBytes(x.o.Dockerfile).Encoded(), short); b != nil {
			x.earlier = append(x.earlier, b)
		}
	}
	for _, b := range x.earlier {
		x.pairs = append(x.pairs, align(names, b))
	}
}

// names are those of the steps of this build, stage by stage in order.
func (x *Explainer) names() []string {
	seen := map[*solver.Vertex]bool{}
	var names []string
	queue := slices.Clone(x.o.Targets)
	for len(queue) > 0 {
		v := queue[len(queue)-1]
		queue = queue[:len(queue)-1]
		if v == nil || seen[v] {
			continue
		}
		seen[v] = true
		if v.Step != nil && v.Step.Name != "" {
			names = append(names, v.Step.Name)
		}
		queue = append(append(append(queue, v.Inputs...), v.Using...), v.Below)
	}
	return names
}

// align pairs the named steps of this build with those of an earlier one: by
// their names, and what is left within a stage in order, where the instruction
// is the same. The result is the position of the earlier step by name.
func align(names []string, b *build) map[string]int {
	pairs := map[string]int{}
	taken := map[int]bool{}
	for _, n := range names {
		if i, ok := b.names[plain(n)]; ok && !taken[i] {
			pairs[n], taken[i] = i, true
		}
	}
	left := func(n string) string { // what steps must share to be paired
		rest := plain(n)
		if _, after, ok := strings.Cut(rest, "] "); ok {
			rest = after
		}
		word, _, _ := strings.Cut(rest, " ")
		return stageOf(n) + "\x00" + word
	}
	byKind := map[string][]int{}
	for i := range b.Steps {
		if n := b.Steps[i].Name; n != "" && !taken[i] {
			byKind[left(n)] = append(byKind[left(n)], i)
		}
	}
	for _, is := range byKind {
		slices.SortFunc(is, func(i, j int) int { return number(b.Steps[i].Name) - number(b.Steps[j].Name) })
	}
	names = slices.Clone(names)
	slices.SortStableFunc(names, func(a, b string) int { return number(a) - number(b) })
	for _, n := range names {
		if _, ok := pairs[n]; ok {
			continue
		}
		if is := byKind[left(n)]; len(is) > 0 {
			pairs[n], byKind[left(n)] = is[0], is[1:]
		}
	}
	return pairs
}

// number is a step's position in its stage.
func number(name string) int {
	if m := position().FindStringSubmatch(name); m != nil {
		n, _ := strconv.Atoi(m[2])
		return n
	}
	return 0
}

// Why is the reason why a step has no result in the cache, in a few words.
func (x *Explainer) Why(e *solver.Evaluation) string {
	if e.Vertex.Volatile {
		return "" // it is looked at in every build
	}
	reasons := x.Differences(e)
	switch {
	case len(reasons) == 0:
		return "its inputs changed"
	case len(reasons) == 1 || strings.HasPrefix(reasons[0], umaskReason):
		return reasons[0]
	}
	return fmt.Sprintf("%s, and %d more", reasons[0], len(reasons)-1)
}

// Differences is all that changed since the nearest earlier build of a step,
// the cause of the most first.
func (x *Explainer) Differences(e *solver.Evaluation) []string {
	x.load.Do(x.prepare)
	if e.Vertex.Fresh {
		return []string{"--no-cache"}
	}
	if e.Key != "" {
		if ev, ok := x.o.Store.Evicted(e.Key); ok {
			return []string{evicted(ev)}
		}
	}
	if len(x.earlier) == 0 {
		return []string{"first build"}
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	var failed string
	for i, b := range x.earlier {
		at, ok := x.pairs[i][e.Vertex.Step.Name]
		if !ok {
			continue
		}
		old := &b.Steps[at]
		switch {
		case old.Key == "": // the build failed before
			failed = "the last build did not come to it"
		case old.Key != e.Key:
			return x.differences(e, b, at)
		case old.State == solver.Broken:
			return []string{"it failed in the last build"}
		case old.State == solver.Stopped:
			return []string{"it was stopped in the last build"}
		default:
			return []string{"its result is no longer in the store"}
		}
	}
	if failed != "" {
		return []string{failed}
	}
	return []string{"new step"}
}

func evicted(ev cache.Eviction) string {
	day := ev.Time.Format("2 Jan")
	if time.Since(ev.Time) > 300*24*time.Hour {
		day = ev.Time.Format("2 Jan 2006")
	}
	if ev.Cap > 0 {
		return fmt.Sprintf("evicted by the %s cap on %s", strings.Replace(units.CustomSize("%.3g %s", float64(ev.Cap), 1000, []string{"B", "kB", "MB", "GB", "TB"}), "  ", " ", 1), day)
	}
	return "pruned on " + day
}

// differences compares an evaluation with an earlier step.
func (x *Explainer) differences(e *solver.Evaluation, b *build, at int) []string {
	p := pair{e, b, at}
	if d, ok := x.found[p]; ok {
		return d
	}
	x.found[p] = nil // should the records have a cycle
	old := &b.Steps[at]
	d := x.describe(e, b, old)
	if len(e.Inputs) == len(old.Inputs) {
		var more [][]string
		for i, in := range e.Inputs {
			if now := &b.Steps[old.Inputs[i]]; in.Output.Digest != now.Output {
				more = append(more, x.input(in, b, old.Inputs[i]))
			}
		}
		d = distinct(append([][]string{d}, more...)...)
	} else if len(d) == 0 {
		d = []string{"it has other sources"}
	}
	// What a copy meets at its destination changes with what is copied: say
	// so only where there is nothing better.
	if len(d) > 1 {
		d = slices.DeleteFunc(d, func(s string) bool { return s == atDestination })
	}
	x.found[p] = d
	return d
}

// distinct puts lists one after the other, each text once. They can have a
// line for each file of a context.
func distinct(lists ...[]string) []string {
	n := 0
	for _, l := range lists {
		n += len(l)
	}
	all, seen := make([]string, 0, n), make(map[string]bool, n)
	for _, l := range lists {
		for _, s := range l {
			if !seen[s] {
				seen[s] = true
				all = append(all, s)
			}
		}
	}
	return all
}

const atDestination = "what is at its destination changed"

// input says why the output of an input is not that of its counterpart.
func (x *Explainer) input(in *solver.Evaluation, b *build, at int) []string {
	old := &b.Steps[at]
	kind := opKind(in.Op)
	switch {
	case kind == "select" || kind == "inline":
		if d := x.files(in, old); len(d) > 0 {
			return d
		}
		return x.differences(in, b, at)
	case kind == "dest":
		if d := lineChanges(in.Op, old.Op, nil); len(d) > 0 {
			return d
		}
		return []string{atDestination}
	}
	return x.stack(in, b, at)
}

// stack compares the steps that made a stack of layers, from the bottom.
func (x *Explainer) stack(in *solver.Evaluation, b *build, at int) []string {
	var now []*solver.Evaluation
	for e := in; e != nil; e = e.Below {
		now = append(now, e)
	}
	var then []int
	for i := at + 1; i > 0; i = b.Steps[i-1].Below {
		then = append(then, i-1)
	}
	slices.Reverse(now)
	slices.Reverse(then)
	pairs := x.pairs[slices.Index(x.earlier, b)]
	back := map[int]bool{} // earlier steps that have a counterpart
	for _, e := range now {
		if e.Named() {
			if i, ok := pairs[e.Vertex.Step.Name]; ok {
				back[i] = true
			}
		}
	}
	var all [][]string
	for k, e := range now {
		old := -1
		if k < len(then) {
			old = then[k]
		}
		if e.Named() {
			i, ok := pairs[e.Vertex.Step.Name]
			if !ok {
				all = append(all, []string{"new step before it: " + short(e.Vertex.Step.Name)})
				continue
			}
			old = i
		}
		if old < 0 || e.Output.Result.Digest == b.Steps[old].Result {
			continue
		}
		switch more := x.differences(e, b, old); {
		case len(more) > 0:
			all = append(all, more)
		case e.Key == b.Steps[old].Key && e.Named():
			all = append(all, []string{short(e.Vertex.Step.Name) + " gave another result"})
		}
	}
	for _, i := range then {
		if n := b.Steps[i].Name; n != "" && !back[i] {
			all = append(all, []string{"step removed: " + short(n)})
		}
	}
	return distinct(all...)
}

// short is a step's name as it is told in a reason.
func short(name string) string {
	name, _, _ = strings.Cut(name, "\n")
	if _, rest, ok := strings.Cut(name, "] "); ok && position().MatchString(name) {
		name = rest
	}
	name = pinnedBy().ReplaceAllString(name, "")
	if r := []rune(name); len(r) > 60 {
		name = string(r[:59]) + "…"
	}
	return name
}

const failedSuffix = ".failed"

// Save remembers a build that has ended. Nothing is written if nothing
// changed since the last one.
func (x *Explainer) Save(g *solver.Graph, failed bool) error {
	b := &build{BuildArgs: x.o.BuildArgs, Built: time.Now().UTC().Round(time.Second)}
	h := &header{dockerfile: digest.FromBytes(x.o.Dockerfile).Encoded()}
	at := make(map[*solver.Evaluation]int, len(g.Evaluations))
	fresh := map[digest.Digest]*tree.Tree{}
	for i, e := range g.Evaluations {
		at[e] = i
		s := step{Op: e.Op, Key: e.Key, State: e.State, Took: e.Duration().Microseconds()}
		if e.Named() {
			s.Name = e.Vertex.Step.Name
		}
		for _, in := range e.Inputs {
			s.Inputs = append(s.Inputs, at[in])
		}
		if e.Below != nil {
			s.Below = at[e.Below] + 1
		}
		if e.Known() {
			s.Output, s.Result, s.Blob = e.Output.Digest, e.Output.Result.Digest, e.Output.Result.Blob
			if k := opKind(e.Op); (k == "select" || k == "inline") && s.Blob == "" {
				if t := x.o.Listing(e.Output); t != nil && len(t.Entries) <= listingMax {
					h.lists = append(h.lists, s.Output.Encoded())
					fresh[s.Output] = t
				}
			}
		}
		b.Steps = append(b.Steps, s)
	}
	h.sum = summary(digest.Digest(h.dockerfile), b)
	path := x.path
	if failed {
		path += failedSuffix
	} else {
		defer os.Remove(x.path + failedSuffix)
	}
	if last, _, err := readFile(path); err == nil && last.sum == h.sum {
		return nil
	}
	for i := range b.Steps {
		h.addKey(b.Steps[i].Key)
		if n := b.Steps[i].Name; n != "" {
			h.names = append(h.names, shortHash(n))
		}
	}
	x.keepTimes(b)
	written, err := x.saveLists(fresh)
	if err != nil {
		return err
	}
	data, err := encode(h, b)
	if err != nil {
		return err
	}
	_, statErr := os.Stat(path)
	if err := x.write(path, data); err != nil {
		return err
	}
	if written || statErr != nil {
		return trim(x.dir)
	}
	return nil
}

// keepTimes gives steps that did not run now the time they took before.
func (x *Explainer) keepTimes(b *build) {
	old := load(x.path)
	if old == nil {
		return
	}
	for i := range b.Steps {
		s := &b.Steps[i]
		if s.Took == 0 && s.Name != "" {
			if j, ok := old.names[plain(s.Name)]; ok {
				s.Took = old.Steps[j].Took
			}
		}
	}
}

// listingMax is how many files a listing may have to be remembered.
const listingMax = 200_000

func (x *Explainer) saveLists(all map[digest.Digest]*tree.Tree) (written bool, err error) {
	for d, t := range all {
		path := filepath.Join(x.dir, "lists", d.Encoded())
		if _, err := os.Stat(path); err == nil {
			continue
		}
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			return written, err
		}
		if err := x.write(path, t.Append(nil)); err != nil {
			return written, err
		}
		written = true
	}
	return written, nil
}

// write replaces a file at once. It is not synced: what a power loss spoils
// is found by its form, and only explanations suffer.
func (x *Explainer) write(path string, data []byte) error {
	tmp, err := os.CreateTemp(filepath.Dir(path), ".new-")
	if err != nil {
		return err
	}
	_, err = tmp.Write(data)
	if closeErr := tmp.Close(); err == nil {
		err = closeErr
	}
	if err == nil {
		err = os.Rename(tmp.Name(), path)
	}
	if err != nil {
		_ = os.Remove(tmp.Name())
	}
	return err
}

// listing finds the files of an earlier selection again.
func (x *Explainer) listing(s *step) *tree.Tree {
	if t, ok := x.lists[s.Output]; ok {
		return t
	}
	var data []byte
	var err error
	if s.Blob != "" {
		data, err = x.o.Store.Blob(s.Blob)
	} else {
		data, err = fs.ReadFile(os.DirFS(filepath.Join(x.dir, "lists")), s.Output.Encoded())
	}
	var t *tree.Tree
	if err == nil {
		if t, err = tree.Parse(data); err != nil {
			t = nil
		}
	}
	x.lists[s.Output] = t
	return t
}
