package runner

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/moby/patternmatcher"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
	"kiln.build/cache"
	"kiln.build/cache/tree"
	"kiln.build/solver/op"
)

// localContext is a local directory, open for as long as the build runs.
type localContext struct {
	dir        *os.File
	name       string // as in messages
	ignoreFile string
	stats      *cache.StatCache
}

func (c *localContext) close() error {
	return errors.Join(c.stats.Save(), c.dir.Close())
}

// context opens a local context once.
func (r *Runner) context(name string) (*localContext, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if c, ok := r.contexts[name]; ok {
		return c, nil
	}
	def, ok := r.Contexts[name]
	if !ok {
		return nil, fmt.Errorf("there is no build context %q", name)
	}
	dir, err := os.Open(def.Dir)
	if err != nil {
		return nil, err
	}
	stats, err := r.Store.StatCache(def.Dir)
	if err != nil {
		return nil, errors.Join(err, dir.Close())
	}
	if r.contexts == nil {
		r.contexts = map[string]*localContext{}
	}
	c := &localContext{dir: dir, name: "the build context", ignoreFile: def.IgnoreFile, stats: stats}
	if name != "context" {
		c.name = "build context " + name
	}
	r.contexts[name] = c
	return c, nil
}

// selectLocal chooses files of a local directory. Only what a source names
// is looked at.
func (r *Runner) selectLocal(ctx context.Context, o op.Select) (*selection, error) {
	c, err := r.context(o.Context)
	if err != nil {
		return nil, err
	}
	ignored, err := newIgnore(o.Ignore)
	if err != nil {
		return nil, err
	}
	p := &localPlace{ctx: ctx, c: c, ignore: ignored}
	t, err := pick(o, p)
	if err != nil {
		return nil, err
	}
	for i := range t.Entries {
		e := &t.Entries[i]
		e.UID, e.GID = 0, 0
		if o.GitModes && e.Type != tree.Symlink {
			if e.Type == tree.Dir || e.Mode&0o100 != 0 {
				e.Mode = 0o755
			} else {
				e.Mode = 0o644
			}
		}
	}
	return &selection{tree: t, from: c}, nil
}

// open opens a selected file: no link is followed any more, and nothing
// outside the directory can be reached.
func (c *localContext) open(e *tree.Entry) (io.ReadCloser, error) {
	f, err := c.openat(sourceOf(e), unix.O_RDONLY)
	if err != nil {
		return nil, fmt.Errorf("%q in %s: %w", "/"+sourceOf(e), c.name, err)
	}
	return f, nil
}

func (c *localContext) openat(p string, flags uint64) (*os.File, error) {
	if p == "" {
		p = "."
	}
	if flags&unix.O_PATH == 0 {
		flags |= unix.O_NONBLOCK // a fifo must not hold the build up
	}
	fd, err := unix.Openat2(int(c.dir.Fd()), p, &unix.OpenHow{
		Flags:   flags | unix.O_CLOEXEC | unix.O_NOFOLLOW,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
	})
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), p), nil
}

// ignore matches the patterns of a .dockerignore.
type ignore struct {
	m        *patternmatcher.PatternMatcher
	patterns []string
	mu       sync.Mutex
	dirs     map[string]patternmatcher.MatchInfo
}

func newIgnore(patterns []string) (*ignore, error) {
	m, err := patternmatcher.New(patterns)
	if err != nil {
		return nil, fmt.Errorf(".dockerignore: %w", err)
	}
	return &ignore{m: m, patterns: patterns, dirs: map[string]patternmatcher.MatchInfo{}}, nil
}

