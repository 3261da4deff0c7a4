package cache

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// What a power loss may do
//
// The thousands of files of a layer are not fsynced one by one: that would
// take longer than the step that made them. So after a power loss a layer
// can have its name while files in it are empty, for journals keep names,
// not contents. Process crashes do no such harm; nor does it matter to what
// is checked whenever it is read, as actions and encoded trees are.
//
// Therefore each layer (and each blob, of which a look-up asks only whether
// it is there) has a marker unsynced/BOOT/KIND-HEX.N from before it gets its
// name until it is safe, BOOT being the kernel's id of the current boot:
//
//   - the content is written, then the marker is made, then the rename gives
//     it its name. Journaling file systems keep names in order: if the name
//     survived, so did the marker, unless that was removed since.
//   - Sync lists the markers, calls syncfs, and removes those that it listed.
//     The content of each was written before its marker was made, so before
//     syncfs began: it is safe. Markers have numbers, so one that is made
//     meanwhile for the same content is another one.
//   - Open removes everything that has a marker of another boot, before
//     anything in the store is used.
//
// Images are more than a cache: their blobs and tags are fsynced by package
// layout, and Sync is called before a tag is written.

// bootID identifies the time since the machine was started.
func bootID() (string, error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("read the boot id: %w", err)
	}
	return strings.TrimSpace(string(b)), nil
}

// mark makes a marker; unmark is for when its content does not come. Only its
// name counts, so it is a further link to a file that is there: no inode has
// to be found for it.
func (s *Store) mark(name string) (unmark func(), err error) {
	path := s.path("unsynced", s.boot, name+"."+s.proc.id+"-"+strconv.FormatUint(s.seq.Add(1), 10))
	err = os.Link(s.keysPath(), path)
	if errors.Is(err, fs.ErrNotExist) {
		if err := os.Mkdir(s.path("unsynced", s.boot), 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return nil, err
		}
		err = os.Link(s.keysPath(), path)
	}
	if errors.Is(err, unix.EMLINK) || errors.Is(err, unix.EPERM) { // ext4 has 65,000 at most, FAT none
		err = writeFile(path, nil)
	}
	if err != nil {
		return nil, err
	}
	return func() { os.Remove(path) }, nil
}

// Sync makes everything in the store safe from a power loss. It writes back
// the whole file system and takes as long as that does; where nothing was
// made since the last time it takes no time at all.
func (s *Store) Sync(ctx context.Context) error {
	if s.ro {
		return ErrReadOnly
	}
	if err := cause(ctx); err != nil {
		return err
	}
	markers, err := os.ReadDir(s.path("unsynced", s.boot))
	if errors.Is(err, fs.ErrNotExist) || err == nil && len(markers) == 0 {
		return nil
	}
	if err == nil {
		err = syncfs(s.root)
	}
	if err != nil {
		return fmt.Errorf("sync store %s: %w", s.root, err)
	}
	for _, m := range markers {
		err := os.Remove(s.path("unsynced", s.boot, m.Name()))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("sync store %s: %w", s.root, err)
		}
	}
	return nil
}

func syncfs(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	return os.NewSyscallError("syncfs", unix.Syncfs(int(f.Fd())))
}

// recover removes what other boots left unsynced.
func (s *Store) recover() error {
	boots, err := s.otherBoots()
	if err != nil || len(boots) == 0 {
		return err
	}
	// One process does it; others wait, and find nothing left to do.
	lock, err := lockNow(s.path("locks", "recover"))
	if err != nil {
		return err
	}
	defer unlock(lock)
	if boots, err = s.otherBoots(); err != nil {
		return err
	}
	for _, boot := range boots {
		markers, err := os.ReadDir(s.path("unsynced", boot))
		if err != nil {
			return err
		}
		for _, m := range markers {
			if err := s.distrust(m.Name()); err != nil {
				return err
			}
			if err := os.Remove(s.path("unsynced", boot, m.Name())); err != nil {
				return err
			}
		}
		if err := os.Remove(s.path("unsynced", boot)); err != nil {
			return err
		}
	}
	return nil
}

// lockNow waits for a lock for as long as it takes.
func lockNow(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := flock(f, unix.LOCK_EX); err != nil {
		f.Close()
		return nil, &os.PathError{Op: "flock", Path: path, Err: err}
	}
	return f, nil
}

func (s *Store) otherBoots() ([]string, error) {
	entries, err := os.ReadDir(s.path("unsynced"))
	if err != nil {
		return nil, err
	}
	var boots []string
	for _, e := range entries {
		if e.Name() != s.boot {
			boots = append(boots, e.Name())
		}
	}
	return boots, nil
}

// distrust removes what a marker names.
func (s *Store) distrust(marker string) error {
	name, _, _ := strings.Cut(marker, ".")
	kind, hex, _ := strings.Cut(name, "-")
	d := digest.NewDigestFromEncoded(digest.SHA256, hex)
	if valid(d) != nil {
		return nil
	}
	switch kind {
	case "layer":
		return s.Invalidate(d)
	case "blob":
		if err := os.Remove(s.hashed("blobs", d)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}
