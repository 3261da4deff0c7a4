package runner

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
	"kiln.build/cache/tree"
	"kiln.build/solver"
	"kiln.build/solver/op"
)

// selection is a set of chosen files: their listing, with paths relative to
// the destination, and the place to read them from.
type selection struct {
	tree *tree.Tree
	from opener
}

// opener opens the bytes of a selected regular file.
type opener interface {
	open(e *tree.Entry) (io.ReadCloser, error)
}

// source is the path of an entry's bytes.
func sourceOf(e *tree.Entry) string {
	if e.Source != "" {
		return e.Source
	}
	return e.Path
}

// below is path.Join for paths that are clean and relative, or empty.
func below(dir, name string) string {
	switch {
	case dir == "":
		return name
	case name == "":
		return dir
	}
	return dir + "/" + name
}

// memory holds the contents of inline files by path.
type memory map[string][]byte

func (m memory) open(e *tree.Entry) (io.ReadCloser, error) {
	return io.NopCloser(bytes.NewReader(m[e.Path])), nil
}

// layerFiles reads from the layers of a stack.
type layerFiles struct {
	index *tree.Index
	dirs  []string
}

func (l *layerFiles) open(e *tree.Entry) (io.ReadCloser, error) {
	p := sourceOf(e)
	_, at, ok := l.index.Lookup(p)
	if !ok {
		return nil, fmt.Errorf("/%s is no longer in the stage", p)
	}
	// In its own layer the path has no links: the layer's listing says so.
	return openRaw(filepath.Join(l.dirs[at], p), unix.O_RDONLY|unix.O_NOFOLLOW, 0)
}

// keep remembers a selection for the vertices of this build that use it.
func (r *Runner) keep(s *selection) solver.Result {
	d := s.tree.Digest()
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.selections == nil {
		r.selections = map[digest.Digest]*selection{}
	}
	r.selections[d] = s
	return solver.Result{Digest: d}
}

// Listing returns the files of a selection that this Runner made from a local
// context, nil for others. It must not be changed.
func (r *Runner) Listing(out solver.Output) *tree.Tree {
	r.mu.Lock()
	defer r.mu.Unlock()
	if s, ok := r.selections[out.Digest]; ok {
		return s.tree
	}
	return nil
}

// selected finds a selection again: one of this build, or the listing that
// an earlier build saved, whose files are in the stack it was chosen from.
func (r *Runner) selected(ctx context.Context, out solver.Output, using *solver.Output) (*selection, error) {
	if out.Result.Blob == "" {
		r.mu.Lock()
		defer r.mu.Unlock()
		if s, ok := r.selections[out.Digest]; ok {
			return s, nil
		}
		return nil, fmt.Errorf("selection %s is not of this build", out.Digest)
	}
	data, err := r.Store.Blob(out.Result.Blob)
	if err != nil {
		return nil, err
	}
	t, err := tree.Decode(bytes.NewReader(data))
	if err != nil {
		return nil, fmt.Errorf("selection %s: %w", out.Digest, err)
	}
	s := &selection{tree: t}
	if using != nil {
		idx, err := r.Store.Index(using.Layers)
		if err != nil {
			return nil, err
		}
		dirs, err := r.Store.LayerDirs(ctx, using.Layers)
		if err != nil {
			return nil, err
		}
		s.from = &layerFiles{index: idx, dirs: dirs}
	}
	return s, nil
}

func (r *Runner) inline(o op.Inline) (solver.Result, error) {
	s := &selection{tree: &tree.Tree{}}
	files := memory{}
	for _, f := range o.Files {
		sum := sha256.Sum256(f.Data)
		s.tree.Entries = append(s.tree.Entries, tree.Entry{
			Path: f.Name, Type: tree.File, Mode: 0o644, Size: int64(len(f.Data)), Mtime: time.Now().UnixNano(),
			Digest: digest.NewDigestFromBytes(digest.SHA256, sum[:]),
		})
		files[f.Name] = f.Data
	}
	s.tree.Sort()
	s.from = files
	if err := s.tree.Check(); err != nil {
		return solver.Result{}, err
	}
	return r.keep(s), nil
}

// saved keeps a selection's listing with the action's result.
func (r *Runner) saved(s *selection) (solver.Result, error) {
	var b bytes.Buffer
	if err := s.tree.Encode(&b); err != nil {
		return solver.Result{}, err
	}
	d, err := r.Store.PutBlob(b.Bytes())
	if err != nil {
		return solver.Result{}, err
	}
	return solver.Result{Digest: s.tree.Digest(), Blob: d}, nil
}

func (r *Runner) selectFiles(ctx context.Context, a *solver.Action, o op.Select) (solver.Result, error) {
	if o.Context != "" {
		s, err := r.selectLocal(ctx, o)
		if err != nil {
			return solver.Result{}, err
		}
		return r.keep(s), nil
	}
	s, err := r.selectStack(a.Inputs[0], o)
	if err != nil {
		return solver.Result{}, err
	}
	return r.saved(s)
}