// hidden reports whether a path is ignored; the last matching line decides.
func (g *ignore) hidden(p string, isDir bool) (bool, error) {
	if len(g.patterns) == 0 || p == "" {
		return false, nil
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	hide, info, err := g.match(p)
	if err == nil && isDir {
		g.dirs[p] = info
	}
	return hide, err
}

func (g *ignore) match(p string) (bool, patternmatcher.MatchInfo, error) {
	parent, ok := patternmatcher.MatchInfo{}, true
	if dir := path.Dir(p); dir != "." {
		if parent, ok = g.dirs[dir]; !ok {
			var err error
			if _, parent, err = g.match(dir); err != nil {
				return false, parent, err
			}
			g.dirs[dir] = parent
		}
	}
	return g.m.MatchesUsingParentResults(p, parent)
}

// mayHold reports whether an ignored directory may have something in it that
// a "!" line brings back.
func (g *ignore) mayHold(dir string) bool {
	for _, pat := range g.m.Patterns() {
		if !pat.Exclusion() {
			continue
		}
		fixed, _, _ := strings.Cut(pat.String(), "*")
		fixed, _, _ = strings.Cut(fixed, "?")
		fixed, _, _ = strings.Cut(fixed, "[")
		if strings.HasPrefix(fixed, dir+"/") || strings.HasPrefix(dir+"/", fixed) {
			return true
		}
	}
	return false
}

// line is the ignore line that hides a path: the last one that matches.
func (g *ignore) line(p string) string {
	for i := len(g.patterns) - 1; i >= 0; i-- {
		m, err := patternmatcher.New([]string{strings.TrimPrefix(g.patterns[i], "!")})
		if err != nil {
			continue
		}
		if ok, err := m.MatchesOrParentMatches(p); err == nil && ok {
			return g.patterns[i]
		}
	}
	return ""
}

// localPlace finds files below a directory.
type localPlace struct {
	ctx    context.Context
	c      *localContext
	ignore *ignore
}

// list is what a directory holds and .dockerignore leaves, sorted.
func (p *localPlace) list(dir string) ([]string, error) {
	resolved, err := p.resolve(dir, true)
	if err != nil {
		return nil, err
	}
	f, err := p.c.openat(resolved, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	all, err := f.ReadDir(-1)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range all {
		at := path.Join(dir, e.Name())
		hide, err := p.ignore.hidden(at, e.IsDir())
		if err != nil {
			return nil, err
		}
		if !hide || e.IsDir() && p.ignore.mayHold(at) {
			names = append(names, e.Name())
		}
	}
	// ReadDir of an open file keeps the disk's order.
	slices.Sort(names)
	return names, nil
}

// near is list for hints, which may fail.
func (p *localPlace) near(dir string) []string {
	names, _ := p.list(dir)
	return names
}

func (p *localPlace) glob(pattern string) ([]string, error) {
	return globber(pattern, func(dir string) ([]string, error) {
		names, err := p.list(dir)
		switch {
		case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.ELOOP):
			return nil, nil // what is no directory holds nothing that matches
		case err != nil:
			return nil, fmt.Errorf("%q in %s: %w", "/"+dir, p.c.name, err)
		}
		return names, nil
	})
}

// resolve follows the links of a path inside the directory.
func (p *localPlace) resolve(name string, follow bool) (string, error) {
	const maxLinks = 40
	resolved, todo := "", name
	for links := 0; todo != ""; {
		comp, rest, _ := strings.Cut(strings.TrimLeft(todo, "/"), "/")
		switch comp {
		case "", ".":
			todo = rest
			continue
		case "..":
			if resolved = path.Dir("/" + resolved)[1:]; resolved == "." {
				resolved = ""
			}
			todo = rest
			continue
		}
		at := path.Join(resolved, comp)
		if rest == "" && !follow {
			return at, nil
		}
		link, err := p.readlink(at)
		switch {
		case err == unix.EINVAL: // no link
			resolved, todo = at, rest
			continue
		case err != nil:
			return "", err
		}
		if links++; links > maxLinks {
			return "", unix.ELOOP
		}
		if strings.HasPrefix(link, "/") {
			resolved = ""
		}
		todo = link + "/" + rest
	}
	return resolved, nil
}

func (p *localPlace) readlink(name string) (string, error) {
	dir := int(p.c.dir.Fd())
	if parent := path.Dir(name); parent != "." {
		f, err := p.c.openat(parent, unix.O_PATH|unix.O_DIRECTORY)
		if err != nil {
			return "", err
		}
		defer f.Close()
		dir = int(f.Fd())
	}
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(dir, path.Base(name), buf)
	if err != nil {
		return "", err
	}
	return string(buf[:n]), nil
}

func (p *localPlace) find(name string, follow bool) (string, tree.Entry, error) {
	where := " in " + p.c.name
	if hide, err := p.ignore.hidden(name, false); err != nil {
		return "", tree.Entry{}, err
	} else if hide && !p.ignore.mayHold(name) {
		return "", tree.Entry{}, p.ignoredError(name)
	}
	resolved, err := p.resolve(name, follow)
	if err != nil {
		return "", tree.Entry{}, notFound(name, err, p.near, where)
	}
	hide, err := p.ignore.hidden(resolved, false)
	if err != nil {
		return "", tree.Entry{}, err
	}
	if hide && !p.ignore.mayHold(resolved) {
		return "", tree.Entry{}, p.ignoredError(resolved)
	}
	e, err := p.entry(resolved, hide)
	switch {
	case err != nil:
		return "", e, notFound(name, err, p.near, where)
	case hide && e.Type != tree.Dir:
		return "", tree.Entry{}, p.ignoredError(resolved) // only what a directory holds can come back
	}
	return resolved, e, nil
}

// ignoredError names the line that hides a source.
func (p *localPlace) ignoredError(name string) error {
	file := p.c.ignoreFile
	if file == "" {
		file = ".dockerignore"
	}
	return &missingError{fmt.Sprintf("%q: not found in %s: %s hides it%s", "/"+name, p.c.name, file, p.ignoreLine(file, name))}
}

// ignoreLine shows the line that hides a path, with its number where the
// file can be read.
func (p *localPlace) ignoreLine(file, name string) string {
	pattern := p.ignore.line(name)
	if pattern == "" {
		return ""
	}
	f, err := p.c.openat(file, unix.O_RDONLY)
	if err != nil {
		return fmt.Sprintf(" (%s)", pattern)
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, 1<<20))
	if err != nil {
		return fmt.Sprintf(" (%s)", pattern)
	}
	found := 0
	for i, line := range strings.Split(string(text), "\n") {
		if strings.Trim(path.Clean(strings.TrimSpace(line)), "/") == strings.Trim(pattern, "/") {
			found = i + 1
		}
	}
	if found == 0 {
		return fmt.Sprintf(" (%s)", pattern)
	}
	return fmt.Sprintf(" (%s:%d: %s)", file, found, pattern)
}

