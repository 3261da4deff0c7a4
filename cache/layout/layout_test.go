package layout

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
	"time"

	"kiln.build/cache/layout/unnamed"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

func open(t *testing.T) *Layout {
	t.Helper()
	l, err := Open(filepath.Join(t.TempDir(), "images"))
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// image stores an image with one layer and returns its manifest.
func image(t *testing.T, l *Layout, layer string, p v1.Platform) v1.Descriptor {
	t.Helper()
	blob := store(t, l, v1.MediaTypeImageLayer, []byte(layer))
	config := store(t, l, v1.MediaTypeImageConfig, v1.Image{
		Platform: p,
		RootFS:   v1.RootFS{Type: "layers", DiffIDs: []digest.Digest{blob.Digest}},
	})
	desc := store(t, l, v1.MediaTypeImageManifest, v1.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: v1.MediaTypeImageManifest,
		Config:    config,
		Layers:    []v1.Descriptor{blob},
	})
	desc.Platform = &p
	return desc
}

func store(t *testing.T, l *Layout, mediaType string, content any) v1.Descriptor {
	t.Helper()
	b, ok := content.([]byte)
	if !ok {
		var err error
		if b, err = json.Marshal(content); err != nil {
			t.Fatal(err)
		}
	}
	desc, err := l.WriteBytes(t.Context(), mediaType, b)
	if err != nil {
		t.Fatal(err)
	}
	return desc
}

var amd64 = v1.Platform{OS: "linux", Architecture: "amd64"}

func TestBlob(t *testing.T) {
	l := open(t)
	content := strings.Repeat("content ", 1<<16)
	want := digest.FromString(content)

	desc, err := l.Write(t.Context(), v1.Descriptor{MediaType: "text/plain"}, strings.NewReader(content))
	if err != nil {
		t.Fatal(err)
	}
	if desc.Digest != want || desc.Size != int64(len(content)) || desc.MediaType != "text/plain" {
		t.Errorf("got %+v", desc)
	}
	r, size, err := l.Blob(want)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	got, err := io.ReadAll(r)
	if err != nil || string(got) != content || size != desc.Size {
		t.Errorf("read %d bytes of %d: %v", len(got), size, err)
	}

	// What is there is not read again.
	if _, err := l.Write(t.Context(), desc, nil); err != nil {
		t.Errorf("write of an existing blob: %v", err)
	}
	if _, _, err := l.Blob(digest.FromString("no")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("missing blob: got %v", err)
	}
	for _, bad := range []digest.Digest{"", "sha256:../../etc/passwd", "x", "sha256:"} {
		if l.Has(bad) || l.Path(bad) != "" {
			t.Errorf("malformed digest %q has a path %q", bad, l.Path(bad))
		}
		if _, _, err := l.Blob(bad); err == nil {
			t.Errorf("malformed digest %q: no error", bad)
		}
	}
}

func TestWriteWrong(t *testing.T) {
	good := digest.FromString("good")
	tests := []struct {
		name    string
		desc    v1.Descriptor
		r       io.Reader
		corrupt bool
	}{
		{"other bytes", v1.Descriptor{Digest: good, Size: 4}, strings.NewReader("evil"), true},
		{"other bytes, size unknown", v1.Descriptor{Digest: good}, strings.NewReader("evil!"), true},
		{"too long", v1.Descriptor{Digest: good, Size: 4}, strings.NewReader("good and more"), false},
		{"too short", v1.Descriptor{Digest: good, Size: 4}, strings.NewReader("goo"), false},
		{"read error", v1.Descriptor{}, io.MultiReader(strings.NewReader("good"), failing{}), false},
		{"malformed digest", v1.Descriptor{Digest: "sha256:../x"}, strings.NewReader("x"), false},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			l := open(t)
			_, err := l.Write(t.Context(), test.desc, test.r)
			var corrupt *CorruptError
			if err == nil || errors.As(err, &corrupt) != test.corrupt {
				t.Errorf("got error %v", err)
			}
			if n := temps(t, l); n != 0 {
				t.Errorf("%d temporary files stay", n)
			}
			if l.Has(good) {
				t.Error("the blob is there")
			}
		})
	}
}

type failing struct{}

func (failing) Read([]byte) (int, error) { return 0, errors.New("cable cut") }

