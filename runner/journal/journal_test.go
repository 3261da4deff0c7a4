package journal

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

func read(t *testing.T, j File) []string {
	t.Helper()
	var all []string
	if err := j.Read(func(l []byte) error { all = append(all, string(l)); return nil }); err != nil {
		t.Fatal(err)
	}
	return all
}

func TestWriterTurns(t *testing.T) {
	for _, keep := range []int{1, 2, 5} {
		t.Run(fmt.Sprint(keep), func(t *testing.T) {
			dir := t.TempDir()
			j := File{Path: filepath.Join(dir, "log"), Max: 100, Keep: keep}
			w, err := j.Open()
			if err != nil {
				t.Fatal(err)
			}
			for i := range 200 {
				if _, err := fmt.Fprintf(w, "line %03d\n", i); err != nil { // 9 bytes, 11 a file
					t.Fatal(err)
				}
			}
			if err := w.Close(); err != nil {
				t.Fatal(err)
			}
			files, err := os.ReadDir(dir)
			if err != nil || len(files) != keep {
				t.Fatalf("%d files, %v; want %d", len(files), err, keep)
			}
			for _, f := range files {
				if fi, err := f.Info(); err != nil || fi.Size() > 100 {
					t.Errorf("%s has %d bytes, %v; want at most 100", f.Name(), fi.Size(), err)
				}
			}
			got := read(t, j)
			if want := (keep-1)*11 + 200%11; len(got) != want {
				t.Errorf("%d lines are left, want %d", len(got), want)
			}
			for i, l := range got {
				if want := fmt.Sprintf("line %03d", 200-len(got)+i); l != want {
					t.Fatalf("line %d is %q, want %q", i, l, want)
				}
			}
		})
	}
}

// TestAppendMany has many writers that turn the file all the time: no line is
// lost or torn as long as it is kept.
func TestAppendMany(t *testing.T) {
	j := File{Path: filepath.Join(t.TempDir(), "events"), Max: 200, Keep: 1000}
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			for i := range 100 {
				if err := j.Append(fmt.Appendf(nil, "%d %d", w, i)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	next := map[string]int{}
	got := read(t, j)
	for _, l := range got {
		w, i, _ := strings.Cut(l, " ")
		if i != fmt.Sprint(next[w]) {
			t.Fatalf("writer %s: line %s, want %d", w, i, next[w])
		}
		next[w]++
	}
	if len(got) != 800 {
		t.Errorf("%d lines, want 800", len(got))
	}
}

// TestFollow reads while a writer turns the file, and misses nothing.
func TestFollow(t *testing.T) {
	j := File{Path: filepath.Join(t.TempDir(), "log"), Max: 1000, Keep: 100}
	w, err := j.Open()
	if err != nil {
		t.Fatal(err)
	}
	var written atomic.Bool
	go func() {
		for i := range 5000 {
			if _, err := fmt.Fprintf(w, "%d\n", i); err != nil {
				t.Error(err)
			}
		}
		written.Store(true)
	}()
	n := 0
	err = j.Follow(t.Context(), written.Load, func(l []byte) error {
		if string(l) != fmt.Sprint(n) {
			return fmt.Errorf("got %s, want %d", l, n)
		}
		n++
		return nil
	})
	if err != nil || n != 5000 {
		t.Errorf("%d lines, %v; want 5000", n, err)
	}
}

func TestTornLine(t *testing.T) {
	j := File{Path: filepath.Join(t.TempDir(), "events"), Max: 1000, Keep: 2}
	if err := os.WriteFile(j.Path, []byte("whole\nto"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := read(t, j); len(got) != 1 || got[0] != "whole" {
		t.Errorf("got %q, want the whole line alone", got)
	}
	if err := j.Append([]byte("next")); err != nil {
		t.Fatal(err)
	}
	if got := read(t, j); len(got) != 3 || got[2] != "next" {
		t.Errorf("got %q, want the torn line by itself", got)
	}
	if err := j.Remove(); err != nil {
		t.Fatal(err)
	}
	if got := read(t, j); len(got) != 0 {
		t.Errorf("got %q after Remove", got)
	}
}

func TestFollowEnds(t *testing.T) {
	j := File{Path: filepath.Join(t.TempDir(), "events"), Max: 1000, Keep: 2}
	ctx, cancel := context.WithCancel(t.Context())
	if err := j.Append([]byte("one")); err != nil {
		t.Fatal(err)
	}
	err := j.Follow(ctx, func() bool { return false }, func([]byte) error { cancel(); return nil })
	if err != nil {
		t.Errorf("got %v at the end of the context", err)
	}
	full := errors.New("full")
	if err := j.Follow(t.Context(), func() bool { return false }, func([]byte) error { return full }); !errors.Is(err, full) {
		t.Errorf("got %v, want the reader's error", err)
	}
}
