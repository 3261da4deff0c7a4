package cache

import (
	"context"
	"errors"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"kiln.build/cache/archive"
	"kiln.build/cache/tree"
	"kiln.build/solver"
)

// packLayer commits what is in a directory as a packed layer, whose blob is
// that of other, unless this is "".
func packLayer(s *Store, dir, other string) (l solver.Layer, blob digest.Digest, err error) {
	ctx := context.Background()
	t, err := tree.Scan(ctx, dir, tree.ScanOptions{})
	if err != nil {
		return l, "", err
	}
	of, from := t, dir
	if other != "" {
		from = other
		if of, err = tree.Scan(ctx, other, tree.ScanOptions{}); err != nil {
			return l, "", err
		}
	}
	desc, _, err := archive.PackBlob(ctx, s.Images(), from, of, archive.BlobOptions{})
	if err != nil {
		return l, "", err
	}
	d, err := s.NewLayer()
	if err != nil {
		return l, "", err
	}
	if err = d.Pack(desc.Digest); err == nil {
		l, err = d.Commit(ctx, t)
	}
	return l, desc.Digest, err
}

// filesIn makes a directory of files.
func filesIn(t testing.TB, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, data := range files {
		p := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(data), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func mustPack(t testing.TB, s *Store, dir, other string) (solver.Layer, digest.Digest) {
	t.Helper()
	l, blob, err := packLayer(s, dir, other)
	if err != nil {
		t.Fatal(err)
	}
	return l, blob
}

// noise is text that does not compress.
func noise(n int) string {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{}).Read(b)
	return string(b)
}

// mtimes are a listing's, by path.
func mtimes(t *tree.Tree) map[string]int64 {
	m := map[string]int64{}
	for _, e := range t.Entries {
		m[e.Path] = e.Mtime
	}
	return m
}

// TestPacked has a layer of all that blobs tell of become one and come back,
// with times that no blob holds.
func TestPacked(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: it makes devices and files of other owners")
	}
	s := openTest(t, t.TempDir(), Options{})
	dir := filesIn(t, map[string]string{"d/f": "content", "d/e/long": strings.Repeat("x", 1<<17), "g": "", "gone/../h": "h"})
	err := errors.Join(
		os.Link(dir+"/d/f", dir+"/linked"),
		os.Symlink("nowhere", dir+"/d/symbolic"),
		unix.Mknod(dir+"/null", unix.S_IFCHR|0o600, int(unix.Mkdev(1, 3))),
		unix.Mkfifo(dir+"/pipe", 0o640),
		os.Chown(dir+"/g", 1234, 70000), os.Chmod(dir+"/g", fs.ModeSetuid|0o755),
		unix.Setxattr(dir+"/h", "security.capability", []byte("\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"), 0),
	)
	if err != nil {
		t.Fatal(err)
	}
	for i, at := range []string{"d/e/long", "d/e", "d/symbolic", "d/f", "d", "h", ""} {
		ts := unix.Timespec{Sec: 1_000_000_000 + int64(i), Nsec: 123_456_789}
		if err := unix.UtimesNanoAt(unix.AT_FDCWD, filepath.Join(dir, at), []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			t.Fatal(err)
		}
	}
	l, blob := mustPack(t, s, dir, "")
	if err := os.Chmod(s.Images().Path(blob), 0o600); err != nil { // no less than images have
		t.Fatal(err)
	}
	if !s.Packed(l.Digest) || exists(s.layerPath(l.Digest)+"/fs") {
		t.Fatal("the layer has files")
	}
	if err := s.Pin(t.Context(), l.Digest); err != nil {
		t.Errorf("it is not there: %v", err)
	}
	if problems, err := s.Verify(t.Context()); err != nil || len(problems) > 0 {
		t.Errorf("packed: %v, %v", problems, err)
	}
	again, _ := mustPack(t, s, dir, "")
	if again.Digest != l.Digest {
		t.Errorf("once more it is %s", again.Digest)
	}

	at := layerDir(t, s, l.Digest)
	got, err := tree.Scan(t.Context(), at, tree.ScanOptions{})
	if err != nil {
		t.Fatal(err)
	}
	want, err := s.Tree(l.Digest)
	if err != nil {
		t.Fatal(err)
	}
	have := mtimes(got)
	for path, mtime := range mtimes(want) {
		if have[path] != mtime {
			t.Errorf("/%s is of %s, not %s", path, time.Unix(0, have[path]).UTC(), time.Unix(0, mtime).UTC())
		}
	}
	if path, what := compare(want, got, everything); what != "" {
		t.Errorf("/%s: %s", path, what)
	}
	if problems, err := s.Verify(t.Context()); err != nil || len(problems) > 0 {
		t.Errorf("unpacked: %v, %v", problems, err)
	}
	if left, _ := filepath.Glob(s.layerPath(l.Digest) + "/*"); len(left) != 2 || s.Packed(l.Digest) || !s.Images().Has(blob) {
		t.Errorf("unpacked, it is %v, and the image's blob is there: %t", left, s.Images().Has(blob))
	}
}

