package runner

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"kiln.build/cache"
	"kiln.build/cache/tree"
	"kiln.build/runner/sandbox"
	"kiln.build/runner/sandbox/sandboxtest"
	"kiln.build/solver"
	"kiln.build/solver/op"
)

// doFile is the static program from testdata/do.
var doFile string

func TestMain(m *testing.M) {
	sandbox.MaybeInit()
	if dir := os.Getenv(unreadable); dir != "" {
		if err := selectEach(dir, os.Args[1:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(runTests(m))
}

func runTests(m *testing.M) int {
	// Nothing that is made may depend on it.
	unix.Umask(0o077)
	dir, err := os.MkdirTemp("", "runner-test")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	doFile = filepath.Join(dir, "do")
	if err := sandboxtest.Build(doFile, "./testdata/do"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	if err := sandboxtest.Init(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return m.Run()
}

// when is the modification time of what tests make.
var when = time.Unix(1_000_000_000, 5).UTC()

// bed is a store and a local context, in which builds are made one after
// another.
type bed struct {
	t     testing.TB
	store *cache.Store
	dir   string // of the context

	setup   func(*Runner) // before each build, may be nil
	mayWarn bool

	mu     sync.Mutex
	logs   [3]bytes.Buffer
	warned []string
	ran    []string // op types that were performed, as in "Copy"
	events func(solver.Event)
}

func newBed(t testing.TB) *bed {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: it makes files of other owners, and overlay mounts")
	}
	s, err := cache.Open(filepath.Join(t.TempDir(), "store"), cache.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return &bed{t: t, store: s, dir: t.TempDir()}
}

// Event implements solver.Sink.
func (b *bed) Event(e solver.Event) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch e.Kind {
	case solver.Logged:
		b.logs[e.Stream].Write(e.Data)
	case solver.Warned:
		b.warned = append(b.warned, e.Name)
	case solver.Started:
		b.ran = append(b.ran, strings.TrimPrefix(fmt.Sprintf("%T", e.Vertex.Op), "op."))
	}
	if b.events != nil {
		b.events(e)
	}
}

// try builds a vertex with a runner of its own, as a process would.
func (b *bed) try(ctx context.Context, v *solver.Vertex) (solver.Output, error) {
	b.t.Helper()
	b.mu.Lock()
	b.logs, b.ran = [3]bytes.Buffer{}, nil
	b.mu.Unlock()
	r := &Runner{Store: b.store, Contexts: map[string]Context{"context": {Dir: b.dir}}}
	if b.setup != nil {
		b.setup(r)
	}
	s := &solver.Solver{Cache: b.store, Runner: r, Events: b, Jobs: 4, Reuse: r.Reuse}
	outs, err := s.Solve(ctx, v)
	if closeErr := r.Close(); closeErr != nil {
		b.t.Error(closeErr)
	}
	if len(b.warned) > 0 && !b.mayWarn {
		b.t.Errorf("warnings: %q", b.warned)
	}
	if err != nil {
		return solver.Output{}, err
	}
	return outs[0], nil
}

func (b *bed) build(v *solver.Vertex) solver.Output {
	b.t.Helper()
	out, err := b.try(b.t.Context(), v)
	if err != nil {
		b.t.Fatal(err)
	}
	return out
}

// performed counts the actions of a type in the last build.
func (b *bed) performed(name string) int {
	n := 0
	for _, r := range b.ran {
		if r == name {
			n++
		}
	}
	return n
}

// list is what a stack shows, a line for each path but the root, as put
// takes them.
func (b *bed) list(out solver.Output) []string {
	b.t.Helper()
	idx, err := b.store.Index(out.Layers)
	if err != nil {
		b.t.Fatal(err)
	}
	lines := []string{}
	err = idx.Walk("", func(e tree.Entry, layer int) error {
		if e.Path != "" {
			at := filepath.Join(layerDir(b.t, b.store, out.Layers[layer].Digest), e.Path)
			b.onDisk(at, &e)
			lines = append(lines, line(&e, at))
		}
		return nil
	})
	if err != nil {
		b.t.Fatal(err)
	}
	return lines
}

// layer is what a stack's top layer holds, the root included.
func (b *bed) layer(out solver.Output) []string {
	b.t.Helper()
	top := out.Layers[len(out.Layers)-1]
	t, err := b.store.Tree(top.Digest)
	if err != nil {
		b.t.Fatal(err)
	}
	lines := []string{}
	for i := range t.Entries {
		e := &t.Entries[i]
		at := filepath.Join(layerDir(b.t, b.store, top.Digest), e.Path)
		b.onDisk(at, e)
		lines = append(lines, line(e, at))
	}
	return lines
}

// onDisk checks that what a listing says is so.
func (b *bed) onDisk(at string, e *tree.Entry) {
	b.t.Helper()
	var st unix.Stat_t
	if err := unix.Lstat(at, &st); err != nil {
		b.t.Errorf("%s: %v", e.Path, err)
		return
	}
	if e.Type == tree.Whiteout {
		return
	}
	if e.Type != tree.Symlink && st.Mode&0o7777 != e.Mode || int(st.Uid) != e.UID || int(st.Gid) != e.GID || st.Mtim.Nano() != e.Mtime || e.Type == tree.File && st.Size != e.Size {
		b.t.Errorf("%s: listed as %+v, on disk it is mode %o, %d:%d, size %d, time %d", e.Path, *e, st.Mode, st.Uid, st.Gid, st.Size, st.Mtim.Nano())
	}
	for name, want := range e.Xattrs {
		buf := make([]byte, 100)
		if n, err := unix.Lgetxattr(at, name, buf); err != nil || string(buf[:n]) != want {
			b.t.Errorf("%s: %s is %q, %v", e.Path, name, buf[:max(n, 0)], err)
		}
	}
}

func line(e *tree.Entry, at string) string {
	if e.Type == tree.Whiteout {
		return "w " + e.Path
	}
	mode := e.Mode
	if e.Type == tree.Symlink {
		mode = 0o777
	}
	s := fmt.Sprintf("%c %o %d:%d %s", e.Type, mode, e.UID, e.GID, e.Path)
	switch {
	case e.Hardlink != "":
		s = strings.Replace(s, "f", "h", 1) + " " + e.Hardlink
	case e.Type == tree.Symlink:
		s += " " + e.Link
	case e.Type == tree.File && e.Size > 40:
		s += fmt.Sprintf(" [%d]", e.Size)
	case e.Type == tree.File && e.Size > 0:
		data, err := os.ReadFile(at)
		if err != nil {
			return err.Error()
		}
		s += " " + string(data)
	}
	if e.Opaque {
		s += " opaque"
	}
	return s
}

// entry is a line of a file system: type (d, f, l, p or h for a hard link),
// mode, owner, path and content or target.
type entry struct {
	kind     string
	mode     uint32
	uid, gid int
	path     string
	rest     string
}

func parse(t testing.TB, text string) entry {
	t.Helper()
	f := strings.SplitN(text, " ", 5)
	if len(f) < 4 {
		t.Fatalf("line %q", text)
	}
	mode, err := strconv.ParseUint(f[1], 8, 32)
	if err != nil {
		t.Fatal(err)
	}
	e := entry{kind: f[0], mode: uint32(mode), path: f[3]}
	if _, err := fmt.Sscanf(f[2], "%d:%d", &e.uid, &e.gid); err != nil {
		t.Fatal(err)
	}
	if len(f) == 5 {
		e.rest = f[4]
	}
	return e
}

// put makes files in the context.
func (b *bed) put(lines ...string) {
	b.t.Helper()
	put(b.t, b.dir, lines...)
}

func put(t testing.TB, dir string, lines ...string) {
	t.Helper()
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	stamp := unix.NsecToTimespec(when.UnixNano())
	for _, text := range lines {
		e := parse(t, text)
		at := filepath.Join(dir, e.path)
		if up := filepath.Dir(at); up != dir {
			if _, err := os.Lstat(up); err != nil {
				put(t, dir, "d 755 0:0 "+path.Dir(e.path))
			}
		}
		switch e.kind {
		case "d":
			if err := os.Mkdir(at, 0o755); !os.IsExist(err) {
				check(err)
			}
		case "f":
			check(os.WriteFile(at, []byte(e.rest), 0o600))
		case "l":
			check(os.Symlink(e.rest, at))
		case "p":
			check(unix.Mkfifo(at, 0o600))
		case "h":
			check(os.Link(filepath.Join(dir, e.rest), at))
			continue
		}
		check(os.Lchown(at, e.uid, e.gid))
		if e.kind != "l" {
			check(unix.Chmod(at, e.mode))
		}
	}
	for _, text := range lines {
		at := filepath.Join(dir, parse(t, text).path)
		check(unix.UtimesNanoAt(unix.AT_FDCWD, at, []unix.Timespec{stamp, stamp}, unix.AT_SYMLINK_NOFOLLOW))
	}
}

// archived is a tar archive of files.
func archived(t testing.TB, lines ...string) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, text := range lines {
		e := parse(t, text)
		h := &tar.Header{Name: e.path, Mode: int64(e.mode), Uid: e.uid, Gid: e.gid, ModTime: when, Format: tar.FormatPAX}
		body := ""
		switch e.kind {
		case "d":
			h.Typeflag, h.Name = tar.TypeDir, e.path+"/"
		case "f":
			h.Typeflag, body = tar.TypeReg, e.rest
			if e.rest == "[do]" {
				data, err := os.ReadFile(doFile)
				if err != nil {
					t.Fatal(err)
				}
				body = string(data)
			}
			if e.rest == "[capable]" {
				h.PAXRecords = map[string]string{"SCHILY.xattr.security.capability": capability}
			}
			h.Size = int64(len(body))
		case "l":
			h.Typeflag, h.Linkname = tar.TypeSymlink, e.rest
		case "p":
			h.Typeflag = tar.TypeFifo
		case "h":
			h.Typeflag, h.Linkname = tar.TypeLink, e.rest
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, body); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// capability is cap_net_raw=ep as the kernel keeps it.
const capability = "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"

// stage is a root file system of files.
func (b *bed) stage(lines ...string) *solver.Vertex {
	b.t.Helper()
	at := filepath.Join(b.t.TempDir(), "root.tar")
	if err := os.WriteFile(at, archived(b.t, lines...), 0o600); err != nil {
		b.t.Fatal(err)
	}
	return b.tarAt(at)
}

func (b *bed) tarAt(path string) *solver.Vertex {
	return &solver.Vertex{Op: op.Tar{Path: path}, Volatile: true}
}

var scratch = &solver.Vertex{Op: op.Scratch{}}

// local selects in the context.
func local(o op.Select) *solver.Vertex {
	o.Context = "context"
	return &solver.Vertex{Op: o, Volatile: true}
}

// copying is a COPY, as the frontend makes it.
type copying struct {
	root   *solver.Vertex // nil: scratch
	from   *solver.Vertex // nil: the context
	sel    op.Select
	dst    string
	chown  string
	chmod  string
	unpack bool
}

func copyTo(dst string, sources ...string) copying {
	return copying{dst: dst, sel: op.Select{Sources: sources}}
}

func (c copying) vertex() *solver.Vertex {
	if c.root == nil {
		c.root = scratch
	}
	var sel, using *solver.Vertex
	if c.from == nil {
		sel = local(c.sel)
		using = sel
	} else {
		sel = &solver.Vertex{Op: c.sel, Inputs: []*solver.Vertex{c.from}}
		using = c.from
	}
	dest := &solver.Vertex{Op: op.Dest{Path: c.dst, Owner: c.chown, Unpack: c.unpack}, Inputs: []*solver.Vertex{c.root, sel}}
	if c.unpack {
		dest.Using = []*solver.Vertex{using}
	}
	return &solver.Vertex{
		Op:     op.Copy{Chmod: c.chmod, Unpack: c.unpack},
		Inputs: []*solver.Vertex{dest, sel}, Using: []*solver.Vertex{using}, Below: c.root,
	}
}

// wantLines compares listings, in any order.
func wantLines(t testing.TB, what string, got []string, want ...string) {
	t.Helper()
	got, want = slices.Sorted(slices.Values(got)), slices.Sorted(slices.Values(want))
	if !slices.Equal(got, want) {
		t.Errorf("%s:\n%s\nwant:\n%s", what, strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// wantError checks that an error says all of some things.
func wantError(t testing.TB, what string, err error, want ...string) {
	t.Helper()
	if err == nil {
		t.Errorf("%s: no error, want one with %q", what, want)
		return
	}
	for _, w := range want {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("%s: %q, want %q in it", what, err, w)
		}
	}
}

// layerDir is where a layer's files are.
func layerDir(t testing.TB, s *cache.Store, d digest.Digest) string {
	t.Helper()
	dir, err := s.LayerDir(t.Context(), d)
	if err != nil {
		t.Fatal(err)
	}
	return dir
}
