package history

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"kiln.build/cache"
	"kiln.build/cache/tree"
	"kiln.build/solver"
)

func TestLineChanges(t *testing.T) {
	exec := func(lines ...string) string {
		return strings.Join(append([]string{`op "exec"`}, lines...), "\n") + "\n"
	}
	for _, test := range []struct{ now, then, want string }{
		{exec(`arg "a"`), exec(`arg "a"`), ""},
		{exec(`arg "sh"`, `arg "-c"`, `arg "x y"`), exec(`arg "sh"`, `arg "-c"`, `arg "x"`), "command changed"},
		{exec(`env "V=2"`), exec(`env "V=1"`), "build-arg V: 1 -> 2"},
		{exec(`env "W=2"`), exec(`env "W="`), `W: "" -> 2`},
		{exec(`env "V=2"`), exec(), "build-arg V is new"},
		{exec(), exec(`env "W=2"`), "W is gone"},
		{exec(`env "NPM_TOKEN=new"`), exec(`env "NPM_TOKEN=old"`), "NPM_TOKEN changed"},
		{exec(`user "a"`), exec(`user "b"`), "USER: b -> a"},
		{exec(`cwd "/a b"`), exec(`cwd "/"`), "WORKDIR: / -> /a b"},
		{exec(`mount "tmpfs" "/x"`), exec(), "mounts changed"},
		{exec(`user "a"`, `arg "1"`, `env "V=1"`), exec(`user "b"`, `arg "2"`, `env "V=2"`), "command changed|build-arg V: 2 -> 1|USER: b -> a"},
		{"op \"copy\"\nchmod \"755\"\n", "op \"copy\"\nchmod \"\"\n", `--chmod: "" -> 755`},
		{"op \"copy\"\n", exec(), "another instruction was here"},
		{"garbage", "op \"", "another instruction was here"},
		{exec(`arg "unended`), exec(), "command changed"},
	} {
		if got := strings.Join(lineChanges(test.now, test.then, []string{"V"}), "|"); got != test.want {
			if !strings.Contains(test.now, "garbage") { // any words will do, without a panic
				t.Errorf("from %q to %q: %q, want %q", test.then, test.now, got, test.want)
			}
		}
	}
}

func TestFileChanges(t *testing.T) {
	file := func(path, content string, mode uint32) tree.Entry {
		return tree.Entry{Path: path, Type: tree.File, Mode: mode, Digest: digest.FromString(content)}
	}
	listing := func(all ...tree.Entry) *tree.Tree {
		l := &tree.Tree{Entries: all}
		l.Sort()
		return l
	}
	link := tree.Entry{Path: "l", Type: tree.Symlink, Link: "a", Mode: 0o777}
	elsewhere := file("x", "1", 0o644)
	elsewhere.Source = "dir/x"
	for _, test := range []struct {
		now, then *tree.Tree
		want      string
	}{
		{listing(file("a", "1", 0o644)), listing(file("a", "1", 0o644)), ""},
		{listing(file("a", "2", 0o644)), listing(file("a", "1", 0o644)), "a changed"},
		{listing(file("b", "1", 0o644)), listing(file("a", "1", 0o644)), "b added|a removed"},
		{listing(elsewhere), listing(), "dir/x added"},
		{listing(file("a", "1", 0o755)), listing(file("a", "1", 0o644)), "a: mode 0644 -> 0755"},
		{listing(file("a", "1", 0o664), file("b", "1", 0o775)), listing(file("a", "1", 0o644), file("b", "1", 0o755)),
			"only umask bits of 2 files differ: --context-modes=git ignores them|a: mode 0644 -> 0664|b: mode 0755 -> 0775"},
		{listing(file("a", "1", 0o664), file("b", "1", 0o755)), listing(file("a", "1", 0o644), file("b", "1", 0o644)),
			"a: mode 0644 -> 0664|b: mode 0644 -> 0755"},
		{listing(link), listing(file("l", "1", 0o644)), "l is a symbolic link, was a file"},
	} {
		if got := strings.Join(fileChanges(test.now, test.then, ""), "|"); got != test.want {
			t.Errorf("got %q, want %q", got, test.want)
		}
	}
}

// bed is a store, and builds in it.
func newExplainer(t *testing.T, s *cache.Store, identity, text string, targets ...*solver.Vertex) *Explainer {
	t.Helper()
	x, err := New(Options{Store: s, Identity: identity, Dockerfile: []byte(text), Targets: targets, Listing: func(solver.Output) *tree.Tree { return nil }})
	if err != nil {
		t.Fatal(err)
	}
	return x
}

type testOp string

func (o testOp) Describe(d *solver.Description) {
	d.Line("op", "exec")
	d.Line("arg", string(o))
}

