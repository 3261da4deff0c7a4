package images

import (
	"bytes"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"kiln.build/cache/layout"
	"kiln.build/exporter/internal/storetest"

	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/opencontainers/go-digest"
)

func newStore(t *testing.T) *Store {
	t.Helper()
	return &Store{Cache: storetest.Open(t)}
}

// add imports an image whose content is its name.
func add(t *testing.T, s *Store, name, content string, day int) digest.Digest {
	t.Helper()
	id, err := s.Import(t.Context(), bytes.NewReader(storetest.Tar(t, "file "+content)), ImportOptions{
		Name: name, From: "-", Created: time.Date(2024, 1, day, 0, 0, 0, 0, time.UTC),
	})
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// listed is what List shows: short IDs with names.
func listed(t *testing.T, s *Store) string {
	t.Helper()
	all, err := s.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	for _, i := range all {
		lines = append(lines, i.ID.Encoded()[:8]+":"+strings.Join(familiar(i.Names), ","))
	}
	return strings.Join(lines, " ")
}

func TestNames(t *testing.T) {
	s := newStore(t)
	one := add(t, s, "x", "1", 1)
	two := add(t, s, "x", "2", 2)
	a, b := one.Encoded()[:8], two.Encoded()[:8]
	want := func(want string) {
		t.Helper()
		if got := listed(t, s); got != want {
			t.Fatalf("got %q, want %q", got, want)
		}
	}
	want(b + ":x:latest " + a + ":")
	if err := s.Tag(t.Context(), a, "example.com/old:1"); err != nil {
		t.Fatal(err)
	}
	want(b + ":x:latest " + a + ":example.com/old:1")
	if err := s.Tag(t.Context(), "x", "y"); err != nil {
		t.Fatal(err)
	}
	want(b + ":x:latest,y:latest " + a + ":example.com/old:1")

	r, err := s.Remove(t.Context(), "x", RemoveOptions{})
	if err != nil || r.Deleted != "" || !slices.Equal(r.Untagged, []string{"docker.io/library/x:latest"}) {
		t.Fatalf("got %+v, %v", r, err)
	}
	r, err = s.Remove(t.Context(), "y", RemoveOptions{})
	if err != nil || r.Deleted != two {
		t.Fatalf("got %+v, %v", r, err)
	}
	want(a + ":example.com/old:1")

	// In several repositories an ID is not enough.
	if err := s.Tag(t.Context(), a, "z"); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Remove(t.Context(), a, RemoveOptions{}); err == nil || !strings.Contains(err.Error(), "must be forced") {
		t.Errorf("got %v", err)
	}
	users := func(digest.Digest) ([]string, error) { return []string{"container 123"}, nil }
	if _, err := s.Remove(t.Context(), "z", RemoveOptions{Users: users}); err != nil {
		t.Error(err) // it has another name
	}
	if _, err := s.Remove(t.Context(), a, RemoveOptions{Users: users}); !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), "container 123") {
		t.Errorf("got %v", err)
	}
	if r, err := s.Remove(t.Context(), a, RemoveOptions{Users: users, Force: true}); err != nil || r.Deleted != one {
		t.Errorf("got %+v, %v", r, err)
	}
	want("")
}

