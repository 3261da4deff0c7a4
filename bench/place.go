package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// place is where everything is measured.
type place struct {
	dir   string
	what  string
	close func() error
}

// imageSize is of a sparse file.
const imageSize = 40 << 30

// newPlace makes a folder in dir, or a new ext4 file system with a journal
// where dir is empty. One that was used before creates files slower, and one
// without a journal some times slower right after many were deleted.
func newPlace(ctx context.Context, dir, scratch string) (*place, error) {
	if dir == "" && os.Geteuid() == 0 && onPath("mkfs.ext4") {
		return loopPlace(ctx, scratch)
	}
	work, err := os.MkdirTemp(dir, "kiln-bench-")
	if err != nil {
		return nil, err
	}
	return &place{dir: work, what: "a folder", close: func() error { return os.RemoveAll(work) }}, nil
}

func loopPlace(ctx context.Context, scratch string) (*place, error) {
	top, err := os.MkdirTemp(scratch, "kiln-bench-")
	if err != nil {
		return nil, err
	}
	image, dir := filepath.Join(top, "ext4"), filepath.Join(top, "fs")
	do := func(argv ...string) (string, error) {
		out, err := exec.CommandContext(ctx, argv[0], argv[1:]...).CombinedOutput()
		if err != nil {
			return "", fmt.Errorf("%s: %w: %s", argv[0], err, out)
		}
		return strings.TrimSpace(string(out)), nil
	}
	err = func() error {
		f, err := os.Create(image)
		if err != nil {
			return err
		}
		if err := errors.Join(f.Truncate(imageSize), f.Close(), os.Mkdir(dir, 0o700)); err != nil {
			return err
		}
		// Without the lazy options the kernel would go on making the file
		// system while it is measured.
		if _, err := do("mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0", image); err != nil {
			return err
		}
		// A disk has no page cache of its own below that of its file system.
		loop, err := do("losetup", "--find", "--show", "--direct-io=on", image)
		if err != nil {
			return err
		}
		_, err = do("mount", loop, dir)
		// The device goes when nothing is mounted from it any more.
		_, detachErr := do("losetup", "--detach", loop)
		if err = errors.Join(err, detachErr); err != nil {
			return err
		}
		return os.Chmod(dir, 0o755)
	}()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("make a file system: %w", err), os.RemoveAll(top))
	}
	return &place{dir: dir, what: "new ext4 with a journal, loop-mounted with direct I/O", close: func() error {
		// What a killed command left mounted goes with the file system.
		err := unix.Unmount(dir, unix.MNT_DETACH)
		return errors.Join(err, os.RemoveAll(top))
	}}, nil
}
