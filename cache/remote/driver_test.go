package remote

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"kiln.build/cache/registry"
	"kiln.build/cache/registry/registrytest"
)

// drivers are all there are, each empty.
func drivers(t *testing.T) map[string]func() Driver {
	return map[string]func() Driver{
		"local":    func() Driver { return &Local{Dir: filepath.Join(t.TempDir(), "cache"), Tag: "latest"} },
		"registry": func() Driver { return registryDriver(t) },
	}
}

// registryDriver is one for Debian's docker-registry, empty.
func registryDriver(t *testing.T) *Registry {
	t.Helper()
	host := registrytest.Start(t)
	client, err := registry.New(registry.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	ref, err := registry.ParseReference(host + "/app:cache")
	if err != nil {
		t.Fatal(err)
	}
	return &Registry{Client: client, Ref: ref, Dir: filepath.Join(t.TempDir(), "staging")}
}

func object(t *testing.T, content string) (v1.Descriptor, string) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "object")
	if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return v1.Descriptor{MediaType: TypeObject, Digest: digest.FromString(content), Size: int64(len(content))}, file
}

// TestDriver is what every driver has to do.
func TestDriver(t *testing.T) {
	for name, empty := range drivers(t) {
		t.Run(name, func(t *testing.T) {
			ctx := t.Context()
			d := empty()
			if d.Name() == "" {
				t.Error("it has no name")
			}
			if _, err := d.Index(ctx); !errors.Is(err, fs.ErrNotExist) {
				t.Fatalf("the index of an empty cache: %v, want one that does not exist", err)
			}
			one, oneFile := object(t, "one")
			two, twoFile := object(t, strings.Repeat("two", 100_000))
			missing, err := d.Missing(ctx, []v1.Descriptor{one, two})
			if err != nil || len(missing) != 2 {
				t.Fatalf("missing at first: %v, %v", missing, err)
			}
			if err := d.Put(ctx, one, oneFile); err != nil {
				t.Fatal(err)
			}
			if err := d.Put(ctx, one, oneFile); err != nil {
				t.Fatalf("a second time: %v", err)
			}
			missing, err = d.Missing(ctx, []v1.Descriptor{one, two})
			if err != nil || len(missing) != 1 || missing[0].Digest != two.Digest {
				t.Fatalf("missing then: %v, %v", missing, err)
			}
			if err := d.Put(ctx, two, twoFile); err != nil {
				t.Fatal(err)
			}
			for i, index := range []string{"first index", "second index"} {
				if err := d.Commit(ctx, []byte(index), []v1.Descriptor{one, two}[i:]); err != nil {
					t.Fatal(err)
				}
				got, err := d.Index(ctx)
				if err != nil || string(got) != index {
					t.Fatalf("index %q, %v, want %q", got, err, index)
				}
			}
			body, err := d.Get(ctx, two)
			if err != nil {
				t.Fatal(err)
			}
			content, err := io.ReadAll(body)
			if err := errors.Join(err, body.Close()); err != nil || digest.FromBytes(content) != two.Digest {
				t.Fatalf("got %d bytes, %v", len(content), err)
			}
			three, threeFile := object(t, "three")
			if body, err := d.Get(ctx, three); err == nil {
				if _, err = io.ReadAll(body); err == nil {
					t.Error("an object that is not there could be read")
				}
				body.Close()
			}
			if err := d.Commit(ctx, []byte("third index"), []v1.Descriptor{two, three}); err == nil {
				t.Error("an index of objects that are not there was written")
			}
			if err := d.Put(ctx, v1.Descriptor{MediaType: TypeObject, Digest: one.Digest, Size: three.Size}, threeFile); err == nil && name == "local" {
				t.Error("an object of another digest was stored")
			}
			if err := d.Commit(ctx, []byte("empty"), nil); err != nil {
				t.Errorf("an index without objects: %v", err)
			}
			stopped, cancel := context.WithCancel(ctx)
			cancel()
			if err := d.Put(stopped, three, threeFile); err == nil && name == "registry" {
				t.Error("something was sent after the end")
			}
		})
	}
}

func TestIndexCheck(t *testing.T) {
	good := func() *index {
		e := entry{Description: "text", Key: digest.FromString("text")}
		e.Result.Digest = digest.FromString("result")
		return &index{Version: 1, Entries: []entry{e}, Pieces: map[digest.Digest]piece{
			digest.FromString("piece"): {Object: digest.FromString("object"), Size: 10, Offset: 2, Length: 8},
		}}
	}
	b, err := good().encode()
	if err != nil {
		t.Fatal(err)
	}
	x, err := decodeIndex(b)
	if err != nil || len(x.Entries) != 1 || len(x.objects()) != 1 {
		t.Fatalf("decoded %+v, %v", x, err)
	}
	for name, spoil := range map[string]func(*index){
		"version": func(x *index) { x.Version = 2 },
		"key":     func(x *index) { x.Entries[0].Key = digest.FromString("other") },
		"result":  func(x *index) { x.Entries[0].Result.Digest = "sha256:../../x" },
		"blob":    func(x *index) { x.Entries[0].Result.Blob = "x" },
		"too long": func(x *index) {
			x.Pieces[digest.FromString("piece")] = piece{Object: digest.FromString("o"), Size: 10, Offset: 3, Length: 8}
		},
		"overflow": func(x *index) {
			x.Pieces[digest.FromString("piece")] = piece{Object: digest.FromString("o"), Size: 10, Offset: 1 << 62, Length: 1 << 62}
		},
		"negative": func(x *index) {
			x.Pieces[digest.FromString("piece")] = piece{Object: digest.FromString("o"), Size: 10, Offset: -1, Length: 8}
		},
		"no object": func(x *index) { x.Pieces["x"] = piece{} },
	} {
		x := good()
		spoil(x)
		b, err := x.encode()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := decodeIndex(b); err == nil {
			t.Errorf("%s: an index that is wrong was taken", name)
		}
	}
	for _, cut := range []int{0, 1, len(b) / 2, len(b) - 1} {
		if _, err := decodeIndex(b[:cut]); err == nil {
			t.Errorf("an index cut at %d was taken", cut)
		}
	}
	if _, err := decodeIndex(slices.Concat(b[:len(b)/2], bytes.Repeat([]byte{0xff}, 40))); err == nil {
		t.Error("garbage was taken")
	}
}
