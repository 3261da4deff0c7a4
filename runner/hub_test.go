package runner

import (
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	server "github.com/google/go-containerregistry/pkg/registry"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"kiln.build/cache/layout"
	"kiln.build/cache/registry"
	"kiln.build/solver"
)

var (
	amd64 = ocispecs.Platform{OS: "linux", Architecture: "amd64"}
	arm64 = ocispecs.Platform{OS: "linux", Architecture: "arm64"}
	s390x = ocispecs.Platform{OS: "linux", Architecture: "s390x"}
)

// hub is a registry in this process, and a layout from which images are
// pushed there.
type hub struct {
	t      *testing.T
	host   string
	client *registry.Client
	source *layout.Layout

	mu    sync.Mutex
	asked []string                                                        // for blobs and manifests, in order
	fault func(w http.ResponseWriter, r *http.Request, next http.Handler) // nil for none
}

func newHub(t *testing.T) *hub {
	t.Helper()
	t.Setenv("HOME", t.TempDir()) // no one's credentials
	t.Setenv("DOCKER_CONFIG", os.Getenv("HOME"))
	h := &hub{t: t}
	inner := server.New(server.Logger(log.New(io.Discard, "", 0)))
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h.mu.Lock()
		if r.Method == http.MethodGet && strings.Contains(r.URL.Path, "sha256:") {
			h.asked = append(h.asked, r.URL.Path[strings.LastIndex(r.URL.Path, "sha256:"):])
		}
		fault := h.fault
		h.mu.Unlock()
		if fault != nil {
			fault(w, r, inner)
			return
		}
		inner.ServeHTTP(w, r)
	}))
	t.Cleanup(s.Close)
	h.host = s.Listener.Addr().String()
	var err error
	if h.client, err = registry.New(registry.Options{Pause: time.Millisecond}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(h.client.Close)
	if h.source, err = layout.Open(filepath.Join(t.TempDir(), "source")); err != nil {
		t.Fatal(err)
	}
	return h
}

// lie makes the registry answer requests for blobs with other bytes.
func (h *hub) lie(change func([]byte) []byte) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.fault = func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if r.Method != http.MethodGet || !strings.Contains(r.URL.Path, "/blobs/") {
			next.ServeHTTP(w, r)
			return
		}
		rec := httptest.NewRecorder()
		next.ServeHTTP(rec, r)
		body := change(rec.Body.Bytes())
		w.Header().Set("Content-Length", fmt.Sprint(len(body)))
		w.WriteHeader(rec.Code)
		_, _ = w.Write(body)
	}
}

// requests are those for documents and blobs by digest since the last call.
func (h *hub) requests() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	asked := h.asked
	h.asked = nil
	return asked
}

func (h *hub) put(mediaType string, content any) ocispecs.Descriptor {
	h.t.Helper()
	b, ok := content.([]byte)
	if !ok {
		var err error
		if b, err = json.Marshal(content); err != nil {
			h.t.Fatal(err)
		}
	}
	d, err := h.source.WriteBytes(h.t.Context(), mediaType, b)
	if err != nil {
		h.t.Fatal(err)
	}
	return d
}

// image makes an image of layers, which are tar archives, in the source.
func (h *hub) image(p ocispecs.Platform, layers ...[]byte) ocispecs.Descriptor {
	h.t.Helper()
	config := ocispecs.Image{Platform: p, RootFS: ocispecs.RootFS{Type: "layers"}}
	manifest := ocispecs.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispecs.MediaTypeImageManifest}
	for _, b := range layers {
		manifest.Layers = append(manifest.Layers, h.put(ocispecs.MediaTypeImageLayerGzip, []byte(gzipped(h.t, b))))
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, digest.FromBytes(b))
	}
	manifest.Config = h.put(ocispecs.MediaTypeImageConfig, config)
	d := h.put(ocispecs.MediaTypeImageManifest, manifest)
	d.Platform = &p
	return d
}

func (h *hub) index(images ...ocispecs.Descriptor) ocispecs.Descriptor {
	h.t.Helper()
	return h.put(ocispecs.MediaTypeImageIndex, ocispecs.Index{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispecs.MediaTypeImageIndex, Manifests: images,
	})
}

// push gives an image a name in the registry, which it returns.
func (h *hub) push(d ocispecs.Descriptor, name string) string {
	h.t.Helper()
	ref, err := registry.ParseReference(h.host + "/" + name)
	if err != nil {
		h.t.Fatal(err)
	}
	if _, err := h.client.Push(h.t.Context(), h.source, d, ref, registry.PushOptions{}); err != nil {
		h.t.Fatal(err)
	}
	h.requests()
	return ref.String()
}

// resolve looks an image up with a runner of its own.
func (b *bed) resolve(ref string, p ocispecs.Platform, pull bool) (*Image, error) {
	b.t.Helper()
	r := &Runner{Store: b.store}
	if b.setup != nil {
		b.setup(r)
	}
	return r.ResolveImage(b.t.Context(), ref, p, pull)
}

// from is a vertex of an image that must be there.
func (b *bed) from(ref string) *solver.Vertex {
	b.t.Helper()
	img, err := b.resolve(ref, amd64, false)
	if err != nil {
		b.t.Fatal(err)
	}
	return &solver.Vertex{Op: img.Op()}
}

func (b *bed) online(h *hub)   { b.setup = func(r *Runner) { r.Registry = h.client } }
func (b *bed) offline()        { b.setup = nil }
func (b *bed) layerCount() int { return b.entries("layers") }
func (b *bed) blob(d ocispecs.Descriptor) string {
	return b.store.Images().Path(d.Digest)
}

func (b *bed) entries(dir string) int {
	b.t.Helper()
	all, err := os.ReadDir(filepath.Join(b.store.Root(), dir))
	if err != nil && !os.IsNotExist(err) {
		b.t.Fatal(err)
	}
	return len(all)
}

// layersOf are the layers of a manifest in the source.
func (h *hub) layersOf(d ocispecs.Descriptor) []ocispecs.Descriptor {
	h.t.Helper()
	img, err := h.source.Image(h.t.Context(), d, nil)
	if err != nil {
		h.t.Fatal(err)
	}
	var all []ocispecs.Descriptor
	for _, l := range img.Layers {
		all = append(all, l.Descriptor)
	}
	return all
}

func digests(ds ...ocispecs.Descriptor) []string {
	var all []string
	for _, d := range ds {
		all = append(all, string(d.Digest))
	}
	return all
}