func temps(t *testing.T, l *Layout) int {
	t.Helper()
	m, err := filepath.Glob(filepath.Join(l.Dir(), tempPrefix+"*"))
	if err != nil {
		t.Fatal(err)
	}
	return len(m)
}

func TestCorruptBlob(t *testing.T) {
	l := open(t)
	desc := store(t, l, "text/plain", []byte("some content"))
	if err := os.WriteFile(l.Path(desc.Digest), []byte("sane content"), 0o644); err != nil {
		t.Fatal(err)
	}
	_, err := l.ReadBlob(desc.Digest)
	var corrupt *CorruptError
	if !errors.As(err, &corrupt) || corrupt.Digest != desc.Digest {
		t.Fatalf("got %v, want a CorruptError", err)
	}
	if err := l.Remove(desc.Digest); err != nil {
		t.Fatal(err)
	}
	store(t, l, "text/plain", []byte("some content"))
	if _, err := l.ReadBlob(desc.Digest); err != nil {
		t.Error(err)
	}
	// One of another size is replaced at once.
	if err := os.WriteFile(l.Path(desc.Digest), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	store(t, l, "text/plain", []byte("some content"))
	if _, err := l.ReadBlob(desc.Digest); err != nil {
		t.Error(err)
	}
}

func TestTags(t *testing.T) {
	l := open(t)
	one, two := image(t, l, "one", amd64), image(t, l, "two", amd64)
	for _, step := range []struct {
		ref  string
		desc v1.Descriptor
	}{{"example.com/a:1", one}, {"example.com/a:2", one}, {"", two}, {"", two}, {"example.com/a:1", two}} {
		if err := l.Tag(t.Context(), step.ref, step.desc); err != nil {
			t.Fatal(err)
		}
	}
	var got []string
	list, err := l.List()
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range list {
		got = append(got, fmt.Sprintf("%s=%s", RefName(d), map[digest.Digest]string{one.Digest: "one", two.Digest: "two"}[d.Digest]))
	}
	if want := "example.com/a:2=one =two example.com/a:1=two"; strings.Join(got, " ") != want {
		t.Errorf("got %q, want %q", got, want)
	}
	d, err := l.Resolve("example.com/a:1")
	if err != nil || d.Digest != two.Digest || d.Platform == nil || d.Size != two.Size {
		t.Errorf("resolve: %+v, %v", d, err)
	}
	for _, missing := range []string{"example.com/a", ""} {
		var notFound *NotFoundError
		if _, err := l.Resolve(missing); !errors.As(err, &notFound) || !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("resolve %q: %v", missing, err)
		}
		if err := l.Untag(t.Context(), missing); !errors.As(err, &notFound) {
			t.Errorf("untag %q: %v", missing, err)
		}
	}
	if err := l.Untag(t.Context(), "example.com/a:2"); err != nil {
		t.Error(err)
	}
	if err := l.Forget(t.Context(), two.Digest); err != nil {
		t.Error(err)
	}
	if list, _ := l.List(); len(list) != 0 {
		t.Errorf("left: %v", list)
	}
	if err := l.Tag(t.Context(), "x", v1.Descriptor{Digest: digest.FromString("gone")}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("tag of a missing blob: %v", err)
	}
}

// TestTagAgain gives images the names that they have: nothing is written then.
func TestTagAgain(t *testing.T) {
	l := open(t)
	one, two := image(t, l, "one", amd64), image(t, l, "two", amd64)
	other := one
	other.Annotations = map[string]string{"a": "b"}
	file := filepath.Join(l.Dir(), v1.ImageIndexFile)
	var before os.FileInfo
	for i, step := range []struct {
		ref     string
		desc    v1.Descriptor
		written bool
	}{
		{"x:1", one, true}, {"x:1", one, false}, {"", one, true}, {"", one, false}, {"x:1", one, false},
		{"x:2", one, true}, {"x:1", one, false}, {"x:1", other, true}, {"x:1", other, false}, {"x:1", two, true},
		{"", two, true}, {"", one, false}, {"x:1", one, true},
	} {
		if err := l.Tag(t.Context(), step.ref, step.desc); err != nil {
			t.Fatal(err)
		}
		after, err := os.Stat(file)
		if err != nil {
			t.Fatal(err)
		}
		if written := i == 0 || !os.SameFile(before, after); written != step.written {
			t.Errorf("step %d, %q: written %v, want %v", i, step.ref, written, step.written)
		}
		before = after
	}
	// Another tool has added an entry for a name; the last is the one that counts.
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	x := &index{}
	if err := x.parse(b); err != nil {
		t.Fatal(err)
	}
	stale := x.entries[len(x.entries)-1]
	if err := l.Tag(t.Context(), "x:1", two); err != nil {
		t.Fatal(err)
	}
	if err := l.change(t.Context(), func(x *index) error { x.entries = append(x.entries, stale); return nil }); err != nil {
		t.Fatal(err)
	}
	if err := l.Tag(t.Context(), "x:1", two); err != nil {
		t.Fatal(err)
	}
	if d, err := l.Resolve("x:1"); err != nil || d.Digest != two.Digest {
		t.Errorf("got %v, %v; want %v", d.Digest, err, two.Digest)
	}
}

