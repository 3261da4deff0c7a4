package runner

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/opencontainers/go-digest"
	"kiln.build/runner/trace"
	"kiln.build/solver"
	"kiln.build/solver/op"
)

// A RUN depends on what it read. The layers that copies of a local context
// made are traced while a step runs (see package trace), and the step's layer
// is good for every root that differs in such layers alone and in nothing that
// was read of them: "COPY . ." before "RUN npm ci" costs nothing when only a
// source file changed.
//
// Two kinds of entries in the action cache make that work:
//
//   - a manifest, keyed by the action with the traced layers left out, has a
//     blob with the lists of what steps have read, the newest first;
//   - a traced result is keyed by such a list and the fingerprint of what the
//     traced layers answer to it.

// tracesMax is how many lists a manifest keeps.
const tracesMax = 8

// traceable reports whether a step's use of layers can be traced, and which of
// the layers of its root are.
func traceable(a *solver.Action) []int {
	o, ok := a.Op.(op.Exec)
	if !ok || o.Security == "insecure" || len(a.Inputs) == 0 {
		return nil
	}
	var traced []int
	for i, l := range a.Inputs[0].Layers {
		if l.Traceable {
			traced = append(traced, i)
		}
	}
	return traced
}

// manifestText describes an action without its traced layers.
func manifestText(a *solver.Action, traced []int) string {
	var root strings.Builder
	for i, l := range a.Inputs[0].Layers {
		if len(traced) > 0 && traced[0] == i {
			root.WriteString("below traced\n")
			traced = traced[1:]
			continue
		}
		root.WriteString("below " + string(l.Digest) + "\n")
	}
	whole := "input 0 " + string(a.Inputs[0].Digest) + "\n"
	return "kiln reads 1\n" + strings.Replace(a.Description, whole, root.String(), 1)
}

// resultText describes a traced result.
func resultText(manifest, reads string, fingerprints []string) string {
	return manifest + "reads " + string(digest.FromString(reads)) + "\nanswers " + strings.Join(fingerprints, " ") + "\n"
}

func actionOf(text string, step *solver.Step) *solver.Action {
	return &solver.Action{Key: digest.FromString(text), Description: text, Step: step}
}

// traceSeparator stands between the lists of a manifest; layerSeparator
// between those of the layers of one.
const (
	traceSeparator = "==\n"
	layerSeparator = "--\n"
)

// Reuse looks for the result of a step that read the same of other layers. It
// is for [solver.Solver.Reuse].
func (r *Runner) Reuse(ctx context.Context, a *solver.Action) (solver.Result, bool) {
	traced := traceable(a)
	if len(traced) == 0 {
		return solver.Result{}, false
	}
	manifest := manifestText(a, traced)
	for _, reads := range r.manifest(ctx, manifest) {
		fingerprints, err := r.fingerprints(a, traced, reads)
		if err != nil {
			continue
		}
		if res, err := r.Store.Lookup(ctx, digest.FromString(resultText(manifest, reads, fingerprints))); err == nil {
			return res, true
		}
	}
	return solver.Result{}, false
}

// manifest reads the lists of what steps have read.
func (r *Runner) manifest(ctx context.Context, text string) []string {
	res, err := r.Store.Lookup(ctx, digest.FromString(text))
	if err != nil || res.Blob == "" {
		return nil
	}
	data, err := r.Store.Blob(res.Blob)
	if err != nil || len(data) == 0 {
		return nil
	}
	return strings.Split(string(data), traceSeparator)
}

// fingerprints are the answers of an action's traced layers to a list.
func (r *Runner) fingerprints(a *solver.Action, traced []int, reads string) ([]string, error) {
	lists := strings.Split(reads, layerSeparator)
	if len(lists) != len(traced) {
		return nil, errors.New("it has other layers")
	}
	var all []string
	for i, at := range traced {
		accesses, err := trace.Decode(lists[i])
		if err != nil {
			return nil, err
		}
		t, err := r.Store.Tree(a.Inputs[0].Layers[at].Digest)
		if err != nil {
			return nil, err
		}
		all = append(all, trace.Fingerprint(accesses, t))
	}
	return all, nil
}

