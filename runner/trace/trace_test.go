package trace

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
	"kiln.build/cache/tree"
	"kiln.build/runner/overlay"
)

// mounted is a traced layer of some files, as the middle of an overlay.
func mounted(t *testing.T, files map[string]string) (*Layer, string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root to mount")
	}
	if _, err := os.Stat("/dev/fuse"); err != nil {
		t.Skipf("needs /dev/fuse: %v", err)
	}
	base := t.TempDir()
	dirs := map[string]string{}
	for _, d := range []string{"bottom", "layer", "upper", "work", "at"} {
		dirs[d] = filepath.Join(base, d)
		if err := os.Mkdir(dirs[d], 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name, content := range files {
		p := filepath.Join(dirs["layer"], name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	listing, err := tree.Scan(context.Background(), dirs["layer"], tree.ScanOptions{})
	if err != nil {
		t.Fatal(err)
	}
	l, err := New(listing, dirs["layer"])
	if err != nil {
		t.Fatal(err)
	}
	m, err := l.Mount()
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	over, err := overlay.Mount(overlay.Options{
		Lower: []string{dirs["bottom"], fmt.Sprintf("/proc/self/fd/%d", m.Fd())}, Upper: dirs["upper"], Work: dirs["work"], Mixed: true,
	})
	if err != nil {
		t.Fatal(err)
	}
	defer over.Close()
	if err := unix.MoveMount(int(over.Fd()), "", unix.AT_FDCWD, dirs["at"], unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dirs["at"], 0); err != nil {
			t.Error(err)
		}
	})
	return l, dirs["at"]
}

func TestAccesses(t *testing.T) {
	l, at := mounted(t, map[string]string{"app/package.json": "{}", "app/src/a": "a", "app/src/b": "b", "other": "o"})
	for _, do := range []func() error{
		func() error { _, err := os.ReadFile(filepath.Join(at, "app/package.json")); return err },
		func() error {
			_, err := os.Stat(filepath.Join(at, "app/.npmrc"))
			return nilUnless(os.IsNotExist(err), err)
		},
		func() error { return os.Mkdir(filepath.Join(at, "app/node_modules"), 0o755) },
		func() error { return os.WriteFile(filepath.Join(at, "app/node_modules/x"), []byte("x"), 0o644) },
		func() error { _, err := os.Stat(filepath.Join(at, "other")); return err },
	} {
		if err := do(); err != nil {
			t.Fatal(err)
		}
	}
	all, ok := l.Accesses()
	if !ok {
		t.Error("not all was noted")
	}
	for _, want := range []Access{
		{Name, "app"}, {Name, "app/package.json"}, {Content, "app/package.json"}, {Name, "app/.npmrc"}, {Name, "app/node_modules"}, {Name, "other"},
	} {
		if !slices.Contains(all, want) {
			t.Errorf("%c %q was not noted", want.Kind, want.Path)
		}
	}
	for _, a := range all {
		if a.Kind == Content && a.Path != "app/package.json" || a.Kind != Name && a.Path == "app/src" || len(a.Path) > len("app/src/") && a.Path[:8] == "app/src/" {
			t.Errorf("%c %q was noted, and nothing asked", a.Kind, a.Path)
		}
	}
	if again, err := Decode(Encode(all)); err != nil || !slices.Equal(again, all) {
		t.Errorf("decoded %v, %v", again, err)
	}
}

// TestMany asks for more names than are noted.
func TestMany(t *testing.T) {
	l, err := New(&tree.Tree{}, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	for i := range askedMax + 1 {
		l.Note(Name, fmt.Sprint(i))
	}
	if all, ok := l.Accesses(); ok || len(all) != askedMax {
		t.Errorf("%d were noted, %t", len(all), ok)
	}
}

func TestUnsuited(t *testing.T) {
	for _, e := range []tree.Entry{{Path: "w", Type: tree.Whiteout}, {Path: "d", Type: tree.Dir, Opaque: true}, {Path: "f", Type: tree.File, Hardlink: "e"}, {Path: "c", Type: tree.Char}} {
		if _, err := New(&tree.Tree{Entries: []tree.Entry{e}}, t.TempDir()); !errors.Is(err, ErrUnsuited) {
			t.Errorf("%s: %v", e.Path, err)
		}
	}
}

func TestDecodeRefuses(t *testing.T) {
	for _, text := range []string{"x\"a\"\n", "n\n", "na\n", "\n", "n\"a\"b\n"} {
		if all, err := Decode(text); err == nil {
			t.Errorf("%q gives %v", text, all)
		}
	}
}

func nilUnless(good bool, err error) error {
	if good {
		return nil
	}
	return fmt.Errorf("unexpected: %v", err)
}