// TestPackedDamaged unpacks blobs that are not what the layer is.
func TestPackedDamaged(t *testing.T) {
	root := t.TempDir()
	s := openTest(t, root, Options{})
	files := filesIn(t, map[string]string{"f": "content"})
	for name, c := range map[string]struct {
		other  map[string]string // what the blob has
		harm   func(blob string) error
		want   string
		verify string // "" finds nothing
	}{
		"content":    {other: map[string]string{"f": "CONTENT"}, want: `file "f" of layer`},
		"too much":   {other: map[string]string{"f": "content", "g": ""}, want: `the archive has more than the listing`},
		"too little": {other: map[string]string{"g": ""}, want: `the archive has "g" in its place`},
		"cut":        {harm: func(blob string) error { return os.Truncate(blob, 40) }, want: "is corrupt", verify: "its blob has the digest"},
		"empty":      {harm: func(blob string) error { return os.Truncate(blob, 0) }, want: "is corrupt", verify: "its blob has the digest"},
		"no sum":     {harm: func(blob string) error { return os.Remove(filepath.Dir(blob) + "/packed") }, verify: "its files are missing"},
	} {
		other := ""
		if c.other != nil {
			other = filesIn(t, c.other)
		}
		l, blob := mustPack(t, s, files, other)
		if c.harm != nil {
			if err := c.harm(s.layerPath(l.Digest) + "/blob"); err != nil {
				t.Fatal(err)
			}
		}
		problems, err := s.Verify(t.Context())
		if err != nil || (len(problems) > 0) != (c.verify != "") || c.verify != "" && !strings.Contains(problems[0].String(), c.verify) {
			t.Errorf("%s: %v, %v", name, problems, err)
		}
		_, err = s.LayerDir(t.Context(), l.Digest)
		if c.want == "" {
			if err != nil {
				t.Errorf("%s: %v", name, err)
			}
		} else if err == nil || !strings.Contains(err.Error(), c.want) || !errors.As(err, new(*archive.CorruptError)) {
			t.Errorf("%s: %v", name, err)
		} else if s.hasLayer(l.Digest) == nil {
			t.Errorf("%s: the layer is still there", name)
		}
		if err := errors.Join(s.Invalidate(l.Digest), os.RemoveAll(s.Images().Path(blob))); err != nil {
			t.Fatal(err)
		}
	}
	if left, _ := filepath.Glob(s.proc.dir + "/layer*"); len(left) > 0 {
		t.Errorf("drafts left %q", left)
	}
}