// TestTagUnsettled tags as the same what a process wrote that was killed
// before the new index was sure to stay.
func TestTagUnsettled(t *testing.T) {
	l := open(t)
	file := filepath.Join(l.Dir(), v1.ImageIndexFile)
	mode := func() os.FileMode {
		t.Helper()
		fi, err := os.Stat(file)
		if err != nil {
			t.Fatal(err)
		}
		return fi.Mode().Perm()
	}
	one := image(t, l, "one", amd64)
	if err := l.Tag(t.Context(), "x", one); err != nil || mode() != settled {
		t.Fatalf("%v; the index has mode %o", err, mode())
	}
	if err := os.Chmod(file, unsettled); err != nil {
		t.Fatal(err)
	}
	next, err := OpenExisting(l.Dir())
	if err != nil {
		t.Fatal(err)
	}
	if err := next.Tag(t.Context(), "x", one); err != nil || mode() != settled {
		t.Errorf("%v; the index has mode %o", err, mode())
	}
}

// What others put into index.json stays as it was.
func TestForeignIndex(t *testing.T) {
	l := open(t)
	d := image(t, l, "x", amd64)
	theirs := fmt.Sprintf(`{"schemaVersion":2,"x-tool":{"a":[1,2]},"annotations":{"k":"v"},"manifests":[`+
		`{"mediaType":"%s","size":%d,"digest":"%s","x-more":true,"annotations":{"org.opencontainers.image.ref.name":"latest","other":"1"}}]}`,
		d.MediaType, d.Size, d.Digest)
	if err := os.WriteFile(filepath.Join(l.Dir(), "index.json"), []byte(theirs), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := l.Tag(t.Context(), "mine", d); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(filepath.Join(l.Dir(), "index.json"))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`"x-tool":{"a":[1,2]}`, `"annotations":{"k":"v"}`, `"x-more":true`, `"other":"1"`, `"schemaVersion":2`} {
		if !bytes.Contains(b, []byte(want)) {
			t.Errorf("%s is lost from %s", want, b)
		}
	}
	if d, err := l.Resolve("latest"); err != nil || d.Annotations["other"] != "1" {
		t.Errorf("their tag: %+v, %v", d, err)
	}
}