// picker puts what the sources of a Select name together into one tree. A
// place is a local directory or a stack.
type picker struct {
	o     op.Select
	place place
	t     *tree.Tree
	root  bool // some source was a directory
	// touched says that the last source gives the destination no time: it is
	// a file, or a context's top, whose time is that of anyone's work there.
	touched bool
	picked  map[string]tree.Type
}

// place is where files are selected. Paths are relative and clean.
type place interface {
	// glob lists the paths that match a pattern, in order.
	glob(pattern string) ([]string, error)

	// find resolves a path, links included. The error matches
	// fs.ErrNotExist where there is nothing, and says so for people.
	find(path string, follow bool) (resolved string, e tree.Entry, err error)

	// walk lists a directory: itself with path "", then what is below it,
	// paths relative to it, with Source set to the path in the place; the
	// list becomes the caller's. What matches a pattern of exclude, read below
	// the path under, is left out; a directory that still holds something gets
	// a new time.
	walk(dir, under string, exclude []string) ([]tree.Entry, error)
}

// pick evaluates a Select.
func pick(o op.Select, p place) (*tree.Tree, error) {
	k := &picker{o: o, place: p, t: &tree.Tree{}, picked: map[string]tree.Type{}}
	for _, src := range o.Sources {
		if err := k.source(src); err != nil {
			return nil, err
		}
	}
	if k.touched && k.root && !o.Whole {
		k.dir(tree.Entry{Type: tree.Dir, Mtime: time.Now().UnixNano()})
	}
	k.t.Sort()
	relink(k.t)
	if err := k.t.Check(); err != nil {
		return nil, err
	}
	return k.t, nil
}

// source adds what one source names.
func (k *picker) source(src string) error {
	if k.o.Parents {
		return k.withParents(src)
	}
	clean := strings.TrimPrefix(path.Clean("/"+src), "/")
	matches := []string{clean}
	if hasWildcard(clean) && !k.o.Whole {
		var err error
		if matches, err = k.place.glob(clean); err != nil {
			return err
		}
	}
	for _, m := range matches {
		if err := k.add(m, "", path.Base(m), false); err != nil {
			return err
		}
	}
	return nil
}

// withParents adds a source with its path; "/./" ends the part left out.
func (k *picker) withParents(src string) error {
	left := 0 // components that are left out
	before, _, hasPivot := strings.Cut(src, "/./")
	if hasPivot {
		if pivot := strings.Trim(path.Clean("/"+before), "/"); pivot != "" {
			left = strings.Count(pivot, "/") + 1
		}
	}
	clean := strings.TrimPrefix(path.Clean("/"+src), "/")
	matches := []string{clean}
	var err error
	if strings.Contains("/"+clean+"/", "/**/") {
		matches, err = k.globDeep(clean)
	} else if hasWildcard(clean) {
		matches, err = k.place.glob(clean)
	}
	if err != nil {
		return err
	}
	excluded, err := excluder(k.o.Exclude)
	if err != nil {
		return err
	}
	now := time.Now().UnixNano()
	k.dir(tree.Entry{Type: tree.Dir, Mtime: now})
	k.touched = left == 0
	for _, m := range matches {
		rel := m
		for range left {
			_, rel, _ = strings.Cut(rel, "/")
		}
		base := len(m) - len(rel)
		if left > 0 {
			_, e, err := k.place.find(strings.TrimSuffix(m[:base], "/"), false)
			if err != nil {
				return err
			}
			k.dir(tree.Entry{Type: tree.Dir, Mtime: e.Mtime})
		}
		hide, err := excluded(rel)
		if err != nil {
			return err
		}
		count := len(k.t.Entries)
		if err := k.add(m, rel, rel, hide); err != nil {
			return err
		}
		if len(k.t.Entries) == count {
			continue
		}
		for i := range rel {
			if rel[i] != '/' || k.picked[rel[:i]] == tree.Dir {
				continue
			}
			_, e, err := k.place.find(m[:base+i], false)
			if err != nil {
				return err
			}
			if e.Type != tree.Dir {
				return &missingError{fmt.Sprintf("%q: not found: with --parents no links are followed, and %q is a %s", "/"+m, "/"+m[:base+i], e.Type)}
			}
			e.Path, e.Source, e.Mtime = rel[:i], "", now
			if err := k.put(e); err != nil {
				return err
			}
		}
	}
	return nil
}

