package cache

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// The directories of cache mounts:
//
//	caches/NAME/         all of one id; NAME is made of it by fileName
//	caches/NAME/id       the id itself
//	caches/NAME/lock     held by who makes, clears or removes directories
//	caches/NAME/0/       the directory that shared and locked mounts use
//	caches/NAME/0.lock   held by its users; its modification time is that of
//	                     the last use
//	caches/NAME/1/, …    copies for private mounts
//	caches/NAME/old-X/   cleared while in use; deleted when that ends
//
// A directory and its lock file are renamed together under "lock", so that
// users of the old one keep their lock, and others find a new one.

// Sharing says how many may use a cache mount's directory at a time.
type Sharing string

// The ways of sharing. Empty is Shared.
const (
	Shared  Sharing = "shared"  // anyone beside others
	Private Sharing = "private" // alone: if it is in use, with another copy
	Locked  Sharing = "locked"  // alone: if it is in use, after the others
)

// CacheMountOptions say which directory is wanted.
type CacheMountOptions struct {
	ID      string
	Sharing Sharing

	// Mode, UID and GID are those of a directory that is made now; a mode
	// of zero is 0755.
	Mode     uint32
	UID, GID int

	// Clear makes the directory anew. Others that use it now keep theirs
	// for as long as they do.
	Clear bool

	// Init, if set, puts the initial content into a new directory. What
	// fails or dies in it leaves no directory.
	Init func(dir string) error
}

// CacheMount returns the directory of a cache mount, and a function that ends
// its use, which may be called more than once. The use ends with the process
// as well. The directory may be bind-mounted; it is never removed while used.
func (s *Store) CacheMount(ctx context.Context, o CacheMountOptions) (dir string, release func(), err error) {
	if s.ro {
		return "", nil, ErrReadOnly
	}
	m := mount{s: s, o: o, dir: s.path("caches", fileName(o.ID))}
	dir, release, err = m.use(ctx)
	if err != nil {
		return "", nil, fmt.Errorf("cache mount %q: %w", o.ID, err)
	}
	return dir, release, nil
}

type mount struct {
	s   *Store
	o   CacheMountOptions
	dir string // caches/NAME
}

func (m mount) use(ctx context.Context) (string, func(), error) {
	switch m.o.Sharing {
	case "", Shared, Private, Locked:
	default:
		return "", nil, fmt.Errorf("sharing %q is not known, only shared, private and locked", m.o.Sharing)
	}
	cleared := false
	for pause := time.Millisecond; ; pause = min(2*pause, 20*time.Millisecond) {
		dir, f, err := m.try(ctx, m.o.Clear && !cleared)
		cleared = true
		if err == nil {
			return dir, sync.OnceFunc(func() { _ = unlock(f) }), nil
		}
		if err != errBusy {
			return "", nil, err
		}
		// Waiting is done without the lock, or users could not come to
		// share a directory with the ones that hold it.
		select {
		case <-ctx.Done():
			return "", nil, context.Cause(ctx)
		case <-time.After(pause):
		}
	}
}

// try takes a directory if it is free for this kind of use, else it returns
// errBusy.
func (m mount) try(ctx context.Context, clear bool) (string, *os.File, error) {
	guard, err := m.guard(ctx)
	if err != nil {
		return "", nil, err
	}
	defer unlock(guard)
	if clear {
		if err := m.retire(); err != nil {
			return "", nil, err
		}
	}
	m.sweep()
	how := unix.LOCK_EX
	if m.o.Sharing == "" || m.o.Sharing == Shared {
		how = unix.LOCK_SH
	}
	for slot := 0; ; slot++ {
		name := strconv.Itoa(slot)
		f, err := tryLock(filepath.Join(m.dir, name+lockSuffix), how)
		if err == errBusy && m.o.Sharing == Private {
			continue
		}
		if err != nil {
			return "", nil, err
		}
		if err := m.make(name); err != nil {
			return "", nil, errors.Join(err, unlock(f))
		}
		now := time.Now()
		_ = os.Chtimes(f.Name(), now, now) // only to know what was used least lately
		return filepath.Join(m.dir, name), f, nil
	}
}

// guard makes the directory of the id and takes its lock. Prune removes both
// under the lock.
func (m mount) guard(ctx context.Context) (*os.File, error) {
	for {
		if err := os.Mkdir(m.dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return nil, err
		}
		f, err := waitLock(ctx, filepath.Join(m.dir, "lock"), unix.LOCK_EX)
		if errors.Is(err, fs.ErrNotExist) {
			continue // it was pruned just now
		}
		if err != nil {
			return nil, err
		}
		id := filepath.Join(m.dir, "id")
		if b, err := os.ReadFile(id); err == nil && string(b) == m.o.ID {
			return f, nil
		}
		if err := os.WriteFile(id, []byte(m.o.ID), 0o600); err != nil {
			return nil, errors.Join(err, unlock(f))
		}
		return f, nil
	}
}

