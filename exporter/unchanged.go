package exporter

import (
	"context"
	"encoding/json"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"kiln.build/solver"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// An archive that is where it was written, and whose file nobody has touched
// since, is not written again: its time alone is made new. That nobody has is
// taken from what the kernel keeps of the file, the time of its last change
// above all, which no program can set.

const (
	// unchangedMin is the size from which archives are remembered: others are
	// written as fast.
	unchangedMin = 256 << 10

	// worthTick is that size where it takes a clock's tick.
	worthTick = 16 << 20
)

// clockTick is longer than the steps in which kernels count the time of a
// file's change. Within one step two changes look like one. Linux 6.13 has
// times of their own for changes of a file whose times were looked at.
const clockTick = 12 * time.Millisecond

// written is what is remembered of an archive.
type written struct {
	Content digest.Digest `json:"content"` // of what it holds
	File    fileState     `json:"file"`
}

// fileState tells a file from any other, and from itself after a change.
type fileState struct {
	Dev, Ino     uint64
	Size         int64
	Mtime, Ctime int64
}

func stateOf(path string) (fileState, error) {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return fileState{}, &fs.PathError{Op: "stat", Path: path, Err: err}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return fileState{}, &fs.PathError{Op: "stat", Path: path, Err: unix.EINVAL}
	}
	return fileState{uint64(st.Dev), st.Ino, st.Size, st.Mtim.Nano(), st.Ctim.Nano()}, nil
}

// archiveFile is an archive's path, as an action.
type archiveFile struct{ path string }

func (a archiveFile) Describe(d *solver.Description) {
	d.Line("op", "archive file")
	d.Line("path", a.path)
}

func archiveAction(path string) (*solver.Action, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	text := "kiln archive 1\n" + solver.Describe(archiveFile{abs})
	return &solver.Action{Key: digest.FromString(text), Description: text}, nil
}

// unchanged reports whether path is the archive of this content that was
// written there, and gives it a new time if so.
func (e *Exporter) unchanged(ctx context.Context, path string, content digest.Digest) bool {
	a, err := archiveAction(path)
	if err != nil {
		return false
	}
	r, err := e.Store.Lookup(ctx, a.Key)
	if err != nil {
		return false
	}
	var w written
	if json.Unmarshal(r.Data, &w) != nil || w.Content != content {
		return false
	}
	if now, err := stateOf(path); err != nil || now != w.File {
		return false
	}
	return e.wrote(ctx, path, content)
}

// wrote gives an archive that was just written, or that is as it was written,
// the time of now and remembers it. Not to remember it costs time later, and
// nothing now: the error is that of giving it the time.
func (e *Exporter) wrote(ctx context.Context, path string, content digest.Digest) bool {
	state, exact, err := renew(path)
	if err != nil {
		return false
	}
	a, err := archiveAction(path)
	if err != nil || state.Size < unchangedMin || !exact && state.Size < worthTick {
		return true
	}
	if !exact {
		time.Sleep(clockTick)
		if again, err := stateOf(path); err != nil || again != state {
			return true
		}
	}
	if data, err := json.Marshal(written{content, state}); err == nil {
		_ = e.Store.Save(ctx, a, solver.Result{Digest: content, Data: data})
	}
	return true
}

// renew gives a file a new time, and reports whether any later change of it
// will show in its state. It does where a change within the tick of the one
// before has a time that is more exact than the clock that counts in ticks,
// from which older kernels take all.
func renew(path string) (s fileState, exact bool, err error) {
	for range 5 { // the first may be the first of its tick, and a tick may end between
		before, now := coarse(), time.Now()
		if err := os.Chtimes(path, now, now); err != nil {
			return s, false, err
		}
		// The kernel notes that the time was looked at.
		if s, err = stateOf(path); err != nil {
			return s, false, err
		}
		if before == coarse() && s.Ctime != before && s.Ctime%1000 != 0 && onDisk(path) {
			return s, true, nil
		}
	}
	return s, false, nil
}

// coarse is the clock that counts in ticks.
func coarse() int64 {
	var ts unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_REALTIME_COARSE, &ts) // cannot fail
	return ts.Nano()
}

// onDisk reports whether a file is on one of the file systems that have exact
// times. Others, such as NFS, have those of another machine's clock.
func onDisk(path string) bool {
	var st unix.Statfs_t
	if unix.Statfs(path, &st) != nil {
		return false
	}
	switch int64(st.Type) {
	case unix.EXT4_SUPER_MAGIC, unix.XFS_SUPER_MAGIC, unix.BTRFS_SUPER_MAGIC, unix.TMPFS_MAGIC:
		return true
	}
	return false
}
