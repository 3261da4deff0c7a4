package runner

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"

	"kiln.build/cache"
	"kiln.build/solver"
)

func TestImageFromRegistry(t *testing.T) {
	b, h := newBed(t), newHub(t)
	base := archived(t, "d 755 0:0 d", "f 640 3:4 d/a A", "f 644 0:0 d/b B", "d 755 0:0 old", "f 644 0:0 old/x X")
	change := archived(t, "d 755 0:0 d", "f 644 0:0 d/.wh.b ", "f 644 0:0 d/c C", "d 755 0:0 old", "f 644 0:0 old/.wh..wh..opq ", "f 644 0:0 old/y Y")
	one := h.image(amd64, base, change)
	other := h.image(amd64, base, archived(t, "f 644 0:0 more M"))
	oneRef, otherRef := h.push(h.index(one, h.image(arm64, base)), "one:1"), h.push(other, "two")

	b.online(h)
	out := b.build(b.from(oneRef))
	wantLines(t, "image", b.list(out), "d 755 0:0 d", "f 640 3:4 d/a A", "f 644 0:0 d/c C", "d 755 0:0 old opaque", "f 644 0:0 old/y Y")
	layers := h.layersOf(one)
	for i, l := range out.Layers {
		if o := l.Origin; o == nil || o.Blob != layers[i].Digest || o.Size != layers[i].Size || o.MediaType != layers[i].MediaType {
			t.Errorf("layer %d has the origin %+v", i, l.Origin)
		}
		if data, err := b.store.Images().ReadBlob(layers[i].Digest); err != nil || digest.FromBytes(data) != layers[i].Digest {
			t.Errorf("layer %d: its blob was not kept: %v", i, err)
		}
	}

	// Another image with the same base: only what is new is fetched.
	h.requests()
	v := b.from(otherRef)
	h.requests()
	out = b.build(v)
	wantLines(t, "second image", b.list(out), "d 755 0:0 d", "f 640 3:4 d/a A", "f 644 0:0 d/b B", "d 755 0:0 old", "f 644 0:0 old/x X", "f 644 0:0 more M")
	wantLines(t, "fetched for the second image", h.requests(), digests(h.layersOf(other)[1])...)

	// The same content under another name: nothing at all.
	again := b.from(h.push(other, "renamed:x"))
	h.requests()
	b.build(again)
	if b.performed("Image") != 0 || len(h.requests()) != 0 {
		t.Errorf("a new name made it run %q", b.ran)
	}

	// By digest, of the index and of the manifest, it is in the store.
	b.offline()
	img, err := b.store.Images().ReadBlob(one.Digest)
	if err != nil {
		t.Fatal(err)
	}
	name := oneRef[:strings.LastIndex(oneRef, ":")]
	for _, d := range []digest.Digest{digest.FromBytes(img), h.index(one, h.image(arm64, base)).Digest} {
		b.build(b.from(name + "@" + string(d)))
	}
	if _, err := b.resolve(name+"@"+string(h.index(one, h.image(arm64, base)).Digest), arm64, false); err == nil {
		t.Error("the manifest for arm64 was never asked for, and is there")
	}
	_, err = b.resolve(oneRef, amd64, false)
	wantError(t, "a tag that only the registry knows", err, oneRef, "is not in the image store")
}

