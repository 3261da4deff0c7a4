package container

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// A fileLock is an exclusive lock of an open file description (F_OFD_SETLK in
// fcntl(2)). The kernel gives it up when the process dies. Unlike one of
// flock(2) it can be asked about without being taken, so looking at a
// container never stands in the way of one that is being started or removed.
type fileLock struct{ f *os.File }

// errLocked says that somebody else has the lock.
var errLocked = errors.New("locked by another process")

// tryLock takes the lock of a file, which it makes if need be.
func tryLock(path string) (*fileLock, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	err = ofd(f, unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_WRLCK})
	if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EACCES) {
		err = errLocked
	}
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	return &fileLock{f}, nil
}

// waitLock takes the lock of a file that nobody holds for long.
func waitLock(ctx context.Context, path string) (*fileLock, error) {
	for {
		l, err := tryLock(path)
		if !errors.Is(err, errLocked) {
			return l, err
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("wait for lock %s: %w", path, context.Cause(ctx))
		case <-time.After(time.Millisecond):
		}
	}
}

func (l *fileLock) unlock() { _ = l.f.Close() }

// locked reports whether some process holds the lock of a file.
func locked(path string) bool {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return false // made by whoever locks it first
	}
	defer f.Close()
	l := unix.Flock_t{Type: unix.F_WRLCK}
	return ofd(f, unix.F_OFD_GETLK, &l) == nil && l.Type != unix.F_UNLCK
}

func ofd(f *os.File, cmd int, l *unix.Flock_t) error {
	for {
		if err := unix.FcntlFlock(f.Fd(), cmd, l); err != unix.EINTR {
			return err
		}
	}
}

func (c *Container) lockPath() string { return filepath.Join(c.dir, "lock") }

// errLive says that the container has to be ended first.
var errLive = errors.New("the container runs")

// lock takes the right to change the container's state, which its monitor
// has for as long as it lives. Whoever else has it, to start or remove the
// container or just after its end, is waited for; a container that runs is
// not: the verb is then refused, or is errNothingToDo, or errLive.
func (c *Container) lock(ctx context.Context, v Verb) (*fileLock, State, error) {
	for {
		l, err := tryLock(c.lockPath())
		if errors.Is(err, fs.ErrNotExist) {
			return nil, State{}, &NotFoundError{c.Name}
		}
		if err != nil && !errors.Is(err, errLocked) {
			return nil, State{}, err
		}
		// Read after the lock was taken: the folder may have been removed
		// before, and then the lock is of a file without a name.
		st, stErr := c.readState()
		if errors.Is(stErr, fs.ErrNotExist) {
			stErr = &NotFoundError{c.Name}
		}
		if err == nil && stErr == nil {
			if st.Status.Live() {
				// Written down, since from now on it would look as if the
				// lock were that of a monitor.
				st = settled(st)
				stErr = c.setState(st)
			}
			if stErr == nil {
				return l, st, nil
			}
			l.unlock()
			return nil, st, stErr
		}
		if l != nil {
			l.unlock()
		}
		if stErr == nil && st.Status.Live() {
			var do bool
			if do, stErr = c.may(v, st.Status); stErr == nil {
				stErr = errNothingToDo
				if do {
					stErr = errLive
				}
			}
		}
		if stErr != nil {
			return nil, st, stErr
		}
		select {
		case <-ctx.Done():
			return nil, State{}, context.Cause(ctx)
		case <-time.After(2 * time.Millisecond):
		}
	}
}