// entry describes one path, which has no links but perhaps in its last place.
// Files that are hidden are not read.
func (p *localPlace) entry(name string, hidden bool) (tree.Entry, error) {
	f, err := p.c.openat(name, unix.O_PATH)
	if err != nil {
		return tree.Entry{}, err
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return tree.Entry{}, err
	}
	e := tree.Entry{Path: name, Mode: st.Mode & 0o7777, Mtime: st.Mtim.Nano()}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		e.Type = tree.Dir
	case unix.S_IFLNK:
		e.Type, e.Mode = tree.Symlink, 0o777
		e.Link, err = p.readlink(name)
		return e, err
	case unix.S_IFREG:
		e.Type, e.Size = tree.File, st.Size
		if hidden {
			return e, nil
		}
		e.Digest, err = p.hash(name, &st)
		return e, err
	case unix.S_IFIFO:
		e.Type = tree.Fifo
	case unix.S_IFSOCK:
		// A socket becomes an empty file, as in docker.
		e.Type, e.Digest = tree.File, digest.FromBytes(nil)
	case unix.S_IFCHR, unix.S_IFBLK:
		e.Type = tree.Char
		if st.Mode&unix.S_IFMT == unix.S_IFBLK {
			e.Type = tree.Block
		}
		e.Major, e.Minor = unix.Major(st.Rdev), unix.Minor(st.Rdev)
	}
	return e, nil
}

// hash is the digest of one file's content.
func (p *localPlace) hash(name string, st *unix.Stat_t) (digest.Digest, error) {
	if d, ok := p.c.stats.Lookup(name, st); ok {
		return d, nil
	}
	seen := time.Now()
	f, err := p.c.openat(name, unix.O_RDONLY)
	if err != nil {
		return "", err
	}
	defer f.Close()
	d, err := digest.Canonical.FromReader(f)
	if err != nil {
		return "", err
	}
	var after unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &after); err != nil {
		return "", err
	}
	if after.Size != st.Size || after.Mtim != st.Mtim || after.Ctim != st.Ctim {
		return "", fmt.Errorf("it changed while it was being read: run the build again")
	}
	p.c.stats.Put(name, st, d, seen)
	return d, nil
}

func (p *localPlace) walk(dir string, exclude []string) ([]tree.Entry, error) {
	excluded, err := excluder(exclude)
	if err != nil {
		return nil, err
	}
	f, err := p.c.openat(dir, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return nil, fmt.Errorf("%q in %s: %w", "/"+dir, p.c.name, err)
	}
	defer f.Close()
	var failed error
	filter := func(rel string, t tree.Type) (keep, descend bool) {
		full := path.Join(dir, rel)
		hide, err := p.ignore.hidden(full, t == tree.Dir)
		if err == nil && !hide {
			hide, err = excluded(rel)
			if hide && t == tree.Dir {
				return false, err == nil
			}
		}
		if err != nil && failed == nil {
			failed = err
		}
		if hide {
			return false, t == tree.Dir && p.ignore.mayHold(full)
		}
		return true, true
	}
	t, err := tree.Scan(p.ctx, "/proc/self/fd/"+strconv.Itoa(int(f.Fd())), tree.ScanOptions{
		Plain: true, Filter: filter, Known: prefixed{p.c.stats, dir},
	})
	if failed != nil {
		return nil, failed
	}
	if err != nil {
		var gone *fs.PathError
		if errors.As(err, &gone) {
			return nil, fmt.Errorf("%q in %s: %s: %w", "/"+path.Join(dir, gone.Path), p.c.name, gone.Op, gone.Err)
		}
		return nil, err
	}
	for i := range t.Entries {
		t.Entries[i].Source = path.Join(dir, t.Entries[i].Path)
	}
	return t.Entries, nil
}

// prefixed is the stat cache of a directory as seen from one below it.
type prefixed struct {
	stats *cache.StatCache
	dir   string
}

func (p prefixed) Lookup(name string, st *unix.Stat_t) (digest.Digest, bool) {
	return p.stats.Lookup(path.Join(p.dir, name), st)
}

func (p prefixed) Put(name string, st *unix.Stat_t, d digest.Digest, seen time.Time) {
	p.stats.Put(path.Join(p.dir, name), st, d, seen)
}
