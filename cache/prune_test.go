package cache

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"kiln.build/solver"
)

// age makes everything about a digest look as if last used so long ago.
func age(t *testing.T, s *Store, d digest.Digest, by time.Duration) {
	t.Helper()
	then := time.Now().Add(-by)
	found := false
	for _, p := range []string{s.hashed("actions", d), s.hashed("blobs", d), filepath.Join(s.layerPath(d), "tree")} {
		if os.Chtimes(p, then, then) == nil {
			found = true
		}
	}
	if !found {
		t.Fatalf("%s is not there", d)
	}
}

// history fills a store with n results, the first used longest ago, and
// closes it.
func history(t *testing.T, root string, n int) (keys []digest.Digest, layers []solver.Layer) {
	t.Helper()
	s := reopen(t, root, Options{})
	defer closeTest(t, s)
	for i := range n {
		l := putLayer(t, s, map[string]string{"f": strings.Repeat(fmt.Sprint(i), 10000)})
		key := save(t, s, fmt.Sprint("result ", i), solver.Result{Layers: []solver.Layer{l}})
		age(t, s, key, time.Duration(n-i)*24*time.Hour)
		age(t, s, l.Digest, time.Duration(n-i)*24*time.Hour)
		keys, layers = append(keys, key), append(layers, l)
	}
	return keys, layers
}

// hits tells which keys are found, without pinning or touching anything.
func hits(t *testing.T, root string, keys []digest.Digest) string {
	t.Helper()
	s := openTest(t, root, Options{ReadOnly: true})
	var b strings.Builder
	for i, key := range keys {
		if _, err := s.Lookup(context.Background(), key); err == nil {
			fmt.Fprint(&b, i)
		} else if !isMiss(err) {
			t.Error(err)
		}
	}
	return b.String()
}

func TestPrune(t *testing.T) {
	tests := []struct {
		name string
		o    PruneOptions
		want string
	}{
		{"everything", PruneOptions{}, ""},
		{"not what was used lately", PruneOptions{Until: 60 * time.Hour}, "34"},
		{"down to a size", PruneOptions{KeepStorage: 70000}, "34"},
		{"dry run", PruneOptions{DryRun: true}, "01234"},
		{"only blobs", PruneOptions{Filters: map[string][]string{"type": {"blob"}}}, "01234"},
		{"by description", PruneOptions{Filters: map[string][]string{"description": {"result 1", "result 3"}}}, "024"},
		{"filters are joined", PruneOptions{Filters: map[string][]string{"description": {"result 1", "result 3"}, "until": {"80h"}}}, "0234"},
		{"in use", PruneOptions{Filters: map[string][]string{"inuse": {"true"}}}, "01234"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			root := t.TempDir()
			keys, _ := history(t, root, 5)
			s := openTest(t, root, Options{})
			if tt.o.KeepStorage > 0 {
				// The sizes of small files differ between file systems.
				rows, err := s.Usage(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				tt.o.KeepStorage = 0
				for _, u := range rows {
					if !slices.Contains([]string{"step result 0", "step result 1", "step result 2"}, u.Description) {
						tt.o.KeepStorage += u.Size
					}
				}
			}
			before := total(t, s)
			r, err := s.Prune(t.Context(), tt.o)
			if err != nil {
				t.Fatal(err)
			}
			if got := hits(t, root, keys); got != tt.want {
				t.Errorf("left %q, want %q", got, tt.want)
			}
			if after := total(t, s); !tt.o.DryRun && (r.Left != after || before-r.Bytes != after) {
				t.Errorf("report says %d - %d = %d, but %d are left", before, r.Bytes, r.Left, after)
			}
			if tt.o.DryRun && len(r.Removed) != 10 {
				t.Errorf("would remove %d things, want 10", len(r.Removed))
			}
		})
	}
}

