package registry

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"math/rand"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"kiln.build/cache/layout"

	server "github.com/google/go-containerregistry/pkg/registry"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

var (
	amd64 = v1.Platform{OS: "linux", Architecture: "amd64"}
	arm64 = v1.Platform{OS: "linux", Architecture: "arm64"}
	s390x = v1.Platform{OS: "linux", Architecture: "s390x"}
)

// A fake is a registry in this process that can be made to fail.
type fake struct {
	host string

	mu       sync.Mutex
	requests []string
	fault    func(w http.ResponseWriter, r *http.Request, next http.Handler) // nil for none
}

func newFake(t *testing.T) *fake {
	t.Helper()
	f := &fake{}
	inner := server.New(server.Logger(log.New(io.Discard, "", 0)))
	s := httptest.NewServer(f.handler(inner))
	t.Cleanup(s.Close)
	f.host = s.Listener.Addr().String()
	return f
}

func (f *fake) handler(inner http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		f.mu.Lock()
		f.requests = append(f.requests, r.Method+" "+r.URL.RequestURI())
		fault := f.fault
		f.mu.Unlock()
		if fault != nil {
			fault(w, r, inner)
			return
		}
		inner.ServeHTTP(w, r)
	})
}

// setFault makes the registry fail as told from now on.
func (f *fake) setFault(fault func(http.ResponseWriter, *http.Request, http.Handler)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.fault, f.requests = fault, nil
}

// count is how many requests began like that since the last setFault.
func (f *fake) count(prefix string) (n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, r := range f.requests {
		if strings.HasPrefix(r, prefix) {
			n++
		}
	}
	return n
}

// first applies a fault to the first n requests that match and lets the rest
// through.
func first(n int, match func(*http.Request) bool, fault http.HandlerFunc) func(http.ResponseWriter, *http.Request, http.Handler) {
	var mu sync.Mutex
	return func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		mu.Lock()
		hit := match(r) && n > 0
		if hit {
			n--
		}
		mu.Unlock()
		if hit {
			fault(w, r)
			return
		}
		next.ServeHTTP(w, r)
	}
}

func all(*http.Request) bool { return true }

func blobs(r *http.Request) bool {
	return r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/blobs/sha256:")
}

