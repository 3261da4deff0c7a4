package conformance

import (
	"context"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"testing"
)

var (
	recordAll = flag.Bool("record", false, "record the reference's results; needs BUILDKIT_HOST and buildctl")
	recordOwn = flag.Bool("record-kiln", false, "record Kiln's results in the cases that say differs")
)

// shared are the tools of all runs of the test; TestMain removes them.
var (
	shared = sync.OnceValues(func() (*tools, error) {
		var err error
		if sharedDir, err = os.MkdirTemp("", "kiln-conformance-"); err != nil {
			return nil, err
		}
		return prepare(context.Background(), sharedDir)
	})
	sharedDir string
)

func TestMain(m *testing.M) {
	code := m.Run()
	if sharedDir != "" {
		os.RemoveAll(sharedDir)
	}
	os.Exit(code)
}

func TestConformance(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: the cases have owners and devices")
	}
	if runtime.GOARCH != "amd64" {
		t.Skip("the results were recorded on amd64")
	}
	paths, err := filepath.Glob("testdata/*/*.txtar")
	if err != nil {
		t.Fatal(err)
	}
	tools, err := shared()
	if err != nil {
		t.Fatal(err)
	}
	if *recordAll && tools.buildctl == "" {
		t.Fatal("-record needs BUILDKIT_HOST and buildctl")
	}
	t.Logf("%d cases", len(paths))
	for _, path := range paths {
		name := strings.TrimSuffix(strings.TrimPrefix(path, "testdata/"), ".txtar")
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			testOne(t, tools, path)
		})
	}
}

func testOne(t *testing.T, tools *tools, path string) {
	c, err := readCase(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range c.needs {
		if _, err := exec.LookPath(name); err != nil {
			t.Skip("needs ", name)
		}
	}
	scratch := t.TempDir()
	dir := filepath.Join(scratch, "context")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := c.unpack(dir); err != nil {
		t.Fatal(err)
	}
	want, recorded := c.section("want")
	if tools.buildctl != "" {
		now, said, err := tools.referenceBuild(t.Context(), c, dir, scratch)
		if err != nil {
			t.Fatal(err)
		}
		if strings.HasPrefix(now, "refused") {
			t.Logf("the reference said:\n%s", tail(said))
		}
		switch {
		case *recordAll && now != want:
			if err := c.record("want", now); err != nil {
				t.Fatal(err)
			}
		case recorded && now != want:
			t.Errorf("this BuildKit makes something else than is recorded (- recorded, + now):\n%s", diff(want, now))
		}
		want, recorded = now, true
	}
	if !recorded {
		t.Fatal("no recorded result: run with -record where a BuildKit is")
	}
	got, said, err := tools.kilnBuild(t.Context(), c, dir, scratch)
	if err != nil {
		t.Fatal(err)
	}
	if c.differs != "" {
		if got == want {
			t.Error("the case says that Kiln differs, but it does not")
		}
		if own, _ := c.section("kiln"); *recordOwn && own != got {
			if err := c.record("kiln", got); err != nil {
				t.Fatal(err)
			}
		}
		want, _ = c.section("kiln")
	}
	if got == "refused\n" && c.position {
		t.Errorf("the error names no line of the Dockerfile:\n%s", said)
	}
	// Where the reference names no line, any of ours will do.
	if want == "refused\n" && strings.HasPrefix(got, "refused") {
		got = want
	}
	if c.message != "" && !regexp.MustCompile(c.message).MatchString(said) {
		t.Errorf("the error does not match %q:\n%s", c.message, said)
	}
	if got != want {
		t.Errorf("not what the reference makes (- reference, + Kiln):\n%s", diff(want, got))
		if strings.HasPrefix(got, "refused") {
			t.Logf("Kiln said:\n%s", tail(said))
		}
	}
}

// tail is the end of a text that may be long.
func tail(s string) string {
	return s[max(0, len(s)-1500):]
}

// diff shows the lines that only one of two texts has, in their order.
func diff(a, b string) string {
	x, y := strings.Split(a, "\n"), strings.Split(b, "\n")
	// Lengths of longest common subsequences; listings are short.
	l := make([][]int, len(x)+1)
	for i := range l {
		l[i] = make([]int, len(y)+1)
	}
	for i := len(x) - 1; i >= 0; i-- {
		for j := len(y) - 1; j >= 0; j-- {
			if x[i] == y[j] {
				l[i][j] = l[i+1][j+1] + 1
			} else {
				l[i][j] = max(l[i+1][j], l[i][j+1])
			}
		}
	}
	var out strings.Builder
	i, j := 0, 0
	for i < len(x) || j < len(y) {
		switch {
		case i < len(x) && j < len(y) && x[i] == y[j]:
			i, j = i+1, j+1
		case j == len(y) || i < len(x) && l[i+1][j] >= l[i][j+1]:
			out.WriteString("-" + x[i] + "\n")
			i++
		default:
			out.WriteString("+" + y[j] + "\n")
			j++
		}
	}
	return out.String()
}