func TestFind(t *testing.T) {
	s := newStore(t)
	id := add(t, s, "example.com/a/b:1", "1", 1)
	add(t, s, "c", "2", 2)
	image, err := s.Find(t.Context(), "example.com/a/b:1")
	if err != nil {
		t.Fatal(err)
	}
	target := image.Target.Digest
	for _, name := range []string{
		string(id), id.Encoded(), id.Encoded()[:4], "sha256:" + id.Encoded()[:9], string(target), target.Encoded()[:12],
		"example.com/a/b:1", "example.com/a/b@" + string(target), "example.com/a/b:2@" + string(target),
	} {
		if f, err := s.Find(t.Context(), name); err != nil || f.ID != id {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, name := range []string{"example.com/a/b", "b", "a/b:1", "", "sha256:", "deadbeefdeadbeef", string(digest.FromString("x")), "d@" + string(target)} {
		_, err := s.Find(t.Context(), name)
		if err == nil {
			t.Errorf("%q is found", name)
		} else if name != "" && name != "sha256:" && !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%q: %v", name, err)
		}
	}
	if _, err := s.Find(t.Context(), "UPPER"); err == nil || !strings.Contains(err.Error(), "lowercase") {
		t.Errorf("got %v", err)
	}
	// Every ID starts with one of sixteen digits: with 17 images two share one.
	for i := range 17 {
		add(t, s, "", strings.Repeat("x", i), 3)
	}
	ambiguous := 0
	for _, d := range "0123456789abcdef" {
		if _, err := s.Find(t.Context(), string(d)); err != nil && strings.Contains(err.Error(), "multiple") {
			ambiguous++
		}
	}
	if ambiguous == 0 {
		t.Error("no beginning is ambiguous")
	}
}

// TestUnreadable damages an image's config: it is listed, and can go.
func TestUnreadable(t *testing.T) {
	s := newStore(t)
	add(t, s, "good", "1", 1)
	id := add(t, s, "bad", "2", 2)
	if err := os.WriteFile(s.layout().Path(id), []byte("{}"), 0o644); err != nil {
		t.Fatal(err)
	}
	f, err := s.Find(t.Context(), "bad")
	if err != nil {
		t.Fatal(err)
	}
	var corrupt *layout.CorruptError
	if !errors.As(f.Err, &corrupt) {
		t.Errorf("got %v", f.Err)
	}
	if _, err := s.Remove(t.Context(), "bad", RemoveOptions{}); err != nil {
		t.Error(err)
	}
	if got := listed(t, s); !strings.HasSuffix(got, ":good:latest") {
		t.Errorf("got %s", got)
	}
}

func TestPrune(t *testing.T) {
	s := newStore(t)
	add(t, s, "", "unnamed", 1)
	used := add(t, s, "", "used", 2)
	add(t, s, "named", "named", 3)
	users := func(id digest.Digest) ([]string, error) {
		if id == used {
			return []string{"container 1"}, nil
		}
		return nil, nil
	}
	done, err := s.Prune(t.Context(), PruneOptions{Users: users})
	if err != nil || len(done) != 1 {
		t.Fatalf("got %v, %v", done, err)
	}
	done, err = s.Prune(t.Context(), PruneOptions{All: true, Users: users, Match: func(i *Image) bool { return i.ID != used }})
	if err != nil || len(done) != 1 || done[0].Untagged[0] != "docker.io/library/named:latest" {
		t.Fatalf("got %v, %v", done, err)
	}
}

func TestChange(t *testing.T) {
	var c dockerspec.DockerOCIImageConfig
	c.Env = []string{"PATH=/bin", "A=old"}
	err := Change(&c, []string{
		"ENV A=new B='x y'", "env C=$A", `CMD ["a", "b"]`, "ENTRYPOINT exec $A", "WORKDIR /srv/x/..", "WORKDIR data",
		"EXPOSE 80 53/UDP 8000-8002", "VOLUME /v /w", "USER 1:2", "LABEL a=b c=d", "STOPSIGNAL SIGINT", "ONBUILD RUN x",
		"HEALTHCHECK --interval=5s CMD true", `SHELL ["/bin/bash", "-c"]`,
	})
	if err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	want := `{"User":"1:2","ExposedPorts":{"53/udp":{},"80/tcp":{},"8000/tcp":{},"8001/tcp":{},"8002/tcp":{}},` +
		`"Env":["PATH=/bin","A=new","B=x y","C=new"],"Entrypoint":["/bin/sh","-c","exec $A"],"Cmd":["a","b"],` +
		`"Volumes":{"/v":{},"/w":{}},"WorkingDir":"/srv/data","Labels":{"a":"b","c":"d"},"StopSignal":"SIGINT",` +
		`"Healthcheck":{"Test":["CMD-SHELL","true"],"Interval":5000000000},"OnBuild":["RUN x"],"Shell":["/bin/bash","-c"]}`
	if string(b) != want {
		t.Errorf("got  %s\nwant %s", b, want)
	}
	for _, bad := range []string{"RUN x", "COPY a b", "NOPE", "EXPOSE 0", "EXPOSE x", "EXPOSE 9-8", "ENV", ""} {
		if err := Change(&c, []string{bad}); err == nil {
			t.Errorf("%q changed something", bad)
		}
	}
}

func TestImport(t *testing.T) {
	plain := storetest.Tar(t, "etc/", "etc/hello hi")
	s := newStore(t)
	o := ImportOptions{Name: "x", From: "-", Message: "made", Created: time.Unix(1700000000, 0)}
	id, err := s.Import(t.Context(), bytes.NewReader(plain), o)
	if err != nil {
		t.Fatal(err)
	}
	image, err := s.Find(t.Context(), "x")
	if err != nil || image.ID != id {
		t.Fatal(image.ID, err)
	}
	if l := image.Documents.Layers[0]; l.DiffID != digest.FromBytes(plain) || l.Digest != l.DiffID {
		t.Errorf("layer %+v", l)
	}
	if image.Config.History[0].Comment != "made" || !image.Created.Equal(o.Created) {
		t.Errorf("config %+v", image.Config)
	}
	for name, data := range map[string][]byte{"empty": nil, "text": []byte(strings.Repeat("no archive\n", 100)), "cut": plain[:700], "cut gzip": {0x1f, 0x8b, 8, 0}} {
		if _, err := s.Import(t.Context(), bytes.NewReader(data), ImportOptions{From: name}); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: got %v", name, err)
		}
	}
	if left, err := filepath.Glob(filepath.Join(s.layout().Dir(), ".kiln-*")); err != nil || len(left) > 0 {
		t.Errorf("left %v, %v", left, err)
	}
}

// TestFindReadsOne finds an image by its name although no other can be read,
// as it is found in the list of all.
func TestFindReadsOne(t *testing.T) {
	s := newStore(t)
	add(t, s, "other", "0", 1)
	id := add(t, s, "x", "1", 2)
	if err := s.Tag(t.Context(), "x", "example.com/x:2"); err != nil {
		t.Fatal(err)
	}
	all, err := s.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	other, err := Find(all, "other")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(s.layout().Path(other.Target.Digest), []byte("{"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"x", "docker.io/library/x:latest", "example.com/x:2"} {
		want, err := Find(all, name)
		if err != nil {
			t.Fatal(err)
		}
		got, err := s.Find(t.Context(), name)
		if err != nil || got.ID != id || got.Name != want.Name || !slices.Equal(got.Names, want.Names) || got.Size != want.Size {
			t.Errorf("%s: got %+v, %v; want %+v", name, got.Image, err, want.Image)
		}
	}
	if _, err := s.Find(t.Context(), "none"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v", err)
	}
}
