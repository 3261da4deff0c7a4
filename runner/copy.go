package runner

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
	"kiln.build/cache/archive"
	"kiln.build/cache/tree"
	"kiln.build/solver"
	"kiln.build/solver/op"
)

// copy makes a layer of selected files.
func (r *Runner) copy(ctx context.Context, a *solver.Action, o op.Copy) (solver.Result, error) {
	var facts op.Facts
	if err := json.Unmarshal(a.Inputs[0].Result.Data, &facts); err != nil {
		return solver.Result{}, fmt.Errorf("facts about the destination: %w", err)
	}
	chmod, err := parseChmod(o.Chmod)
	if err != nil {
		return solver.Result{}, err
	}
	p := newPlan(&facts, chmod)
	for i, in := range a.Inputs[1:] {
		s, err := r.selected(in, &a.Using[i])
		if err != nil {
			return solver.Result{}, err
		}
		p.local = p.local || in.Result.Blob == ""
		if err := p.add(ctx, s, o.Unpack && !slices.Contains(o.Packed, i)); err != nil {
			return solver.Result{}, err
		}
	}
	draft, err := r.Store.NewLayer()
	if err != nil {
		return solver.Result{}, err
	}
	defer draft.Discard()
	var last *lastLayer
	if len(p.archives) == 0 { // which could change files in place
		last = r.lastLayer(ctx, a, len(p.entries))
	}
	t, err := p.write(ctx, draft.FS, last)
	if err == nil {
		t, err = r.unpackInto(ctx, p, draft.FS, t, a.Below)
	}
	if err != nil {
		return solver.Result{}, err
	}
	l, err := draft.Commit(ctx, t)
	if err != nil {
		return solver.Result{}, err
	}
	last.replace(l.Digest)
	l.Traceable = p.traceable(t)
	return stack([]solver.Layer{l}), nil
}

// plan is a layer to be written: a consistent tree, and where the bytes of
// its files are. Nothing is written before it is complete, so no selected
// link is ever written through.
type plan struct {
	facts    *op.Facts
	chmod    chmod
	now      int64
	made     int64 // time of new directories
	entries  map[string]*planned
	archives []*planned // to be unpacked at facts.Path
	local    bool       // a source is a local context
}

// traceable reports whether the layer t is of files of a local context, more
// than one of them.
func (p *plan) traceable(t *tree.Tree) bool {
	files := 0
	for i := range t.Entries {
		if t.Entries[i].Type == tree.File {
			files++
		}
	}
	return p.local && len(p.archives) == 0 && files > 1
}

type planned struct {
	tree.Entry
	from *tree.Entry // as selected; nil for directories of the way
	sel  *selection
}

func newPlan(f *op.Facts, c chmod) *plan {
	now := time.Now().UnixNano()
	return &plan{facts: f, chmod: c, now: now, made: now, entries: map[string]*planned{}}
}

// add plans a selection.
func (p *plan) add(ctx context.Context, s *selection, unpack bool) error {
	for i := range s.tree.Entries {
		from := &s.tree.Entries[i]
		if unpack && mayBeArchive(s, from) {
			is, err := isArchive(ctx, s, from)
			if err != nil {
				return err
			}
			if is {
				p.archives = append(p.archives, &planned{Entry: *from, from: from, sel: s})
				p.way(chmod{}) // --chmod is not for what archives bring about
				continue
			}
		}
		e := *from
		e.Source = ""
		switch {
		case e.Path == "":
			p.top(from)
			continue
		case p.facts.Dir:
			e.Path = strings.TrimPrefix(path.Join(p.facts.Path, e.Path), "/")
		default:
			e.Path = strings.TrimPrefix(p.facts.Path, "/")
		}
		if e.Hardlink != "" {
			e.Hardlink = strings.TrimPrefix(path.Join(p.facts.Path, e.Hardlink), "/")
		}
		if p.facts.UID != nil {
			e.UID, e.GID = *p.facts.UID, *p.facts.GID
		}
		if e.Type != tree.Symlink {
			e.Mode = p.chmod.apply(e.Mode, e.Type == tree.Dir)
		}
		if before, ok := p.entries[e.Path]; ok && (before.Type == tree.Dir) != (e.Type == tree.Dir) {
			return fmt.Errorf("/%s is a %s in one source and a %s in another", e.Path, before.Type, e.Type)
		}
		p.entries[e.Path] = &planned{Entry: e, from: from, sel: s}
	}
	if len(s.tree.Entries) > 0 {
		p.way(p.chmod)
	}
	return nil
}

