package tree

import (
	"context"
	"errors"
	"fmt"
	"math/rand"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

func needRoot(t testing.TB) {
	t.Helper()
	if OverlayXattr() != opaqueTrusted {
		t.Skip("needs root in the initial user namespace for owners, devices and trusted attributes")
	}
}

// build makes on disk what a tree lists, with made-up contents, and fills in
// sizes and digests.
func build(t testing.TB, dir string, tr *Tree, r *rand.Rand) {
	t.Helper()
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	for i := range tr.Entries {
		e := &tr.Entries[i]
		p := filepath.Join(dir, e.Path)
		e.Source = ""
		switch e.Type {
		case Dir:
			if e.Path != "" {
				check(os.Mkdir(p, 0o700))
			}
			if e.Opaque {
				check(unix.Lsetxattr(p, OverlayXattr(), []byte("y"), 0))
			}
		case File:
			if e.Hardlink != "" {
				check(os.Link(filepath.Join(dir, e.Hardlink), p))
				first, _ := tr.Lookup(e.Hardlink)
				path := e.Path
				*e = *first
				e.Path, e.Hardlink = path, first.Path
				continue
			}
			data := make([]byte, []int{0, 1, 100, 4096, 300000}[r.Intn(5)])
			r.Read(data)
			check(os.WriteFile(p, data, 0o600))
			e.Size, e.Digest = int64(len(data)), digest.FromBytes(data)
		case Symlink:
			check(os.Symlink(e.Link, p))
			e.Xattrs = nil // Linux has no user attributes there
		case Char, Block, Fifo:
			mode := map[Type]uint32{Char: unix.S_IFCHR, Block: unix.S_IFBLK, Fifo: unix.S_IFIFO}[e.Type]
			check(unix.Mknod(p, mode|0o600, int(unix.Mkdev(e.Major, e.Minor))))
			e.Xattrs = nil
		case Whiteout:
			check(unix.Mknod(p, unix.S_IFCHR, 0))
			continue
		}
		delete(e.Xattrs, "security.capability") // must be well-formed to be set
		if len(e.Xattrs) == 0 {
			e.Xattrs = nil
		}
		for k, v := range e.Xattrs {
			check(unix.Lsetxattr(p, k, []byte(v), 0))
		}
		check(os.Lchown(p, e.UID, e.GID))
		if e.Type != Symlink {
			check(unix.Chmod(p, e.Mode))
		}
	}
	for i := len(tr.Entries) - 1; i >= 0; i-- { // contents change their directory's time
		e := &tr.Entries[i]
		if e.Type == Whiteout || e.Hardlink != "" {
			continue
		}
		e.Mtime = 1 + r.Int63n(2e18)
		ts := unix.NsecToTimespec(e.Mtime)
		check(unix.UtimesNanoAt(unix.AT_FDCWD, filepath.Join(dir, e.Path), []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW))
	}
	for i := range tr.Entries {
		if e := &tr.Entries[i]; e.Hardlink != "" {
			first, _ := tr.Lookup(e.Hardlink)
			e.Mtime = first.Mtime
		}
	}
}

func TestScanAgainstModel(t *testing.T) {
	needRoot(t)
	for seed := range 25 {
		r := rand.New(rand.NewSource(int64(seed)))
		want := randomTree(r, 80, true)
		if len(want.Entries) == 0 || want.Entries[0].Path != "" {
			want.Entries = append([]Entry{{Type: Dir, Mode: 0o755}}, want.Entries...)
		}
		dir := t.TempDir()
		build(t, dir, want, r)
		got, err := Scan(t.Context(), dir, ScanOptions{})
		if err != nil {
			t.Fatal(err)
		}
		for i := range min(len(got.Entries), len(want.Entries)) {
			if !reflect.DeepEqual(got.Entries[i], want.Entries[i]) {
				t.Fatalf("seed %d: got\n%+v\nwant\n%+v", seed, got.Entries[i], want.Entries[i])
			}
		}
		if len(got.Entries) != len(want.Entries) {
			t.Fatalf("seed %d: got %d entries, want %d", seed, len(got.Entries), len(want.Entries))
		}
		if err := got.Check(); err != nil {
			t.Error(err)
		}
	}
}

func TestScanLeavesOut(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	outside := t.TempDir()
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	check(os.WriteFile(filepath.Join(outside, "secret"), []byte("x"), 0o600))
	check(os.Symlink(outside, filepath.Join(dir, "link")))
	l, err := net.Listen("unix", filepath.Join(dir, "socket"))
	check(err)
	defer l.Close()
	check(os.WriteFile(filepath.Join(dir, "file"), []byte("x"), 0o600))
	for _, name := range []string{"trusted.overlay.origin", "trusted.overlay.impure", "user.overlay.impure", "trusted.other", "user.kept"} {
		check(unix.Setxattr(filepath.Join(dir, "file"), name, []byte("y"), 0))
	}
	// The opaque mark is one of directories only, and its value counts.
	check(unix.Setxattr(filepath.Join(dir, "file"), "trusted.overlay.opaque", []byte("y"), 0))
	check(unix.Setxattr(dir, "trusted.overlay.opaque", []byte("x"), 0))
	capability := "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	check(unix.Setxattr(filepath.Join(dir, "file"), "security.capability", []byte(capability), 0))
	got, err := Scan(t.Context(), dir, ScanOptions{})
	check(err)
	var paths []string
	for _, e := range got.Entries {
		paths = append(paths, e.Path)
	}
	if want := []string{"", "file", "link"}; !slices.Equal(paths, want) || got.Entries[0].Opaque {
		t.Errorf("got %q, opaque %t, want %q", paths, got.Entries[0].Opaque, want)
	}
	want := map[string]string{"user.kept": "y", "security.capability": capability}
	if x := got.Entries[1].Xattrs; !reflect.DeepEqual(x, want) {
		t.Errorf("got attributes %q, want %q", x, want)
	}

	check(unix.Setxattr(dir, "trusted.overlay.redirect", []byte("/x"), 0))
	if _, err := Scan(t.Context(), dir, ScanOptions{}); !errors.Is(err, ErrRedirected) {
		t.Errorf("redirected directory: %v", err)
	}
}

func TestScanPlain(t *testing.T) {
	dir := t.TempDir()
	for _, d := range []string{"src/deep/er", "skip/this", "empty"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, f := range []string{"src/a", "src/deep/er/b", "skip/this/c", "skip/kept"} {
		if err := os.WriteFile(filepath.Join(dir, f), []byte(f), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Link(filepath.Join(dir, "src/a"), filepath.Join(dir, "src/z")); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mknod(filepath.Join(dir, "src/socket"), unix.S_IFSOCK|0o600, 0); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(t.TempDir(), "context")
	if err := os.Symlink(dir, link); err != nil {
		t.Fatal(err)
	}
	known := &memory{m: map[string]digest.Digest{"src/deep/er/b": "sha256:known"}}
	got, err := Scan(t.Context(), link, ScanOptions{Plain: true, Known: known, Filter: func(p string, _ Type) (keep, descend bool) {
		return !strings.HasPrefix(p, "skip") && p != "empty" || p == "skip/kept", p != "empty" && p != "skip/this"
	}})
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{
		"": "", "src": "", "src/a": digest.FromString("src/a").String(), "src/deep": "", "src/deep/er": "", "src/deep/er/b": "sha256:known",
		"src/z": digest.FromString("src/a").String(), "src/socket": digest.FromString("").String(), "skip": "", "skip/kept": digest.FromString("skip/kept").String(),
	}
	have := map[string]string{}
	for _, e := range got.Entries {
		have[e.Path] = e.Digest.String()
		if want := map[string]string{"src/z": "src/a"}[e.Path]; e.Hardlink != want {
			t.Errorf("%s is a hard link to %q, want %q", e.Path, e.Hardlink, want)
		}
		if e.Path == "src/socket" && e.Type != File {
			t.Errorf("a socket is a %s", e.Type)
		}
	}
	if !reflect.DeepEqual(have, want) {
		t.Errorf("got %q, want %q", have, want)
	}
	slices.Sort(known.put)
	if want := []string{"skip/kept", "src/a"}; !slices.Equal(known.put, want) {
		t.Errorf("read %q, want %q", known.put, want)
	}
}

type memory struct {
	mu  sync.Mutex
	m   map[string]digest.Digest
	put []string
}

func (m *memory) Lookup(path string, _ *unix.Stat_t) (digest.Digest, bool) {
	d, ok := m.m[path]
	return d, ok
}

func (m *memory) Put(path string, _ *unix.Stat_t, _ digest.Digest, _ time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.put = append(m.put, path)
}

func TestScanErrors(t *testing.T) {
	if _, err := Scan(t.Context(), filepath.Join(t.TempDir(), "none"), ScanOptions{}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("missing directory: %v", err)
	}
	dir := t.TempDir()
	writeMany(t, dir, 200)
	ctx, cancel := context.WithCancelCause(t.Context())
	stop := errors.New("stop")
	cancel(stop)
	if _, err := Scan(ctx, dir, ScanOptions{}); !errors.Is(err, stop) {
		t.Errorf("cancelled: %v", err)
	}
}

// TestScanDeep reads a tree whose paths are longer than the kernel takes.
func TestScanDeep(t *testing.T) {
	dir := t.TempDir()
	name := strings.Repeat("d", 200)
	fd, err := unix.Open(dir, unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	for range 50 {
		if err := unix.Mkdirat(fd, name, 0o755); err != nil {
			t.Fatal(err)
		}
		next, err := openat(fd, name, unix.O_DIRECTORY)
		unix.Close(fd)
		if err != nil {
			t.Fatal(err)
		}
		fd = next
	}
	unix.Close(fd)
	got, err := Scan(t.Context(), dir, ScanOptions{})
	if err != nil || len(got.Entries) != 51 {
		t.Fatalf("got %v, %v", got, err)
	}
}

func writeMany(t testing.TB, dir string, n int) {
	t.Helper()
	data := []byte(strings.Repeat("some text\n", 200))
	for i := range n {
		d := filepath.Join(dir, fmt.Sprintf("dir%03d", i/100))
		if i%100 == 0 {
			if err := os.MkdirAll(d, 0o755); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.WriteFile(filepath.Join(d, fmt.Sprint("file", i)), data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func BenchmarkScan(b *testing.B) {
	for _, n := range []int{0, 5, 20000} {
		dir := b.TempDir()
		writeMany(b, dir, n)
		scan := func(o ScanOptions) func(b *testing.B) {
			return func(b *testing.B) {
				for b.Loop() {
					if _, err := Scan(b.Context(), dir, o); err != nil {
						b.Fatal(err)
					}
				}
			}
		}
		b.Run(fmt.Sprintf("%d-files", n), scan(ScanOptions{}))
		b.Run(fmt.Sprintf("%d-files-known", n), scan(ScanOptions{Plain: true, Known: all{}}))
	}
}

// all knows all files.
type all struct{ Digests }

func (all) Lookup(string, *unix.Stat_t) (digest.Digest, bool) { return digest.FromString(""), true }