func total(t *testing.T, s *Store) (n int64) {
	t.Helper()
	rows, err := s.Usage(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, u := range rows {
		n += u.Size
	}
	return n
}

func TestPruneRefusesFilters(t *testing.T) {
	s := openTest(t, t.TempDir(), Options{})
	for key, value := range map[string]string{"colour": "red", "until": "yesterday", "type": "folder", "shared": "maybe"} {
		_, err := s.Prune(t.Context(), PruneOptions{Filters: map[string][]string{key: {value}}})
		if err == nil || !strings.Contains(err.Error(), key) {
			t.Errorf("%s=%s: %v", key, value, err)
		}
	}
}

func TestPruneSparesWhatIsUsed(t *testing.T) {
	root := t.TempDir()
	keys, layers := history(t, root, 6)
	user := reopen(t, root, Options{})
	if _, err := user.Lookup(t.Context(), keys[0]); err != nil {
		t.Fatal(err)
	}
	if err := user.Pin(t.Context(), layers[1].Digest); err != nil {
		t.Fatal(err)
	}
	made := putLayer(t, user, map[string]string{"new": ""})
	blob, err := user.PutBlob([]byte("new"))
	if err != nil {
		t.Fatal(err)
	}
	pruner := openTest(t, root, Options{})
	o := PruneOptions{Roots: func() ([]digest.Digest, error) { return []digest.Digest{layers[2].Digest}, nil }}
	if _, err := pruner.Prune(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	if got := hits(t, root, keys); got != "02" {
		t.Errorf("left %q, want 0, which is used, and 2, which is a root", got)
	}
	for _, d := range []digest.Digest{layers[0].Digest, layers[1].Digest, layers[2].Digest, made.Digest} {
		if err := pruner.hasLayer(d); err != nil {
			t.Errorf("layer: %v", err)
		}
	}
	if _, err := user.Blob(blob); err != nil {
		t.Error(err)
	}
	if err := user.Pin(t.Context(), layers[3].Digest); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("pinned a layer that is gone: %v", err)
	}
	closeTest(t, user)
	o.All = true
	if _, err := pruner.Prune(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	if got := hits(t, root, keys); got != "" {
		t.Errorf("left %q", got)
	}
	if err := pruner.hasLayer(layers[2].Digest); err != nil {
		t.Errorf("root: %v", err)
	}
	if err := pruner.hasLayer(layers[1].Digest); err == nil {
		t.Error("a layer outlives the pin of a process that has ended")
	}
}

func TestPruneImages(t *testing.T) {
	s := openTest(t, t.TempDir(), Options{})
	write := func(text string) digest.Digest {
		d, err := s.Images().WriteBytes(t.Context(), "text/plain", []byte(text))
		if err != nil {
			t.Fatal(err)
		}
		return d.Digest
	}
	tagged, origin, idle := write("tagged"), write("origin"), write("idle")
	if err := s.Images().Tag(t.Context(), "docker.io/library/x:latest", v1.Descriptor{MediaType: "text/plain", Digest: tagged, Size: 6}); err != nil {
		t.Fatal(err)
	}
	l := putLayer(t, s, map[string]string{"f": ""})
	l.Origin = &solver.Origin{Blob: origin}
	save(t, s, "unpack", solver.Result{Layers: []solver.Layer{l}})
	rows, err := s.Usage(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	use := map[string]bool{}
	for _, u := range rows {
		if u.Kind == KindImage {
			use[u.ID] = u.InUse
		}
	}
	if len(use) != 3 || !use[tagged.String()] || use[idle.String()] {
		t.Errorf("usage: %v", use)
	}
	if _, err := s.Prune(t.Context(), PruneOptions{}); err != nil {
		t.Fatal(err)
	}
	for d, want := range map[digest.Digest]bool{tagged: true, origin: true, idle: false} {
		if s.Images().Has(d) != want {
			t.Errorf("%s: there is %t", d, !want)
		}
	}
}

// TestPruneBlobsInTurn trims a store in which blobs that no tag holds and
// layers were used one after the other.
func TestPruneBlobsInTurn(t *testing.T) {
	root := t.TempDir()
	keys, _ := history(t, root, 4) // used 4, 3, 2 and 1 days ago
	s := reopen(t, root, Options{})
	blob := func(text string, days int) digest.Digest {
		d, err := s.Images().WriteBytes(t.Context(), "text/plain", []byte(strings.Repeat(text, 20000)))
		if err != nil {
			t.Fatal(err)
		}
		then := time.Now().Add(-time.Duration(days)*24*time.Hour - time.Hour)
		if err := os.Chtimes(s.Images().Path(d.Digest), then, then); err != nil {
			t.Fatal(err)
		}
		return d.Digest
	}
	oldest, newer, needed := blob("a", 9), blob("b", 2), blob("c", 9)
	l := putLayer(t, s, map[string]string{"f": "unpacked"})
	l.Origin = &solver.Origin{Blob: needed}
	unpack := save(t, s, "unpack", solver.Result{Layers: []solver.Layer{l}})
	left := func() string {
		var b strings.Builder
		for name, d := range map[string]digest.Digest{"oldest ": oldest, "newer ": newer, "needed ": needed} {
			if s.Images().Has(d) {
				b.WriteString(name)
			}
		}
		words := strings.Fields(b.String())
		slices.Sort(words)
		return strings.Join(append(words, hits(t, root, keys)), " ")
	}
	for _, want := range []string{
		"needed newer 0123", // the blob of nine days ago
		"needed newer 123",
		"needed newer 23",
		"needed 23",
		"needed 3",
		"needed ",
	} {
		// Less than there is by a byte: one thing goes, and an action with its
		// layer.
		for before := left(); ; {
			r, err := s.Prune(t.Context(), PruneOptions{KeepStorage: total(t, s) - 1})
			if err != nil {
				t.Fatal(err)
			}
			if after := total(t, s); r.Left != after {
				t.Errorf("report says %d are left, there are %d", r.Left, after)
			}
			if left() != before || len(r.Removed) == 0 {
				break
			}
		}
		if got := left(); got != want {
			t.Fatalf("left %q, want %q", got, want)
		}
	}
	age(t, s, unpack, 100*24*time.Hour)
	closeTest(t, s) // which gives up the pin
	s = openTest(t, root, Options{})
	if _, err := s.Prune(t.Context(), PruneOptions{KeepStorage: 1}); err != nil {
		t.Fatal(err)
	}
	if got := left(); got != "" {
		t.Errorf("left %q when the action that needed it has gone", got)
	}
}

// TestPruneBesideBuilds runs builds and a pruner at once: what a build has
// looked up or committed must be there until it closes the store.
func TestPruneBesideBuilds(t *testing.T) {
	root := t.TempDir()
	stop := make(chan struct{})
	var pruner, builds sync.WaitGroup
	pruner.Add(1)
	go func() {
		defer pruner.Done()
		s := openTest(t, root, Options{})
		for {
			if _, err := s.Prune(context.Background(), PruneOptions{}); err != nil {
				t.Error(err)
			}
			select {
			case <-stop:
				return
			default:
			}
		}
	}()
	for b := range 3 {
		builds.Add(1)
		go func() {
			defer builds.Done()
			for range 15 {
				build(t, root, b)
			}
		}()
	}
	builds.Wait()
	close(stop)
	pruner.Wait()
}

func build(t *testing.T, root string, seed int) {
	s := reopen(t, root, Options{})
	defer closeTest(t, s)
	var have []digest.Digest
	for i := range 6 {
		text := fmt.Sprint("shared ", (i+seed)%4)
		res, err := s.Lookup(context.Background(), digest.FromString(text))
		if isMiss(err) {
			l := putLayer(t, s, map[string]string{"f": text})
			res = solver.Result{Layers: []solver.Layer{l}}
			save(t, s, text, res)
		} else if err != nil {
			t.Error(err)
			return
		}
		for _, l := range res.Layers {
			have = append(have, l.Digest)
		}
		for _, d := range have {
			if b, err := os.ReadFile(filepath.Join(layerDir(t, s, d), "f")); err != nil || !strings.HasPrefix(string(b), "shared") {
				t.Errorf("a layer in use: %v", err)
			}
		}
	}
}

// TestGateLetsPrunerIn has goroutines in the gate all the time.
func TestGateLetsPrunerIn(t *testing.T) {
	s := openTest(t, t.TempDir(), Options{})
	stop := make(chan struct{})
	var wait sync.WaitGroup
	for range 4 {
		wait.Add(1)
		go func() {
			defer wait.Done()
			for {
				select {
				case <-stop:
					return
				default:
				}
				leave, err := s.enter(context.Background())
				if err != nil {
					t.Error(err)
					return
				}
				leave()
			}
		}()
	}
	for range 20 {
		release, err := s.gate.exclude(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		s.gate.mu.Lock()
		if s.gate.inside != 0 {
			t.Error("someone is inside")
		}
		s.gate.mu.Unlock()
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := s.enter(ctx); !errors.Is(err, context.Canceled) {
			t.Errorf("entered: %v", err)
		}
		release()
	}
	close(stop)
	wait.Wait()
}

func TestUsage(t *testing.T) {
	s := openTest(t, t.TempDir(), Options{})
	l := putLayer(t, s, map[string]string{"f": strings.Repeat("x", 10000)})
	blob, err := s.PutBlob([]byte("blob"))
	if err != nil {
		t.Fatal(err)
	}
	save(t, s, "one", solver.Result{Layers: []solver.Layer{l}, Blob: blob})
	save(t, s, "two", solver.Result{Layers: []solver.Layer{l}})
	hidden := action("op \"select\"\nsource \"/src\"\n")
	hidden.Step = nil
	if err := s.Save(t.Context(), hidden, solver.Result{}); err != nil {
		t.Fatal(err)
	}
	dir, release, err := s.CacheMount(t.Context(), CacheMountOptions{ID: "/root/.cache"})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "big"), make([]byte, 50000), 0o600); err != nil {
		t.Fatal(err)
	}
	rows, err := s.Usage(t.Context())
	release()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]Usage{}
	for _, u := range rows {
		got[fmt.Sprint(u.Kind, " ", u.Description)] = u
		if time.Since(u.Created) > time.Minute || time.Since(u.LastUsed) > time.Minute {
			t.Errorf("times of %+v", u)
		}
	}
	layer := got["layer step two"]
	if layer.ID != l.Digest.String() || layer.Size < 10000 || !layer.Shared || !layer.InUse {
		t.Errorf("layer: %+v", layer)
	}
	if b := got["blob step one"]; b.ID != blob.String() || b.Shared || !b.InUse {
		t.Errorf("blob: %+v", b)
	}
	if m := got["mount cache mount /root/.cache"]; m.ID != "/root/.cache" || m.Size < 50000 || !m.InUse {
		t.Errorf("mount: %+v", m)
	}
	if _, ok := got["action select /src"]; !ok {
		t.Errorf("hidden step: %v", rows)
	}
}

func TestVerify(t *testing.T) {
	s := openTest(t, t.TempDir(), Options{})
	harms := map[string]func(dir string) error{
		"fine":    func(string) error { return nil },
		"content": func(dir string) error { return os.WriteFile(dir+"/fs/f", []byte("other"), 0o644) },
		"added":   func(dir string) error { return os.WriteFile(dir+"/fs/g", nil, 0o644) },
		"missing": func(dir string) error { return os.Remove(dir + "/fs/f") },
		"mode":    func(dir string) error { return os.Chmod(dir+"/fs/f", 0o4755) },
		"type":    func(dir string) error { return errors.Join(os.Remove(dir+"/fs/f"), os.Mkdir(dir+"/fs/f", 0o755)) },
		"files":   func(dir string) error { return os.RemoveAll(dir + "/fs") },
		"tree":    func(dir string) error { return os.WriteFile(dir+"/tree", []byte("x"), 0o600) },
		"no tree": func(dir string) error { return os.Remove(dir + "/tree") },
	}
	names := map[string]string{}
	for name, harm := range harms {
		l := putLayer(t, s, map[string]string{"f": "content", "is": name})
		names[l.Digest.String()] = name
		if err := harm(s.layerPath(l.Digest)); err != nil {
			t.Fatal(err)
		}
	}
	blob, err := s.PutBlob([]byte("b"))
	if err != nil {
		t.Fatal(err)
	}
	names[blob.String()] = "blob"
	key := save(t, s, "a", solver.Result{})
	names[key.String()] = "action"
	for _, p := range []string{s.hashed("blobs", blob), s.hashed("actions", key)} {
		if err := os.WriteFile(p, []byte("damaged"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	problems, err := s.Verify(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for _, p := range problems {
		got[names[p.ID]] = strings.SplitN(p.String(), p.ID+": ", 2)[1]
	}
	want := map[string]string{
		"content": "/f: its content was changed",
		"added":   "/g: it was added",
		"missing": "/f: it is missing",
		"mode":    "/f: its attributes were changed",
		"type":    "/f: it is a directory and should be a file",
		"files":   "its files are missing",
		"no tree": "its tree is missing",
		"tree":    "it is not an encoded tree: the encoded tree is damaged",
		"blob":    "the file of the store is not what was written",
		"action":  "",
	}
	for name := range names {
		name := names[name]
		if _, ok := got[name]; ok == (name == "fine") {
			t.Errorf("%s: reported %t", name, ok)
		}
		if w := want[name]; w != "" && name != "blob" && got[name] != w {
			t.Errorf("%s: got %q, want %q", name, got[name], w)
		}
	}
}
