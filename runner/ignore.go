package runner

import (
	"fmt"
	"io"
	"path"
	"strings"
	"sync"

	"github.com/moby/patternmatcher"
	"golang.org/x/sys/unix"
)

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
		fixed := pat.String()
		if i := strings.IndexAny(fixed, `*?[\`); i >= 0 {
			fixed = fixed[:i]
		}
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
