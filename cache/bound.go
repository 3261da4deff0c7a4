package cache

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"
)

// Bound holds the store to a size: whenever what this process has written
// brings the store over max bytes, what was used least lately is trimmed to
// nine tenths of it, beside whatever else goes on. Never trimmed is what
// roots names (see PruneOptions) and what a running process uses, so the store
// can stay larger. Before a trim release is called, which may give up some of
// that. Bound must be called before anything is written. Close waits for a
// trim.
//
// How large the store is would take long to find out each time. The file
// locks/size remembers it, a line "BYTES FLOOR COUNTED": what a trim or a
// count found and what processes have added since; the size below which
// nothing more could be trimmed the last time; and when all was counted, in
// seconds since the epoch. Cache mounts, which grow unseen, are why it is
// counted anew each day.
func (s *Store) Bound(max int64, roots func() ([]digest.Digest, error), release func(context.Context) error) {
	if s.ro || max <= 0 {
		return
	}
	s.bound = &bound{store: s, max: max, roots: roots, release: release, step: min(max/64, 256<<20)}
	s.images.OnWrite(s.bound.grew)
}

const countEvery = 24 * time.Hour

// bound is what Bound has set up; nil where nothing bounds the store.
type bound struct {
	store   *Store
	max     int64
	roots   func() ([]digest.Digest, error)
	release func(context.Context) error
	step    int64 // bytes between two looks at the file

	written atomic.Int64 // bytes that the file does not have yet
	trims   sync.WaitGroup
	busy    atomic.Bool
	failed  atomic.Pointer[error]
}

// grew counts what was written.
func (b *bound) grew(n int64) {
	if b == nil || b.written.Add(n) < b.step || !b.busy.CompareAndSwap(false, true) {
		return
	}
	b.trims.Add(1)
	go func() {
		defer b.trims.Done()
		defer b.busy.Store(false)
		b.check()
	}()
}

// close counts what is left and ends a trim that goes on.
func (b *bound) close() error {
	if b == nil {
		return nil
	}
	b.trims.Wait()
	if b.written.Load() > 0 {
		b.check()
	}
	if err := b.failed.Load(); err != nil {
		return *err
	}
	return nil
}

// check adds to the file and trims if that is too much.
func (b *bound) check() {
	if err := b.settle(context.Background()); err != nil {
		err = fmt.Errorf("hold the store to %d bytes: %w", b.max, err)
		b.failed.CompareAndSwap(nil, &err)
	}
}

func (b *bound) settle(ctx context.Context) error {
	s := b.store
	release, err := s.FileLock(ctx, "size")
	if err != nil {
		return err
	}
	defer release()
	path := s.path("locks", "size")
	var size, floor, counted int64
	text, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	added := b.written.Swap(0)
	_, scanErr := fmt.Sscan(string(text), &size, &floor, &counted)
	if age := time.Since(time.Unix(counted, 0)); scanErr != nil || age < 0 || age > countEvery {
		if size, err = s.size(ctx); err != nil {
			return err
		}
		floor, added, counted = 0, 0, time.Now().Unix()
	}
	size += added
	if size > b.max && size > floor+b.max/20 {
		if err := b.release(ctx); err != nil {
			return err
		}
		report, err := s.Prune(ctx, PruneOptions{KeepStorage: b.max / 10 * 9, Cap: b.max, Roots: b.roots})
		if err != nil {
			return err
		}
		size, floor, counted = report.Left, report.Left, time.Now().Unix()
	}
	tmp := s.temp("size")
	if err := os.WriteFile(tmp, fmt.Appendf(nil, "%d %d %d\n", size, floor, counted), 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}

// size counts all that is in the store.
func (s *Store) size(ctx context.Context) (int64, error) {
	rows, err := s.Usage(ctx)
	var total int64
	for _, u := range rows {
		total += u.Size
	}
	return total, err
}
