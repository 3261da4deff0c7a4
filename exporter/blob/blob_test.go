package blob

import (
	"archive/tar"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"kiln.build/cache"
	"kiln.build/cache/archive"
	"kiln.build/cache/layout"
	"kiln.build/cache/tree"
	"kiln.build/exporter/internal/storetest"
	"kiln.build/solver"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// names lists what is in a blob, and checks its digest.
func names(t *testing.T, s *cache.Store, b Blob) string {
	t.Helper()
	r, _, err := s.Images().Blob(b.Descriptor.Digest)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	plain, err := archive.Decompress(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	defer plain.Close()
	var all []string
	for tr := tar.NewReader(plain); ; {
		h, err := tr.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, h.Name)
	}
	return strings.Join(all, " ")
}

func TestPackForms(t *testing.T) {
	s := storetest.Open(t)
	m := Maker{Store: s}
	stack := []solver.Layer{storetest.Layer(t, s, "d/", "d/f content", "g more")}
	level := 1
	var diffID string
	for _, f := range []Form{{}, {Compression: archive.Gzip}, {Compression: archive.Zstd, Level: &level}} {
		b, err := m.Pack(t.Context(), stack, 0, f, nil)
		if err != nil {
			t.Fatal(err)
		}
		if b.Descriptor.MediaType != f.compression().MediaType() {
			t.Errorf("%s has the media type %s", f.compression(), b.Descriptor.MediaType)
		}
		if diffID == "" {
			diffID = b.DiffID.String()
		}
		if b.DiffID.String() != diffID {
			t.Errorf("%s has another diff ID", f.compression())
		}
		if got := names(t, s, b); got != "d/ d/f g" {
			t.Errorf("%s holds %q", f.compression(), got)
		}
		again, err := m.Pack(t.Context(), stack, 0, f, nil)
		if err != nil || again.Descriptor.Digest != b.Descriptor.Digest {
			t.Errorf("%s the second time: %v, %v", f.compression(), again, err)
		}
	}
}

// TestPackRemembered takes the layer's files away: only what is remembered
// can still be had.
func TestPackRemembered(t *testing.T) {
	s := storetest.Open(t)
	m := Maker{Store: s}
	base := storetest.Layer(t, s, "d/", "d/f 1", "g 2")
	for name, stack := range map[string][]solver.Layer{
		"alone":        {storetest.Layer(t, s, "f x")},
		"with deletes": {base, storetest.Layer(t, s, ".wh.g", "d/", "d/.wh..wh..opq")},
	} {
		top := len(stack) - 1
		first, err := m.Pack(t.Context(), stack, top, Form{}, nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.RemoveAll(storetest.Dir(t, s, stack[top].Digest)); err != nil {
			t.Fatal(err)
		}
		again, err := m.Pack(t.Context(), stack, top, Form{}, nil)
		if err != nil || again.Descriptor.Digest != first.Descriptor.Digest {
			t.Errorf("%s: %v, %v", name, again, err)
		}
		epoch := time.Unix(0, 0)
		if _, err := m.Pack(t.Context(), stack, top, Form{}, &epoch); err == nil {
			t.Errorf("%s: the epoch made no difference", name)
		}
	}
}

// TestPackDependsOnLower packs one layer over two bases: whiteouts are
// written for what is there.
// TestFeed makes the blob of a layer that is not there yet. It is remembered
// only if the layer comes about, and is the one that is packed otherwise.
func TestFeed(t *testing.T) {
	m := Maker{Store: storetest.Open(t)}
	l := storetest.Layer(t, m.Store, "d/", "d/f content", "g more")
	list, err := m.Store.Tree(l.Digest)
	if err != nil {
		t.Fatal(err)
	}
	feed := func(m Maker, kept func(Blob) error) (Blob, error) {
		f := archive.NewFeed(2)
		go func() {
			for _, e := range []string{"d/f content", "g more"} {
				name, text, _ := strings.Cut(e, " ")
				at, _ := list.Lookup(name)
				if b := f.Next([]*tree.Entry{at}); b != nil {
					b.Data = append(b.Data, text...)
					b.Next(nil)
					b.Done()
				}
			}
			f.End(nil)
		}()
		return m.Feed(t.Context(), l, list, archive.PackOptions{Feed: f}, Form{Compression: archive.Gzip}, nil, kept)
	}
	none := errors.New("no layer")
	other := Maker{Store: storetest.Open(t)}
	if _, err := feed(other, func(Blob) error { return none }); !errors.Is(err, none) {
		t.Errorf("the layer did not come about: %v", err)
	}
	count := 0
	if err := other.Store.Records(t.Context(), func(*cache.Record) error { count++; return nil }); err != nil || count > 0 {
		t.Errorf("%d actions are remembered, %v", count, err)
	}
	fed, err := feed(other, func(Blob) error { return nil })
	if err != nil {
		t.Fatal(err)
	}
	want, err := m.Pack(t.Context(), []solver.Layer{l}, 0, Form{Compression: archive.Gzip}, nil)
	if err != nil || fed.Descriptor.Digest != want.Descriptor.Digest || fed.DiffID != want.DiffID {
		t.Errorf("fed %v, packed %v, %v", fed, want, err)
	}
	again, err := feed(other, func(Blob) error { t.Error("it is made again"); return nil })
	if err != nil || again.Descriptor.Digest != fed.Descriptor.Digest {
		t.Errorf("again: %v, %v", again, err)
	}
}

func TestPackDependsOnLower(t *testing.T) {
	s := storetest.Open(t)
	m := Maker{Store: s}
	one := storetest.Layer(t, s, "d/", "d/a 1", "g 2")
	two := storetest.Layer(t, s, "d/", "d/b 1")
	top := storetest.Layer(t, s, ".wh.g", "d/", "d/.wh..wh..opq", "d/c 3")
	for want, base := range map[string]solver.Layer{"d/ d/.wh.a d/c .wh.g": one, "d/ d/.wh.b d/c": two} {
		b, err := m.Pack(t.Context(), []solver.Layer{base, top}, 1, Form{}, nil)
		if err != nil {
			t.Fatal(err)
		}
		if got := names(t, s, b); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
		if _, err := s.Record(cache.UnpackAction(b.DiffID).Key); err == nil {
			t.Error("the opaque layer passes for what its blob unpacks to")
		}
	}
}

func TestPackKnownAsUnpacked(t *testing.T) {
	s := storetest.Open(t)
	l := storetest.Layer(t, s, "f x")
	b, err := (&Maker{Store: s}).Pack(t.Context(), []solver.Layer{l}, 0, Form{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	r, err := s.Lookup(t.Context(), cache.UnpackAction(b.DiffID).Key)
	if err != nil || len(r.Layers) != 1 || r.Layers[0].Digest != l.Digest {
		t.Errorf("got %v, %v", r, err)
	}
}

// TestPackCorrupt changes a file behind the store's back.
func TestPackCorrupt(t *testing.T) {
	s := storetest.Open(t)
	l := storetest.Layer(t, s, "f content")
	path := filepath.Join(storetest.Dir(t, s, l.Digest), "f")
	if err := os.WriteFile(path, []byte("CONTENT"), 0o644); err != nil {
		t.Fatal(err)
	}
	_, err := (&Maker{Store: s}).Pack(t.Context(), []solver.Layer{l}, 0, Form{}, nil)
	var corrupt *archive.CorruptError
	if !errors.As(err, &corrupt) || corrupt.Path != "f" {
		t.Fatalf("got %v", err)
	}
	if _, err := os.Stat(storetest.Dir(t, s, l.Digest)); err == nil {
		t.Error("the layer is still there")
	}
}

func TestRecompress(t *testing.T) {
	s := storetest.Open(t)
	m := Maker{Store: s}
	stack := []solver.Layer{storetest.Layer(t, s, "f content")}
	plain, err := m.Pack(t.Context(), stack, 0, Form{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if same, err := m.Recompress(t.Context(), plain, Form{}); err != nil || same.Descriptor.Digest != plain.Descriptor.Digest {
		t.Errorf("got %v, %v", same, err)
	}
	z, err := m.Recompress(t.Context(), plain, Form{Compression: archive.Gzip})
	if err != nil {
		t.Fatal(err)
	}
	if got := names(t, s, z); got != "f" || z.DiffID != plain.DiffID {
		t.Errorf("got %q, diff ID %s", got, z.DiffID)
	}
	direct, err := m.Pack(t.Context(), stack, 0, Form{Compression: archive.Gzip}, nil)
	if err != nil || direct.Descriptor.Digest != z.Descriptor.Digest {
		t.Errorf("packing and compressing gives %s, compressing what is packed %s (%v)", direct.Descriptor.Digest, z.Descriptor.Digest, err)
	}
	// A diff ID that is not the content's is found out.
	wrong := z
	wrong.DiffID = z.Descriptor.Digest
	var corrupt *layout.CorruptError
	if _, err := m.Recompress(t.Context(), wrong, Form{Compression: archive.Zstd}); !errors.As(err, &corrupt) {
		t.Errorf("got %v", err)
	}
}

func TestOrigin(t *testing.T) {
	s := storetest.Open(t)
	content := "not looked at"
	other := storetest.Open(t)
	desc, err := other.Images().WriteBytes(t.Context(), v1.MediaTypeImageLayerGzip, []byte(content))
	if err != nil {
		t.Fatal(err)
	}
	l := solver.Layer{Origin: &solver.Origin{MediaType: desc.MediaType, Blob: desc.Digest, Size: desc.Size, DiffID: desc.Digest}}
	m := Maker{Store: s}
	var missing *MissingError
	if _, err := m.Origin(t.Context(), l); !errors.As(err, &missing) {
		t.Errorf("got %v", err)
	}
	fetched := 0
	m.Fetch = func(ctx context.Context, o solver.Origin) error {
		fetched++
		_, err := s.Images().WriteBytes(ctx, o.MediaType, []byte(content))
		return err
	}
	for range 2 {
		if b, err := m.Origin(t.Context(), l); err != nil || b.Descriptor.Digest != desc.Digest {
			t.Errorf("got %v, %v", b, err)
		}
	}
	if fetched != 1 {
		t.Errorf("fetched %d times", fetched)
	}
	// One that was cut short is fetched again.
	if err := os.Truncate(s.Images().Path(desc.Digest), 3); err != nil {
		t.Fatal(err)
	}
	if _, err := m.Origin(t.Context(), l); err != nil || fetched != 2 {
		t.Errorf("fetched %d times, %v", fetched, err)
	}
	if m.Fetch = func(context.Context, solver.Origin) error { return errors.New("no route") }; s.Images().Remove(desc.Digest) != nil {
		t.Fatal("cannot remove")
	}
	if _, err := m.Origin(t.Context(), l); err == nil || !strings.Contains(err.Error(), "no route") {
		t.Errorf("got %v", err)
	}
}

func TestDescribe(t *testing.T) {
	one := 1
	epoch := time.Unix(1700000000, 0)
	all := []string{
		action(pack{layer: "sha256:a"}).Description,
		action(pack{layer: "sha256:b"}).Description,
		action(pack{layer: "sha256:a", lower: "sha256:b"}).Description,
		action(pack{layer: "sha256:a", epoch: &epoch}).Description,
		action(pack{layer: "sha256:a", form: Form{Compression: archive.Gzip}}).Description,
		action(pack{layer: "sha256:a", form: Form{Compression: archive.Gzip, Level: &one}}).Description,
		action(recompress{diffID: "sha256:a"}).Description,
	}
	sorted := slices.Compact(slices.Sorted(slices.Values(all)))
	if len(sorted) != len(all) {
		t.Errorf("two of these are equal: %q", all)
	}
	if got := action(pack{layer: "sha256:a", form: Form{Level: &one}}).Key; got != action(pack{layer: "sha256:a"}).Key {
		t.Error("the level counts without compression")
	}
}
