package registry

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"kiln.build/cache/layout"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// What goes wrong for a while does no harm.
func TestPassingFaults(t *testing.T) {
	isolate(t)
	status := func(code int, header ...string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			for i := 0; i < len(header); i += 2 {
				w.Header().Set(header[i], header[i+1])
			}
			w.WriteHeader(code)
		}
	}
	hangUp := func(w http.ResponseWriter, _ *http.Request) { panic(http.ErrAbortHandler) }
	methods := func(m string) func(*http.Request) bool {
		return func(r *http.Request) bool { return r.Method == m }
	}
	tests := []struct {
		name  string
		fault func(http.ResponseWriter, *http.Request, http.Handler)
	}{
		{"503", first(4, all, status(503))},
		{"429 retry now", first(4, all, status(429, "Retry-After", "0"))},
		{"429 retry in a second", first(1, blobs, status(429, "Retry-After", "1"))},
		{"429 with a date", first(2, all, status(429, "Retry-After", time.Now().Add(-time.Hour).UTC().Format(http.TimeFormat)))},
		{"500 for blobs", first(4, blobs, status(500))},
		{"hang up", first(4, all, hangUp)},
		{"502 on POST", first(2, methods("POST"), status(502))},
		{"429 on PATCH", first(2, methods("PATCH"), status(429, "Retry-After", "0"))},
		{"503 on PUT", first(2, methods("PUT"), status(503))},
		{"hang up on PATCH", first(1, methods("PATCH"), hangUp)},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			f, c, l := newFake(t), newClient(t, Options{}), newLayout(t)
			d := image(t, l, amd64, noise(1, 50000))
			f.setFault(test.fault)
			push(t, c, l, d, f.host+"/x")
			f.setFault(test.fault)
			to := newLayout(t)
			if _, err := newClient(t, Options{}).Pull(t.Context(), ref(t, f.host+"/x"), to, PullOptions{}); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// What does not go away is told, with host and reason, after some tries.
func TestLastingFaults(t *testing.T) {
	isolate(t)
	answer := func(code int, body string) func(http.ResponseWriter, *http.Request, http.Handler) {
		return func(w http.ResponseWriter, r *http.Request, next http.Handler) {
			if r.URL.Path == "/v2/" {
				next.ServeHTTP(w, r)
				return
			}
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(code)
			io.WriteString(w, body)
		}
	}
	tests := []struct {
		name  string
		fault func(http.ResponseWriter, *http.Request, http.Handler)
		want  string
		tries int
		is    error
	}{
		{"503", answer(503, "down for maintenance"), "down for maintenance", maxTries, nil},
		{"404", answer(404, `{"errors":[{"code":"MANIFEST_UNKNOWN"}]}`), "has no image x:latest", 1, fs.ErrNotExist},
		{"403", answer(403, `{"errors":[{"code":"DENIED","message":"no"}]}`), "denies access", 1, nil},
		{"418", answer(418, "short and stout"), "short and stout", 1, nil},
		{"long wait", func(w http.ResponseWriter, r *http.Request, next http.Handler) {
			if r.URL.Path == "/v2/" {
				next.ServeHTTP(w, r)
				return
			}
			w.Header().Set("Retry-After", "7200")
			w.WriteHeader(429)
			io.WriteString(w, "come back later")
		}, "come back later", 1, nil},
		{"not a registry", func(w http.ResponseWriter, _ *http.Request, _ http.Handler) { io.WriteString(w, "<html>hello") }, "invalid character", 1, nil},
		{"schema 1", func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
			w.Header().Set("Content-Type", schema1[1])
			io.WriteString(w, `{"schemaVersion":1}`)
		}, "schema 1", 1, nil},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			f := newFake(t)
			f.setFault(test.fault)
			_, err := newClient(t, Options{}).Resolve(t.Context(), ref(t, f.host+"/x"), &amd64)
			if err == nil || !strings.Contains(err.Error(), test.want) || !strings.Contains(err.Error(), "resolve "+f.host+"/x:latest") {
				t.Errorf("got %v, want %q", err, test.want)
			}
			if test.is != nil && !errors.Is(err, test.is) {
				t.Errorf("%v is not %v", err, test.is)
			}
			if n := f.count("GET /v2/x/manifests"); n != test.tries {
				t.Errorf("%d tries, want %d", n, test.tries)
			}
		})
	}
}

// cutter serves blobs in pieces: each answer breaks off after some bytes.
func cutter(piece int, ranges bool) func(http.ResponseWriter, *http.Request, http.Handler) {
	return func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if !blobs(r) {
			next.ServeHTTP(w, r)
			return
		}
		rec := httptest.NewRecorder()
		plain := r.Clone(r.Context())
		plain.Header.Del("Range")
		next.ServeHTTP(rec, plain)
		body, start := rec.Body.Bytes(), 0
		if rng := r.Header.Get("Range"); rng != "" && ranges {
			fmt.Sscanf(rng, "bytes=%d-", &start)
			w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", start, len(body)-1, len(body)))
			body = body[start:]
		}
		w.Header().Set("Content-Length", fmt.Sprint(len(body)))
		if start > 0 {
			w.WriteHeader(http.StatusPartialContent)
		}
		if piece < 0 || len(body) <= piece {
			w.Write(body)
			return
		}
		w.Write(body[:piece])
		w.(http.Flusher).Flush()
		panic(http.ErrAbortHandler)
	}
}