// TestDamagedBlob has a blob in the store that was changed after it was
// written, at its start, in its middle and at its end.
func TestDamagedBlob(t *testing.T) {
	for name, damage := range map[string]func([]byte) []byte{
		"start":  func(b []byte) []byte { return append([]byte("xx"), b[2:]...) },
		"middle": func(b []byte) []byte { return slices.Replace(bytes.Clone(b), len(b)/2, len(b)/2+2, 0x55, 0xaa) },
		"end":    func(b []byte) []byte { return slices.Replace(bytes.Clone(b), len(b)-6, len(b)-5, b[len(b)-6]^1) },
		"cut":    func(b []byte) []byte { return b[:len(b)/2] },
		"longer": func(b []byte) []byte { return append(bytes.Clone(b), "more"...) },
		"empty":  func([]byte) []byte { return nil },
	} {
		t.Run(name, func(t *testing.T) {
			b, h := newBed(t), newHub(t)
			b.mayWarn = true
			d := h.image(amd64, archived(t, "f 644 0:0 x "+strings.Repeat("0123456789", 5000), "f 644 0:0 y Y"))
			blob := h.layersOf(d)[0]
			ref := h.push(d, "image")
			b.online(h)
			v := b.from(ref)
			good, err := h.source.ReadBlob(blob.Digest)
			if err != nil {
				t.Fatal(err)
			}
			spoil := func() {
				t.Helper()
				if err := os.WriteFile(b.blob(blob), damage(good), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			if err := os.MkdirAll(filepath.Dir(b.blob(blob)), 0o755); err != nil {
				t.Fatal(err)
			}

			b.offline()
			spoil()
			_, err = b.try(t.Context(), v)
			wantError(t, "without a registry", err, string(blob.Digest), "is corrupt", "cannot be had again")
			if n := b.layerCount(); n != 0 || b.store.Images().Has(blob.Digest) {
				t.Errorf("%d layers are left, and the blob: %t", n, b.store.Images().Has(blob.Digest))
			}

			b.online(h)
			spoil()
			out := b.build(v)
			if len(b.warned) != 2 || !strings.Contains(b.warned[1], string(blob.Digest)+" is corrupt") {
				t.Errorf("warnings: %q", b.warned)
			}
			wantLines(t, "fetched again", b.list(out), "f 644 0:0 x [50000]", "f 644 0:0 y Y")
			if now, err := b.store.Images().ReadBlob(blob.Digest); err != nil || !bytes.Equal(now, good) {
				t.Errorf("the blob is still damaged: %v", err)
			}
		})
	}
}

// TestLyingRegistry checks that bytes which are not those asked for leave
// nothing behind.
func TestLyingRegistry(t *testing.T) {
	archive := archived(t, "f 644 0:0 x "+strings.Repeat("0123456789", 5000))
	for name, lie := range map[string]func([]byte) []byte{
		"other bytes": func(b []byte) []byte { return bytes.Repeat([]byte("x"), len(b)) },
		"other image": func([]byte) []byte { return []byte(gzipped(t, archived(t, "f 4755 0:0 x evil"))) },
		"tail":        func(b []byte) []byte { return append(bytes.Clone(b), "tail"...) },
		"nothing":     func([]byte) []byte { return nil },
	} {
		t.Run(strings.ReplaceAll(name, " ", "-"), func(t *testing.T) {
			b, h := newBed(t), newHub(t)
			ref := h.push(h.image(amd64, archive), "image")
			b.online(h)
			v := b.from(ref)
			blobs := b.entries("images/blobs/sha256")
			h.lie(lie)
			_, err := b.try(t.Context(), v)
			wantError(t, name, err, ref)
			if n := b.layerCount(); n != 0 || b.entries("images/blobs/sha256") != blobs {
				t.Errorf("%d layers are left, and %d blobs of %d", n, b.entries("images/blobs/sha256"), blobs)
			}
		})
	}
	t.Run("config", func(t *testing.T) {
		b, h := newBed(t), newHub(t)
		d := h.image(amd64, archive)
		img, err := h.source.Image(t.Context(), d, nil)
		if err != nil {
			t.Fatal(err)
		}
		b.online(h)
		ref := h.push(d, "image")
		_, err = b.try(t.Context(), &solver.Vertex{Op: (&Image{Ref: ref, Layers: []solver.Origin{{
			DiffID: digest.FromString("another"), Blob: img.Layers[0].Digest, Size: img.Layers[0].Size, MediaType: img.Layers[0].MediaType,
		}}}).Op()})
		wantError(t, "wrong diff ID", err, "the image's config says "+string(digest.FromString("another")))
		if n := b.layerCount(); n != 0 {
			t.Errorf("%d layers are left", n)
		}
	})
}

// TestUnpackOnce has two processes want one image: its layers are fetched
// once.
func TestUnpackOnce(t *testing.T) {
	b, h := newBed(t), newHub(t)
	d := h.image(amd64, archived(t, "f 644 0:0 x "+strings.Repeat("x", 1<<20)), archived(t, "f 644 0:0 y Y"))
	ref := h.push(d, "image")
	b.online(h)
	v := b.from(ref)
	h.requests()
	second, err := cache.Open(b.store.Root(), cache.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer second.Close()
	var wait sync.WaitGroup
	for _, store := range []*cache.Store{b.store, second} {
		wait.Go(func() {
			s := &solver.Solver{Cache: store, Runner: &Runner{Store: store, Registry: h.client}, Jobs: 2}
			if _, err := s.Solve(t.Context(), v); err != nil {
				t.Error(err)
			}
		})
	}
	wait.Wait()
	wantLines(t, "fetched", h.requests(), digests(h.layersOf(d)...)...)
}

func TestTar(t *testing.T) {
	b := newBed(t)
	plain := archived(t, "d 700 1:2 d", "f 644 0:0 d/x X", "f 644 0:0 .wh.y ")
	at := filepath.Join(t.TempDir(), "root.tar")
	for name, data := range map[string][]byte{"plain": plain, "gzip": []byte(gzipped(t, plain))} {
		if err := os.WriteFile(at, data, 0o600); err != nil {
			t.Fatal(err)
		}
		out := b.build(b.tarAt(at))
		wantLines(t, name, b.layer(out), "d 700 1:2 d", "f 644 0:0 d/x X", "w y")
	}
	for name, data := range map[string][]byte{"cut": plain[:1600], "text": []byte(strings.Repeat("no tar ", 200))} {
		if err := os.WriteFile(at, data, 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := b.try(t.Context(), b.tarAt(at))
		wantError(t, name, err, at, "unpack")
	}
	_, err := b.try(t.Context(), b.tarAt("/no/such/file.tar"))
	wantError(t, "missing", err, "/no/such/file.tar", "no such file")
}
