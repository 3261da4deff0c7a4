package cache

import (
	"context"
	"math/rand/v2"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Job waits for one of the n places that all processes on this store have
// together for heavy work, and takes it. Places are locks on the first n bytes
// of the file locks/jobs: a process that counts fewer leaves the others alone,
// and the place of one that dies is free.
func (s *Store) Job(ctx context.Context, n int) (release func(), err error) {
	if s.ro || n <= 0 {
		return func() {}, nil
	}
	// A lock belongs to its open file, so each place is one of its own.
	f, err := os.OpenFile(s.path("locks", "jobs"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	for pause := time.Millisecond; ; pause = min(2*pause, 20*time.Millisecond) {
		first := rand.IntN(n)
		for i := range n {
			at := int64((first + i) % n)
			err := lockByte(f, at, unix.F_WRLCK)
			if err == nil {
				return sync.OnceFunc(func() {
					_ = lockByte(f, at, unix.F_UNLCK) // see unlock
					f.Close()
				}), nil
			}
			if err != unix.EAGAIN && err != unix.EACCES {
				f.Close()
				return nil, &os.PathError{Op: "lock", Path: f.Name(), Err: err}
			}
		}
		select {
		case <-ctx.Done():
			f.Close()
			return nil, context.Cause(ctx)
		case <-time.After(pause):
		}
	}
}