// make makes a directory unless it is there. It appears whole.
func (m mount) make(name string) error {
	dir := filepath.Join(m.dir, name)
	if _, err := os.Lstat(dir); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	tmp, err := m.s.Scratch("mount")
	if err != nil {
		return err
	}
	if err := m.fill(tmp); err != nil {
		return errors.Join(err, removeAll(tmp, nil))
	}
	if err := os.Rename(tmp, dir); err != nil {
		return errors.Join(err, removeAll(tmp, nil))
	}
	return nil
}

func (m mount) fill(dir string) error {
	if m.o.Init != nil {
		if err := m.o.Init(dir); err != nil {
			return err
		}
	}
	mode := m.o.Mode
	if mode == 0 {
		mode = 0o755
	}
	if m.o.UID != 0 || m.o.GID != 0 || os.Geteuid() == 0 {
		if err := os.Lchown(dir, m.o.UID, m.o.GID); err != nil {
			return err
		}
	}
	// After the change of owner, which takes setuid bits away.
	return unix.Chmod(dir, mode&0o7777)
}

// retire takes all directories away from new users.
func (m mount) retire() error {
	locks, err := filepath.Glob(filepath.Join(m.dir, "[0-9]*"+lockSuffix))
	if err != nil {
		return err
	}
	for _, lock := range locks {
		old := filepath.Join(m.dir, "old-"+random())
		// The lock goes first: a crash between the two leaves a directory
		// that was not cleared, and none that nobody knows of.
		if err := os.Rename(lock, old+lockSuffix); err != nil {
			return err
		}
		dir := strings.TrimSuffix(lock, lockSuffix)
		if err := os.Rename(dir, old); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// sweep moves what was retired and is no longer used to this process's
// scratch directory, where Close deletes it.
func (m mount) sweep() {
	old, _ := filepath.Glob(filepath.Join(m.dir, "old-*"+lockSuffix))
	for _, path := range old {
		m.remove(strings.TrimSuffix(filepath.Base(path), lockSuffix))
	}
}

// remove takes a directory out of the store if nobody uses it.
func (m mount) remove(name string) bool {
	path := filepath.Join(m.dir, name)
	f, err := tryLock(path+lockSuffix, unix.LOCK_EX)
	if err != nil {
		return false
	}
	defer unlock(f)
	if err := os.Rename(path, m.s.temp("cache")); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false
	}
	return os.Remove(path+lockSuffix) == nil
}

// mounts lists the directories of all cache mounts that are there.
func (s *Store) mounts() ([]mountSlot, error) {
	ids, err := os.ReadDir(s.path("caches"))
	if err != nil {
		return nil, err
	}
	var all []mountSlot
	for _, e := range ids {
		dir := s.path("caches", e.Name())
		id, err := os.ReadFile(filepath.Join(dir, "id"))
		if err != nil {
			continue // being made or removed
		}
		slots, _ := filepath.Glob(filepath.Join(dir, "*"+lockSuffix))
		for _, path := range slots {
			var st unix.Stat_t
			if unix.Stat(path, &st) != nil {
				continue
			}
			name := strings.TrimSuffix(filepath.Base(path), lockSuffix)
			all = append(all, mountSlot{
				mount: mount{s: s, dir: dir, o: CacheMountOptions{ID: string(id)}},
				name:  name, used: time.Unix(st.Mtim.Unix()),
			})
		}
	}
	return all, nil
}

type mountSlot struct {
	mount
	name string
	used time.Time
}

// busy reports whether the directory is in use. It asks under the lock of
// the id, so that nobody who wants the directory meets the question itself.
func (m mountSlot) busy() bool {
	guard, err := tryOpenLock(filepath.Join(m.dir, "lock"), unix.LOCK_EX)
	if err != nil {
		return err == errBusy
	}
	defer unlock(guard)
	f, err := tryOpenLock(filepath.Join(m.dir, m.name+lockSuffix), unix.LOCK_EX)
	if err == nil {
		_ = unlock(f)
	}
	return err == errBusy
}

// prune removes the directory if it is not in use, and what there is of the
// id if that was the last one.
func (m mountSlot) prune() bool {
	guard, err := tryOpenLock(filepath.Join(m.dir, "lock"), unix.LOCK_EX)
	if err != nil {
		return false
	}
	defer unlock(guard)
	if !m.remove(m.name) {
		return false
	}
	if left, _ := filepath.Glob(filepath.Join(m.dir, "*"+lockSuffix)); len(left) > 0 {
		return true
	}
	// Whoever waits for the lock sees that its file has gone.
	_ = os.Rename(m.dir, m.s.temp("cache"))
	return true
}
