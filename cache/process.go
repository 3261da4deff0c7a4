package cache

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// process is this process's part of tmp/: a directory NAME/ for all that it
// has not finished, and a file NAME.lock that it holds a flock on for as long
// as it lives. Close leaves both behind, the directory empty but for an empty
// file of pins, and the next process takes them over: that costs less than
// making and removing them (see lock.go).
//
// The lock is taken before the directory is made, and is there for as long
// as the directory is. So a directory whose lock is free, or has no file, is
// nobody's. If it is not clean its process died in it, and anyone may clear
// it away:
//
//   - it is first renamed to trash-X, of which everyone knows that it may be
//     deleted, then its lock file is removed, then it is deleted;
//   - a process whose new lock file was removed before it had the lock finds
//     that the file has lost its name and makes another one.
type process struct {
	tmp  string // the store's tmp/
	id   string // that no other process ever has
	dir  string
	lock *os.File

	stop  chan struct{} // ends the deletion of trash
	trash sync.WaitGroup
}

const (
	lockSuffix  = ".lock"
	trashPrefix = "trash-"
)

// newProcess takes a free directory or makes one, and clears away in the
// background what the dead have left.
func newProcess(tmp string) (*process, error) {
	p := &process{tmp: tmp, id: strconv.Itoa(os.Getpid()) + "-" + random(), stop: make(chan struct{})}
	p.sweep()
	if p.lock != nil {
		return p, nil
	}
	for p.lock == nil {
		p.dir = filepath.Join(tmp, p.id)
		var err error
		p.lock, err = tryLock(p.dir+lockSuffix, unix.LOCK_EX)
		if err != nil && err != errBusy { // busy: another one's sweep was faster
			return nil, fmt.Errorf("make scratch directory: %w", err)
		}
	}
	if err := os.Mkdir(p.dir, 0o700); err != nil {
		os.Remove(p.dir + lockSuffix)
		return nil, errors.Join(fmt.Errorf("make scratch directory: %w", err), unlock(p.lock))
	}
	return p, nil
}

// close leaves the directory clean. What cannot be removed now is cleared
// away by a later process.
func (p *process) close() error {
	close(p.stop)
	p.trash.Wait()
	entries, err := os.ReadDir(p.dir)
	for _, e := range entries {
		if e.Name() != pinsFile {
			err = errors.Join(err, removeAll(filepath.Join(p.dir, e.Name()), nil))
		}
	}
	return errors.Join(err, unlock(p.lock))
}

// clean reports whether a directory is as close leaves it.
func clean(dir string) bool {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return false
	}
	for _, e := range entries {
		if fi, err := e.Info(); err != nil || e.Name() != pinsFile || fi.Size() > 0 {
			return false
		}
	}
	return true
}

func random() string {
	var b [6]byte
	_, _ = rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}

// sweep finds what dead processes left and deletes it in the background. It
// is best effort: what cannot be removed now stays for the next one. Unless
// this process has one, it takes the first free directory that is clean.
func (p *process) sweep() {
	entries, err := os.ReadDir(p.tmp)
	if err != nil {
		return
	}
	var trash []string
	for _, e := range entries {
		name, isLock := strings.CutSuffix(e.Name(), lockSuffix)
		switch {
		case filepath.Join(p.tmp, name) == p.dir:
		case strings.HasPrefix(name, trashPrefix):
			trash = append(trash, e.Name())
		case isLock:
			trash = append(trash, p.inherit(name)...)
		default:
			// The lock file precedes the directory and outlives it, so
			// asking for it now is right whatever the listing missed.
			if _, err := os.Lstat(filepath.Join(p.tmp, name+lockSuffix)); errors.Is(err, fs.ErrNotExist) {
				trash = append(trash, p.discard(name)...)
			}
		}
	}
	if len(trash) == 0 {
		return
	}
	p.trash.Add(1)
	go func() {
		defer p.trash.Done()
		for _, name := range trash {
			_ = removeAll(filepath.Join(p.tmp, name), p.stop) // again next time
		}
	}()
}

// inherit sees to a directory and lock file that may be a dead process's: it
// takes them over, leaves them to the next one, or takes them out of the way
// and returns the trash's name.
func (p *process) inherit(name string) (trash []string) {
	dir := filepath.Join(p.tmp, name)
	f, err := tryOpenLock(dir+lockSuffix, unix.LOCK_EX)
	if err != nil {
		return nil
	}
	if clean(dir) {
		if p.lock == nil {
			p.dir, p.lock = dir, f
			return nil
		}
		_ = unlock(f)
		return nil
	}
	defer unlock(f)
	trash = p.discard(name)
	if _, err := os.Lstat(dir); errors.Is(err, fs.ErrNotExist) {
		os.Remove(dir + lockSuffix)
	}
	return trash
}

func (p *process) discard(name string) (trash []string) {
	to := trashPrefix + random()
	if err := os.Rename(filepath.Join(p.tmp, name), filepath.Join(p.tmp, to)); err != nil {
		return nil
	}
	return []string{to}
}
