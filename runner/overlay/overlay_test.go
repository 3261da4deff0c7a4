package overlay

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// inside is a path in a detached mount.
func inside(f *os.File, path string) string {
	return fmt.Sprintf("/proc/self/fd/%d/%s", f.Fd(), path)
}

func layer(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func mustMount(t *testing.T, o Options) *os.File {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: mounts")
	}
	f, err := Mount(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func TestChangesGoToUpper(t *testing.T) {
	bottom := layer(t, map[string]string{"a": "bottom", "b": "bottom"})
	top := layer(t, map[string]string{"b": "top"})
	upper, work := t.TempDir(), t.TempDir()
	f := mustMount(t, Options{Lower: []string{bottom, top}, Upper: upper, Work: work})
	if b, err := os.ReadFile(inside(f, "b")); err != nil || string(b) != "top" {
		t.Errorf("b is %q, %v; want that of the top layer", b, err)
	}
	if err := os.WriteFile(inside(f, "c"), []byte("new"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(inside(f, "a")); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(filepath.Join(upper, "c")); err != nil || string(b) != "new" {
		t.Errorf("upper c is %q, %v", b, err)
	}
	var st unix.Stat_t
	if err := unix.Lstat(filepath.Join(upper, "a"), &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFCHR || st.Rdev != 0 {
		t.Errorf("upper a is no whiteout: %o %v", st.Mode, err)
	}
	if b, _ := os.ReadFile(filepath.Join(bottom, "a")); string(b) != "bottom" {
		t.Error("the bottom layer was written to")
	}
}

func TestMountIsInNoTable(t *testing.T) {
	f := mustMount(t, Options{Lower: []string{layer(t, nil)}, Empty: t.TempDir()})
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(table), t.TempDir()) {
		t.Error("the mount is in the mount table")
	}
	if err := os.WriteFile(inside(f, "x"), nil, 0o600); err == nil {
		t.Error("a mount without an upper directory was written to")
	}
}

func TestManyLayers(t *testing.T) {
	dir := t.TempDir()
	var lower []string
	for i := range MaxLayers {
		d := filepath.Join(dir, fmt.Sprint(i))
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(d, fmt.Sprint("f", i)), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		lower = append(lower, d)
	}
	f := mustMount(t, Options{Lower: lower})
	for _, i := range []int{0, 250, MaxLayers - 1} {
		if _, err := os.Stat(inside(f, fmt.Sprint("f", i))); err != nil {
			t.Error(err)
		}
	}
	if _, err := Mount(Options{Lower: append(lower, dir)}); err == nil || !strings.Contains(err.Error(), "501 layers") {
		t.Errorf("got %v, want an error that says how many are too many", err)
	}
}

func TestEqualLayers(t *testing.T) {
	a := layer(t, map[string]string{"f": "a", "g": "a"})
	b := layer(t, map[string]string{"f": "b"})
	f := mustMount(t, Options{Lower: []string{a, b, a, a}, Empty: t.TempDir()})
	if text, err := os.ReadFile(inside(f, "f")); err != nil || string(text) != "a" {
		t.Errorf("f is %q, %v; want that of the uppermost layer", text, err)
	}
	f = mustMount(t, Options{Lower: []string{a, a, b}, Empty: t.TempDir()})
	if text, err := os.ReadFile(inside(f, "f")); err != nil || string(text) != "b" {
		t.Errorf("f is %q, %v; want that of the uppermost layer", text, err)
	}
}

func TestErrorsNameTheDirectory(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: mounts")
	}
	_, err := Mount(Options{Lower: []string{"/no/such/layer"}, Empty: t.TempDir()})
	if err == nil || !strings.Contains(err.Error(), "/no/such/layer") {
		t.Errorf("got %v", err)
	}
}

func TestClone(t *testing.T) {
	dir := layer(t, map[string]string{"f": "text"})
	c, err := Clone(filepath.Join(dir, "f"))
	if errors.Is(err, fs.ErrPermission) {
		t.Skip("needs root: mounts")
	}
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if b, err := os.ReadFile(fmt.Sprintf("/proc/self/fd/%d", c.Fd())); err != nil || string(b) != "text" {
		t.Errorf("got %q, %v", b, err)
	}
}

// TestKernelsBefore65 makes mounts in the way of older kernels, which later
// ones still know.
func TestKernelsBefore65(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: mounts")
	}
	bottom := layer(t, map[string]string{"a": "bottom", "b": "bottom"})
	top := layer(t, map[string]string{"b": "top"})
	upper, work := t.TempDir(), t.TempDir()
	before, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	numbered := func(o Options) (*os.File, error) {
		return Aside(func() (*os.File, error) { return mountByNumbers(o) })
	}
	f, err := numbered(Options{Lower: []string{bottom, top}, Upper: upper, Work: work})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for name, want := range map[string]string{"a": "bottom", "b": "top"} {
		if b, err := os.ReadFile(inside(f, name)); err != nil || string(b) != want {
			t.Errorf("%s is %q, %v; want %q", name, b, err, want)
		}
	}
	if err := os.WriteFile(inside(f, "c"), []byte("new"), 0o600); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(filepath.Join(upper, "c")); err != nil || string(b) != "new" {
		t.Errorf("upper c is %q, %v", b, err)
	}
	if after, err := os.Getwd(); err != nil || after != before {
		t.Errorf("the working directory is %q, %v", after, err)
	}
	many := []string{bottom}
	for i := range 99 {
		many = append(many, layer(t, map[string]string{fmt.Sprint(i): "x"}))
	}
	upper, work = filepath.Join(t.TempDir(), "a,b:c"), t.TempDir()
	if err := os.Mkdir(upper, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, o := range []Options{{Lower: many}, {Lower: many, Upper: upper, Work: work}} {
		f, err := numbered(o)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		for _, name := range []string{"a", "0", "98"} {
			if _, err := os.Stat(inside(f, name)); err != nil {
				t.Error(err)
			}
		}
		if err := os.WriteFile(inside(f, "new"), nil, 0o600); (err == nil) != (o.Upper != "") {
			t.Errorf("upper %q: written with %v", o.Upper, err)
		}
	}
	if _, err := os.Stat(filepath.Join(upper, "new")); err != nil {
		t.Error(err)
	}
}

// memory is a detached mount of a tmpfs with a file.
func memory(t *testing.T, name, text string) *os.File {
	t.Helper()
	fsfd, err := unix.Fsopen("tmpfs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fsfd)
	if err := unix.FsconfigCreate(fsfd); err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Fsmount(fsfd, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "tmpfs")
	t.Cleanup(func() { f.Close() })
	if err := os.WriteFile(inside(f, name), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return f
}

// TestDetachedLayers makes mounts as kernels before 6.15 need it, which take
// no layer of a detached mount.
func TestDetachedLayers(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: mounts")
	}
	ways := map[string]func(Options) (*os.File, error){"mount": Mount, "by numbers": attached(mountByNumbers)}
	if takesLayersOneByOne() {
		ways["one by one"] = attached(mountOneByOne)
	}
	before, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for way, mount := range ways {
		m := memory(t, "b", "memory")
		f, err := mount(Options{
			Lower: []string{layer(t, map[string]string{"a": "bottom"}), fmt.Sprintf("%s/%d", ownFiles, m.Fd())},
			Upper: t.TempDir(), Work: t.TempDir(), Mixed: true,
		})
		if err != nil {
			t.Fatalf("%s: %v", way, err)
		}
		defer f.Close()
		for name, want := range map[string]string{"a": "bottom", "b": "memory"} {
			if b, err := os.ReadFile(inside(f, name)); err != nil || string(b) != want {
				t.Errorf("%s: %s is %q, %v; want %q", way, name, b, err, want)
			}
		}
	}
	if after, err := os.ReadFile("/proc/self/mountinfo"); err != nil || string(after) != string(before) {
		t.Errorf("mounts %s\nbefore %s, %v", after, before, err)
	}
}

func TestAtLeast(t *testing.T) {
	for release, want := range map[string]bool{
		"6.5.0": true, "6.18.3-generic": true, "7.0-rc1": true, "6.5": true,
		"6.4.99": false, "5.15.0-91-generic": false, "": false, "odd": false,
	} {
		if got := atLeast(release, 6, 5); got != want {
			t.Errorf("%q: %t", release, got)
		}
	}
}
