package cache

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// Locks between processes are of two kinds, both of which the kernel drops
// with their process, however it dies, and both of which belong to an open
// file description, so that goroutines exclude each other as processes do:
//
//   - of keys and names there are any number, and each is a lock on one byte
//     of the file locks/keys: the byte at an offset that is a hash of the
//     key. No file is made for them and none is left;
//   - scratch directories and cache mounts have a file each, with a flock.
//     The file may be removed, but only by who holds it exclusively: whoever
//     gets a lock looks whether its file still has its name, and begins again
//     if not.
//
// Not making files matters: on ext4 the making of a file or directory takes
// 30 us as a rule, but a millisecond and more for half a minute after many
// have been deleted nearby, as builds do all the time, for the allocator then
// steps over the inodes that were in use lately one by one
// (fs/ext4/ialloc.c, recently_deleted). Links and renames do not suffer.

// errBusy is what tryLock returns for a lock that another holds.
var errBusy = errors.New("it is locked")

// tryLock takes a flock on a file, which is made if it is missing.
func tryLock(path string, how int) (*os.File, error) {
	return lockFile(path, os.O_RDWR|os.O_CREATE, how)
}

// tryOpenLock is tryLock for a file that must be there.
func tryOpenLock(path string, how int) (*os.File, error) {
	return lockFile(path, os.O_RDWR, how)
}

func lockFile(path string, flags, how int) (*os.File, error) {
	for {
		f, err := os.OpenFile(path, flags, 0o600)
		if err != nil {
			return nil, err
		}
		err = flock(f, how|unix.LOCK_NB)
		if err == unix.EWOULDBLOCK {
			f.Close()
			return nil, errBusy
		}
		if err != nil {
			f.Close()
			return nil, &os.PathError{Op: "flock", Path: path, Err: err}
		}
		if same(f, path) {
			return f, nil
		}
		f.Close()
	}
}

// waitLock takes a flock as soon as it is free or ends with the context. A
// flock that blocks cannot be interrupted, so it asks again and again; what
// is waited for takes longer than the pauses.
func waitLock(ctx context.Context, path string, how int) (*os.File, error) {
	for pause := time.Millisecond; ; pause = min(2*pause, 20*time.Millisecond) {
		f, err := tryLock(path, how)
		if err != errBusy {
			return f, err
		}
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-time.After(pause):
		}
	}
}

func flock(f *os.File, how int) error {
	for {
		if err := unix.Flock(int(f.Fd()), how); err != unix.EINTR {
			return err
		}
	}
}

// unlock releases a lock. Closing alone would leave it with a child that was
// forked and has not come to its exec yet.
func unlock(f *os.File) error {
	return errors.Join(flock(f, unix.LOCK_UN), f.Close())
}

// same reports whether an open file is the one at a path.
func same(f *os.File, path string) bool {
	var a, b unix.Stat_t
	return unix.Fstat(int(f.Fd()), &a) == nil && unix.Stat(path, &b) == nil && a.Ino == b.Ino && a.Dev == b.Dev
}

// lockKey waits until no one else holds the lock of a key and takes it.
func (s *Store) lockKey(ctx context.Context, key digest.Digest) (release func(), err error) {
	f, err := os.OpenFile(s.keysPath(), os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	offset, err := keyOffset(key)
	if err != nil {
		f.Close()
		return nil, err
	}
	for pause := time.Millisecond; ; pause = min(2*pause, 20*time.Millisecond) {
		err := lockByte(f, offset, unix.F_WRLCK)
		if err == nil {
			return sync.OnceFunc(func() {
				_ = lockByte(f, offset, unix.F_UNLCK) // see unlock
				f.Close()
			}), nil
		}
		if err != unix.EAGAIN && err != unix.EACCES {
			f.Close()
			return nil, &os.PathError{Op: "lock", Path: f.Name(), Err: err}
		}
		select {
		case <-ctx.Done():
			f.Close()
			return nil, context.Cause(ctx)
		case <-time.After(pause):
		}
	}
}

func (s *Store) keysPath() string { return s.path("locks", "keys") }

// keyOffset is where the lock of a key is. Two keys could share a byte: then
// one waits for the other, which in a store of a million actions has a chance
// of one to ten million of ever happening.
func keyOffset(key digest.Digest) (int64, error) {
	n, err := strconv.ParseUint(key.Encoded()[:16], 16, 64)
	return int64(n >> 2), err
}

func lockByte(f *os.File, offset int64, how int16) error {
	for {
		err := unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: how, Whence: io.SeekStart, Start: offset, Len: 1})
		if err != unix.EINTR {
			return err
		}
	}
}