// mayBeArchive reports whether an entry is a file that a source names itself.
func mayBeArchive(s *selection, e *tree.Entry) bool {
	return e.Type == tree.File && !strings.Contains(e.Path, "/") && !rooted(s.tree)
}

// hasArchive reports whether any file that a source names is an archive.
func hasArchive(ctx context.Context, s *selection) (bool, error) {
	for i := range s.tree.Entries {
		if e := &s.tree.Entries[i]; mayBeArchive(s, e) {
			if is, err := isArchive(ctx, s, e); is || err != nil {
				return is, err
			}
		}
	}
	return false, nil
}

// rooted reports whether a selection has a directory as a source.
func rooted(t *tree.Tree) bool { return len(t.Entries) > 0 && t.Entries[0].Path == "" }

func isArchive(ctx context.Context, s *selection, e *tree.Entry) (bool, error) {
	f, err := s.from.open(e)
	if err != nil {
		return false, err
	}
	defer f.Close()
	return archive.IsArchive(ctx, f)
}

// top plans the destination directory for a directory source, whose time it
// gets. One that exists keeps the rest of its attributes.
func (p *plan) top(from *tree.Entry) {
	p.way(p.chmod)
	e := p.entries[strings.TrimPrefix(p.facts.Path, "/")]
	e.Mtime = from.Mtime
}

// way plans the directories down to the destination: those that exist keep
// their attributes, the others are made. The last one that exists gets a new
// entry, and with it a new time.
func (p *plan) way(chmod chmod) {
	for i, d := range p.facts.Existing {
		at := strings.TrimPrefix(d.Path, "/")
		if _, ok := p.entries[at]; !ok {
			e := tree.Entry{Path: at, Type: tree.Dir, Mode: d.Mode, UID: d.UID, GID: d.GID, Xattrs: d.Xattrs, Mtime: d.Mtime}
			if i == len(p.facts.Existing)-1 {
				e.Mtime = p.now
			}
			p.entries[at] = &planned{Entry: e}
		}
	}
	dir := strings.TrimPrefix(p.facts.Path, "/")
	if !p.facts.Dir {
		dir = parent(dir)
	}
	for dir != "" {
		if _, ok := p.entries[dir]; ok {
			break
		}
		e := tree.Entry{Path: dir, Type: tree.Dir, Mode: 0o755, Mtime: p.made}
		if p.facts.UID != nil {
			e.UID, e.GID = *p.facts.UID, *p.facts.GID
		}
		if chmod.octal {
			e.Mode = chmod.apply(0, true) & 0o777 // as mkdir(2) does
		}
		p.entries[dir] = &planned{Entry: e}
		dir = parent(dir)
	}
}

func parent(p string) string {
	if i := strings.LastIndexByte(p, '/'); i >= 0 {
		return p[:i]
	}
	return ""
}

// write makes the planned tree below dir, which is empty, and returns it.
// Files that the last layer of its kind has are linked from there.
func (p *plan) write(ctx context.Context, dir string, last *lastLayer) (*tree.Tree, error) {
	t := &tree.Tree{Entries: make([]tree.Entry, 0, len(p.entries))}
	for _, e := range p.entries {
		t.Entries = append(t.Entries, e.Entry)
	}
	t.Sort()
	dropDanglingLinks(t)
	if err := t.Check(); err != nil {
		return nil, err
	}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(2 * runtime.NumCPU())
	var err error
	for i := 0; i < len(t.Entries) && err == nil; {
		if n := filesOf(t.Entries[i:]); n > 0 {
			files := t.Entries[i : i+n]
			g.Go(func() error { return p.files(gctx, dir, files, last) })
			i += n
			continue
		}
		err = makeNode(filepath.Join(dir, t.Entries[i].Path), &t.Entries[i])
		i++
	}
	if err = errors.Join(err, g.Wait()); err != nil {
		return nil, err
	}
	for i := range t.Entries {
		if e := &t.Entries[i]; e.Type == tree.File && e.Hardlink != "" {
			if err := os.Link(filepath.Join(dir, e.Hardlink), filepath.Join(dir, e.Path)); err != nil {
				return nil, err
			}
		}
	}
	// Last, since what is made in a directory changes its time.
	for i := len(t.Entries) - 1; i >= 0; i-- {
		if e := &t.Entries[i]; e.Type == tree.Dir {
			if err := setTime(filepath.Join(dir, e.Path), e.Mtime); err != nil {
				return nil, err
			}
		}
	}
	return t, nil
}