// TestPackedRefused packs and unpacks what cannot be.
func TestPackedRefused(t *testing.T) {
	s := openTest(t, t.TempDir(), Options{})
	d, err := s.NewLayer()
	if err != nil {
		t.Fatal(err)
	}
	defer d.Discard()
	for _, blob := range []digest.Digest{"", "sha256:x", digest.FromString("not there")} {
		if err := d.Pack(blob); err == nil {
			t.Errorf("%q was packed", blob)
		}
	}
	l, _ := mustPack(t, s, filesIn(t, map[string]string{"f": "content"}), "")
	ro := openTest(t, s.Root(), Options{ReadOnly: true})
	if _, err := ro.LayerDir(t.Context(), l.Digest); !errors.Is(err, ErrReadOnly) {
		t.Errorf("read-only: %v", err)
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.LayerDirs(gone, []solver.Layer{l}); !errors.Is(err, context.Canceled) || !s.Packed(l.Digest) {
		t.Errorf("canceled: %v", err)
	}
	if _, err := s.LayerDir(t.Context(), "sha256:x"); err == nil {
		t.Error("a digest that is none has a directory")
	}
}

// TestPackedOnce has several unpack a layer at once.
func TestPackedOnce(t *testing.T) {
	root := t.TempDir()
	files := map[string]string{}
	for i := range 300 {
		files[strings.Repeat("d/", i%5)+string(rune('e'+i%22))+strings.Repeat("x", i/22)] = strings.Repeat("content", i)
	}
	dir := filesIn(t, files)
	stores := []*Store{openTest(t, root, Options{}), openTest(t, root, Options{})}
	l, _ := mustPack(t, stores[0], dir, "")
	if err := stores[1].Pin(t.Context(), l.Digest); err != nil {
		t.Fatal(err)
	}
	var wait sync.WaitGroup
	for i := range 8 {
		wait.Go(func() {
			s := stores[i%2]
			if err := s.hasLayer(l.Digest); err != nil {
				t.Errorf("it is not there meanwhile: %v", err)
			}
			at, err := s.LayerDir(t.Context(), l.Digest)
			if err != nil {
				t.Error(err)
				return
			}
			if left := listNames(t, at); len(left) == 0 {
				t.Error("there are no files")
			}
			if what, _, err := s.verifyLayer(t.Context(), l.Digest, everything); what != "" || err != nil {
				t.Errorf("%s, %v", what, err)
			}
		})
	}
	wait.Wait()
}

// TestPackedPowerLoss opens a store again after a power loss, in which blobs
// and files were spoiled that nobody had synced.
func TestPackedPowerLoss(t *testing.T) {
	root := t.TempDir()
	s := reopen(t, root, Options{BootID: "first"})
	put := func(name string) (digest.Digest, digest.Digest) {
		l, _ := mustPack(t, s, filesIn(t, map[string]string{name: "content"}), "")
		return l.Digest, save(t, s, name, solver.Result{Layers: []solver.Layer{l}})
	}
	_, whole := put("whole")
	later, unpackedKey := put("unpacked")
	if err := s.Sync(t.Context()); err != nil { // which says nothing of what is unpacked later
		t.Fatal(err)
	}
	unpacked := layerDir(t, s, later)
	cut, cutKey := put("cut")
	if err := errors.Join(os.Truncate(s.layerPath(cut)+"/blob", 3), os.Truncate(unpacked+"/unpacked", 0)); err != nil {
		t.Fatal(err)
	}
	closeTest(t, s)
	s = openTest(t, root, Options{BootID: "second"})
	if _, err := s.Lookup(t.Context(), whole); err != nil {
		t.Errorf("whole: %v", err)
	}
	for name, key := range map[string]digest.Digest{"cut": cutKey, "unpacked": unpackedKey} {
		if _, err := s.Lookup(t.Context(), key); !errors.Is(err, solver.ErrMiss) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestPackedSize asks what a packed layer takes while the image has its blob,
// and when it has it no more.
func TestPackedSize(t *testing.T) {
	root := t.TempDir()
	s := openTest(t, root, Options{})
	l, blob := mustPack(t, s, filesIn(t, map[string]string{"f": noise(1 << 18)}), "")
	save(t, s, "copy", solver.Result{Layers: []solver.Layer{l}})
	size := func(id digest.Digest) int64 {
		rows, err := s.Usage(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, u := range rows {
			if u.ID == id.String() {
				return u.Size
			}
		}
		return -1
	}
	whole, before := size(blob), total(t, s)
	if got := size(l.Digest); whole < 1<<18 || got > 1<<16 {
		t.Errorf("the blob counts %d, the layer %d", whole, got)
	}
	// Nothing becomes free when the image gives up its blob: it is the layer's.
	r, err := s.Prune(t.Context(), PruneOptions{KeepStorage: before - 1})
	if err != nil {
		t.Fatal(err)
	}
	if s.Images().Has(blob) || !s.Packed(l.Digest) {
		t.Fatalf("removed %+v", r.Removed)
	}
	if got := size(l.Digest); got < 1<<18 || total(t, s) != r.Left || r.Left > before || r.Left < before-1<<14 {
		t.Errorf("the layer counts %d, all %d and %d before; the report says %d", got, total(t, s), before, r.Left)
	}
	if b, err := os.ReadFile(filepath.Join(layerDir(t, s, l.Digest), "f")); err != nil || len(b) != 1<<18 {
		t.Errorf("it has %d bytes, %v", len(b), err)
	}
	if err := os.Remove(s.Images().Path(blob)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the image's blob came back: %v", err)
	}
}
