package exporter

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"kiln.build/cache"
	"kiln.build/cache/archive"
	"kiln.build/cache/layout"
	"kiln.build/cache/registry"
	"kiln.build/exporter/blob"
	"kiln.build/exporter/internal/storetest"
	"kiln.build/solver"

	"github.com/google/go-containerregistry/pkg/name"
	ggcrregistry "github.com/google/go-containerregistry/pkg/registry"
	ggcrlayout "github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/validate"
	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

var amd64 = v1.Platform{OS: "linux", Architecture: "amd64"}

// image is what a build gives: two layers, the upper one deleting from the
// lower, and a metadata instruction.
func image(t *testing.T, s *cache.Store) Image {
	t.Helper()
	layers := []solver.Layer{
		storetest.Layer(t, s, "d/", "d/f content", "gone x", "link -> d/f"),
		storetest.Layer(t, s, ".wh.gone", "g more"),
	}
	var config dockerspec.DockerOCIImage
	config.Platform = amd64
	config.Config.Cmd = []string{"/g"}
	config.Config.Labels = map[string]string{"b": "2", "a": "1", "c": "3"}
	config.History = []v1.History{{CreatedBy: "one"}, {CreatedBy: "two"}, {CreatedBy: "CMD", EmptyLayer: true}}
	return Image{Output: solver.Output{Digest: solver.StackDigest(layers), Layers: layers}, Config: config, Platform: amd64}
}