// filesOf is how many files a list begins with that one goroutine is to make:
// some of one directory, in which the kernel lets only one at a time make
// anything.
func filesOf(entries []tree.Entry) int {
	const most = 64
	isFile := func(e *tree.Entry) bool { return e.Type == tree.File && e.Hardlink == "" }
	n := 0
	for n < min(len(entries), most) && isFile(&entries[n]) && parent(entries[n].Path) == parent(entries[0].Path) {
		n++
	}
	return n
}

// files makes files of one directory.
func (p *plan) files(ctx context.Context, dir string, files []tree.Entry, last *lastLayer) error {
	in := parent(files[0].Path)
	links := last.in(in, filepath.Join(dir, in))
	defer links.close()
	for i := range files {
		e := &files[i]
		if links.link(e) {
			continue
		}
		if err := copyFile(ctx, filepath.Join(dir, e.Path), e, p.entries[e.Path]); err != nil {
			return err
		}
	}
	return nil
}

// unpackInto extracts the archives of an ADD into the destination, over what the
// plan has written. Links are followed through the root below, if it counts.
func (r *Runner) unpackInto(ctx context.Context, p *plan, dir string, t *tree.Tree, below *solver.Output) (*tree.Tree, error) {
	o := archive.UnpackOptions{Under: strings.TrimPrefix(p.facts.Path, "/"), Implied: p.now}
	if below != nil && below.Digest == p.facts.Root { // not with --link
		var err error
		if o.Lower, err = r.Store.Index(below.Layers); err != nil {
			return nil, err
		}
		o.LowerDirs = r.lower(below.Layers)
	}
	if p.facts.UID != nil {
		o.Owner = &archive.Owner{UID: *p.facts.UID, GID: *p.facts.GID}
	}
	for _, e := range p.archives {
		f, err := e.sel.from.open(e.from)
		if err != nil {
			return nil, err
		}
		o.Onto = t
		t, err = archive.Unpack(ctx, f, dir, o)
		if err := errors.Join(err, f.Close()); err != nil {
			return nil, fmt.Errorf("unpack %q: %w", "/"+sourceOf(e.from), err)
		}
	}
	return t, nil
}

// dropDanglingLinks makes hard links whose first file is not in the tree
// files of their own, the next one taking the first one's place.
func dropDanglingLinks(t *tree.Tree) {
	first := map[string]string{}
	for i := range t.Entries {
		e := &t.Entries[i]
		if e.Hardlink == "" {
			continue
		}
		if to, ok := t.Lookup(e.Hardlink); ok && to.Type == tree.File && to.Hardlink == "" && tree.Compare(e.Hardlink, e.Path) < 0 && to.Digest == e.Digest && to.Mode == e.Mode {
			continue
		}
		if head, ok := first[e.Hardlink]; ok {
			e.Hardlink = head
			continue
		}
		first[e.Hardlink] = e.Path
		e.Hardlink = ""
	}
}

// makeNode makes anything but the content of a file.
func makeNode(at string, e *tree.Entry) error {
	var err error
	switch e.Type {
	case tree.Dir:
		if e.Path != "" {
			err = os.Mkdir(at, 0o700)
		}
	case tree.Symlink:
		err = os.Symlink(e.Link, at)
	case tree.Fifo:
		err = unix.Mkfifo(at, 0o600)
	case tree.Char:
		err = unix.Mknod(at, unix.S_IFCHR|0o600, int(unix.Mkdev(e.Major, e.Minor)))
	case tree.Block:
		err = unix.Mknod(at, unix.S_IFBLK|0o600, int(unix.Mkdev(e.Major, e.Minor)))
	case tree.File: // a hard link: made once the files are there
		return nil
	}
	if err != nil {
		return fmt.Errorf("make /%s: %w", e.Path, err)
	}
	return setAttributes(at, e)
}

