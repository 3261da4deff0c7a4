package images

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"kiln.build/cache/layout"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// headImage is an image of one layer, with the layer's bytes.
func headImage(t *testing.T, l *layout.Layout, size int) (Export, v1.Descriptor, []byte) {
	t.Helper()
	data := bytes.Repeat([]byte("layer"), size/5+1)[:size]
	put := func(mediaType string, b []byte) v1.Descriptor {
		d, err := l.WriteBytes(t.Context(), mediaType, b)
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	layer := put(v1.MediaTypeImageLayer, data)
	m, err := json.Marshal(v1.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageManifest,
		Config: put(v1.MediaTypeImageConfig, []byte(`{"os":"linux","architecture":"amd64","rootfs":{"type":"layers","diff_ids":["`+layer.Digest.String()+`"]}}`)),
		Layers: []v1.Descriptor{layer},
	})
	if err != nil {
		t.Fatal(err)
	}
	return Export{Image: put(v1.MediaTypeImageManifest, m), Names: []string{"docker.io/library/x:latest"}}, layer, data
}

// TestHead begins an archive ahead: it is the one that is written at once, and
// the blob is not read again.
func TestHead(t *testing.T) {
	for _, size := range []int{1, 512, 100_000, 10<<20 + 5} {
		l, err := layout.Open(t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		x, layer, data := headImage(t, l, size)
		var want bytes.Buffer
		if err := WriteArchive(t.Context(), l, &want, ArchiveOptions{Docker: true}, x); err != nil {
			t.Fatal(err)
		}
		dir := t.TempDir()
		path := filepath.Join(dir, "a.tar")
		export := func(h *Head) error {
			return WriteArchiveFile(t.Context(), l, path, h, ArchiveOptions{Docker: true}, x)
		}
		check := func(what string) {
			t.Helper()
			if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, want.Bytes()) {
				t.Errorf("%d bytes, %s: another archive, %v", size, what, err)
			}
			if fi, err := os.Stat(path); err != nil || fi.Mode() != 0o644 {
				t.Errorf("%s: %v, %v", what, fi.Mode(), err)
			}
			if all, _ := os.ReadDir(dir); len(all) != 1 {
				t.Errorf("%s: beside the archive there are others: %v", what, all)
			}
		}
		begin := func(blob v1.Descriptor, parts ...[]byte) *Head {
			h := NewHead(path)
			for _, p := range parts {
				if n, err := h.Write(p); n != len(p) || err != nil {
					t.Errorf("write: %d, %v", n, err)
				}
			}
			h.Finish(blob)
			return h
		}
		for what, h := range map[string]*Head{
			"none":              nil,
			"nothing came":      NewHead(path),
			"not finished":      begin(v1.Descriptor{}, data),
			"another blob":      begin(v1.Descriptor{Digest: digest.FromString("?"), Size: int64(size)}, data),
			"less":              begin(layer, data[1:]),
			"more":              begin(layer, data, data),
			"nowhere to put it": NewHead(filepath.Join(dir, "missing", "a.tar")),
		} {
			if what == "nowhere to put it" {
				h.Write(data)
				h.Finish(layer)
			}
			if err := export(h); err != nil {
				t.Errorf("%s: %v", what, err)
			}
			h.Discard()
			check(what)
			os.Remove(path)
		}
		// There is no blob to read now.
		if err := l.Remove(layer.Digest); err != nil {
			t.Fatal(err)
		}
		if export(nil) == nil {
			t.Error("an archive is made of nothing")
		}
		for _, what := range []string{"a new file", "one that is there"} {
			h := begin(layer, []byte("what was begun before"))
			h.Restart()
			h.Write(data)
			h.Finish(layer)
			h.Write([]byte("too late"))
			if err := export(h); err != nil {
				t.Error(err)
			}
			check(what)
			if export(h) == nil {
				t.Error("a beginning is used twice")
			}
			h.Discard()
			check(what)
		}
	}
}

// TestHeadOnlyOfFiles does not begin what no file is to become.
func TestHeadOnlyOfFiles(t *testing.T) {
	for _, path := range []string{t.TempDir(), os.DevNull} {
		if h := NewHead(path); h != nil {
			t.Errorf("%s: an archive is begun", path)
		}
	}
}
