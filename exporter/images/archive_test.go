package images

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"kiln.build/cache/archive"
	"kiln.build/cache/layout"
	"kiln.build/exporter/internal/storetest"

	"github.com/google/go-containerregistry/pkg/name"
	ggcr "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/validate"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

func save(t *testing.T, s *Store, names ...string) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := s.Save(t.Context(), &b, names...); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func compress(t *testing.T, c archive.Compression, data []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := archive.Compress(&b, c, archive.DefaultLevel)
	if err == nil {
		_, err = w.Write(data)
	}
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestSaveLoad(t *testing.T) {
	s := newStore(t)
	a, b := add(t, s, "a:1", "1", 1), add(t, s, "b", "2", 2)
	if err := s.Tag(t.Context(), "a:1", "example.com/a:2"); err != nil {
		t.Fatal(err)
	}
	data := save(t, s, "a:1", "example.com/a:2", "b", a.Encoded()[:12])
	if !bytes.Equal(data, save(t, s, "a:1", "example.com/a:2", "b")) {
		t.Error("saving again gives other bytes")
	}

	// What other tools read.
	path := filepath.Join(t.TempDir(), "x.tar")
	if err := os.WriteFile(path, data, 0o644); err != nil {
		t.Fatal(err)
	}
	for tagged, id := range map[string]digest.Digest{"a:1": a, "example.com/a:2": a, "b:latest": b} {
		tag, err := name.NewTag(tagged)
		if err != nil {
			t.Fatal(err)
		}
		img, err := tarball.ImageFromPath(path, &tag)
		if err != nil {
			t.Fatal(err)
		}
		if err := validate.Image(img); err != nil {
			t.Errorf("%s: %v", tagged, err)
		}
		if got, err := img.ConfigName(); err != nil || got.String() != string(id) {
			t.Errorf("%s is %v, %v", tagged, got, err)
		}
	}

	for how, data := range map[string][]byte{"plain": data, "gzip": compress(t, archive.Gzip, data), "zstd": compress(t, archive.Zstd, data)} {
		to := newStore(t)
		loaded, err := to.Load(t.Context(), bytes.NewReader(data))
		if err != nil {
			t.Fatalf("%s: %v", how, err)
		}
		if len(loaded) != 2 || loaded[0].ID != a || len(loaded[0].Names) != 2 || loaded[1].ID != b {
			t.Errorf("%s: loaded %+v", how, loaded)
		}
		f, err := to.Find(t.Context(), "example.com/a:2")
		if err != nil || f.ID != a {
			t.Errorf("%s: %v", how, err)
		}
		g, err := s.Find(t.Context(), "a:1")
		if err != nil || g.Target.Digest != f.Target.Digest {
			t.Errorf("%s: the manifest changed from %s to %s", how, g.Target.Digest, f.Target.Digest)
		}
	}
}

func TestLoadFolder(t *testing.T) {
	s := newStore(t)
	a := add(t, s, "a:1", "1", 1)
	to := newStore(t)
	loaded, err := to.LoadFolder(t.Context(), s.layout().Dir())
	if err != nil || len(loaded) != 1 || loaded[0].ID != a || loaded[0].Names[0] != "docker.io/library/a:1" {
		t.Errorf("got %+v, %v", loaded, err)
	}
	if _, err := to.LoadFolder(t.Context(), t.TempDir()); err == nil {
		t.Error("an empty folder is a layout")
	}
}

// docker makes an archive as docker saved them before version 25; mangle may
// change its entries.
func docker(t *testing.T, mangle func([]*tar.Header, [][]byte) ([]*tar.Header, [][]byte)) ([]byte, digest.Digest) {
	t.Helper()
	one, two := storetest.Tar(t, "f one"), storetest.Tar(t, "g two")
	config := fmt.Appendf(nil, `{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[%q,%q,%q]}}`,
		digest.FromBytes(one), digest.FromBytes(two), digest.FromBytes(one))
	id := digest.FromBytes(config)
	manifest := fmt.Appendf(nil, `[{"Config":"%s.json","RepoTags":["old:1","old:2"],"Layers":["a/layer.tar","b/layer.tar","c/layer.tar"]}]`, id.Encoded())
	headers := []*tar.Header{
		{Name: "a/layer.tar", Typeflag: tar.TypeReg},
		{Name: "b/layer.tar", Typeflag: tar.TypeReg},
		{Name: "c/layer.tar", Typeflag: tar.TypeSymlink, Linkname: "../a/layer.tar"},
		{Name: id.Encoded() + ".json", Typeflag: tar.TypeReg},
		{Name: "manifest.json", Typeflag: tar.TypeReg},
	}
	contents := [][]byte{one, compress(t, archive.Gzip, two), nil, config, manifest}
	if mangle != nil {
		headers, contents = mangle(headers, contents)
	}
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for i, h := range headers {
		h.Size = int64(len(contents[i]))
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(contents[i]); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes(), id
}

func TestLoadDocker(t *testing.T) {
	s := newStore(t)
	data, id := docker(t, nil)
	loaded, err := s.Load(t.Context(), bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	if len(loaded) != 1 || loaded[0].ID != id || len(loaded[0].Names) != 2 {
		t.Fatalf("loaded %+v", loaded)
	}
	f, err := s.Find(t.Context(), "old:2")
	if err != nil {
		t.Fatal(err)
	}
	var types []string
	for _, l := range f.Documents.Layers {
		types = append(types, l.MediaType)
	}
	if !slices.Equal(types, []string{v1.MediaTypeImageLayer, v1.MediaTypeImageLayerGzip, v1.MediaTypeImageLayer}) {
		t.Errorf("layers %v", types)
	}
}

// TestLoadTools reads what go-containerregistry writes.
func TestLoadTools(t *testing.T) {
	img, err := random.Image(1000, 3)
	if err != nil {
		t.Fatal(err)
	}
	tag, err := name.NewTag("example.com/random:1")
	if err != nil {
		t.Fatal(err)
	}
	scratch, err := name.NewTag("scratch:1")
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if err := tarball.MultiWrite(map[name.Tag]ggcr.Image{tag: img, scratch: empty.Image}, &b); err != nil {
		t.Fatal(err)
	}
	s := newStore(t)
	loaded, err := s.Load(t.Context(), &b)
	if err != nil || len(loaded) != 2 {
		t.Fatalf("got %v, %v", loaded, err)
	}
	id, err := img.ConfigName()
	if err != nil {
		t.Fatal(err)
	}
	if f, err := s.Find(t.Context(), "example.com/random:1"); err != nil || string(f.ID) != id.String() {
		t.Errorf("got %v, %v", f.ID, err)
	}
}

// TestLoadHostile: what is wrong is told, and nothing is named.
func TestLoadHostile(t *testing.T) {
	type entries = func([]*tar.Header, [][]byte) ([]*tar.Header, [][]byte)
	outside := filepath.Join(t.TempDir(), "outside")
	if err := os.WriteFile(outside, []byte("secret"), 0o644); err != nil {
		t.Fatal(err)
	}
	edit := func(i int, content string) entries {
		return func(h []*tar.Header, c [][]byte) ([]*tar.Header, [][]byte) {
			c[i] = []byte(content)
			return h, c
		}
	}
	for name, tt := range map[string]struct {
		mangle entries
		want   string
	}{
		"layer of another digest":  {edit(0, string(storetest.Tar(t, "f evil"))), "its config says"},
		"layer that is no tar":     {edit(1, "text"), "layer"},
		"config that is no JSON":   {edit(3, "{"), "config"},
		"config without layers":    {edit(3, "{}"), "its config 0"},
		"manifest of nothing":      {edit(4, "[]"), "no images"},
		"manifest that is no JSON": {edit(4, "[{]"), "manifest.json"},
		"layer that is not there":  {func(h []*tar.Header, c [][]byte) ([]*tar.Header, [][]byte) { return h[1:], c[1:] }, "not in the archive"},
		"links in a circle": {func(h []*tar.Header, c [][]byte) ([]*tar.Header, [][]byte) {
			h[0].Typeflag, h[0].Linkname, c[0] = tar.TypeSymlink, "../c/layer.tar", nil
			return h, c
		}, "not in the archive"},
		"link to the outside": {func(h []*tar.Header, c [][]byte) ([]*tar.Header, [][]byte) {
			h[2].Linkname = "../../../.." + outside
			return h, c
		}, "not in the archive"},
		"blob of another digest": {func(h []*tar.Header, c [][]byte) ([]*tar.Header, [][]byte) {
			h[0].Name = "blobs/sha256/" + digest.FromString("x").Encoded()
			return h, c
		}, "corrupt"},
		"device for a layer": {func(h []*tar.Header, c [][]byte) ([]*tar.Header, [][]byte) {
			h[0].Typeflag, c[0] = tar.TypeFifo, nil
			return h, c
		}, "not in the archive"},
		"index that lists what is not there": {func(h []*tar.Header, c [][]byte) ([]*tar.Header, [][]byte) {
			h[4].Name = "index.json"
			c[4] = fmt.Appendf(nil, `{"manifests":[{"mediaType":%q,"digest":%q,"size":1}]}`, v1.MediaTypeImageManifest, digest.FromString("x"))
			return h, c
		}, "neither manifest.json"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newStore(t)
			data, _ := docker(t, tt.mangle)
			_, err := s.Load(t.Context(), bytes.NewReader(data))
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
			if got := listed(t, s); got != "" {
				t.Errorf("there is %s", got)
			}
		})
	}
	data, _ := docker(t, nil)
	for name, data := range map[string][]byte{"nothing": nil, "cut": data[:len(data)/2], "text": []byte("text")} {
		if _, err := newStore(t).Load(t.Context(), bytes.NewReader(data)); err == nil {
			t.Errorf("%s was loaded", name)
		}
	}
}

// TestSaveCorrupt damages a layer: saving tells, and takes the blob away so
// that it can be made again.
func TestSaveCorrupt(t *testing.T) {
	s := newStore(t)
	add(t, s, "x", "1", 1)
	f, err := s.Find(t.Context(), "x")
	if err != nil {
		t.Fatal(err)
	}
	layer := f.Documents.Layers[0].Digest
	b, err := os.ReadFile(s.layout().Path(layer))
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)-1] ^= 1
	if err := os.WriteFile(s.layout().Path(layer), b, 0o644); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "x.tar")
	err = WriteFile(path, func(w io.Writer) error { return s.Save(t.Context(), w, "x") })
	var corrupt *layout.CorruptError
	if !errors.As(err, &corrupt) || !strings.Contains(err.Error(), "load the image again") {
		t.Errorf("got %v", err)
	}
	if s.layout().Has(layer) {
		t.Error("the damaged blob is still there")
	}
	if all, err := os.ReadDir(filepath.Dir(path)); err != nil || len(all) > 0 {
		t.Errorf("left %v, %v", all, err)
	}
}

