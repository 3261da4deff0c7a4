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

// unchangedMin is the size from which archives are remembered: others are
// written as fast.
const unchangedMin = 16 << 20

// clockTick is longer than the steps in which kernels count the time of a
// file's change. Within one step two changes look like one.
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
	now := time.Now()
	if os.Chtimes(path, now, now) != nil {
		return false
	}
	e.wrote(ctx, path, content)
	return true
}

// wrote remembers an archive that was just written. Not to remember it costs
// time later, and nothing now.
func (e *Exporter) wrote(ctx context.Context, path string, content digest.Digest) {
	first, err := stateOf(path)
	if err != nil || first.Size < unchangedMin {
		return
	}
	time.Sleep(clockTick)
	a, err := archiveAction(path)
	if err != nil {
		return
	}
	if again, err := stateOf(path); err != nil || again != first {
		return
	}
	if data, err := json.Marshal(written{content, first}); err == nil {
		_ = e.Store.Save(ctx, a, solver.Result{Digest: content, Data: data})
	}
}