func newClient(t *testing.T, o Options) *Client {
	t.Helper()
	if o.Pause == 0 {
		o.Pause = time.Millisecond
	}
	c, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func ref(t *testing.T, s string) Reference {
	t.Helper()
	r, err := ParseReference(s)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// isolate keeps the credentials of whoever runs the tests out of them.
func isolate(t *testing.T) (config string) {
	t.Helper()
	dir := t.TempDir()
	t.Setenv("HOME", dir)
	t.Setenv("DOCKER_CONFIG", dir)
	t.Setenv("REGISTRY_AUTH_FILE", "")
	t.Setenv("XDG_RUNTIME_DIR", "")
	return filepath.Join(dir, "config.json")
}

func newLayout(t *testing.T) *layout.Layout {
	t.Helper()
	l, err := layout.Open(filepath.Join(t.TempDir(), "images"))
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func put(t *testing.T, l *layout.Layout, mediaType string, content any) v1.Descriptor {
	t.Helper()
	b, ok := content.([]byte)
	if !ok {
		var err error
		if b, err = json.Marshal(content); err != nil {
			t.Fatal(err)
		}
	}
	d, err := l.WriteBytes(t.Context(), mediaType, b)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// image stores an image of some layers, which need not be tars here.
func image(t *testing.T, l *layout.Layout, p v1.Platform, layers ...[]byte) v1.Descriptor {
	t.Helper()
	config := v1.Image{Platform: p, RootFS: v1.RootFS{Type: "layers"}}
	manifest := v1.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageManifest}
	for _, b := range layers {
		d := put(t, l, v1.MediaTypeImageLayer, b)
		manifest.Layers = append(manifest.Layers, d)
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, d.Digest)
	}
	manifest.Config = put(t, l, v1.MediaTypeImageConfig, config)
	d := put(t, l, v1.MediaTypeImageManifest, manifest)
	d.Platform = &p
	return d
}

func index(t *testing.T, l *layout.Layout, images ...v1.Descriptor) v1.Descriptor {
	t.Helper()
	return put(t, l, v1.MediaTypeImageIndex, v1.Index{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageIndex, Manifests: images,
	})
}

func noise(seed int64, n int) []byte {
	b := make([]byte, n)
	rand.New(rand.NewSource(seed)).Read(b)
	return b
}

func push(t *testing.T, c *Client, l *layout.Layout, d v1.Descriptor, name string) {
	t.Helper()
	if _, err := c.Push(t.Context(), l, d, ref(t, name), PushOptions{}); err != nil {
		t.Fatal(err)
	}
}

func TestReference(t *testing.T) {
	d := digest.FromString("x").String()
	for in, want := range map[string][2]string{
		"debian":                       {"docker.io/library/debian:latest", "debian:latest"},
		"debian:bookworm":              {"docker.io/library/debian:bookworm", "debian:bookworm"},
		"docker.io/debian":             {"docker.io/library/debian:latest", "debian:latest"},
		"index.docker.io/me/x:1":       {"docker.io/me/x:1", "me/x:1"},
		"me/x":                         {"docker.io/me/x:latest", "me/x:latest"},
		"localhost/x":                  {"localhost/x:latest", "localhost/x:latest"},
		"localhost:5000/x":             {"localhost:5000/x:latest", "localhost:5000/x:latest"},
		"quay.io/a/b/c:v1":             {"quay.io/a/b/c:v1", "quay.io/a/b/c:v1"},
		"[::1]:5000/x":                 {"[::1]:5000/x:latest", "[::1]:5000/x:latest"},
		"debian@" + d:                  {"docker.io/library/debian@" + d, "debian@" + d},
		"debian:12@" + d:               {"docker.io/library/debian:12@" + d, "debian:12@" + d},
		"registry.example.com/x:a_B.c": {"registry.example.com/x:a_B.c", "registry.example.com/x:a_B.c"},
	} {
		r, err := ParseReference(in)
		if err != nil || r.String() != want[0] || r.Familiar() != want[1] {
			t.Errorf("%s: got %s and %s, %v", in, r, r.Familiar(), err)
		}
		if again, err := ParseReference(r.String()); err != nil || again != r {
			t.Errorf("%s: parsed again %+v, %v", in, again, err)
		}
	}
	for _, in := range []string{"", "UPPER", "a b", "x:", "x@sha256:1", "/x", "x:tag:tag", "http://x/y"} {
		if r, err := ParseReference(in); err == nil {
			t.Errorf("%q: got %s, want an error", in, r)
		}
	}
}

func TestParseMirrors(t *testing.T) {
	got, err := ParseMirrors(" docker.io=http://localhost:5000, docker.io=mirror.example.com/hub ,ghcr.io=https://m,")
	if err != nil || fmt.Sprint(got) != "map[docker.io:[http://localhost:5000 mirror.example.com/hub] ghcr.io:[https://m]]" {
		t.Errorf("got %v, %v", got, err)
	}
	for _, bad := range []string{"docker.io", "=http://x", "docker.io=", "docker.io=ftp://x", "docker.io=http://u:p@x", "a=http://"} {
		if _, err := ParseMirrors(bad); err == nil {
			t.Errorf("%q is accepted", bad)
		}
	}
}

func TestPushResolvePull(t *testing.T) {
	isolate(t)
	f, c, l := newFake(t), newClient(t, Options{UserAgent: "kiln/test"}), newLayout(t)
	one, two := image(t, l, amd64, noise(1, 100000), noise(2, 10)), image(t, l, arm64, noise(1, 100000), noise(3, 10))
	multi := index(t, l, one, two)
	name := f.host + "/a/b:1"

	var mu sync.Mutex
	seen := map[string]int64{}
	progress := func(name string, current, total int64) {
		mu.Lock()
		defer mu.Unlock()
		if current > total {
			t.Errorf("%s: %d of %d", name, current, total)
		}
		seen[name] = current
	}
	if d, err := c.Push(t.Context(), l, multi, ref(t, name), PushOptions{Progress: progress}); err != nil || d.Digest != multi.Digest {
		t.Fatalf("%v, %v", d, err)
	}
	if len(seen) != 5 {
		t.Errorf("progress of %d blobs, want 5", len(seen))
	}
	// Again: nothing is sent.
	f.setFault(nil)
	push(t, c, l, multi, name)
	if n := f.count("POST"); n != 0 {
		t.Errorf("%d uploads of what is there", n)
	}

	for _, p := range []v1.Platform{amd64, arm64} {
		r, err := c.Resolve(t.Context(), ref(t, name), &p)
		if err != nil {
			t.Fatal(err)
		}
		want := map[string]v1.Descriptor{"amd64": one, "arm64": two}[p.Architecture]
		if r.Target.Digest != multi.Digest || r.Descriptor.Digest != want.Digest || r.Platform.Architecture != p.Architecture ||
			len(r.Layers) != 2 || r.Layers[0].DiffID != digest.FromBytes(noise(1, 100000)) || len(r.Config) == 0 {
			t.Errorf("%v: %+v", p, r)
		}
		if pinned := r.Pinned().String(); pinned != name+"@"+multi.Digest.String() {
			t.Errorf("pinned: %s", pinned)
		}
	}
	var none *layout.PlatformError
	if _, err := c.Resolve(t.Context(), ref(t, name), &s390x); !errors.As(err, &none) || !strings.Contains(err.Error(), "there are linux/amd64, linux/arm64") {
		t.Errorf("missing platform: %v", err)
	}
	if d, err := c.Head(t.Context(), ref(t, name)); err != nil || d.Digest != multi.Digest || d.Size != multi.Size || d.MediaType != multi.MediaType {
		t.Errorf("head: %+v, %v", d, err)
	}

	// One platform, then the other; then what is there is not fetched again.
	to := newLayout(t)
	for _, p := range []v1.Platform{amd64, arm64, amd64} {
		f.setFault(nil)
		d, err := c.Pull(t.Context(), ref(t, name), to, PullOptions{Platforms: []v1.Platform{p}, Progress: progress})
		if err != nil || d.Digest != multi.Digest {
			t.Fatalf("%v, %v", d, err)
		}
		tagged, err := to.Resolve(name)
		if err != nil {
			t.Fatal(err)
		}
		m, err := to.Image(t.Context(), tagged, &p)
		if err != nil {
			t.Fatal(err)
		}
		for _, layer := range m.Layers {
			if _, err := to.ReadBlob(layer.Digest); err != nil {
				t.Error(err)
			}
		}
	}
	if n := f.count("GET /v2/a/b/blobs"); n != 0 {
		t.Errorf("%d blobs were fetched again", n)
	}
	if got, err := c.Pull(t.Context(), ref(t, name), newLayout(t), PullOptions{All: true, As: "other"}); err != nil || got.Digest != multi.Digest {
		t.Errorf("all platforms: %v", err)
	}
	if _, err := c.Pull(t.Context(), ref(t, f.host+"/a/b@"+one.Digest.String()), newLayout(t), PullOptions{}); err != nil {
		t.Errorf("by digest: %v", err)
	}
}

func TestPushPartOfAnIndex(t *testing.T) {
	isolate(t)
	f, c, l := newFake(t), newClient(t, Options{}), newLayout(t)
	one, two, three := image(t, l, amd64, noise(1, 10)), image(t, l, arm64, noise(2, 10)), image(t, l, s390x, noise(3, 10))
	multi := index(t, l, one, two, three)
	if err := l.Remove(three.Digest); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Push(t.Context(), l, multi, ref(t, f.host+"/x"), PushOptions{}); err == nil || !strings.Contains(err.Error(), "only 2 of the image's 3 platforms") {
		t.Errorf("got %v", err)
	}
	if err := l.Remove(digest.FromBytes(noise(2, 10))); err != nil {
		t.Fatal(err)
	}
	if d, err := c.Push(t.Context(), l, multi, ref(t, f.host+"/x"), PushOptions{}); err != nil || d.Digest != one.Digest {
		t.Errorf("got %v, %v; want the image that is there", d.Digest, err)
	}
	if _, err := c.Push(t.Context(), l, one, ref(t, f.host+"/x@"+one.Digest.String()), PushOptions{}); err == nil {
		t.Error("a push to a digest is accepted")
	}
}

func TestPushByDigest(t *testing.T) {
	isolate(t)
	f, c, l := newFake(t), newClient(t, Options{}), newLayout(t)
	one := image(t, l, amd64, noise(1, 10))
	to := ref(t, f.host+"/x")
	to.Tag = ""
	if _, err := c.Push(t.Context(), l, one, to, PushOptions{}); err != nil {
		t.Fatal(err)
	}
	if d, err := c.Head(t.Context(), ref(t, f.host+"/x@"+one.Digest.String())); err != nil || d.Digest != one.Digest {
		t.Errorf("by digest: %v, %v", d.Digest, err)
	}
	if _, err := c.Head(t.Context(), ref(t, f.host+"/x")); err == nil {
		t.Error("a tag was made")
	}
}

func TestPushMounts(t *testing.T) {
	isolate(t)
	f, c, l := newFake(t), newClient(t, Options{}), newLayout(t)
	d := image(t, l, amd64, noise(1, 1000))
	push(t, c, l, d, f.host+"/base")
	f.setFault(nil)
	origin := func(digest.Digest) (Reference, bool) { return ref(t, f.host+"/base"), true }
	if _, err := c.Push(t.Context(), l, d, ref(t, f.host+"/derived"), PushOptions{Origin: origin}); err != nil {
		t.Fatal(err)
	}
	// The fake shares blobs among repositories, so that HEAD finds them all:
	// what can be seen is that nothing was sent.
	if n := f.count("PATCH"); n != 0 {
		t.Errorf("%d blobs were sent", n)
	}
}

// A corrupt blob in the layout is replaced once it was removed.
func TestPullReplacesCorruptDocuments(t *testing.T) {
	isolate(t)
	f, c, l := newFake(t), newClient(t, Options{}), newLayout(t)
	d := image(t, l, amd64, noise(1, 10))
	push(t, c, l, d, f.host+"/x")
	b, err := os.ReadFile(l.Path(d.Digest))
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)-2] ^= 1
	if err := os.WriteFile(l.Path(d.Digest), b, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Pull(t.Context(), ref(t, f.host+"/x"), l, PullOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := l.ReadBlob(d.Digest); err != nil {
		t.Error(err)
	}
}

func TestMirrors(t *testing.T) {
	isolate(t)
	hub, other, l := newFake(t), newFake(t), newLayout(t)
	c := newClient(t, Options{})
	d := image(t, l, amd64, noise(1, 1000))
	push(t, c, l, d, hub.host+"/library/debian:12")
	push(t, c, l, d, other.host+"/proxy/hub/library/other")
	closed := closedPort(t)

	c = newClient(t, Options{Mirrors: map[string][]string{
		"docker.io": {"http://" + closed, "http://" + hub.host, "http://" + other.host + "/proxy/hub/"},
	}})
	to := newLayout(t)
	for range 2 {
		if _, err := c.Pull(t.Context(), ref(t, "debian:12"), to, PullOptions{Platforms: []v1.Platform{amd64}}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := to.Resolve("docker.io/library/debian:12"); err != nil {
		t.Error(err)
	}
	if _, err := c.Resolve(t.Context(), ref(t, "other"), &amd64); err != nil {
		t.Errorf("from the mirror with a path: %v", err)
	}
	// Without a network, and without asking Docker Hub from a test.
	c = newClient(t, Options{Mirrors: map[string][]string{closed: {"http://" + hub.host}}})
	_, err := c.Resolve(t.Context(), ref(t, closed+"/library/nope:1"), nil)
	want := fmt.Sprintf("resolve %s/library/nope:1: mirror %s has no image library/nope:1; %s cannot be reached: dial tcp %s: connect: connection refused", closed, hub.host, closed, closed)
	if err == nil || err.Error() != want {
		t.Errorf("got  %v\nwant %s", err, want)
	}
}

func closedPort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func TestUnreachable(t *testing.T) {
	isolate(t)
	host := closedPort(t)
	start := time.Now()
	_, err := newClient(t, Options{}).Resolve(t.Context(), ref(t, host+"/x"), nil)
	var unreachable *UnreachableError
	if !errors.As(err, &unreachable) {
		t.Fatalf("got %v", err)
	}
	if !strings.Contains(err.Error(), "KILN_REGISTRY_MIRRORS="+host) || !strings.Contains(err.Error(), "connection refused") {
		t.Errorf("got %v", err)
	}
	if d := time.Since(start); d > 5*time.Second {
		t.Errorf("it took %v", d)
	}
	// .invalid never resolves (RFC 2606).
	_, err = newClient(t, Options{}).Resolve(t.Context(), ref(t, "registry.invalid/x"), nil)
	if !errors.As(err, &unreachable) || !strings.Contains(err.Error(), "registry.invalid") {
		t.Errorf("got %v", err)
	}
	// A push says it just as fast.
	l := newLayout(t)
	_, err = newClient(t, Options{}).Push(t.Context(), l, image(t, l, amd64), ref(t, host+"/x"), PushOptions{})
	if !errors.As(err, &unreachable) {
		t.Errorf("push: %v", err)
	}
	if d := time.Since(start); d > 10*time.Second {
		t.Errorf("it took %v", d)
	}
}

// Plain HTTP is for this machine and for hosts that the user names.
func TestPlainHTTP(t *testing.T) {
	for host, want := range map[string]bool{
		"localhost": true, "localhost:5000": true, "127.0.0.1:80": true, "127.8.9.1": true, "[::1]:5000": true, "x.localhost:1": true,
		"10.0.0.1:5000": false, "192.168.1.1": false, "docker.io": false, "localhost.example.com": false,
	} {
		if isLoopback(host) != want {
			t.Errorf("isLoopback(%q) = %t", host, !want)
		}
	}
	c := newClient(t, Options{Insecure: []string{"10.1.1.1:5000"}})
	for host, want := range map[string]bool{"10.1.1.1:5000": true, "10.1.1.2:5000": false, "127.0.0.1:1": true} {
		if e := c.hostEndpoint(host); e.http != want || !e.https {
			t.Errorf("%s: %+v", host, e)
		}
	}
	w := &wire{c: c, e: c.hostEndpoint("10.1.1.2:5000")}
	req, _ := http.NewRequest(http.MethodGet, "http://10.1.1.2:5000/v2/", nil)
	if _, err := w.RoundTrip(req); err == nil || !strings.Contains(err.Error(), "plain http is not used for 10.1.1.2:5000") {
		t.Errorf("got %v", err)
	}
}

func TestTLS(t *testing.T) {
	isolate(t)
	f := &fake{}
	s := httptest.NewUnstartedServer(f.handler(server.New(server.Logger(log.New(io.Discard, "", 0)))))
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.StartTLS()
	defer s.Close()
	host := s.Listener.Addr().String()
	l := newLayout(t)
	d := image(t, l, amd64, noise(1, 10))
	if _, err := newClient(t, Options{}).Push(t.Context(), l, d, ref(t, host+"/x"), PushOptions{}); err == nil || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("a certificate of nobody is trusted: %v", err)
	}
	c := newClient(t, Options{Insecure: []string{host}})
	push(t, c, l, d, host+"/x")
	if _, err := c.Resolve(t.Context(), ref(t, host+"/x"), nil); err != nil {
		t.Error(err)
	}
}

func TestRedirects(t *testing.T) {
	request := func(u string) *http.Request {
		r, err := http.NewRequest(http.MethodGet, u, nil)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	for _, test := range []struct {
		from, to string
		ok       bool
	}{
		{"https://r.example.com/v2/", "https://cdn.example.net/x", true},
		{"https://r.example.com/v2/", "http://cdn.example.net/x", false},
		{"https://r.example.com/v2/", "https://169.254.169.254/latest/meta-data", false},
		{"https://r.example.com/v2/", "https://[::ffff:127.0.0.1]/x", false},
		{"https://r.example.com/v2/", "https://localhost/x", false},
		{"http://127.0.0.1:5000/v2/", "http://127.0.0.1:9000/x", true},
		{"http://10.0.0.1/v2/", "http://10.0.0.2/x", true},
		{"https://r.example.com/v2/", "https://r.example.com/y", true},
	} {
		if err := checkRedirect(request(test.to), []*http.Request{request(test.from)}); (err == nil) != test.ok {
			t.Errorf("%s to %s: %v", test.from, test.to, err)
		}
	}
}

func TestForeignLayer(t *testing.T) {
	isolate(t)
	f, c, l := newFake(t), newClient(t, Options{}), newLayout(t)
	layer := noise(1, 1000)
	cdn := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.Write(layer) }))
	defer cdn.Close()
	desc := v1.Descriptor{MediaType: layout.DockerForeign, Digest: digest.FromBytes(layer), Size: 1000, URLs: []string{"ftp://x/y", cdn.URL + "/layer"}}
	config := put(t, l, layout.DockerConfig, v1.Image{Platform: amd64, RootFS: v1.RootFS{Type: "layers", DiffIDs: []digest.Digest{desc.Digest}}})
	d := put(t, l, layout.DockerManifest, v1.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: layout.DockerManifest, Config: config, Layers: []v1.Descriptor{desc}})
	push(t, c, l, d, f.host+"/x") // leaves the layer where it is
	to := newLayout(t)
	if _, err := c.Pull(t.Context(), ref(t, f.host+"/x"), to, PullOptions{}); err != nil {
		t.Fatal(err)
	}
	if !to.Has(desc.Digest) {
		t.Error("the layer is not there")
	}
}

func TestRetryAfter(t *testing.T) {
	now := time.Date(2024, 1, 1, 0, 0, 0, 0, time.UTC)
	for s, want := range map[string]time.Duration{"0": 0, "120": 2 * time.Minute, "Mon, 01 Jan 2024 00:00:30 GMT": 30 * time.Second, "Sun, 31 Dec 2023 00:00:00 GMT": 0} {
		if got, ok := retryAfter(s, now); !ok || got != want {
			t.Errorf("%q: %v, %t", s, got, ok)
		}
	}
	for _, s := range []string{"", "-1", "soon"} {
		if d, ok := retryAfter(s, now); ok {
			t.Errorf("%q: %v", s, d)
		}
	}
}
