package sandbox

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// overlay returns a detached overlay mount of lower, and its upper directory.
func overlay(t *testing.T, lower string) (mount *os.File, upper string) {
	t.Helper()
	dir := t.TempDir()
	fd, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		t.Skip("no overlay: ", err)
	}
	defer unix.Close(fd)
	for _, o := range [][2]string{{"lowerdir", lower}, {"upperdir", dir + "/upper"}, {"workdir", dir + "/work"}} {
		if o[0] != "lowerdir" {
			if err := os.Mkdir(o[1], 0o755); err != nil {
				t.Fatal(err)
			}
		}
		if err := unix.FsconfigSetString(fd, o[0], o[1]); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.FsconfigCreate(fd); err != nil {
		t.Skip("no overlay here: ", err)
	}
	m, err := unix.Fsmount(fd, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(m), "overlay")
	t.Cleanup(func() { f.Close() })
	return f, dir + "/upper"
}

func TestRootByDescriptor(t *testing.T) {
	s := spec(t, "write", "/tmp/made", "x")
	m, upper := overlay(t, s.RootPath)
	s.Root, s.RootPath = m, ""
	p, err := Start(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	if status, err := p.Wait(); err != nil || status.Code != 0 {
		t.Fatal(status, err)
	}
	if b, err := os.ReadFile(filepath.Join(upper, "tmp/made")); err != nil || string(b) != "x" {
		t.Errorf("upper holds %q, error %v", b, err)
	}
	// The mount points are what the sandbox made besides.
	if want := []string{"/proc", "/sys", "/dev"}; !slices.Equal(p.Created(), want) {
		t.Errorf("created %q, want %q", p.Created(), want)
	}
	for _, c := range p.Created() {
		if err := os.Remove(filepath.Join(upper, c)); err != nil {
			t.Error(err)
		}
	}
	entries, err := os.ReadDir(upper)
	if err != nil || len(entries) != 1 {
		t.Errorf("upper holds %v, error %v; want tmp", entries, err)
	}
}

func TestCreatedMountPoints(t *testing.T) {
	s := spec(t, "true")
	if err := os.Symlink("/real", filepath.Join(s.RootPath, "link")); err != nil {
		t.Fatal(err)
	}
	s.Mounts = []Mount{
		{Target: "/a/b", Type: "tmpfs"}, {Target: "/a/b/c", Type: "tmpfs"}, {Target: "/etc/file", Source: box},
		{Target: "/link/x", Type: "tmpfs"}, {Target: "/dev/extra", Type: "tmpfs"}, {Target: "/tmp", Type: "tmpfs"},
	}
	p, err := Start(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.Wait(); err != nil {
		t.Fatal(err)
	}
	want := []string{"/proc", "/sys", "/dev", "/a", "/a/b", "/etc/file", "/real", "/real/x"}
	if !slices.Equal(p.Created(), want) {
		t.Errorf("created %q, want %q", p.Created(), want)
	}
}

func TestMounts(t *testing.T) {
	needRoot(t)
	src := t.TempDir()
	if err := os.WriteFile(filepath.Join(src, "file"), []byte("bound"), 0o644); err != nil {
		t.Fatal(err)
	}
	clone := func() *os.File {
		fd, err := unix.OpenTree(unix.AT_FDCWD, src, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
		if err != nil {
			t.Fatal(err)
		}
		f := os.NewFile(uintptr(fd), src)
		t.Cleanup(func() { f.Close() })
		return f
	}
	for _, m := range []Mount{
		{Source: src, ReadOnly: true}, {FD: clone(), ReadOnly: true}, {Source: src, Recursive: true, ReadOnly: true},
	} {
		m.Target = "/mnt"
		s := spec(t, "cat", "/mnt/file")
		s.Mounts = []Mount{m}
		if m.FD != nil {
			s.Mounts[0].FD = clone()
		}
		if got := output(t, s); got != "bound" {
			t.Errorf("%+v: %q", m, got)
		}
		if m.FD != nil {
			s.Mounts[0].FD = clone()
		}
		s.Args = []string{"/bin/box", "write", "/mnt/file", "x"}
		if got := refused(t, s); !strings.Contains(got, "read-only") {
			t.Errorf("%+v: %s", m, got)
		}
	}
	// Parts of detached mounts: links in them end at their own root.
	if err := errors.Join(os.Mkdir(filepath.Join(src, "dir"), 0o755), os.Symlink("/file", filepath.Join(src, "dir/link")),
		os.Symlink("/dir", filepath.Join(src, "away")), os.WriteFile(filepath.Join(src, "dir/below"), []byte("below"), 0o644)); err != nil {
		t.Fatal(err)
	}
	for part, want := range map[string]string{"file": "bound", "dir/below": "below", "away/below": "below"} {
		s := spec(t, "cat", "/mnt")
		s.Mounts = []Mount{{Target: "/mnt", FD: clone(), Part: part, ReadOnly: true}}
		shared := &unix.MountAttr{Propagation: unix.MS_SHARED} // as systemd has all
		if err := unix.MountSetattr(int(s.Mounts[0].FD.Fd()), "", unix.AT_EMPTY_PATH, shared); err != nil {
			t.Fatal(err)
		}
		if got := output(t, s); got != want {
			t.Errorf("part %s: %q", part, got)
		}
	}
	s := spec(t, "cat", "/mnt/below")
	s.Mounts = []Mount{{Target: "/mnt", FD: clone(), Part: "dir", ReadOnly: true}}
	if got := output(t, s); got != "below" {
		t.Errorf("directory: %q", got)
	}
	s.Mounts[0].FD, s.Mounts[0].Part = clone(), "missing"
	if _, err := Start(t.Context(), s); err == nil || !strings.Contains(err.Error(), "take missing out of its mount") {
		t.Errorf("a part that is missing: %v", err)
	}
	s = spec(t, "write", "/mnt/new", "x")
	s.Mounts = []Mount{{Target: "/mnt", Source: src}}
	output(t, s)
	if b, err := os.ReadFile(filepath.Join(src, "new")); err != nil || string(b) != "x" {
		t.Errorf("writable bind: %q, %v", b, err)
	}
	s = spec(t, "stat", "/t")
	s.Mounts = []Mount{{Target: "/t", Type: "tmpfs", Mode: 0o750, UID: 5, GID: 6, Size: 1 << 20}}
	if got := output(t, s); got != "40750 5:6 0:0" {
		t.Errorf("tmpfs: %s", got)
	}
	s = spec(t, "write", "/t/x", "x")
	s.Mounts = []Mount{{Target: "/t", Type: "tmpfs", ReadOnly: true}, {Target: "/t/sub", Type: "tmpfs"}}
	refused(t, s)
	s.Args = []string{"/bin/box", "write", "/t/sub/x", "x"}
	output(t, s)
}

func TestBadMounts(t *testing.T) {
	needRoot(t)
	for _, m := range []Mount{
		{Target: "/x"}, {Target: "x", Type: "tmpfs"}, {Target: "/", Type: "tmpfs"}, {Target: "/..", Type: "tmpfs"},
		{Target: "/x", Source: "/missing"}, {Target: "/x", Type: "nonsense"}, {Target: "/x", Type: "tmpfs", Source: "/"},
		{Target: "/bin/box", Type: "tmpfs"}, {Target: "/bin", Source: box}, {Target: "/x", Source: "/", Propagation: "odd"},
		{Target: "/bin/box/x", Type: "tmpfs"}, {Target: "/proc/self/fd/3/x", Type: "tmpfs"},
	} {
		s := spec(t, "true")
		s.Mounts = []Mount{m}
		if p, err := Start(t.Context(), s); err == nil {
			p.Wait()
			t.Errorf("%+v was accepted", m)
		}
	}
}

func TestReadonlyRoot(t *testing.T) {
	s := spec(t, "write", "/tmp/x", "x")
	s.ReadonlyRoot = true
	if got := refused(t, s); !strings.Contains(got, "read-only") {
		t.Error(got)
	}
	s.Mounts = []Mount{{Target: "/tmp", Type: "tmpfs"}}
	output(t, s)
}

func TestDefaultMounts(t *testing.T) {
	if got, want := strings.Fields(output(t, spec(t, "ls", "/dev"))),
		"core fd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero"; strings.Join(got, " ") != want {
		t.Errorf("/dev holds %q, want %q", got, want)
	}
	mounts := output(t, spec(t, "cat", "/proc/self/mounts"))
	for _, want := range []string{
		"proc /proc proc rw,nosuid,nodev,noexec", "sysfs /sys sysfs ro,nosuid,nodev,noexec",
		"/dev tmpfs rw,nosuid,noexec", "/dev/pts devpts rw,nosuid,noexec", "gid=5,mode=620,ptmxmode=666",
		"/dev/shm tmpfs rw,nosuid,nodev,noexec", "size=65536k", "mqueue /dev/mqueue mqueue rw,nosuid,nodev,noexec",
	} {
		if !strings.Contains(mounts, want) {
			t.Errorf("no mount %q in\n%s", want, mounts)
		}
	}
	s := spec(t, "cat", "/proc/self/mounts")
	s.NoDefaultMounts = true
	s.Mounts = []Mount{{Target: "/proc", Type: "proc"}}
	if got := output(t, s); strings.Contains(got, " /dev ") || strings.Contains(got, " /sys ") {
		t.Errorf("default mounts among\n%s", got)
	}
}