// FileLock waits until no one else, in any process, holds the lock of that
// name, and takes it. It dies with the process. The function returned may be
// called more than once.
func (s *Store) FileLock(ctx context.Context, name string) (release func(), err error) {
	if s.ro {
		return nil, ErrReadOnly
	}
	release, err = s.lockKey(ctx, digest.FromString("name "+name))
	if err != nil {
		return nil, fmt.Errorf("lock %q: %w", name, err)
	}
	return release, nil
}

// fileName makes a file name of any text: the text itself where it is one.
func fileName(s string) string {
	const plain = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-"
	if s != "" && len(s) < 64 && s[0] != '.' && strings.Trim(s, plain) == "" {
		return s
	}
	return digest.FromString(s).Encoded()
}

// gate keeps pruning apart from looking up and pinning. Who pins is inside,
// beside any number of others, for some microseconds; who prunes is inside
// alone. See pins for why.
//
// Between processes it is two flocks on files that stay: on "gate", shared or exclusive, and
// before it on "turnstile", which makes the ones that come after a waiting
// pruner wait too, or it would never find the gate empty. In a process one
// pair of descriptors serves all goroutines. Calls of enter must not nest.
type gate struct {
	dir             string
	turnstile, gate *os.File

	mu     sync.Mutex
	inside int // goroutines of this process
}

func openGate(dir string) (*gate, error) {
	g := &gate{dir: dir}
	var err error
	if g.turnstile, err = os.OpenFile(filepath.Join(dir, "turnstile"), os.O_RDWR|os.O_CREATE, 0o600); err != nil {
		return nil, err
	}
	if g.gate, err = os.OpenFile(filepath.Join(dir, "gate"), os.O_RDWR|os.O_CREATE, 0o600); err != nil {
		g.turnstile.Close()
		return nil, err
	}
	return g, nil
}

func (g *gate) close() error { return errors.Join(g.turnstile.Close(), g.gate.Close()) }

// enter waits while someone prunes. done, which may be nil, ends the wait:
// then ok is false.
func (g *gate) enter(done <-chan struct{}) (ok bool, err error) {
	for pause := 100 * time.Microsecond; ; pause = min(2*pause, 20*time.Millisecond) {
		if ok, err := g.tryEnter(); ok || err != nil {
			return ok, err
		}
		select {
		case <-done:
			return false, nil
		case <-time.After(pause):
		}
	}
}

func (g *gate) tryEnter() (ok bool, err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if err := flock(g.turnstile, unix.LOCK_SH|unix.LOCK_NB); err != nil {
		return false, unlessBusy(err)
	}
	// Who prunes holds both locks until the end, so this one is free now
	// unless that process has just died.
	err = flock(g.gate, unix.LOCK_SH|unix.LOCK_NB)
	if unlocked := flock(g.turnstile, unix.LOCK_UN); err == nil && unlocked != nil {
		return false, unlocked
	}
	if err != nil {
		return false, unlessBusy(err)
	}
	g.inside++
	return true, nil
}

func unlessBusy(err error) error {
	if err == unix.EWOULDBLOCK {
		return nil
	}
	return os.NewSyscallError("flock", err)
}

func (g *gate) leave() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.inside--; g.inside == 0 {
		_ = flock(g.gate, unix.LOCK_UN) // of an open descriptor: cannot fail
	}
}

// exclude waits until no one is inside and keeps everyone out.
func (g *gate) exclude(ctx context.Context) (release func(), err error) {
	turnstile, err := waitLock(ctx, filepath.Join(g.dir, "turnstile"), unix.LOCK_EX)
	if err != nil {
		return nil, err
	}
	gate, err := waitLock(ctx, filepath.Join(g.dir, "gate"), unix.LOCK_EX)
	if err != nil {
		return nil, errors.Join(err, unlock(turnstile))
	}
	return func() {
		_ = unlock(gate)
		_ = unlock(turnstile)
	}, nil
}

// enter enters the gate.
func (s *Store) enter(ctx context.Context) (leave func(), err error) {
	ok, err := s.gate.enter(ctx.Done())
	switch {
	case err != nil:
		return nil, fmt.Errorf("enter store: %w", err)
	case !ok:
		return nil, context.Cause(ctx)
	}
	return s.gate.leave, nil
}
