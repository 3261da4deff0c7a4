package runner

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
	"time"

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
		s, err := r.selected(ctx, in, &a.Using[i])
		if err != nil {
			return solver.Result{}, err
		}
		p.local = p.local || in.Result.Blob == ""
		if err := p.add(ctx, s, o.Unpack && !slices.Contains(o.Packed, i)); err != nil {
			return solver.Result{}, err
		}
	}
	t, err := p.tree()
	if err != nil {
		return solver.Result{}, err
	}
	var last *lastLayer
	var fed *Packing
	if len(p.archives) == 0 { // which could change files in place
		fed = r.feed(a, p, t)
		last = r.lastLayer(ctx, a, len(t.Entries), fed.alone())
	}
	var l solver.Layer
	packed := false
	// Where somebody wanted the files of the last one, as who runs what he
	// builds, these are made at once, most of them links.
	if fed.alone() && !last.hasFiles() {
		l, packed, err = r.pack(ctx, p, t, fed)
		fed = nil
	}
	if !packed && err == nil {
		l, t, err = r.write(ctx, p, t, last, fed, a.Below)
	}
	if err != nil {
		return solver.Result{}, err
	}
	last.replace(l.Digest)
	l.Traceable = p.traceable(t)
	return stack([]solver.Layer{l}), nil
}

// write makes the planned layer t of files, and returns its listing with what
// archives brought.
func (r *Runner) write(ctx context.Context, p *plan, t *tree.Tree, last *lastLayer, fed *Packing, below *solver.Output) (solver.Layer, *tree.Tree, error) {
	var l solver.Layer
	draft, err := r.Store.NewLayer()
	if err != nil {
		fed.end(err)
		fed.settle(false)
		return l, t, err
	}
	defer draft.Discard()
	err = p.write(ctx, draft.FS, t, last, fed)
	fed.end(err)
	if err == nil {
		t, err = r.unpackInto(ctx, p, draft.FS, t, below)
	}
	if err == nil {
		last.tell(draft)
		l, err = draft.Commit(ctx, t)
	}
	fed.settle(err == nil && !draft.Found)
	return l, t, err
}

// plan is a layer to be written: a consistent tree, and where the bytes of
// its files are. Nothing is written before it is complete, so no selected
// link is ever written through.
type plan struct {
	facts    *op.Facts
	chmod    chmod
	now      int64
	made     int64          // time of new directories
	entries  []tree.Entry   // as they came, which is sorted but for directories of the way
	picked   []picked       // of each
	at       map[string]int // where in both a path is
	archives []picked       // to be unpacked at facts.Path
	local    bool           // a source is a local context
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

// picked is a file that a selection has, where its bytes are.
type picked struct {
	from *tree.Entry // as selected; nil for directories of the way
	sel  *selection
}

func newPlan(f *op.Facts, c chmod) *plan {
	now := time.Now().UnixNano()
	return &plan{facts: f, chmod: c, now: now, made: now, at: map[string]int{}}
}

// put plans an entry, in place of what was planned for its path.
func (p *plan) put(e tree.Entry, from picked) {
	if i, ok := p.at[e.Path]; ok {
		p.entries[i], p.picked[i] = e, from
		return
	}
	p.at[e.Path] = len(p.entries)
	p.entries = append(p.entries, e)
	p.picked = append(p.picked, from)
}

// putAll plans a selection as it is.
func (p *plan) putAll(s *selection) {
	p.room(len(s.tree.Entries))
	for i := range s.tree.Entries {
		e := s.tree.Entries[i]
		e.Source = ""
		p.put(e, picked{&s.tree.Entries[i], s})
	}
}

// room makes room for so many entries.
func (p *plan) room(n int) {
	if len(p.at) == 0 {
		p.at = make(map[string]int, n)
	}
	p.entries, p.picked = slices.Grow(p.entries, n), slices.Grow(p.picked, n)
}

// add plans a selection.
func (p *plan) add(ctx context.Context, s *selection, unpack bool) error {
	p.room(len(s.tree.Entries) + 8)
	for i := range s.tree.Entries {
		from := &s.tree.Entries[i]
		if unpack && mayBeArchive(s, from) {
			is, err := isArchive(ctx, s, from)
			if err != nil {
				return err
			}
			if is {
				p.archives = append(p.archives, picked{from, s})
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
		if i, ok := p.at[e.Path]; ok && (p.entries[i].Type == tree.Dir) != (e.Type == tree.Dir) {
			return fmt.Errorf("/%s is a %s in one source and a %s in another", e.Path, p.entries[i].Type, e.Type)
		}
		p.put(e, picked{from, s})
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
	if i, ok := p.at[strings.TrimPrefix(p.facts.Path, "/")]; ok {
		p.entries[i].Mtime = from.Mtime
	}
}

// way plans the directories down to the destination: those that exist keep
// their attributes, the others are made. The last one that exists gets a new
// entry, and with it a new time.
func (p *plan) way(chmod chmod) {
	for i, d := range p.facts.Existing {
		at := strings.TrimPrefix(d.Path, "/")
		if _, ok := p.at[at]; !ok {
			e := tree.Entry{Path: at, Type: tree.Dir, Mode: d.Mode, UID: d.UID, GID: d.GID, Xattrs: d.Xattrs, Mtime: d.Mtime}
			if i == len(p.facts.Existing)-1 {
				e.Mtime = p.now
			}
			p.put(e, picked{})
		}
	}
	dir := strings.TrimPrefix(p.facts.Path, "/")
	if !p.facts.Dir {
		dir = parent(dir)
	}
	for dir != "" {
		if _, ok := p.at[dir]; ok {
			break
		}
		e := tree.Entry{Path: dir, Type: tree.Dir, Mode: 0o755, Mtime: p.made}
		if p.facts.UID != nil {
			e.UID, e.GID = *p.facts.UID, *p.facts.GID
		}
		if chmod.octal {
			e.Mode = chmod.apply(0, true) & 0o777 // as mkdir(2) does
		}
		p.put(e, picked{})
		dir = parent(dir)
	}
}

func parent(p string) string {
	if i := strings.LastIndexByte(p, '/'); i >= 0 {
		return p[:i]
	}
	return ""
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
		if o.LowerDirs, err = r.Store.LayerDirs(ctx, below.Layers); err != nil {
			return nil, err
		}
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
	t, err := p.all(ctx, draft.FS)
	if err != nil {
		return solver.Result{}, err
	}
	l, err := draft.Commit(ctx, t)
	if err != nil {
		return solver.Result{}, err
	}
	return stack([]solver.Layer{l}), nil
}
