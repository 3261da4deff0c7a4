package blob

import (
	"bytes"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestRanges reads parts of a file that is in memory, not in memory, and where
// nothing can go past that.
func TestRanges(t *testing.T) {
	path := filepath.Join(t.TempDir(), "blob")
	content := make([]byte, 3<<20+777)
	rand.NewChaCha8([32]byte{1}).Read(content)
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.Write(content); err != nil {
		t.Fatal(err)
	}
	for what, prepare := range map[string]func(r *ranges){
		"in memory": func(*ranges) {},
		"on disk": func(*ranges) {
			if err := f.Sync(); err != nil {
				t.Fatal(err)
			}
			if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
				t.Fatal(err)
			}
		},
		"dear":    func(r *ranges) { r.dear.Store(true) },
		"weighed": func(r *ranges) { r.cost = time.Hour },
		"not past memory": func(r *ranges) {
			if r.direct != nil {
				r.direct.Close()
			}
			r.direct = nil
		},
	} {
		r, err := openRanges(path)
		if err != nil {
			t.Fatal(err)
		}
		prepare(r)
		var wait sync.WaitGroup
		for i := range 4 {
			wait.Go(func() {
				random := rand.New(rand.NewPCG(uint64(i), 1))
				for n := range 200 {
					start := random.IntN(len(content))
					end := start + random.IntN(len(content)-start+1)
					if n%2 == 0 {
						end = min(len(content), start+random.IntN(5000))
					}
					got := make([]byte, end-start)
					if err := r.readAt(got, int64(start)); err != nil || !bytes.Equal(got, content[start:end]) {
						t.Errorf("%s, %d to %d: other bytes, %v", what, start, end, err)
						return
					}
				}
			})
		}
		wait.Wait()
		if what == "weighed" && r.direct != nil && !r.dear.Load() {
			t.Error("what takes an hour is not dear")
		}
		if err := r.readAt(make([]byte, 2), int64(len(content))-1); err == nil {
			t.Errorf("%s: there is more than all", what)
		}
		r.close()
	}
	if r, err := openRanges(path + "-"); r != nil || err == nil {
		t.Error("what is not there is opened")
	}
}
