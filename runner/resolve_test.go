package runner

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

func TestResolve(t *testing.T) {
	b, h := newBed(t), newHub(t)
	here := h.image(amd64, archived(t, "f 644 0:0 x here"))
	there := h.image(arm64, archived(t, "f 644 0:0 x there"))
	both := h.push(h.index(here, there), "both")
	b.online(h)
	want := func(what, ref string, p ocispecs.Platform, pull bool, d ocispecs.Descriptor) {
		t.Helper()
		img, err := b.resolve(ref, p, pull)
		if err != nil {
			t.Errorf("%s: %v", what, err)
		} else if img.Digest != d.Digest || img.Platform.Architecture != d.Platform.Architecture {
			t.Errorf("%s: %s for %v, want %s", what, img.Digest, img.Platform, d.Digest)
		}
	}
	want("amd64", both, amd64, false, here)
	want("arm64", both, arm64, false, there)
	_, err := b.resolve(both, s390x, false)
	wantError(t, "no such platform", err, "linux/s390x", "linux/amd64", "linux/arm64")
	_, err = b.resolve(h.host+"/none", amd64, false)
	wantError(t, "no such image", err, "/none")

	// A tag in the store comes first, if it is for the platform.
	ctx := t.Context()
	tag := func(ref string, d ocispecs.Descriptor) {
		t.Helper()
		for _, from := range []digest.Digest{d.Digest, manifestConfig(t, h, d)} {
			data, err := h.source.ReadBlob(from)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := b.store.Images().WriteBytes(ctx, "", data); err != nil {
				t.Fatal(err)
			}
		}
		if err := b.store.Images().Tag(ctx, ref, d); err != nil {
			t.Fatal(err)
		}
	}
	mine := h.image(amd64, archived(t, "f 644 0:0 x mine"))
	tag(both, mine)
	want("stored", both, amd64, false, mine)
	want("stored, pull", both, amd64, true, here)
	want("stored for another platform", both, arm64, false, there)
	local := h.host + "/local:latest"
	tag(local, mine)
	want("only stored, for another platform", local, arm64, false, mine)
	_, err = b.resolve(local, amd64, true)
	wantError(t, "pull what is only stored", err, "/local")

	// A damaged document is had again, if it can.
	config := filepath.Join(b.store.Root(), "images/blobs/sha256", manifestConfig(t, h, here).Encoded())
	pinned := strings.TrimSuffix(both, ":latest") + "@" + string(here.Digest)
	spoil := func() {
		t.Helper()
		if err := os.WriteFile(config, []byte("{}"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	spoil()
	want("damaged config", pinned, amd64, false, here)
	b.offline()
	want("mended", pinned, amd64, false, here)
	spoil()
	_, err = b.resolve(pinned, amd64, false)
	wantError(t, "damaged config, no registry", err, "is corrupt")
}

func manifestConfig(t *testing.T, h *hub, d ocispecs.Descriptor) digest.Digest {
	t.Helper()
	img, err := h.source.Image(t.Context(), d, nil)
	if err != nil {
		t.Fatal(err)
	}
	return img.ConfigDescriptor.Digest
}

func TestImageFromLayout(t *testing.T) {
	b, h := newBed(t), newHub(t)
	one := h.image(amd64, archived(t, "f 644 0:0 x one"))
	two := h.image(amd64, archived(t, "f 644 0:0 x two"))
	dir := layoutScheme + h.source.Dir()
	tag := func(name string, d ocispecs.Descriptor) {
		t.Helper()
		if err := h.source.Tag(t.Context(), name, d); err != nil {
			t.Fatal(err)
		}
	}
	tag("docker.io/library/one:1", one)
	wantLines(t, "the only one", b.list(b.build(b.from(dir))), "f 644 0:0 x one")
	tag("docker.io/library/two:2", two)
	wantLines(t, "by tag", b.list(b.build(b.from(dir+":2"))), "f 644 0:0 x two")
	wantLines(t, "by digest", b.list(b.build(b.from(dir+"@"+string(one.Digest)))), "f 644 0:0 x one")
	for ref, want := range map[string]string{
		dir:                             "the layout has 2 images",
		dir + ":3":                      "no such image",
		layoutScheme + "/no/such/place": "/no/such/place",
		layoutScheme + t.TempDir():      "",
	} {
		_, err := b.resolve(ref, amd64, false)
		wantError(t, ref, err, want)
	}
}
