package cache

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"kiln.build/solver"
)

// waitFor waits until something holds.
func waitFor(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited for %s", what)
		}
	}
}

// TestExpect reads records ahead, and changes some before they are asked for:
// a look-up finds what is there then.
func TestExpect(t *testing.T) {
	root := t.TempDir()
	s := reopen(t, root, Options{})
	var keys []digest.Digest
	for i := range 5 {
		keys = append(keys, save(t, s, fmt.Sprint("step ", i), solver.Result{Digest: digest.FromString(fmt.Sprint(i))}))
	}
	closeTest(t, s)

	s = openTest(t, root, Options{})
	missing := digest.FromString("nobody made this")
	s.Expect(func() []digest.Digest { return append([]digest.Digest{missing, keys[0], "no digest"}, keys...) })
	kept := func() int {
		s.expected.mu.Lock()
		defer s.expected.mu.Unlock()
		return len(s.expected.records)
	}
	waitFor(t, "the records", func() bool { return kept() == len(keys) })
	if n := len(s.expected.room); n != len(keys) {
		t.Errorf("room is taken by %d", n)
	}

	other := openTest(t, root, Options{})
	save(t, other, "step 1", solver.Result{Digest: digest.FromString("made anew")})
	if _, err := other.Prune(t.Context(), PruneOptions{Filters: map[string][]string{"id": {keys[2].String()}}}); err != nil {
		t.Fatal(err)
	}
	for i, want := range []string{"0", "made anew", "", "3"} {
		r, err := s.Lookup(t.Context(), keys[i])
		switch {
		case want == "" && !errors.Is(err, solver.ErrMiss):
			t.Errorf("step %d, which was pruned: %v, %v", i, r.Digest, err)
		case want != "" && (err != nil || r.Digest != digest.FromString(want)):
			t.Errorf("step %d: %v, %v", i, r.Digest, err)
		}
	}
	if _, err := s.Lookup(t.Context(), missing); !errors.Is(err, solver.ErrMiss) {
		t.Errorf("what nobody made: %v", err)
	}
	if n := kept(); n != 1 || len(s.expected.room) != 1 {
		t.Errorf("%d records are kept, room is taken by %d", n, len(s.expected.room))
	}
	// To read ahead is no use: it keeps nothing.
	if _, err := other.Prune(t.Context(), PruneOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Lookup(t.Context(), keys[3]); err != nil {
		t.Errorf("what was looked up: %v", err)
	}
	if _, err := s.Lookup(t.Context(), keys[4]); !errors.Is(err, solver.ErrMiss) {
		t.Errorf("what was only read ahead: %v", err)
	}
}

// TestExpectTooMuch closes a store that nobody asks for what it has read.
func TestExpectTooMuch(t *testing.T) {
	root := t.TempDir()
	s := reopen(t, root, Options{})
	var keys []digest.Digest
	for i := range expectMax + 10 {
		a := action(fmt.Sprint("step ", i))
		keys = append(keys, a.Key)
		if err := s.Save(context.Background(), a, solver.Result{Digest: a.Key}); err != nil {
			t.Fatal(err)
		}
	}
	closeTest(t, s)
	s = reopen(t, root, Options{})
	s.Expect(func() []digest.Digest { return keys })
	waitFor(t, "the room", func() bool { return len(s.expected.room) == expectMax })
	for _, key := range []digest.Digest{keys[0], keys[expectMax+5]} {
		if _, err := s.Lookup(t.Context(), key); err != nil {
			t.Error(err)
		}
	}
	closeTest(t, s) // which does not wait for someone to ask
}