// reads is the tracing of one step.
type reads struct {
	at     []int // positions of the traced layers
	layers []*trace.Layer
	mounts []*os.File
}

// startTrace mounts the traced layers in the places of their directories.
// Where tracing cannot be had the step does without.
func (x *execution) startTrace(lower []string) {
	at := traceable(x.a)
	if len(at) == 0 || x.r.NoTrace || x.r.Store.Recalled(x.readsAll()) {
		return
	}
	t := &reads{at: at}
	for _, i := range at {
		listing, err := x.r.Store.Tree(x.root[i].Digest)
		if err != nil {
			return
		}
		l, err := trace.New(listing, lower[i])
		if err != nil {
			return
		}
		t.layers = append(t.layers, l)
	}
	if t.notePaths("etc/passwd", "etc/group") || t.notePaths(x.o.Cwd) {
		return
	}
	for _, l := range t.layers {
		l.Note(trace.Content, "etc/passwd")
		l.Note(trace.Content, "etc/group")
	}
	for _, m := range x.o.Mounts {
		if t.notePaths(m.Target) {
			return
		}
	}
	for n, l := range t.layers {
		f, err := l.Mount()
		if err != nil {
			return // the mounts made so far are closed with the step
		}
		x.onClose(f.Close)
		t.mounts = append(t.mounts, f)
		lower[at[n]] = "/proc/self/fd/" + strconv.Itoa(int(f.Fd()))
	}
	x.reads = t
}

// notePaths notes look-ups that are made without the mounts. It reports
// whether one passes a link, after which more may be looked up than is noted.
func (t *reads) notePaths(paths ...string) (link bool) {
	for _, l := range t.layers {
		for _, p := range paths {
			link = l.NotePath(p) || link
		}
	}
	return link
}

// saveTrace remembers the result under what the step has read.
func (x *execution) saveTrace(ctx context.Context, res solver.Result, changed []string) error {
	t := x.reads
	if t == nil {
		return nil
	}
	if t.notePaths(changed...) || t.notePaths(x.created...) {
		return nil
	}
	var lists []string
	all, opened := 0, 0
	for _, l := range t.layers {
		asked, ok := l.Accesses()
		if !ok {
			return nil
		}
		lists = append(lists, trace.Encode(asked))
		a, o := l.Files()
		all, opened = all+a, opened+o
	}
	if opened > readsMany && opened > all/2 {
		x.r.Store.Remember(x.readsAll(), x.root[t.at[0]].Digest)
	}
	text := strings.Join(lists, layerSeparator)
	manifest := manifestText(x.a, t.at)
	fingerprints, err := x.r.fingerprints(x.a, t.at, text)
	if err != nil {
		return err
	}
	if err := x.r.Store.Save(ctx, actionOf(resultText(manifest, text, fingerprints), x.a.Step), res); err != nil {
		return err
	}
	known := []string{text}
	for _, k := range x.r.manifest(ctx, manifest) {
		if k != text && len(known) < tracesMax {
			known = append(known, k)
		}
	}
	blob, err := x.r.Store.PutBlob([]byte(strings.Join(known, traceSeparator)))
	if err != nil {
		return err
	}
	return x.r.Store.Save(ctx, actionOf(manifest, x.a.Step), solver.Result{Digest: blob, Blob: blob})
}

// readsMany is how many files a step has to open before it counts as one that
// reads everything. Such a step depends on all of the layer anyway, and has no
// use for a traced one, which costs some hundred microseconds a file.
const readsMany = 1000

// readsAll is the name that such a step is remembered by.
func (x *execution) readsAll() string {
	name := ""
	if x.a.Step != nil {
		name = position().ReplaceAllString(x.a.Step.Name, "] ")
	}
	return fmt.Sprintf("reads all\x00%s\x00%s", x.r.Contexts[mainContext].Dir, name)
}