func TestOpenUnknown(t *testing.T) {
	dir := t.TempDir()
	if _, err := OpenExisting(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("open a directory without oci-layout: %v", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "oci-layout"), []byte(`{"imageLayoutVersion":"9.0.0"}`), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(dir); err == nil || !strings.Contains(err.Error(), "9.0.0") {
		t.Errorf("open an unknown version: %v", err)
	}
}

func TestImage(t *testing.T) {
	l := open(t)
	arm64 := v1.Platform{OS: "linux", Architecture: "arm64"}
	armv7 := v1.Platform{OS: "linux", Architecture: "arm", Variant: "v7"}
	armv6 := v1.Platform{OS: "linux", Architecture: "arm", Variant: "v6"}
	attestation := image(t, l, "signed", v1.Platform{OS: "unknown", Architecture: "unknown"})
	attestation.Annotations = map[string]string{"vnd.docker.reference.type": "attestation-manifest"}
	one, six, seven := image(t, l, "amd64", amd64), image(t, l, "v6", armv6), image(t, l, "v7", armv7)
	multi := store(t, l, v1.MediaTypeImageIndex, v1.Index{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: v1.MediaTypeImageIndex,
		Manifests: []v1.Descriptor{attestation, one, six, seven},
	})
	outer := store(t, l, v1.MediaTypeImageIndex, v1.Index{
		Versioned: specs.Versioned{SchemaVersion: 2},
		Manifests: []v1.Descriptor{multi},
	})
	tests := []struct {
		desc     v1.Descriptor
		platform v1.Platform
		want     digest.Digest
	}{
		{multi, amd64, one.Digest},
		{outer, amd64, one.Digest},
		{multi, armv7, seven.Digest},
		{multi, armv6, six.Digest},
		{multi, v1.Platform{OS: "linux", Architecture: "arm"}, seven.Digest},
		{multi, arm64, seven.Digest},
		{one, arm64, one.Digest}, // a manifest is what it is
	}
	for _, test := range tests {
		m, err := l.Image(t.Context(), test.desc, &test.platform)
		if err != nil || m.Descriptor.Digest != test.want || len(m.Layers) != 1 || m.Layers[0].DiffID == "" || len(m.Config) == 0 {
			t.Errorf("image for %v: %+v, %v", test.platform, m, err)
		}
	}
	var none *PlatformError
	_, err := l.Image(t.Context(), multi, &v1.Platform{OS: "linux", Architecture: "s390x"})
	if !errors.As(err, &none) {
		t.Fatalf("got %v", err)
	}
	if want := "no image for platform linux/s390x; there are linux/amd64, linux/arm/v6, linux/arm/v7"; err.Error() != want {
		t.Errorf("got %q, want %q", err, want)
	}
}

func TestImageMalformed(t *testing.T) {
	l := open(t)
	config := store(t, l, v1.MediaTypeImageConfig, v1.Image{})
	ref := fmt.Sprintf(`{"mediaType":"%s","digest":"%s","size":%d}`, config.MediaType, config.Digest, config.Size)
	tests := []struct{ name, doc, want string }{
		{"schema 1", `{"schemaVersion":1,"fsLayers":[]}`, "schema 1"},
		{"both", `{"schemaVersion":2,"manifests":[],"config":` + ref + `}`, "both"},
		{"type lies", `{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","config":` + ref + `}`, "not what its media type"},
		{"empty index", `{"schemaVersion":2,"manifests":[]}`, "nor for any other"},
		{"layer count", `{"schemaVersion":2,"config":` + ref + `,"layers":[` + ref + `]}`, "1 layers, the config 0"},
		{"no config", `{"schemaVersion":2,"layers":[]}`, "media type"},
		{"not JSON", `hello`, "invalid"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			desc := store(t, l, "", []byte(test.doc))
			if _, err := l.Image(t.Context(), desc, &amd64); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want %q", err, test.want)
			}
		})
	}
}

func TestCollect(t *testing.T) {
	l := open(t)
	kept, gone := image(t, l, "kept", amd64), image(t, l, "gone", amd64)
	multi := store(t, l, v1.MediaTypeImageIndex, v1.Index{Manifests: []v1.Descriptor{kept}})
	if err := l.Tag(t.Context(), "multi", multi); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(l.Dir(), tempPrefix+"stale"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	idle, err := l.Idle(t.Context(), false)
	if err != nil {
		t.Fatal(err)
	}
	if len(idle.Blobs) != 3 || !slices.Contains(idle.Blobs, gone.Digest) || !l.Has(gone.Digest) {
		t.Errorf("idle are %v", idle.Blobs)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if lease, err := l.Lease(ctx); err == nil {
		t.Error("a lease is given out meanwhile")
		lease.Release()
	}
	idle.Release()
	if err := l.Collect(t.Context(), true); err != nil {
		t.Errorf("collect: %v", err)
	}
	if l.Has(gone.Digest) || temps(t, l) != 0 {
		t.Error("the wrong blobs stay")
	}
	if _, err := l.Image(t.Context(), multi, &amd64); err != nil {
		t.Error(err)
	}
	if n := len(l.Reachable(multi)); n != 4 {
		t.Errorf("%d blobs are reachable, want 4", n)
	}
}

// Images are made and dropped while collections run all the time: what a
// lease covers is never lost.
func TestCollectBesideWriters(t *testing.T) {
	l := open(t)
	stop := make(chan struct{})
	var collector, writers sync.WaitGroup
	collector.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			if err := l.Collect(t.Context(), true); err != nil {
				t.Error(err)
				return
			}
		}
	})
	for w := range 4 {
		writers.Go(func() {
			for i := range 10 {
				ref := fmt.Sprintf("image:%d", w)
				// All writers share a layer, so it is found as often as made.
				lease, err := l.Lease(t.Context())
				if err != nil {
					t.Error(err)
					return
				}
				d := image(t, l, "shared", v1.Platform{OS: fmt.Sprint(w, i)})
				err = l.Tag(t.Context(), ref, d)
				lease.Release()
				if err != nil {
					t.Error(err)
					return
				}
				if m, err := l.Image(t.Context(), d, nil); err != nil {
					t.Error(err)
				} else if !l.Has(m.Layers[0].Digest) {
					t.Error("the layer of a tagged image is gone")
				}
			}
			if err := l.Untag(t.Context(), fmt.Sprintf("image:%d", w)); err != nil {
				t.Error(err)
			}
		})
	}
	writers.Wait()
	close(stop)
	collector.Wait()
}

