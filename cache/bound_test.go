package cache

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"kiln.build/solver"
)

// fill makes a layer of one file and saves an action that promises it.
func fill(t *testing.T, s *Store, name string, bytes int) (digest.Digest, solver.Layer) {
	t.Helper()
	d, err := s.NewLayer()
	if err != nil {
		t.Fatal(err)
	}
	data := make([]byte, bytes)
	copy(data, name)
	if err := os.WriteFile(filepath.Join(d.FS, name), data, 0o600); err != nil {
		t.Fatal(err)
	}
	l := commitDraft(t, d)
	a := &solver.Action{Description: name, Key: digest.FromString(name)}
	if err := s.Save(context.Background(), a, solver.Result{Digest: l.Digest, Layers: []solver.Layer{l}}); err != nil {
		t.Fatal(err)
	}
	return a.Key, l
}

func TestBound(t *testing.T) {
	const max = 4 << 20
	root := t.TempDir()
	var keys []digest.Digest
	var wanted solver.Layer
	for i := range 8 { // processes one after the other, a megabyte each
		s, err := Open(root, Options{})
		if err != nil {
			t.Fatal(err)
		}
		s.Bound(max, func() ([]digest.Digest, error) { return []digest.Digest{wanted.Digest}, nil }, func(context.Context) error { return nil })
		key, l := fill(t, s, fmt.Sprint("file", i), 1<<20)
		keys = append(keys, key)
		used := time.Now().Add(time.Duration(i-8) * time.Minute)
		for _, path := range []string{s.hashed("actions", key), filepath.Join(s.layerPath(l.Digest), "tree")} {
			if err := os.Chtimes(path, used, used); err != nil {
				t.Fatal(err)
			}
		}
		if i == 0 {
			wanted = l // an image has it
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	s := openTest(t, root, Options{})
	size, err := s.size(context.Background())
	if err != nil || size > max {
		t.Errorf("the store has %d bytes, %v, more than %d", size, err, max)
	}
	hit := func(i int) error {
		_, err := s.Lookup(context.Background(), keys[i])
		return err
	}
	if err := hit(0); err != nil {
		t.Errorf("what an image needs: %v", err)
	}
	if err := hit(7); err != nil {
		t.Errorf("what was used last: %v", err)
	}
	if err := hit(1); !errors.Is(err, solver.ErrMiss) {
		t.Errorf("what was used least lately: %v, want a miss", err)
	}
	if e, ok := s.Evicted(keys[1]); !ok || e.Cap != max {
		t.Errorf("eviction is %+v, %t", e, ok)
	}
	if _, ok := s.Evicted(keys[7]); ok {
		t.Error("what is there counts as evicted")
	}
}
