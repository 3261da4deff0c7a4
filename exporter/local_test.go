package exporter

import (
	"archive/tar"
	"bytes"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"kiln.build/cache"
	"kiln.build/exporter/internal/storetest"
	"kiln.build/solver"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

func digestOf(b []byte) digest.Digest { return digest.FromBytes(b) }

func stack(t *testing.T, s *cache.Store, layers ...[]string) Image {
	t.Helper()
	var all []solver.Layer
	for _, lines := range layers {
		all = append(all, storetest.Layer(t, s, lines...))
	}
	return Image{Output: solver.Output{Layers: all}, Platform: amd64}
}

func TestExportLocal(t *testing.T) {
	s := storetest.Open(t)
	in := stack(t, s,
		[]string{"d/", "d/f old", "gone/", "gone/f x", "dir-to-file/", "dir-to-file/x 1", "abs -> /etc/passwd", "fifo fifo"},
		[]string{"d/", "d/f new", ".wh.gone", ".wh.dir-to-file", "late/", "late/g 2"},
		[]string{"dir-to-file file"})
	dest := filepath.Join(t.TempDir(), "a/b")
	e := &Exporter{Store: s}
	for range 2 { // over itself too
		if _, err := e.Export(t.Context(), Output{Type: TypeLocal, Dest: dest}, []Image{in}); err != nil {
			t.Fatal(err)
		}
	}
	for name, want := range map[string]string{"d/f": "new", "late/g": "2", "dir-to-file": "file"} {
		if b, err := os.ReadFile(filepath.Join(dest, name)); err != nil || string(b) != want {
			t.Errorf("%s holds %q, %v", name, b, err)
		}
	}
	if _, err := os.Lstat(filepath.Join(dest, "gone")); err == nil {
		t.Error("what was deleted is there")
	}
	if l, err := os.Readlink(filepath.Join(dest, "abs")); err != nil || l != "/etc/passwd" {
		t.Errorf("link to %q, %v", l, err)
	}
	for _, name := range []string{"d", "d/f", "fifo"} {
		fi, err := os.Lstat(filepath.Join(dest, name))
		if err != nil || !fi.ModTime().Equal(time.Date(2024, 1, 1, 0, 0, 0, 0, time.UTC)) {
			t.Errorf("%s: %v, %v", name, fi.ModTime(), err)
		}
		if name == "fifo" && fi.Mode() != os.ModeNamedPipe|0o644 {
			t.Errorf("fifo has mode %v", fi.Mode())
		}
	}
}

// TestExportLocalConfined has links in the folder where the image has
// directories and files: nothing is written through them.
func TestExportLocalConfined(t *testing.T) {
	s := storetest.Open(t)
	in := stack(t, s, []string{"d/", "d/f new", "g new", "h/", "h/i/", "h/i/j new"})
	outside := t.TempDir()
	for _, name := range []string{"f", "g"} {
		if err := os.WriteFile(filepath.Join(outside, name), []byte("mine"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	dest := t.TempDir()
	for name, to := range map[string]string{"d": outside, "g": filepath.Join(outside, "g"), "h": "../" + filepath.Base(outside)} {
		if err := os.Symlink(to, filepath.Join(dest, name)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := (&Exporter{Store: s}).Export(t.Context(), Output{Type: TypeLocal, Dest: dest}, []Image{in}); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"f", "g"} {
		if b, err := os.ReadFile(filepath.Join(outside, name)); err != nil || string(b) != "mine" {
			t.Errorf("outside, %s holds %q, %v", name, b, err)
		}
	}
	if all, err := os.ReadDir(outside); err != nil || len(all) != 2 {
		t.Errorf("outside there are %v, %v", all, err)
	}
	if b, err := os.ReadFile(filepath.Join(dest, "h/i/j")); err != nil || string(b) != "new" {
		t.Errorf("inside: %q, %v", b, err)
	}
}

// TestHardLinks hides the first name of a group by a layer above: the others
// are still one file.
func TestHardLinks(t *testing.T) {
	s := storetest.Open(t)
	in := stack(t, s,
		[]string{"a content", "b => a", "c => a", "single x"},
		[]string{".wh.a", "b2 other", "single => b2"})
	dest := t.TempDir()
	if _, err := (&Exporter{Store: s}).Export(t.Context(), Output{Type: TypeLocal, Dest: dest}, []Image{in}); err != nil {
		t.Fatal(err)
	}
	same := func(x, y string) bool {
		t.Helper()
		a, err := os.Stat(filepath.Join(dest, x))
		if err != nil {
			t.Fatal(err)
		}
		b, err := os.Stat(filepath.Join(dest, y))
		if err != nil {
			t.Fatal(err)
		}
		return os.SameFile(a, b)
	}
	if !same("b", "c") || !same("b2", "single") || same("b", "b2") {
		t.Error("the files are not linked as they should be")
	}
	var out bytes.Buffer
	if _, err := (&Exporter{Store: s, Stdout: &out}).Export(t.Context(), Output{Type: TypeTar, Dest: "-"}, []Image{in}); err != nil {
		t.Fatal(err)
	}
	var got []string
	for tr := tar.NewReader(&out); ; {
		h, err := tr.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, h.Name+">"+h.Linkname)
	}
	if s := strings.Join(got, " "); s != "b> b2> c>b single>b2" {
		t.Errorf("got %s", s)
	}
}

func TestSplit(t *testing.T) {
	s := storetest.Open(t)
	one, two := stack(t, s, []string{"f one"}), stack(t, s, []string{"f two"})
	two.Platform = v1.Platform{OS: "linux", Architecture: "arm", Variant: "v7"}
	dest := t.TempDir()
	if _, err := (&Exporter{Store: s}).Export(t.Context(), Output{Type: TypeLocal, Dest: dest}, []Image{one, two}); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"linux_amd64/f": "one", "linux_arm_v7/f": "two"} {
		if b, err := os.ReadFile(filepath.Join(dest, name)); err != nil || string(b) != want {
			t.Errorf("%s holds %q, %v", name, b, err)
		}
	}
}
