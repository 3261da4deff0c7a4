package runner

import (
	"fmt"
	"math/rand"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"kiln.build/solver"
)

func needFuse(t *testing.T) {
	t.Helper()
	if _, err := os.Stat("/dev/fuse"); err != nil {
		t.Skipf("needs /dev/fuse: %v", err)
	}
}

// TestReads changes files of a context of which a step reads one.
func TestReads(t *testing.T) {
	needFuse(t)
	b := newBed(t)
	root := b.stage(world...)
	step := func() *solver.Vertex {
		c := copyTo("/app/", ".")
		c.root = root
		return do(c.vertex(), "see /log cat /app/package.json", "see /log stat /app/.npmrc", "mkdir /app/modules", "write /app/modules/x x").vertex()
	}
	b.put("f 644 0:0 package.json {}", "d 755 0:0 src", "f 644 0:0 src/a a", "f 644 0:0 src/b b")
	first := b.build(step())
	for _, change := range []struct {
		name string
		do   []string
		runs int
	}{
		{"a source", []string{"f 644 0:0 src/a changed"}, 0},
		{"a new source", []string{"f 644 0:0 src/new new"}, 0},
		{"the mode of a source", []string{"f 755 0:0 src/b b"}, 0},
		{"what is read", []string{"f 644 0:0 package.json {1}"}, 1},
		{"what was missed", []string{"f 644 0:0 .npmrc x"}, 1},
		{"another source after that", []string{"f 644 0:0 src/a again"}, 0},
		{"a file where a folder is made", []string{"d 711 0:0 modules", "f 644 0:0 modules/other y"}, 1},
	} {
		b.put(change.do...)
		out := b.build(step())
		if n := b.performed("Exec"); n != change.runs {
			t.Errorf("%s: the step ran %d times, want %d", change.name, n, change.runs)
		}
		if out.Digest == first.Digest {
			t.Errorf("%s: the stack is the same as before", change.name)
		}
		b.build(step())
		if len(b.ran) > 0 && b.performed("Exec")+b.performed("Copy") > 0 {
			t.Errorf("%s: unchanged, it ran %q", change.name, b.ran)
		}
	}
	if err := os.Remove(filepath.Join(b.dir, "package.json")); err != nil {
		t.Fatal(err)
	}
	b.build(step())
	if b.performed("Exec") != 1 {
		t.Error("what is read was removed: the step did not run")
	}
	b.setup = func(r *Runner) { r.NoTrace = true }
}

// TestRandomReads runs random programs over random files, some of which
// change. Whenever a result is reused, the program is run all the same: it has
// to make the same layer.
func TestRandomReads(t *testing.T) {
	needFuse(t)
	b := newBed(t)
	root := b.stage(world...)
	reused, ran := 0, 0
	seeds := int64(12)
	if os.Getenv("KILN_SOAK") != "" {
		seeds = 400
	}
	for seed := range seeds {
		rnd := rand.New(rand.NewSource(seed))
		dir := fmt.Sprintf("s%d", seed)
		names := []string{"a", "b", "d", "d/a", "d/b", "d/e", "d/e/a", "e", "e/a"}
		pick := func() string { return names[rnd.Intn(len(names))] }
		change := func() {
			at := filepath.Join(b.dir, dir, pick())
			if os.MkdirAll(filepath.Dir(at), 0o755) != nil {
				// A file is in the way.
				_ = os.Remove(filepath.Join(b.dir, dir, "d/e"))
				_ = os.Remove(filepath.Join(b.dir, dir, "d"))
				_ = os.Remove(filepath.Join(b.dir, dir, "e"))
				return
			}
			if err := os.RemoveAll(at); err != nil {
				t.Fatal(err)
			}
			var err error
			switch kind := rnd.Intn(8); {
			case kind == 0:
			case kind == 1:
				err = os.Mkdir(at, 0o755)
			case kind == 2 && filepath.Base(at) == "b": // nothing is put below it
				err = os.Symlink([]string{"a", "../a", "/app/b", "nowhere"}[rnd.Intn(4)], at)
			case kind == 3:
				if err = os.WriteFile(at, []byte("x"), 0o600); err == nil {
					err = os.Chmod(at, 0o640)
				}
			default:
				err = os.WriteFile(at, []byte(fmt.Sprint(rnd.Intn(12))), 0o644)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		for range 12 {
			change()
		}
		var script []string
		for range 1 + rnd.Intn(5) {
			p := "/app/" + pick()
			script = append(script, "see /log "+[]string{
				"cat " + p, "cat " + p, "stat " + p, "ls " + p, "ls /app", "readlink " + p, "write " + p + " w", "append " + p + " w",
				"mkdir " + p, "rm " + p, "chmod " + p + " 700", "mv " + p + " /app/" + pick(), "mv " + p + " /moved",
			}[rnd.Intn(13)])
		}
		step := func(fresh bool) *solver.Vertex {
			c := copyTo("/app/", dir)
			c.root = root
			v := do(c.vertex(), script...).vertex()
			v.Fresh = fresh
			return v
		}
		for round := range 5 {
			b.setup = nil
			got := b.build(step(false))
			if b.performed("Exec") == 0 {
				reused++
			} else {
				ran++
			}
			b.setup = func(r *Runner) { r.NoTrace = true }
			want := b.build(step(true))
			if got.Result.Digest != want.Result.Digest {
				t.Fatalf("seed %d round %d: %s\ngives\n%s\nwant\n%s", seed, round, strings.Join(script, "; "),
					strings.Join(b.layer(got), "\n"), strings.Join(b.layer(want), "\n"))
			}
			change()
		}
	}
	t.Logf("%d results were reused, %d steps ran", reused, ran)
	if reused < 10 || ran < 10 {
		t.Error("the test shows nothing")
	}
}
