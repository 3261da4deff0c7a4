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

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// What a power loss may do
//
// The thousands of files of a layer are not fsynced: that would take longer
// than the step that made them. So after a power loss a layer can have its
// name while files in it are empty, for journals keep names, not contents.
// Process crashes do no such harm; nor does it matter to what is checked
// whenever it is read, as actions and encoded trees are.
//
// Therefore each layer (and each blob, of which a look-up asks only whether
// it is there) has a marker unsynced/BOOT/KIND-HEX.N from before it gets its
// name until it is known to be safe, BOOT being the kernel's id of the current
// boot:
//
//   - the content is written, then the marker is made, then the rename gives
//     it its name. Journaling file systems keep names in order: if the name
//     survived, so did the marker, unless that was removed since.
//   - Sync lists the markers, calls syncfs, and removes those that it listed.
//     The content of each was written before its marker was made, so before
//     syncfs began: it is safe. Markers have numbers, so one that is made
//     meanwhile for the same content is another one.
//   - What has a marker of another boot is in doubt: it is read and compared
//     with its listing before it is used for the first time (sound), and then
//     loses the marker or goes. What this finds whole came from the disk, where
//     it was written before this boot: it is safe as well. Blobs are checked
//     by Open.
//
// Images are more than a cache: their blobs and tags are fsynced by package
// layout, before a tag is written. They need no layer: each can be unpacked
// from its blob again. Containers do need theirs, so Sync is called before one
// is made that is to stay. Otherwise nobody waits for a disk, but that what is
// in doubt is bounded in number (see SyncMany).

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

// manyUnsynced is how many layers and blobs may be in doubt after a power
// loss: all others need not even be listed then.
const manyUnsynced = 128

// SyncMany is Sync once there is much that was not synced. It is for what makes
// layers and needs none of them to be safe: builds, and containers that are
// removed when they end.
func (s *Store) SyncMany(ctx context.Context) error {
	markers, err := os.ReadDir(s.path("unsynced", s.boot))
	if errors.Is(err, fs.ErrNotExist) || err == nil && len(markers) < manyUnsynced {
		return nil
	}
	if err != nil {
		return fmt.Errorf("sync store %s: %w", s.root, err)
	}
	return s.Sync(ctx)
}

func syncfs(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	return os.NewSyscallError("syncfs", unix.Syncfs(int(f.Fd())))
}

// recover finds what other boots left unsynced.
func (s *Store) recover() error {
	boots, err := os.ReadDir(s.path("unsynced"))
	if err != nil {
		return err
	}
	for _, b := range boots {
		if b.Name() == s.boot {
			continue
		}
		dir := s.path("unsynced", b.Name())
		markers, err := os.ReadDir(dir)
		if errors.Is(err, fs.ErrNotExist) {
			continue // another process has done it
		}
		if err != nil {
			return err
		}
		for _, m := range markers {
			if err := s.doubt(filepath.Join(dir, m.Name())); err != nil {
				return err
			}
		}
		// This works when none is left.
		if err := os.Remove(dir); err != nil && len(markers) == 0 && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// doubt takes a marker of another boot: it is kept in mind for a layer. The
// marker of a blob, which is small, or of nothing goes.
func (s *Store) doubt(marker string) error {
	name, _, _ := strings.Cut(filepath.Base(marker), ".")
	kind, hex, _ := strings.Cut(name, "-")
	d := digest.NewDigestFromEncoded(digest.SHA256, hex)
	if valid(d) == nil {
		switch kind {
		case "layer":
			if _, err := os.Lstat(s.layerPath(d)); !errors.Is(err, fs.ErrNotExist) {
				if s.doubts == nil {
					s.doubts = map[digest.Digest][]string{}
				}
				s.doubts[d] = append(s.doubts[d], marker)
				return err
			}
		case "blob":
			// A damaged one is removed.
			if _, err := s.Blob(d); err != nil && !errors.Is(err, ErrCorrupt) && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
	}
	return gone(os.Remove(marker))
}

func gone(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// sound returns nil if a layer is there with its tree. One that is in doubt is
// read first; it goes if it was spoiled.
func (s *Store) sound(ctx context.Context, d digest.Digest) error {
	if err := s.hasLayer(d); err != nil {
		return err
	}
	s.mu.Lock()
	markers := s.doubts[d]
	s.mu.Unlock()
	if len(markers) == 0 {
		return nil
	}
	// One at a time, in all processes: nobody may take what another one has
	// made in its place for the spoiled one.
	release, err := s.lockKey(ctx, d)
	if err != nil {
		return err
	}
	defer release()
	for _, m := range markers {
		if _, err := os.Lstat(m); errors.Is(err, fs.ErrNotExist) {
			markers = nil // another process has looked
			break
		}
	}
	if len(markers) > 0 {
		_, what, err := s.verifyLayer(ctx, d, contents)
		if err != nil {
			return fmt.Errorf("layer %s, which was made before the machine was started: %w", d, err)
		}
		if what != "" {
			if err := s.Invalidate(d); err != nil {
				return err
			}
		}
		for _, m := range markers {
			if err := gone(os.Remove(m)); err != nil {
				return err
			}
		}
	}
	s.mu.Lock()
	delete(s.doubts, d)
	s.mu.Unlock()
	return s.hasLayer(d)
}
