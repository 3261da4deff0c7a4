package cache

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"kiln.build/cache/tree"
	"kiln.build/solver"
)

func openTest(t testing.TB, root string, o Options) *Store {
	t.Helper()
	s, err := Open(root, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// reopen is openTest for a store that the test closes itself.
func reopen(t testing.TB, root string, o Options) *Store {
	t.Helper()
	s, err := Open(root, o)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func closeTest(t testing.TB, s *Store) {
	t.Helper()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

// putLayer commits a layer of the given files.
func putLayer(t testing.TB, s *Store, files map[string]string) solver.Layer {
	t.Helper()
	d, err := s.NewLayer()
	if err != nil {
		t.Fatal(err)
	}
	for name, data := range files {
		p := filepath.Join(d.FS, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(data), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return commitDraft(t, d)
}

// commitDraft commits what is in a draft.
func commitDraft(t testing.TB, d *Draft) solver.Layer {
	t.Helper()
	tr, err := tree.Scan(context.Background(), d.FS, tree.ScanOptions{})
	if err != nil {
		t.Fatal(err)
	}
	l, err := d.Commit(context.Background(), tr)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func action(text string) *solver.Action {
	return &solver.Action{Key: digest.FromString(text), Description: text, Step: &solver.Step{Name: "step " + text}}
}

func save(t testing.TB, s *Store, text string, r solver.Result) digest.Digest {
	t.Helper()
	a := action(text)
	if err := s.Save(context.Background(), a, r); err != nil {
		t.Fatal(err)
	}
	return a.Key
}

// A store lets nobody else in, whoever made its directory or opened it up.
func TestOpenClosesToOthers(t *testing.T) {
	root := t.TempDir()
	if err := os.Mkdir(filepath.Join(root, "volumes"), 0o755); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := os.Chmod(root, 0o777); err != nil {
			t.Fatal(err)
		}
		closeTest(t, reopen(t, root, Options{}))
		if fi, err := os.Stat(root); err != nil || fi.Mode().Perm() != 0o700 {
			t.Errorf("store: %v, %v", fi.Mode(), err)
		}
	}
}

func isMiss(err error) bool { return errors.Is(err, solver.ErrMiss) }

func TestOpen(t *testing.T) {
	root := filepath.Join(t.TempDir(), "deep", "store")
	old := unix.Umask(0o077)
	s := reopen(t, root, Options{})
	unix.Umask(old)
	if fi, err := os.Stat(root); err != nil || fi.Mode().Perm() != 0o700 {
		t.Errorf("store: %v, %v", fi.Mode(), err)
	}
	for _, p := range parts {
		if fi, err := os.Stat(filepath.Join(root, p.name)); err != nil || fi.Mode().Perm() != p.mode {
			t.Errorf("%s: %v, %v", p.name, fi.Mode(), err)
		}
	}
	if s.Root() != root {
		t.Errorf("Root() = %q", s.Root())
	}
	dir, err := s.Scratch("test")
	if err != nil {
		t.Fatal(err)
	}
	closeTest(t, s)
	if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("scratch directory stays: %v", err)
	}
	for range 2 { // what one has left the next one takes over
		s = reopen(t, root, Options{})
		putLayer(t, s, map[string]string{"f": ""})
		closeTest(t, s)
	}
	if left, _ := os.ReadDir(filepath.Join(root, "tmp")); len(left) != 2 || !clean(s.proc.dir) {
		t.Errorf("tmp holds %v", left)
	}
}

func TestOpenRefuses(t *testing.T) {
	t.Run("unknown version", func(t *testing.T) {
		root := t.TempDir()
		closeTest(t, reopen(t, root, Options{}))
		if err := os.WriteFile(filepath.Join(root, "version"), []byte("kiln store 7\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		before := list(t, root)
		_, err := Open(root, Options{})
		var version *VersionError
		if !errors.As(err, &version) || version.Found != "kiln store 7" || version.Supported != storeVersion {
			t.Fatalf("got %v", err)
		}
		for _, part := range []string{root, `"kiln store 7"`, `"kiln store 1"`} {
			if !strings.Contains(err.Error(), part) {
				t.Errorf("%q does not tell %q", err, part)
			}
		}
		if after := list(t, root); !reflect.DeepEqual(before, after) {
			t.Errorf("the store was touched: before\n%q\nafter\n%q", before, after)
		}
	})
	t.Run("other directory", func(t *testing.T) {
		root := t.TempDir()
		if err := os.WriteFile(filepath.Join(root, "thesis.tex"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := Open(root, Options{})
		if err == nil || !strings.Contains(err.Error(), `"thesis.tex"`) {
			t.Errorf("got %v", err)
		}
		if names := list(t, root); len(names) != 2 {
			t.Errorf("the directory was touched: %q", names)
		}
	})
	t.Run("a file", func(t *testing.T) {
		root := filepath.Join(t.TempDir(), "file")
		if err := os.WriteFile(root, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(root, Options{}); !errors.Is(err, unix.ENOTDIR) {
			t.Errorf("got %v", err)
		}
	})
}

func list(t *testing.T, dir string) []string {
	t.Helper()
	var names []string
	err := filepath.WalkDir(dir, func(p string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		fi, err := e.Info()
		names = append(names, fmt.Sprint(p, " ", fi.Mode(), " ", fi.ModTime()))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}

func TestLayer(t *testing.T) {
	s := openTest(t, t.TempDir(), Options{})
	d, err := s.NewLayer()
	if err != nil {
		t.Fatal(err)
	}
	if fi, err := os.Stat(d.FS); err != nil || fi.Mode().Perm() != 0o755 {
		t.Errorf("FS: %v, %v", fi.Mode(), err)
	}
	// overlayfs leaves a directory without permissions.
	if err := os.MkdirAll(filepath.Join(d.Work, "work"), 0); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(d.FS, "hello"), []byte("hello\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	tr, err := tree.Scan(t.Context(), d.FS, tree.ScanOptions{})
	if err != nil {
		t.Fatal(err)
	}
	before := time.Now()
	l, err := d.Commit(t.Context(), tr)
	if err != nil {
		t.Fatal(err)
	}
	if l.Digest != tr.Digest() || l.Size != 6 || l.Created.Before(before.Add(-time.Second)) {
		t.Errorf("got %+v", l)
	}
	if b, err := os.ReadFile(filepath.Join(layerDir(t, s, l.Digest), "hello")); string(b) != "hello\n" {
		t.Errorf("content %q, %v", b, err)
	}
	if err := d.Discard(); err != nil {
		t.Error(err)
	}
	if _, err := d.Commit(t.Context(), tr); err == nil {
		t.Error("a draft was committed twice")
	}
	if again := putLayer(t, s, map[string]string{"hello": "hello\n"}); again.Digest != l.Digest {
		t.Errorf("an equal layer is %s, not %s", again.Digest, l.Digest)
	}

	other := openTest(t, s.Root(), Options{})
	got, err := other.Tree(l.Digest)
	if err != nil || got.Digest() != l.Digest {
		t.Errorf("tree %v, %v", got, err)
	}
	x, err := other.Index([]solver.Layer{l, putLayer(t, s, map[string]string{"world": "w"})})
	if err != nil || strings.Join(x.ReadDir(""), " ") != "hello world" {
		t.Errorf("index %v, %v", x, err)
	}

	// What a draft was said to be counts if it becomes that.
	for _, files := range []map[string]string{{}, {"f": "content"}} {
		told, err := s.NewLayer()
		if err == nil {
			err = told.Describe(&tree.Tree{Entries: []tree.Entry{{Path: "elsewhere", Type: tree.Dir, Mode: 0o700}}})
		}
		for name, data := range files {
			err = errors.Join(err, os.WriteFile(filepath.Join(told.FS, name), []byte(data), 0o644))
		}
		if err != nil {
			t.Fatal(err)
		}
		if l := commitDraft(t, told); l.Digest != putLayer(t, s, files).Digest {
			t.Errorf("%v: the layer is %s", files, l.Digest)
		}
	}

	bad, err := s.NewLayer()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := bad.Commit(t.Context(), &tree.Tree{Entries: []tree.Entry{{Path: "../x", Type: tree.Dir}}}); err == nil {
		t.Error("a wrong tree was committed")
	}
	if left, _ := filepath.Glob(s.proc.dir + "/layer*"); len(left) > 0 {
		t.Errorf("drafts left %q", left)
	}
}

func TestAction(t *testing.T) {
	root := t.TempDir()
	s := openTest(t, root, Options{})
	other := openTest(t, root, Options{})
	l := putLayer(t, s, map[string]string{"f": "1"})
	l.Origin = &solver.Origin{DiffID: "sha256:x", MediaType: "m", Blob: "sha256:y", Size: 5}
	blob, err := s.PutBlob([]byte("listing"))
	if err != nil {
		t.Fatal(err)
	}
	results := map[string]solver.Result{
		"layers":   {Digest: solver.StackDigest([]solver.Layer{l}), Layers: []solver.Layer{l}},
		"no stack": {Digest: digest.FromString("x"), Data: []byte(`{"a":1}`)},
		"scratch":  {Digest: solver.StackDigest(nil), Layers: []solver.Layer{}},
		"blob":     {Digest: digest.FromString("y"), Blob: blob},
		"new\nline\n": {
			Digest: digest.FromString("z"),
		},
	}
	for name, want := range results {
		if _, err := s.Lookup(t.Context(), digest.FromString(name)); !isMiss(err) {
			t.Errorf("%s: before Save: %v", name, err)
		}
		key := save(t, s, name, want)
		got, err := other.Lookup(t.Context(), key)
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: got %+v, %v, want %+v", name, got, err, want)
		}
		if (got.Layers == nil) != (want.Layers == nil) {
			t.Errorf("%s: a stack of nothing became nothing", name)
		}
	}
	var names []string
	err = s.Records(t.Context(), func(r *Record) error {
		names = append(names, r.Name)
		if r.Name != "step "+r.Description || time.Since(r.LastUsed) > time.Minute || time.Since(r.Created) > time.Minute {
			t.Errorf("record %+v", r)
		}
		return nil
	})
	if err != nil || len(names) != len(results) {
		t.Errorf("records %q, %v", names, err)
	}
	if err := s.Save(t.Context(), &solver.Action{Key: "sha256:short"}, solver.Result{}); err == nil {
		t.Error("a malformed key was saved")
	}
	if _, err := s.Lookup(t.Context(), "../../etc"); err == nil || isMiss(err) {
		t.Errorf("malformed key: %v", err)
	}
}

func TestPromises(t *testing.T) {
	s := openTest(t, t.TempDir(), Options{})
	blob, err := s.PutBlob([]byte("b"))
	if err != nil {
		t.Fatal(err)
	}
	corrupt := func(path string, change func([]byte) []byte) {
		t.Helper()
		b, err := os.ReadFile(path)
		if err == nil {
			err = os.WriteFile(path, change(b), 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	flip := func(b []byte) []byte { b[len(b)-1] ^= 1; return b }
	cut := func(b []byte) []byte { return b[:0] }
	var l solver.Layer
	tests := map[string]func(key digest.Digest){
		"layer gone":     func(digest.Digest) { os.RemoveAll(s.layerPath(l.Digest)) },
		"files gone":     func(digest.Digest) { os.RemoveAll(layerDir(t, s, l.Digest)) },
		"tree gone":      func(digest.Digest) { os.Remove(filepath.Join(s.layerPath(l.Digest), "tree")) },
		"invalidated":    func(digest.Digest) { _ = s.Invalidate(l.Digest) },
		"blob gone":      func(digest.Digest) { os.Remove(s.hashed("blobs", blob)) },
		"record flipped": func(key digest.Digest) { corrupt(s.hashed("actions", key), flip) },
		"record empty":   func(key digest.Digest) { corrupt(s.hashed("actions", key), cut) },
		"record of another": func(key digest.Digest) {
			other := save(t, s, "other", solver.Result{})
			corrupt(s.hashed("actions", key), func([]byte) []byte {
				b, _ := os.ReadFile(s.hashed("actions", other))
				return b
			})
		},
		"tree flipped": func(digest.Digest) {
			corrupt(filepath.Join(s.layerPath(l.Digest), "tree"), flip)
			s.trees = map[digest.Digest]*tree.Tree{} // as another process has it
			if _, err := s.Tree(l.Digest); !errors.Is(err, tree.ErrCorrupt) {
				t.Errorf("tree: %v", err)
			}
		},
		"blob flipped": func(digest.Digest) {
			corrupt(s.hashed("blobs", blob), flip)
			if _, err := s.Blob(blob); !errors.Is(err, ErrCorrupt) {
				t.Errorf("blob: %v", err)
			}
		},
	}
	for name, harm := range tests {
		t.Run(name, func(t *testing.T) {
			l = putLayer(t, s, map[string]string{"f": "1"})
			if _, err := s.PutBlob([]byte("b")); err != nil {
				t.Fatal(err)
			}
			key := save(t, s, "key", solver.Result{Layers: []solver.Layer{l}, Blob: blob})
			if _, err := s.Lookup(t.Context(), key); err != nil {
				t.Fatal(err)
			}
			harm(key)
			if _, err := s.Lookup(t.Context(), key); !isMiss(err) {
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestBlob(t *testing.T) {
	s := openTest(t, t.TempDir(), Options{})
	d, err := s.PutBlob([]byte("text"))
	if err != nil || d != digest.FromString("text") {
		t.Fatal(d, err)
	}
	if b, err := s.Blob(d); string(b) != "text" || err != nil {
		t.Errorf("got %q, %v", b, err)
	}
	if _, err := s.Blob(digest.FromString("none")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("missing blob: %v", err)
	}
}

func TestReadOnly(t *testing.T) {
	root := t.TempDir()
	if _, err := Open(root, Options{ReadOnly: true}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no store: %v", err)
	}
	s := reopen(t, root, Options{})
	l := putLayer(t, s, map[string]string{"f": "1"})
	key := save(t, s, "a", solver.Result{Layers: []solver.Layer{l}})
	closeTest(t, s)
	before := list(t, root)
	ro := openTest(t, root, Options{ReadOnly: true})
	if _, err := ro.Lookup(t.Context(), key); err != nil {
		t.Error(err)
	}
	if _, err := ro.Tree(l.Digest); err != nil {
		t.Error(err)
	}
	_, draftErr := ro.NewLayer()
	_, blobErr := ro.PutBlob(nil)
	_, scratchErr := ro.Scratch("x")
	for _, err := range []error{draftErr, blobErr, scratchErr, ro.Save(t.Context(), action("b"), solver.Result{}), ro.Sync(t.Context()), ro.Invalidate(l.Digest)} {
		if !errors.Is(err, ErrReadOnly) {
			t.Errorf("got %v", err)
		}
	}
	if after := list(t, root); !reflect.DeepEqual(before, after) {
		t.Error("the store was touched")
	}
}

// TestPowerLoss has a machine go down before what was written is safe: what
// was is used at once, what was not after it was read, if it is whole.
func TestPowerLoss(t *testing.T) {
	root := t.TempDir()
	s := reopen(t, root, Options{BootID: "first"})
	synced := putLayer(t, s, map[string]string{"synced": "1"})
	syncedBlob, err := s.PutBlob([]byte("synced"))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	whole := putLayer(t, s, map[string]string{"whole": "1"})
	lost := putLayer(t, s, map[string]string{"lost": "1"})
	unused := putLayer(t, s, map[string]string{"unused": "1"})
	gone := putLayer(t, s, map[string]string{"gone": "1"})
	lostBlob, err := s.PutBlob([]byte("lost"))
	if err != nil {
		t.Fatal(err)
	}
	wholeBlob, err := s.PutBlob([]byte("whole"))
	if err != nil {
		t.Fatal(err)
	}
	keep := save(t, s, "keep", solver.Result{Layers: []solver.Layer{synced}, Blob: syncedBlob})
	keepToo := save(t, s, "keep too", solver.Result{Layers: []solver.Layer{whole}, Blob: wholeBlob})
	loseLayer := save(t, s, "lose layer", solver.Result{Layers: []solver.Layer{synced, lost}})
	loseBlob := save(t, s, "lose blob", solver.Result{Blob: lostBlob})
	if err := s.Invalidate(gone.Digest); err != nil {
		t.Fatal(err)
	}
	closeTest(t, s)

	again := reopen(t, root, Options{BootID: "first"})
	for _, key := range []digest.Digest{keep, keepToo, loseLayer, loseBlob} {
		if _, err := again.Lookup(t.Context(), key); err != nil {
			t.Errorf("same boot: %v", err)
		}
	}
	// What journals keep of files whose content was not written.
	for _, path := range []string{filepath.Join(layerDir(t, again, lost.Digest), "lost"), again.hashed("blobs", lostBlob)} {
		if err := os.Truncate(path, 0); err != nil {
			t.Fatal(err)
		}
	}
	closeTest(t, again)

	for range 2 { // the second time there is nothing left to do
		next := reopen(t, root, Options{BootID: "second"})
		for _, key := range []digest.Digest{keep, keepToo} {
			if _, err := next.Lookup(t.Context(), key); err != nil {
				t.Errorf("synced or whole: %v", err)
			}
		}
		for _, key := range []digest.Digest{loseLayer, loseBlob} {
			if _, err := next.Lookup(t.Context(), key); !isMiss(err) {
				t.Errorf("spoiled: %v", err)
			}
		}
		closeTest(t, next)
		left, _ := os.ReadDir(filepath.Join(root, "unsynced", "first"))
		if len(left) != 1 || !strings.HasPrefix(left[0].Name(), "layer-"+unused.Digest.Encoded()) {
			t.Errorf("left %v, and not only what nobody used", left)
		}
	}
	last := reopen(t, root, Options{BootID: "second"})
	if err := last.Pin(t.Context(), unused.Digest); err != nil {
		t.Error(err)
	}
	closeTest(t, last)
	closeTest(t, reopen(t, root, Options{BootID: "second"}))
	if left, _ := os.ReadDir(filepath.Join(root, "unsynced")); len(left) != 0 {
		t.Errorf("left %v", left)
	}
}

// TestDoubtful has a layer made again in the place of one that a power loss
// spoiled, by a process that looked at it while this one waited.
func TestDoubtful(t *testing.T) {
	root := t.TempDir()
	s := reopen(t, root, Options{BootID: "first"})
	l := putLayer(t, s, map[string]string{"f": "1"})
	if err := os.Truncate(filepath.Join(layerDir(t, s, l.Digest), "f"), 0); err != nil {
		t.Fatal(err)
	}
	closeTest(t, s)
	one, other := reopen(t, root, Options{BootID: "second"}), reopen(t, root, Options{BootID: "second"})
	if err := one.Pin(t.Context(), l.Digest); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a spoiled layer is used: %v", err)
	}
	putLayer(t, one, map[string]string{"f": "1"})
	for _, s := range []*Store{other, one} {
		if err := s.Pin(t.Context(), l.Digest); err != nil {
			t.Error(err)
		}
		closeTest(t, s)
	}

	// Nobody waits for ever for one who looks.
	third := reopen(t, root, Options{BootID: "third"})
	defer closeTest(t, third)
	release, err := third.lockKey(t.Context(), l.Digest)
	if err != nil {
		t.Fatal(err)
	}
	defer release()
	fourth := reopen(t, root, Options{BootID: "third"})
	defer closeTest(t, fourth)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if err := fourth.Pin(ctx, l.Digest); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	// Nor does one who makes an equal layer take it unread.
	d, err := fourth.NewLayer()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(d.FS, "f"), []byte("1"), 0o644); err != nil {
		t.Fatal(err)
	}
	list, err := fourth.Tree(l.Digest)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel = context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := d.Commit(ctx, list); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("committed: %v", err)
	}
}

// TestSyncMany syncs once there is much to lose.
func TestSyncMany(t *testing.T) {
	s := openTest(t, t.TempDir(), Options{})
	for i := range manyUnsynced {
		if left, _ := os.ReadDir(s.path("unsynced", s.boot)); len(left) != i {
			t.Fatalf("%d of %d markers are left", len(left), i)
		}
		if _, err := s.mark("layer-x"); err != nil {
			t.Fatal(err)
		}
		if err := s.SyncMany(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if left, _ := os.ReadDir(s.path("unsynced", s.boot)); len(left) != 0 {
		t.Errorf("%d markers are left", len(left))
	}
}

// TestSyncSparesLaterMarkers checks the order on which the proof rests.
func TestSyncSparesLaterMarkers(t *testing.T) {
	s := openTest(t, t.TempDir(), Options{})
	first, err := s.mark("layer-x")
	if err != nil {
		t.Fatal(err)
	}
	defer first()
	if err := s.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := s.mark("layer-x"); err != nil {
		t.Fatal(err)
	}
	if left, _ := os.ReadDir(s.path("unsynced", s.boot)); len(left) != 1 {
		t.Errorf("got %d markers, want that of the second one", len(left))
	}
}

func TestTopDir(t *testing.T) {
	s := openTest(t, t.TempDir(), Options{})
	lower, upper := putLayer(t, s, map[string]string{"a": "1"}), putLayer(t, s, map[string]string{"b": "2"})
	for _, stack := range [][]solver.Layer{{}, {lower}, {upper}, {lower, upper}, {upper, lower}} {
		idx, err := s.Index(stack)
		if err != nil {
			t.Fatal(err)
		}
		want, _, _ := idx.Lookup("")
		got, ok, err := s.TopDir(stack)
		if !ok {
			got.Mode = 0o755 // as an index has it where nothing is said
		}
		if err != nil || got.Mode != want.Mode || got.UID != want.UID || got.GID != want.GID {
			t.Errorf("%d layers: got %+v, %t, %v; want %+v", len(stack), got, ok, err, want)
		}
	}
	if _, _, err := s.TopDir([]solver.Layer{{Digest: "sha256:0000000000000000000000000000000000000000000000000000000000000000"}}); err == nil {
		t.Error("a layer that is not there has a root")
	}
}

// layerDir is where a layer's files are.
func layerDir(t testing.TB, s *Store, d digest.Digest) string {
	t.Helper()
	dir, err := s.LayerDir(t.Context(), d)
	if err != nil {
		t.Fatal(err)
	}
	return dir
}