func TestFetchResumes(t *testing.T) {
	isolate(t)
	f, c, l := newFake(t), newClient(t, Options{}), newLayout(t)
	layer := noise(1, 12<<20)
	push(t, c, l, image(t, l, amd64, layer), f.host+"/x")
	desc := v1.Descriptor{Digest: digest.FromBytes(layer), Size: int64(len(layer))}
	fetch := func(fault func(http.ResponseWriter, *http.Request, http.Handler)) ([]byte, error) {
		f.setFault(fault)
		r, err := c.Fetch(t.Context(), ref(t, f.host+"/x"), desc)
		if err != nil {
			return nil, err
		}
		defer r.Close()
		return io.ReadAll(r)
	}
	if got, err := fetch(cutter(4<<20, true)); err != nil || !bytes.Equal(got, layer) || f.count("GET /v2/x/blobs") != 3 {
		t.Errorf("in three pieces: %d bytes, %v, %d requests", len(got), err, f.count("GET /v2/x/blobs"))
	}
	// Far more cuts than tries, but with progress in between.
	if got, err := fetch(cutter(1500000, true)); err != nil || !bytes.Equal(got, layer) {
		t.Errorf("in many pieces: %d bytes, %v", len(got), err)
	}
	cuts := 0
	if got, err := fetch(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if cuts++; cuts > 2 {
			cutter(-1, false)(w, r, next)
			return
		}
		cutter(4<<20, false)(w, r, next)
	}); err != nil || !bytes.Equal(got, layer) {
		t.Errorf("from a server without ranges: %d bytes, %v", len(got), err)
	}
	_, err := fetch(cutter(1000, true))
	if err == nil || !errors.Is(err, io.ErrUnexpectedEOF) || !strings.Contains(err.Error(), "broke off 5 times") || !strings.Contains(err.Error(), f.host) {
		t.Errorf("in tiny pieces: %v", err)
	}
}

func TestFetchCanceled(t *testing.T) {
	isolate(t)
	f, c, l := newFake(t), newClient(t, Options{}), newLayout(t)
	layer := noise(1, 1<<20)
	push(t, c, l, image(t, l, amd64, layer), f.host+"/x")
	f.setFault(cutter(1000, true))
	why := errors.New("had enough")
	ctx, cancel := context.WithCancelCause(t.Context())
	r, err := c.Fetch(ctx, ref(t, f.host+"/x"), v1.Descriptor{Digest: digest.FromBytes(layer), Size: int64(len(layer))})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	cancel(why)
	if _, err := io.Copy(io.Discard, r); !errors.Is(err, why) {
		t.Errorf("got %v, want the cause", err)
	}
}

func TestWrongContent(t *testing.T) {
	isolate(t)
	f, c, l := newFake(t), newClient(t, Options{}), newLayout(t)
	layer := noise(1, 100000)
	push(t, c, l, image(t, l, amd64, layer), f.host+"/x")
	evil := func(n int) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) { w.Write(noise(2, n)) }
	}
	isLayer := func(r *http.Request) bool {
		return blobs(r) && strings.HasSuffix(r.URL.Path, digest.FromBytes(layer).String())
	}
	for _, n := range []int{100000, 100001} {
		f.setFault(first(100, isLayer, evil(n)))
		to := newLayout(t)
		_, err := c.Pull(t.Context(), ref(t, f.host+"/x"), to, PullOptions{})
		var corrupt *layout.CorruptError
		if !errors.As(err, &corrupt) || !strings.Contains(err.Error(), f.host) {
			t.Errorf("%d wrong bytes: %v", n, err)
		}
		if to.Has(digest.FromBytes(layer)) {
			t.Error("the wrong blob was kept")
		}
		if _, err := to.Resolve(f.host + "/x:latest"); err == nil {
			t.Error("the image was tagged")
		}
	}
	// Once is forgiven.
	f.setFault(first(1, isLayer, evil(100000)))
	if _, err := c.Pull(t.Context(), ref(t, f.host+"/x"), newLayout(t), PullOptions{}); err != nil {
		t.Error(err)
	}
	f.setFault(first(100, func(r *http.Request) bool { return strings.Contains(r.URL.Path, "/manifests/sha256") }, evil(10)))
	var corrupt *layout.CorruptError
	if _, err := c.Resolve(t.Context(), ref(t, f.host+"/x@"+digest.FromString("y").String()), nil); !errors.As(err, &corrupt) {
		t.Errorf("wrong manifest: %v", err)
	}
}
