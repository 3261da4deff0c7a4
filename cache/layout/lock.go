package layout

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

// The layout has two locks, both by flock(2) on files that every layout has,
// so that nothing is added to the format and a dead process holds none:
//
//   - oci-layout, exclusive: whoever rewrites index.json;
//   - blobs/sha256, shared: whoever writes blobs that nothing refers to yet;
//     exclusive: Collect and Idle.
//
// Where both are held, that of the blobs is taken first.

// ErrBusy is what [Layout.Collect] and [Layout.Idle] return instead of waiting.
var ErrBusy = errors.New("the image store is being written by another process")

// A Lease keeps every blob in the layout from being collected. Hold one from
// before the first blob of an image is written, or found to be there, until
// its tag is: in between nothing refers to the blobs. Leases are shared, so
// writers never wait for each other.
type Lease struct {
	f       *os.File
	release sync.Once
}

// Lease waits until no collection is under way and returns a lease. It dies
// with the process.
func (l *Layout) Lease(ctx context.Context) (*Lease, error) {
	f, err := lock(ctx, l.blobsDir(), unix.LOCK_SH, true)
	if err != nil {
		return nil, fmt.Errorf("lease the blobs of %s: %w", l.dir, err)
	}
	return &Lease{f: f}, nil
}

// Release gives the lease back. It may be called more than once.
func (l *Lease) Release() { l.release.Do(func() { l.f.Close() }) }

func (l *Layout) blobsDir() string { return filepath.Join(l.dir, v1.ImageBlobsDir, "sha256") }

// lock takes a flock on a file or directory, which closing it releases. Each
// call has an open file description of its own, so goroutines exclude each
// other as processes do. Without wait it returns ErrBusy.
func lock(ctx context.Context, path string, how int, wait bool) (*os.File, error) {
	f, err := openLock(path)
	if err != nil {
		return nil, err
	}
	// A flock that blocks cannot be cancelled, so ask again and again; what
	// holds a lock for long is a transfer, beside which 50 ms are nothing.
	for pause := time.Millisecond; ; pause = min(2*pause, 50*time.Millisecond) {
		err := unix.Flock(int(f.Fd()), how|unix.LOCK_NB)
		switch {
		case err == nil:
			return f, nil
		case errors.Is(err, unix.EINTR):
			continue
		case !errors.Is(err, unix.EWOULDBLOCK):
			f.Close()
			return nil, &os.PathError{Op: "flock", Path: path, Err: err}
		case !wait:
			f.Close()
			return nil, ErrBusy
		}
		select {
		case <-ctx.Done():
			f.Close()
			return nil, context.Cause(ctx)
		case <-time.After(pause):
		}
	}
}

// openLock opens for writing where it can: flock over NFS wants that.
func openLock(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		f, err = os.Open(path)
	}
	return f, err
}