// globDeep lists what a pattern with "**" for any number of directories
// matches, below the directory that its first components name.
func (k *picker) globDeep(pattern string) ([]string, error) {
	comps := strings.Split(pattern, "/")
	for _, c := range comps {
		if _, err := path.Match(c, ""); err != nil {
			return nil, fmt.Errorf("pattern %q: %w", pattern, err)
		}
	}
	fixed := 0
	for !hasWildcard(comps[fixed]) {
		fixed++
	}
	dir := path.Join(comps[:fixed]...)
	if _, e, err := k.place.find(dir, false); errors.Is(err, fs.ErrNotExist) || err == nil && e.Type != tree.Dir {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	entries, err := k.place.walk(dir, "", nil)
	if err != nil {
		return nil, err
	}
	var found []string
	for _, e := range entries {
		if e.Path != "" && matchDeep(comps[fixed:], strings.Split(e.Path, "/")) {
			found = append(found, path.Join(dir, e.Path))
		}
	}
	return found, nil
}

func matchDeep(pattern, comps []string) bool {
	if len(pattern) == 0 {
		return len(comps) == 0
	}
	if pattern[0] == "**" && len(pattern) == 1 {
		return len(comps) > 0 // what is in a folder, not the folder
	}
	if pattern[0] == "**" {
		return matchDeep(pattern[1:], comps) || len(comps) > 0 && matchDeep(pattern, comps[1:])
	}
	if len(comps) == 0 {
		return false
	}
	ok, _ := path.Match(pattern[0], comps[0])
	return ok && matchDeep(pattern[1:], comps[1:])
}

// add puts a file, or the contents of a directory, into the tree: a
// directory's below the path under, a file as name. Of what is hidden only
// that is added which --exclude brings back.
func (k *picker) add(p, under, name string, hidden bool) error {
	resolved, e, err := k.place.find(p, !k.o.Parents)
	if err != nil {
		return err
	}
	if e.Type != tree.Dir {
		if hidden {
			return nil
		}
		k.touched = k.touched || !k.o.Parents
		e.Path, e.Source, e.Hardlink = name, resolved, ""
		if k.o.Parents && e.Type == tree.Symlink {
			e.Source = ""
		}
		return k.put(e)
	}
	entries, err := k.place.walk(resolved, under, k.o.Exclude)
	if err != nil {
		return err
	}
	if len(k.t.Entries) == 0 {
		k.t.Entries = entries[:0] // each is read before one is put there
	}
	k.t.Entries = slices.Grow(k.t.Entries, len(entries))
	if len(k.picked) == 0 {
		k.picked = make(map[string]tree.Type, len(entries))
	}
	if !k.o.Parents {
		k.touched = resolved == "" && (k.o.Context != "" || len(entries) < 2)
	}
	for _, e := range entries {
		if e.Path == "" && under == "" {
			if !k.o.Parents {
				k.dir(e)
			}
			continue
		}
		if e.Path == "" && hidden {
			if len(entries) == 1 {
				return nil
			}
			e.Mtime = time.Now().UnixNano()
		}
		e.Path = below(under, e.Path)
		if err := k.put(e); err != nil {
			return err
		}
	}
	return nil
}

// dir notes a directory source: the destination becomes a directory, with
// the time of the last source. Its mode and owner count for mounts alone.
func (k *picker) dir(e tree.Entry) {
	e.Path, e.Opaque = "", false
	if !k.o.Whole {
		e.Source, e.Mode, e.UID, e.GID, e.Xattrs = "", 0o755, 0, 0, nil
	}
	k.root = true
	k.picked[""] = tree.Dir
	k.t.Entries = append(k.t.Entries, e)
}

// put adds an entry. Later sources replace the files of earlier ones, but
// never a directory by something else, or the reverse.
func (k *picker) put(e tree.Entry) error {
	e.Opaque = false
	if before, ok := k.picked[e.Path]; ok && (before == tree.Dir) != (e.Type == tree.Dir) {
		return fmt.Errorf("%q is a %s in one source and a %s in another", "/"+e.Path, before, e.Type)
	}
	k.picked[e.Path] = e.Type
	k.t.Entries = append(k.t.Entries, e)
	return nil
}

// relink makes hard links lead to the path that their first file has in this
// tree. Entries come with the path in the place where they were found.
func relink(t *tree.Tree) {
	if !slices.ContainsFunc(t.Entries, func(e tree.Entry) bool { return e.Hardlink != "" }) {
		return
	}
	type first struct {
		path string // here
		own  bool   // the file's own place, not that of a hard link to it
	}
	at := map[string]first{} // by path in the place
	for i := range t.Entries {
		e := &t.Entries[i]
		if e.Type != tree.File {
			continue
		}
		src, own := sourceOf(e), e.Hardlink == ""
		if !own {
			src = e.Hardlink
		}
		f, ok := at[src]
		if !ok {
			at[src] = first{e.Path, own}
		}
		if e.Hardlink = f.path; own && f.own {
			e.Hardlink = "" // one file, named twice: these are copies
		}
	}
}

// hasWildcard reports whether filepath.Match would give a path any meaning
// but its own.
func hasWildcard(p string) bool { return strings.ContainsAny(p, `*?[\`) }

// globber matches patterns component by component, which is what
// filepath.Match over a whole path amounts to.
func globber(pattern string, list func(dir string) ([]string, error)) ([]string, error) {
	found := []string{""}
	for comp := range strings.SplitSeq(pattern, "/") {
		if _, err := path.Match(comp, ""); err != nil {
			return nil, fmt.Errorf("pattern %q: %w", pattern, err)
		}
		var next []string
		for _, dir := range found {
			names, err := list(dir)
			if err != nil {
				return nil, err
			}
			for _, n := range names {
				if ok, _ := path.Match(comp, n); ok {
					next = append(next, path.Join(dir, n))
				}
			}
		}
		found = next
	}
	return found, nil
}