// setAttributes sets owner, mode, extended attributes and time, in the order
// in which the kernel does not undo them.
func setAttributes(at string, e *tree.Entry) error {
	if err := os.Lchown(at, e.UID, e.GID); err != nil {
		return err
	}
	if e.Type != tree.Symlink {
		if err := unix.Chmod(at, e.Mode); err != nil {
			return &os.PathError{Op: "chmod", Path: at, Err: err}
		}
	}
	for name, value := range e.Xattrs {
		if err := unix.Lsetxattr(at, name, []byte(value), 0); err != nil && !errors.Is(err, unix.ENOTSUP) {
			return &os.PathError{Op: "set " + name + " of", Path: at, Err: err}
		}
	}
	return setTime(at, e.Mtime)
}

func setTime(at string, ns int64) error {
	ts := unix.NsecToTimespec(ns)
	if err := unix.UtimesNanoAt(unix.AT_FDCWD, at, []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return &os.PathError{Op: "set time of", Path: at, Err: err}
	}
	return nil
}

// buffers and hashers are reused: a copy is mostly of small files.
var (
	buffers = sync.Pool{New: func() any { b := make([]byte, 128<<10); return &b }}
	hashers = sync.Pool{New: func() any { return sha256.New() }}
)

// noContent is the digest of empty files, which are not opened: they may be
// sockets.
var noContent = digest.FromBytes(nil)

// copyFile copies a regular file and checks on the way that its content is
// what was selected.
func copyFile(ctx context.Context, at string, e *tree.Entry, from *planned) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	var src io.ReadCloser = io.NopCloser(strings.NewReader(""))
	if e.Digest != noContent {
		var err error
		if src, err = from.sel.from.open(from.from); err != nil {
			return err
		}
	}
	defer src.Close()
	dst, err := openRaw(at, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW, e.Mode&0o777)
	if err != nil {
		return err
	}
	h := hashers.Get().(hash.Hash)
	defer hashers.Put(h)
	h.Reset()
	buf := buffers.Get().(*[]byte)
	defer buffers.Put(buf)
	_, err = io.CopyBuffer(onlyWriter{io.MultiWriter(dst, h)}, onlyReader{src}, *buf)
	if err == nil {
		err = dst.setAttributes(e.UID, e.GID, e.Mode, e.Xattrs, e.Mtime)
	}
	if err := errors.Join(err, dst.Close()); err != nil {
		return fmt.Errorf("copy %q: %w", "/"+sourceOf(from.from), err)
	}
	var sum [sha256.Size]byte
	if got := digest.NewDigestFromBytes(digest.SHA256, h.Sum(sum[:0])); got != e.Digest {
		return fmt.Errorf("%q changed while the build was running: run it again", "/"+sourceOf(from.from))
	}
	return nil
}

// onlyReader and onlyWriter hide the short cuts that io.Copy would take
// around the buffer.
type onlyReader struct{ io.Reader }
type onlyWriter struct{ io.Writer }

// mkdir makes the missing directories of a WORKDIR.
func (r *Runner) mkdir(ctx context.Context, a *solver.Action, o op.Mkdir) (solver.Result, error) {
	var facts op.Facts
	if err := json.Unmarshal(a.Inputs[0].Result.Data, &facts); err != nil {
		return solver.Result{}, fmt.Errorf("facts about the folder: %w", err)
	}
	p := newPlan(&facts, chmod{})
	if o.Time != nil {
		p.made = o.Time.UnixNano()
	}
	if n := len(facts.Existing); n == 0 || facts.Existing[n-1].Path != facts.Path {
		p.way(p.chmod)
	}
	draft, err := r.Store.NewLayer()
	if err != nil {
		return solver.Result{}, err
	}
	defer draft.Discard()
	t, err := p.write(ctx, draft.FS, nil)
	if err != nil {
		return solver.Result{}, err
	}
	l, err := draft.Commit(ctx, t)
	if err != nil {
		return solver.Result{}, err
	}
	return stack([]solver.Layer{l}), nil
}
