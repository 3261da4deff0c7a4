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
	"sync/atomic"
	"time"

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

	// stats opens what is known of the directory's files, once. To read that
	// takes some time where there are very many, so it waits for a need.
	stats func() (*cache.StatCache, error)
	used  atomic.Bool // stats has been called
	saved sync.Once   // early

	noisy atomic.Bool // files are not ours, who may not keep their times of access
}

func (c *localContext) statCache() (*cache.StatCache, error) {
	c.used.Store(true)
	return c.stats()
}

// saveEarly keeps what was learned while the build goes on, once: what comes
// later is kept at the end.
func (r *Runner) saveEarly(c *localContext) {
	if !c.used.Load() {
		return
	}
	c.saved.Do(func() {
		r.detaching.Go(func() {
			if stats, err := c.stats(); err == nil {
				_ = stats.Save() // what cannot be written then is tried again
			}
		})
	})
}

func (c *localContext) close() error {
	err := c.dir.Close()
	if !c.used.Load() {
		return err
	}
	stats, openErr := c.stats()
	if openErr != nil {
		return errors.Join(err, openErr)
	}
	return errors.Join(err, stats.Save())
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
	if r.contexts == nil {
		r.contexts = map[string]*localContext{}
	}
	c := &localContext{dir: dir, name: "the build context", ignoreFile: def.IgnoreFile}
	c.stats = sync.OnceValues(func() (*cache.StatCache, error) { return r.Store.StatCache(def.Dir) })
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
	if changed(err) {
		t, err = pick(o, p)
	}
	if err != nil {
		return nil, err
	}
	if len(t.Entries) >= manyFiles {
		r.saveEarly(c)
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

// manyFiles is how many take a while to be remembered.
const manyFiles = 1000

// errChanged is the error of a file that was written to while it was read.
var errChanged = errors.New("it changed while it was being read: run the build again")

// changed reports whether an error comes from files that others work on, such
// as an editor's, which come and go. What they left is worth another look.
func changed(err error) bool {
	var missing *missingError
	return errors.Is(err, errChanged) || errors.Is(err, fs.ErrNotExist) && !errors.As(err, &missing)
}

// open opens a selected file: no link is followed any more, and nothing
// outside the directory can be reached.
func (c *localContext) open(e *tree.Entry) (io.ReadCloser, error) {
	fd, err := -1, error(unix.EPERM)
	if !c.noisy.Load() { // to change times of access takes time
		fd, err = c.openFD(sourceOf(e), unix.O_RDONLY|unix.O_NOATIME)
	}
	if err == unix.EPERM {
		c.noisy.Store(true)
		fd, err = c.openFD(sourceOf(e), unix.O_RDONLY)
	}
	if err != nil {
		return nil, fmt.Errorf("%q in %s: %w", "/"+sourceOf(e), c.name, err)
	}
	return &rawFile{fd, sourceOf(e)}, nil
}

func (c *localContext) openat(p string, flags uint64) (*os.File, error) {
	fd, err := c.openFD(p, flags)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), p), nil
}

func (c *localContext) openFD(p string, flags uint64) (int, error) {
	if p == "" {
		p = "."
	}
	if flags&unix.O_PATH == 0 {
		flags |= unix.O_NONBLOCK // a fifo must not hold the build up
	}
	return unix.Openat2(int(c.dir.Fd()), p, &unix.OpenHow{
		Flags:   flags | unix.O_CLOEXEC | unix.O_NOFOLLOW,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
	})
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

// quick is the size up to which a file that a source names itself is read
// without asking the stat cache.
const quick = 256 << 10

// hash is the digest of one file's content.
func (p *localPlace) hash(name string, st *unix.Stat_t) (digest.Digest, error) {
	if st.Size <= quick {
		d, _, err := p.read(name, st)
		return d, err
	}
	stats, err := p.c.statCache()
	if err != nil {
		return "", err
	}
	if d, ok := stats.Lookup(name, st); ok {
		return d, nil
	}
	d, seen, err := p.read(name, st)
	if err == nil {
		stats.Put(name, st, d, seen)
	}
	return d, err
}

// read hashes a file that has the attributes st, and returns when it began.
func (p *localPlace) read(name string, st *unix.Stat_t) (d digest.Digest, seen time.Time, err error) {
	seen = time.Now()
	f, err := p.c.openat(name, unix.O_RDONLY)
	if err != nil {
		return "", seen, err
	}
	defer f.Close()
	if d, err = digest.Canonical.FromReader(f); err != nil {
		return "", seen, err
	}
	var after unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &after); err != nil {
		return "", seen, err
	}
	if after.Size != st.Size || after.Mtim != st.Mtim || after.Ctim != st.Ctim {
		return "", seen, errChanged
	}
	return d, seen, nil
}

func (p *localPlace) walk(dir, under string, exclude []string) ([]tree.Entry, error) {
	excluded, err := excluder(exclude)
	if err != nil {
		return nil, err
	}
	f, err := p.c.openat(dir, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return nil, fmt.Errorf("%q in %s: %w", "/"+dir, p.c.name, err)
	}
	defer f.Close()
	stats, err := p.c.statCache()
	if err != nil {
		return nil, err
	}
	var failed error
	dirs := map[string]bool{} // excluded ones
	filter := func(rel string, t tree.Type) (keep, descend bool) {
		full := below(dir, rel)
		hide, err := p.ignore.hidden(full, t == tree.Dir)
		if err == nil && !hide {
			hide, err = excluded(below(under, rel))
			if hide && t == tree.Dir {
				dirs[rel] = true
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
		Plain: true, Filter: filter, Known: prefixed{stats, dir},
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
		e := &t.Entries[i]
		if dirs[e.Path] {
			e.Mtime = time.Now().UnixNano()
		}
		e.Source = below(dir, e.Path)
		if e.Hardlink != "" {
			e.Hardlink = below(dir, e.Hardlink)
		}
	}
	return t.Entries, nil
}

// prefixed is the stat cache of a directory as seen from one below it.
type prefixed struct {
	stats *cache.StatCache
	dir   string
}

func (p prefixed) Lookup(name string, st *unix.Stat_t) (digest.Digest, bool) {
	return p.stats.Lookup(below(p.dir, name), st)
}

func (p prefixed) Put(name string, st *unix.Stat_t, d digest.Digest, seen time.Time) {
	p.stats.Put(below(p.dir, name), st, d, seen)
}