// evaluation is a step that ran.
func evaluation(name, arg string, below *solver.Evaluation) *solver.Evaluation {
	v := &solver.Vertex{Op: testOp(arg), Step: &solver.Step{Name: name}}
	e := &solver.Evaluation{Vertex: v, Op: solver.Describe(testOp(arg)), Below: below, State: solver.Ran}
	text := e.Op
	if below != nil {
		e.Inputs = []*solver.Evaluation{below}
		v.Below, v.Inputs = below.Vertex, []*solver.Vertex{below.Vertex}
		text += string(below.Output.Digest)
	}
	e.Key = digest.FromString(text)
	e.Output = solver.Output{Digest: digest.FromString("output of " + text), Result: solver.Result{Digest: digest.FromString("layer of " + text)}}
	return e
}

func TestWhy(t *testing.T) {
	s, err := cache.Open(t.TempDir(), cache.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	build := func(identity, text string, failed bool, all ...*solver.Evaluation) []string {
		t.Helper()
		x := newExplainer(t, s, identity, text, all[len(all)-1].Vertex)
		var why []string
		for _, e := range all {
			why = append(why, x.Why(e))
		}
		if err := x.Save(&solver.Graph{Evaluations: all}, failed); err != nil {
			t.Fatal(err)
		}
		return why
	}
	want := func(what string, got []string, want ...string) {
		t.Helper()
		if !slices.Equal(got, want) {
			t.Errorf("%s: %q, want %q", what, got, want)
		}
	}
	a := evaluation("[1/2] RUN a", "a", nil)
	b := evaluation("[2/2] RUN b", "b", a)
	want("no history", build("one", "text", false, a, b), "first build", "first build")
	want("results that are gone", build("one", "text", false, a, b), "its result is no longer in the store", "its result is no longer in the store")

	c := evaluation("[1/3] RUN a", "a", nil)
	d := evaluation("[2/3] RUN new", "new", c)
	e := evaluation("[3/3] RUN b", "b", d)
	want("a step between", build("one", "text 2", true, c, d, e), "its result is no longer in the store", "new step", "new step before it: RUN new")
	e.State, e.Key = solver.Waiting, ""
	if err := newExplainer(t, s, "one", "text 2", e.Vertex).Save(&solver.Graph{Evaluations: []*solver.Evaluation{c, d, e}}, true); err != nil {
		t.Fatal(err)
	}
	e = evaluation("[3/3] RUN b", "b", d)
	want("after a failed build", build("one", "text 2", false, c, d, e)[2:], "new step before it: RUN new")

	other := evaluation("[1/2] RUN a2", "a2", nil)
	last := evaluation("[2/2] RUN b", "b", other)
	want("another place", build("two", "text", false, other, last), "command changed", "command changed, and 1 more")

	// Damaged records say nothing and stop nothing.
	dir, err := s.HistoryDir()
	if err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(filepath.Join(dir, strings.Repeat("?", 64)))
	if err != nil || len(files) == 0 {
		t.Fatalf("records: %q, %v", files, err)
	}
	for i, f := range files {
		data, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(f, data[:len(data)-20*(i+1)], 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want("damaged records", build("two", "text", false, other, last), "first build", "first build")
}

// TestTrim makes more records than are kept.
func TestTrim(t *testing.T) {
	s, err := cache.Open(t.TempDir(), cache.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	dir, err := s.HistoryDir()
	if err != nil {
		t.Fatal(err)
	}
	for i := range keep + 10 {
		e := evaluation("[1/1] RUN x", fmt.Sprint(i), nil)
		x := newExplainer(t, s, fmt.Sprint(i), "text", e.Vertex)
		if err := x.Save(&solver.Graph{Evaluations: []*solver.Evaluation{e}}, false); err != nil {
			t.Fatal(err)
		}
		at := time.Now().Add(time.Duration(i-1000) * time.Second)
		if err := os.Chtimes(x.path, at, at); err != nil {
			t.Fatal(err)
		}
	}
	if err := trim(dir); err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(filepath.Join(dir, strings.Repeat("?", 64)))
	if err != nil || len(files) != keep {
		t.Errorf("%d records, %v, want %d", len(files), err, keep)
	}
	if _, err := os.Stat(newExplainer(t, s, fmt.Sprint(keep+9), "text").path); err != nil {
		t.Errorf("the newest record: %v", err)
	}
}

func TestDistinct(t *testing.T) {
	if got, want := distinct([]string{"b", "a"}, nil, []string{"a", "c", "b", "c"}), []string{"b", "a", "c"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

// BenchmarkDistinct tells of a context of which all files have changed.
func BenchmarkDistinct(b *testing.B) {
	lines := make([]string, 20_000)
	for i := range lines {
		lines[i] = fmt.Sprintf("files/d%03d/f%05d.txt changed", i/100, i)
	}
	for b.Loop() {
		if got := distinct(nil, lines, lines); len(got) != len(lines) {
			b.Fatal(len(got))
		}
	}
}