func TestCollectBusy(t *testing.T) {
	l := open(t)
	lease, err := l.Lease(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Collect(t.Context(), false); !errors.Is(err, ErrBusy) {
		t.Errorf("got %v, want ErrBusy", err)
	}
	why := errors.New("had enough")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(why)
	if err := l.Collect(ctx, true); !errors.Is(err, why) {
		t.Errorf("got %v, want the cause", err)
	}
	lease.Release()
	lease.Release()
	if err := l.Collect(t.Context(), false); err != nil {
		t.Error(err)
	}
}

func TestConcurrentOpenAndTag(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "b")
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			l, err := Open(dir)
			if err != nil {
				t.Error(err)
				return
			}
			if err := l.Tag(t.Context(), fmt.Sprint(i), image(t, l, fmt.Sprint(i%3), amd64)); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	l, err := OpenExisting(dir)
	if err != nil {
		t.Fatal(err)
	}
	if list, _ := l.List(); len(list) != 8 {
		t.Errorf("%d tags, want 8: an update was lost", len(list))
	}
}

func TestSkopeo(t *testing.T) {
	skopeo, err := exec.LookPath("skopeo")
	if err != nil {
		t.Skip("skopeo is not installed")
	}
	l := open(t)
	if err := l.Tag(t.Context(), "docker.io/library/hello:latest", image(t, l, "hello", amd64)); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(skopeo, "inspect", "--override-os=linux", "--override-arch=amd64",
		"oci:"+l.Dir()+":docker.io/library/hello:latest").CombinedOutput()
	if err != nil || !bytes.Contains(out, []byte(digest.FromString("hello"))) {
		t.Errorf("skopeo inspect: %v\n%s", err, out)
	}
}

func BenchmarkTag(b *testing.B) {
	l, err := Open(b.TempDir())
	if err != nil {
		b.Fatal(err)
	}
	d, err := l.WriteBytes(b.Context(), v1.MediaTypeImageManifest, []byte("{}"))
	if err != nil {
		b.Fatal(err)
	}
	for i := range b.N {
		if err := l.Tag(b.Context(), fmt.Sprint("image:", i%100), d); err != nil {
			b.Fatal(err)
		}
	}
}

// TestWriteSameAtOnce has several goroutines write one blob, which none of
// them sees before it has written its own.
func TestWriteSameAtOnce(t *testing.T) {
	l := open(t)
	for i := range 50 {
		var wg sync.WaitGroup
		start := make(chan struct{})
		for range 8 {
			wg.Go(func() {
				<-start
				if _, err := l.WriteBytes(t.Context(), "text/plain", fmt.Append(nil, i)); err != nil {
					t.Error(err)
				}
			})
		}
		close(start)
		wg.Wait()
	}
	if n := temps(t, l); n != 0 {
		t.Errorf("%d temporary files are left", n)
	}
}