func TestAnnotatedNames(t *testing.T) {
	for in, want := range map[string]string{
		"latest": "", "": "", "a:1": "docker.io/library/a:1", "example.com/a": "example.com/a:latest", "a/UPPER": "",
	} {
		got := strings.Join(annotatedNames(v1.Descriptor{Annotations: map[string]string{v1.AnnotationRefName: in}}), " ")
		if got != want {
			t.Errorf("%q is %q, want %q", in, got, want)
		}
	}
	both := map[string]string{v1.AnnotationRefName: "1", containerdName: "example.com/a:1"}
	if got := annotatedNames(v1.Descriptor{Annotations: both}); len(got) != 1 || got[0] != "example.com/a:1" {
		t.Errorf("got %v", got)
	}
}

func FuzzLoad(f *testing.F) {
	f.Add([]byte("x"), `[{"Config":"x","Layers":[]}]`, `{"manifests":[]}`)
	f.Add([]byte(`{"rootfs":{}}`), `[{"Config":"c","RepoTags":["a:b"],"Layers":["c"]}]`, "")
	f.Fuzz(func(t *testing.T, content []byte, manifest, index string) {
		s := newStore(t)
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		for name, data := range map[string][]byte{"c": content, "manifest.json": []byte(manifest), "index.json": []byte(index)} {
			if len(data) == 0 {
				continue
			}
			if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Size: int64(len(data))}); err != nil {
				t.Skip()
			}
			w.Write(data)
		}
		w.Close()
		loaded, err := s.Load(t.Context(), &b)
		if err == nil && len(loaded) == 0 {
			t.Error("nothing was loaded, and no error")
		}
		if _, err := json.Marshal(loaded); err != nil {
			t.Error(err)
		}
	})
}
