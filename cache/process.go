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
// has not finished, and a file NAME.lock that it holds a flock on for as
// long as it lives. The lock is taken before the directory is made and given
// up after it is removed. So a directory whose lock is free, or has no file,
// is that of a dead process and may be removed by anyone:
//
//   - it is first renamed to trash-X, of which everyone knows that it may be
//     deleted, then its lock file is removed, then it is deleted;
//   - a process whose new lock file was removed before it had the lock finds
//     that the file has lost its name and makes another one.
type process struct {
	tmp  string // the store's tmp/
	name string
	dir  string
	lock *os.File

	stop  chan struct{} // ends the deletion of trash
	trash sync.WaitGroup
}

const (
	lockSuffix  = ".lock"
	trashPrefix = "trash-"
)

func newProcess(tmp string) (*process, error) {
	p := &process{tmp: tmp, name: strconv.Itoa(os.Getpid()) + "-" + random(), stop: make(chan struct{})}
	p.dir = filepath.Join(tmp, p.name)
	var err error
	if p.lock, err = tryLock(p.dir+lockSuffix, unix.LOCK_EX); err != nil {
		return nil, fmt.Errorf("make scratch directory: %w", err)
	}
	if err := os.Mkdir(p.dir, 0o700); err != nil {
		os.Remove(p.dir + lockSuffix)
		return nil, errors.Join(fmt.Errorf("make scratch directory: %w", err), unlock(p.lock))
	}
	return p, nil
}

func random() string {
	var b [6]byte
	_, _ = rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}

func (p *process) close() error {
	close(p.stop)
	p.trash.Wait()
	err := removeAll(p.dir, nil)
	if err == nil {
		err = os.Remove(p.dir + lockSuffix)
	} // else a later process tries again
	return errors.Join(err, unlock(p.lock))
}

// sweep finds what dead processes left and deletes it in the background. It
// is best effort: what cannot be removed now stays for the next one.
func (p *process) sweep() {
	entries, err := os.ReadDir(p.tmp)
	if err != nil {
		return
	}
	var trash []string
	for _, e := range entries {
		name, isLock := strings.CutSuffix(e.Name(), lockSuffix)
		switch {
		case name == p.name:
		case strings.HasPrefix(name, trashPrefix):
			trash = append(trash, e.Name())
		case isLock:
			trash = append(trash, p.bury(name)...)
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

// bury takes a dead process's directory and lock file out of the way and
// returns the trash's name.
func (p *process) bury(name string) (trash []string) {
	path := filepath.Join(p.tmp, name+lockSuffix)
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil
	}
	defer f.Close()
	if flock(f, unix.LOCK_EX|unix.LOCK_NB) != nil || !same(f, path) {
		return nil
	}
	trash = p.discard(name)
	if _, err := os.Lstat(filepath.Join(p.tmp, name)); errors.Is(err, fs.ErrNotExist) {
		os.Remove(path)
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
