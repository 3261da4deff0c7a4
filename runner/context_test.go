package runner

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"kiln.build/cache"
	"kiln.build/cache/tree"
	"kiln.build/solver"
	"kiln.build/solver/op"
)

// TestTimesDoNotCount writes the same content anew.
func TestTimesDoNotCount(t *testing.T) {
	b := newBed(t)
	b.put("f 644 0:0 d/x same")
	c := copyTo("/", "d").vertex()
	one := b.build(c)
	if err := os.WriteFile(filepath.Join(b.dir, "d/x"), []byte("same"), 0o644); err != nil {
		t.Fatal(err)
	}
	two := b.build(c)
	if one.Digest != two.Digest || b.performed("Copy") != 0 {
		t.Errorf("digests %s and %s, ran %q", one.Digest, two.Digest, b.ran)
	}
}

// TestHiddenChange writes other content of the same size and puts the time
// back, right after a build and once the file is remembered.
func TestHiddenChange(t *testing.T) {
	b := newBed(t)
	at := filepath.Join(b.dir, "d/x")
	c := copyTo("/", "d").vertex()
	put := func(text string) {
		f, err := os.OpenFile(at, os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if _, err := f.WriteString(text); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(at, when, when); err != nil {
			t.Fatal(err)
		}
	}
	b.put("f 644 0:0 d/x one")
	for _, text := range []string{"two", "six"} {
		b.build(c)
		put(text)
		wantLines(t, "changed", b.list(b.build(c)), "f 644 0:0 x "+text)
	}
	// The file's ctime has to be older than what the clock may not tell
	// apart, and there is no way but to let it age.
	if testing.Short() {
		t.Skip("waits until a file may be remembered")
	}
	time.Sleep(2100 * time.Millisecond)
	b.build(c)
	put("ten")
	wantLines(t, "remembered, then changed", b.list(b.build(c)), "f 644 0:0 x ten")
}

// TestChangeWhileBuilding changes files after they were selected.
func TestChangeWhileBuilding(t *testing.T) {
	for name, change := range map[string]func(at string) error{
		"content": func(at string) error { return os.WriteFile(at, []byte("new"), 0o644) },
		"longer":  func(at string) error { return os.WriteFile(at, []byte("older"), 0o644) },
		"gone":    os.Remove,
		"a link": func(at string) error {
			if err := os.Remove(at); err != nil {
				return err
			}
			return os.Symlink("/etc/passwd", at)
		},
		"a fifo": func(at string) error {
			if err := os.Remove(at); err != nil {
				return err
			}
			return unix.Mkfifo(at, 0o644)
		},
		"in a link": func(at string) error {
			dir := filepath.Dir(at)
			if err := os.Rename(dir, dir+".old"); err != nil {
				return err
			}
			return os.Symlink(dir+".old", dir)
		},
	} {
		t.Run(strings.ReplaceAll(name, " ", "-"), func(t *testing.T) {
			b := newBed(t)
			b.put("f 644 0:0 d/x old")
			b.events = func(e solver.Event) {
				if _, ok := e.Vertex.Op.(op.Dest); ok && e.Kind == solver.Started {
					if err := change(filepath.Join(b.dir, "d/x")); err != nil {
						t.Error(err)
					}
				}
			}
			_, err := b.try(t.Context(), copyTo("/", "d").vertex())
			wantError(t, name, err, `"/d/x"`)
		})
	}
}

// trap makes a directory in which everything that looks at it is held up or
// fails: names that cannot be opened, and fifos that wait for a writer.
func (b *bed) trap(n int) {
	b.t.Helper()
	for i := range n {
		b.put("p 0 0:0 trap/" + string(rune('a'+i%26)) + "/" + strings.Repeat("x", 1+i/26))
	}
}

// readWatch notes which of some directories and files are read.
type readWatch struct {
	t     *testing.T
	fd    int
	names map[int32]string
	all   []string
}

func watchReads(t *testing.T, dir string, names ...string) *readWatch {
	t.Helper()
	fd, err := unix.InotifyInit1(unix.IN_NONBLOCK | unix.IN_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	w := &readWatch{t: t, fd: fd, names: map[int32]string{}, all: names}
	for _, n := range names {
		wd, err := unix.InotifyAddWatch(fd, filepath.Join(dir, n), unix.IN_ACCESS)
		if err != nil {
			t.Fatal(err)
		}
		w.names[int32(wd)] = n
	}
	return w
}

// read lists, in order of the names, what was read since the last time.
func (w *readWatch) read() (names []string) {
	w.t.Helper()
	seen := map[string]bool{}
	for buf := make([]byte, 64<<10); ; {
		n, err := unix.Read(w.fd, buf)
		if err == unix.EAGAIN {
			break
		}
		if err != nil {
			w.t.Fatal(err)
		}
		for b := buf[:n]; len(b) > 0; {
			wd, size := int32(binary.NativeEndian.Uint32(b)), binary.NativeEndian.Uint32(b[12:])
			if size == 0 { // else what was read is in the directory
				seen[w.names[wd]] = true
			}
			b = b[unix.SizeofInotifyEvent+size:]
		}
	}
	for _, n := range w.all {
		if seen[n] {
			names = append(names, n)
		}
	}
	return names
}

// TestOnlyWhatIsNamedIsLookedAt watches which directories and files are read.
func TestOnlyWhatIsNamedIsLookedAt(t *testing.T) {
	b := newBed(t)
	b.trap(500)
	b.put("f 644 0:0 one.txt 1", "f 644 0:0 other.txt 2", "f 644 0:0 d/x x", "f 644 0:0 d/y y", "f 644 0:0 hidden/x x")
	w := watchReads(t, b.dir, ".", "trap", "trap/a", "one.txt", "other.txt", "d", "d/x", "d/y", "hidden", "hidden/x")
	renew := func() { // so that each is read again
		for _, n := range []string{"one.txt", "other.txt", "d/x", "d/y", "hidden/x"} {
			now := unix.NsecToTimespec(time.Now().UnixNano())
			if err := unix.UtimesNanoAt(unix.AT_FDCWD, filepath.Join(b.dir, n), []unix.Timespec{now, now}, 0); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, c := range []struct {
		sources []string
		want    string
	}{
		{[]string{"one.txt"}, "one.txt"},
		{[]string{"d/x"}, "d/x"},
		{[]string{"one.*"}, ". one.txt"},
		{[]string{"d/[x]"}, "d d/x"},
		{[]string{"d"}, "d d/x d/y"},
	} {
		renew()
		b.build(&solver.Vertex{Op: op.Select{Context: "context", Sources: c.sources}, Volatile: true})
		if got := strings.Join(w.read(), " "); got != c.want && got != ". "+c.want {
			t.Errorf("%q: read %s, want %s", c.sources, got, c.want)
		}
	}
	renew()
	b.build(&solver.Vertex{Op: op.Select{Context: "context", Sources: []string{"."}, Ignore: []string{"trap", "hidden", "other.*"}}, Volatile: true})
	if got := strings.Join(w.read(), " "); got != ". one.txt d d/x d/y" {
		t.Errorf("with ignored ones: read %s", got)
	}
}

// TestChangeWhileReading selects a file that another process writes to all
// the time.
func TestChangeWhileReading(t *testing.T) {
	b := newBed(t)
	at := filepath.Join(b.dir, "busy")
	if err := os.WriteFile(at, make([]byte, 8<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(at, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	done := make(chan struct{})
	var writer sync.WaitGroup
	writer.Go(func() {
		for {
			select {
			case <-done:
				return
			default:
				_, _ = f.Write([]byte("x"))
			}
		}
	})
	_, err = b.try(t.Context(), copyTo("/", "busy").vertex())
	close(done)
	writer.Wait()
	wantError(t, "busy file", err, `"/busy"`, "changed while")
	b.build(copyTo("/", "busy").vertex())
}

// TestLookAgain has a file go and come back between two looks at it.
func TestLookAgain(t *testing.T) {
	for err, want := range map[error]bool{
		errChanged: true,
		&os.PathError{Op: "open", Path: "x", Err: unix.ENOENT}:               true,
		&os.PathError{Op: "open", Path: "x", Err: unix.EACCES}:               false,
		notFound("x", unix.ENOENT, func(string) []string { return nil }, ""): false,
		nil: false,
	} {
		if got := changed(err); got != want {
			t.Errorf("%v: %t", err, got)
		}
	}
}

// TestUnreadable looks at directories and files that may not be read, in a
// process without the rights that root has over all files.
func TestUnreadable(t *testing.T) {
	b := newBed(t)
	b.put("d 0 0:0 d", "f 0 0:0 f f", "d 755 0:0 e", "d 0 0:0 e/d")
	if err := os.Chmod(b.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	own := t.TempDir()
	if err := os.Chown(own, 65534, 65534); err != nil {
		t.Fatal(err)
	}
	var open []*os.File // what they are in may be closed to others
	for _, path := range []string{b.dir, own, "/proc/self/exe"} {
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		open = append(open, f)
	}
	sources := []string{"d", "d/x", "d/*", "f", "e"}
	c := exec.Command("/proc/self/fd/5", sources...)
	c.ExtraFiles, c.Stderr, c.Dir = open, os.Stderr, "/"
	c.Env = append(os.Environ(), unreadable+"=/proc/self/fd/3")
	c.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	out, err := c.Output()
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []string{`"/d"`, `"/d/x"`, `"/d"`, `"/f"`, `"/e/d"`} {
		said, rest, _ := strings.Cut(string(out), "\n")
		wantError(t, sources[i], errors.New(said), want, "permission denied")
		out = []byte(rest)
	}
}

// unreadable has a process print why it cannot select each of its arguments in
// this directory.
const unreadable = "KILN_TEST_UNREADABLE"

func selectEach(dir string, sources []string) error {
	s, err := cache.Open("/proc/self/fd/4/store", cache.Options{})
	if err != nil {
		return err
	}
	defer s.Close()
	r := &Runner{Store: s, Contexts: map[string]Context{"context": {Dir: dir}}}
	defer r.Close()
	c, err := r.context("context")
	if err != nil {
		return err
	}
	c.stats = func() (*cache.StatCache, error) { return s.StatCache("/") } // it has the name nowhere else
	for _, source := range sources {
		_, err := r.selectLocal(context.Background(), op.Select{Context: "context", Sources: []string{source}})
		fmt.Println(err)
	}
	return nil
}

func TestSelections(t *testing.T) {
	b := newBed(t)
	context := []string{"f 644 0:0 a/b/c/x x", "f 755 0:0 a/b/y y", "f 600 0:0 a/z z", "d 700 0:0 a", "l 777 0:0 link a"}
	b.put(context...)
	stage := b.stage("d 700 0:0 a", "d 755 0:0 a/b", "d 755 0:0 a/b/c", "f 644 0:0 a/b/c/x x", "f 755 0:0 a/b/y y", "f 600 0:0 a/z z", "l 777 0:0 link a")
	for _, c := range []struct {
		name string
		o    op.Select
		want []string
		err  string
	}{
		{"parents", op.Select{Sources: []string{"a/b/y"}, Parents: true}, []string{"d 700 0:0 a", "d 755 0:0 a/b", "f 755 0:0 a/b/y y"}, ""},
		{"parents of a dir", op.Select{Sources: []string{"a/b/c"}, Parents: true}, []string{"d 700 0:0 a", "d 755 0:0 a/b", "d 755 0:0 a/b/c", "f 644 0:0 a/b/c/x x"}, ""},
		{"pivot", op.Select{Sources: []string{"a/./b/y"}, Parents: true}, []string{"d 755 0:0 b", "f 755 0:0 b/y y"}, ""},
		{"pivot after a wildcard", op.Select{Sources: []string{"*/./b/y"}, Parents: true}, []string{"d 755 0:0 b", "f 755 0:0 b/y y"}, ""},
		{"parents and wildcard", op.Select{Sources: []string{"a/*/y"}, Parents: true}, []string{"d 700 0:0 a", "d 755 0:0 a/b", "f 755 0:0 a/b/y y"}, ""},
		{"parents and any depth", op.Select{Sources: []string{"a/**/x"}, Parents: true}, []string{"d 700 0:0 a", "d 755 0:0 a/b", "d 755 0:0 a/b/c", "f 644 0:0 a/b/c/x x"}, ""},
		{"parents, missing", op.Select{Sources: []string{"a/q"}, Parents: true}, nil, `"/a/q": not found`},
		{"parents through a link", op.Select{Sources: []string{"link/z"}, Parents: true}, nil, `"/link/z": not found`},
		{"parents, any depth, missing", op.Select{Sources: []string{"q/**/x"}, Parents: true}, []string{}, ""},
		{"exclude", op.Select{Sources: []string{"a"}, Exclude: []string{"b/c"}}, []string{"d 755 0:0 b", "f 755 0:0 b/y y", "f 600 0:0 z z"}, ""},
		{"exclude at any depth", op.Select{Sources: []string{"a"}, Exclude: []string{"**/y", "z"}}, []string{"d 755 0:0 b", "d 755 0:0 b/c", "f 644 0:0 b/c/x x"}, ""},
		{"exclude but", op.Select{Sources: []string{"a"}, Exclude: []string{"*", "!b/y"}}, []string{"d 755 0:0 b", "f 755 0:0 b/y y"}, ""},
		{"exclude what is named", op.Select{Sources: []string{"a/z"}, Exclude: []string{"z"}}, []string{"f 600 0:0 z z"}, ""},
		{"git modes", op.Select{Sources: []string{"a"}, GitModes: true}, []string{"d 755 0:0 b", "d 755 0:0 b/c", "f 644 0:0 b/c/x x", "f 755 0:0 b/y y", "f 644 0:0 z z"}, ""},
	} {
		for _, from := range []*solver.Vertex{nil, stage} {
			if from != nil && c.o.GitModes {
				continue
			}
			out, err := b.try(t.Context(), copying{from: from, sel: c.o, dst: "/"}.vertex())
			switch {
			case c.err != "":
				wantError(t, c.name, err, c.err)
			case err != nil:
				t.Errorf("%s: %v", c.name, err)
			default:
				wantLines(t, c.name, b.list(out), c.want...)
			}
		}
	}
}

// TestInline is a COPY of heredocs.
func TestInline(t *testing.T) {
	b := newBed(t)
	sel := &solver.Vertex{Op: op.Inline{Files: []op.InlineFile{{Name: "x", Data: []byte("1\n")}, {Name: "a", Data: nil}}}, Volatile: true}
	dest := &solver.Vertex{Op: op.Dest{Path: "/d/"}, Inputs: []*solver.Vertex{scratch, sel}}
	v := &solver.Vertex{Op: op.Copy{Chmod: "755"}, Inputs: []*solver.Vertex{dest, sel}, Using: []*solver.Vertex{sel}, Below: scratch}
	wantLines(t, "inline", b.list(b.build(v)), "d 755 0:0 d", "f 755 0:0 d/a", "f 755 0:0 d/x 1\n")
}

// TestSameContentOfTwoPlaces copies equal files of a context and a stage.
func TestSameContentOfTwoPlaces(t *testing.T) {
	b := newBed(t)
	b.put("f 644 0:0 x same")
	one := b.build(copyTo("/", "x").vertex())
	two := b.build(copying{from: b.stage("f 644 0:0 x same"), sel: op.Select{Sources: []string{"x"}}, dst: "/"}.vertex())
	if one.Digest != two.Digest || b.performed("Copy") != 0 {
		t.Errorf("digests %s and %s, ran %q", one.Digest, two.Digest, b.ran)
	}
}

func TestChmod(t *testing.T) {
	for _, c := range []struct {
		text string
		from uint32
		typ  tree.Type
		want uint32
	}{
		{"", 0o640, tree.File, 0o640},
		{"0", 0o640, tree.File, 0},
		{"u=rwx,go=", 0o644, tree.File, 0o700},
		{"+x", 0o644, tree.File, 0o755},
		{"a-w", 0o666, tree.File, 0o444},
		{"g=u", 0o640, tree.File, 0o660},
		{"o=g-w", 0o660, tree.File, 0o664},
		{"u+s,g+s", 0o755, tree.File, 0o6755},
		{"+t", 0o755, tree.Dir, 0o1755},
		{"u=rwx", 0o6755, tree.Dir, 0o2755},
		{"u=rwx", 0o4755, tree.File, 0o755},
		{"X", 0, tree.File, 0},
		{"a+X", 0o644, tree.File, 0o644},
		{"a+X", 0o744, tree.File, 0o755},
	} {
		m, err := parseChmod(c.text)
		if c.text == "X" {
			if err == nil {
				t.Errorf("%q is accepted", c.text)
			}
			continue
		}
		if err != nil {
			t.Error(err)
			continue
		}
		if got := m.apply(c.from, c.typ == tree.Dir); got != c.want {
			t.Errorf("%q of %o: %o, want %o", c.text, c.from, got, c.want)
		}
	}
}
