package archive

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"

	"kiln.build/cache/tree"

	"golang.org/x/sys/unix"
)

// restorable makes a layer of all kinds of entries, whose files are of sizes
// about those at which the way of making them changes, and packs it.
func restorable(t testing.TB) (*tree.Tree, []byte) {
	t.Helper()
	in := t.TempDir()
	var err error
	put := func(name string, size int) {
		p := filepath.Join(in, name)
		err = errors.Join(err, os.MkdirAll(filepath.Dir(p), 0o755), os.WriteFile(p, bytes.Repeat([]byte(name), size/len(name)+1)[:size], 0o640))
	}
	for i, size := range []int{0, 1, 511, SmallFile - 1, SmallFile, SmallFile + 1, 3 * SmallFile} {
		put(fmt.Sprint("sizes/", i), size)
	}
	for i := range 3 * BatchFiles {
		put(fmt.Sprintf("many/d%d/%03d", i%5, i), i)
	}
	for i := range 6 {
		put(fmt.Sprint("wide/", i), SmallFile)
	}
	err = errors.Join(err,
		os.Link(in+"/many/d0/000", in+"/again"), os.Link(in+"/sizes/6", in+"/wide/again"),
		os.Symlink("../sizes", in+"/wide/link"),
		unix.Mkfifo(in+"/pipe", 0o600),
		unix.Mknod(in+"/null", unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))), unix.Mknod(in+"/disk", unix.S_IFBLK|0o660, int(unix.Mkdev(7, 0))),
		os.Chown(in+"/sizes/1", 1000, 70000), os.Chmod(in+"/sizes/2", os.ModeSetgid|0o755), os.Chmod(in+"/wide", os.ModeSticky|0o777),
		unix.Setxattr(in+"/sizes/3", "security.capability", []byte("\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"), 0),
		os.Chmod(in, 0o755),
	)
	if err != nil {
		t.Fatal(err)
	}
	list, err := tree.Scan(t.Context(), in, tree.ScanOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return list, pack(t, in, list, PackOptions{})
}

// TestRestore packs a layer and makes it again, from each kind of archive, with
// times that archives do not hold.
func TestRestore(t *testing.T) {
	needRoot(t)
	list, packed := restorable(t)
	for _, c := range []Compression{Uncompressed, Gzip, Zstd} {
		var b bytes.Buffer
		z, err := compressor(&b, c, DefaultLevel, nil, nil)
		if err == nil {
			_, err = z.Write(packed)
			err = errors.Join(err, z.Close())
		}
		if err != nil {
			t.Fatal(err)
		}
		out, check := cage(t)
		if err := Restore(t.Context(), &b, out, list); err != nil {
			t.Fatalf("%s: %v", c, err)
		}
		check()
		if err := os.Chmod(out, 0o755); err != nil {
			t.Fatal(err)
		}
		got, err := tree.Scan(t.Context(), out, tree.ScanOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if got.Digest() != list.Digest() {
			t.Errorf("%s: got another layer", c)
		}
		for i := range got.Entries {
			if a, b := &got.Entries[i], &list.Entries[i]; a.Path != "" && a.Mtime != b.Mtime {
				t.Errorf("%s: %q is of %d, not %d", c, a.Path, a.Mtime, b.Mtime)
			}
		}
	}
}

// TestRestoreBroken takes archives that end too early, are of other files or
// cannot be read.
func TestRestoreBroken(t *testing.T) {
	needRoot(t)
	list, packed := restorable(t)
	restoring := func(ctx context.Context, r io.Reader) error { return Restore(ctx, r, t.TempDir(), list) }
	var corrupt *CorruptError
	for _, n := range []int{1, 512, 700, len(packed) / 3, len(packed) / 2, len(packed) - 2000} {
		if err := restoring(t.Context(), bytes.NewReader(packed[:n])); !errors.As(err, &corrupt) {
			t.Errorf("cut after %d bytes: %v", n, err)
		}
	}
	// A byte of each kind of file's content.
	for _, name := range []string{"many/d3/003", "sizes/5", "wide/2"} {
		at := bytes.LastIndex(packed, []byte(name+name))
		if name == "many/d3/003" {
			at = bytes.Index(packed, []byte("man"+strings.Repeat("\x00", 509)))
		}
		if at < 0 {
			t.Fatalf("the content of %s is not found", name)
		}
		harmed := bytes.Clone(packed)
		harmed[at]++
		if err := restoring(t.Context(), bytes.NewReader(harmed)); !errors.As(err, &corrupt) || corrupt.Path != name {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := restoring(t.Context(), bytes.NewReader(tarOf(t, file("other", "text")))); !errors.As(err, &corrupt) || !strings.Contains(err.Error(), `has "other" in its place`) {
		t.Errorf("another archive: %v", err)
	}
	failing := io.MultiReader(bytes.NewReader(packed[:len(packed)/2]), iotest.ErrReader(unix.EIO))
	if err := restoring(t.Context(), failing); errors.As(err, &corrupt) || !errors.Is(err, unix.EIO) {
		t.Errorf("a disk that fails: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := restoring(ctx, bytes.NewReader(packed)); errors.As(err, &corrupt) || !errors.Is(err, context.Canceled) {
		t.Errorf("canceled: %v", err)
	}
	if err := Restore(t.Context(), bytes.NewReader(packed), "/nowhere", list); errors.As(err, &corrupt) || !errors.Is(err, os.ErrNotExist) {
		t.Errorf("nowhere to put it: %v", err)
	}
}
