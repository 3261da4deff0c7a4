package cache

import (
	"context"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"

	"kiln.build/solver"
)

// recallMax is how many layers are remembered by name.
const recallMax = 4096

// Remember notes a layer under a name, for whoever makes one like it: a step
// that copies a thousand files, one of which has changed, links the others
// from the layer that it made the last time. It is a hint, in the file
// history/last/HEX, a hash of the name; failure does no harm.
func (s *Store) Remember(name string, l digest.Digest) {
	if s.ro {
		return
	}
	if _, err := s.HistoryDir(); err != nil {
		return
	}
	path := s.recallPath(name)
	if old, err := os.ReadFile(path); err == nil && string(old) == l.String() {
		return
	}
	tmp := s.temp("last")
	if os.WriteFile(tmp, []byte(l), 0o600) != nil {
		return
	}
	if os.Rename(tmp, path) != nil {
		_ = os.Mkdir(filepath.Dir(path), 0o700)
		_ = os.Rename(tmp, path)
	}
	if rand.IntN(64) == 0 {
		forgetOldest(filepath.Dir(path))
	}
}

func (s *Store) recallPath(name string) string {
	return s.path("history", "last", digest.FromString(name).Encoded())
}

// Recalled reports whether a layer was noted under a name.
func (s *Store) Recalled(name string) bool {
	_, err := os.Stat(s.recallPath(name))
	return err == nil
}

// Recall finds the layer that was noted under a name, and pins it.
func (s *Store) Recall(ctx context.Context, name string) (solver.Layer, bool) {
	b, err := os.ReadFile(s.recallPath(name))
	if err != nil {
		return solver.Layer{}, false
	}
	l := solver.Layer{Digest: digest.Digest(strings.TrimSpace(string(b)))}
	if valid(l.Digest) != nil || s.Pin(ctx, l.Digest) != nil {
		return solver.Layer{}, false
	}
	return l, true
}

// forgetOldest keeps the directory of remembered layers small.
func forgetOldest(dir string) {
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) <= recallMax {
		return
	}
	slices.SortFunc(entries, func(a, b os.DirEntry) int {
		x, err1 := a.Info()
		y, err2 := b.Info()
		if err1 != nil || err2 != nil {
			return 0
		}
		return x.ModTime().Compare(y.ModTime())
	})
	for _, e := range entries[:len(entries)-recallMax/2] {
		_ = os.Remove(filepath.Join(dir, e.Name()))
	}
}