// TestPour writes files past the page cache, from some place on or all but the
// first bytes, and something behind that.
func TestPour(t *testing.T) {
	content := make([]byte, 5*pieceSize+3)
	rand.NewChaCha8([32]byte{2}).Read(content)
	for _, size := range []int{0, 5, pieceSize, 3 * pieceSize, len(content)} {
		for _, dear := range []time.Duration{1, time.Hour} {
			path := filepath.Join(t.TempDir(), "f")
			f, err := unnamed.Nameless(path)
			if err != nil {
				t.Fatal(err)
			}
			p := Pour{f: f, ctx: t.Context(), limit: -1, dear: dear, from: pieceSize}
			half := size / 2
			n, err := p.Write(content[:half])
			m, readErr := p.ReadFrom(iotest.OneByteReader(bytes.NewReader(content[half:size])))
			if err := errors.Join(err, readErr, p.Close(), p.Close()); err != nil || n != half || m != int64(size-half) {
				t.Errorf("%d bytes: %d and %d, %v", size, n, m, err)
			}
			if _, err := f.Write([]byte("behind")); err != nil {
				t.Error(err)
			}
			if err := errors.Join(f.SetName(path, path+".beside"), f.Close()); err != nil {
				t.Fatal(err)
			}
			if b, err := os.ReadFile(path); err != nil || !bytes.Equal(b, append(content[:size:size], "behind"...)) {
				t.Errorf("%d bytes: %d other ones are there, %v", size, len(b), err)
			}
		}
	}
}

// TestWriteLarge writes blobs around the sizes at which the way of writing
// changes, past the page cache and not, from readers that give little at a
// time.
func TestWriteLarge(t *testing.T) {
	l := open(t)
	const directFrom = 2 << 20
	l.directFrom, l.dear = directFrom, 1 // nothing is as cheap as that
	content := make([]byte, directFrom+(weighPieces+3)*pieceSize+1)
	rand.NewChaCha8([32]byte{1}).Read(content)
	for _, size := range []int{
		0, 1, smallPiece - 1, smallPiece, smallPiece + 1, pieceSize - 1, pieceSize, pieceSize + 1,
		directFrom - 1, directFrom, directFrom + 1, directFrom + pieceSize - 1, directFrom + pieceSize,
		directFrom + 2*pieceSize + unnamed.DirectAlign, directFrom + (weighPieces+1)*pieceSize, len(content),
	} {
		for i, mediaType := range []string{v1.MediaTypeImageLayer, v1.MediaTypeImageLayerGzip, v1.MediaTypeImageLayerGzip} {
			want := digest.FromBytes(content[:size])
			var got v1.Descriptor
			var err error
			if i == 2 {
				got, err = l.Make(t.Context(), mediaType, true, func(w io.Writer) error {
					_, err := bytes.NewReader(content[:size]).WriteTo(struct{ io.Writer }{w})
					return err
				})
			} else {
				got, err = l.Write(t.Context(), v1.Descriptor{MediaType: mediaType}, iotest.HalfReader(bytes.NewReader(content[:size])))
			}
			if err != nil || got.Digest != want || got.Size != int64(size) {
				t.Errorf("%d bytes as %s: %v, %v", size, mediaType, got, err)
				continue
			}
			if b, err := os.ReadFile(l.Path(want)); err != nil || !bytes.Equal(b, content[:size]) {
				t.Errorf("%d bytes as %s: %d other ones are there, %v", size, mediaType, len(b), err)
			}
			if err := l.Remove(want); err != nil {
				t.Error(err)
			}
		}
	}
	// An end that the reader did not expect is no end.
	cut := io.MultiReader(bytes.NewReader(content[:pieceSize+5]), iotest.ErrReader(io.ErrUnexpectedEOF))
	if _, err := l.Write(t.Context(), v1.Descriptor{}, cut); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("got %v", err)
	}
	// Nor is one that the writer fails at, which says itself why.
	failure := errors.New("it was not to be")
	_, err := l.Make(t.Context(), v1.MediaTypeImageLayer, false, func(w io.Writer) error {
		_, err := w.Write(content)
		return errors.Join(err, failure)
	})
	if err == nil || err.Error() != failure.Error() || temps(t, l) != 0 {
		t.Errorf("got %v, and %d temporary files are left", err, temps(t, l))
	}
	// One who has stopped is not waited for.
	ctx, cancel := context.WithCancel(t.Context())
	_, err = l.Make(ctx, v1.MediaTypeImageLayer, false, func(w io.Writer) error {
		cancel()
		_, err := w.Write(content)
		return err
	})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}
