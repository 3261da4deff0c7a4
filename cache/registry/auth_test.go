package registry

import (
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"kiln.build/cache/registry/registrytest"
)

// secured asks for a password; user is an empty name for none.
func secured(user, password string) func(http.ResponseWriter, *http.Request, http.Handler) {
	return func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if u, p, ok := r.BasicAuth(); !ok || u != user || p != password {
			w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		next.ServeHTTP(w, r)
	}
}

func TestConfigFile(t *testing.T) {
	config := isolate(t)
	f, l := newFake(t), newLayout(t)
	d := image(t, l, amd64, noise(1, 100))
	f.setFault(secured("me", "secret"))

	_, err := newClient(t, Options{}).Push(t.Context(), l, d, ref(t, f.host+"/x"), PushOptions{})
	var denied *DeniedError
	if !errors.As(err, &denied) || !strings.Contains(err.Error(), "docker login "+f.host) {
		t.Errorf("without credentials: %v", err)
	}
	// "me:secret"
	if err := os.WriteFile(config, fmt.Appendf(nil, `{"auths":{%q:{"auth":"bWU6c2VjcmV0"}}}`, f.host), 0o600); err != nil {
		t.Fatal(err)
	}
	c := newClient(t, Options{})
	push(t, c, l, d, f.host+"/x")
	if _, err := c.Pull(t.Context(), ref(t, f.host+"/x"), newLayout(t), PullOptions{Platforms: []v1.Platform{amd64}}); err != nil {
		t.Error(err)
	}
	// A mirror does not get the credentials of the host that it stands for.
	mirror := newFake(t)
	mirror.setFault(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if r.Header.Get("Authorization") != "" {
			t.Error("credentials were sent to a mirror")
		}
		next.ServeHTTP(w, r)
	})
	c = newClient(t, Options{Mirrors: map[string][]string{f.host: {"http://" + mirror.host}}})
	if _, err := c.Resolve(t.Context(), ref(t, f.host+"/x"), &amd64); err != nil {
		t.Error(err)
	}
}

func TestCredentialHelper(t *testing.T) {
	config := isolate(t)
	f, l := newFake(t), newLayout(t)
	d := image(t, l, amd64, noise(1, 100))
	f.setFault(secured("me", "secret"))
	if err := os.WriteFile(config, fmt.Appendf(nil, `{"credHelpers":{%q:"kilntest"}}`, f.host), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := newClient(t, Options{}).Push(t.Context(), l, d, ref(t, f.host+"/x"), PushOptions{})
	if err == nil || !strings.Contains(err.Error(), config+" names the credential helper docker-credential-kilntest, which is not in $PATH") {
		t.Errorf("missing helper: %v", err)
	}

	bin := t.TempDir()
	calls := filepath.Join(bin, "calls")
	script := fmt.Sprintf("#!/bin/sh\nread host\necho \"$1 $host\" >> %s\necho '{\"ServerURL\":\"x\",\"Username\":\"me\",\"Secret\":\"secret\"}'\n", calls)
	if err := os.WriteFile(filepath.Join(bin, "docker-credential-kilntest"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", bin+string(os.PathListSeparator)+os.Getenv("PATH"))
	c := newClient(t, Options{})
	push(t, c, l, d, f.host+"/x")
	if _, err := c.Pull(t.Context(), ref(t, f.host+"/x"), newLayout(t), PullOptions{Platforms: []v1.Platform{amd64}}); err != nil {
		t.Error(err)
	}
	// Reading and writing one repository asks the helper once for it, at
	// most twice: by repository and by host.
	b, err := os.ReadFile(calls)
	if n := bytes.Count(b, []byte("\n")); err != nil || n == 0 || n > 2 || !bytes.Contains(b, []byte("get "+f.host)) {
		t.Errorf("%q, %v", b, err)
	}
}

// The same against Debian's docker-registry.
func TestRealRegistry(t *testing.T) {
	isolate(t)
	host := registrytest.Start(t)

	c, l := newClient(t, Options{}), newLayout(t)
	multi := index(t, l, image(t, l, amd64, noise(1, 3<<20), noise(2, 10)), image(t, l, arm64, noise(1, 3<<20), noise(3, 0)))
	push(t, c, l, multi, host+"/one/base:1")
	o := PushOptions{
		Origin: func(digest.Digest) (Reference, bool) { return ref(t, host+"/one/base"), true },
	}
	if _, err := c.Push(t.Context(), l, multi, ref(t, host+"/two:1"), o); err != nil {
		t.Fatal(err)
	}
	push(t, c, l, multi, host+"/two:2")
	to := newLayout(t)
	if d, err := c.Pull(t.Context(), ref(t, host+"/two:2"), to, PullOptions{All: true}); err != nil || d.Digest != multi.Digest {
		t.Fatalf("%v, %v", d, err)
	}
	for _, p := range []v1.Platform{amd64, arm64} {
		m, err := to.Image(t.Context(), multi, &p)
		if err != nil {
			t.Fatal(err)
		}
		for _, layer := range m.Layers {
			if _, err := to.ReadBlob(layer.Digest); err != nil {
				t.Error(err)
			}
		}
	}
	if _, err := c.Resolve(t.Context(), ref(t, host+"/two:3"), nil); err == nil || !strings.Contains(err.Error(), "has no image two:3") {
		t.Errorf("missing tag: %v", err)
	}
	if d, err := c.Head(t.Context(), ref(t, host+"/one/base:1")); err != nil || d.Digest != multi.Digest {
		t.Errorf("head: %v, %v", d, err)
	}
}
