// Package storetest makes stores and layers for tests.
package storetest

import (
	"archive/tar"
	"bytes"
	"strings"
	"testing"
	"time"

	"kiln.build/cache"
	"kiln.build/cache/archive"
	"kiln.build/solver"

	"github.com/opencontainers/go-digest"
)

// Open opens a new store that is closed with the test.
func Open(t testing.TB) *cache.Store {
	t.Helper()
	s, err := cache.Open(t.TempDir(), cache.Options{})
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

// Tar makes an archive of files, given as lines "NAME CONTENT". A name that
// ends with a slash is a directory, content "-> X" makes a symbolic link,
// "=> X" a hard link, and "fifo" alone a fifo. All are from 2024.
func Tar(t testing.TB, lines ...string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, l := range lines {
		name, content, _ := strings.Cut(l, " ")
		h := &tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, ModTime: time.Date(2024, 1, 1, 0, 0, 0, 0, time.UTC)}
		switch target, symlink := strings.CutPrefix(content, "-> "); {
		case strings.HasSuffix(name, "/"):
			h.Typeflag, h.Mode = tar.TypeDir, 0o755
		case symlink:
			h.Typeflag, h.Linkname = tar.TypeSymlink, target
		case strings.HasPrefix(content, "=> "):
			h.Typeflag, h.Linkname = tar.TypeLink, content[3:]
		case content == "fifo":
			h.Typeflag = tar.TypeFifo
		default:
			h.Size = int64(len(content))
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if h.Size > 0 {
			if _, err := w.Write([]byte(content)); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// Layer commits a layer; lines are as for Tar, ".wh." names delete.
func Layer(t testing.TB, s *cache.Store, lines ...string) solver.Layer {
	t.Helper()
	d, err := s.NewLayer()
	if err != nil {
		t.Fatal(err)
	}
	tree, err := archive.Unpack(t.Context(), bytes.NewReader(Tar(t, lines...)), d.FS, archive.UnpackOptions{Layer: true})
	if err != nil {
		t.Fatal(err)
	}
	l, err := d.Commit(t.Context(), tree)
	if err != nil {
		t.Fatal(err)
	}
	l.Created = time.Date(2024, 2, 1, 0, 0, 0, 0, time.UTC)
	return l
}

// Dir is where a layer's files are.
func Dir(t testing.TB, s *cache.Store, d digest.Digest) string {
	t.Helper()
	dir, err := s.LayerDir(t.Context(), d)
	if err != nil {
		t.Fatal(err)
	}
	return dir
}