// files lists a directory's files with their sizes and times.
func files(t *testing.T, dir string) map[string]string {
	t.Helper()
	all := map[string]string{}
	err := filepath.Walk(dir, func(path string, fi os.FileInfo, err error) error {
		if err == nil && !fi.IsDir() {
			all[path] = fi.ModTime().String()
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func TestExportImage(t *testing.T) {
	s := storetest.Open(t)
	e := &Exporter{Store: s}
	in := image(t, s)
	o := Output{Type: TypeImage, Names: []string{"docker.io/library/app:latest", "docker.io/library/app:1"}}
	r, err := e.Export(t.Context(), o, []Image{in})
	if err != nil {
		t.Fatal(err)
	}
	index, err := ggcrlayout.ImageIndexFromPath(s.Images().Dir())
	if err != nil {
		t.Fatal(err)
	}
	// In full it takes all layers to be compressed.
	if err := validate.Index(index, validate.Fast); err != nil {
		t.Error(err)
	}
	for _, n := range o.Names {
		d, err := s.Images().Resolve(n)
		if err != nil || d.Digest != r.Descriptor.Digest {
			t.Errorf("%s is %v, %v", n, d, err)
		}
	}
	made, err := s.Images().Image(t.Context(), r.Descriptor, &amd64)
	if err != nil {
		t.Fatal(err)
	}
	if made.ConfigDescriptor.Digest != r.ID {
		t.Errorf("the ID is %s, the config %s", r.ID, made.ConfigDescriptor.Digest)
	}
	for _, l := range made.Layers {
		if l.MediaType != v1.MediaTypeImageLayer || l.Digest != l.DiffID {
			t.Errorf("layer %+v is not uncompressed", l)
		}
	}
	var config dockerspec.DockerOCIImage
	if err := json.Unmarshal(made.Config, &config); err != nil {
		t.Fatal(err)
	}
	if config.Created == nil || !config.Created.Equal(in.Output.Layers[1].Created) || len(config.RootFS.DiffIDs) != 2 {
		t.Errorf("created %v, layers %v", config.Created, config.RootFS)
	}

	// The second time nothing is written but the index.
	before := files(t, filepath.Join(s.Images().Dir(), "blobs"))
	again, err := e.Export(t.Context(), o, []Image{in})
	if err != nil || again.ID != r.ID || again.Descriptor.Digest != r.Descriptor.Digest {
		t.Errorf("the second time %v, %v, %v", again.ID, again.Descriptor.Digest, err)
	}
	after := files(t, filepath.Join(s.Images().Dir(), "blobs"))
	for path, when := range after {
		if before[path] != when {
			t.Errorf("%s was written again", path)
		}
	}
}

// TestEpoch makes one image in two stores whose layers were made at other
// times: with an epoch they are equal.
func TestEpoch(t *testing.T) {
	epoch := time.Date(2023, 5, 1, 0, 0, 0, 0, time.UTC)
	var ids []string
	for i := range 2 {
		s := storetest.Open(t)
		in := image(t, s)
		for l := range in.Output.Layers {
			in.Output.Layers[l].Created = time.Now().Add(time.Duration(i) * time.Hour)
		}
		r, err := (&Exporter{Store: s, Epoch: &epoch}).Export(t.Context(), Output{Type: TypeImage}, []Image{in})
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, string(r.Descriptor.Digest))
		made, err := s.Images().Image(t.Context(), r.Descriptor, &amd64)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(string(made.Config), `"created":"2023-05-01T00:00:00Z"`) {
			t.Errorf("config %s", made.Config)
		}
	}
	if ids[0] != ids[1] {
		t.Errorf("got %v", ids)
	}
}

func TestExportArchives(t *testing.T) {
	s := storetest.Open(t)
	e := &Exporter{Store: s}
	in := image(t, s)
	names := []string{"docker.io/library/app:1"}
	dir := t.TempDir()

	oci := filepath.Join(dir, "oci")
	if _, err := e.Export(t.Context(), Output{Type: TypeOCI, Dest: oci, Folder: true, Names: names}, []Image{in}); err != nil {
		t.Fatal(err)
	}
	index, err := ggcrlayout.ImageIndexFromPath(oci)
	if err != nil {
		t.Fatal(err)
	}
	if err := validate.Index(index); err != nil {
		t.Error(err)
	}

	docker := filepath.Join(dir, "docker.tar")
	r, err := e.Export(t.Context(), Output{Type: TypeDocker, Dest: docker, Names: names}, []Image{in})
	if err != nil {
		t.Fatal(err)
	}
	tag, err := name.NewTag("app:1")
	if err != nil {
		t.Fatal(err)
	}
	img, err := tarball.ImageFromPath(docker, &tag)
	if err != nil {
		t.Fatal(err)
	}
	if err := validate.Image(img); err != nil {
		t.Error(err)
	}
	if id, err := img.ConfigName(); err != nil || id.String() != string(r.ID) {
		t.Errorf("the archive's image is %v, %v", id, err)
	}
	if list, err := s.Images().List(); err != nil || len(list) != 0 {
		t.Errorf("the store has %v, %v", list, err)
	}

	var a, b bytes.Buffer
	for _, w := range []*bytes.Buffer{&a, &b} {
		e.Stdout = w
		if _, err := e.Export(t.Context(), Output{Type: TypeOCI, Dest: "-", Names: names}, []Image{in}); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(a.Bytes(), b.Bytes()) {
		t.Error("two archives of one image differ")
	}
	e.Terminal = true
	if _, err := e.Export(t.Context(), Output{Type: TypeOCI, Dest: "-"}, []Image{in}); err == nil {
		t.Error("an archive went to the terminal")
	}
	if _, err := e.Export(t.Context(), Output{Type: TypeTar, Dest: "-"}, []Image{in}); err == nil {
		t.Error("a tar went to the terminal")
	}
}

func TestExportForms(t *testing.T) {
	s := storetest.Open(t)
	e := &Exporter{Store: s}
	in := image(t, s)
	r, err := e.Export(t.Context(), Output{
		Type: TypeImage, DockerTypes: true, Form: &blob.Form{Compression: archive.Gzip},
		Annotations: []Annotation{{Place: OnManifest, Key: "k", Value: "v"}, {Place: OnManifest, Platform: "linux/arm64", Key: "other", Value: "v"}},
	}, []Image{in})
	if err != nil {
		t.Fatal(err)
	}
	b, err := s.Images().ReadBlob(r.Descriptor.Digest)
	if err != nil {
		t.Fatal(err)
	}
	var m v1.Manifest
	if err := json.Unmarshal(b, &m); err != nil {
		t.Fatal(err)
	}
	if m.MediaType != layout.DockerManifest || m.Config.MediaType != layout.DockerConfig || m.Layers[0].MediaType != layout.DockerLayer {
		t.Errorf("media types in %s", b)
	}
	if m.Annotations["k"] != "v" || len(m.Annotations) != 1 {
		t.Errorf("annotations %v", m.Annotations)
	}
	_, err = e.Export(t.Context(), Output{Type: TypeImage, Annotations: []Annotation{{Place: OnIndex, Key: "k"}}}, []Image{in})
	if err == nil || !strings.Contains(err.Error(), "several platforms") {
		t.Errorf("got %v", err)
	}
}

// TestBaseLayers exports over an image whose blob is kept as it is.
func TestBaseLayers(t *testing.T) {
	s := storetest.Open(t)
	var compressed bytes.Buffer
	z, err := archive.Compress(&compressed, archive.Gzip, 1)
	if err != nil {
		t.Fatal(err)
	}
	plain := storetest.Tar(t, "base file")
	if _, err := z.Write(plain); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	in := image(t, s)
	base := storetest.Layer(t, s, "base file")
	write := func(ctx context.Context) v1.Descriptor {
		d, err := s.Images().WriteBytes(ctx, layout.DockerLayer, compressed.Bytes())
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	d := write(t.Context())
	base.Origin = &solver.Origin{DiffID: v1.Descriptor{}.Digest, MediaType: d.MediaType, Blob: d.Digest, Size: d.Size}
	base.Origin.DiffID = digestOf(plain)
	in.Output.Layers = append([]solver.Layer{base}, in.Output.Layers...)
	fetched := 0
	e := &Exporter{Store: s, Fetch: func(ctx context.Context, o solver.Origin) error { fetched++; write(ctx); return nil }}
	r, err := e.Export(t.Context(), Output{Type: TypeImage}, []Image{in})
	if err != nil {
		t.Fatal(err)
	}
	made, err := s.Images().Image(t.Context(), r.Descriptor, &amd64)
	if err != nil {
		t.Fatal(err)
	}
	if l := made.Layers[0]; l.Digest != d.Digest || l.MediaType != v1.MediaTypeImageLayerGzip {
		t.Errorf("the base's layer became %+v", l)
	}

	// Damaged, it is fetched again when that is found out.
	if err := os.WriteFile(s.Images().Path(d.Digest), bytes.Repeat([]byte{1}, compressed.Len()), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := e.Export(t.Context(), Output{Type: TypeOCI, Dest: filepath.Join(t.TempDir(), "x.tar")}, []Image{in}); err != nil || fetched != 1 {
		t.Errorf("fetched %d times, %v", fetched, err)
	}

	zstd := Output{Type: TypeImage, Form: &blob.Form{Compression: archive.Zstd}, ForceCompression: true}
	if r, err = e.Export(t.Context(), zstd, []Image{in}); err != nil {
		t.Fatal(err)
	}
	if made, err = s.Images().Image(t.Context(), r.Descriptor, &amd64); err != nil || made.Layers[0].MediaType != v1.MediaTypeImageLayerZstd || made.Layers[0].DiffID != base.Origin.DiffID {
		t.Errorf("forced: %+v, %v", made.Layers[0], err)
	}
}

func TestPlatforms(t *testing.T) {
	s := storetest.Open(t)
	client, err := registry.New(registry.Options{})
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(ggcrregistry.New(ggcrregistry.Logger(log.New(io.Discard, "", 0))))
	t.Cleanup(server.Close)
	host := strings.TrimPrefix(server.URL, "http://")
	e := &Exporter{Store: s, Client: client}
	one, two := image(t, s), image(t, s)
	two.Platform = v1.Platform{OS: "linux", Architecture: "arm", Variant: "v7"}
	both := []Image{one, two}
	r, err := e.Export(t.Context(), Output{Type: TypeRegistry, Names: []string{host + "/multi:1"}}, both)
	if err != nil {
		t.Fatal(err)
	}
	ref, err := name.ParseReference(host + "/multi:1")
	if err != nil {
		t.Fatal(err)
	}
	index, err := remote.Index(ref)
	if err != nil {
		t.Fatal(err)
	}
	if err := validate.Index(index); err != nil {
		t.Error(err)
	}
	if len(r.Pushed) != 1 || r.Pushed[0].Digest != r.Descriptor.Digest || r.ID != "" {
		t.Errorf("result %+v", r)
	}
	m, err := index.IndexManifest()
	if err != nil || len(m.Manifests) != 2 || m.Manifests[1].Platform.String() != "linux/arm/v7" {
		t.Errorf("index %+v, %v", m, err)
	}
	if _, err := e.Export(t.Context(), Output{Type: TypeDocker, Dest: filepath.Join(t.TempDir(), "x")}, both); err == nil {
		t.Error("several platforms in docker's archive")
	}
	if _, err := e.Export(t.Context(), Output{Type: TypeRegistry}, both); err == nil {
		t.Error("pushed without a name")
	}
}

// TestCorruptLayer changes a layer behind the store's back, where the blob is
// not made yet: nothing is exported.
func TestCorruptLayer(t *testing.T) {
	for _, typ := range []Type{TypeImage, TypeTar, TypeLocal} {
		s := storetest.Open(t)
		in := image(t, s)
		path := filepath.Join(storetest.Dir(t, s, in.Output.Layers[0].Digest), "d/f")
		if err := os.WriteFile(path, []byte("CONTENT"), 0o644); err != nil {
			t.Fatal(err)
		}
		dest := filepath.Join(t.TempDir(), "dest")
		_, err := (&Exporter{Store: s}).Export(t.Context(), Output{Type: typ, Dest: dest}, []Image{in})
		var corrupt *archive.CorruptError
		if !errors.As(err, &corrupt) {
			t.Errorf("%s: got %v", typ, err)
		}
		if _, err := os.Stat(filepath.Join(dest, "d/f")); err == nil {
			t.Errorf("%s: the damaged file is there", typ)
		}
	}
}

func TestCancel(t *testing.T) {
	s := storetest.Open(t)
	in := image(t, s)
	ctx, cancel := context.WithCancelCause(t.Context())
	cause := errors.New("enough")
	cancel(cause)
	for _, typ := range []Type{TypeImage, TypeTar, TypeLocal} {
		_, err := (&Exporter{Store: s, Stdout: io.Discard}).Export(ctx, Output{Type: typ, Dest: filepath.Join(t.TempDir(), "x")}, []Image{in})
		if !errors.Is(err, cause) {
			t.Errorf("%s: got %v", typ, err)
		}
	}
}

func TestExportTar(t *testing.T) {
	s := storetest.Open(t)
	epoch := time.Date(2023, 5, 1, 0, 0, 0, 0, time.UTC)
	var out bytes.Buffer
	e := &Exporter{Store: s, Stdout: &out, Epoch: &epoch}
	if _, err := e.Export(t.Context(), Output{Type: TypeTar, Dest: "-"}, []Image{image(t, s)}); err != nil {
		t.Fatal(err)
	}
	var got []string
	for tr := tar.NewReader(&out); ; {
		h, err := tr.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if h.ModTime.After(epoch) {
			t.Errorf("%s is from %v", h.Name, h.ModTime)
		}
		got = append(got, h.Name)
	}
	if s := strings.Join(got, " "); s != "d/ d/f g link" {
		t.Errorf("got %s", s)
	}
}
