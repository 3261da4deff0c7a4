package main

import (
	"bytes"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync"
	"testing"

	"kiln.build/cache/registry/registrytest"
)

// proxy stands before a registry, counts what goes through, and can do harm.
type proxy struct {
	host string

	mu       sync.Mutex
	requests int
	bytes    int64
	harm     func(w http.ResponseWriter, r *http.Request) bool // true: it has answered
	lie      bool                                              // blobs are not what they should be
}

func (p *proxy) reset() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.requests, p.bytes = 0, 0
}

func (p *proxy) counts() (requests int, bytes int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.requests, p.bytes
}

// newProxy starts Debian's docker-registry and a proxy before it.
func newProxy(t *testing.T) *proxy {
	t.Helper()
	behind := registrytest.Start(t)
	p := &proxy{}
	to := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: behind})
	to.ModifyResponse = func(r *http.Response) error {
		p.mu.Lock()
		lie := p.lie && strings.Contains(r.Request.URL.Path, "/blobs/sha256:") && r.StatusCode == http.StatusOK
		p.mu.Unlock()
		r.Body = &counted{r.Body, p, lie, 0}
		return nil
	}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p.mu.Lock()
		p.requests++
		harm := p.harm
		p.mu.Unlock()
		if harm == nil || !harm(w, r) {
			to.ServeHTTP(w, r)
		}
	}))
	t.Cleanup(s.Close)
	p.host = strings.TrimPrefix(s.URL, "http://")
	return p
}

// counted counts a body, and changes its 100th byte if it lies.
type counted struct {
	io.ReadCloser
	p   *proxy
	lie bool
	at  int
}

func (c *counted) Read(b []byte) (int, error) {
	n, err := c.ReadCloser.Read(b)
	if i := 100 - c.at; c.lie && i >= 0 && i < n {
		b[i] ^= 0xff
	}
	c.at += n
	c.p.mu.Lock()
	c.p.bytes += int64(n)
	c.p.mu.Unlock()
	return n, err
}

// twelve is a Dockerfile of twelve steps, two of which make large layers.
const twelve = `FROM toolbox AS make
WORKDIR /src
COPY . .
RUN echo 1 > /1
RUN head -c 3000000 /dev/urandom > /only-in-the-stage
RUN echo making > /out
FROM toolbox
RUN echo 2 > /2
RUN head -c 2000000 /dev/urandom > /big
RUN echo 4 > /4
COPY --from=make /out /out
RUN echo ran-the-step > /ran; echo it ran
`

// TestRemoteCacheFigures counts what a registry is asked for.
func TestRemoteCacheFigures(t *testing.T) {
	p := newProxy(t)
	first := newWorld(t)
	dir := first.context(twelve)
	first.must("build", "-t", "x", "--cache-to", "type=registry,ref="+p.host+"/app:cache,mode=max", dir)

	// A fresh store learns its result.
	second := newWorld(t)
	p.reset()
	_, stderr := second.must("build", "--progress=plain", "--output", "type=cacheonly", "--cache-from", p.host+"/app:cache", dir)
	if strings.Contains(stderr, "DONE") {
		t.Errorf("the second machine ran something:\n%s", stderr)
	}
	requests, size := p.counts()
	t.Logf("a build of which all is cached: %d requests, %d bytes", requests, size)
	if requests >= 20 || size >= 100_000 {
		t.Errorf("%d requests and %d bytes, want under 20 and 100,000", requests, size)
	}

	// Then it fetches the layers of the image, and not the stage's.
	p.reset()
	_, stderr = second.must("build", "--progress=plain", "-t", "x", "--cache-from", p.host+"/app:cache", dir)
	if strings.Contains(stderr, "DONE") {
		t.Errorf("the second machine ran something:\n%s", stderr)
	}
	requests, size = p.counts()
	t.Logf("with the image: %d requests, %d bytes", requests, size)
	if size < 2_000_000 || size > 3_000_000 {
		t.Errorf("%d bytes were fetched, want those of the image's large layer alone", size)
	}
	if out, _ := second.must("run", "--rm", "x", "cat", "/out", "/ran"); out != "making\nran-the-step\n" {
		t.Errorf("the image prints %q", out)
	}
	a, _ := first.must("inspect", "--format", "{{.RootFS.Layers}}", "x")
	b, _ := second.must("inspect", "--format", "{{.RootFS.Layers}}", "x")
	if a != b {
		t.Errorf("layers %s and %s", a, b)
	}
}

// TestRemoteCacheFaults builds beside registries that do harm.
func TestRemoteCacheFaults(t *testing.T) {
	p := newProxy(t)
	first := newWorld(t)
	dir := first.context(twelve)
	first.must("build", "-t", "x", "--cache-to", "type=registry,ref="+p.host+"/app:cache,mode=max", dir)

	status := func(code int) func(http.ResponseWriter, *http.Request) bool {
		return func(w http.ResponseWriter, r *http.Request) bool {
			http.Error(w, "no", code)
			return true
		}
	}
	for name, harm := range map[string]func(){
		"429": func() { p.harm = status(http.StatusTooManyRequests) },
		"503": func() { p.harm = status(http.StatusServiceUnavailable) },
		"cut": func() {
			p.harm = func(w http.ResponseWriter, r *http.Request) bool {
				if r.Method != http.MethodGet || !strings.Contains(r.URL.Path, "/blobs/") {
					return false
				}
				w.Header().Set("Content-Length", "1000000")
				_, _ = w.Write(bytes.Repeat([]byte("x"), 1000))
				panic(http.ErrAbortHandler)
			}
		},
		"lie": func() { p.lie = true },
		"uploads": func() {
			p.harm = func(w http.ResponseWriter, r *http.Request) bool {
				return r.Method != http.MethodGet && r.Method != http.MethodHead && status(500)(w, r)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			p.mu.Lock()
			harm()
			p.mu.Unlock()
			defer func() {
				p.mu.Lock()
				p.harm, p.lie = nil, false
				p.mu.Unlock()
			}()
			args := []string{"build", "--progress=plain", "-t", "x", "--cache-from", p.host + "/app:cache"}
			if name == "uploads" {
				args = []string{"build", "--progress=plain", "-t", "x", "--cache-to", "type=registry,ref=" + p.host + "/app:other,mode=max"}
			}
			_, stderr := w.must(append(args, dir)...)
			if n := strings.Count(stderr, "warning: cache "); n != 1 {
				t.Errorf("%d warnings, want one:\n%s", n, stderr)
			}
			if out, _ := w.must("run", "--rm", "x", "cat", "/out"); out != "making\n" {
				t.Errorf("the image prints %q", out)
			}
		})
	}
}
